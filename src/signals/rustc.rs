//! rustc's errors, and what cargo, rustc and clippy print for people.
//!
//! The text cannot tell a lint from another error without a code in every case; `--message-format=json` can.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::listen::Listener;
use super::text::count_of;
use super::{Kind, Observed, counted};
use crate::domain::RunResult;

/// rustc has no class of type errors. These are the codes (<https://doc.rust-lang.org/error_codes/>) that its type check gives:
/// mismatches, bounds, methods and fields of a type, numbers of arguments, inference, casts, what an impl owes its trait.
/// Names that are not found, borrows and lifetimes, privacy and syntax are not among them: they only keep it from compiling.
const TYPE_ERRORS: [u16; 64] = [
    23, 26, 27, 29, 33, 38, 40, 46, 49, 50, 53, 54, 57, 60, 61, 63, 69, 107, 191, 220, 221, 223, 229, 271, 275, 276, 277, 282,
    283, 284, 308, 317, 326, 368, 369, 527, 528, 529, 559, 560, 571, 593, 599, 600, 604, 605, 606, 607, 608, 609, 610, 614, 615,
    617, 618, 620, 631, 689, 698, 744, 746, 769, 782, 790,
];

/// `E0308`.
pub fn is_error_code(code: &str) -> bool {
    number(code).is_some()
}

pub fn is_type_error(code: &str) -> bool {
    number(code).is_some_and(|number| TYPE_ERRORS.contains(&number))
}

fn number(code: &str) -> Option<u16> {
    let digits = code.strip_prefix('E')?;
    (digits.len() == 4).then(|| digits.parse().ok())?
}

/// What was found, each once: cargo checks a library twice (by itself and with its tests) and hears the same of both.
#[derive(Default)]
pub struct Found {
    seen: HashSet<u64>,
    pub types: u64,
    pub lints: u64,
    pub warnings: u64,
    /// Errors that are neither: their codes, or "no code".
    pub others: Vec<String>,
    pub other_errors: u64,
}

/// Codes that a note names.
const MAX_NAMED: usize = 5;

impl Found {
    /// `true` where it was not heard before.
    pub fn is_new(&mut self, what: impl Hash) -> bool {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        self.seen.insert(hasher.finish())
    }

    pub fn other(&mut self, code: &str) {
        self.other_errors += 1;
        if self.others.len() < MAX_NAMED && !self.others.iter().any(|known| known == code) {
            self.others.push(code.to_owned());
        }
    }

    /// `types`, `lints`: these were looked at.
    pub fn observed(&self, compiled: Option<bool>, types: bool, lints: bool, from: &str) -> Observed {
        let mut notes = Vec::new();
        if self.other_errors > 0 {
            let named = self.others.join(", ");
            notes.push(format!("{from}: {} neither of types nor a lint ({named})", counted(self.other_errors, "error")));
        }
        if self.warnings > 0 {
            notes.push(format!(
                "{from}: {}, not counted: only errors are (clippy: `-- -D warnings`)",
                counted(self.warnings, "warning")
            ));
        }
        let result = RunResult {
            compile_pass: compiled,
            type_errors: types.then_some(self.types),
            lint_errors: lints.then_some(self.lints),
            ..RunResult::default()
        };
        Observed::new(result, from, notes)
    }
}

/// The text of cargo and rustc.
#[derive(Default)]
pub struct RustcText {
    found: Found,
    open: Option<Diagnostic>,
    coded: bool,
    /// Errors without a code that stand at a place in a file: lints, or syntax.
    uncoded: u64,
    lint_seen: bool,
    lint_denied: bool,
    finished: bool,
    failed: bool,
}

#[derive(Default)]
struct Diagnostic {
    is_error: bool,
    code: Option<String>,
    title: String,
    place: Option<String>,
    is_lint: bool,
}

/// What only the explanation of a lint says.
const OF_LINTS: [&str; 6] =
    ["rust-lang.github.io/rust-clippy", "note: `-D ", "note: `-F ", "`#[deny(", "`#[warn(", "the lint level is defined here"];

impl RustcText {
    fn close(&mut self) {
        let Some(diagnostic) = self.open.take() else { return };
        let Diagnostic { is_error, code, title, place, is_lint } = diagnostic;
        if place.is_none() || !self.found.is_new((&title, &place)) {
            return;
        }
        self.lint_seen |= is_lint;
        match (is_error, code) {
            (true, Some(code)) => {
                self.coded = true;
                if is_type_error(&code) { self.found.types += 1 } else { self.found.other(&code) }
            }
            (true, None) => {
                self.uncoded += 1;
                self.lint_denied |= is_lint;
            }
            (false, _) => (),
        }
    }
}

impl Listener for RustcText {
    fn kind(&self) -> Kind {
        Kind::CargoTestText
    }

    fn line(&mut self, line: &str) {
        let coded = line.strip_prefix("error[").and_then(|rest| rest.split_once("]: "));
        if let Some((code, title)) = coded.filter(|(code, _)| is_error_code(code)) {
            self.close();
            self.open = Some(Diagnostic {
                is_error: true,
                code: Some(code.to_owned()),
                title: title.to_owned(),
                ..Diagnostic::default()
            });
        } else if let Some(title) = line.strip_prefix("error: ") {
            self.close();
            self.failed |= title.starts_with("could not compile `") || title.starts_with("aborting due to ");
            self.open = Some(Diagnostic { is_error: true, title: title.to_owned(), ..Diagnostic::default() });
        } else if let Some(title) = line.strip_prefix("warning: ") {
            self.close();
            // "`shop` (lib test) generated 3 warnings (2 duplicates)"
            if let Some((_, made)) = title.split_once(" generated ") {
                let (all, rest) = made.split_once(" (").unwrap_or((made, ""));
                let all = count_of(all, &["warning", "warnings"]);
                let twice = count_of(rest.split(')').next().unwrap_or(""), &["duplicate", "duplicates"]);
                self.found.warnings += all.saturating_sub(twice);
            }
            self.open = Some(Diagnostic { title: title.to_owned(), ..Diagnostic::default() });
        } else if line.trim_start().starts_with("Finished ") && line.contains(" target(s) in ") {
            self.close();
            self.finished = true;
        } else if let Some(open) = &mut self.open {
            if let (None, Some(place)) = (&open.place, line.trim_start().strip_prefix("--> ")) {
                open.place = Some(place.to_owned());
            }
            open.is_lint |= OF_LINTS.iter().any(|sign| line.contains(sign));
        }
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        self.close();
        if !self.finished && !self.failed {
            return None;
        }
        // Only the first error of a lint says that it is one, so all without a code are, where one is; where none is, they
        // are of syntax.
        if self.lint_denied {
            self.found.lints = self.uncoded;
        } else {
            (0..self.uncoded).for_each(|_| self.found.other("no code"));
        }
        let (types, lints) = (self.finished || self.coded || self.lint_seen, self.finished || self.lint_seen);
        Some(self.found.observed(Some(!self.failed), types, lints, from))
    }
}
