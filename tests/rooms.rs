//! ARCHITECTURE.md's table of rooms, held: an arrow goes down only, and the stages do not import each other.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

/// The level of a room. The stages of level 4 never import each other.
fn level(room: &str) -> Option<u32> {
    Some(match room {
        "domain" | "error" | "fault" | "machine" | "Error" | "Result" => 0,
        "config" => 1,
        "formats" | "redact" | "runtime" | "signals" | "store" => 2,
        "text" | "model" => 3,
        "base" | "infer" | "curate" | "train" | "export" | "deploy" => 4,
        "evaluate" => 5,
        "pipeline" => 6,
        "demo" => 7,
        "cli" => 8,
        _ => return None,
    })
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// The rooms that a file names: whatever follows `crate::`.
fn imports(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod").next().unwrap_or(text);
    let code: String = code.lines().filter(|l| !l.trim_start().starts_with("//")).map(|l| format!("{l}\n")).collect();
    code.split("crate::").skip(1).map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()).collect()
}

#[test]
fn rooms_import_only_rooms_below_them() {
    let src = common::root().join("src");
    let (mut seen, mut wrong) = (0, Vec::new());
    for file in rust_files(&src) {
        let relative = file.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
        if matches!(relative.as_str(), "lib.rs" | "main.rs") || relative.ends_with("tests.rs") || relative.contains("scripted") {
            continue;
        }
        let room = relative.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        let own = level(&room)
            .unwrap_or_else(|| panic!("{relative}: the room '{room}' has no level; give it one here and in ARCHITECTURE.md"));
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            seen += 1;
            let target = level(&import).unwrap_or_else(|| panic!("{relative} imports crate::{import}, a room without a level"));
            if import != room && target >= own {
                wrong.push(format!("{relative} (level {own}) imports {import} (level {target})"));
            }
        }
    }
    assert!(seen > 100, "only {seen} imports found: the test reads the wrong files");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
