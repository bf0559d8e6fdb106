//! A look at a file of rows before any time is spent on it: what does not read, how long rows are, what is cut, what is there
//! twice, what is empty, and what is also in the file that a model will be judged on.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use crate::curate::{Repeats, contaminated, repeats};
use crate::domain::{Example, Message};
use crate::error::{Error, Result};
use crate::evaluate::collapse::is_looping;
use crate::formats::rows::{self, Rows, Unreadable, Wanted};
use crate::text::render::{Rendered, Renderer};

/// What to look at.
#[derive(Clone, Debug)]
pub struct CheckRequest {
    pub data: PathBuf,
    /// What a training wants of the rows; `None`: as the first row says.
    pub wanted: Option<Wanted>,
    /// Held-out rows, of which nothing may be in `data`.
    pub against: Option<PathBuf>,
    /// Jaccard index of word shingles from which two rows are nearly the same.
    pub near_duplicate: f64,
    /// Rendered rows to show.
    pub samples: usize,
}

/// How the rows become tokens.
#[derive(Clone, Copy)]
pub struct Rendering<'a> {
    pub renderer: &'a Renderer<'a>,
    /// Tokens; longer rows are cut.
    pub max_length: usize,
}

/// What was found. Rows count from 1.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    pub file: PathBuf,
    pub kind: &'static str,
    /// All of them, those that do not read as well.
    pub rows: usize,
    pub unreadable: Vec<Unreadable>,
    /// Rows that the template refuses.
    pub unrendered: Vec<Refused>,
    /// Rows that are marked as bad work, in a file that is read for the good.
    pub unwanted: usize,
    pub trailing_user_turns: usize,
    pub with_system: usize,
    pub with_tools: usize,
    /// Rows with more than one answer in a conversation.
    pub many_turns: usize,
    /// `tokens`, or `words` where no base is given.
    pub unit: &'static str,
    /// Of whole conversations.
    pub length: Option<Lengths>,
    /// Of what is learnt in them.
    pub learnt: Option<Lengths>,
    pub max_length: Option<usize>,
    /// Rows that are longer.
    pub cut: Vec<usize>,
    /// Rows of which nothing is left to train.
    pub without_target: Vec<usize>,
    pub exact: Vec<Twin>,
    pub near: Vec<Twin>,
    /// The same request with another answer: no duplicate.
    pub same_request: Vec<Twin>,
    /// The same answer, marked good and bad.
    pub contradictions: Vec<Twin>,
    pub empty: Vec<usize>,
    pub looping: Vec<usize>,
    pub against: Option<PathBuf>,
    pub contaminated: Vec<Contaminated>,
    #[serde(skip)]
    pub samples: Vec<(usize, Rendered)>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Refused {
    pub row: usize,
    pub reason: String,
}

/// A row and the earlier one that it repeats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Twin {
    pub row: usize,
    pub of: usize,
    /// The lesser of the Jaccard indices of request and answer; 1 where they are the same.
    pub likeness: f64,
}

/// A row and the held-out one that it repeats.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contaminated {
    pub row: usize,
    pub held_out_row: usize,
    pub shared: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Lengths {
    pub min: usize,
    pub median: usize,
    pub p95: usize,
    pub max: usize,
    pub longest_row: usize,
    pub sum: usize,
}

impl Checked {
    /// Something that makes training or judging on it wrong.
    pub fn has_problems(&self) -> bool {
        !(self.unreadable.is_empty()
            && self.unrendered.is_empty()
            && self.contaminated.is_empty()
            && self.contradictions.is_empty())
            || self.length.is_none()
    }
}

/// A row that reads: one conversation, or the two of a pair.
struct Unit<'a> {
    row: usize,
    examples: &'a [Example],
    good: &'a [bool],
}

/// Looks at a file. A row that is wrong is a finding, not an error.
///
/// # Errors
/// A file that cannot be opened; in `against` a row that does not read.
pub fn check(request: &CheckRequest, rendering: Option<Rendering>) -> Result<Checked> {
    let wanted = match request.wanted {
        Some(wanted) => wanted,
        None => rows::kind(&request.data)?,
    };
    let (file, unreadable) = rows::read_what_reads(&request.data, wanted)?;
    let units = units(&file);
    let mut checked = Checked {
        file: request.data.clone(),
        kind: match wanted {
            Wanted::Pairs => "pairs of a better and a worse answer",
            Wanted::Labelled => "answers marked good or bad",
            Wanted::GoodWork | Wanted::Prompts => "good work",
        },
        rows: units.len() + unreadable.len() + file.unwanted_rows,
        unreadable,
        unrendered: Vec::new(),
        unwanted: file.unwanted_rows,
        trailing_user_turns: file.trailing_user_turns,
        with_system: count(&units, |example| example.messages.iter().any(|turn| turn.role == "system")),
        with_tools: count(&units, |example| example.tools.is_some()),
        many_turns: count(&units, |example| example.messages.iter().filter(|turn| turn.role == "assistant").count() > 1),
        unit: "words",
        length: None,
        learnt: None,
        max_length: rendering.map(|rendering| rendering.max_length),
        cut: Vec::new(),
        without_target: Vec::new(),
        exact: Vec::new(),
        near: Vec::new(),
        same_request: Vec::new(),
        contradictions: Vec::new(),
        empty: rows_of(&units, says_nothing),
        looping: rows_of(&units, |turn| is_looping(&turn.content)),
        against: request.against.clone(),
        contaminated: Vec::new(),
        samples: Vec::new(),
    };
    match rendering {
        Some(rendering) => checked.count_tokens(&file.examples, rendering),
        None => checked.count_words(&file.examples),
    }
    let whole: Vec<Example> = units.iter().map(joined).collect();
    checked.compare(&units, &whole, request.near_duplicate)?;
    if let Some(against) = &request.against {
        checked.compare_with(&whole, against, request.near_duplicate)?;
    }
    if let Some(rendering) = rendering {
        checked.samples = samples(&units, rendering.renderer, request.samples);
    }
    Ok(checked)
}

impl Checked {
    fn count_words(&mut self, examples: &[Example]) {
        let words = |turns: &mut dyn Iterator<Item = &Message>| turns.map(|turn| turn.content.split_whitespace().count()).sum();
        self.length = lengths(examples.iter().map(|example| (words(&mut example.messages.iter()), example.row)));
        self.learnt = lengths(
            examples.iter().map(|example| (words(&mut example.messages.iter().filter(|turn| turn.is_learnt())), example.row)),
        );
    }

    fn count_tokens(&mut self, examples: &[Example], Rendering { renderer, max_length }: Rendering) {
        self.unit = "tokens";
        let rendered: Vec<Result<(usize, usize, bool)>> = examples
            .par_iter()
            .map(|example| {
                let tokens = renderer.render(example)?.tokens;
                let is_left = tokens.trained.iter().take(max_length).skip(1).any(|&trained| trained);
                Ok((tokens.ids.len(), tokens.trained_tokens(), is_left))
            })
            .collect();
        let (mut all, mut learnt) = (Vec::new(), Vec::new());
        for (example, rendered) in examples.iter().zip(rendered) {
            let row = example.row;
            match rendered {
                Ok((tokens, trained, is_left)) => {
                    all.push((tokens, row));
                    learnt.push((trained, row));
                    push_once(&mut self.cut, (tokens > max_length).then_some(row));
                    push_once(&mut self.without_target, (!is_left).then_some(row));
                }
                Err(error) => self.unrendered.push(Refused { row, reason: without_row(&error, row) }),
            }
        }
        self.length = lengths(all.into_iter());
        self.learnt = lengths(learnt.into_iter());
    }

    fn compare(&mut self, units: &[Unit], whole: &[Example], near_duplicate: f64) -> Result<()> {
        for (unit, repeated) in units.iter().zip(repeats(whole, near_duplicate)?) {
            let twin = |of: usize, likeness| Twin { row: unit.row, of: units[of].row, likeness };
            match repeated {
                Some(Repeats::Exact { of }) if units[of].good != unit.good => self.contradictions.push(twin(of, 1.0)),
                Some(Repeats::Exact { of }) => self.exact.push(twin(of, 1.0)),
                Some(Repeats::Near { of, likeness }) => self.near.push(twin(of, likeness)),
                Some(Repeats::Request { of }) => self.same_request.push(twin(of, 1.0)),
                None => {}
            }
        }
        Ok(())
    }

    fn compare_with(&mut self, whole: &[Example], against: &Path, near_duplicate: f64) -> Result<()> {
        let held_out = rows::read_as(against, rows::kind(against)?)?;
        let held_units = self::units(&held_out);
        let held_whole: Vec<Example> = held_units.iter().map(joined).collect();
        let found = contaminated(whole, &held_whole, near_duplicate);
        self.contaminated = whole
            .iter()
            .zip(found)
            .filter_map(|(example, found)| {
                let (held, shared) = found?;
                Some(Contaminated { row: example.row, held_out_row: held_units[held].row, shared: shared.to_string() })
            })
            .collect();
        Ok(())
    }
}

/// The rows: neighbours with one number are one.
fn units(file: &Rows) -> Vec<Unit<'_>> {
    let mut start = 0;
    file.examples
        .chunk_by(|a, b| a.row == b.row)
        .map(|examples| {
            let good = &file.good[start..start + examples.len()];
            start += examples.len();
            Unit { row: examples[0].row, examples, good }
        })
        .collect()
}

/// A conversation with all of its row's answers.
fn joined(unit: &Unit) -> Example {
    let (first, others) = (&unit.examples[0], &unit.examples[1..]);
    let mut whole = first.clone();
    others.iter().for_each(|other| whole.messages.extend_from_slice(&other.messages[other.prompt().len()..]));
    whole
}

fn count(units: &[Unit], is: impl Fn(&Example) -> bool) -> usize {
    units.iter().filter(|unit| unit.examples.iter().any(&is)).count()
}

/// The rows with such a turn among those that are to be learnt; a bad answer may be what it likes.
fn rows_of(units: &[Unit], is: impl Fn(&Message) -> bool) -> Vec<usize> {
    let has = |unit: &&Unit| {
        let good = unit.examples.iter().zip(unit.good).filter(|(_, good)| **good);
        good.flat_map(|(example, _)| &example.messages).any(|turn| turn.is_learnt() && is(turn))
    };
    units.iter().filter(has).map(|unit| unit.row).collect()
}

fn says_nothing(turn: &Message) -> bool {
    turn.content.trim().is_empty() && !turn.extra.contains_key("tool_calls")
}

/// Both answers of a pair may be of one kind.
fn push_once(rows: &mut Vec<usize>, row: Option<usize>) {
    if row.is_some() && rows.last().copied() != row {
        rows.extend(row);
    }
}

/// The message of an error that begins with its row.
fn without_row(error: &Error, row: usize) -> String {
    let message = error.to_string();
    message.strip_prefix(&format!("row {row}: ")).map_or(message.clone(), str::to_owned)
}

/// `None`: there is nothing to measure.
fn lengths(measured: impl Iterator<Item = (usize, usize)>) -> Option<Lengths> {
    let mut all: Vec<(usize, usize)> = measured.collect();
    // Of the longest the first row is told.
    all.sort_by_key(|&(length, row)| (length, std::cmp::Reverse(row)));
    let (last, &(max, longest_row)) = (all.len().checked_sub(1)?, all.last()?);
    let at = |share: f64| all[(share * last as f64).round() as usize].0;
    let sum = all.iter().map(|(length, _)| length).sum();
    Some(Lengths { min: all[0].0, median: at(0.5), p95: at(0.95), max, longest_row, sum })
}

/// Some rows from all over the file.
fn samples(units: &[Unit], renderer: &Renderer, wanted: usize) -> Vec<(usize, Rendered)> {
    let wanted = wanted.min(units.len());
    (0..wanted)
        .map(|i| &units[(2 * i + 1) * units.len() / (2 * wanted)])
        .flat_map(|unit| unit.examples.iter().map(|example| (unit.row, renderer.render(example))))
        .filter_map(|(row, rendered)| Some((row, rendered.ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_rows() {
        assert_eq!(lengths(std::iter::empty()), None);
        let measured = (1..=101).map(|row| (1000 - row, row));
        let expected = Lengths { min: 899, median: 949, p95: 994, max: 999, longest_row: 1, sum: 95_849 };
        assert_eq!(lengths(measured), Some(expected));
        assert_eq!(lengths([(7, 3), (7, 2)].into_iter()).unwrap().longest_row, 2);
    }
}
