//! Bad data, templates, settings and folders through the command line: one readable error with what was found, what was
//! expected and the next step; exit code 2 for wrong use, else 1; nothing half written. (Bad models: bad_models.rs.)

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{files, refusal, refused, retune, retune_json, retune_ok, says};

const ROWS: &str = "{\"instruction\":\"hide kavo\",\"output\":\"****\"}\n{\"instruction\":\"hide mune\",\"output\":\"***\"}\n{\"instruction\":\"hide pi\",\"output\":\"**\"}\n";

fn path(p: &Path) -> &str {
    p.to_str().expect("UTF-8")
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("rows.jsonl"), ROWS).unwrap();
        Self { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.at(name);
        fs::write(&file, text).unwrap();
        file
    }

    /// The arguments of a short training into `out`.
    fn arguments<'a>(&self, data: &'a Path, out: &'a Path, extra: &[&'a str]) -> Vec<&'a str> {
        let mut arguments =
            vec!["train", "--base", "demo", "--rank", "2", "--max-steps", "2", "--batch-size", "2", "--grad-accum", "1"];
        // What stands later would be given twice: the extra ones replace the ones above.
        for flag in extra.iter().filter(|e| e.starts_with("--")) {
            if let Some(at) = arguments.iter().position(|a| a == flag) {
                arguments.drain(at..at + 2);
            }
        }
        arguments.extend(["--data", path(data), "--out", path(out)]);
        arguments.extend(extra);
        arguments
    }

    /// A training that must be refused before it touches the disk.
    fn train(&self, code: i32, data: &Path, extra: &[&str]) -> String {
        let out = self.at("out");
        let message = refused(code, &self.arguments(data, &out, extra));
        assert!(!out.exists(), "{message}: left {:?}", files(&out));
        message
    }
}

#[test]
fn data_without_rows_or_answers_is_refused() {
    let place = Place::new();
    says(&place.train(1, &place.at("gone.jsonl"), &[]), &["gone.jsonl", "check the path"]);
    says(&place.train(1, &place.write("empty.jsonl", ""), &[]), &["empty.jsonl", "holds no rows", "known shapes"]);
    says(&place.train(1, &place.write("blank.jsonl", "\n \n"), &[]), &["blank.jsonl", "holds no rows"]);
    says(&place.train(1, &place.write("array.json", "[]"), &[]), &["array.json", "holds no rows"]);
    says(&place.train(1, place.folder.path(), &[]), &["is no regular file"]);
    let users = "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}\n";
    let message = place.train(1, &place.write("users.jsonl", users), &[]);
    says(&message, &["users.jsonl", "line 1"]);
    assert!(message.contains("assistant"), "{message}");
    // Held-out rows are held to the same.
    let gone = place.at("gone.jsonl");
    says(&place.train(1, &place.at("rows.jsonl"), &["--eval-data", path(&gone)]), &["gone.jsonl"]);
    says(
        &place.train(1, &place.at("rows.jsonl"), &["--eval-share", "0.000001"]),
        &["holding out 0.000001 of 3 rows", "--eval-data"],
    );
}

#[test]
fn a_broken_row_is_told_by_its_line() {
    let place = Place::new();
    let rows = |third: &str| {
        place.write(
            "rows-3.jsonl",
            &format!(
                "{}{third}\n{{\"instruction\":\"x\",\"output\":\"y\"}}\n",
                ROWS.lines().take(2).map(|l| format!("{l}\n")).collect::<String>()
            ),
        )
    };
    says(&place.train(1, &rows("{\"instruction\": \"cut"), &[]), &["rows-3.jsonl", "line 3", "invalid JSON"]);
    says(&place.train(1, &rows("just words"), &[]), &["line 3", "expected a JSON object", "just words"]);
    says(&place.train(1, &rows("{\"text\": 1}"), &[]), &["line 3 (row 3)", "known shapes"]);
    says(&place.train(1, &rows("{\"instruction\": 7, \"output\": \"y\"}"), &[]), &["line 3 (row 3)", "instruction"]);
    let message = place.train(
        1,
        &rows("{\"messages\":[{\"role\":\"robot\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}"),
        &["--template", "alpaca"],
    );
    says(&message, &["row 3", "robot"]);
    fs::write(place.at("latin.jsonl"), b"{\"instruction\":\"caf\xe9\",\"output\":\"y\"}\n").unwrap();
    says(&place.train(1, &place.at("latin.jsonl"), &[]), &["latin.jsonl", "line 1"]);
}

#[test]
fn rows_with_nothing_left_to_train_are_told_with_the_length_that_keeps_them() {
    let place = Place::new();
    let long = place.write("long.jsonl", &format!("{{\"instruction\":\"{}\",\"output\":\"y\"}}\n", "hide kavo ".repeat(20)));
    let message = place.train(1, &long, &["--max-length", "16"]);
    says(&message, &["nothing is left to train in any of the 1 rows", "the longest has", "raise --max-length"]);
    says(&place.train(1, &long, &["--max-length", "16", "--long", "drop"]), &["1 dropped as too long"]);
    says(&place.train(1, &long, &["--max-length", "16", "--long", "error"]), &["row 1", "more than --max-length 16"]);
    says(&place.train(1, &long, &["--max-length", "0"]), &["raise --max-length"]);
    says(&place.train(2, &long, &["--max-length", "1000000"]), &["--max-length 1000000 is more than the", "demo", "use at most"]);
}

#[test]
fn preferences_that_say_nothing_are_refused() {
    let place = Place::new();
    let rows = place.at("rows.jsonl");
    let refuse = |method: &str, text: &str| place.train(1, &place.write("preferences.jsonl", text), &["--method", method]);
    let pair = "{\"prompt\":\"hide pi\",\"chosen\":\"**\",\"rejected\":\"pi\"}\n";
    let marked = |good: bool| format!("{{\"prompt\":\"hide pi\",\"completion\":\"**\",\"label\":{good}}}\n");
    for method in ["dpo", "orpo"] {
        let missing = format!("{pair}{{\"prompt\":\"hide pi\",\"chosen\":\"**\"}}\n");
        says(&refuse(method, &missing), &["line 2 (row 2)", "has \"chosen\" and no \"rejected\"", "give both answers"]);
        let empty = format!("{pair}{{\"prompt\":\"hide pi\",\"chosen\":\"\",\"rejected\":\"pi\"}}\n");
        says(&refuse(method, &empty), &["line 2 (row 2)", "has an empty \"chosen\"", "leave the row out"]);
        let same = "{\"prompt\":\"hide pi\",\"chosen\":\"**\",\"rejected\":\"**\"}\n";
        says(&refuse(method, same), &["no pair is left to learn from (1 of them have the same answer twice)"]);
        says(&refuse(method, &marked(true)), &["holds one answer with a label, expected a pair", "--method kto"]);
        says(&place.train(1, &rows, &["--method", method]), &["line 1", "holds one answer, expected a pair", "--method sft"]);
        says(
            &place.train(1, &place.write("pair.jsonl", pair), &["--method", method, "--eval-data", path(&rows)]),
            &["rows.jsonl"],
        );
    }
    says(&refuse("kto", &marked(true).repeat(3)), &["all 3 rows that can be trained are marked good", "--method sft"]);
    says(&refuse("kto", &marked(false).repeat(3)), &["all 3 rows that can be trained are marked bad", "rows of the other kind"]);
    says(&place.train(1, &rows, &["--method", "kto"]), &["line 1", "has no \"label\"", "--method sft"]);
    says(&refuse("sft", pair), &["holds a preference", "--method dpo, orpo or kto"]);
    says(&refuse("sft", &marked(false)), &["all of its 1 rows are marked \"label\": false", "--method kto"]);
    for (method, flag, value) in [
        ("dpo", "--beta", "0"),
        ("orpo", "--beta", "-0.1"),
        ("kto", "--beta", "nan"),
        ("dpo", "--label-smoothing", "0.5"),
        ("orpo", "--label-smoothing", "0.1"),
        ("kto", "--desirable-weight", "0"),
        ("dpo", "--undesirable-weight", "2"),
    ] {
        says(&place.train(2, &rows, &["--method", method, flag, value]), &[flag]);
    }
    says(&place.train(2, &rows, &["--beta", "0.1"]), &["--beta says nothing to --method sft", "--method dpo, orpo, kto"]);
}

#[test]
fn a_template_that_is_missing_broken_or_refuses_is_told_in_its_own_words() {
    let place = Place::new();
    let rows = place.at("rows.jsonl");
    says(&place.train(2, &rows, &["--template", "vicuna"]), &["no template 'vicuna'", "alpaca, chatml, plain"]);
    let raises = place.write("raises.jinja", "{{ raise_exception('Only kings may ask: ' ~ messages[0].role) }}");
    says(&place.train(1, &rows, &["--template", path(&raises)]), &["row 1", "Only kings may ask: user"]);
    let syntax = place.write("syntax.jinja", "line one\n{% for m in messages %}{{ m.content }\n");
    says(&place.train(1, &rows, &["--template", path(&syntax)]), &["syntax.jinja", "not valid Jinja", "line 2"]);
    let unknown = place.write("unknown.jinja", "{{ messages | frobnicate }}");
    says(&place.train(1, &rows, &["--template", path(&unknown)]), &["frobnicate"]);
    let silent = place.write("silent.jinja", "nothing of the row");
    says(
        &place.train(1, &rows, &["--template", path(&silent)]),
        &["row 1", "cannot tell where message 2 of 2 (an answer) stands"],
    );
    let endless = place.write("endless.jinja", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
    says(&place.train(1, &rows, &["--template", path(&endless)]), &["row 1"]);
    says(
        &refused(1, &["generate", "--base", "demo", "--prompt", "x", "--template", path(&raises)]),
        &["Only kings may ask: user"],
    );
    // A base without a template of its own names the ones that are built in.
    let (base, source) =
        (place.at("mute.gguf"), retune::formats::gguf::Gguf::open(&common::root().join("models/demo.gguf")).unwrap());
    let (mut writer, tensors) = source.copy();
    writer.metadata.retain(|(key, _)| key != "tokenizer.chat_template");
    writer.header_padding = None;
    writer.write(&base, tensors).unwrap();
    says(
        &refused(2, &["loss", "--base", path(&base), "--data", path(&rows)]),
        &["no chat template of its own", "alpaca, chatml, plain"],
    );
    says(&refused(1, &["loss", "--base", "demo", "--data", path(&rows), "--system", path(&place.at("gone.txt"))]), &["gone.txt"]);
}

#[test]
fn impossible_settings_are_wrong_use_and_named() {
    let place = Place::new();
    let rows = place.at("rows.jsonl");
    for (flag, value) in [
        ("--rank", "0"),
        ("--rank", "1000000"),
        ("--alpha", "nan"),
        ("--alpha", "-1"),
        ("--batch-size", "0"),
        ("--batch-size", "18446744073709551615"),
        ("--grad-accum", "0"),
        ("--learning-rate", "nan"),
        ("--learning-rate", "0"),
        ("--learning-rate", "inf"),
        ("--epochs", "-1"),
        ("--max-steps", "0"),
        ("--clip", "nan"),
        ("--weight-decay", "-0.1"),
        ("--save-every", "0"),
        ("--eval-every", "0"),
        ("--eval-share", "1"),
        ("--eval-share", "nan"),
        ("--lora-plus", "0"),
        ("--dropout", "1"),
        ("--dropout", "-0.1"),
        ("--dropout", "nan"),
        ("--method", "ppo"),
        ("--beta", "0.1"),
        ("--label-smoothing", "0.1"),
        ("--desirable-weight", "2"),
        ("--dtype", "f8"),
        ("--device", "abacus"),
    ] {
        let argument = format!("{flag}={value}");
        says(&place.train(2, &rows, &[flag, value]), &[flag]);
        says(
            &refused(2, &["train", "--base", "demo", "--data", path(&rows), "--out", path(&place.at("out")), &argument]),
            &[flag],
        );
    }
    says(&place.train(2, &rows, &["--targets", "q_proj,nose_proj"]), &["no linear layer called 'nose_proj'", "gate_proj"]);
    says(&place.train(2, &rows, &["--targets", ","]), &["--targets names no layer"]);
    says(&place.train(2, &rows, &["--memory-budget", "plenty"]), &["'plenty' is no amount of memory", "8GB"]);
    says(
        &place.train(1, &rows, &["--memory-budget", "1MB"]),
        &["a step needs at least", "the budget is 1.0 MB", "--memory-budget"],
    );
    says(&place.train(2, &rows, &["--rnak", "3"]), &["--rnak", "--rank"]);
    says(&place.train(2, &rows, &["--batch-size", "many"]), &["many", "--batch-size"]);
    says(&refused(2, &["train", "--base", "demo"]), &["--data", "--out"]);
    says(&refused(2, &["generate", "--base", "demo", "--prompt", "x", "--temperature", "nan"]), &["--temperature"]);
    says(&refused(1, &["generate", "--base", "demo", "--raw", "--prompt", &"x ".repeat(4000)]), &["the prompt has", "tokens"]);
}

#[test]
fn an_out_that_cannot_be_a_folder_is_told() {
    let place = Place::new();
    let rows = place.at("rows.jsonl");
    let train = |code: i32, out: &Path| refused(code, &place.arguments(&rows, out, &[]));
    says(&train(2, &rows), &["rows.jsonl is a file, expected a folder", "choose another --out"]);
    says(&train(1, &rows.join("inside")), &["rows.jsonl/inside", "a file stands where a folder is expected"]);
    assert_eq!(fs::read_to_string(&rows).unwrap(), ROWS);
    if cfg!(target_os = "linux") {
        says(&train(1, Path::new("/proc/retune")), &["/proc/retune", "check the path"]);
    }
    // A training that cannot start takes nothing from the one that is there.
    let out = place.at("out");
    retune_ok(&place.arguments(&rows, &out, &[]));
    let before = files(&out);
    let empty = place.write("empty.jsonl", "");
    says(&refused(1, &place.arguments(&empty, &out, &["--overwrite"])), &["holds no rows"]);
    says(&refused(1, &place.arguments(&rows, &out, &["--overwrite", "--memory-budget", "1MB"])), &["a step needs at least"]);
    assert_eq!(files(&out), before);
    says(&refused(2, &place.arguments(&rows, &out, &[])), &["already holds a training", "--resume", "--overwrite"]);
    fs::write(out.join("run.json"), "{\"identity\":").unwrap();
    says(&refused(1, &place.arguments(&rows, &out, &["--resume"])), &["run.json", "does not read", "--overwrite"]);
    retune_ok(&place.arguments(&rows, &out, &["--overwrite"]));
    assert_eq!(files(&out), before);
}

/// Runs `retune` where no file may grow beyond `kib` KiB.
fn limited(kib: u32, arguments: &[&str]) -> Output {
    let script = format!("ulimit -f {kib}; exec \"$0\" \"$@\"");
    Command::new("bash").args(["-c", &script, env!("CARGO_BIN_EXE_retune")]).args(arguments).output().unwrap()
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing_half_written() {
    let place = Place::new();
    let (rows, out, whole) = (place.at("rows.jsonl"), place.at("out"), place.at("whole"));
    retune_ok(&place.arguments(&rows, &whole, &[]));
    let size = |name: &str| fs::metadata(whole.join(name)).unwrap().len();
    // The checkpoint holds the adapter three times: with less than that, and with room for it but not for the report.
    let adapter = size("adapter_model.safetensors");
    for kib in [1, 8, adapter / 1024 - 1, adapter / 1024 * 2] {
        let output = limited(kib as u32, &place.arguments(&rows, &out, &["--overwrite"]));
        let message = refusal(1, &output, &format!("{kib} KiB"));
        says(&message, &["cannot write", path(&out), "File too large", "ulimit -f"]);
        for name in files(&out) {
            assert!(!name.ends_with(".partial") && !name.starts_with("adapter"), "{kib} KiB left {name}");
        }
    }
    // With room again the same training goes on, to the same bits.
    retune_ok(&place.arguments(&rows, &out, &["--resume"]));
    for name in ["adapter_model.safetensors", "adapter.gguf"] {
        assert!(fs::read(out.join(name)).unwrap() == fs::read(whole.join(name)).unwrap(), "{name}");
    }
    let merged = place.at("merged.gguf");
    let output = limited(64, &["merge", "--base", "demo", "--adapter", path(&whole), "--out", path(&merged)]);
    says(&refusal(1, &output, "merge"), &["cannot write", "merged.gguf"]);
    assert!(!files(place.folder.path()).iter().any(|name| name.contains("merged.gguf")), "{:?}", files(place.folder.path()));
}

#[test]
fn a_full_disk_behind_standard_output_is_an_error() {
    let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") else {
        eprintln!("skipped: a_full_disk_behind_standard_output_is_an_error needs /dev/full");
        return;
    };
    let place = Place::new();
    let rows = place.at("rows.jsonl");
    for json in [&["--json"][..], &[]] {
        let output = Command::new(env!("CARGO_BIN_EXE_retune"))
            .args(["loss", "--base", "demo", "--data", path(&rows)])
            .args(json)
            .stdout(full.try_clone().unwrap())
            .output()
            .unwrap();
        says(&refusal(1, &output, "loss > /dev/full"), &["cannot write standard output", "free some space"]);
    }
}

#[test]
fn two_trainings_in_one_folder_at_once_are_refused() {
    let place = Place::new();
    let (rows, out) = (place.at("rows.jsonl"), place.at("out"));
    let mut first = Command::new(env!("CARGO_BIN_EXE_retune"))
        .args(place.arguments(&rows, &out, &["--max-steps", "1000000", "--json"]))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |t| t.lines().count()) < 2 {
        assert!(first.try_wait().unwrap().is_none(), "the first training ended early");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let results: Vec<(&str, Output)> = ["--resume", "--overwrite", "--json"]
        .map(|how| (how, retune(&place.arguments(&rows, &out, &["--max-steps", "1000000", how]))))
        .into();
    let alive = first.try_wait().unwrap().is_none();
    first.kill().unwrap();
    first.wait().unwrap();
    for (how, output) in results {
        says(&refusal(2, &output, how), &["another retune is training in", "choose another --out"]);
    }
    assert!(alive, "the first training must not notice");
    // The lock goes with its process, however that ended.
    retune_ok(&place.arguments(&rows, &out, &["--overwrite"]));
    assert_eq!(retune_json(&place.arguments(&rows, &out, &["--resume", "--json"]))["steps"], 2);
}
