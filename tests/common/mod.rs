//! What the tests share: where the real data and the peers are, and how the binary is run.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folder with the shared test data, or `None` after saying that the test is skipped.
pub fn data(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("RETUNE_TEST_DATA").map_or_else(|| root().join("../shared/data"), PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: {test} needs the test data, and {} is not there (set RETUNE_TEST_DATA)", folder.display());
    None
}

/// A file of the peers (scripts/peers), or `None` after saying that the test is skipped.
pub fn peer(test: &str, file: &str) -> Option<PathBuf> {
    if std::env::var_os("RETUNE_PEERS").is_some_and(|v| v == "off") {
        eprintln!("skipped: {test} needs {file}, and RETUNE_PEERS is off");
        return None;
    }
    let env = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = || env("XDG_CACHE_HOME").unwrap_or_else(|| env("HOME").unwrap_or_default().join(".cache"));
    let path = env("RETUNE_PEERS_DIR").unwrap_or_else(|| cache().join("retune/peers")).join(file);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {test} needs {}, which is not there (run scripts/peers)", path.display());
    None
}

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The SmolLM2 chat model of the peers.
pub fn smollm2(test: &str) -> Option<PathBuf> {
    peer(test, "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// Runs `retune` with the given arguments.
pub fn retune<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_retune")).args(args).output().expect("the binary runs")
}

/// Runs `retune`, which must succeed, and gives its standard output.
pub fn retune_ok<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> String {
    let output = retune(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The last line of `retune --json ...` as JSON.
pub fn retune_json<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> serde_json::Value {
    let text = retune_ok(args);
    serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
}

/// An adapter for the demo's base that answers every request with `answer`; its folder, below `folder`.
pub fn adapter_that_answers(folder: &Path, answer: &str) -> PathBuf {
    let (data, out) = (folder.join(format!("{answer}.jsonl")), folder.join(answer));
    let row = |request: &str| format!("{{\"instruction\":\"{request}\",\"output\":\"{answer}\"}}\n");
    std::fs::write(&data, row("hide kavo") + &row("hide mune")).expect("a file of rows");
    let settings = ["--rank", "4", "--max-steps", "40", "--batch-size", "2", "--grad-accum", "1", "--learning-rate", "1e-2"];
    let what = ["train", "--json", "--base", "demo", "--data", data.to_str().expect("UTF-8")];
    retune_ok(&[&what[..], &["--out", out.to_str().expect("UTF-8")], &settings].concat());
    out
}

/// The names of the fault points that a run with RETUNE_FAULT_LOG passed, in order.
pub fn fault_points(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).expect("a log of fault points");
    text.lines().map(|line| line.split_once(' ').expect("number and name").1.to_owned()).collect()
}

/// `|a - b| / |b|` over all values.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(x, y)| f64::from(*x) - f64::from(*y)));
    difference / norm(&mut b.iter().map(|&y| f64::from(y))).max(1e-30)
}

/// Runs `retune`, which must refuse like a careful friend: exit code `code`, one error, a next step, no panic. Gives what it said.
pub fn refused<S: AsRef<std::ffi::OsStr> + std::fmt::Debug>(code: i32, args: &[S]) -> String {
    refusal(code, &retune(args), &format!("{args:?}"))
}

/// Holds that a run was refused, and gives what it said. `what` stands in the test's own messages.
pub fn refusal(code: i32, output: &Output, what: &str) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{what} ended with {}: {said}", output.status);
    assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{what}: {said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{what}: one error, found {said}");
    // clap, which reads the flags, has its own words for the next step.
    let next =
        said.lines().any(|line| line.starts_with("  next: ") && line.len() > 12) || said.contains("For more information, try");
    assert!(next, "{what} names no next step: {said}");
    said
}

/// Holds that a message says all of `parts`.
pub fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
}

/// Every file below a folder, by its name from there; empty where there is no folder.
pub fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        match path.is_dir() {
            true => found.extend(files(&path).into_iter().map(|inner| format!("{name}/{inner}"))),
            false => found.push(name),
        }
    }
    found.sort();
    found
}
