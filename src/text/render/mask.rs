//! From places in a text to a mask over its tokens.

use std::ops::Range;

use super::turns::Turn;
use crate::error::{Error, Result};
use crate::text::tokenizer::Tokenizer;

/// The mask of spans that a template marked itself. An end-of-turn token right behind a span belongs to it: a model that
/// never learns to stop is of no use.
pub fn of_spans(tokenizer: &Tokenizer, ids: &[u32], ranges: &[Range<usize>], spans: &[Range<usize>]) -> Vec<bool> {
    let mut trained = vec![false; ids.len()];
    for span in spans {
        let mut end = span.end;
        let inside_ends =
            (0..ids.len()).any(|i| ranges[i].end == span.end && lies_in(&ranges[i], span) && is_end(tokenizer, ids[i]));
        if !span.is_empty() && !inside_ends {
            let behind = (0..ids.len()).find(|&i| ranges[i].start == span.end && !ranges[i].is_empty());
            end = behind.filter(|&i| is_end(tokenizer, ids[i])).map_or(end, |i| ranges[i].end);
        }
        mark(&mut trained, ranges, span.start..end);
    }
    trained
}

/// The mask of turns that were found in the text. The end of a turn is the first end-of-turn token behind its content, or
/// else the first special one; where a template writes none, the content is all.
/// Error: a turn that calls tools, and no end-of-turn token behind the calls: its end cannot be told.
pub fn of_turns(tokenizer: &Tokenizer, ids: &[u32], ranges: &[Range<usize>], turns: &[Turn]) -> Result<Vec<bool>> {
    let mut trained = vec![false; ids.len()];
    for turn in turns {
        let behind =
            || (0..ids.len()).filter(|&i| ranges[i].start >= turn.after && ranges[i].end <= turn.limit && !ranges[i].is_empty());
        let end = behind().find(|&i| is_end(tokenizer, ids[i]));
        let end = match (end, turn.calls_tools) {
            (Some(end), _) => ranges[end].end,
            (None, true) => {
                return Err(Error::data(
                    "an assistant turn calls tools, and no end-of-turn token follows the calls in the rendered text",
                    "name the model's end-of-turn tokens in generation_config.json (eos_token_id), or mark what is trained \
                     with {% generation %} in a template of your own (--template FILE)",
                ));
            }
            (None, false) => behind().find(|&i| tokenizer.is_special(ids[i])).map_or(turn.after, |i| ranges[i].end),
        };
        mark(&mut trained, ranges, turn.start..end);
    }
    Ok(trained)
}

fn is_end(tokenizer: &Tokenizer, id: u32) -> bool {
    tokenizer.end_ids().contains(&id)
}

fn lies_in(range: &Range<usize>, span: &Range<usize>) -> bool {
    range.start >= span.start && range.end <= span.end
}

/// Marks the tokens that share a byte with a span. A token without bytes (the space that SPM puts before a text) counts
/// where it stands, except an added BOS.
fn mark(trained: &mut [bool], ranges: &[Range<usize>], span: Range<usize>) {
    for (i, range) in ranges.iter().enumerate() {
        let inside = if range.is_empty() {
            i > 0 && span.start <= range.start && range.start < span.end
        } else {
            range.start < span.end && span.start < range.end
        };
        trained[i] |= inside;
    }
}
