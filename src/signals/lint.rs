//! Linters: what kind of an error a rule finds; ESLint's JSON and text, ruff's and dependency-cruiser's text.
//!
//! Errors count, warnings are told: a linter whose warnings matter to a project is one that the project makes fail by them
//! (`severity 2`, `-D warnings`).

use std::io::BufRead;
use std::path::Path;

use serde::Deserialize;

use super::listen::Listener;
use super::text::{count_of, counts};
use super::{Kind, Observed, counted, document};
use crate::domain::RunResult;
use crate::error::{Error, Result};

/// The metric that an error of a rule belongs to. Each error counts once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Lint,
    Type,
    Schema,
    Boundary,
}

/// Imports and calls across a line that the project forbids: whole names, and beginnings that end with `/` or `.`.
/// eslint-plugin-import, -boundaries, Nx, import-linter, ruff (TID251: banned API, TID253: banned at module level), ArchUnit.
const BOUNDARY_RULES: [&str; 17] = [
    "no-restricted-imports",
    "@typescript-eslint/no-restricted-imports",
    "no-restricted-modules",
    "import/no-restricted-paths",
    "import/no-internal-modules",
    "import/no-cycle",
    "import-x/no-restricted-paths",
    "import-x/no-internal-modules",
    "import-x/no-cycle",
    "n/no-restricted-import",
    "boundaries/",
    "@nx/enforce-module-boundaries",
    "@nrwl/nx/enforce-module-boundaries",
    "dependency-cruiser/",
    "import-linter/",
    "TID251",
    "TID253",
];

/// Data that does not fit its schema: JSON, OpenAPI, GraphQL and data formats of a project.
const SCHEMA_RULES: [&str; 9] = [
    "ajv/",
    "jsonschema/",
    "json-schema/",
    "json-schema-validator/",
    "check-jsonschema/",
    "@graphql-eslint/",
    "oas3-schema",
    "oas2-schema",
    "yaml-schema/",
];

/// By the rule's id, for tools that find several kinds of errors.
pub fn class_of(rule: &str) -> Class {
    let is_in = |rules: &[&str]| rules.iter().any(|r| if r.ends_with('/') { rule.starts_with(r) } else { rule == *r });
    match () {
        () if is_in(&BOUNDARY_RULES) => Class::Boundary,
        () if is_in(&SCHEMA_RULES) => Class::Schema,
        () => Class::Lint,
    }
}

/// Errors by what they are; of a class that was not looked at nothing is said.
#[derive(Default)]
pub struct Errors {
    pub lint: Option<u64>,
    pub types: Option<u64>,
    pub schema: Option<u64>,
    pub boundary: Option<u64>,
    pub warnings: u64,
}

impl Errors {
    /// This class was looked at.
    pub fn looked_at(&mut self, class: Class) -> &mut u64 {
        let place = match class {
            Class::Lint => &mut self.lint,
            Class::Type => &mut self.types,
            Class::Schema => &mut self.schema,
            Class::Boundary => &mut self.boundary,
        };
        place.get_or_insert(0)
    }

    pub fn observed(self, from: &str, mut notes: Vec<String>) -> Observed {
        if self.warnings > 0 {
            notes.push(format!("{from}: {}, not counted: only errors are", counted(self.warnings, "warning")));
        }
        let result = RunResult {
            lint_errors: self.lint,
            type_errors: self.types,
            schema_errors: self.schema,
            boundary_errors: self.boundary,
            ..RunResult::default()
        };
        Observed::new(result, from, notes)
    }
}

/// <https://eslint.org/docs/latest/use/formatters/#json>: one object a file. What is suppressed stands in a list of its own.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EslintFile {
    #[serde(rename = "filePath")]
    _file_path: String,
    messages: Vec<EslintMessage>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EslintMessage {
    rule_id: Option<String>,
    severity: u8,
    #[serde(default)]
    fatal: bool,
}

/// As the formatter `json` writes it, and `json-with-metadata`.
#[derive(Deserialize)]
#[serde(untagged)]
enum EslintReport {
    Files(Vec<EslintFile>),
    WithMetadata { results: Vec<EslintFile> },
}

pub fn read_eslint(mut reader: impl BufRead, name: &str, from: &str) -> Result<Observed> {
    let first = reader.fill_buf().map_err(Error::io("read", name))?.iter().copied().find(|b| !b.is_ascii_whitespace());
    let files = match first {
        None => {
            let next = "`eslint -f json -o FILE` writes the report; where it wrote none, it failed before";
            return Err(Error::file(Path::new(name), "is empty, and ESLint's JSON never is", next));
        }
        // Straight, where it is the usual form: serde holds what is untagged as a whole.
        Some(b'[') => document::json(reader, Kind::EslintJson.what(), name)?,
        Some(_) => match document::json(reader, Kind::EslintJson.what(), name)? {
            EslintReport::Files(files) | EslintReport::WithMetadata { results: files } => files,
        },
    };
    Ok(eslint(&files, from))
}

fn eslint(files: &[EslintFile], from: &str) -> Observed {
    let (mut errors, mut unparsed) = (Errors::default(), 0);
    errors.looked_at(Class::Lint);
    for message in files.iter().flat_map(|file| &file.messages) {
        let class = message.rule_id.as_deref().map_or(Class::Lint, class_of);
        let count = errors.looked_at(class);
        match message.severity {
            2.. => *count += 1,
            _ => errors.warnings += 1,
        }
        unparsed += u64::from(message.fatal);
    }
    let mut notes = Vec::new();
    if unparsed > 0 {
        notes.push(format!("{from}: {} could not be parsed, each counted as a lint error", counted(unparsed, "file")));
    }
    errors.observed(from, notes)
}

/// ESLint's JSON among other lines: it is one line.
#[derive(Default)]
pub struct EslintLine {
    files: Option<Vec<EslintFile>>,
}

impl Listener for EslintLine {
    fn kind(&self) -> Kind {
        Kind::EslintJson
    }

    fn line(&mut self, line: &str) {
        if line.starts_with("[{\"filePath\":")
            && let Ok(mut files) = serde_json::from_str(line)
        {
            self.files.get_or_insert_default().append(&mut files);
        }
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        Some(eslint(&self.files.take()?, from))
    }
}

/// `✖ 7 problems (5 errors, 2 warnings)`, behind lines that end with the rule: ESLint's formatter "stylish".
#[derive(Default)]
pub struct EslintText {
    boundary: u64,
    schema: u64,
    seen_boundary: bool,
    seen_schema: bool,
    summaries: Option<(u64, u64)>,
}

impl Listener for EslintText {
    fn kind(&self) -> Kind {
        Kind::EslintText
    }

    fn line(&mut self, line: &str) {
        let text = line.trim();
        if let Some(rest) = text.strip_prefix('✖').or_else(|| text.strip_prefix("x ")) {
            let Some((problems, inside)) = rest.trim().split_once(" (") else { return };
            let is_summary = counts(problems).any(|(_, word)| matches!(word, "problem" | "problems"));
            if let (true, Some(inside)) = (is_summary, inside.strip_suffix(')')) {
                let sum = self.summaries.get_or_insert((0, 0));
                sum.0 += count_of(inside, &["error", "errors"]);
                sum.1 += count_of(inside, &["warning", "warnings"]);
            }
            return;
        }
        // "  1:20  error  Unexpected path ...  import/no-restricted-paths"
        let mut words = text.split_whitespace();
        let is_place = words.next().is_some_and(|place| {
            place
                .split_once(':')
                .is_some_and(|(l, c)| [l, c].iter().all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())))
        });
        let (true, Some(severity), Some(rule)) = (is_place, words.next(), words.last()) else { return };
        let error = u64::from(severity == "error");
        match class_of(rule) {
            Class::Boundary => {
                self.boundary += error;
                self.seen_boundary = true;
            }
            Class::Schema => {
                self.schema += error;
                self.seen_schema = true;
            }
            _ => (),
        }
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        let (all, warnings) = self.summaries?;
        let errors = Errors {
            lint: Some(all.saturating_sub(self.boundary + self.schema)),
            types: None,
            schema: self.seen_schema.then_some(self.schema),
            boundary: self.seen_boundary.then_some(self.boundary),
            warnings,
        };
        Some(errors.observed(from, Vec::new()))
    }
}

/// `Found 2 errors.`, `Found 3 errors (1 fixed, 2 remaining).` or `All checks passed!`; Biome ends like this, too.
#[derive(Default)]
pub struct Ruff {
    errors: Option<u64>,
}

impl Listener for Ruff {
    fn kind(&self) -> Kind {
        Kind::Ruff
    }

    fn line(&mut self, line: &str) {
        let found = match line {
            "All checks passed!" => Some(0),
            _ => {
                line.strip_prefix("Found ").and_then(|rest| rest.strip_suffix('.')).and_then(|rest| match rest.split_once(" (") {
                    None => counts(rest).find(|(_, word)| matches!(*word, "error" | "errors")).map(|(n, _)| n),
                    Some((_, inside)) => {
                        counts(inside.trim_end_matches(')')).find(|(_, word)| *word == "remaining").map(|(n, _)| n)
                    }
                })
            }
        };
        if let Some(found) = found {
            *self.errors.get_or_insert(0) += found;
        }
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        Some(Errors { lint: Some(self.errors?), ..Errors::default() }.observed(from, Vec::new()))
    }
}

/// `x 1 dependency violations (1 errors, 0 warnings). ...`, or `✔ no dependency violations found (...)`.
#[derive(Default)]
pub struct DependencyCruiser {
    sums: Option<(u64, u64)>,
}

impl Listener for DependencyCruiser {
    fn kind(&self) -> Kind {
        Kind::DependencyCruiser
    }

    fn line(&mut self, line: &str) {
        let Some((before, rest)) = line.split_once("dependency violations") else { return };
        let (errors, warnings) = match rest.trim_start().strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((inside, _)) => (count_of(inside, &["errors", "error"]), count_of(inside, &["warnings", "warning"])),
            None if before.ends_with(" no ") && rest.starts_with(" found") => (0, 0),
            None => return,
        };
        let sum = self.sums.get_or_insert((0, 0));
        *sum = (sum.0 + errors, sum.1 + warnings);
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        let (boundary, warnings) = self.sums?;
        Some(Errors { boundary: Some(boundary), warnings, ..Errors::default() }.observed(from, Vec::new()))
    }
}
