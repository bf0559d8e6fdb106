//! A model's own Jinja template, rendered as transformers renders it (src/transformers/utils/chat_template_utils.py):
//! `trim_blocks`, `lstrip_blocks`, loop controls, Python's methods, its own `tojson`, `raise_exception`, `strftime_now`
//! and `{% generation %}` blocks.

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, ErrorKind, State};
use serde_json::{Value as Json, json};

use super::built_in::calls_tools;
use super::python::{Dumps, strftime};
use super::{Given, Rendering};
use crate::domain::Message;
use crate::error::{Error, Result};

/// Noncharacters that Unicode keeps for a program's own use: they mark where a `{% generation %}` block begins and ends.
const BEGIN: char = '\u{FDD0}';
const END: char = '\u{FDD1}';

/// Marks a message of `raise_exception` among the template engine's own.
const RAISED: &str = "raised: ";

/// The variable that holds the moment of a rendering, in seconds since 1970.
const NOW: &str = "__now";

/// A compiled template.
pub struct Jinja {
    pub source: String,
    name: String,
    environment: Environment<'static>,
    /// `bos_token`, `eos_token`, ... with their texts.
    tokens: Vec<(String, String)>,
    has_generation: bool,
    /// The template asks whether a content is none, as transformers gives it for a turn that only calls tools.
    asks_for_none: bool,
}

impl Jinja {
    pub fn new(name: &str, source: &str, tokens: Vec<(String, String)>) -> Result<Self> {
        // Jinja reads every line end as \n.
        let unix = source.replace("\r\n", "\n").replace('\r', "\n");
        let (prepared, has_generation) = replace_generation_tags(&unix);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|e| Error::unsupported(format!("template {name}: {e}"), "report this"))?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_filter("retune_generation", |body: &str| format!("{BEGIN}{body}{END}"));
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_test("sequence", is_sequence);
        environment.add_template_owned("chat".to_owned(), prepared).map_err(|e| {
            Error::data(
                format!("the template {name} is not valid Jinja: {}", describe(&e)),
                "correct the template, or choose another with --template",
            )
        })?;
        let asks_for_none = asks_for_none(&unix);
        Ok(Self { source: source.to_owned(), name: name.to_owned(), environment, tokens, has_generation, asks_for_none })
    }

    /// Errors: what the template raises, and what it asks for that a row does not have.
    pub fn render(&self, messages: &[Message], given: &Given, add_generation_prompt: bool) -> Result<Rendering> {
        let messages: Vec<Json> = messages.iter().map(|message| self.message(message)).collect();
        let mut context = serde_json::Map::new();
        for (key, text) in &self.tokens {
            context.insert(key.clone(), json!(text));
        }
        context.insert("messages".into(), Json::Array(messages));
        // transformers hands over None where there are no tools and no documents.
        context.insert("tools".into(), given.tools.cloned().unwrap_or(Json::Null));
        context.insert("documents".into(), Json::Null);
        context.insert("add_generation_prompt".into(), json!(add_generation_prompt));
        let seconds = given.now.duration_since(SystemTime::UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0);
        context.insert(NOW.into(), json!(seconds));
        let context = Json::Object(context);
        if self.has_generation && holds_marks(&context) {
            return Err(Error::data(
                "the text holds U+FDD0 or U+FDD1, which are no characters and mark the template's generation blocks here",
                "remove them from the row",
            ));
        }
        let template = self.environment.get_template("chat").map_err(|e| self.failed(&e))?;
        let marked = template.render(Serde(&context)).map_err(|e| self.failed(&e))?;
        if !self.has_generation {
            return Ok(Rendering { text: marked, spans: None });
        }
        let (text, spans) = self.take_marks(&marked)?;
        Ok(Rendering { text, spans: Some(spans) })
    }

    /// A message as transformers hands it to a template.
    fn message(&self, message: &Message) -> Json {
        let mut map = serde_json::Map::new();
        map.insert("role".into(), json!(message.role));
        let none = message.content.is_empty() && self.asks_for_none && calls_tools(message);
        map.insert("content".into(), if none { Json::Null } else { json!(message.content) });
        map.extend(message.extra.iter().map(|(key, value)| (key.clone(), value.clone())));
        // Reasoning goes by three names; templates read one of two.
        let reasoning =
            ["reasoning_content", "thinking", "reasoning"].iter().find_map(|key| map.get(*key).filter(|v| !v.is_null()).cloned());
        if let Some(reasoning) = reasoning {
            map.entry("thinking").or_insert_with(|| reasoning.clone());
            map.insert("reasoning_content".into(), reasoning);
        }
        Json::Object(map)
    }

    /// Takes the marks out of a text and tells what lay between them. Nested blocks count as their outermost.
    fn take_marks(&self, marked: &str) -> Result<(String, Vec<std::ops::Range<usize>>)> {
        let mut text = String::with_capacity(marked.len());
        let mut spans = Vec::new();
        let mut open: Vec<usize> = Vec::new();
        for character in marked.chars() {
            match character {
                BEGIN => open.push(text.len()),
                END => match (open.pop(), open.is_empty()) {
                    (Some(start), true) => spans.push(start..text.len()),
                    (Some(_), false) => {}
                    (None, _) => return Err(self.broken_marks()),
                },
                other => text.push(other),
            }
        }
        if open.is_empty() { Ok((text, spans)) } else { Err(self.broken_marks()) }
    }

    fn broken_marks(&self) -> Error {
        Error::data(
            format!("the template {} takes its generation blocks apart, so that it cannot be told what is trained", self.name),
            "let no filter cut the text of a {% generation %} block",
        )
    }

    fn failed(&self, error: &minijinja::Error) -> Error {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(current) = cause {
            let detail = current.downcast_ref::<minijinja::Error>().and_then(minijinja::Error::detail);
            if let Some(message) = detail.and_then(|detail| detail.strip_prefix(RAISED)) {
                return Error::data(
                    format!("the template {} refuses the conversation: {message}", self.name),
                    "change the row as the message says, or choose another template with --template",
                );
            }
            cause = current.source();
        }
        Error::data(
            format!("the template {} fails: {}", self.name, describe(error)),
            "check the row against what the template expects, or choose another with --template",
        )
    }
}

/// Line, kind and detail of an error, in one line.
fn describe(error: &minijinja::Error) -> String {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    match error.detail() {
        Some(detail) => format!("{line}{}: {detail}", error.kind()),
        None => format!("{line}{}", error.kind()),
    }
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

fn strftime_now(state: &State, format: &str) -> Result<String, minijinja::Error> {
    let seconds = state.lookup(NOW).and_then(|now| u64::try_from(now).ok()).unwrap_or(0);
    let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    strftime(format, now).ok_or_else(|| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): a directive is not known"))
    })
}

/// Python calls everything with a length and an index a sequence: strings and mappings, too.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
}

/// transformers' `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn to_json(value: &Value, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    let wrong = |what: String| minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"));
    if value.is_undefined() {
        return Err(wrong("the value is undefined".to_owned()));
    }
    let mut dumps = Dumps {
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ..Dumps::default()
    };
    if let Some(indent) = kwargs.get::<Option<Value>>("indent")?.filter(|v| !v.is_none()) {
        dumps.indent = Some(match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(count)) => " ".repeat(count),
            (None, None) => return Err(wrong(format!("indent is {indent}, expected a number or a string"))),
        });
        // json.dumps: no space at the end of a line.
        dumps.item_separator = ",".to_owned();
    }
    if let Some(separators) = kwargs.get::<Option<Value>>("separators")?.filter(|v| !v.is_none()) {
        let parts: Vec<Value> = separators.try_iter()?.collect();
        let [item, key] = &parts[..] else { return Err(wrong("separators takes two strings".to_owned())) };
        (dumps.item_separator, dumps.key_separator) = (item.to_string(), key.to_string());
    }
    kwargs.assert_all_used()?;
    let json = serde_json::to_value(value).map_err(|e| wrong(e.to_string()))?;
    Ok(dumps.dumps(&json))
}

/// Whether any text of a value holds one of the marks.
fn holds_marks(value: &Json) -> bool {
    match value {
        Json::String(text) => text.contains([BEGIN, END]),
        Json::Array(list) => list.iter().any(holds_marks),
        Json::Object(map) => map.iter().any(|(key, value)| key.contains([BEGIN, END]) || holds_marks(value)),
        _ => false,
    }
}

/// Whether a template tests a content for none.
fn asks_for_none(source: &str) -> bool {
    let words: Vec<&str> = source.split_whitespace().collect();
    let is_content = |word: &str| word.trim_end_matches(['\'', '"', ']', ')']).ends_with("content");
    let is_none = |word: &str| word.trim_end_matches([')', ',', '}', '%', '-']) == "none";
    words.windows(3).any(|w| is_content(w[0]) && w[1] == "is" && is_none(w[2]))
        || words.windows(4).any(|w| is_content(w[0]) && w[1] == "is" && w[2] == "not" && is_none(w[3]))
}

/// minijinja knows no `{% generation %}`; a filter block has the same white space rules and the same scope, so the tags
/// become one that marks its text. Tells whether there was any.
fn replace_generation_tags(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut found = false;
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = if rest.starts_with("{#") {
            rest.find("#}").map(|end| end + 2)
        } else if rest.starts_with("{%") || rest.starts_with("{{") {
            tag_length(rest)
        } else {
            Some(1)
        };
        // An open tag is the parser's to complain of.
        let Some(length) = length else { break };
        let (tag, tail) = rest.split_at(length);
        let word = tag.strip_prefix("{%").and_then(|t| t.strip_suffix("%}")).map(|t| t.trim_matches(['-', '+', ' ', '\t', '\n']));
        match word {
            Some("generation") => out.push_str(&tag.replace("generation", "filter retune_generation")),
            Some("endgeneration") => out.push_str(&tag.replace("endgeneration", "endfilter")),
            _ => out.push_str(tag),
        }
        found |= word == Some("generation");
        rest = tail;
        if word == Some("raw") {
            let end = rest.find("endraw").unwrap_or(rest.len());
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    (out, found)
}

/// The length of the tag that a text starts with, string literals in it skipped.
fn tag_length(text: &str) -> Option<usize> {
    let close = if text.starts_with("{{") { "}}" } else { "%}" };
    let mut quote: Option<u8> = None;
    let mut escaped = false;
    for (i, &byte) in text.as_bytes().iter().enumerate().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if byte == b'\\' => escaped = true,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if byte == b'"' || byte == b'\'' => quote = Some(byte),
            None if text.as_bytes()[i..].starts_with(close.as_bytes()) => return Some(i + 2),
            None => {}
        }
    }
    None
}
