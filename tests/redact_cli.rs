//! `retune redact`: what it tells of a file, that it never says what it found, and the copy that it writes.

mod common;

use std::fs;

use common::{refused, retune, says};
use serde_json::{Value, json};

const ROWS: &str = r#"{"instruction": "Mail bob@corp.com", "output": "done", "n": 1}
{"instruction": "nothing", "output": "here"}
{"instruction": "use it", "output": "bob@corp.com eve@corp.com", "config": {"password": "k7Qp!x2z"}}
"#;

#[test]
fn a_check_of_rows_tells_places_and_never_the_values() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    fs::write(&file, ROWS).unwrap();
    let output = retune(&["redact", "--check", file.to_str().unwrap()]);
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    says(
        &told,
        &[
            "row 1, instruction: EMAIL (email), now <EMAIL_1>\n    Mail <EMAIL_1>\n",
            "row 3, output: EMAIL (email), now <EMAIL_2>\n    <EMAIL_1> <EMAIL_2>\n",
            "row 3, config.password: SECRET (named-password), now <SECRET_1>\n",
            "4 found in 2 of 3 rows of",
            ": 1 SECRET, 3 EMAIL\n",
        ],
    );
    assert!(!told.contains("bob") && !told.contains("k7Qp"), "{told}");
}

#[test]
fn a_clean_file_ends_with_0_and_a_text_is_told_by_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (clean, text) = (folder.path().join("clean.txt"), folder.path().join("text.md"));
    fs::write(&clean, "version 1.2.3.4 of {nothing}\n").unwrap();
    fs::write(&text, "a\nb\nssh root@10.1.2.3 for project-7\n").unwrap();
    let output = retune(&["redact", "--check", clean.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    says(&String::from_utf8(output.stdout).unwrap(), &["nothing found in "]);

    let output = retune(&["redact", "--check", "--json", "--pattern", r"project-\d+", text.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["kinds"], json!({"IP": 1, "CUSTOM": 1}));
    let around = "a b ssh root@<IP_1> for <CUSTOM_1> ";
    let wanted = json!([
        {"line": 3, "kind": "IP", "placeholder": "<IP_1>", "rule": "ipv4", "start": 13, "end": 21, "around": around},
        {"line": 3, "kind": "CUSTOM", "placeholder": "<CUSTOM_1>", "rule": "extra-pattern", "start": 26, "end": 35, "around": around},
    ]);
    assert_eq!(report["found"], wanted);
}

#[test]
fn the_copy_is_redacted_and_a_check_of_it_is_clean() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("rows.jsonl"), folder.path().join("out.jsonl"));
    let array = folder.path().join("rows.json");
    fs::write(&file, ROWS).unwrap();
    fs::write(&array, format!("[{}]", ROWS.trim_end().replace('\n', ","))).unwrap();
    let redacted = [
        json!({"instruction": "Mail <EMAIL_1>", "output": "done", "n": 1}),
        json!({"instruction": "nothing", "output": "here"}),
        json!({"instruction": "use it", "output": "<EMAIL_1> <EMAIL_2>", "config": {"password": "<SECRET_1>"}}),
    ];
    common::retune_ok(&["redact", file.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let lines: Vec<Value> = fs::read_to_string(&out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, redacted);
    common::retune_ok(&["redact", "--check", out.to_str().unwrap()]);
    common::retune_ok(&["redact", array.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert_eq!(serde_json::from_str::<Value>(&fs::read_to_string(&out).unwrap()).unwrap(), json!(redacted));
}

#[test]
fn wrong_use_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.txt");
    fs::write(&file, b"\xff\xfe").unwrap();
    let path = file.to_str().unwrap();
    says(&refused(2, &["redact", "--check", "--pattern", "(", path]), &["extra pattern 1", "unclosed group"]);
    says(&refused(1, &["redact", "--check", path]), &["cannot read", "UTF-8"]);
    says(&refused(1, &["redact", "--check", "/nowhere/x"]), &["/nowhere/x", "check the path"]);
    refused(2, &["redact", path]);
}
