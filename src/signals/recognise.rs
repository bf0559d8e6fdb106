//! What a file is, by how it begins.

use super::Kind;
use super::text::without_bom;

/// So much of the beginning is looked at.
pub const HEAD_BYTES: u64 = 64 << 10;

/// The format of a document or of lines of JSON; `None` for the text that a command prints, of which only all of its lines tell.
pub fn recognise(head: &[u8]) -> Option<Kind> {
    let head = &head[..head.len().min(HEAD_BYTES as usize)];
    let text = String::from_utf8_lossy(without_bom(head));
    let text = text.trim_start();
    let first_line = text.lines().next().unwrap_or("");
    match text.chars().next()? {
        '<' => is_junit(text).then_some(Kind::Junit),
        '{' if has_key(first_line, "reason") && first_line.contains("\"package_id\"") => Some(Kind::CargoJson),
        '{' if first_line.starts_with("{\"reason\":\"") => Some(Kind::CargoJson),
        '{' if has_key(first_line, "Action") => Some(Kind::GoTest),
        '{' if has_key(first_line, "type") && has_key(first_line, "event") => Some(Kind::CargoTestText),
        '{' if has_key(text, "generalDiagnostics") => Some(Kind::PyrightJson),
        '{' if has_key(text, "$schema") && text.contains("sarif") => Some(Kind::Sarif),
        '{' if has_key(text, "version") && has_key(text, "runs") => Some(Kind::Sarif),
        '{' if has_key(text, "results") && has_key(text, "filePath") => Some(Kind::EslintJson),
        '[' if has_key(text, "filePath") && has_key(text, "messages") => Some(Kind::EslintJson),
        '[' if text.trim_end() == "[]" => Some(Kind::EslintJson),
        _ if ["TN:", "SF:"].iter().any(|key| first_line.starts_with(key)) => Some(Kind::Lcov),
        _ => None,
    }
}

/// A quoted key, whatever the spaces behind it.
fn has_key(text: &str, key: &str) -> bool {
    let quoted = format!("\"{key}\"");
    text.match_indices(&quoted).any(|(at, _)| text[at + quoted.len()..].trim_start().starts_with(':'))
}

/// The first element is a suite.
fn is_junit(text: &str) -> bool {
    let element =
        text.match_indices('<').map(|(at, _)| &text[at + 1..]).find(|rest| rest.starts_with(|c: char| c.is_alphabetic()));
    element.is_some_and(|rest| rest.starts_with("testsuite"))
}
