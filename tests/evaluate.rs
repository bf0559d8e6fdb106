//! `retune evaluate` on the demo's base, which answers its own skills: a better adapter is promoted, a worse one rejected, one that
//! changes nothing is inconclusive; a guard and a verifier have their say; all of it is in the store and in the report.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{refusal, says};
use retune::base::Base;
use retune::demo::task::{self, Split};
use retune::store::Store;
use retune_kernels::rng::Rng;
use serde_json::{Value, json};

const NEW_WORD: &str = "zzzz";

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn rows(&self, name: &str, rows: impl Iterator<Item = Value>) -> String {
        fs::write(self.path(name), rows.map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        self.text(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args(["evaluate", "--base", "demo", "--root", &self.text("root")]).args(args);
        command.current_dir(self.folder.path()).output().expect("the binary runs")
    }

    fn judged(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// Sixty requests that the base answers otherwise than with the new word, sixty that it answers right, and an adapter that says the
/// new word to everything.
fn place() -> Place {
    let place = Place { folder: tempfile::tempdir().unwrap() };
    // The project of the verifier, which is nobody where this runs as root.
    fs::set_permissions(place.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut rng = Rng::new(7);
    let skill = task::SKILLS[0];
    let items = task::items(60, || task::skill(skill, &mut rng, Split::HeldOut));
    place.rows("new.jsonl", items.iter().map(|item| json!({"instruction": item.request, "output": NEW_WORD})));
    place.rows("old.jsonl", items.iter().map(|item| json!({"instruction": item.request, "output": item.answer})));
    let rows = task::items(64, || task::skill(skill, &mut rng, Split::Train));
    let train = place.rows("train.jsonl", rows.iter().map(|item| json!({"instruction": item.request, "output": NEW_WORD})));
    let settings = ["--rank", "8", "--max-steps", "40", "--batch-size", "8", "--grad-accum", "1", "--learning-rate", "5e-3"];
    let out = place.text("adapter");
    common::retune_ok(&[&["train", "--json", "--base", "demo", "--data", &train, "--out", &out][..], &settings].concat());
    place
}

fn reasons(judged: &Value) -> Vec<String> {
    judged["judgement"]["reasons"]
        .as_array()
        .map(|all| all.iter().map(|r| r["reason"].as_str().unwrap().to_owned()).collect())
        .unwrap_or_default()
}

#[test]
fn better_is_promoted_worse_rejected_and_the_same_is_inconclusive() {
    let place = place();
    let (adapter, new, old) = (place.text("adapter"), place.text("new.jsonl"), place.text("old.jsonl"));

    let better = place.judged(&["--candidate", &adapter, "--data", &new, "--max-tokens", "8"]);
    assert_eq!(better["verdict"], "promote", "{better}");
    let primary = &better["judgement"]["primary"];
    assert_eq!((&primary["candidate"], &primary["champion"], &primary["items"]), (&json!(1.0), &json!(0.0), &json!(60)));
    let worse = place.judged(&["--candidate", "base", "--champion", &adapter, "--data", &new, "--max-tokens", "8"]);
    assert_eq!((&worse["verdict"], reasons(&worse)), (&json!("reject"), vec!["worse".to_owned()]));
    let same = place.judged(&["--candidate", &adapter, "--champion", &adapter, "--data", &new, "--max-tokens", "8"]);
    assert_eq!((&same["verdict"], reasons(&same)), (&json!("inconclusive"), vec!["nothingDiffers".to_owned()]));

    // Better at the new work, and it forgot the old.
    let forgot = place.judged(&["--candidate", &adapter, "--data", &new, "--guard", &old, "--max-tokens", "24"]);
    assert_eq!((&forgot["verdict"], reasons(&forgot)), (&json!("reject"), vec!["guard".to_owned()]), "{forgot}");
    let few =
        place.rows("few.jsonl", fs::read_to_string(&new).unwrap().lines().take(20).map(|l| serde_json::from_str(l).unwrap()));
    let few = place.judged(&["--candidate", &adapter, "--data", &few, "--max-tokens", "8"]);
    assert_eq!((&few["verdict"], reasons(&few)), (&json!("inconclusive"), vec!["tooFewItems".to_owned()]));

    // What a person sees.
    let output = place.run(&["--candidate", &adapter, "--data", &new, "--max-tokens", "8"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    says(&told, &["promote", "60 of 60", "look at"]);
    let report = fs::read_to_string(better["report"].as_str().unwrap()).unwrap();
    says(&report, &["<svg", "promote", NEW_WORD]);

    // All of it is in the store, with every item.
    let store = Store::open(&place.path("root")).unwrap();
    assert_eq!(store.damage().unwrap(), None);
    assert_eq!(store.evaluation_items(better["id"].as_i64().unwrap()).unwrap(), 60);
    assert_eq!(store.evaluation_items(forgot["id"].as_i64().unwrap()).unwrap(), 120);
    let base = Base::open("demo").unwrap().digest().unwrap();
    let last = store.last_evaluation("coder", &base).unwrap().expect("the base was a candidate");
    assert_eq!((last.verdict.as_str(), last.candidate.as_str()), ("reject", "base"));
}

#[test]
fn a_verifier_decides_where_one_is_given_and_a_broken_one_is_no_verdict() {
    let place = place();
    let (adapter, old) = (place.text("adapter"), place.text("old.jsonl"));
    // By the text the adapter is wrong everywhere; this verifier wants a z.
    let judged =
        place.judged(&["--candidate", &adapter, "--data", &old, "--max-tokens", "8", "--verifier", "grep -q z answer.txt"]);
    assert_eq!(
        (&judged["judgement"]["primary"]["measure"], &judged["verdict"]),
        (&json!("verified"), &json!("promote")),
        "{judged}"
    );
    // One that cannot judge every third item, by their rows' own field.
    let rows = fs::read_to_string(&old).unwrap();
    let numbered = rows.lines().enumerate().map(|(n, line)| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        row["kind"] = json!(format!("k{}", n % 3));
        row
    });
    let numbered = place.rows("numbered.jsonl", numbered);
    let some = ["--verifier", "grep -q k0 fields/kind && exit 125; grep -q z answer.txt"];
    let output = place.run(&[&["--candidate", &adapter, "--data", &numbered, "--max-tokens", "8", "--json"], &some[..]].concat());
    says(&String::from_utf8_lossy(&output.stderr), &["20 of 60 items were left out", "cannot judge row 1"]);
    let judged: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&judged["judgement"]["primary"]["items"], &judged["judgement"]["primary"]["candidate"]),
        (&json!(40), &json!(1.0))
    );
    let broken = place.run(&["--candidate", &adapter, "--data", &old, "--max-tokens", "8", "--verifier", "no-such-program-here"]);
    says(&refusal(1, &broken, "a verifier that is not there"), &["the verifier cannot judge", "127"]);
    let store = Store::open(&place.path("root")).unwrap();
    assert_eq!(store.evaluation_items(3).unwrap(), 0, "nothing was recorded of it");
}

#[test]
fn groups_are_the_rows_own_and_what_does_not_read_is_told() {
    let place = place();
    let (adapter, new) = (place.text("adapter"), place.text("new.jsonl"));
    let rows: Vec<Value> = fs::read_to_string(&new).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let grouped = rows.iter().enumerate().map(|(n, row)| {
        let mut row = row.clone();
        row["task_id"] = json!(n / 20);
        row
    });
    let grouped = place.rows("grouped.jsonl", grouped);
    let judged = place.judged(&["--candidate", &adapter, "--data", &grouped, "--max-tokens", "8"]);
    assert_eq!(judged["judgement"]["primary"]["groups"], 3);
    assert_eq!(
        (&judged["verdict"], reasons(&judged)),
        (&json!("inconclusive"), ["tooFewGroups", "tooFewDiffer"].map(str::to_owned).to_vec()),
        "{judged}"
    );
    let by = place.run(&["--candidate", &adapter, "--data", &new, "--group-by", "project"]);
    says(&refusal(1, &by, "an unknown field"), &["row 1", "\"project\"", "--group-by"]);
    let doubled = place.rows("doubled.jsonl", rows.iter().chain(&rows).cloned());
    let output = place.run(&["--candidate", &adapter, "--data", &doubled, "--max-tokens", "8", "--json"]);
    says(&String::from_utf8_lossy(&output.stderr), &["60 of 120 items ask and expect what an earlier one does"]);
    let none = place.run(&["--candidate", &place.text("nowhere"), "--data", &new]);
    refusal(1, &none, "no such adapter");
    let length = place.run(&["--candidate", &adapter, "--data", &new, "--max-length", "3"]);
    says(&refusal(1, &length, "rows that are all too long"), &["longer than 3 tokens"]);
}

#[test]
fn losses_alone_are_compared_where_nothing_is_generated() {
    let place = place();
    let judged = place.judged(&["--candidate", &place.text("adapter"), "--data", &place.text("new.jsonl"), "--max-tokens", "0"]);
    assert_eq!((&judged["judgement"]["primary"]["measure"], &judged["verdict"]), (&json!("loss"), &json!("promote")), "{judged}");
    assert!(Path::new(judged["report"].as_str().unwrap()).is_file());
}

/// What an evaluation leaves is whole or is not there: killed at each of its points.
#[test]
fn a_kill_at_any_point_leaves_a_whole_evaluation_or_none() {
    let place = place();
    let (adapter, new) = (place.text("adapter"), place.text("few.jsonl"));
    let rows = fs::read_to_string(place.path("new.jsonl")).unwrap();
    fs::write(&new, rows.lines().take(6).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let run = |root: &Path, env: [(&str, &str); 1]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args(["evaluate", "--json", "--base", "demo", "--candidate", &adapter, "--data", &new, "--max-tokens", "4"]);
        command.arg("--root").arg(root).envs(env).output().unwrap()
    };
    let log = place.text("points");
    let whole = run(&place.path("whole"), [("RETUNE_FAULT_LOG", &log)]);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let points = common::fault_points(Path::new(&log));
    assert!(points.iter().any(|point| point == "commit evaluation"), "{points:?}");
    assert!(points.iter().any(|point| point == "rename evaluation-1.html"), "{points:?}");
    for (n, point) in points.iter().enumerate() {
        let root = place.path(&format!("killed-{n}"));
        let killed = run(&root, [("RETUNE_FAULT_AT", &(n + 1).to_string())]);
        assert_eq!(killed.status.signal(), Some(9), "{point}");
        // The next one finds a sound store, with all of the first or nothing of it, and every report is whole.
        let again = run(&root, [("RETUNE_ROOT", "")]);
        assert!(again.status.success(), "{point}: {}", String::from_utf8_lossy(&again.stderr));
        let id = serde_json::from_slice::<Value>(&again.stdout).unwrap()["id"].as_i64().unwrap();
        let store = Store::open(&root).unwrap();
        assert_eq!(store.damage().unwrap(), None, "{point}");
        for earlier in 1..=id {
            assert_eq!(store.evaluation_items(earlier).unwrap(), 6, "{point}: evaluation {earlier} of {id}");
        }
        for entry in fs::read_dir(root.join(".agent/reports")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "html") {
                assert!(fs::read_to_string(&path).unwrap().trim_end().ends_with("</html>"), "{point}: {}", path.display());
            }
        }
    }
    println!("{} points", points.len());
}
