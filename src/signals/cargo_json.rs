//! `cargo build|check|clippy|test --message-format=json`: a JSON object a line
//! (<https://doc.rust-lang.org/cargo/reference/external-tools.html#json-messages>), each message of the compiler as rustc writes it
//! (<https://doc.rust-lang.org/rustc/json.html>). The last object, `build-finished`, says whether it compiled.

use serde::Deserialize;

use super::listen::Listener;
use super::rustc::{Found, is_error_code, is_type_error};
use super::{Kind, Observed};

#[derive(Deserialize)]
struct Message {
    reason: String,
    success: Option<bool>,
    message: Option<Diagnostic>,
}

#[derive(Deserialize)]
struct Diagnostic {
    message: String,
    code: Option<Code>,
    level: String,
    spans: Vec<Span>,
}

#[derive(Deserialize)]
struct Code {
    code: String,
}

#[derive(Deserialize, Hash)]
struct Span {
    file_name: String,
    line_start: u64,
    column_start: u64,
    is_primary: bool,
}

#[derive(Default)]
pub struct CargoJson {
    found: Found,
    coded: bool,
    lint_seen: bool,
    compiled: Option<bool>,
    /// Messages came after which the build has not finished.
    open: bool,
    broken: bool,
}

impl CargoJson {
    fn diagnostic(&mut self, diagnostic: &Diagnostic) {
        let Diagnostic { message, code, level, spans } = diagnostic;
        let place = spans.iter().find(|span| span.is_primary);
        let code = code.as_ref().map(|code| code.code.as_str());
        if !self.found.is_new((level, code, message, place)) {
            return;
        }
        match (level.as_str(), code) {
            ("error", Some(code)) if is_type_error(code) => (self.coded, self.found.types) = (true, self.found.types + 1),
            ("error", Some(code)) if is_error_code(code) => {
                self.coded = true;
                self.found.other(code);
            }
            ("error", Some(_)) => (self.lint_seen, self.found.lints) = (true, self.found.lints + 1),
            // "aborting due to 2 previous errors" has no place.
            ("error", None) if place.is_some() => self.found.other("no code"),
            ("warning", Some(_)) => (self.lint_seen, self.found.warnings) = (true, self.found.warnings + 1),
            ("warning", None) if place.is_some() => self.found.warnings += 1,
            _ if level.contains("internal compiler error") => self.found.other("a fault of the compiler"),
            _ => (),
        }
    }
}

impl Listener for CargoJson {
    fn kind(&self) -> Kind {
        Kind::CargoJson
    }

    fn line(&mut self, line: &str) {
        if !line.starts_with('{') || !line.contains("\"reason\"") {
            return;
        }
        let Ok(message) = serde_json::from_str::<Message>(line) else {
            self.broken |= line.starts_with("{\"reason\":\"compiler-") || line.starts_with("{\"reason\":\"build-");
            return;
        };
        match (message.reason.as_str(), message.message, message.success) {
            ("compiler-message", Some(diagnostic), _) => {
                self.open = true;
                self.diagnostic(&diagnostic);
            }
            ("compiler-artifact" | "build-script-executed", ..) => self.open = true,
            ("build-finished", _, Some(success)) => {
                self.open = false;
                self.compiled = Some(self.compiled.unwrap_or(true) && success);
            }
            _ => (),
        }
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        if self.compiled.is_none() && !self.open && !self.broken {
            return None;
        }
        let built = self.compiled == Some(true);
        // The type check comes behind the syntax, lints behind the type check: where the one fails, the next does not look.
        let (lints, types) = (built || self.lint_seen, built || self.coded || self.lint_seen);
        Some(self.found.observed(self.compiled, types, lints, from))
    }

    fn cut(&self) -> Option<&'static str> {
        match (self.broken, self.open) {
            (true, _) => Some("has a message of cargo that is no JSON: it was cut or changed"),
            (_, true) => Some("ends before cargo's last message (build-finished): it was cut"),
            _ => None,
        }
    }
}
