//! Type checkers: tsc, mypy, pyright.

use std::io::BufRead;

use serde::Deserialize;

use super::lint::Errors;
use super::listen::Listener;
use super::text::{count_of, counts};
use super::{Kind, Observed, counted, document};
use crate::domain::RunResult;
use crate::error::Result;

/// `src/a.ts(2,3): error TS2322: ...`, with `--pretty` `src/a.ts:2:3 - error TS2322: ...`, without a place
/// `error TS18003: ...`. Numbers stand in TypeScript's `diagnosticMessages.json`.
///
/// It compiled where no error was: tsc writes files in spite of type errors, unless told not to, but ends as failed. TS1xxx and
/// TS17xxx are of syntax, errors without a place of the settings; all others are type errors.
#[derive(Default)]
pub struct Tsc {
    types: u64,
    syntax: u64,
    settings: u64,
}

/// TS1xxx that the checker gives, not the parser: types that are not fit (`satisfies`, `await`, decorators), imports of a type or
/// of a default that is not there.
const CHECKED: [u32; 18] =
    [1192, 1238, 1239, 1240, 1241, 1259, 1270, 1271, 1320, 1321, 1322, 1345, 1360, 1361, 1362, 1371, 1484, 1485];

impl Listener for Tsc {
    fn kind(&self) -> Kind {
        Kind::Tsc
    }

    fn line(&mut self, line: &str) {
        let Some((before, rest)) = line.split_once("error TS") else { return };
        let Some(code) = rest.split_once(": ").and_then(|(code, _)| code.parse::<u32>().ok()) else { return };
        let has_place = before.ends_with("): ") || before.ends_with(" - ");
        match code {
            _ if before.is_empty() => self.settings += 1,
            _ if !has_place => (),
            1000..2000 if !CHECKED.contains(&code) => self.syntax += 1,
            17000..18000 => self.syntax += 1,
            _ => self.types += 1,
        }
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        let Self { types, syntax, settings } = *self;
        if types + syntax + settings == 0 {
            return None;
        }
        let mut notes = Vec::new();
        if syntax > 0 {
            notes.push(format!("{from}: {} of syntax, counted as not compiled alone", counted(syntax, "error")));
        }
        if settings > 0 {
            notes.push(format!("{from}: {} of its settings, counted as not compiled alone", counted(settings, "error")));
        }
        // Behind errors of syntax tsc does not check types.
        let checked = (types > 0).then_some(types);
        Some(Observed::new(RunResult { compile_pass: Some(false), type_errors: checked, ..RunResult::default() }, from, notes))
    }
}

/// `Found 3 errors in 1 file (checked 1 source file)`, or `Success: no issues found in 1 source file`. An error of syntax says that
/// the file cannot be compiled.
#[derive(Default)]
pub struct Mypy {
    errors: Option<u64>,
    syntax: u64,
    prevented: bool,
}

impl Listener for Mypy {
    fn kind(&self) -> Kind {
        Kind::Mypy
    }

    fn line(&mut self, line: &str) {
        if line.starts_with("Success: no issues found in ") {
            self.errors.get_or_insert(0);
        } else if line.contains(": error: ") && line.ends_with("  [syntax]") {
            self.syntax += 1;
        } else if let Some(rest) = line.strip_prefix("Found ") {
            let prevented = rest.ends_with("(errors prevented further checking)");
            let is_summary = prevented || rest.contains(" (checked ");
            if let (true, Some((n, word))) = (is_summary, counts(rest).next())
                && (word.starts_with("errors in ") || word.starts_with("error in "))
            {
                *self.errors.get_or_insert(0) += n;
                self.prevented |= prevented;
            }
        }
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        let errors = self.errors?.saturating_sub(self.syntax);
        let mut notes = Vec::new();
        if self.syntax > 0 {
            notes.push(format!("{from}: {} of syntax, counted as not compiled alone", counted(self.syntax, "error")));
        }
        let result = RunResult {
            compile_pass: (self.syntax > 0).then_some(false),
            type_errors: (errors > 0 || !self.prevented).then_some(errors),
            ..RunResult::default()
        };
        Some(Observed::new(result, from, notes))
    }
}

/// `3 errors, 0 warnings, 0 informations`
#[derive(Default)]
pub struct PyrightText {
    sums: Option<(u64, u64)>,
}

impl Listener for PyrightText {
    fn kind(&self) -> Kind {
        Kind::PyrightText
    }

    fn line(&mut self, line: &str) {
        let words: Vec<&str> = counts(line).map(|(_, word)| word).collect();
        if let ["error" | "errors", "warning" | "warnings", "information" | "informations" | "note" | "notes"] = words[..] {
            let sums = self.sums.get_or_insert((0, 0));
            sums.0 += count_of(line, &["error", "errors"]);
            sums.1 += count_of(line, &["warning", "warnings"]);
        }
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        let (errors, warnings) = self.sums?;
        Some(Errors { types: Some(errors), warnings, ..Errors::default() }.observed(from, Vec::new()))
    }
}

/// `pyright --outputjson`.
#[derive(Deserialize)]
struct PyrightReport {
    summary: PyrightSummary,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PyrightSummary {
    error_count: u64,
    warning_count: u64,
}

pub fn read_pyright(reader: impl BufRead, name: &str, from: &str) -> Result<Observed> {
    let PyrightReport { summary } = document::json(reader, Kind::PyrightJson.what(), name)?;
    let errors = Errors { types: Some(summary.error_count), warnings: summary.warning_count, ..Errors::default() };
    Ok(errors.observed(from, Vec::new()))
}
