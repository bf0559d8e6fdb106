//! Where the assistant speaks in a rendered text, for templates that do not say it themselves.
//!
//! Nothing is guessed from the words of a template. It is asked, by rendering again:
//! - with an answer exchanged for two different probes: what stays the same before and behind them is the answer's frame,
//!   and the answer is what stands in this frame in the real text, however the template trimmed or shortened it;
//! - up to the answer, with the generation prompt: an answer begins where the model begins to speak. Where a template
//!   renders old turns differently (reasoning left out of them), the same header is looked for between the turn before and
//!   the answer, and otherwise an answer begins with its content;
//! - up to the end of the answer: what follows in both texts belongs to the turn, what follows in one does not.
//!
//! What cannot be found in this way is an error, because a wrong mask trains the wrong thing without a word.

use std::ops::Range;

use crate::domain::Message;
use crate::error::{Error, Result};
use crate::text::template::{Given, Template, calls_tools};

/// One assistant turn in the text, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Where the assistant begins to speak.
    pub start: usize,
    /// Its end-of-turn token is at or behind this.
    pub after: usize,
    /// Up to here the text is the turn's own.
    pub limit: usize,
    /// What stands between `after` and the end is part of a call, not known by itself.
    pub calls_tools: bool,
}

/// Two texts that share neither their first nor their last character, and that no template changes.
const PROBES: [&str; 2] = ["Kq7Vw", "Xz2Jb"];

/// The assistant's turns in `full`, the rendering of `messages`, in order.
pub fn find(template: &Template, given: &Given, messages: &[Message], full: &str) -> Result<Vec<Turn>> {
    let ask = Ask { template, given };
    let mut turns: Vec<Turn> = Vec::new();
    for index in (0..messages.len()).filter(|&i| messages[i].role == "assistant") {
        let turn = ask.turn(messages, index, full, &turns).ok_or_else(|| cannot_find(template, messages, index))?;
        turns.push(turn);
    }
    Ok(turns)
}

fn cannot_find(template: &Template, messages: &[Message], index: usize) -> Error {
    let what = if calls_tools(&messages[index]) { "a call of a tool" } else { "an answer" };
    Error::data(
        format!(
            "cannot tell where message {} of {} ({what}) stands in what the template {} renders; \
             the template may leave it out, write it twice or change its text",
            index + 1,
            messages.len(),
            template.name
        ),
        "compare `retune render`'s text with the row; a template of your own (--template FILE) can mark what is trained \
         with {% generation %} ... {% endgeneration %}",
    )
}

/// Asks a template how it renders variations of a conversation.
struct Ask<'a> {
    template: &'a Template,
    given: &'a Given<'a>,
}

impl Ask<'_> {
    /// `None`: it cannot be told.
    fn turn(&self, messages: &[Message], index: usize, full: &str, earlier: &[Turn]) -> Option<Turn> {
        let message = &messages[index];
        let calls = calls_tools(message);
        let content = self.frame(messages, index, full);
        // The end-of-turn token stands behind what a turn ends with: its calls where it has any, else its content.
        let last = if calls { self.call_frame(messages, index, full)? } else { content.clone()? };
        let after = last.place.end;
        let limit = if index + 1 == messages.len() {
            full.len()
        } else {
            let until = &messages[..=index];
            let alone = self.render(until, false)?;
            let end = if calls { self.call_frame(until, index, &alone)? } else { self.frame(until, index, &alone)? };
            after + shared_start(&full[after..], &alone[end.place.end..])
        };
        let earliest = earlier.last().map_or(0, |turn| turn.after);
        let known = content.filter(|c| !c.place.is_empty() || !calls).map(|c| c.place.start);
        let start = self.start(messages, index, full, earliest, known, last.place.start)?;
        (earliest <= start && start <= after).then_some(Turn { start, after, limit, calls_tools: calls })
    }

    /// Where the assistant begins to speak: `content` is where its content stands, where that is known; `inside` some place
    /// that surely lies in the turn.
    fn start(
        &self,
        messages: &[Message],
        index: usize,
        full: &str,
        earliest: usize,
        content: Option<usize>,
        inside: usize,
    ) -> Option<usize> {
        // A template may refuse a conversation of nothing, or one that ends on a tool's call: then the content has to do.
        let Some(prompted) = self.render(&messages[..index], true) else { return content };
        let unprompted = self.render(&messages[..index], false);
        let prompts = unprompted.as_ref().is_none_or(|text| *text != prompted);
        if !prompts {
            return content;
        }
        if full.starts_with(&prompted) {
            return Some(prompted.len());
        }
        let header = unprompted.as_ref().and_then(|text| prompted.strip_prefix(text.as_str())).filter(|h| !h.is_empty());
        // Not before the end of the turn before, where the same header would be another answer's.
        let before = index.checked_sub(1).and_then(|i| self.frame(messages, i, full)).map_or(earliest, |f| f.place.end);
        let until = content.unwrap_or(inside);
        let found = header.filter(|_| before <= until).and_then(|h| full[before..until].rfind(h).map(|at| before + at + h.len()));
        found.or(content)
    }

    /// The frame of a message's content. A content that begins with reasoning (`... </think>`) may be taken apart by the
    /// template: then what stands behind it is exchanged alone.
    fn frame(&self, messages: &[Message], index: usize, full: &str) -> Option<Frame> {
        let content = &messages[index].content;
        let exchange = |keep: &str| {
            self.probe(full, |probe| {
                let mut messages = messages.to_vec();
                messages[index].content = format!("{keep}{probe}");
                messages
            })
        };
        exchange("").or_else(|| {
            let end = content.rfind("</think>")? + "</think>".len();
            let answer = content[end..].trim_start();
            exchange(&content[..content.len() - answer.len()])
        })
    }

    /// The frame of the name of the last tool that a message calls.
    fn call_frame(&self, messages: &[Message], index: usize, full: &str) -> Option<Frame> {
        self.probe(full, |probe| {
            let mut messages = messages.to_vec();
            let call = messages[index].extra.get_mut("tool_calls").and_then(|calls| calls.as_array_mut()?.last_mut());
            if let Some(call) = call {
                let nested = call.get("function").is_some_and(serde_json::Value::is_object);
                let function = if nested { &mut call["function"] } else { call };
                function["name"] = probe.into();
            }
            messages
        })
    }

    /// Renders the two variations and takes their frame, if it is clean (each is its probe in the frame) and holds for the
    /// real text, too.
    fn probe(&self, full: &str, vary: impl Fn(&str) -> Vec<Message>) -> Option<Frame> {
        let first = self.render(&vary(PROBES[0]), false)?;
        let second = self.render(&vary(PROBES[1]), false)?;
        let before = shared_start(&first, &second);
        let behind = first.len().checked_sub(before + PROBES[0].len())?;
        let clean = first[before..].starts_with(PROBES[0])
            && second[before..].starts_with(PROBES[1])
            && first[before + PROBES[0].len()..] == second[before + PROBES[1].len()..];
        if !clean {
            return None;
        }
        let (head, tail) = (&first[..before], &first[first.len() - behind..]);
        let fits = full.len() >= before + behind && full.starts_with(head) && full.ends_with(tail);
        fits.then(|| Frame { place: before..full.len() - behind })
    }

    /// `None` where the template refuses.
    fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Option<String> {
        self.template.rendering(messages, self.given, add_generation_prompt).ok().map(|rendering| rendering.text)
    }
}

/// What stands still around a probe, and so the place of what the probe replaced.
#[derive(Clone, Debug)]
struct Frame {
    place: Range<usize>,
}

/// How many bytes two texts share at their start, whole characters only.
fn shared_start(a: &str, b: &str) -> usize {
    a.char_indices().zip(b.chars()).find(|((_, a), b)| a != b).map_or(a.len().min(b.len()), |((at, _), _)| at)
}
