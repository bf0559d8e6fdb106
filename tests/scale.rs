//! What a question costs when there are many runs: a row of `stats` and of `export` at 1,000,000 runs against 10,000.
//!
//! `cargo test --release --workspace --locked --test scale -- --ignored --nocapture` (some minutes, 3 GB of disk)

use std::path::Path;
use std::time::Instant;

use retune::config::Config;
use retune::domain::{Message, RunResult, Weights};
use retune::pipeline::export::{RoleSet, Shape};
use retune::store::{RunRow, Store, Texts};
use retune_kernels::rng::Rng;

fn row(n: usize, rng: &mut Rng) -> RunRow {
    let weights = Weights { compile: 0.25, tests: 0.25, errors: 0.25, human: 0.25, half_errors: 5.0 };
    let result = RunResult { compile_pass: Some(true), tests_passed: Some(3), tests_total: Some(4), ..RunResult::default() };
    let mut words = |count: usize| (0..count).map(|_| format!("w{}", rng.below(50_000))).collect::<Vec<_>>().join(" ");
    let (asked, answer) = (words(40), words(40));
    RunRow {
        uid: format!("r{n}"),
        at_ms: n as i64,
        role: "coder".to_owned(),
        task: None,
        task_group: Some(format!("{:08x}", n / 2)),
        model: Some(format!("m{}", n % 3)),
        prompt_variant: None,
        difficulty: None,
        action_type: None,
        session: None,
        user: None,
        choice_id: None,
        evidence: Default::default(),
        source: None,
        demonstration: false,
        edit_of: None,
        cost_tokens: Some(100),
        duration_ms: Some(5),
        reward: weights.reward(&result, None),
        reward_version: weights.version(),
        result,
        texts: Some(Texts { messages: vec![Message::new("user", asked), Message::new("assistant", answer)], tools: None }),
        withheld: None,
    }
}

/// Seconds a row: of `stats` over the last 100 runs, and of an export that looks at every run.
fn measured(root: &Path, runs: usize) -> [f64; 2] {
    let mut store = Store::open(root).unwrap();
    let mut rng = Rng::new(1);
    let clock = Instant::now();
    for start in (0..runs).step_by(5000) {
        let rows: Vec<RunRow> = (start..start + 5000).map(|n| row(n, &mut rng)).collect();
        store.record_runs(&rows).unwrap();
    }
    let recorded = clock.elapsed().as_secs_f64();
    let mut stats: Vec<f64> = (0..21)
        .map(|_| {
            let clock = Instant::now();
            assert_eq!(store.stats(None, 100).unwrap().all.runs, 100);
            clock.elapsed().as_secs_f64() / 100.0
        })
        .collect();
    stats.sort_by(f64::total_cmp);
    let clock = Instant::now();
    let set = RoleSet::of(&store, &Config::default(), "coder").unwrap();
    set.write(&store, root, Shape::Alpaca, None).unwrap();
    set.record(&mut store).unwrap();
    let export = clock.elapsed().as_secs_f64();
    println!(
        "{runs} runs: recorded in {recorded:.1} s, a row of stats {:.1} us, export {export:.1} s ({:.1} us a run), {} to train on, {} held out",
        stats[10] * 1e6,
        export / runs as f64 * 1e6,
        set.curated.train.len(),
        set.curated.held_out.len()
    );
    [stats[10], export / runs as f64]
}

#[test]
#[ignore = "minutes; measures, for people"]
fn a_row_of_stats_and_of_export_costs_no_more_when_there_are_many() {
    let scratch = tempfile::tempdir().unwrap();
    let few = measured(&scratch.path().join("few"), 10_000);
    let many = measured(&scratch.path().join("many"), 1_000_000);
    println!("a row costs {:.2} times as much for stats, {:.2} times for export", many[0] / few[0], many[1] / few[1]);
}
