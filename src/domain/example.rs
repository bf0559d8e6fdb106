//! An example of good work, and what becomes of it: a conversation, then ids with a mask.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation, as chat templates see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text. Parts of a multi-part content are joined; `null` (an assistant that only calls a tool) is empty.
    #[serde(default)]
    pub content: String,
    /// Whatever else the row says of this turn (`tool_calls`, `name`, `reasoning_content`, ...), handed to the template as it is.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }

    /// Whether the loss falls on this turn: the assistant says it, and no `"loss_weight": 0` takes it out.
    pub fn is_learnt(&self) -> bool {
        self.role == "assistant" && self.extra.get("loss_weight").and_then(Value::as_f64) != Some(0.0)
    }
}

/// One row of training or evaluation data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    pub messages: Vec<Message>,
    /// The tools that the conversation may call, as the template wants them; `None` where the row has none.
    pub tools: Option<Value>,
    /// Where it came from: the row's number in its file, from 1.
    pub row: usize,
}

impl Example {
    /// The turns before the first one that is learnt.
    pub fn prompt(&self) -> &[Message] {
        let end = self.messages.iter().position(Message::is_learnt).unwrap_or(self.messages.len());
        &self.messages[..end]
    }
}

/// A rendered example: ids, and which of them are trained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// `trained[i]`: token `i` is a target, predicted from the tokens before it. The first token never counts:
    /// nothing predicts it.
    pub trained: Vec<bool>,
}

impl Tokens {
    /// How many tokens the loss falls on.
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().skip(1).filter(|&&t| t).count()
    }

    /// How many tokens stand before the first trained one.
    pub fn prompt_tokens(&self) -> usize {
        self.trained.iter().position(|&t| t).unwrap_or(self.ids.len())
    }
}
