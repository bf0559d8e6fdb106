//! Chat templates: the model's own Jinja through minijinja, set up as transformers does, and the built-in ones.

mod built_in;
mod jinja;
mod python;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;

use self::built_in::BuiltIn;
pub(super) use self::built_in::calls_tools;
use self::jinja::Jinja;
use super::tokenizer::{Tokenizer, json, token_text};
use crate::domain::Message;
use crate::error::{Error, Result};
use crate::formats::gguf::Gguf;

/// A template ready to render.
#[derive(Clone)]
pub struct Template {
    kind: Kind,
    /// The name (`alpaca`) or where it came from.
    pub name: String,
}

#[derive(Clone)]
enum Kind {
    BuiltIn(BuiltIn),
    Jinja(Arc<Jinja>),
}

/// What a template wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rendering {
    pub text: String,
    /// The byte ranges that the assistant is trained on, where the template itself says them: the built-in ones do, and
    /// Jinja with `{% generation %}` blocks.
    pub spans: Option<Vec<Range<usize>>>,
}

/// What a rendering depends on besides the messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given<'a> {
    pub tools: Option<&'a Value>,
    /// The end of the assistant's turn in a built-in template.
    pub end: &'a str,
    /// What `strftime_now` tells: one moment for all renderings that are compared with each other.
    pub now: SystemTime,
}

/// The built-in templates by name, each with its twin as an Ollama TEMPLATE.
pub const BUILT_IN: [&str; 3] = ["alpaca", "chatml", "plain"];

impl Template {
    /// `alpaca`, `chatml`, `plain`.
    pub fn built_in(name: &str) -> Option<Self> {
        BuiltIn::named(name).map(|built_in| Self { kind: Kind::BuiltIn(built_in), name: name.to_owned() })
    }

    /// A Jinja template. An empty `bos_token` or `eos_token` is left undefined, as transformers does where a tokenizer has
    /// none. Error: it does not parse; the message has the line.
    pub fn jinja(name: &str, source: &str, bos_token: &str, eos_token: &str) -> Result<Self> {
        let tokens = [("bos_token", bos_token), ("eos_token", eos_token)];
        Self::with_tokens(name, source, tokens.map(|(key, text)| (key.to_owned(), text.to_owned())).to_vec())
    }

    /// A Jinja template that may ask for every special token of a tokenizer (`bos_token`, `eos_token`, `pad_token`, ...).
    pub fn jinja_for(name: &str, source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let mut tokens = vec![("bos_token".to_owned(), tokenizer.bos_text()), ("eos_token".to_owned(), tokenizer.eos_text())];
        tokens.extend(tokenizer.named_tokens().iter().cloned());
        Self::with_tokens(name, source, tokens)
    }

    fn with_tokens(name: &str, source: &str, tokens: Vec<(String, String)>) -> Result<Self> {
        let tokens = tokens.into_iter().filter(|(_, text)| !text.is_empty()).collect();
        Ok(Self { kind: Kind::Jinja(Arc::new(Jinja::new(name, source, tokens)?)), name: name.to_owned() })
    }

    /// The template of a model's folder: chat_template.jinja, or `chat_template` of tokenizer_config.json (a string, or a
    /// list of named ones, of which `default` is taken), or chat_template.json. `None` where there is none.
    pub fn from_folder(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let path = folder.join("chat_template.jinja");
        if path.is_file() {
            let source = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
            return Self::jinja_for(&path.display().to_string(), &source, tokenizer).map(Some);
        }
        for file in ["tokenizer_config.json", "chat_template.json"] {
            let path = folder.join(file);
            let Some(config) = json(&path)? else { continue };
            let source = match config.get("chat_template") {
                None | Some(Value::Null) => continue,
                Some(Value::String(source)) => source.clone(),
                Some(Value::Array(list)) => default_of(&path, list)?,
                Some(other) => {
                    let message = format!("chat_template is {other}, expected a string or a list of named ones");
                    return Err(Error::file(path, message, "fetch the file again, or choose a template with --template"));
                }
            };
            return Self::jinja_for(&path.display().to_string(), &source, tokenizer).map(Some);
        }
        Ok(None)
    }

    /// The template in a GGUF file's metadata (`tokenizer.chat_template`); `None` where there is none.
    pub fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let Some(source) = gguf.get_str("tokenizer.chat_template")? else { return Ok(None) };
        Self::jinja_for(&gguf.path.display().to_string(), source, tokenizer).map(Some)
    }

    /// The whole conversation as text; with `add_generation_prompt`, up to where the assistant begins to speak. A built-in
    /// template knows no tokenizer here, so that it ends turns with nothing; [`super::render::Renderer`] gives it one.
    pub fn render(&self, messages: &[Message], tools: Option<&Value>, add_generation_prompt: bool) -> Result<String> {
        let given = Given { tools, end: "", now: SystemTime::now() };
        Ok(self.rendering(messages, &given, add_generation_prompt)?.text)
    }

    /// The Ollama TEMPLATE (Go text/template) that renders the same prompt, for the built-in ones. The end of an answer is
    /// part of it, because a conversation that goes on shows the model its earlier turns as it was trained on them.
    pub fn ollama_twin(&self, tokenizer: &Tokenizer) -> Option<String> {
        match &self.kind {
            Kind::BuiltIn(built_in) => Some(built_in.ollama_twin(&built_in.end(tokenizer))),
            Kind::Jinja(_) => None,
        }
    }

    /// The template in Jinja: its own source, or the twin of a built-in one.
    pub fn jinja_twin(&self, tokenizer: &Tokenizer) -> String {
        match &self.kind {
            Kind::BuiltIn(built_in) => built_in.jinja_twin(&built_in.end(tokenizer)),
            Kind::Jinja(jinja) => jinja.source.clone(),
        }
    }

    /// The Jinja source; `None` for the built-in ones.
    pub fn source(&self) -> Option<&str> {
        match &self.kind {
            Kind::BuiltIn(_) => None,
            Kind::Jinja(jinja) => Some(&jinja.source),
        }
    }

    pub fn is_built_in(&self) -> bool {
        matches!(self.kind, Kind::BuiltIn(_))
    }

    /// The text, and what of it is trained where the template says so.
    pub(super) fn rendering(&self, messages: &[Message], given: &Given, add_generation_prompt: bool) -> Result<Rendering> {
        match &self.kind {
            Kind::BuiltIn(built_in) => built_in.render(messages, given, add_generation_prompt),
            Kind::Jinja(jinja) => jinja.render(messages, given, add_generation_prompt),
        }
    }

    /// How a built-in template ends the assistant's turn with this tokenizer; a model's own template writes its own end.
    pub(super) fn end(&self, tokenizer: &Tokenizer) -> String {
        match &self.kind {
            Kind::BuiltIn(built_in) => built_in.end(tokenizer),
            Kind::Jinja(_) => String::new(),
        }
    }
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").field("name", &self.name).field("built_in", &self.is_built_in()).finish()
    }
}

/// `[{"name": "default", "template": "..."}, ...]`.
fn default_of(path: &Path, list: &[Value]) -> Result<String> {
    let named = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
    let source = list.iter().find(named).and_then(|entry| entry.get("template")).and_then(token_text);
    source.ok_or_else(|| {
        let names: Vec<&str> = list.iter().filter_map(|entry| entry.get("name").and_then(Value::as_str)).collect();
        Error::file(
            path,
            format!("chat_template is a list of named templates with no 'default' among them: {}", names.join(", ")),
            "save the one you want as a file and give it with --template FILE",
        )
    })
}
