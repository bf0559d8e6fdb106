//! kill -9 at every write, sync, rename and HTTP call of `retune merge` and `retune deploy`, by fault points
//! (src/fault.rs): no file is half written, no alias points at nothing, and the same command finishes.

mod common;
#[path = "support/ollama_peer.rs"]
mod ollama_peer;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output};

use ollama_peer::{BOTH, Kind, Peer};
use retune::runtime::Registry as _;
use retune::runtime::ollama::Options;
use retune::store::Store;

const ALIAS: &str = "my-coder-tuned-coder:latest";

#[test]
fn a_kill_at_every_point_of_a_merge_leaves_the_old_file_or_the_new_one() {
    let scratch = tempfile::tempdir().unwrap();
    let adapter = common::adapter_that_answers(scratch.path(), "zzzz");
    let merge = |out: &Path, kind: &str, env: &[(&str, &str)]| -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args(["merge", "--base", "demo", "--type", kind, "--adapter"]).arg(&adapter).arg("--out").arg(out);
        command.envs(env.iter().copied()).output().expect("the binary runs")
    };
    let (old, new, log) = (scratch.path().join("old.gguf"), scratch.path().join("new.gguf"), scratch.path().join("points"));
    assert!(merge(&old, "f32", &[]).status.success());
    assert!(merge(&new, "f16", &[("RETUNE_FAULT_LOG", log.to_str().unwrap())]).status.success());
    let (old, new) = (fs::read(old).unwrap(), fs::read(new).unwrap());
    let points = common::fault_points(&log);
    for kind in ["create", "write", "sync", "rename", "sync folder"] {
        assert!(points.iter().any(|point| point.starts_with(kind)), "no point {kind}: {points:?}");
    }
    for (n, point) in points.iter().enumerate() {
        let folder = scratch.path().join(format!("killed-{n}"));
        let out = folder.join("model.gguf");
        fs::create_dir(&folder).unwrap();
        fs::write(&out, &old).unwrap();
        let output = merge(&out, "f16", &[("RETUNE_FAULT_AT", &(n + 1).to_string())]);
        assert_eq!(output.status.signal(), Some(9), "{point}");
        let found = fs::read(&out).unwrap();
        assert!(found == old || found == new, "{point}: the file is neither the old one nor the new one");
        assert!(merge(&out, "f16", &[]).status.success(), "again after {point}");
        assert!(fs::read(&out).unwrap() == new, "again after {point}");
        assert_eq!(common::files(&folder), ["model.gguf"], "{point} leaves something behind");
    }
    println!("{} points, each killed and done again", points.len());
}

fn deploy(peer: &Peer, adapter: &Path, root: &Path, env: &[(&str, &str)]) -> Output {
    peer.retune(root, env, &["deploy", "--role", "coder", "--promote", "--json", "--adapter", adapter.to_str().unwrap()])
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// All files of the run and the root that a deployment writes, without temporary ones.
fn written(adapter: &Path, root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for (folder, shown) in [(adapter.to_owned(), "adapter"), (root.join(".agent"), ".agent")] {
        for name in common::files(&folder) {
            // The store says when things were; what it holds is looked at below.
            if !name.ends_with(".partial") && !name.starts_with("experience.db") {
                found.insert(format!("{shown}/{name}"), fs::read(folder.join(&name)).unwrap());
            }
        }
    }
    found
}

/// The store is sound, and its history says what the alias names.
fn is_recorded(peer: &Peer, root: &Path, when: &str) {
    let store = Store::open(root).unwrap();
    assert_eq!(store.damage().unwrap(), None, "{when}");
    let moves = store.moves(None).unwrap();
    assert!(moves.iter().all(|m| m.end.is_some()), "{when}: a move is left open: {moves:?}");
    let last = moves.iter().rfind(|m| m.is_done()).expect("a move");
    assert_eq!((last.to_name.as_str(), &last.to_digest), ("my-coder-tuned-coder:v1", &peer.digest(ALIAS)), "{when}");
    assert!(last.from_name.as_ref().is_some_and(|name| name.contains(":kept-")), "{when}: {last:?}");
    assert_eq!(moves.iter().filter(|m| m.is_done() && m.to_digest == last.to_digest).count(), 1, "{when}: moved once: {moves:?}");
    let deployments = store.deployments(&last.server, "my-coder-tuned-coder").unwrap();
    assert_eq!(deployments.iter().map(|d| (d.version, &d.digest)).collect::<Vec<_>>(), [(1, &last.to_digest)], "{when}");
}

/// What holds at any moment: whatever is listed can be shown, and the alias answers.
fn serves(peer: &Peer, when: &str) {
    for tag in peer.ollama.tags().unwrap() {
        assert!(peer.ollama.show(&tag.name).unwrap().is_some(), "{when}: {} is listed and cannot be shown", tag.name);
    }
    let answer = peer.ollama.generate(ALIAS, "hide kavo", &Options::greedy(2), 0);
    assert!(answer.is_ok(), "{when}: the alias does not answer: {answer:?}");
}

#[test]
fn a_kill_at_every_point_of_a_deployment_keeps_what_serves_and_the_same_command_finishes() {
    for kind in BOTH {
        let Some(peer) = Peer::start(kind) else { continue };
        let scratch = tempfile::tempdir().unwrap();
        let adapter = common::adapter_that_answers(scratch.path(), "zzzz");
        let modelfile = scratch.path().join("Modelfile.champion");
        fs::write(&modelfile, format!("FROM {}\n", common::root().join("models/demo.gguf").display())).unwrap();
        // Back to where only a champion serves; its digest.
        let reset = || {
            for tag in peer.ollama.tags().unwrap() {
                peer.ollama.delete(&tag.name).unwrap();
            }
            peer.cli(&["create", ALIAS, "-f", modelfile.to_str().unwrap()]);
            for made in ["merged.gguf", "base.gguf"] {
                let _ = fs::remove_file(adapter.join(made));
            }
            peer.digest(ALIAS)
        };
        // A run that nobody kills: what it passes and what it writes.
        reset();
        let (root, log) = (scratch.path().join("whole"), scratch.path().join("points"));
        let whole = deploy(&peer, &adapter, &root, &[("RETUNE_FAULT_LOG", log.to_str().unwrap())]);
        assert!(whole.status.success(), "{kind:?}: {}", said(&whole));
        let (expected, points) = (written(&adapter, &root), common::fault_points(&log));
        let file = if kind == Kind::Current { "rename merged.gguf" } else { "rename base.gguf" };
        for wanted in [
            "http push",
            "http create",
            "http copy",
            "rename Modelfile.coder",
            "rename ollama-capabilities.json",
            "commit tables",
            "committed deployment",
            "committed begin of a move",
            "commit end of a move",
            file,
        ] {
            assert!(points.iter().any(|point| point.starts_with(wanted)), "{kind:?}: no point {wanted}: {points:?}");
        }
        let mode = serde_json::from_slice::<serde_json::Value>(&whole.stdout).unwrap()["mode"].clone();
        assert_eq!(mode, if kind == Kind::Current { "merged" } else { "adapter" });
        for (n, point) in points.iter().enumerate() {
            let old = reset();
            let root = scratch.path().join(format!("killed-{n}"));
            let when = format!("{kind:?}: killed at {point}");
            let killed = deploy(&peer, &adapter, &root, &[("RETUNE_FAULT_AT", &(n + 1).to_string())]);
            assert_eq!(killed.status.signal(), Some(9), "{when}: {}", said(&killed));
            for (name, bytes) in written(&adapter, &root) {
                // The memory of what an Ollama takes says when it was asked.
                assert!(bytes == expected[&name] || name.ends_with("capabilities.json"), "{when}: {name} is half written");
            }
            let latest = peer.digest(ALIAS);
            assert!(latest == old || points[n..].iter().all(|left| !left.starts_with("http")), "{when}: the alias has moved");
            serves(&peer, &when);
            let again = deploy(&peer, &adapter, &root, &[]);
            assert!(again.status.success(), "{when}, then again: {}", said(&again));
            assert_eq!(peer.digest(ALIAS), peer.digest("my-coder-tuned-coder:v1"), "{when}, then again");
            assert_eq!(peer.digest("my-coder-tuned-coder:v2"), "", "{when}: no version is made twice");
            let names: Vec<String> = peer.ollama.tags().unwrap().into_iter().map(|tag| tag.name).collect();
            // The version, the alias, and a name for what served before, which had none.
            assert_eq!(names.len(), 3, "{when}: trials are left: {names:?}");
            is_recorded(&peer, &root, &when);
            assert_eq!(written(&adapter, &root).keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{when}");
            fs::remove_dir_all(&root).unwrap();
        }
        println!("{kind:?}: {} points, each killed and done again", points.len());
    }
}
