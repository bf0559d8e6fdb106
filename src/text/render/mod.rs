//! An example becomes ids and a mask in one pass: the loss falls on the assistant's content and its end-of-turn
//! token, on nothing else.
//!
//! The whole text is tokenised once, and the mask follows from byte offsets, so that no token is split at a turn's edge that
//! the model will see as one. A token that lies across the edge of an answer is trained.

mod fit;
mod mask;
mod turns;

use std::ops::Range;
use std::time::SystemTime;

use super::template::{Given, Template, calls_tools};
use super::tokenizer::Tokenizer;
use crate::domain::{Example, Message, Tokens};
use crate::error::{Error, Result};

pub use self::fit::{Fitted, Long, fit};

/// What renders: a tokenizer, a template, and a system text put before every row (`--system FILE`).
///
/// The system text becomes the first message. A row that has a system message of its own keeps it: the given text comes
/// first, a blank line between.
pub struct Renderer<'a> {
    pub tokenizer: &'a Tokenizer,
    pub template: &'a Template,
    pub system: Option<String>,
}

/// A rendered example with its text.
#[derive(Clone, Debug)]
pub struct Rendered {
    pub text: String,
    pub tokens: Tokens,
    /// For each id, the bytes of `text` that it came from; an added BOS has none.
    pub ranges: Vec<Range<usize>>,
}

impl Rendered {
    /// The byte ranges of `text` that are trained, neighbouring tokens together.
    pub fn trained_spans(&self) -> Vec<Range<usize>> {
        let mut spans: Vec<Range<usize>> = Vec::new();
        let mut before = false;
        for (range, &trained) in self.ranges.iter().zip(&self.tokens.trained) {
            match spans.last_mut() {
                Some(last) if trained && before => last.end = range.end,
                _ if trained => spans.push(range.clone()),
                _ => {}
            }
            before = trained;
        }
        spans
    }
}

impl Renderer<'_> {
    /// Ids and mask of a row. A model's own template says all of its text, the BOS too, so that nothing is added to it (as
    /// transformers' `apply_chat_template`); a built-in one gets a BOS where the tokenizer says so.
    ///
    /// Errors, all naming the row: the template refuses it, or does not tell where the assistant speaks.
    pub fn render(&self, example: &Example) -> Result<Rendered> {
        self.rendered(example).map_err(|error| in_row(error, example.row))
    }

    /// The ids of a prompt that the assistant is to answer, and its text.
    pub fn prompt(&self, messages: &[Message], tools: Option<&serde_json::Value>) -> Result<(String, Vec<u32>)> {
        let messages = self.with_system(messages);
        let end = self.template.end(self.tokenizer);
        let given = Given { tools, end: &end, now: SystemTime::now() };
        let text = self.template.rendering(&messages, &given, true)?.text;
        let ids = self.tokenizer.encode(&text, self.template.is_built_in())?;
        Ok((text, ids))
    }

    fn rendered(&self, example: &Example) -> Result<Rendered> {
        let messages = self.with_system(&example.messages);
        let end = self.template.end(self.tokenizer);
        if self.template.is_built_in() && end.is_empty() {
            return Err(Error::data(
                format!("the tokenizer names no EOS, so that the template {} cannot end an answer", self.template.name),
                "use the model's own template, or add eos_token to tokenizer_config.json",
            ));
        }
        let given = Given { tools: example.tools.as_ref(), end: &end, now: SystemTime::now() };
        let rendering = self.template.rendering(&messages, &given, false)?;
        let (ids, ranges) = self.tokenizer.encode_with_offsets(&rendering.text, self.template.is_built_in())?;
        let trained = match &rendering.spans {
            Some(spans) => mask::of_spans(self.tokenizer, &ids, &ranges, &self.learnt_spans(spans, &messages)?),
            None => {
                self.refuse_ends_in_calls(&messages)?;
                let turns = turns::find(self.template, &given, &messages, &rendering.text)?;
                mask::of_turns(self.tokenizer, &ids, &ranges, &learnt(&turns, &messages))?
            }
        };
        Ok(Rendered { text: rendering.text, tokens: Tokens { ids, trained }, ranges })
    }

    /// The spans of the turns that are learnt. Error: a turn that is not (`"loss_weight": 0`), and a template that does not
    /// mark one span a turn.
    fn learnt_spans(&self, spans: &[Range<usize>], messages: &[Message]) -> Result<Vec<Range<usize>>> {
        let said: Vec<&Message> = messages.iter().filter(|m| m.role == "assistant").collect();
        if said.iter().all(|m| m.is_learnt()) {
            return Ok(spans.to_vec());
        }
        if spans.len() != said.len() {
            return Err(Error::data(
                format!(
                    "{} of {} answers are not to be learnt, and the template {} marks {} spans, so that it cannot be told which",
                    said.iter().filter(|m| !m.is_learnt()).count(),
                    said.len(),
                    self.template.name,
                    spans.len()
                ),
                "use a template with one {% generation %} block an answer (--template FILE)",
            ));
        }
        Ok(learnt(spans, messages))
    }

    /// The end of a turn that calls tools is the first end-of-turn token behind the tool's name, so that none may stand in
    /// the arguments.
    fn refuse_ends_in_calls(&self, messages: &[Message]) -> Result<()> {
        let ends: Vec<String> = self.tokenizer.end_ids().iter().filter_map(|&id| self.tokenizer.token(id)).collect();
        for (index, message) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant" && calls_tools(m)) {
            let Some(end) = ends.iter().find(|end| message.extra.get("tool_calls").is_some_and(|calls| holds(calls, end))) else {
                continue;
            };
            return Err(Error::data(
                format!(
                    "message {} calls a tool with the end-of-turn token {end} in its arguments, so that the end of the turn cannot be told",
                    index + 1
                ),
                "leave the row out, or mark what is trained with {% generation %} in a template of your own (--template FILE)",
            ));
        }
        Ok(())
    }

    /// The messages of a row with the system text of training.
    pub fn with_system(&self, messages: &[Message]) -> Vec<Message> {
        let mut messages = messages.to_vec();
        let Some(system) = &self.system else { return messages };
        match messages.first_mut() {
            Some(first) if first.role == "system" => first.content = format!("{system}\n\n{}", first.content),
            _ => messages.insert(0, Message::new("system", system)),
        }
        messages
    }
}

/// Of what stands for each of the assistant's turns, in order, what stands for those that are learnt.
fn learnt<T: Clone>(of_turns: &[T], messages: &[Message]) -> Vec<T> {
    let said = messages.iter().filter(|m| m.role == "assistant");
    of_turns.iter().zip(said).filter(|(_, message)| message.is_learnt()).map(|(turn, _)| turn.clone()).collect()
}

/// Whether any text of a value holds `part`.
fn holds(value: &serde_json::Value, part: &str) -> bool {
    match value {
        serde_json::Value::String(text) => text.contains(part),
        serde_json::Value::Array(list) => list.iter().any(|value| holds(value, part)),
        serde_json::Value::Object(map) => map.iter().any(|(key, value)| key.contains(part) || holds(value, part)),
        _ => false,
    }
}

/// The same error, saying which row it is about.
fn in_row(error: Error, row: usize) -> Error {
    match error {
        Error::Data { message, hint } => Error::Data { message: format!("row {row}: {message}"), hint },
        other => other,
    }
}
