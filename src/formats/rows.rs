//! Rows of data: alpaca, prompt/completion, question/answer, messages, sharegpt, and preferences in the same shapes; JSON
//! arrays or JSON lines.

#[cfg(test)]
mod preference_tests;
mod preferences;
mod shapes;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::Value;

use crate::domain::Example;
use crate::error::{Error, Result};

/// What a training wants of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// An example of good work.
    GoodWork,
    /// Two answers to one prompt, the better one first.
    Pairs,
    /// An answer that is marked good or bad; a pair is one of each.
    Labelled,
    /// What is asked, in a row of any kind; of a pair the better answer stands behind it.
    Prompts,
}

/// What a file held.
#[derive(Debug)]
pub struct Rows {
    pub examples: Vec<Example>,
    /// Whether each example is good work; of a pair the chosen answer comes first, then the rejected one.
    pub good: Vec<bool>,
    /// Pairs that became a good and a bad example.
    pub unpaired: usize,
    /// Conversations that ended on a user's turn: that turn was dropped.
    pub trailing_user_turns: usize,
    /// Rows that their file marks as bad work (`"label": false`, as in data for KTO): left out.
    pub unwanted_rows: usize,
}

/// Reads a whole file of good work; a bad row is an error that names the file, the line and what is wrong with it.
pub fn read(path: &Path) -> Result<Rows> {
    read_as(path, Wanted::GoodWork)
}

/// Reads a whole file as a training wants it; a row of another kind is an error that says which training it is for.
pub fn read_as(path: &Path, wanted: Wanted) -> Result<Rows> {
    let bytes = super::map_file(path)?;
    let mut rows = Rows::new();
    let known = known(wanted);
    let mut read = 0;
    for row in Scanner::new(&bytes) {
        let Scanned { number, line, value } = row.map_err(|(line, problem)| no_row(path, line, &problem))?;
        read = number;
        rows.take(number, value, wanted).map_err(|problem| {
            let hint = if problem.hint == shapes::KNOWN { known.to_owned() } else { problem.hint };
            Error::file(path, format!("line {line} (row {number}): {}", problem.message), hint)
        })?;
    }
    if rows.examples.is_empty() {
        let message =
            if read == 0 { "holds no rows".to_owned() } else { format!("all of its {read} rows are marked \"label\": false") };
        let hint = if read == 0 { known } else { "learn from good and bad rows together with --method kto, or add good ones" };
        return Err(Error::file(path, message, hint));
    }
    Ok(rows)
}

/// A row that does not read.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Unreadable {
    /// Where it begins, or where it breaks off; from 1.
    pub line: usize,
    /// From 1.
    pub row: usize,
    pub reason: String,
}

/// Reads what reads of a file, and tells of every row that does not. Behind broken JSON it goes on at the next line that begins a
/// row; in an array there is none.
///
/// # Errors
/// A file that cannot be opened.
pub fn read_what_reads(path: &Path, wanted: Wanted) -> Result<(Rows, Vec<Unreadable>)> {
    let bytes = super::map_file(path)?;
    let (mut rows, mut unreadable) = (Rows::new(), Vec::new());
    let mut scanner = Scanner::new(&bytes);
    loop {
        match scanner.next() {
            None => return Ok((rows, unreadable)),
            Some(Ok(Scanned { number: row, line, value })) => {
                if let Err(problem) = rows.take(row, value, wanted) {
                    unreadable.push(Unreadable { line, row, reason: problem.message });
                }
            }
            Some(Err((line, reason))) => {
                unreadable.push(Unreadable { line, row: scanner.number + 1, reason });
                scanner.go_on();
            }
        }
    }
}

/// What a file is for, as its first row says that reads as JSON; good work where none does.
///
/// # Errors
/// A file that cannot be opened.
pub fn kind(path: &Path) -> Result<Wanted> {
    let bytes = super::map_file(path)?;
    let first = Scanner::new(&bytes).next();
    Ok(match first.and_then(Result::ok).map(|scanned| scanned.value) {
        Some(Value::Object(row)) if preferences::is_pair(&row) => Wanted::Pairs,
        Some(Value::Object(row)) if preferences::LABELS.iter().any(|key| row.contains_key(*key)) => Wanted::Labelled,
        _ => Wanted::GoodWork,
    })
}

fn known(wanted: Wanted) -> &'static str {
    if wanted == Wanted::GoodWork { shapes::KNOWN } else { preferences::KNOWN }
}

impl Rows {
    fn new() -> Self {
        Self { examples: Vec::new(), good: Vec::new(), unpaired: 0, trailing_user_turns: 0, unwanted_rows: 0 }
    }

    /// Takes a row as it is wanted.
    fn take(&mut self, number: usize, value: Value, wanted: Wanted) -> Result<(), shapes::Problem> {
        let answers = match wanted {
            Wanted::GoodWork => shapes::example(value).map(|shaped| Vec::from_iter(shaped.map(|shaped| (shaped, true)))),
            Wanted::Pairs => preferences::pair(value).map(Vec::from),
            Wanted::Labelled => preferences::labelled(value),
            Wanted::Prompts => preferences::asked(value),
        }?;
        match answers.len() {
            0 => self.unwanted_rows += 1,
            2 if wanted == Wanted::Labelled => self.unpaired += 1,
            _ => {}
        }
        for (mut shaped, good) in answers {
            shaped.example.row = number;
            self.trailing_user_turns += usize::from(shaped.dropped_user_turn);
            self.examples.push(shaped.example);
            self.good.push(good);
        }
        Ok(())
    }
}

/// Every row as it stands in the file; row N is the N-1st.
pub fn values(path: &Path) -> Result<Vec<Value>> {
    let bytes = super::map_file(path)?;
    Scanner::new(&bytes)
        .map(|row| row.map(|scanned| scanned.value).map_err(|(line, problem)| no_row(path, line, &problem)))
        .collect()
}

/// A row, or why it is none.
pub type Read = std::result::Result<Value, String>;

/// Goes through the rows of a file with each row's line; the whole is never in memory. Behind a line that is no JSON it goes on
/// with the next one; an array that is damaged ends there.
pub fn each(path: &Path, visit: &mut dyn FnMut(usize, Read) -> Result<()>) -> Result<()> {
    let bytes = super::map_file(path)?;
    let mut scanner = Scanner::new(&bytes);
    loop {
        match scanner.next() {
            None => return Ok(()),
            Some(Ok(Scanned { line, value, .. })) => visit(line, Ok(value))?,
            Some(Err((line, problem))) => {
                visit(line, Err(problem))?;
                if scanner.in_array {
                    return Ok(());
                }
                scanner.skip_line();
            }
        }
    }
}

/// The conversation of one row of good work; `None` where the row says that it is bad work. The error is a sentence.
pub fn example_of(row: Value) -> std::result::Result<Option<Example>, String> {
    shapes::example(row).map(|shaped| shaped.map(|shaped| shaped.example)).map_err(|problem| problem.message)
}

fn no_row(path: &Path, line: usize, problem: &str) -> Error {
    Error::file(path, format!("line {line}: {problem}"), "expected JSON lines, or one JSON array of objects")
}

/// One JSON value of the file.
struct Scanned {
    /// From 1.
    number: usize,
    /// Where it begins, from 1.
    line: usize,
    value: Value,
}

/// Goes through a file value by value, and counts lines; the whole is never in memory as one JSON value.
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Newlines before `at`.
    line: usize,
    number: usize,
    /// The file is one array: values are separated by commas and a bracket ends it.
    in_array: bool,
    done: bool,
}

/// A line and what is wrong there.
type Problem = (usize, String);

impl<'a> Scanner<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        // Windows editors put a byte order mark in front, which JSON does not know.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut scanner = Self { bytes, at: 0, line: 1, number: 0, in_array: false, done: false };
        scanner.skip_space();
        if scanner.peek() == Some(b'[') {
            scanner.in_array = true;
            scanner.at += 1;
        }
        scanner
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn advance(&mut self, n: usize) {
        self.line += self.bytes[self.at..self.at + n].iter().filter(|b| **b == b'\n').count();
        self.at += n;
    }

    /// Goes on behind the end of this line.
    fn skip_line(&mut self) {
        let rest = self.bytes[self.at..].iter().take_while(|b| **b != b'\n').count();
        self.advance(rest);
        self.done = false;
    }

    fn skip_space(&mut self) {
        let space = self.bytes[self.at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        self.advance(space);
    }

    fn next_value(&mut self) -> Result<Option<Scanned>, Problem> {
        self.skip_space();
        if self.in_array {
            match self.peek() {
                None => return Err((self.line, "the file ends inside of its array: it is cut".to_owned())),
                Some(b']') => return self.end_of_array(),
                Some(b',') if self.number > 0 => {
                    self.advance(1);
                    self.skip_space();
                }
                Some(_) if self.number > 0 => {
                    return Err((self.line, format!("expected a comma or ] after row {}", self.number)));
                }
                Some(_) => {}
            }
        } else if self.peek().is_none() {
            return Ok(None);
        }
        if self.peek() != Some(b'{') {
            let rest = &self.bytes[self.at..];
            let shown = String::from_utf8_lossy(&rest[..rest.len().min(40)]).lines().next().unwrap_or_default().to_owned();
            return Err((self.line, format!("expected a JSON object that starts with {{, found {shown:?}")));
        }
        let line = self.line;
        let mut stream = serde_json::Deserializer::from_slice(&self.bytes[self.at..]).into_iter::<Value>();
        let parsed = stream.next().transpose();
        let consumed = stream.byte_offset();
        match parsed {
            Ok(Some(value)) => {
                self.advance(consumed);
                self.number += 1;
                Ok(Some(Scanned { number: self.number, line, value }))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                // serde counts from the start of this value.
                let text = error.to_string();
                let text = text.split(" at line ").next().unwrap_or_default();
                let problem = format!("invalid JSON: {text} (column {}, in the row that starts at line {line})", error.column());
                Err((line + error.line() - 1, problem))
            }
        }
    }

    /// Behind a value that does not parse: counts it, and stands at the next line that begins an object.
    fn go_on(&mut self) {
        self.number += 1;
        if self.in_array {
            return;
        }
        let rest = &self.bytes[self.at..];
        let starts = (1..rest.len()).find(|&i| rest[i] == b'{' && rest[i - 1] == b'\n');
        self.advance(starts.unwrap_or(rest.len()));
        self.done = false;
    }

    fn end_of_array(&mut self) -> Result<Option<Scanned>, Problem> {
        self.advance(1);
        self.skip_space();
        match self.peek() {
            None => Ok(None),
            Some(_) => Err((self.line, "text after the end of the array".to_owned())),
        }
    }
}

impl Iterator for Scanner<'_> {
    type Item = Result<Scanned, Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.next_value().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}
