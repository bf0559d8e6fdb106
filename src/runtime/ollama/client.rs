//! Ollama's HTTP API. Source: ollama, docs/api.md and server/routes.go of 0.17 and 0.34.

use std::fs::File;
use std::path::Path;

use serde_json::{Value, json};
use ureq::http::Method;

use super::store::Store;
use super::wire::{Answer, CreateRequest, Options, Shown, Tag, message_json};
use crate::domain::Message;
use crate::error::{Error, Result};
use crate::fault;
use crate::runtime::address::{Address, OLLAMA};
use crate::runtime::http::{Http, Limit, Metered, Patience, Payload, Reply, token_from_env};
use crate::runtime::{Held, HeldFile, Registry};

/// A client of one Ollama. Every error says which address was tried, what for, and what to do.
#[derive(Clone)]
pub struct Ollama {
    http: Http,
}

/// A conversation that the model is to answer.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    pub messages: &'a [Message],
    /// Tools as the row has them (a list in OpenAI's shape).
    pub tools: Option<&'a Value>,
}

impl Ollama {
    /// `OLLAMA_HOST`, and a bearer token from `OLLAMA_API_KEY`. Asks nothing yet.
    pub fn from_env() -> Result<Self> {
        Ok(Self::new(Address::from_env()?, token_from_env(&OLLAMA)))
    }

    /// The token goes over loopback and https only.
    pub fn new(address: Address, token: Option<String>) -> Self {
        Self { http: Http::new(address, token, Patience::default()) }
    }

    pub fn with_patience(self, patience: Patience) -> Self {
        Self { http: self.http.with_patience(patience) }
    }

    pub fn address(&self) -> &Address {
        &self.http.address
    }

    /// For example `0.34.1`.
    pub fn version(&self) -> Result<String> {
        let what = "say its version";
        let answer = self.get(what, "/api/version")?;
        let version = answer.get("version").and_then(Value::as_str);
        version.map(str::to_owned).ok_or_else(|| self.http.garbage(what, &answer.to_string()))
    }

    /// What a model is made of; `None` where there is no such model.
    pub fn show(&self, name: &str) -> Result<Option<Shown>> {
        let what = format!("show {name}");
        let reply = self.http.send(&what, Method::POST, "/api/show", Payload::Json(&json!({ "model": name })), Limit::Quick)?;
        let status = reply.status;
        if status == 404 {
            let text = self.http.text(&what, reply, Limit::Quick)?;
            return if text.contains("not found") { Ok(None) } else { Err(self.http.refusal(&what, status, &text)) };
        }
        let answer = self.http.json(&what, reply, Limit::Quick)?;
        let shown: Shown = serde_json::from_value(answer.clone()).map_err(|_| self.http.garbage(&what, &answer.to_string()))?;
        if shown.modelfile.is_empty() { Err(self.http.garbage(&what, &answer.to_string())) } else { Ok(Some(shown)) }
    }

    /// Whether the server has the blob (`sha256:<hex>`).
    pub fn has_blob(&self, digest: &str) -> Result<bool> {
        let what = format!("look for blob {digest}");
        let reply = self.http.send(&what, Method::HEAD, &format!("/api/blobs/{digest}"), Payload::Nothing, Limit::Quick)?;
        match reply.status {
            200 => Ok(true),
            404 => Ok(false),
            status => Err(self.http.refusal(&what, status, "")),
        }
    }

    /// Sends the file unless it is there already; `on_progress` hears the bytes sent so far. `true`: it was sent.
    pub fn push_blob(&self, path: &Path, digest: &str, on_progress: &mut dyn FnMut(u64)) -> Result<bool> {
        if self.has_blob(digest)? {
            return Ok(false);
        }
        let what = format!("take {} as blob {digest}", path.display());
        let file = File::open(path).map_err(Error::io("open", path))?;
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        let mut reader = Metered { file, sent_bytes: 0, on_progress };
        fault::point(&format!("http push {digest}"));
        let payload = Payload::Bytes { reader: &mut reader, length };
        let reply = self.http.send(&what, Method::POST, &format!("/api/blobs/{digest}"), payload, Limit::Idle)?;
        match reply.status {
            200 | 201 => Ok(true),
            status => {
                let text = self.http.text(&what, reply, Limit::Idle)?;
                let error = self.http.refusal(&what, status, &text);
                if !text.contains("digest mismatch") {
                    return Err(error);
                }
                Err(Error::server(
                    error.to_string(),
                    "the file changed while it was read; wait until nothing writes to it, then run the same command again",
                ))
            }
        }
    }

    /// Creates a model; `on_status` hears what Ollama says it does. `Ok` means that the stream ended with `success` and
    /// had no error in it, not that the model is what was asked for: look with `show`.
    pub fn create(&self, request: &CreateRequest, on_status: &mut dyn FnMut(&str)) -> Result<()> {
        let what = format!("create {}", request.model);
        let body = to_json(request)?;
        fault::point(&format!("http create {}", request.model));
        let reply = self.http.send(&what, Method::POST, "/api/create", Payload::Json(&body), Limit::Idle)?;
        let mut last = String::new();
        self.http.lines(&what, reply, |line| {
            if let Some(status) = line.get("status").and_then(Value::as_str) {
                on_status(status);
                last = status.to_owned();
            }
        })?;
        if last == "success" {
            return Ok(());
        }
        Err(self.http.hung_up(&what, &format!("the stream ended after '{last}', expected 'success'")))
    }

    /// Continues a text as it is, with no template; `top` alternatives with log-probabilities a token (at most 20).
    pub fn generate(&self, model: &str, prompt: &str, options: &Options, top: usize) -> Result<Answer> {
        let body = json!({
            "model": model, "prompt": prompt, "raw": true, "stream": true,
            "options": to_json(options)?, "logprobs": top > 0, "top_logprobs": top,
        });
        self.answer(&format!("continue a text with {model}"), "/api/generate", &body)
    }

    /// Answers a conversation through the model's template.
    pub fn chat(&self, model: &str, probe: Probe, options: &Options, top: usize) -> Result<Answer> {
        let mut body = chat_body(model, probe, options)?;
        body["logprobs"] = json!(top > 0);
        body["top_logprobs"] = json!(top);
        self.answer(&format!("answer as {model}"), "/api/chat", &body)
    }

    /// `chat` whose answer is JSON as `schema` wants it; a model that can think does not.
    pub fn chat_as(&self, model: &str, probe: Probe, options: &Options, schema: &Value, can_think: bool) -> Result<Answer> {
        let mut body = chat_body(model, probe, options)?;
        body["format"] = schema.clone();
        if can_think {
            body["think"] = json!(false);
        }
        self.answer(&format!("answer as {model}"), "/api/chat", &body)
    }

    /// The prompt that the model would get; `None` where this Ollama cannot tell.
    pub fn render_only(&self, model: &str, probe: Probe) -> Result<Option<String>> {
        // An Ollama that does not know the flag answers: with one token, so that little is lost.
        let mut body = chat_body(model, probe, &Options::greedy(1))?;
        body["_debug_render_only"] = json!(true);
        let what = format!("render a prompt for {model}");
        let reply = self.http.send(&what, Method::POST, "/api/chat", Payload::Json(&body), Limit::Idle)?;
        let mut answer = Answer::default();
        self.http.lines(&what, reply, |line| answer.add(line))?;
        Ok(answer.rendered)
    }

    /// How many tokens the model gets for a conversation, BOS included.
    pub fn prompt_eval_count(&self, model: &str, probe: Probe) -> Result<usize> {
        // Some versions say nothing of a prompt that is still in the cache of the loaded model.
        for attempt in 0..2 {
            if attempt > 0 {
                self.unload(model)?;
            }
            if let Some(count) = self.chat(model, probe, &Options::greedy(1), 0)?.prompt_tokens {
                return Ok(count);
            }
        }
        Err(self.http.garbage(&format!("count the tokens of a prompt for {model}"), "an answer without prompt_eval_count"))
    }

    /// Bytes that a loaded model holds, on every device, by the digest of its manifest: it is listed under the name that loaded it,
    /// whatever it is called now. `None` where it is not loaded, or this Ollama does not tell.
    pub fn memory_bytes(&self, digest: &str) -> Result<Option<u64>> {
        let answer = self.get("tell which models are loaded", "/api/ps")?;
        let mut loaded = answer.get("models").and_then(Value::as_array).into_iter().flatten();
        let found = loaded.find(|entry| entry.get("digest").and_then(Value::as_str) == Some(digest));
        Ok(found.and_then(|entry| entry.get("size")?.as_u64()).filter(|&size| size > 0))
    }

    /// Frees the model's memory; no such model is fine.
    pub fn unload(&self, model: &str) -> Result<()> {
        let what = format!("unload {model}");
        let body = json!({ "model": model, "keep_alive": 0, "stream": false });
        let reply = self.http.send(&what, Method::POST, "/api/generate", Payload::Json(&body), Limit::Idle)?;
        if reply.status == 404 {
            return Ok(());
        }
        self.http.json(&what, reply, Limit::Idle).map(drop)
    }

    fn get(&self, what: &str, path: &str) -> Result<Value> {
        let reply = self.http.send(what, Method::GET, path, Payload::Nothing, Limit::Quick)?;
        self.http.json(what, reply, Limit::Quick)
    }

    fn answer(&self, what: &str, path: &str, body: &Value) -> Result<Answer> {
        let reply = self.http.send(what, Method::POST, path, Payload::Json(body), Limit::Idle)?;
        let mut answer = Answer::default();
        self.http.lines(what, reply, |line| answer.add(line))?;
        if answer.done { Ok(answer) } else { Err(self.http.hung_up(what, "the stream ended before the answer did")) }
    }

    fn empty_answer(&self, what: &str, reply: Reply) -> Result<()> {
        let status = reply.status;
        let text = self.http.text(what, reply, Limit::Quick)?;
        if (200..300).contains(&status) && !text.contains("\"error\"") {
            Ok(())
        } else {
            Err(self.http.refusal(what, status, &text))
        }
    }
}

impl Registry for Ollama {
    fn id(&self) -> String {
        self.address().to_string()
    }

    fn title(&self) -> String {
        format!("Ollama at {}", self.address())
    }

    fn look(&self) -> &'static str {
        "ollama list"
    }

    /// Sorted: Ollama's own order is by time and changes between two calls where that is equal.
    fn tags(&self) -> Result<Vec<Tag>> {
        let what = "list its models";
        let answer = self.get(what, "/api/tags")?;
        let mut tags: Vec<Tag> = match answer.get("models") {
            Some(Value::Null) => Vec::new(),
            Some(models) => serde_json::from_value(models.clone()).map_err(|_| self.http.garbage(what, &answer.to_string()))?,
            None => return Err(self.http.garbage(what, &answer.to_string())),
        };
        tags.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(tags)
    }

    fn copy(&self, from: &str, to: &str) -> Result<()> {
        let what = format!("copy {from} to {to}");
        fault::point(&format!("http copy {from} {to}"));
        let body = json!({ "source": from, "destination": to });
        let reply = self.http.send(&what, Method::POST, "/api/copy", Payload::Json(&body), Limit::Quick)?;
        self.empty_answer(&what, reply)
    }

    fn delete(&self, name: &str) -> Result<bool> {
        let what = format!("delete {name}");
        fault::point(&format!("http delete {name}"));
        let reply =
            self.http.send(&what, Method::DELETE, "/api/delete", Payload::Json(&json!({ "model": name })), Limit::Quick)?;
        if reply.status == 404 {
            return Ok(false);
        }
        self.empty_answer(&what, reply).map(|()| true)
    }

    /// From the store, where it can be read here; else what `show` says: the weights, without their sizes.
    fn held(&self, tag: &Tag) -> Result<Option<Held>> {
        if let Some(held) = Store::from_env().held(tag) {
            return Ok(Some(held));
        }
        let Some(shown) = self.show(&tag.name)? else { return Ok(None) };
        let mut digests = shown.model_blobs();
        digests.extend(shown.adapter_blobs());
        digests.sort();
        digests.dedup();
        if digests.is_empty() {
            return Ok(None);
        }
        let files = digests.into_iter().map(|digest| HeldFile { digest, size_bytes: None, is_weights: true }).collect();
        // The Modelfile tells every text and parameter; JSON may write them longer, and the configuration comes on top.
        let texts_at_most_bytes = 2 * (shown.modelfile.len() + shown.template.len()) as u64 + 4096;
        Ok(Some(Held { own_bytes: 0, files, is_whole: false, texts_at_most_bytes }))
    }

    fn has_file(&self, digest: &str) -> Result<bool> {
        self.has_blob(digest)
    }
}

/// `truncate: false`: a prompt that does not fit is an error, never silently another prompt.
fn chat_body(model: &str, probe: Probe, options: &Options) -> Result<Value> {
    let messages: Vec<Value> = probe.messages.iter().map(message_json).collect();
    let mut body =
        json!({ "model": model, "messages": messages, "stream": true, "truncate": false, "options": to_json(options)? });
    if let Some(tools) = probe.tools {
        body["tools"] = tools.clone();
    }
    Ok(body)
}

fn to_json(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value)
        .map_err(|error| Error::usage(format!("a request to Ollama cannot be written: {error}"), "report this as a bug"))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
