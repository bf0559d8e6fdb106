//! kill -9 at every write, sync and rename of a training, by fault points (src/fault.rs): what is on disk is whole, and
//! `--resume` ends with the bits of a run that nobody killed.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus};

const RESULTS: [&str; 3] = ["adapter_model.safetensors", "adapter_config.json", "adapter.gguf"];

/// `kind` are the flags that say what kind of adapter.
fn train(data: &Path, out: &Path, kind: &[&str], resume: bool, env: &[(&str, &str)]) -> (ExitStatus, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
    command.args([
        "train",
        "--base",
        "demo",
        "--rank",
        "2",
        "--max-steps",
        "3",
        "--batch-size",
        "2",
        "--grad-accum",
        "1",
        "--learning-rate",
        "1e-2",
        "--save-every",
        "1",
        "--eval-every",
        "2",
        "--json",
    ]);
    command.args(kind).arg("--data").arg(data).arg("--eval-data").arg(data).arg("--out").arg(out);
    if resume {
        command.arg("--resume");
    }
    let output = command.envs(env.iter().copied()).output().expect("the binary runs");
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn results(out: &Path) -> BTreeMap<&'static str, Vec<u8>> {
    RESULTS.iter().filter_map(|name| Some((*name, fs::read(out.join(name)).ok()?))).collect()
}

/// Metrics without the seconds, which differ from run to run.
fn metrics(out: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let mut lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).expect("a whole line")).collect();
    lines.iter_mut().for_each(|l| drop(l.as_object_mut().map(|l| l.remove("seconds"))));
    lines
}

#[test]
fn a_kill_at_every_point_of_a_training_loses_nothing() {
    kill_and_resume(&["--dropout", "0.1"], 1, &RESULTS);
}

#[test]
fn a_killed_dora_training_goes_on_to_the_same_bits() {
    kill_and_resume(&["--dora", "--dropout", "0.1"], 9, &RESULTS[..2]);
}

/// Kills a training at every `stride`-th point; it leaves `files`.
fn kill_and_resume(kind: &[&str], stride: usize, files: &[&str]) {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("rows.jsonl");
    fs::write(&data, "{\"instruction\":\"hide kavo\",\"output\":\"****\"}\n{\"instruction\":\"hide mune\",\"output\":\"***\"}\n{\"instruction\":\"hide pi\",\"output\":\"**\"}\n").unwrap();
    let (whole, log) = (scratch.path().join("whole"), scratch.path().join("points"));
    let (status, message) = train(&data, &whole, kind, false, &[("RETUNE_FAULT_LOG", log.to_str().unwrap())]);
    assert!(status.success(), "{message}");
    let expected = results(&whole);
    assert_eq!(expected.len(), files.len());
    let points = common::fault_points(&log);
    assert!(points.len() > 40, "only {} points: {points:?}", points.len());

    for (n, point) in points.iter().enumerate().step_by(stride) {
        let out = scratch.path().join(format!("killed-{n}"));
        let (status, message) = train(&data, &out, kind, false, &[("RETUNE_FAULT_AT", &(n + 1).to_string())]);
        assert_eq!(status.signal(), Some(9), "point {point}: {message}");
        // Whatever is there is whole: the very bytes of the run that nobody killed.
        for (name, bytes) in results(&out) {
            assert!(bytes == expected[name], "point {point}: {name} is half written");
        }
        let (status, message) = train(&data, &out, kind, true, &[]);
        assert!(status.success(), "resume after point {point}: {message}");
        assert!(results(&out) == expected, "resume after point {point} ends with other bits");
        assert_eq!(metrics(&out), metrics(&whole), "point {point}");
        let left: Vec<_> = fs::read_dir(&out)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != ".lock" && !whole.join(name).exists())
            .collect();
        assert!(left.is_empty(), "point {point} leaves {left:?}");
        fs::remove_dir_all(&out).unwrap();
    }
    eprintln!("{} points, one in {stride} killed and resumed", points.len());
}

#[test]
fn ctrl_c_saves_and_the_same_command_goes_on() {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("rows.jsonl");
    fs::write(&data, "{\"instruction\":\"hide kavo\",\"output\":\"****\"}\n".repeat(64)).unwrap();
    let command = |out: &Path, resume: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args([
            "train",
            "--base",
            "demo",
            "--rank",
            "2",
            "--max-steps",
            "40",
            "--batch-size",
            "32",
            "--grad-accum",
            "1",
            "--save-every",
            "1000",
            "--json",
        ]);
        command.arg("--data").arg(&data).arg("--out").arg(out);
        if resume {
            command.arg("--resume");
        }
        command
    };
    let (whole, stopped) = (scratch.path().join("whole"), scratch.path().join("stopped"));
    assert!(command(&whole, false).output().unwrap().status.success());
    let mut child = command(&stopped, false).stderr(std::process::Stdio::piped()).spawn().unwrap();
    // After its third step the run has written three lines; then the interrupt.
    while fs::read_to_string(stopped.join("metrics.jsonl")).map_or(0, |t| t.lines().count()) < 3 {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it was interrupted");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--resume"), "{output:?}");
    assert!(!stopped.join("adapter_model.safetensors").exists(), "interrupted, not finished");
    assert!(command(&stopped, true).output().unwrap().status.success());
    assert!(results(&stopped) == results(&whole), "an interrupted run must end with the same bits");
}
