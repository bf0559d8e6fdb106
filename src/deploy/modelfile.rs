//! What is served, said once: as a Modelfile for people, and as a create request for Ollama's API.
//! Source of the Modelfile's grammar: ollama, parser/parser.go.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::formats::durable;
use crate::runtime::ollama::{Blob, CreateRequest};

const TEMPLATE: &str = include_str!("../../Modelfile.template");
/// How the files are called in a create request; Ollama only reads their ends.
const MODEL_FILE: &str = "model.gguf";
const ADAPTER_FILE: &str = "adapter.gguf";

/// Where the weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// A GGUF file: a merged model, or the base under an adapter.
    File(Blob),
    /// A model that this Ollama has: the pristine base under an adapter. Its template, system text and parameters are
    /// handed down where nothing else is said here.
    Model(String),
}

/// A served model, complete.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    pub from: From,
    /// Adapter mode: a GGUF adapter on top. `None` in merged mode.
    pub adapter: Option<Blob>,
    pub parameters: Parameters,
    /// The system text of requests that bring none.
    pub system: Option<String>,
    /// A Go template in place of the one that Ollama finds for the model.
    pub template: Option<String>,
}

/// How a served model generates where a request says nothing else.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    pub temperature: f64,
    pub top_p: f64,
    pub top_k: u32,
    /// Tokens of context; `None` leaves it to Ollama.
    pub num_ctx: Option<u32>,
    /// 1 is none. Said because Ollama up to 0.30 has 1.1 by default: it would punish exactly the repetitions (names,
    /// brackets, quotes) that structured answers are made of, which training never did.
    pub repeat_penalty: f64,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Other parameters of the base, as `params` of its store says them.
    pub inherited: Map<String, Value>,
}

impl Default for Parameters {
    /// SPEC X4.
    fn default() -> Self {
        Self {
            temperature: 0.2,
            top_p: 0.9,
            top_k: 40,
            num_ctx: None,
            repeat_penalty: 1.0,
            stop: Vec::new(),
            inherited: Map::new(),
        }
    }
}

impl Parameters {
    /// Takes over what the base's own parameters say and these do not: its stop texts are added, what has a field here
    /// stays as it is (`num_ctx` where it is `None` is taken).
    pub fn inherit(&mut self, base: &Value) {
        for (name, value) in base.as_object().into_iter().flatten() {
            match name.as_str() {
                "temperature" | "top_p" | "top_k" | "repeat_penalty" => {}
                "num_ctx" => self.num_ctx = self.num_ctx.or_else(|| u32::try_from(value.as_u64()?).ok()),
                "stop" => {
                    let texts = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                    texts.iter().filter_map(Value::as_str).for_each(|text| self.add_stop(text));
                }
                _ => {
                    self.inherited.insert(name.clone(), value.clone());
                }
            }
        }
    }

    /// Adds a stop text that is not there yet; an empty one would end every answer at once.
    pub fn add_stop(&mut self, text: &str) {
        if !text.is_empty() && !self.stop.iter().any(|there| there == text) {
            self.stop.push(text.to_owned());
        }
    }

    /// What `to_json` wrote down.
    pub fn from_json(written: &Map<String, Value>) -> Self {
        let mut read = Self::default();
        for (name, value) in written {
            let small = || u32::try_from(value.as_u64()?).ok();
            match (name.as_str(), value) {
                ("temperature", Value::Number(_)) => read.temperature = value.as_f64().unwrap_or(read.temperature),
                ("top_p", Value::Number(_)) => read.top_p = value.as_f64().unwrap_or(read.top_p),
                ("repeat_penalty", Value::Number(_)) => read.repeat_penalty = value.as_f64().unwrap_or(read.repeat_penalty),
                ("top_k", Value::Number(_)) => read.top_k = small().unwrap_or(read.top_k),
                ("num_ctx", Value::Number(_)) => read.num_ctx = small(),
                ("stop", Value::Array(texts)) => texts.iter().filter_map(Value::as_str).for_each(|text| read.add_stop(text)),
                _ => drop(read.inherited.insert(name.clone(), value.clone())),
            }
        }
        read
    }

    /// Names and values as the API takes them.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut all = Map::new();
        let mut put = |name: &str, value: Value| all.insert(name.to_owned(), value);
        put("temperature", json!(self.temperature));
        put("top_p", json!(self.top_p));
        put("top_k", json!(self.top_k));
        if let Some(num_ctx) = self.num_ctx {
            put("num_ctx", json!(num_ctx));
        }
        put("repeat_penalty", json!(self.repeat_penalty));
        if !self.stop.is_empty() {
            put("stop", json!(self.stop));
        }
        all.extend(self.inherited.clone());
        all
    }
}

impl ModelSpec {
    /// A merged model: the main road.
    pub fn merged(model: Blob, parameters: Parameters) -> Self {
        Self { from: From::File(model), adapter: None, parameters, system: None, template: None }
    }

    /// An adapter on a base that stays as it is.
    pub fn adapted(base: From, adapter: Blob, parameters: Parameters) -> Self {
        Self { from: base, adapter: Some(adapter), parameters, system: None, template: None }
    }

    /// The files that Ollama must have before the model can be created.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        let model = match &self.from {
            From::File(blob) => Some(blob),
            From::Model(_) => None,
        };
        model.into_iter().chain(&self.adapter)
    }

    /// The same as a request to `/api/create`.
    pub fn create_request(&self, name: &str) -> CreateRequest {
        let (from, files) = match &self.from {
            From::File(blob) => (None, BTreeMap::from([(MODEL_FILE.to_owned(), blob.digest.clone())])),
            From::Model(base) => (Some(base.clone()), BTreeMap::new()),
        };
        CreateRequest {
            model: name.to_owned(),
            from,
            files,
            adapters: self.adapter.iter().map(|blob| (ADAPTER_FILE.to_owned(), blob.digest.clone())).collect(),
            template: self.template.clone(),
            system: self.system.clone(),
            parameters: self.parameters.to_json(),
        }
    }

    /// The same as a Modelfile that `ollama create NAME -f` takes. A text that no Modelfile can say (three quotes at the
    /// end of a line, characters that Ollama's parser drops) is an error; `register` takes such a text all the same.
    pub fn modelfile(&self, name: &str) -> Result<String> {
        self.fill(TEMPLATE, name)
    }

    /// `modelfile` from a template of the user's own.
    pub fn fill(&self, template: &str, name: &str) -> Result<String> {
        let absolute = |path: &Path| -> Result<String> {
            let path = std::path::absolute(path).map_err(Error::io("find", path))?;
            let text =
                path.to_str().ok_or_else(|| Error::file(&path, "its path is no UTF-8", "move the file to a path that is"))?;
            quoted("FROM", text)
        };
        let from = match &self.from {
            From::File(blob) => absolute(&blob.path)?,
            From::Model(base) => base.clone(),
        };
        let one =
            |command: &str, text: &Option<String>| text.iter().map(|text| quoted(command, text)).collect::<Result<Vec<_>>>();
        let parameters = &self.parameters;
        let inherited = parameters.inherited.iter().flat_map(|(name, value)| {
            let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            values.iter().map(move |value| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                Ok(format!("{name} {}", quoted("PARAMETER", &text)?))
            })
        });
        let slots = BTreeMap::from([
            ("name", vec![name.to_owned()]),
            ("from", vec![from]),
            ("adapter", self.adapter.iter().map(|blob| absolute(&blob.path)).collect::<Result<_>>()?),
            ("temperature", vec![parameters.temperature.to_string()]),
            ("top_p", vec![parameters.top_p.to_string()]),
            ("top_k", vec![parameters.top_k.to_string()]),
            ("num_ctx", parameters.num_ctx.iter().map(u32::to_string).collect()),
            ("repeat_penalty", vec![parameters.repeat_penalty.to_string()]),
            ("stop", parameters.stop.iter().map(|text| quoted("PARAMETER stop", text)).collect::<Result<_>>()?),
            ("inherited", inherited.collect::<Result<_>>()?),
            ("system", one("SYSTEM", &self.system)?),
            ("template", one("TEMPLATE", &self.template)?),
        ]);
        fill(template, &slots)
    }

    /// Writes the Modelfile durably to `.agent/Modelfile.<role>`; the folder is made where it is missing.
    pub fn write_modelfile(&self, path: &Path, name: &str) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        durable::write(path, self.modelfile(name)?.as_bytes())
    }
}

/// The commands that register a model later, for when Ollama cannot be reached now. `modelfile` is where it was written;
/// with `promote`, the alias is moved as well.
pub fn later_commands(modelfile: &Path, name: &str, alias: &str, promote: bool) -> Vec<String> {
    let mut commands =
        vec!["ollama serve".to_owned(), format!("ollama create {name} -f {}", shell_word(&modelfile.to_string_lossy()))];
    if promote {
        commands.push(format!("ollama cp {name} {alias}"));
    }
    commands
}

/// A word as a shell reads it back.
pub(super) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:+=@,".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Fills `{{slot}}`s: a line whose slot has no value goes, one whose slot has several is repeated. What was filled in is
/// not looked at again: a Go template has braces, too.
fn fill(template: &str, slots: &BTreeMap<&str, Vec<String>>) -> Result<String> {
    let mut filled = String::new();
    for (number, line) in template.lines().enumerate() {
        let wrong = |message: String| {
            let known: Vec<&str> = slots.keys().copied().collect();
            Error::usage(
                format!("line {} of the Modelfile template {message}", number + 1),
                format!("the slots are {}", known.join(", ")),
            )
        };
        let mut copies = vec![String::new()];
        let mut rest = line;
        while let Some((before, after)) = rest.split_once("{{") {
            let (slot, after) = after.split_once("}}").ok_or_else(|| wrong("opens a slot and does not close it".to_owned()))?;
            let values =
                slots.get(slot.trim()).ok_or_else(|| wrong(format!("has the slot '{}', which nothing fills", slot.trim())))?;
            copies = copies.iter().flat_map(|copy| values.iter().map(move |value| format!("{copy}{before}{value}"))).collect();
            rest = after;
        }
        for copy in copies {
            let _ = writeln!(filled, "{copy}{rest}");
        }
    }
    Ok(filled)
}

/// A value as Ollama's parser reads it back, byte for byte.
fn quoted(command: &str, text: &str) -> Result<String> {
    let cannot = |what: String| {
        Error::unsupported(
            format!("no Modelfile can say this text of {command}: {what}"),
            "let `retune deploy` register the model through Ollama's API, which can; or change the text",
        )
    };
    // The parser keeps what Go's strconv.IsPrint keeps, and new lines and tabs inside of quotes.
    if let Some(c) = text.chars().find(|&c| !is_print(c) && !matches!(c, '\n' | '\r' | '\t')) {
        return Err(cannot(format!("Ollama's parser drops the character U+{:04X}", u32::from(c))));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:+<>|{}()[]$%&*=,;!?@^~".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    if !text.contains(['"', '\n', '\r']) {
        return Ok(format!("\"{text}\""));
    }
    // The parser asks at every end of a line whether what it has so far ends with three quotes.
    let opened = format!("\"\"\"{text}");
    let closes_early = |end: usize| {
        let so_far = opened[..end].trim();
        so_far.len() >= 6 && so_far.ends_with("\"\"\"")
    };
    match opened.match_indices(['\n', '\r']).find(|(end, _)| closes_early(*end)) {
        Some(_) => Err(cannot("a line of it ends with three quotes".to_owned())),
        None => Ok(format!("{opened}\"\"\"")),
    }
}

/// Near Go's strconv.IsPrint: no control, format, private or unassigned characters, no space but the plain one.
fn is_print(c: char) -> bool {
    let format_character = matches!(u32::from(c),
        0xAD | 0x600..=0x605 | 0x61C | 0x6DD | 0x70F | 0x180E | 0x200B..=0x200F | 0x2028..=0x202E | 0x2060..=0x206F
        | 0xE000..=0xF8FF | 0xFEFF | 0xFFF9..=0xFFFB | 0xE0000..=0xE0FFF | 0xF0000..=0x10FFFF);
    !c.is_control() && !format_character && (c == ' ' || !c.is_whitespace())
}

#[cfg(test)]
#[path = "modelfile_tests.rs"]
mod tests;
