//! The texts of one pair: which value has which placeholder, and the way from a raw text to a redacted one.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::pattern::{Pattern, failed};
use super::users::Names;
use super::{Found, Hit, Kind, Redacted, Redactor};
use crate::error::Result;

static PLACEHOLDER: Pattern = Pattern::new(r"<(PRIVATE_KEY|JWT|API_KEY|SECRET|CUSTOM|EMAIL|IP|PHONE|USER)_([1-9][0-9]{0,8})>");
/// Each round finds what only shows once something else is gone. More than two are rare; more than these, a fault.
const ROUNDS: usize = 8;

/// Placeholders are stable within a pair: the same value is the same placeholder in all its texts.
///
/// It holds the raw values in memory, and therefore has no `Debug`.
pub struct Pair<'r> {
    redactor: &'r Redactor,
    given: Given,
    /// Placeholders that the raw texts hold already; none of these is given to a new value.
    taken: HashSet<(Kind, usize)>,
    names: Names,
}

/// Which value has which number.
#[derive(Clone, Default)]
struct Given {
    numbers: HashMap<(Kind, String), usize>,
    last: HashMap<Kind, usize>,
}

impl<'r> Pair<'r> {
    pub(super) fn new(redactor: &'r Redactor) -> Self {
        Self { redactor, given: Given::default(), taken: HashSet::new(), names: Names::default() }
    }

    /// Reads a text ahead: user names in its home folders are then found in the texts before it, too, and a placeholder that
    /// stands in it is given to no other value. `redact` learns its own text by itself.
    pub fn learn(&mut self, text: &str) -> Result<()> {
        self.names.learn(text.as_bytes())?;
        for placeholder in placeholders(text)? {
            self.taken.insert((placeholder.kind, placeholder.number));
        }
        Ok(())
    }

    /// Redacts one text. Any failure is an error; the raw text is never the answer.
    pub fn redact(&mut self, text: &str) -> Result<Redacted> {
        self.redact_between("", text, "")
    }

    /// Redacts all texts of a pair: reads them ahead, so that no order of texts changes what is found.
    pub fn redact_all(&mut self, texts: &[&str]) -> Result<Vec<Redacted>> {
        texts.iter().try_for_each(|text| self.learn(text))?;
        texts.iter().map(|text| self.redact(text)).collect()
    }

    /// Redacts `text` as it stands between `before` and `after`, which only tell what it is: a field's name does.
    pub(super) fn redact_between(&mut self, before: &str, text: &str, after: &str) -> Result<Redacted> {
        self.learn(text)?;
        let mut hits = merged(self.look(before, text, after)?, text)?;
        for _ in 0..ROUNDS {
            let given = self.given.clone();
            let (redacted, pieces) = self.replace(text, &hits)?;
            // What comes out is looked at again, so that nothing that the rules know ever leaves.
            let left = if hits.is_empty() { Vec::new() } else { self.look(before, &redacted.text, after)? };
            if left.is_empty() {
                return Ok(redacted);
            }
            self.given = given;
            hits.extend(left.into_iter().map(|hit| Hit { range: in_raw(&pieces, &hit.range), ..hit }));
            hits = merged(hits, text)?;
        }
        Err(failed("each look at it finds more"))
    }

    /// What the rules find in the text that is no placeholder already.
    fn look(&self, before: &str, text: &str, after: &str) -> Result<Vec<Hit>> {
        let there = placeholders(text)?;
        let whole = [before, &masked(text, &there), after].concat();
        let mut hits = self.redactor.find(&whole, &self.names)?;
        hits.retain_mut(|hit| {
            let place = |at: usize| at.saturating_sub(before.len()).min(text.len());
            hit.range = around_placeholders(&there, place(hit.range.start)..place(hit.range.end));
            has_more_than_placeholders(&there, text, &hit.range)
        });
        Ok(hits)
    }

    /// The text with placeholders, and what became of each part of it.
    fn replace(&mut self, text: &str, hits: &[Hit]) -> Result<(Redacted, Vec<Piece>)> {
        let mut redacted = Redacted { text: String::with_capacity(text.len()), found: Vec::with_capacity(hits.len()) };
        let (mut pieces, mut at) = (Vec::with_capacity(hits.len()), 0);
        for hit in hits {
            let Range { start, end } = hit.range;
            let (kept, value) =
                text.get(at..start).zip(text.get(start..end)).ok_or_else(|| failed("a rule found half a letter"))?;
            let placeholder = format!("<{}_{}>", hit.kind.name(), self.number(hit.kind, value));
            redacted.text.push_str(kept);
            let out = redacted.text.len();
            redacted.text.push_str(&placeholder);
            pieces.push(Piece { raw: start..end, out: out..redacted.text.len() });
            redacted.found.push(Found { kind: hit.kind, placeholder, rule: hit.rule.to_owned(), start, end });
            at = end;
        }
        redacted.text.push_str(text.get(at..).ok_or_else(|| failed("a rule found half a letter"))?);
        Ok((redacted, pieces))
    }

    fn number(&mut self, kind: Kind, value: &str) -> usize {
        let Given { numbers, last } = &mut self.given;
        *numbers.entry((kind, same_as(kind, value))).or_insert_with(|| {
            let last = last.entry(kind).or_default();
            *last += 1;
            while self.taken.contains(&(kind, *last)) {
                *last += 1;
            }
            *last
        })
    }
}

/// What two writings of one value share: an address in capitals, a number with other spaces.
fn same_as(kind: Kind, value: &str) -> String {
    match kind {
        Kind::Email | Kind::Ip | Kind::User => value.to_lowercase(),
        Kind::Phone => value.chars().filter(|c| c.is_ascii_digit() || *c == '+').collect(),
        _ => value.to_owned(),
    }
}

/// A part of the raw text, and the placeholder in its place.
struct Piece {
    raw: Range<usize>,
    out: Range<usize>,
}

/// Where a place of the redacted text stood in the raw one; what touches a placeholder takes all of its value.
fn in_raw(pieces: &[Piece], out: &Range<usize>) -> Range<usize> {
    let place = |at: usize, is_end: bool| {
        let next = pieces.partition_point(|piece| if is_end { piece.out.start < at } else { piece.out.start <= at });
        match next.checked_sub(1).map(|i| &pieces[i]) {
            None => at,
            Some(piece) if at < piece.out.end || (is_end && at == piece.out.end) => {
                if is_end {
                    piece.raw.end
                } else {
                    piece.raw.start
                }
            }
            Some(piece) => piece.raw.end + (at - piece.out.end),
        }
    };
    place(out.start, false)..place(out.end, true)
}

/// Sorts, and joins what overlaps: its kind is the first in the order of `Kind`.
fn merged(mut hits: Vec<Hit>, text: &str) -> Result<Vec<Hit>> {
    for hit in &mut hits {
        // Rules read bytes; a letter of several goes as a whole.
        hit.range = text.floor_char_boundary(hit.range.start)..text.ceil_char_boundary(hit.range.end);
        if hit.range.start >= hit.range.end {
            return Err(failed("a rule found nothing at all"));
        }
    }
    hits.sort_by(|a, b| (a.range.start, b.range.end, a.kind, a.rule).cmp(&(b.range.start, a.range.end, b.kind, b.rule)));
    let mut joined: Vec<Hit> = Vec::with_capacity(hits.len());
    for hit in hits {
        match joined.last_mut() {
            Some(last) if hit.range.start < last.range.end => {
                last.range.end = last.range.end.max(hit.range.end);
                if hit.kind < last.kind {
                    (last.kind, last.rule) = (hit.kind, hit.rule);
                }
            }
            _ => joined.push(hit),
        }
    }
    Ok(joined)
}

struct Placeholder {
    range: Range<usize>,
    kind: Kind,
    number: usize,
}

fn placeholders(text: &str) -> Result<Vec<Placeholder>> {
    let mut there = Vec::new();
    for captures in PLACEHOLDER.get()?.captures_iter(text.as_bytes()) {
        let (Some(whole), Some(name), Some(number)) = (captures.get(0), captures.get(1), captures.get(2)) else { continue };
        let kind = Kind::ALL.into_iter().find(|kind| kind.name().as_bytes() == name.as_bytes());
        let number = std::str::from_utf8(number.as_bytes()).ok().and_then(|number| number.parse().ok());
        if let (Some(kind), Some(number)) = (kind, number) {
            there.push(Placeholder { range: whole.range(), kind, number });
        }
    }
    Ok(there)
}

/// The text with placeholders that say nothing: a `<SECRET_1>` is no name that a secret stands behind.
fn masked<'t>(text: &'t str, there: &[Placeholder]) -> Cow<'t, str> {
    if there.is_empty() {
        return Cow::Borrowed(text);
    }
    let (mut masked, mut at) = (String::with_capacity(text.len()), 0);
    for Placeholder { range, .. } in there {
        masked.push_str(&text[at..range.start]);
        masked.extend(std::iter::once('<').chain(std::iter::repeat_n('~', range.len() - 2)).chain(std::iter::once('>')));
        at = range.end;
    }
    masked.push_str(&text[at..]);
    Cow::Owned(masked)
}

/// The range, grown to the ends of placeholders that it cuts.
fn around_placeholders(there: &[Placeholder], mut range: Range<usize>) -> Range<usize> {
    let first = there.partition_point(|p| p.range.end <= range.start);
    let after = there.partition_point(|p| p.range.start < range.end);
    if let Some(cut) = there[first..after.max(first)].first() {
        range.start = range.start.min(cut.range.start);
    }
    if let Some(cut) = there[first..after.max(first)].last() {
        range.end = range.end.max(cut.range.end);
    }
    range
}

fn has_more_than_placeholders(there: &[Placeholder], text: &str, range: &Range<usize>) -> bool {
    let first = there.partition_point(|p| p.range.end <= range.start);
    let mut at = range.start;
    let more = |part: Range<usize>| text.as_bytes()[part].iter().any(|b| b.is_ascii_alphanumeric() || !b.is_ascii());
    for placeholder in there[first..].iter().take_while(|p| p.range.start < range.end) {
        if more(at..placeholder.range.start.max(at)) {
            return true;
        }
        at = placeholder.range.end;
    }
    at < range.end && more(at..range.end)
}
