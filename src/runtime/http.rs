//! One HTTP exchange with a server, and what its failures mean: dead, slow, refusing, or another program altogether.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::time::Duration;

use serde_json::Value;
use ureq::http::{Method, Response};
use ureq::{Agent, Body, SendBody};

use super::address::{Address, ServerKind};
use crate::error::{Error, Result};

/// No single answer or line of such a server is near this; what is larger is not read into memory.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// How much of a strange answer an error shows.
const SHOWN_CHARS: usize = 120;

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For the connection, TLS included.
    pub connect: Duration,
    /// For a whole request that is answered from memory or small files: version, tags, show, copy, delete.
    pub quick: Duration,
    /// For the next byte where the server works: loading a model, generating, creating, hashing an upload.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), quick: Duration::from_secs(60), idle: Duration::from_secs(600) }
    }
}

/// Which limit a request runs under.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    Quick,
    Idle,
}

/// What a request carries.
pub(super) enum Payload<'a> {
    Nothing,
    Json(&'a Value),
    /// A stream of known length.
    Bytes {
        reader: &'a mut dyn Read,
        length: u64,
    },
}

/// An answer whose body has not been read.
pub(super) struct Reply {
    pub status: u16,
    body: Body,
}

#[derive(Clone)]
pub(super) struct Http {
    agent: Agent,
    pub address: Address,
    token: Option<String>,
    pub patience: Patience,
}

impl Http {
    pub fn new(address: Address, token: Option<String>, patience: Patience) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect could carry a model or a token to another host.
            .max_redirects(0)
            // A server restarts between two calls of a long training; a fresh connection never meets a dead one.
            .max_idle_connections(0)
            .timeout_connect(Some(patience.connect))
            .user_agent(concat!("retune/", env!("CARGO_PKG_VERSION")));
        if address.is_loopback() {
            // A proxy from the environment does not know this machine's loopback.
            config = config.proxy(None);
        }
        Self { agent: config.build().into(), address, token, patience }
    }

    /// The same server under other limits.
    pub fn with_patience(self, patience: Patience) -> Self {
        Self::new(self.address, self.token, patience)
    }

    /// `what` completes "Ollama did not ...": "create my-coder:v1".
    pub fn send(&self, what: &str, method: Method, path: &str, payload: Payload, limit: Limit) -> Result<Reply> {
        self.try_send(what, method, path, payload, limit)?.map_err(|why| self.dead(what, &why))
    }

    /// `send`, where nobody being there is no error: why nobody answers.
    pub fn try_send(
        &self,
        what: &str,
        method: Method,
        path: &str,
        payload: Payload,
        limit: Limit,
    ) -> Result<Result<Reply, String>> {
        let kind = self.kind();
        let mut request = ureq::http::Request::builder().method(method).uri(self.address.url(path));
        if let Some(authorization) = self.authorization() {
            request = request.header("authorization", authorization);
        }
        let body_wrong = |error: ureq::http::Error| {
            Error::usage(
                format!("cannot ask {} to {what}: {error}", kind.name),
                format!("check {} and {} for stray characters", kind.host_variable, kind.key_variable),
            )
        };
        let response = match payload {
            Payload::Nothing => self.run(request.body(SendBody::none()).map_err(body_wrong)?, limit),
            Payload::Json(value) => {
                let text = value.to_string();
                let request = request.header("content-type", "application/json").header("content-length", text.len());
                self.run(request.body(SendBody::from_reader(&mut text.as_bytes())).map_err(body_wrong)?, limit)
            }
            Payload::Bytes { reader, length } => {
                let request = request.header("content-type", "application/octet-stream").header("content-length", length);
                self.run(request.body(SendBody::from_reader(reader)).map_err(body_wrong)?, limit)
            }
        };
        let response = match response {
            Ok(response) => response,
            Err(error) => return self.why_dead(&error).map(Err).ok_or_else(|| self.failure(what, error, limit)),
        };
        let status = response.status().as_u16();
        if (300..400).contains(&status) {
            let target = response.headers().get("location").and_then(|l| l.to_str().ok()).unwrap_or("nowhere");
            return Err(Error::server(
                format!("{} answers the request to {what} with a redirect to {target}, which is not followed", self.address),
                format!("set {} to the address that {} itself has", kind.host_variable, kind.name),
            ));
        }
        Ok(Ok(Reply { status, body: response.into_body() }))
    }

    /// In the clear over a network, a token would be anybody's: it is sent over loopback and https only.
    pub fn authorization(&self) -> Option<String> {
        self.token.as_ref().filter(|_| self.address.is_private()).map(|token| format!("Bearer {token}"))
    }

    fn run(&self, request: ureq::http::Request<SendBody>, limit: Limit) -> Result<Response<Body>, ureq::Error> {
        let configured = self.agent.configure_request(request);
        let request = match limit {
            Limit::Quick => configured.timeout_global(Some(self.patience.quick)),
            Limit::Idle => configured
                .timeout_per_read(Some(self.patience.idle))
                .timeout_per_write(Some(self.patience.idle))
                .timeout_recv_response(Some(self.patience.idle)),
        }
        .build();
        self.agent.run(request)
    }

    /// The whole body as text.
    pub fn text(&self, what: &str, reply: Reply, limit: Limit) -> Result<String> {
        let bytes = reply.body.into_with_config().limit(MAX_ANSWER_BYTES).read_to_vec();
        let bytes = bytes.map_err(|error| self.failure(what, error, limit))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The whole body as JSON; a status other than 2xx is an error with the server's own words.
    pub fn json(&self, what: &str, reply: Reply, limit: Limit) -> Result<Value> {
        let status = reply.status;
        let text = self.text(what, reply, limit)?;
        if !(200..300).contains(&status) {
            return Err(self.refusal(what, status, &text));
        }
        let value: Value = serde_json::from_str(&text).map_err(|_| self.garbage(what, &text))?;
        match error_in(&value) {
            Some(error) => Err(self.refusal(what, status, &error)),
            None => Ok(value),
        }
    }

    /// Lines of JSON. A line with `error` is a failure whatever follows it; the rest of the stream is still read, as
    /// Ollama 0.17 waits for somebody to take it.
    pub fn lines(&self, what: &str, reply: Reply, mut on_line: impl FnMut(&Value)) -> Result<()> {
        let status = reply.status;
        if !(200..300).contains(&status) {
            let text = self.text(what, reply, Limit::Idle)?;
            return Err(self.refusal(what, status, &text));
        }
        let mut reader = BufReader::new(reply.body.into_with_config().limit(u64::MAX).reader());
        let mut first_error: Option<String> = None;
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut reader).take(MAX_ANSWER_BYTES).read_until(b'\n', &mut line);
            match (read, first_error) {
                // After an error line nothing that happens to the stream makes it better.
                (Ok(0) | Err(_), Some(error)) => return Err(self.refusal(what, status, &error)),
                (Ok(0), None) => return Ok(()),
                (Err(error), None) => return Err(self.failure(what, error.into(), Limit::Idle)),
                (Ok(_), earlier) => first_error = earlier,
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let Ok(value) = serde_json::from_slice::<Value>(&line) else {
                let text = String::from_utf8_lossy(&line);
                return Err(first_error.map_or_else(|| self.garbage(what, &text), |error| self.refusal(what, status, &error)));
            };
            match error_in(&value) {
                Some(error) => first_error = first_error.or(Some(error)),
                None if first_error.is_none() => on_line(&value),
                None => {}
            }
        }
    }

    /// The server said no.
    pub fn refusal(&self, what: &str, status: u16, text: &str) -> Error {
        let said = serde_json::from_str(text).ok().and_then(|value| error_in(&value)).unwrap_or_else(|| text.trim().to_owned());
        let said = if said.is_empty() { "(no reason given)".to_owned() } else { shorten(&said, 600) };
        let status_text = if (200..300).contains(&status) { String::new() } else { format!(" (HTTP {status})") };
        let kind = self.kind();
        let (key, host) = (kind.key_variable, kind.host_variable);
        let hint = match status {
            401 | 403 if self.token.is_some() && !self.address.is_private() => {
                format!("{key} is set but was not sent, as http:// would show it to the network; use https://")
            }
            401 | 403 => format!("set {key} to a token that this server takes"),
            404 if !text.contains("error") => format!("is that address {}? set {host} to the right one", kind.one),
            _ if status == 507 || said.contains("no space left") => {
                "free some space on the disk of the server, then run the same command again".to_owned()
            }
            _ => format!("{}'s own log says more; what it served before it still serves", kind.name),
        };
        Error::server(format!("{} at {} did not {what}{status_text}: {said}", kind.name, self.address), hint)
    }

    /// Something answered that is not what such a server says.
    pub fn garbage(&self, what: &str, text: &str) -> Error {
        let kind = self.kind();
        let text = shorten(text.trim(), SHOWN_CHARS);
        Error::server(
            format!("asked to {what}, {} answered what no {} says: {text}", self.address, kind.name),
            format!("is something else listening there? set {} to {}'s own address", kind.host_variable, kind.name),
        )
    }

    fn kind(&self) -> &'static ServerKind {
        self.address.kind
    }

    fn dead(&self, what: &str, why: &str) -> Error {
        let kind = self.kind();
        Error::server(
            format!("no {} answers at {} ({why}); it was asked to {what}", kind.name, self.address),
            format!("start it with {}, or set {} to where it runs", kind.start, kind.host_variable),
        )
    }

    /// Why nobody answers; `None` where somebody did, or may have.
    fn why_dead(&self, error: &ureq::Error) -> Option<String> {
        use ureq::Timeout::{Connect, Resolve};
        match error {
            ureq::Error::Timeout(Connect | Resolve) => {
                Some(format!("no connection within {} s", self.patience.connect.as_secs_f64()))
            }
            ureq::Error::HostNotFound => Some("no host of that name".to_owned()),
            ureq::Error::ConnectionFailed => Some("the connection failed".to_owned()),
            ureq::Error::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => Some("connection refused".to_owned()),
                io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::NetworkDown
                | io::ErrorKind::AddrNotAvailable
                | io::ErrorKind::PermissionDenied => Some(error.to_string()),
                // What std says where the resolver finds no address; it has no kind of its own.
                _ if error.to_string().starts_with("failed to lookup") => Some(error.to_string()),
                _ => None,
            },
            _ => None,
        }
    }

    fn failure(&self, what: &str, error: ureq::Error, limit: Limit) -> Error {
        let (address, kind) = (&self.address, self.kind());
        if let Some(why) = self.why_dead(&error) {
            return self.dead(what, &why);
        }
        let slow = || {
            let (secs, limit) = match limit {
                Limit::Quick => (self.patience.quick.as_secs_f64(), "no whole answer"),
                Limit::Idle => (self.patience.idle.as_secs_f64(), "nothing more"),
            };
            Error::server(
                format!("{} at {address} is too slow to {what}: {limit} within {secs} s", kind.name),
                format!("{}; run the same command again when it is idle", kind.busy),
            )
        };
        match error {
            ureq::Error::Timeout(_) => slow(),
            ureq::Error::Io(error) => match error.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => slow(),
                _ => self.hung_up(what, &error.to_string()),
            },
            ureq::Error::BodyExceedsLimit(_) => self.garbage(what, "more than 64 MiB"),
            error @ (ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_)) => Error::server(
                format!("no secure connection to {address}: {error}; it was asked to {what}"),
                format!("check the server's certificate, or set {} to where {} runs", kind.host_variable, kind.name),
            ),
            ureq::Error::Protocol(error) => self.garbage(what, &error.to_string()),
            error => self.hung_up(what, &error.to_string()),
        }
    }

    /// The connection ended before the answer did.
    pub fn hung_up(&self, what: &str, why: &str) -> Error {
        Error::server(
            format!("{} at {} hung up when it was asked to {what}: {why}", self.kind().name, self.address),
            format!("look into {}'s log (did it crash, was it restarted?), then run the same command again", self.kind().name),
        )
    }
}

/// The kind's token, where the environment has one.
pub(super) fn token_from_env(kind: &ServerKind) -> Option<String> {
    let token = std::env::var(kind.key_variable).ok()?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

/// Counts what is read from a file on its way to the server.
pub(super) struct Metered<'a> {
    pub file: File,
    pub sent_bytes: u64,
    pub on_progress: &'a mut dyn FnMut(u64),
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.sent_bytes += n as u64;
        (self.on_progress)(self.sent_bytes);
        Ok(n)
    }
}

/// The text under `error`, also where it is an object (`{"error": {"message": ...}}`).
fn error_in(value: &Value) -> Option<String> {
    match value.get("error")? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.get("message").and_then(Value::as_str).map_or_else(|| other.to_string(), str::to_owned)),
    }
}

fn shorten(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}
