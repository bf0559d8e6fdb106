//! How a run went, read from what the tools themselves print: nobody types in test results.
//!
//! Three kinds of input: documents (`junit`, `sarif`, `eslint`, ...), lines of one format (`lcov`, cargo's JSON), and what a
//! command prints (`listen`), where every line goes to one listener a tool. `docs/record.md` has the table of what counts as what.

mod cargo_json;
mod checkers;
mod document;
mod go;
mod junit;
mod lcov;
mod libtest;
mod lint;
pub mod listen;
mod pytest;
mod recognise;
mod runners;
mod rustc;
mod sarif;
mod text;
pub mod watch;

use std::io::{BufRead, Read};
use std::path::Path;

use serde::Serialize;

pub use lcov::Coverage;
pub use recognise::recognise;

use crate::domain::RunResult;
use crate::error::{Error, Result};

/// What a tool wrote, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `cargo build|check|clippy|test --message-format=json`, with the text of the tests behind it.
    CargoJson,
    Junit,
    Sarif,
    Lcov,
    Tsc,
    EslintJson,
    PytestText,
    /// What cargo, rustc and libtest print, for people or as libtest's JSON.
    CargoTestText,
    /// `go test -json`, or the text of `go test -v`.
    GoTest,
    Jest,
    Vitest,
    Mocha,
    NodeTest,
    Unittest,
    Maven,
    Ctest,
    Mypy,
    PyrightText,
    PyrightJson,
    EslintText,
    Ruff,
    DependencyCruiser,
    /// What a command printed, whatever it was.
    Log,
}

impl Kind {
    /// As in "this is ...".
    pub fn what(self) -> &'static str {
        match self {
            Self::CargoJson => "cargo's JSON messages",
            Self::Junit => "JUnit XML",
            Self::Sarif => "SARIF",
            Self::Lcov => "lcov",
            Self::Tsc => "tsc's text",
            Self::EslintJson => "ESLint's JSON",
            Self::PytestText => "pytest's text",
            Self::CargoTestText => "cargo's text",
            Self::GoTest => "go test's output",
            Self::Jest => "jest's text",
            Self::Vitest => "vitest's text",
            Self::Mocha => "mocha's text",
            Self::NodeTest => "the text of node --test",
            Self::Unittest => "unittest's text",
            Self::Maven => "Maven's text",
            Self::Ctest => "ctest's text",
            Self::Mypy => "mypy's text",
            Self::PyrightText => "pyright's text",
            Self::PyrightJson => "pyright's JSON",
            Self::EslintText => "ESLint's text",
            Self::Ruff => "ruff's text",
            Self::DependencyCruiser => "dependency-cruiser's text",
            Self::Log => "a command's output",
        }
    }

    /// The option that takes it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::CargoJson => "--cargo-json",
            Self::Junit => "--junit",
            Self::Sarif => "--sarif",
            Self::Lcov => "--lcov",
            Self::Tsc => "--tsc",
            Self::EslintJson => "--eslint",
            _ => "--log",
        }
    }
}

/// One metric, as one source told it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Signal {
    /// The name of the field in `RunResult`.
    pub metric: &'static str,
    /// Flags are 0 or 1.
    pub value: f64,
    /// "report.xml (JUnit XML)".
    pub from: String,
}

/// What was seen of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Observed {
    pub result: RunResult,
    pub signals: Vec<Signal>,
    /// What was seen and not counted, to be told to the user.
    pub notes: Vec<String>,
    /// The lines behind `coverage_pct`, so that several reports of one file are not counted twice.
    #[serde(skip)]
    coverage: Coverage,
}

impl Observed {
    /// The signals follow from the result.
    fn new(result: RunResult, from: &str, notes: Vec<String>) -> Self {
        let signals = metrics(&result).map(|(metric, value)| Signal { metric, value, from: from.to_owned() }).collect();
        Self { result, signals, notes, coverage: Coverage::default() }
    }

    fn with_coverage(coverage: Coverage, from: &str, notes: Vec<String>) -> Self {
        let result = RunResult { coverage_pct: coverage.percent(), ..RunResult::default() };
        Self { coverage, ..Self::new(result, from, notes) }
    }

    /// Nothing was claimed.
    pub fn is_empty(&self) -> bool {
        self.signals.is_empty()
    }

    /// What `other` says is taken only for metrics of which this says nothing: a report that was asked for is better than
    /// the text of the same command, and both must not be added up.
    pub fn or(self, other: Self) -> Self {
        let (mine, theirs) = (self.result, other.result);
        let tests = if mine.tests_total.is_some() { &mine } else { &theirs };
        let result = RunResult {
            compile_pass: mine.compile_pass.or(theirs.compile_pass),
            lint_errors: mine.lint_errors.or(theirs.lint_errors),
            type_errors: mine.type_errors.or(theirs.type_errors),
            tests_passed: tests.tests_passed,
            tests_total: tests.tests_total,
            coverage_pct: mine.coverage_pct.or(theirs.coverage_pct),
            schema_errors: mine.schema_errors.or(theirs.schema_errors),
            boundary_errors: mine.boundary_errors.or(theirs.boundary_errors),
            ..RunResult::default()
        };
        let mut signals = self.signals;
        let told: Vec<&str> = signals.iter().map(|signal| signal.metric).collect();
        let more = other.signals.into_iter().filter(|signal| !told.contains(&signal.metric));
        let more: Vec<Signal> = more.collect();
        signals.extend(more);
        let coverage = if mine.coverage_pct.is_some() { self.coverage } else { other.coverage };
        Self { result, signals, notes: [self.notes, other.notes].concat(), coverage }
    }
}

/// The metrics that a result has, by name; flags as 0 and 1.
fn metrics(result: &RunResult) -> impl Iterator<Item = (&'static str, f64)> {
    let flag = |value: Option<bool>| value.map(|v| if v { 1.0 } else { 0.0 });
    let count = |value: Option<u64>| value.map(|v| v as f64);
    [
        ("compile_pass", flag(result.compile_pass)),
        ("lint_errors", count(result.lint_errors)),
        ("type_errors", count(result.type_errors)),
        ("tests_passed", count(result.tests_passed)),
        ("tests_total", count(result.tests_total)),
        ("coverage_pct", result.coverage_pct),
        ("schema_errors", count(result.schema_errors)),
        ("boundary_errors", count(result.boundary_errors)),
        ("human_accept", flag(result.human_accept)),
        ("convention_score", result.convention_score),
        ("iterations", count(result.iterations)),
    ]
    .into_iter()
    .filter_map(|(metric, value)| Some((metric, value?)))
}

/// Several sources of one run: tests and errors add up, it compiled where all of them say so, coverage is that of all lines.
pub fn combine(parts: Vec<Observed>) -> Observed {
    let add = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (a, b) => a.or(b),
    };
    let mut whole = Observed::default();
    for part in parts {
        let (sum, said) = (&mut whole.result, part.result);
        sum.compile_pass = match (sum.compile_pass, said.compile_pass) {
            (Some(a), Some(b)) => Some(a && b),
            (a, b) => a.or(b),
        };
        sum.lint_errors = add(sum.lint_errors, said.lint_errors);
        sum.type_errors = add(sum.type_errors, said.type_errors);
        sum.tests_passed = add(sum.tests_passed, said.tests_passed);
        sum.tests_total = add(sum.tests_total, said.tests_total);
        sum.schema_errors = add(sum.schema_errors, said.schema_errors);
        sum.boundary_errors = add(sum.boundary_errors, said.boundary_errors);
        whole.coverage.merge(part.coverage);
        whole.signals.extend(part.signals);
        whole.notes.extend(part.notes);
    }
    whole.result.coverage_pct = whole.coverage.percent();
    whole
}

/// Reads what a tool wrote. `name` is that of the file, for messages. Lines and SARIF are read as they come; nothing that is
/// larger than a document's limit is held.
pub fn read(kind: Kind, mut reader: impl BufRead, name: &str) -> Result<Observed> {
    let mut head = Vec::new();
    reader.by_ref().take(recognise::HEAD_BYTES).read_to_end(&mut head).map_err(Error::io("read", name))?;
    text::refuse_utf16(&head, name)?;
    let seen = recognise(&head);
    let reader = text::without_bom(&head).chain(reader);
    let kind = match (kind, seen) {
        (Kind::Log, Some(seen)) => seen,
        // libtest's JSON and go's are lines that a listener reads; what looks like them may be what was asked for.
        (asked, Some(seen)) if asked != seen && !(asked == Kind::CargoJson && seen == Kind::CargoTestText) => {
            return Err(not_that(asked, seen, name));
        }
        (asked, _) => asked,
    };
    let from = format!("{name} ({})", kind.what());
    match kind {
        Kind::Junit => junit::read(document::limited(reader), name, &from),
        Kind::Sarif => sarif::read(document::limited(reader), name, &from),
        Kind::EslintJson => lint::read_eslint(document::limited(reader), name, &from),
        Kind::PyrightJson => checkers::read_pyright(document::limited(reader), name, &from),
        Kind::Lcov => lcov::read(reader, name, &from),
        _ => listen::read(kind, reader, name),
    }
}

fn not_that(asked: Kind, seen: Kind, name: &str) -> Error {
    let message = format!("this is {}, and it was given as {}", seen.what(), asked.what());
    Error::file(Path::new(name), message, format!("use {} {name}", seen.flag()))
}

/// "1 test", "2 tests".
fn counted(n: u64, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

#[cfg(test)]
mod tests;
