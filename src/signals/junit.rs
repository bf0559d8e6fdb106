//! JUnit XML, as Ant began it and everybody writes it: pytest, surefire, jest-junit, mocha, vitest, gotestsum, ctest, ...
//!
//! There is no one standard (<https://github.com/testmoapp/junitxml> collects what tools write). What counts are the `testcase`
//! elements and what stands in them; the sums in the attributes of suites are wrong in many of these tools (jest-junit leaves
//! todos out, surefire takes flaky ones off) and only compared.

use std::io::{self, BufRead};
use std::path::Path;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::document::Lossy;
use super::{Observed, counted};
use crate::domain::RunResult;
use crate::error::{Error, Result};

/// Elements are nested this deep at most; reports have four levels.
const MAX_DEPTH: usize = 64;
/// So many suites are named whose sums part from what they list.
const MAX_NAMED: usize = 3;

pub fn read(reader: impl BufRead, name: &str, from: &str) -> Result<Observed> {
    let mut xml = Reader::from_reader(Lossy::new(reader));
    let (mut report, mut buffer) = (Report::default(), Vec::new());
    loop {
        let at = xml.buffer_position();
        let event = xml.read_event_into(&mut buffer).map_err(|error| match error {
            quick_xml::Error::Io(error) => unreadable(&error, name),
            other => broken(name, at, &other.to_string()),
        })?;
        match event {
            Event::Start(element) => report.open(&element, name)?,
            Event::Empty(element) => {
                report.open(&element, name)?;
                report.close();
            }
            Event::End(_) => report.close(),
            Event::DocType(_) => {
                let next = "take the document type out: no test tool writes one, and entities are not read";
                return Err(Error::file(Path::new(name), "has a document type (DTD)", next));
            }
            Event::Eof if report.open.is_empty() && report.seen_root => return Ok(report.observed(from)),
            Event::Eof if report.seen_root => {
                let element = report.open.pop().map_or_else(String::new, |element| element.name);
                return Err(broken(name, at, &format!("<{element}> has no end")));
            }
            Event::Eof => return Err(Error::file(Path::new(name), "holds no JUnit XML", "give the report that the tests write")),
            _ => (),
        }
        buffer.clear();
    }
}

fn unreadable(error: &io::Error, name: &str) -> Error {
    Error::file(Path::new(name), format!("cannot be read: {error}"), "give a report of a size that a person has a use for")
}

fn broken(name: &str, at: u64, what: &str) -> Error {
    let next = "it was cut or changed: run the tests again and give the report as it was written";
    Error::file(Path::new(name), format!("is broken XML at byte {at}: {what}"), next)
}

/// An element that is open.
struct Element {
    name: String,
    /// Of a suite: its name, the tests that it says it has, and those that it lists itself.
    title: String,
    says: Option<u64>,
    lists: u64,
    has_suites: bool,
}

/// What the elements of a test case make of it.
#[derive(Default)]
struct Case {
    id: (Option<String>, Option<String>),
    failure: bool,
    error: bool,
    skipped: bool,
    flaky: bool,
    /// ctest: it did not run; a skip on purpose says so by `SKIP_...`.
    not_run: bool,
}

impl Case {
    fn failed(&self) -> bool {
        self.failure || self.error
    }

    /// One test, told twice: pytest's whose teardown fails after itself, jest-junit's file that cannot be loaded. Rows of data share
    /// a name, too, but do not take turns in how they fail.
    fn is_again(&self, other: &Self) -> bool {
        self.id == other.id && self.failed() && other.failed() && self.failure != other.failure && self.error != other.error
    }
}

#[derive(Default)]
struct Report {
    open: Vec<Element>,
    seen_root: bool,
    case: Option<Case>,
    /// The one before, in the same suite.
    last: Option<Case>,
    passed: u64,
    failed: u64,
    skipped: u64,
    flaky: u64,
    suites_failed: u64,
    differ: Vec<String>,
}

impl Report {
    fn open(&mut self, element: &BytesStart, name: &str) -> Result<()> {
        let tag = element.local_name().as_ref().to_owned();
        let attribute = |wanted: &str| {
            let found = element.attributes().flatten().find(|a| a.key.local_name().as_ref() == wanted);
            found.map(|a| a.value.into_owned())
        };
        if self.open.is_empty() && !matches!(tag.as_str(), "testsuites" | "testsuite") {
            let next = "give JUnit XML, which begins with <testsuites> or <testsuite>";
            return Err(Error::file(Path::new(name), format!("begins with <{tag}>, which is no JUnit XML"), next));
        }
        if self.open.len() == MAX_DEPTH {
            return Err(Error::file(
                Path::new(name),
                format!("is nested deeper than {MAX_DEPTH}"),
                "give the report of a test tool",
            ));
        }
        self.seen_root = true;
        let parent = self.open.last().map(|parent| parent.name.as_str());
        match (tag.as_str(), &mut self.case) {
            ("testcase", None) => {
                let status = attribute("status");
                let off = matches!(status.as_deref(), Some("disabled" | "notrun"));
                let id = (attribute("classname"), attribute("name"));
                self.case = Some(Case { id, not_run: off, ..Case::default() });
            }
            ("failure", Some(case)) if parent == Some("testcase") => case.failure = true,
            ("error", Some(case)) if parent == Some("testcase") => case.error = true,
            ("skipped" | "disabled", Some(case)) if parent == Some("testcase") => {
                // ctest writes a test whose program is missing as skipped, and fails.
                let on_purpose = attribute("message").is_none_or(|message| message.starts_with("SKIP_"));
                if case.not_run && !on_purpose { case.failure = true } else { case.skipped = true }
            }
            ("flakyFailure" | "flakyError", Some(case)) => case.flaky = true,
            // What kept a whole file from being loaded.
            ("failure" | "error", None) if parent == Some("testsuite") => self.suites_failed += 1,
            _ => (),
        }
        if tag == "testsuite"
            && let Some(parent) = self.open.last_mut()
        {
            parent.has_suites = true;
        }
        let says = if tag == "testsuite" { attribute("tests").and_then(|n| n.trim().parse().ok()) } else { None };
        let title = if tag == "testsuite" { attribute("name").unwrap_or_default() } else { String::new() };
        self.open.push(Element { name: tag, title, says, lists: 0, has_suites: false });
        Ok(())
    }

    fn close(&mut self) {
        let Some(element) = self.open.pop() else { return };
        match element.name.as_str() {
            "testcase" => {
                let Some(case) = self.case.take() else { return };
                if let Some(suite) = self.open.last_mut() {
                    suite.lists += 1;
                }
                let again = self.last.as_ref().is_some_and(|last| last.is_again(&case));
                match &case {
                    case if case.failed() => self.failed += u64::from(!again),
                    Case { skipped: true, .. } | Case { not_run: true, .. } => self.skipped += 1,
                    _ => self.passed += 1,
                }
                self.flaky += u64::from(case.flaky && !case.failed());
                self.last = Some(case);
            }
            "testsuite" => {
                self.last = None;
                let Element { title, says: Some(says), lists, has_suites: false, .. } = element else { return };
                if says != lists {
                    self.differ.push(format!(
                        "the suite '{title}' says {} and lists {lists}; what it lists is counted",
                        counted(says, "test")
                    ));
                }
            }
            _ => (),
        }
    }

    fn observed(self, from: &str) -> Observed {
        let failed = self.failed + self.suites_failed;
        let mut notes: Vec<String> = Vec::new();
        if self.skipped > 0 {
            notes.push(format!("{from}: {} skipped, not in the total", counted(self.skipped, "test")));
        }
        if self.flaky > 0 {
            notes.push(format!("{from}: {} passed at a second try, counted as passed", counted(self.flaky, "test")));
        }
        if self.suites_failed > 0 {
            notes.push(format!(
                "{from}: {} failed as a whole, each counted as one failed test",
                counted(self.suites_failed, "suite")
            ));
        }
        let more = self.differ.len().saturating_sub(MAX_NAMED);
        notes.extend(self.differ.iter().take(MAX_NAMED).map(|note| format!("{from}: {note}")));
        if more > 0 {
            notes.push(format!("{from}: {} more whose sums part from what they list", counted(more as u64, "suite")));
        }
        tests(self.passed, failed, from, notes)
    }
}

/// Tests that ran. Where none did, nothing is claimed: 0 of 0 would be neither good nor bad.
pub fn tests(passed: u64, failed: u64, from: &str, mut notes: Vec<String>) -> Observed {
    if passed + failed == 0 {
        notes.push(format!("{from}: no test ran"));
        return Observed::new(RunResult::default(), from, notes);
    }
    let result = RunResult { tests_passed: Some(passed), tests_total: Some(passed + failed), ..RunResult::default() };
    Observed::new(result, from, notes)
}
