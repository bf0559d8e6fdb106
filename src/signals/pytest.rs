//! What pytest prints (<https://docs.pytest.org/en/stable/how-to/output.html>). What counts is the line that ends a session:
//! `==== 3 failed, 5 passed, 1 skipped, 2 errors in 0.12s ====`, with `-q` without its rule.
//!
//! As in pytest's JUnit XML: skipped and expected failures (xfailed) are not in the total, an unexpected pass (xpassed, not strict)
//! passed, an error in setup or of a file that cannot be loaded is a test that failed. A test whose teardown fails is told twice,
//! as passed and as an error; it counts once, as failed.

use super::junit::tests;
use super::listen::Listener;
use super::text::counts;
use super::{Kind, Observed, counted};

#[derive(Default)]
pub struct Pytest {
    /// A session began and has not ended.
    open: bool,
    seen: bool,
    /// It prints what failed tests printed, until its list of failures; so many sessions have begun in there.
    in_sections: bool,
    nested: u64,
    /// The last line of a session that was seen in there: of the session itself, where it has no list of failures (`-rN`).
    candidate: Option<Sums>,
    /// Tests that the session is to run, where it tells (`-q` does not).
    collected: Option<u64>,
    /// Results that `-q` showed by a letter each.
    letters: u64,
    /// Tests whose teardown failed, and which of them failed themselves.
    torn: Vec<String>,
    torn_failed: u64,
    sums: Sums,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// The parts that show what tests printed.
const SECTIONS: [&str; 5] = ["FAILURES", "ERRORS", "PASSES", "XPASSES", "XFAILURES"];

impl Pytest {
    fn title(&mut self, title: &str) {
        match title {
            "test session starts" if self.in_sections => self.nested += 1,
            "test session starts" => (self.open, self.seen, self.collected) = (true, true, None),
            _ if self.nested == 0 && SECTIONS.contains(&title) => self.in_sections = true,
            "short test summary info" if self.nested == 0 => (self.in_sections, self.candidate) = (false, None),
            _ => {
                if let Some(sums) = summary(title) {
                    self.end(sums);
                }
            }
        }
    }

    fn end(&mut self, sums: Sums) {
        match (self.nested, self.in_sections) {
            (0, false) => self.count(sums),
            (0, true) => self.candidate = Some(sums),
            _ => self.nested -= 1,
        }
    }

    /// It may be a line that a test printed, in a text that was cut behind it: then it has other sums than the session.
    fn is_of_session(&self, sums: Sums) -> bool {
        let all = sums.passed + sums.failed + sums.skipped;
        match self.collected {
            Some(collected) => all == collected + self.torn.len() as u64,
            None => self.letters == 0 || all == self.letters,
        }
    }

    fn count(&mut self, sums: Sums) {
        (self.open, self.seen, self.letters) = (false, true, 0);
        let torn = self.torn.len() as u64;
        let torn_passed = torn - self.torn_failed.min(torn);
        self.sums.passed += sums.passed.saturating_sub(torn_passed);
        self.sums.failed += sums.failed - self.torn_failed.min(sums.failed);
        self.sums.skipped += sums.skipped;
        self.torn.clear();
        self.torn_failed = 0;
    }
}

/// `3 failed, 5 passed in 0.12s`, whole.
fn summary(text: &str) -> Option<Sums> {
    let (told, time) = text.rsplit_once(" in ")?;
    let seconds = time.split_whitespace().next()?.strip_suffix('s')?;
    if seconds.parse::<f64>().is_err() {
        return None;
    }
    if told == "no tests ran" {
        return Some(Sums::default());
    }
    let mut sums = Sums::default();
    for piece in told.split(", ") {
        let (n, word) = counts(piece).next()?;
        match word {
            "passed" | "xpassed" => sums.passed += n,
            "failed" | "error" | "errors" => sums.failed += n,
            "skipped" | "xfailed" => sums.skipped += n,
            // deselected, warnings, rerun, subtests passed, and what plugins add
            _ if word.chars().all(|c| c.is_ascii_alphabetic() || c == ' ' || c == '-') => (),
            _ => return None,
        }
    }
    Some(sums)
}

/// `..FE.EsxX   [100%]`, which is all that `-q` shows of the results.
fn letters(line: &str) -> u64 {
    let shown = line.split_once(" [").filter(|(_, percent)| percent.ends_with("%]")).map_or(line, |(shown, _)| shown).trim_end();
    if shown.bytes().all(|b| b".FEsxX".contains(&b)) { shown.len() as u64 } else { 0 }
}

/// The text between two rules of a sign.
fn between(line: &str, sign: char) -> Option<&str> {
    let inner = line.strip_prefix(sign)?.trim_start_matches(sign).strip_suffix(sign)?.trim_end_matches(sign);
    let inner = inner.strip_prefix(' ')?.strip_suffix(' ')?;
    (!inner.is_empty()).then_some(inner)
}

impl Listener for Pytest {
    fn kind(&self) -> Kind {
        Kind::PytestText
    }

    fn line(&mut self, line: &str) {
        if let Some(title) = between(line, '=') {
            self.title(title);
        } else if let Some(title) = between(line, '_').filter(|_| self.in_sections && self.nested == 0) {
            if let Some(test) = title.strip_prefix("ERROR at teardown of ") {
                self.torn.push(test.to_owned());
            } else if self.torn.iter().any(|torn| torn == title) {
                self.torn_failed += 1;
            }
        } else if let Some(rest) = line.strip_prefix("collected ").filter(|_| self.nested == 0 && !self.in_sections) {
            // "collected 8 items / 2 deselected / 6 selected"
            let selected =
                rest.split(" / ").filter_map(|piece| counts(piece).next()).filter(|(_, word)| *word != "skipped").last();
            self.collected = selected.filter(|(_, word)| ["item", "items", "selected"].contains(word)).map(|(n, _)| n);
        } else if (line.starts_with(|c: char| c.is_ascii_digit()) || line.starts_with("no tests ran in "))
            && let Some(sums) = summary(line)
        {
            self.end(sums);
        } else if !self.in_sections {
            self.letters += letters(line);
        }
    }

    fn quoting(&self) -> bool {
        self.in_sections && self.candidate.is_none()
    }

    fn done(&mut self, from: &str) -> Option<Observed> {
        if let Some(sums) = self.candidate.take().filter(|sums| self.is_of_session(*sums)) {
            self.count(sums);
        }
        self.open |= self.in_sections && self.letters > 0;
        if !self.seen {
            return None;
        }
        let skipped = (self.sums.skipped > 0)
            .then(|| format!("{from}: {} skipped or expected to fail, not in the total", counted(self.sums.skipped, "test")));
        Some(tests(self.sums.passed, self.sums.failed, from, skipped.into_iter().collect()))
    }

    fn cut(&self) -> Option<&'static str> {
        self.open.then_some("ends before the last line of pytest's session: it was cut, or pytest itself crashed")
    }
}
