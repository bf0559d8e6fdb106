//! Chat templates: the model's own Jinja through minijinja, set up as transformers does, and the built-in ones.

use serde_json::Value;

use crate::domain::Message;
use crate::error::Result;

/// A template ready to render.
pub struct Template {
    // own: source, kind
    /// The name (`alpaca`) or where it came from.
    pub name: String,
}

/// The built-in templates by name, each with its twin as an Ollama TEMPLATE.
pub const BUILT_IN: [&str; 3] = ["alpaca", "chatml", "plain"];

impl Template {
    /// `alpaca`, `chatml`, `plain`.
    pub fn built_in(name: &str) -> Option<Self> {
        let _ = name;
        todo!()
    }

    pub fn jinja(name: &str, source: &str, bos_token: &str, eos_token: &str) -> Result<Self> {
        let _ = (name, source, bos_token, eos_token);
        todo!()
    }

    /// The whole conversation as text; with `add_generation_prompt`, up to where the assistant begins to speak.
    pub fn render(&self, messages: &[Message], tools: Option<&Value>, add_generation_prompt: bool) -> Result<String> {
        let _ = (messages, tools, add_generation_prompt);
        todo!()
    }

    /// The Ollama TEMPLATE (Go text/template) that renders the same prompt, for the built-in ones.
    pub fn ollama_twin(&self) -> Option<&'static str> {
        todo!()
    }
}
