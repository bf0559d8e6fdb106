//! The last words of other test runners. Where a runner can write JUnit XML, that says more.

use std::collections::BTreeSet;

use super::junit::tests;
use super::listen::Listener;
use super::text::{count_of, counts};
use super::{Kind, Observed, counted};
use crate::domain::RunResult;

#[derive(Default)]
struct Sums {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Files that could not be loaded; each counts as one failed test.
    broken: u64,
}

impl Sums {
    fn observed(&self, from: &str) -> Observed {
        let mut notes = Vec::new();
        if self.skipped > 0 {
            notes.push(format!("{from}: {} skipped, not in the total", counted(self.skipped, "test")));
        }
        if self.broken > 0 {
            notes.push(format!("{from}: {} could not be run, each counted as one failed test", counted(self.broken, "file")));
        }
        tests(self.passed, self.failed + self.broken, from, notes)
    }
}

/// `Tests:       1 failed, 1 skipped, 1 todo, 3 passed, 6 total`
#[derive(Default)]
pub struct Jest {
    sums: Option<Sums>,
    file: String,
    broken: BTreeSet<String>,
}

impl Listener for Jest {
    fn kind(&self) -> Kind {
        Kind::Jest
    }

    fn line(&mut self, line: &str) {
        if let Some(told) = line.strip_prefix("Tests:").filter(|told| counts(told).any(|(_, word)| word == "total")) {
            let sums = self.sums.get_or_insert_default();
            sums.passed += count_of(told, &["passed"]);
            sums.failed += count_of(told, &["failed"]);
            sums.skipped += count_of(told, &["skipped", "todo"]);
        } else if let Some(file) = line.strip_prefix("FAIL ") {
            file.trim().clone_into(&mut self.file);
        } else if line.trim() == "● Test suite failed to run" {
            self.broken.insert(self.file.clone());
        }
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        let sums = self.sums.take()?;
        Some(Sums { broken: self.broken.len() as u64, ..sums }.observed(from))
    }
}

/// `      Tests  1 failed | 2 passed | 1 skipped | 1 todo (5)`
#[derive(Default)]
pub struct Vitest {
    sums: Option<Sums>,
    broken: u64,
}

impl Listener for Vitest {
    fn kind(&self) -> Kind {
        Kind::Vitest
    }

    fn line(&mut self, line: &str) {
        let text = line.trim();
        if let Some(told) = text.strip_prefix("Tests ").filter(|_| line.starts_with(' ')) {
            let told = told.rsplit_once(" (").filter(|(_, all)| all.ends_with(')')).map_or(told, |(told, _)| told);
            if told.trim() != "no tests" && counts(told).all(|(_, word)| !["passed", "failed", "skipped", "todo"].contains(&word))
            {
                return;
            }
            let sums = self.sums.get_or_insert_default();
            sums.passed += count_of(told, &["passed"]);
            sums.failed += count_of(told, &["failed"]);
            sums.skipped += count_of(told, &["skipped", "todo"]);
        } else if let Some(number) = text.trim_matches(['⎯', ' ']).strip_prefix("Failed Suites ") {
            self.broken += number.parse::<u64>().unwrap_or(0);
        }
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        let sums = self.sums.take()?;
        Some(Sums { broken: self.broken, ..sums }.observed(from))
    }
}

/// `  2 passing (4ms)`, then `  1 pending` and `  1 failing`
#[derive(Default)]
pub struct Mocha {
    sums: Option<Sums>,
    in_summary: bool,
}

impl Listener for Mocha {
    fn kind(&self) -> Kind {
        Kind::Mocha
    }

    fn line(&mut self, line: &str) {
        let text = line.trim();
        let Some((n, word)) = counts(text).next().filter(|_| line.starts_with("  ")) else {
            self.in_summary &= text.is_empty();
            return;
        };
        if word.starts_with("passing (") {
            self.in_summary = true;
            self.sums.get_or_insert_default().passed += n;
        } else if let Some(sums) = self.sums.as_mut().filter(|_| self.in_summary) {
            match word {
                "failing" => sums.failed += n,
                "pending" => sums.skipped += n,
                _ => self.in_summary = false,
            }
        }
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        Some(self.sums.take()?.observed(from))
    }
}

/// `ℹ tests 5`, `ℹ pass 3`, `ℹ fail 1`, ... with the spec reporter, `# tests 5` in TAP.
#[derive(Default)]
pub struct NodeTest {
    sums: Option<Sums>,
}

impl Listener for NodeTest {
    fn kind(&self) -> Kind {
        Kind::NodeTest
    }

    fn line(&mut self, line: &str) {
        let Some((key, n)) = line.strip_prefix("ℹ ").or_else(|| line.strip_prefix("# ")).and_then(|told| told.split_once(' '))
        else {
            return;
        };
        let Ok(n) = n.parse::<u64>() else { return };
        match (key, &mut self.sums) {
            ("tests", sums) => drop(sums.get_or_insert_default()),
            ("pass", Some(sums)) => sums.passed += n,
            ("fail" | "cancelled", Some(sums)) => sums.failed += n,
            ("skipped" | "todo", Some(sums)) => sums.skipped += n,
            _ => (),
        }
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        Some(self.sums.take()?.observed(from))
    }
}

/// `Ran 5 tests in 0.001s`, then `OK`, or `FAILED (failures=1, errors=1, skipped=1, expected failures=1)`
#[derive(Default)]
pub struct Unittest {
    sums: Option<Sums>,
    ran: Option<u64>,
}

impl Listener for Unittest {
    fn kind(&self) -> Kind {
        Kind::Unittest
    }

    fn line(&mut self, line: &str) {
        let ran = line.strip_prefix("Ran ").and_then(|rest| rest.split_once(" in ")).and_then(|(n, _)| counts(n).next());
        if let Some((n, "test" | "tests")) = ran {
            self.ran = Some(n);
            return;
        }
        let (verdict, inside) = match line.split_once(" (") {
            Some((verdict, inside)) => (verdict, inside.strip_suffix(')')),
            None => (line, None),
        };
        let inside = match (verdict, inside) {
            ("OK" | "FAILED" | "NO TESTS RAN", Some(inside)) => inside,
            ("OK" | "NO TESTS RAN", None) if verdict == line => "",
            _ => return,
        };
        let Some(ran) = self.ran.take() else { return };
        let count = |wanted: &str| {
            inside
                .split(", ")
                .filter_map(|pair| pair.split_once('='))
                .find(|(key, _)| *key == wanted)
                .map_or(0, |(_, n)| n.parse().unwrap_or(0))
        };
        // Expected failures as in pytest; an unexpected success makes the run fail here.
        let failed = count("failures") + count("errors") + count("unexpected successes");
        let skipped = count("skipped") + count("expected failures");
        let sums = self.sums.get_or_insert_default();
        sums.passed += ran.saturating_sub(failed + skipped);
        sums.failed += failed;
        sums.skipped += skipped;
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        Some(self.sums.take()?.observed(from))
    }
}

/// `[ERROR] Tests run: 5, Failures: 1, Errors: 1, Skipped: 1, Flakes: 1`: surefire's sum of a module, behind `Results:`. Those of
/// the classes stand before.
#[derive(Default)]
pub struct Maven {
    sums: Option<Sums>,
    in_results: bool,
    compiles: bool,
    compile_failed: bool,
    success: bool,
}

impl Listener for Maven {
    fn kind(&self) -> Kind {
        Kind::Maven
    }

    fn line(&mut self, line: &str) {
        let Some(text) = ["[INFO] ", "[ERROR] ", "[WARNING] "].iter().find_map(|level| line.strip_prefix(level)) else { return };
        let count = |wanted: &str| {
            text.split(", ")
                .filter_map(|pair| pair.split_once(": "))
                .find(|(key, _)| *key == wanted)
                .and_then(|(_, n)| n.trim().parse().ok())
        };
        if let (Some(ran), Some(skipped), true) = (count("Tests run"), count("Skipped"), self.in_results) {
            self.in_results = false;
            let failed: u64 = count("Failures").unwrap_or(0) + count("Errors").unwrap_or(0);
            let sums = self.sums.get_or_insert_default();
            sums.passed += u64::saturating_sub(ran, failed + skipped);
            sums.failed += failed;
            sums.skipped += skipped;
        }
        self.in_results |= text == "Results:";
        self.compiles |= text.starts_with("--- ") && (text.contains(":compile (") || text.contains(":testCompile ("));
        self.compile_failed |= text.starts_with("COMPILATION ERROR");
        self.success |= text == "BUILD SUCCESS";
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        let compiled = match () {
            () if self.compile_failed => Some(false),
            () if self.compiles && (self.success || self.sums.is_some()) => Some(true),
            () if self.sums.is_none() => return None,
            () => None,
        };
        let observed = self.sums.take().map_or_else(Observed::default, |sums| sums.observed(from));
        Some(Observed::new(RunResult { compile_pass: compiled, ..observed.result }, from, observed.notes))
    }
}

/// `60% tests passed, 2 tests failed out of 5`: disabled tests are not in its sum, skipped ones are, as passed.
#[derive(Default)]
pub struct Ctest {
    sums: Option<Sums>,
    skipped: u64,
}

impl Listener for Ctest {
    fn kind(&self) -> Kind {
        Kind::Ctest
    }

    fn line(&mut self, line: &str) {
        if line.contains(" Test ") && line.contains("***Skipped ") {
            self.skipped += 1;
        }
        let Some((_, rest)) = line.split_once("% tests passed, ") else { return };
        // Newer versions leave the failed ones away where there are none.
        let failed = count_of(rest.split(" out of ").next().unwrap_or(""), &["tests failed", "test failed"]);
        let Some(all) = rest.rsplit_once(" out of ").and_then(|(_, n)| n.trim().parse::<u64>().ok()) else { return };
        let sums = self.sums.get_or_insert_default();
        sums.passed += all.saturating_sub(failed + self.skipped);
        sums.failed += failed;
        sums.skipped += self.skipped;
        self.skipped = 0;
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        Some(self.sums.take()?.observed(from))
    }
}
