//! `retune record`, `feedback`, `reward`, `import`, `stats` and `review` as a user runs them.

mod common;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{refusal, says};
use retune::store::Store;
use serde_json::{Value, json};

fn retune(root: &Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_retune"))
        .args(args)
        .arg("--root")
        .arg(root)
        .env_remove("RETUNE_ROOT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn ok(root: &Path, args: &[&str], input: &str) -> String {
    let output = retune(root, args, input);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_run_is_recorded_by_flags_and_by_json_and_once() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let flags = ["record", "--role", "coder", "--id", "a", "--prompt", "p", "--output", "o", "--compile-pass", "true"];
    says(
        &ok(root, &[&flags[..], &["--tests-passed", "3", "--tests-total", "4"]].concat(), ""),
        &["run 1 (a) is recorded: reward 0.88, from 50%"],
    );
    says(&ok(root, &flags, ""), &["run 1 (a) was recorded already; nothing was changed"]);
    let runs = [
        json!({"role": "fixer", "id": "b", "prompt": "x", "output": "y", "result": {"lint_errors": 5}, "model": "m", "cost_tokens": 10, "duration_ms": 5}),
        json!({"role": "fixer", "id": "a", "prompt": "other"}),
        json!({"role": "judge", "result": {"human_accept": true}}),
    ];
    let lines: String = runs.iter().map(|run| format!("{run}\n")).collect();
    let said: Vec<Value> = ok(root, &["record", "-", "--json"], &format!("\u{feff}{lines}"))
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(
        said.iter().map(|s| (s["number"].as_i64().unwrap(), s["repeated"].as_bool().unwrap())).collect::<Vec<_>>(),
        [(2, false), (1, true), (3, false)]
    );
    let stats: Value = serde_json::from_str(&ok(root, &["stats", "--json"], "")).unwrap();
    assert_eq!(
        (&stats["all"]["runs"], &stats["by_role"]["fixer"]["reward"], &stats["by_model"]["m"]["tokens"]),
        (&json!(3), &json!(0.5), &json!(10.0))
    );
    let told = ok(root, &["stats"], "");
    assert!(told.lines().all(|line| line.chars().count() <= 80), "{told}");
}

#[test]
fn what_is_wrong_is_named_and_what_stood_before_it_is_recorded() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let input = "{\"role\": \"coder\"}\n{\"role\": \"coder\", \"reslt\": {}}\n{\"role\": \"coder\"}\n";
    says(
        &refusal(1, &retune(root, &["record", "-"], input), "an unknown field"),
        &["run 2", "unknown field `reslt`", "the 1 before it are recorded"],
    );
    assert_eq!(Store::open(root).unwrap().stats(None, 10).unwrap().all.runs, 1);
    says(&refusal(1, &retune(root, &["record", "-"], ""), "nothing"), &["holds no run"]);
    says(&refusal(1, &retune(root, &["record", "-"], "{\"role\": \"coder\""), "cut"), &["run 1", "EOF"]);
    says(&refusal(2, &retune(root, &["record"], ""), "no role"), &["nothing says which role", "--role coder"]);
    says(&refusal(2, &retune(root, &["record", "--role", "Coder"], ""), "a role with a capital"), &["the role is 'Coder'"]);
    says(
        &refusal(2, &retune(root, &["record", "--role", "coder", "--tests-passed", "5", "--tests-total", "4"], ""), "too many"),
        &["more than tests_total"],
    );
    fs::write(root.join(".agent/learning-config.json"), "{\"redaction\": {\"extraPatterns\": [\"(\"]}}").unwrap();
    says(&refusal(2, &retune(root, &["record", "--role", "coder"], ""), "a pattern that is none"), &["extra pattern 1"]);
}

#[test]
fn votes_change_the_reward_and_weights_recompute_it() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    ok(root, &["record", "--role", "coder", "--id", "a", "--prompt", "p", "--output", "o", "--compile-pass", "true"], "");
    says(&ok(root, &["feedback", "a", "--down", "--user", "anna"], ""), &["votes say 0.00, the reward is 0.50"]);
    says(&ok(root, &["feedback", "a", "--score", "0.5", "--user", "anna"], ""), &["votes say 0.50, the reward is 0.75"]);
    fs::write(root.join("better"), "o2").unwrap();
    let edited = root.join("better");
    says(&ok(root, &["feedback", "1", "--edited", edited.to_str().unwrap(), "--user", "ben"], ""), &["votes say 0.25"]);
    says(&refusal(2, &retune(root, &["feedback", "zz", "--up"], ""), "no such run"), &["there is no run 'zz'"]);
    says(&refusal(2, &retune(root, &["feedback", "a"], ""), "nothing said"), &["nothing is said"]);
    says(&ok(root, &["reward", "recompute"], ""), &["every reward is up to date"]);
    fs::write(root.join(".agent/learning-config.json"), "{\"rewardWeights\": {\"human\": 0}}").unwrap();
    says(&ok(root, &["reward", "recompute"], ""), &["2 rewards were computed anew"]);
    assert_eq!(Store::open(root).unwrap().run("a").unwrap().unwrap().reward, Some(1.0));
    // The edited answer is what is exported; the first one is not.
    let said: Value = serde_json::from_str(&ok(root, &["export", "--role", "coder", "--json"], "")).unwrap();
    assert_eq!(said["train"], 1, "{said}");
    let rows = fs::read_to_string(root.join(".agent/sft/coder_sft.jsonl")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&rows).unwrap(), json!({"instruction": "p", "input": "", "output": "o2"}));
}

#[test]
fn a_command_that_is_watched_gives_a_run_its_verdict() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let printed = "printf 'running 3 tests\ntest a ... ok\ntest b ... ok\ntest c ... ok\n\ntest result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n'";
    let root_text = root.to_str().unwrap();
    let watch = |more: &[&str]| {
        let args = [&["watch", "--root", root_text], more, &["--", "sh", "-c", printed]].concat();
        let output = Command::new(env!("CARGO_BIN_EXE_retune")).args(&args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    says(&watch(&[]), &["not recorded: give --role, or --run"]);
    assert!(!root.join(".agent").exists(), "nobody asked for a record");
    ok(root, &["record", "--role", "coder", "--id", "a", "--prompt", "p", "--output", "o", "--lint-errors", "5"], "");
    says(&watch(&["--run", "a"]), &["3 of 3 tests passed (run a: reward 0.83)"]);
    says(&watch(&["--role", "coder", "--task", "t"]), &["run 2: reward 1.00"]);
    let store = Store::open(root).unwrap();
    assert_eq!((store.result(1).unwrap().tests_passed, store.result(1).unwrap().lint_errors), (Some(3), Some(5)));
    assert_eq!(store.run("2").unwrap().unwrap().task.as_deref(), Some("t"));
}

#[test]
fn two_processes_that_record_at_once_lose_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let feed = |who: usize| -> String {
        (0..300)
            .map(|n| {
                json!({"role": "coder", "id": format!("{}-{n}", who % 3), "prompt": format!("p{n}"), "output": "o"}).to_string()
                    + "\n"
            })
            .collect()
    };
    // Six writers, each run told by two of them.
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..6).map(|who| scope.spawn(move || ok(root, &["record", "-", "--json"], &feed(who)))).collect();
        let repeated: usize = writers
            .into_iter()
            .map(|writer| writer.join().unwrap().lines().filter(|line| line.contains("\"repeated\":true")).count())
            .sum();
        assert_eq!(repeated, 900);
    });
    let store = Store::open(root).unwrap();
    assert_eq!((store.candidates("coder").unwrap().len(), store.damage().unwrap()), (900, None));
}

#[test]
fn what_a_reviewer_says_decides() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let rows: String = (0..12)
        .map(|n| json!({"prompt": format!("question number {n}"), "completion": format!("answer {n}")}).to_string() + "\n")
        .collect();
    fs::write(root.join("rows.jsonl"), rows).unwrap();
    let file = root.join("rows.jsonl");
    says(
        &ok(root, &["import", file.to_str().unwrap(), "--role", "coder", "--source", "us"], ""),
        &["12 rows: 12 taken, 0 there already, 0 refused"],
    );
    let parts = |root: &Path| -> Vec<(i64, String)> {
        let list = ok(root, &["review", "--role", "coder", "--json"], "");
        let part = |line: &str| {
            let value: Value = serde_json::from_str(line).unwrap();
            (value["run"].as_i64().unwrap(), value["part"].as_str().unwrap().to_owned())
        };
        list.lines().map(part).collect()
    };
    let before = parts(root);
    assert_eq!(before.len(), 12);
    let trained = before.iter().find(|(_, part)| part == "train").unwrap().0.to_string();
    says(&ok(root, &["review", "--run", &trained], ""), &["--- user", "question number", "--- assistant"]);
    says(&ok(root, &["review", "--run", &trained, "--refuse"], ""), &["is refused: it stays out"]);
    let part = |wanted: &str| parts(root).into_iter().find(|(run, _)| run.to_string() == wanted).unwrap().1;
    assert_eq!(part(&trained), "left_out");
    says(&ok(root, &["review", "--role", "coder", "--list"], ""), &["a person refused it"]);
    says(&ok(root, &["review", "--run", &trained, "--undo"], ""), &["undecided again"]);
    assert_eq!(part(&trained), "train");
    let better = root.join("better");
    fs::write(&better, "a better answer").unwrap();
    says(
        &ok(root, &["review", "--run", &trained, "--edited", better.to_str().unwrap()], ""),
        &["is learnt from as run 13 has it"],
    );
    assert_eq!((part(&trained).as_str(), part("13").as_str()), ("left_out", "train"));
    says(&refusal(2, &retune(root, &["review", "--role", "coder"], ""), "no terminal"), &["there is no terminal", "--list"]);
    says(
        &refusal(2, &retune(root, &["export", "--role", "fixer"], ""), "no such role"),
        &["no runs of fixer", "there are: coder"],
    );
}

#[test]
fn a_project_begins_with_settings_that_read_and_stays_out_of_repositories() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("new");
    fs::create_dir(&root).unwrap();
    says(&ok(&root, &["init", "--base", "qwen2.5:0.5b"], ""), &["settings are in", "retune import --help"]);
    let settings: Value = serde_json::from_str(&fs::read_to_string(root.join(".agent/learning-config.json")).unwrap()).unwrap();
    assert_eq!((&settings["autoTrain"]["baseModel"], &settings["autoTrain"]["loraRank"]), (&json!("qwen2.5:0.5b"), &json!(16)));
    says(&fs::read_to_string(root.join(".agent/.gitignore")).unwrap(), &["*", "!learning-config.json"]);
    says(&ok(&root, &["init"], ""), &["reads well; nothing was changed"]);
    fs::write(root.join(".agent/learning-config.json"), "{\"autoTrian\": {}}").unwrap();
    says(
        &refusal(1, &retune(&root, &["init"], ""), "a misspelt setting"),
        &["unknown setting 'autoTrian'", "did you mean 'autoTrain'?"],
    );
}

#[test]
fn what_is_enough_begins_a_cycle_in_a_process_of_its_own_and_a_failure_is_told_once() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    fs::create_dir(root.join(".agent")).unwrap();
    let told = root.join("told.json");
    let settings = json!({
        "autoExport": {"minRuns": 1}, "autoTrain": {"minExamples": 1, "minNew": 1, "baseModel": "demo"},
        "alerts": {"command": format!("cat > '{}'", told.display())},
    });
    fs::write(root.join(".agent/learning-config.json"), settings.to_string()).unwrap();
    let record = |id: &str, switch: &str| {
        let args = [
            "record",
            "--role",
            "coder",
            "--id",
            id,
            "--prompt",
            "p",
            "--output",
            "o",
            "--compile-pass",
            "true",
            "--lint-errors",
            "0",
        ];
        let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args(args).arg("--root").arg(root).env("OLLAMA_HOST", "127.0.0.1:1").env("ENABLE_AUTO_FINETUNE", switch);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(record("a", "false"), "");
    says(&record("b", "true"), &["there is enough for coder: a cycle has begun", "cycle.log"]);
    let store = Store::open(root).unwrap();
    let ended = || store.cycles(None, 9).unwrap().into_iter().find_map(|cycle| cycle.outcome);
    let start = std::time::Instant::now();
    let log = || fs::read_to_string(root.join(".agent/cycle.log")).unwrap_or_default();
    while ended().is_none() || !log().contains("error:") {
        assert!(start.elapsed().as_secs() < 120, "{}", log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // One task cannot be trained on and held out.
    assert_eq!(ended().as_deref(), Some("failed"));
    says(&log(), &["too few tasks to hold any out"]);
    says(&fs::read_to_string(&told).unwrap(), &["cycle_failed", "too few tasks"]);
    assert_eq!(record("c", "true"), "", "somebody has to look at it first");
    assert_eq!(store.cycles(None, 9).unwrap().len(), 1);
}
