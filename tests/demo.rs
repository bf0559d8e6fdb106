//! The demo: a task that the base fails is learnt and its skills are kept; what is better is promoted, what is not is not, and what
//! is worse is rolled back. From shuffled answers nothing is learnt.

mod common;

use common::{refusal, retune, retune_json, says};
use serde_json::Value;

fn demo(seed: u64, extra: &[&str]) -> Value {
    let scratch = tempfile::tempdir().unwrap();
    let seed = seed.to_string();
    let out = scratch.path().join("demo");
    let args = [&["demo", "--json", "--seed", &seed, "--out", out.to_str().unwrap()], extra].concat();
    let report = retune_json(&args);
    eprintln!("seed {seed} {extra:?}: {report}");
    report
}

fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"))
}

fn check(seed: u64, extra: &[&str], learnt: f64) {
    let report = demo(seed, extra);
    assert!(number(&report, "before") <= 0.3, "the base must fail the new task: {report}");
    assert!(number(&report, "after") >= learnt, "the new task must be learnt: {report}");
    assert!(number(&report, "skills_before") >= 0.8, "the base must have its skills: {report}");
    assert!(number(&report, "skills_after") >= 0.9, "the skills must be kept: {report}");
    for arm in ["promoted", "poisoned_rejected", "null_inconclusive", "rolled_back"] {
        assert_eq!(report[arm], true, "{arm}: {report}");
    }
}

#[test]
fn better_is_promoted_and_nothing_else_is() {
    check(42, &[], 0.8);
}

#[test]
fn the_quick_one_has_all_four_arms_too() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("demo");
    let run = |seed: &str| {
        let output = retune(&["demo", "--quick", "--seed", seed, "--out", out.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (said, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        says(
            &told,
            &["verdict: reject", "verdict: promote", "verdict: inconclusive", "rolled back: retune-demo-tools:v2 serves again"],
        );
        assert_eq!(said.matches(" yes\n").count(), 4, "{said}");
        for line in said.lines().chain(told.lines()) {
            assert!(line.chars().count() <= 80 || line.starts_with("  ") || line.starts_with("before"), "{line}");
        }
    };
    run("42");
    // Its project is one like any other, and a second demo begins anew.
    let project = out.join("project");
    let history = || common::retune_ok(&["history", "--root", project.to_str().unwrap()]);
    let kinds = |told: &str| -> Vec<String> {
        told.lines().skip(1).map(|line| line.split_whitespace().nth(2).unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(kinds(&history()), ["first", "promotion", "promotion", "rollback"]);
    run("7");
    assert_eq!(kinds(&history()), ["first", "promotion", "promotion", "rollback"]);
}

#[test]
fn a_folder_of_somebody_else_is_not_emptied() {
    let scratch = tempfile::tempdir().unwrap();
    let mine = scratch.path().join("project/mine.txt");
    std::fs::create_dir(scratch.path().join("project")).unwrap();
    std::fs::write(&mine, "mine").unwrap();
    let output = retune(&["demo", "--quick", "--json", "--out", scratch.path().to_str().unwrap()]);
    says(&refusal(1, &output, "a project that no demo made"), &["was not made by a demo", "--out"]);
    assert_eq!(std::fs::read_to_string(&mine).unwrap(), "mine");
}

#[test]
fn from_shuffled_answers_nothing_is_learnt() {
    let report = demo(42, &["--shuffled", "--quick"]);
    assert!(number(&report, "after") <= 0.3, "{report}");
    assert_eq!(report["promoted"], false, "{report}");
}

/// Five seeds and the whole control, some eight minutes: `cargo test --test demo -- --ignored`.
#[test]
#[ignore = "eight minutes; run by hand when the demo changes"]
fn five_seeds_learn_and_five_controls_do_not() {
    for seed in 1..=5 {
        check(seed, &[], 0.8);
        check(seed, &["--quick"], 0.25);
        let control = demo(seed, &["--shuffled"]);
        assert!(number(&control, "after") <= 0.3, "{control}");
        assert_eq!(control["promoted"], false, "{control}");
    }
}
