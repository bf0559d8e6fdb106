//! llama-server's HTTP API. Source: llama.cpp, tools/server/README.md and server-context.cpp.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Method;

use crate::domain::Message;
use crate::error::{Error, Result};
use crate::fault;
use crate::runtime::address::{Address, LLAMA_SERVER};
use crate::runtime::http::{Http, Limit, Patience, Payload, token_from_env};

/// How often a server that loads is asked again.
const LOADING_POLL: Duration = Duration::from_millis(100);
/// Any token of any vocabulary.
const SOME_TOKEN: u32 = 0;

/// A client of one llama-server. Every error says which address was tried, what for, and what to do.
pub struct Llama {
    http: Http,
}

/// What a server says of itself (`/props`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Props {
    /// The base that it holds, as its command line named it.
    pub model_path: PathBuf,
    pub total_slots: u32,
    #[serde(default)]
    pub chat_template: String,
}

/// An adapter that a server has loaded. Its id is its place on the server's command line: looked up, never kept.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct LoadedAdapter {
    pub id: u32,
    /// As its command line named it.
    pub path: PathBuf,
    /// How much of it requests get that name no adapter.
    pub scale: f32,
}

/// What a generation brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    /// Without the one that ended it.
    pub tokens: Vec<Token>,
    /// An end token came; if not, the answer stopped at its limit.
    pub ended: bool,
    /// Tokens of the prompt as the server counted them.
    pub prompt_tokens: usize,
}

/// An answer as text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heard {
    pub text: String,
    /// An end token or a stop text came; if not, it stopped at its limit.
    pub ended: bool,
    /// Generated tokens, the end with them, and the seconds that they took.
    pub tokens: usize,
    pub seconds: f64,
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub id: u32,
    pub logprob: f64,
    /// The most probable tokens here, best first, with their log-probabilities.
    pub top: Vec<(u32, f64)>,
}

impl Llama {
    /// `LLAMA_SERVER_HOST`, and a bearer token from `LLAMA_API_KEY`. Asks nothing yet.
    pub fn from_env() -> Result<Self> {
        Ok(Self::new(Address::from_env_of(&LLAMA_SERVER)?, token_from_env(&LLAMA_SERVER)))
    }

    /// On a port of this machine, with the environment's token: a process that is started here reads the same variable.
    pub fn on_loopback(port: u16) -> Self {
        Self::new(Address::loopback(&LLAMA_SERVER, port), token_from_env(&LLAMA_SERVER))
    }

    /// The token goes over loopback and https only.
    pub fn new(address: Address, token: Option<String>) -> Self {
        Self { http: Http::new(address, token, Patience::default()) }
    }

    pub fn address(&self) -> &Address {
        &self.http.address
    }

    /// `None` where nobody answers. One that still loads its model is waited for.
    pub fn props(&self) -> Result<Option<Props>> {
        let what = "say what it serves";
        let start = Instant::now();
        loop {
            let Ok(reply) = self.http.try_send(what, Method::GET, "/props", Payload::Nothing, Limit::Quick)? else {
                return Ok(None);
            };
            if reply.status == 503 && start.elapsed() < self.http.patience.idle {
                std::thread::sleep(LOADING_POLL);
                continue;
            }
            let answer = self.http.json(what, reply, Limit::Quick)?;
            return self.read(what, &answer).map(Some);
        }
    }

    /// Whether it has its model and takes requests; an error where it cannot be asked.
    pub fn is_ready(&self) -> Result<bool> {
        let what = "say whether it is ready";
        let reply = self.http.send(what, Method::GET, "/health", Payload::Nothing, Limit::Quick)?;
        if reply.status == 503 {
            return Ok(false);
        }
        self.http.json(what, reply, Limit::Quick).map(|answer| answer["status"] == "ok")
    }

    pub fn adapters(&self) -> Result<Vec<LoadedAdapter>> {
        let what = "list its adapters";
        let reply = self.http.send(what, Method::GET, "/lora-adapters", Payload::Nothing, Limit::Quick)?;
        self.read(what, &self.http.json(what, reply, Limit::Quick)?)
    }

    /// Sets how much of each adapter requests get that name none; one that is not listed gets 0. `Ok`: the server said so.
    pub fn set_scales(&self, scales: &[(u32, f32)]) -> Result<()> {
        let what = "set the scales of its adapters";
        fault::point("http lora-adapters");
        let body: Value = scales.iter().map(|(id, scale)| json!({"id": id, "scale": scale})).collect();
        self.post(what, "/lora-adapters", &body).map(drop)
    }

    /// Makes every slot forget its prompt. llama-server keeps what it computed of a prompt and uses it again for the next
    /// request that begins alike, also where the scales were changed between: such an answer is made of two adapters.
    pub fn forget_prompts(&self, slots: u32) -> Result<()> {
        for slot in 0..slots {
            fault::point(&format!("http forget {slot}"));
            let body = json!({"prompt": [SOME_TOKEN], "n_predict": 0, "id_slot": slot, "cache_prompt": false});
            self.post("forget the prompts of the former adapter", "/completion", &body)?;
        }
        Ok(())
    }

    /// The prompt that a chat request gets. A BOS that its tokenizer puts in front does not stand in it.
    pub fn apply_template(&self, messages: &[Message], tools: Option<&Value>) -> Result<String> {
        let what = "render a prompt";
        let mut body = json!({ "messages": messages });
        if let Some(tools) = tools {
            body["tools"] = tools.clone();
        }
        let answer = self.post(what, "/apply-template", &body)?;
        let prompt = answer.get("prompt").and_then(Value::as_str);
        prompt.map(str::to_owned).ok_or_else(|| self.http.garbage(what, &answer.to_string()))
    }

    /// The tokens of a prompt, as a chat request gets them: with BOS, special tokens as such.
    pub fn tokenize(&self, prompt: &str) -> Result<Vec<u32>> {
        let what = "tokenize a prompt";
        let body = json!({ "content": prompt, "add_special": true, "parse_special": true });
        let answer = self.post(what, "/tokenize", &body)?;
        self.read(what, &answer["tokens"])
    }

    /// Continues `prompt` greedily by at most `limit` tokens, with the one adapter alone, `top` alternatives a token. Nothing of
    /// an earlier request is used again.
    pub fn complete(&self, prompt: &[u32], limit: usize, top: usize, adapter: u32) -> Result<Completion> {
        let what = "continue a prompt";
        let body = json!({
            "prompt": prompt, "n_predict": limit, "n_probs": top, "temperature": 0.0, "cache_prompt": false,
            "lora": [{"id": adapter, "scale": 1.0}],
            // Whatever the command line has for other requests.
            "repeat_penalty": 1.0, "stop": [],
        });
        let answer = self.post(what, "/completion", &body)?;
        let wrong = || self.http.garbage(what, &answer.to_string());
        let one = |value: &Value| Some((u32::try_from(value.get("id")?.as_u64()?).ok()?, value.get("logprob")?.as_f64()?));
        let token = |value: &Value| {
            let (id, logprob) = one(value)?;
            let top = value.get("top_logprobs")?.as_array()?.iter().map(one).collect::<Option<_>>()?;
            Some(Token { id, logprob, top })
        };
        let tokens = answer.get("completion_probabilities").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let mut tokens: Vec<Token> = tokens.iter().map(token).collect::<Option<_>>().ok_or_else(wrong)?;
        let count = |key: &str| answer.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()).ok_or_else(wrong);
        let ended = answer["stop_type"] == "eos";
        // The one that ends an answer is counted, and listed with an empty text.
        if ended && tokens.len() == count("tokens_predicted")? {
            tokens.pop();
        }
        Ok(Completion { tokens, ended, prompt_tokens: count("tokens_evaluated")? })
    }

    /// What a client hears: at most `limit` tokens, greedily, with the one adapter alone.
    pub fn answer(&self, prompt: &[u32], limit: usize, adapter: u32) -> Result<Heard> {
        let what = "answer a prompt";
        let body = json!({
            "prompt": prompt, "n_predict": limit, "temperature": 0.0, "cache_prompt": false, "repeat_penalty": 1.0,
            "lora": [{"id": adapter, "scale": 1.0}],
        });
        let answer = self.post(what, "/completion", &body)?;
        let read = || {
            let tokens = usize::try_from(answer.get("tokens_predicted")?.as_u64()?).ok()?;
            let milliseconds = answer.pointer("/timings/predicted_ms")?.as_f64()?;
            let text = answer.get("content")?.as_str()?.to_owned();
            Some(Heard { text, ended: answer["stop_type"] != "limit", tokens, seconds: milliseconds * 1e-3 })
        };
        read().ok_or_else(|| self.http.garbage(what, &answer.to_string()))
    }

    fn post(&self, what: &str, path: &str, body: &Value) -> Result<Value> {
        let reply = self.http.send(what, Method::POST, path, Payload::Json(body), Limit::Idle)?;
        self.http.json(what, reply, Limit::Idle)
    }

    fn read<T: serde::de::DeserializeOwned>(&self, what: &str, answer: &Value) -> Result<T> {
        T::deserialize(answer).map_err(|_| self.http.garbage(what, &answer.to_string()))
    }

    /// It said that it did what it did not.
    pub fn lied(&self, said: &str, found: &str) -> Error {
        Error::server(
            format!("llama-server at {} said that it {said}, but {found}", self.address()),
            "restart it with its start script in .agent/llama-server, then run the same command again",
        )
    }
}
