//! `go test -json` (<https://pkg.go.dev/cmd/test2json>), and the text of `go test -v`. Subtests count as tests beside the test
//! that holds them, as gotestsum and go-junit-report have it. Without `-v` the text does not tell of the tests that passed.

use serde::Deserialize;

use super::junit::tests;
use super::listen::Listener;
use super::{Kind, Observed, counted};
use crate::domain::RunResult;

#[derive(Default)]
pub struct GoTest {
    json: bool,
    verbose: bool,
    /// A package was tested.
    packages: bool,
    build_failed: bool,
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Packages that failed without a test that did: `TestMain`, a panic in a goroutine.
    package_failures: u64,
    failed_in_package: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    action: String,
    test: Option<String>,
    failed_build: Option<String>,
}

impl GoTest {
    fn event(&mut self, event: &Event) {
        self.json = true;
        match (event.action.as_str(), &event.test) {
            ("pass", Some(_)) => self.passed += 1,
            ("fail", Some(_)) => (self.failed, self.failed_in_package) = (self.failed + 1, self.failed_in_package + 1),
            ("skip", Some(_)) => self.skipped += 1,
            ("build-fail", _) => self.build_failed = true,
            ("pass" | "fail" | "skip", None) => {
                self.packages = true;
                let unexplained = event.action == "fail" && self.failed_in_package == 0 && event.failed_build.is_none();
                self.package_failures += u64::from(unexplained);
                self.failed_in_package = 0;
            }
            _ => (),
        }
    }
}

impl Listener for GoTest {
    fn kind(&self) -> Kind {
        Kind::GoTest
    }

    fn line(&mut self, line: &str) {
        if line.starts_with('{') && line.contains("\"Action\"") {
            if let Ok(event) = serde_json::from_str(line) {
                self.event(&event);
            }
            return;
        }
        let text = line.trim_start();
        match () {
            () if line.starts_with("=== RUN   ") => self.verbose = true,
            () if text.starts_with("--- PASS: ") => self.passed += 1,
            () if text.starts_with("--- FAIL: ") => self.failed += 1,
            () if text.starts_with("--- SKIP: ") => self.skipped += 1,
            () if line.starts_with("FAIL\t") => {
                self.packages = true;
                self.build_failed |= line.ends_with(" [build failed]") || line.ends_with(" [setup failed]");
            }
            () if line.starts_with("ok  \t") => self.packages = true,
            () => (),
        }
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        if !self.packages {
            return None;
        }
        let mut notes = Vec::new();
        if self.skipped > 0 {
            notes.push(format!("{from}: {} skipped, not in the total", counted(self.skipped, "test")));
        }
        if self.package_failures > 0 {
            notes.push(format!(
                "{from}: {} failed without a test that did, each counted as one",
                counted(self.package_failures, "package")
            ));
        }
        let mut observed = match self.json || self.verbose {
            true => tests(self.passed, self.failed + self.package_failures, from, notes),
            false => {
                let note = format!("{from}: without -v or -json it does not tell how many tests passed, so none are counted");
                Observed::new(RunResult::default(), from, vec![note])
            }
        };
        // A package that does not build is not tested; the others are.
        let result = RunResult { compile_pass: Some(!self.build_failed), ..observed.result };
        observed = Observed::new(result, from, observed.notes);
        Some(observed)
    }
}
