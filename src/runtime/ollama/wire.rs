//! What goes over the wire: requests as Ollama wants them, answers with what we need of them. Source: ollama, api/types.go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::blob::digest_in;
use crate::domain::Message;

/// One model of `/api/tags`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Tag {
    pub name: String,
    /// SHA-256 of the model's manifest: the same for two names of one model.
    #[serde(default)]
    pub digest: String,
    #[serde(default)]
    pub size: u64,
}

/// `/api/show`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Shown {
    pub modelfile: String,
    pub template: String,
    pub system: String,
    /// A line a parameter, name and value in Go's notation; `parameters()` reads it.
    #[serde(rename = "parameters")]
    pub parameters_text: String,
    pub capabilities: Vec<String>,
    pub model_info: Map<String, Value>,
}

/// The value of a parameter of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum ParameterValue {
    Number(f64),
    Flag(bool),
    Text(String),
}

impl Shown {
    /// `llama`, `qwen2`, ...: what the file says of itself.
    pub fn architecture(&self) -> Option<&str> {
        self.model_info.get("general.architecture").and_then(Value::as_str)
    }

    /// The digests of the GGUF files that are served: the model first, then projectors.
    pub fn model_blobs(&self) -> Vec<String> {
        self.blobs("FROM ")
    }

    pub fn adapter_blobs(&self) -> Vec<String> {
        self.blobs("ADAPTER ")
    }

    /// FROM and ADAPTER lines stand before everything whose text is the user's, which could hold such lines too.
    fn blobs(&self, command: &str) -> Vec<String> {
        self.modelfile
            .lines()
            .take_while(|line| {
                !["TEMPLATE ", "SYSTEM ", "PARAMETER ", "LICENSE ", "MESSAGE "].iter().any(|user| line.starts_with(user))
            })
            .filter_map(|line| digest_in(line.strip_prefix(command)?))
            .collect()
    }

    /// Name and value of each parameter; a list (`stop`) has an entry each. In no particular order.
    pub fn parameters(&self) -> Vec<(String, ParameterValue)> {
        let mut found = Vec::new();
        for line in self.parameters_text.lines() {
            let Some((name, value)) = line.split_once(char::is_whitespace) else { continue };
            let value = value.trim();
            let value = match (value, value.parse::<f64>()) {
                ("true", _) => ParameterValue::Flag(true),
                ("false", _) => ParameterValue::Flag(false),
                (_, Ok(number)) => ParameterValue::Number(number),
                // Go's quoting is JSON's for everything but a few control characters.
                (text, Err(_)) => {
                    ParameterValue::Text(serde_json::from_str(text).unwrap_or_else(|_| text.trim_matches('"').to_owned()))
                }
            };
            found.push((name.to_owned(), value));
        }
        found
    }
}

/// `/api/create`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CreateRequest {
    pub model: String,
    /// The name of a model that is there already; it hands down what is not given here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// File name to digest.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub adapters: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub parameters: Map<String, Value>,
}

/// Settings of one generation. What is `None` is the model's own.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Options {
    pub temperature: f64,
    pub seed: u64,
    /// At most so many new tokens.
    pub num_predict: usize,
    /// 1 is none. Ollama 0.17 has 1.1 where nothing is said, which changes even a greedy answer.
    pub repeat_penalty: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_ctx: Option<usize>,
    /// An empty list switches the model's own stop texts off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Vec<String>>,
}

impl Options {
    /// The most probable token each time, nothing in the way.
    pub fn greedy(num_predict: usize) -> Self {
        Self { temperature: 0.0, seed: 0, num_predict, repeat_penalty: 1.0, num_ctx: None, stop: None }
    }
}

/// One generated token as it was served.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServedToken {
    /// Its text; Ollama replaces bytes that are no UTF-8 by U+FFFD.
    pub text: String,
    pub logprob: f64,
    /// The most probable tokens here, best first, with their log-probabilities.
    pub top: Vec<(String, f64)>,
}

/// What a generation brought, its stream put together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub text: String,
    pub tokens: Vec<ServedToken>,
    /// `stop` or `length`.
    pub done_reason: String,
    /// Tokens of the prompt as the runner counted them, BOS included.
    pub prompt_tokens: Option<usize>,
    /// Generated tokens.
    pub eval_tokens: Option<usize>,
    /// Seconds that their generation took, without loading the model and without reading the prompt.
    pub eval_seconds: Option<f64>,
    /// What `_debug_render_only` brought instead of an answer.
    pub rendered: Option<String>,
    pub tool_calls: Vec<Value>,
    pub done: bool,
}

impl Answer {
    /// Takes in one line of `/api/generate` or `/api/chat`.
    pub(super) fn add(&mut self, line: &Value) {
        let message = line.get("message");
        let text = line.get("response").or_else(|| message.and_then(|m| m.get("content"))).and_then(Value::as_str);
        self.text.push_str(text.unwrap_or_default());
        if let Some(calls) = message.and_then(|m| m.get("tool_calls")).and_then(Value::as_array) {
            self.tool_calls.extend(calls.iter().cloned());
        }
        for token in line.get("logprobs").and_then(Value::as_array).into_iter().flatten() {
            let (text, logprob) = token_of(token);
            let top = token.get("top_logprobs").and_then(Value::as_array).into_iter().flatten().map(token_of).collect();
            self.tokens.push(ServedToken { text, logprob, top });
        }
        let count = |key: &str| line.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        self.prompt_tokens = count("prompt_eval_count").or(self.prompt_tokens);
        self.eval_tokens = count("eval_count").or(self.eval_tokens);
        let nanoseconds = line.get("eval_duration").and_then(Value::as_f64);
        self.eval_seconds = nanoseconds.map(|ns| ns * 1e-9).or(self.eval_seconds);
        if let Some(rendered) = line.pointer("/_debug_info/rendered_template").and_then(Value::as_str) {
            self.rendered = Some(rendered.to_owned());
        }
        if line.get("done").and_then(Value::as_bool) == Some(true) {
            self.done = true;
            self.done_reason = line.get("done_reason").and_then(Value::as_str).unwrap_or("stop").to_owned();
        }
    }
}

fn token_of(value: &Value) -> (String, f64) {
    let text = value.get("token").and_then(Value::as_str).unwrap_or_default().to_owned();
    (text, value.get("logprob").and_then(Value::as_f64).unwrap_or(f64::NAN))
}

/// A turn as `/api/chat` takes it. Rows follow OpenAI, where the arguments of a tool call are JSON in a string; Ollama
/// wants the object itself.
pub(super) fn message_json(message: &Message) -> Value {
    let mut wire = json!({ "role": message.role, "content": message.content });
    if let Some(calls) = message.extra.get("tool_calls").and_then(Value::as_array) {
        let calls = calls.iter().map(|call| {
            let function = call.get("function").unwrap_or(call);
            let arguments = function.get("arguments").cloned().unwrap_or_else(|| json!({}));
            let arguments = arguments.as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or(arguments);
            json!({ "function": { "name": function.get("name"), "arguments": arguments } })
        });
        wire["tool_calls"] = calls.collect();
    }
    for (ours, theirs) in
        [("reasoning_content", "thinking"), ("thinking", "thinking"), ("name", "tool_name"), ("tool_name", "tool_name")]
    {
        if let Some(value) = message.extra.get(ours).filter(|value| value.is_string()) {
            wire[theirs] = value.clone();
        }
    }
    wire
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn the_served_blobs_are_those_of_from_and_adapter_before_any_text_of_the_user() {
        let other = HEX.replace('b', "c");
        let shown = Shown {
            modelfile: format!(
                "# Modelfile\n# FROM m:latest\n\nFROM /m/blobs/sha256-{HEX}\nADAPTER /m/blobs/sha256-{other}\nTEMPLATE \"\"\"x\nFROM /m/sha256-{other}\n\"\"\"\n"
            ),
            ..Shown::default()
        };
        assert_eq!(shown.model_blobs(), [format!("sha256:{HEX}")]);
        assert_eq!(shown.adapter_blobs(), [format!("sha256:{other}")]);
    }

    #[test]
    fn parameters_are_read_from_gos_notation() {
        let text = "temperature                    0.2\nstop                           \"<|im_end|>\"\nstop                           \"\\n### \\\"x\\\"\"\nnum_ctx                        131072\nuse_mmap                       true";
        let shown = Shown { parameters_text: text.to_owned(), ..Shown::default() };
        let (name, stop) = ("stop".to_owned(), |text: &str| ParameterValue::Text(text.to_owned()));
        assert_eq!(
            shown.parameters(),
            [
                ("temperature".to_owned(), ParameterValue::Number(0.2)),
                (name.clone(), stop("<|im_end|>")),
                (name, stop("\n### \"x\"")),
                ("num_ctx".to_owned(), ParameterValue::Number(131_072.0)),
                ("use_mmap".to_owned(), ParameterValue::Flag(true)),
            ]
        );
    }

    #[test]
    fn the_lines_of_a_stream_become_one_answer() {
        let mut answer = Answer::default();
        for line in [
            json!({"response": "On", "logprobs": [{"token": "On", "logprob": -0.5, "top_logprobs": [{"token": "On", "logprob": -0.5}, {"token": "A", "logprob": -1.5}]}]}),
            json!({"response": "ce", "logprobs": [{"token": "ce", "logprob": -0.25}]}),
            json!({"response": "", "done": true, "done_reason": "length", "prompt_eval_count": 3, "eval_count": 2, "eval_duration": 500_000_000}),
        ] {
            answer.add(&line);
        }
        assert_eq!((answer.text.as_str(), answer.done, answer.done_reason.as_str()), ("Once", true, "length"));
        assert_eq!((answer.prompt_tokens, answer.eval_tokens, answer.eval_seconds), (Some(3), Some(2), Some(0.5)));
        assert_eq!(answer.tokens[0].top[1], ("A".to_owned(), -1.5));
        assert_eq!(answer.tokens[1].logprob, -0.25);
    }

    #[test]
    fn tool_calls_go_out_as_objects() {
        let mut message = Message::new("assistant", "");
        message.extra.insert(
            "tool_calls".to_owned(),
            json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]),
        );
        assert_eq!(
            message_json(&message),
            json!({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]})
        );
    }
}
