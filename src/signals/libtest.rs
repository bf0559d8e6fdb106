//! The tests of Rust: what libtest prints for people, and its JSON (`--format json`, unstable), one block a test program.
//!
//! `running 5 tests` begins a block and `test result: ...` ends it. Between stands, behind `failures:`, what failed tests printed.
//! Ignored tests are not in the total, nor are those that a filter left out, nor benchmarks.

use serde::Deserialize;

use super::junit::tests;
use super::listen::Listener;
use super::text::count_of;
use super::{Kind, Observed, counted};

#[derive(Default)]
pub struct Libtest {
    open: Option<Block>,
    seen: bool,
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Blocks that have no result, and their tests.
    crashed: u64,
}

/// A test program that runs.
struct Block {
    tests: u64,
    passed: u64,
    ignored: u64,
    /// It prints what its failed tests printed; so many blocks have begun in there.
    in_failures: bool,
    nested: u64,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    event: String,
    test_count: Option<u64>,
    passed: Option<u64>,
    failed: Option<u64>,
    ignored: Option<u64>,
}

impl Libtest {
    fn begin(&mut self, tests: u64) {
        self.give_up();
        self.seen = true;
        self.open = Some(Block { tests, passed: 0, ignored: 0, in_failures: false, nested: 0 });
    }

    fn end(&mut self, passed: u64, failed: u64, ignored: u64) {
        self.open = None;
        self.passed += passed;
        self.failed += failed;
        self.ignored += ignored;
    }

    /// The program that ran ended without a result: an abort, a signal. What it did not tell of has not passed.
    fn give_up(&mut self) {
        let Some(Block { tests, passed, ignored, .. }) = self.open.take() else { return };
        self.crashed += 1;
        self.end(passed, tests.saturating_sub(passed + ignored), ignored);
    }

    fn event(&mut self, event: &Event) {
        match (event.kind.as_str(), event.event.as_str(), &mut self.open) {
            ("suite", "started", _) => self.begin(event.test_count.unwrap_or(0)),
            ("suite", "ok" | "failed", Some(_)) => {
                self.end(event.passed.unwrap_or(0), event.failed.unwrap_or(0), event.ignored.unwrap_or(0));
            }
            ("test", "ok", Some(block)) => block.passed += 1,
            ("test", "ignored", Some(block)) => block.ignored += 1,
            _ => (),
        }
    }

    fn result(&mut self, rest: &str) {
        let Some(block) = &mut self.open else { return };
        if block.nested > 0 {
            block.nested -= 1;
            return;
        }
        let count = |word| count_of(rest.split_once(". ").map_or("", |(_, counts)| counts), &[word]);
        let (passed, failed, ignored) = (count("passed"), count("failed"), count("ignored"));
        // Another program's result, printed by a test, has other sums.
        if passed + failed + ignored + count("measured") == block.tests {
            self.end(passed, failed, ignored);
        }
    }
}

impl Listener for Libtest {
    fn kind(&self) -> Kind {
        Kind::CargoTestText
    }

    fn line(&mut self, line: &str) {
        let number = line.strip_prefix("running ").and_then(|rest| rest.strip_suffix(" tests").or(rest.strip_suffix(" test")));
        if let Some(number) = number.and_then(|n| n.parse().ok()) {
            match &mut self.open {
                Some(block) if block.in_failures => block.nested += 1,
                _ => self.begin(number),
            }
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            self.result(rest);
        } else if line.starts_with('{') && line.contains("\"event\"") {
            if let Ok(event) = serde_json::from_str(line) {
                self.event(&event);
            }
        } else if let Some(block) = &mut self.open {
            match line {
                "failures:" => block.in_failures = true,
                _ if block.in_failures || !line.starts_with("test ") => (),
                _ if line.ends_with(" ... ok") => block.passed += 1,
                _ if line.contains(" ... ignored") => block.ignored += 1,
                _ => (),
            }
        }
    }

    fn quoting(&self) -> bool {
        self.open.as_ref().is_some_and(|block| block.in_failures)
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        if !self.seen {
            return None;
        }
        self.give_up();
        let mut notes = Vec::new();
        if self.ignored > 0 {
            notes.push(format!("{from}: {} ignored, not in the total", counted(self.ignored, "test")));
        }
        if self.crashed > 0 {
            let programs = counted(self.crashed, "test program");
            notes.push(format!("{from}: {programs} ended without a result; the tests that it told nothing of count as failed"));
        }
        let mut observed = tests(self.passed, self.failed, from, notes);
        // Cargo runs no test where one does not compile.
        let compiled = crate::domain::RunResult { compile_pass: Some(true), ..observed.result };
        observed = Observed::new(compiled, from, observed.notes);
        Some(observed)
    }
}
