//! An example becomes ids and a mask in one pass: the loss falls on the assistant's content and its end-of-turn
//! token, on nothing else.

use super::template::Template;
use super::tokenizer::Tokenizer;
use crate::domain::{Example, Message, Tokens};
use crate::error::Result;

/// What renders: a tokenizer, a template, and a system text put before every row (`--system FILE`).
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
}

impl Renderer<'_> {
    pub fn render(&self, example: &Example) -> Result<Rendered> {
        let _ = example;
        todo!()
    }

    /// The ids of a prompt that the assistant is to answer, and its text.
    pub fn prompt(&self, messages: &[Message], tools: Option<&serde_json::Value>) -> Result<(String, Vec<u32>)> {
        let _ = (messages, tools);
        todo!()
    }
}

/// What to do with rows longer than the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Long {
    /// Cut at the end, counted and told.
    #[default]
    Cut,
    Drop,
    Error,
}

/// Counts of what `fit` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fitted {
    pub cut: usize,
    pub dropped: usize,
    /// Rows left out because nothing to train was left in them.
    pub without_target: usize,
}

/// Brings rows to at most `max_length` tokens. Rows with nothing left to train are left out and counted; if none is left
/// at all, that is an error that says what to change. The second value of each pair is the index in `rows`.
pub fn fit(rows: Vec<Tokens>, max_length: usize, long: Long) -> Result<(Vec<(Tokens, usize)>, Fitted)> {
    let _ = (rows, max_length, long);
    todo!()
}
