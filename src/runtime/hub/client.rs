//! One HTTP exchange with the hub, and what its failures mean.

use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, Method, Response, Uri};
use ureq::{Agent, Body, SendBody};

use super::cache::{is_commit, token_file};
use super::{HubId, Remote};
use crate::error::{Error, Result};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// A listing of thousands of files is near a megabyte.
const MAX_LISTING_BYTES: u64 = 64 << 20;
const MAX_REDIRECTS: usize = 8;
/// Attempts in a row that bring nothing new.
pub(super) const ATTEMPTS: u32 = 4;
/// A server that asks for more patience than this is not waited for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The network or a busy server: the same may work in a moment.
    Passing { why: String, retry_after: Option<Duration> },
    /// Trying again gives the same.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

pub(super) fn passing(why: impl Into<String>) -> Failure {
    Failure::Passing { why: why.into(), retry_after: None }
}

/// A token, and where it came from, for messages.
struct Token {
    text: String,
    source: String,
}

pub(super) struct Client {
    agent: Agent,
    /// Without a slash at its end.
    pub endpoint: String,
    token: Option<Token>,
    /// For the connection and the head of an answer.
    answer: Duration,
    /// For the next bytes of a file.
    stall: Duration,
}

/// What the hub lists of a model.
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

impl Client {
    /// `HF_ENDPOINT`, `HF_TOKEN` or the token file, `HF_HUB_ETAG_TIMEOUT` and `HF_HUB_DOWNLOAD_TIMEOUT` (seconds, 10).
    pub fn from_env() -> Result<Self> {
        let text = |name: &str| std::env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let seconds = |name: &str| {
            let secs = text(name).and_then(|v| v.parse().ok()).filter(|&secs: &u64| secs > 0);
            Duration::from_secs(secs.unwrap_or(10))
        };
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()).trim_end_matches('/').to_owned();
        if origin(&endpoint).is_none() {
            return Err(Error::usage(
                format!("HF_ENDPOINT is '{endpoint}', expected an address"),
                format!("write it like {DEFAULT_ENDPOINT}, or unset it"),
            ));
        }
        let no_implicit = text("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|v| is_true(&v));
        let token = (!no_implicit).then(find_token).flatten();
        let (answer, stall) = (seconds("HF_HUB_ETAG_TIMEOUT"), seconds("HF_HUB_DOWNLOAD_TIMEOUT"));
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Followed by hand: the token must not go to another host.
            .max_redirects(0)
            .timeout_connect(Some(answer))
            .timeout_recv_response(Some(answer.max(stall)))
            .timeout_per_read(Some(stall))
            .user_agent(concat!("retune/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&endpoint) {
            // A proxy from the environment does not know this machine's loopback.
            config = config.proxy(None);
        }
        Ok(Self { agent: config.build().into(), endpoint, token, answer, stall })
    }

    /// Where the token is from, if there is one: for people.
    pub fn token_source(&self) -> Option<&str> {
        self.token.as_ref().map(|token| token.source.as_str())
    }

    /// Whether a token that is there may be sent: over https and loopback, where nobody on the way can read it.
    pub fn token_is_sent(&self) -> bool {
        self.token.is_some() && (self.endpoint.starts_with("https://") || is_loopback(&self.endpoint))
    }

    /// The commit that a revision is at, and the files at its root.
    pub fn list(&self, id: &HubId) -> Result<Listing, Failure> {
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, id.id, id.revision().replace('/', "%2F"));
        let (_, reply) = self.follow(Method::GET, url, None, |_| true)?;
        if !reply.status().is_success() {
            return Err(self.refusal(id, None, &reply));
        }
        let bytes = reply.into_body().into_with_config().limit(MAX_LISTING_BYTES).read_to_vec();
        let bytes = bytes.map_err(|error| passing(format!("{}: {error}", self.endpoint)))?;
        let strange = || {
            Error::server(
                format!("asked for {id}, {} answered what no hub says: {}", self.endpoint, shorten(&bytes)),
                "is HF_ENDPOINT the address of a hub, and does no login page or proxy stand before it?",
            )
        };
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| strange())?;
        let commit = value.get("sha").and_then(Value::as_str).filter(|sha| is_commit(sha)).ok_or_else(strange)?;
        let files = value.get("siblings").and_then(Value::as_array).ok_or_else(strange)?;
        let files = files.iter().filter_map(|file| file.get("rfilename")?.as_str()).filter(|name| !name.contains('/'));
        Ok(Listing { commit: commit.to_owned(), files: files.map(str::to_owned).collect() })
    }

    /// What the hub says of a file: its ETag and size.
    pub fn head(&self, id: &HubId, commit: &str, name: &str) -> Result<Remote, Failure> {
        let url = format!("{}/{}/resolve/{commit}/{name}", self.endpoint, id.id);
        // The hub's own answer says what the file is; a store behind it only has the bytes.
        let own = origin(&self.endpoint);
        let (headers, reply) = self.follow(Method::HEAD, url.clone(), None, |next| origin(next) == own)?;
        let status = reply.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.refusal(id, Some(name), &reply));
        }
        let get = |name: &str| headers.iter().rev().find_map(|h| header(h, name));
        let etag = get("x-linked-etag").or_else(|| get("etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        let length = || header(reply.headers(), "content-length").filter(|_| !status.is_redirection());
        let size = get("x-linked-size").or_else(length).and_then(|size| size.trim().parse().ok());
        let wrong = |what: &str| {
            Error::server(
                format!("{} names no {what} of {name} in {id}", self.endpoint),
                "is HF_ENDPOINT the address of a hub? some mirrors and proxies leave parts of the answer out",
            )
        };
        let etag = etag.filter(|etag| super::cache::is_plain_name(etag)).ok_or_else(|| wrong("usable ETag"))?;
        if let Some(other) = get("x-repo-commit").filter(|other| *other != commit) {
            return Err(Failure::Final(Error::server(
                format!("asked for {name} of {id} at commit {commit}, {} gives the one of {other}", self.endpoint),
                "run the same command again; if it stays so, the mirror in HF_ENDPOINT mixes versions",
            )));
        }
        Ok(Remote { name: name.to_owned(), url, etag, size: size.ok_or_else(|| wrong("size"))? })
    }

    /// The bytes of a file from `start` on.
    pub fn get(&self, id: &HubId, file: &Remote, start: u64) -> Result<Response<Body>, Failure> {
        let (_, reply) = self.follow(Method::GET, file.url.clone(), (start > 0).then_some(start), |_| true)?;
        match reply.status().as_u16() {
            200 | 206 | 416 => Ok(reply),
            _ => Err(self.refusal(id, Some(&file.name), &reply)),
        }
    }

    /// Sends a request and follows redirects as far as `goes_on` allows. Gives the heads of the answers from the hub
    /// itself, in their order, and the last answer.
    fn follow(
        &self,
        method: Method,
        mut url: String,
        start: Option<u64>,
        goes_on: impl Fn(&str) -> bool,
    ) -> Result<(Vec<HeaderMap>, Response<Body>), Failure> {
        let mut heads = Vec::new();
        for _ in 0..MAX_REDIRECTS {
            let at_hub = origin(&url) == origin(&self.endpoint);
            let mut request = ureq::http::Request::builder().method(method.clone()).uri(&url);
            // The length must be the file's own.
            request = request.header("accept-encoding", "identity");
            if let Some(start) = start {
                request = request.header("range", format!("bytes={start}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| at_hub && self.token_is_sent()) {
                request = request.header("authorization", format!("Bearer {}", token.text));
            }
            let request = request.body(SendBody::none()).map_err(|error| {
                Error::usage(
                    format!("cannot ask {}: {error}", self.endpoint),
                    "check HF_ENDPOINT and HF_TOKEN for stray characters",
                )
            })?;
            let reply = self.agent.run(request).map_err(|error| self.failure(&url, error))?;
            if at_hub {
                heads.push(reply.headers().clone());
            }
            let next = header(reply.headers(), "location").filter(|_| reply.status().is_redirection());
            let Some(next) = next.and_then(|location| resolved(&url, &location)) else { return Ok((heads, reply)) };
            if !goes_on(&next) {
                return Ok((heads, reply));
            }
            if url.starts_with("https://") && !next.starts_with("https://") {
                return Err(Failure::Final(Error::server(
                    format!("{url} leads to {}, which is not secure", origin(&next).unwrap_or(next)),
                    "set HF_ENDPOINT to a hub or a mirror that serves its files by https",
                )));
            }
            url = next;
        }
        Err(Failure::Final(Error::server(
            format!("{} sends from one address to the next without an end", self.endpoint),
            "check HF_ENDPOINT, or unset it",
        )))
    }

    fn failure(&self, url: &str, error: ureq::Error) -> Failure {
        let host = origin(url).unwrap_or_else(|| self.endpoint.clone());
        passing(match error {
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                format!("{host}: no connection within {} s", self.answer.as_secs())
            }
            ureq::Error::Timeout(_) => format!("{host}: no answer within {} s", self.answer.max(self.stall).as_secs()),
            error => format!("{host}: {error}"),
        })
    }

    /// The hub said no, or not now.
    fn refusal(&self, id: &HubId, file: Option<&str>, reply: &Response<Body>) -> Failure {
        let (status, headers) = (reply.status().as_u16(), reply.headers());
        let code = header(headers, "x-error-code").unwrap_or_default();
        let said = header(headers, "x-error-message").unwrap_or_default();
        let words = if said.is_empty() { format!("HTTP {status}") } else { format!("HTTP {status}: {said}") };
        if status == 429 || status >= 500 {
            let retry_after = header(headers, "retry-after").and_then(|secs| secs.parse().ok()).map(Duration::from_secs);
            return Failure::Passing { why: format!("{}: {words}", self.endpoint), retry_after };
        }
        let page = format!("{}/{}", self.endpoint, id.id);
        let of = file.map_or_else(|| id.to_string(), |file| format!("{file} of {id}"));
        let set_token = match &self.token {
            Some(_) if !self.token_is_sent() => {
                "a token is there, but was not sent, as http:// would show it to the network: use https://".to_owned()
            }
            Some(token) => format!("the token of {} was sent: is it one of the account that has access?", token.source),
            None => "then set HF_TOKEN to a token of your account".to_owned(),
        };
        if said.contains("Invalid credentials") {
            let source = self.token_source().unwrap_or("(none)");
            return Failure::Final(Error::server(
                format!("{} does not accept the token of {source}", self.endpoint),
                "make a new one in the settings of your account, or remove it: public models need none",
            ));
        }
        // Seen of the hub: 401 for what does not exist, too, where nobody is logged in; but then it lists nothing.
        let gated = code == "GatedRepo" || status == 403 || status == 401 && file.is_some();
        Failure::Final(match (status, code.as_str()) {
            _ if gated => Error::server(
                format!("{of} is given only to who has accepted the model's licence ({words})"),
                format!("log in at {page} and accept it; {set_token}"),
            ),
            (404, "RevisionNotFound") => Error::usage(
                format!("{} has no revision '{}' on {}", id.id, id.revision(), self.endpoint),
                format!("{page}/tree/main shows its branches; without @ you get `main`"),
            ),
            (401 | 404, _) if file.is_none() => Error::usage(
                format!(
                    "there is no model {} on {} that you may see ({words}), nor a file or folder of that name",
                    id.id, self.endpoint
                ),
                format!(
                    "check its spelling; if you meant a model of Ollama, `ollama pull {}` fetches it; if it is private or gated, accept its licence at {page}; {set_token}",
                    id.id
                ),
            ),
            _ => Error::server(
                format!("{} does not give {of} ({words})", self.endpoint),
                format!("look at {page}, then run the same command again"),
            ),
        })
    }

    /// The hub could not be reached, again and again.
    pub fn away(&self, id: &HubId, why: &str) -> Error {
        Error::server(
            format!("cannot fetch {id}: {why}"),
            "check the network, then run the same command again: what is fetched so far is kept; HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy",
        )
    }
}

/// Tries until it works, as long as failures pass; `attempts` in all.
pub(super) fn patiently<T>(attempts: u32, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut n = 0;
    loop {
        n += 1;
        match attempt() {
            Err(Failure::Passing { retry_after, .. }) if n < attempts && retry_after.is_none_or(|p| p <= LONGEST_PAUSE) => {
                pause(n, retry_after);
            }
            result => return result,
        }
    }
}

/// Half a second, one, two, ...: or what the server asks for.
pub(super) fn pause(n: u32, retry_after: Option<Duration>) {
    let own = Duration::from_millis(500) * 2u32.saturating_pow(n.saturating_sub(1));
    std::thread::sleep(retry_after.unwrap_or(own).min(LONGEST_PAUSE));
}

/// `1`, `on`, `yes`, `true`, as huggingface_hub reads its switches.
pub(super) fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

/// `HF_TOKEN`, else what `hf auth login` wrote.
fn find_token() -> Option<Token> {
    let clean = |text: String| Some(text.replace(['\r', '\n'], "").trim().to_owned()).filter(|text| !text.is_empty());
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(text) = std::env::var(name).ok().and_then(clean) {
            return Some(Token { text, source: name.to_owned() });
        }
    }
    let path = token_file();
    let text = std::fs::read_to_string(&path).ok().and_then(clean)?;
    Some(Token { text, source: path.display().to_string() })
}

/// Scheme, host and port, as a token may be sent to; `None` where it is no http address.
fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme))?;
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some(format!("{scheme}://{}:{port}", uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase()))
}

fn is_loopback(url: &str) -> bool {
    let host = url.parse::<Uri>().ok().and_then(|uri| uri.host().map(|h| h.trim_matches(['[', ']']).to_owned()));
    host.is_some_and(|h| h.eq_ignore_ascii_case("localhost") || h.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

/// Where a `Location` leads.
fn resolved(from: &str, location: &str) -> Option<String> {
    if location.contains("://") && !location.starts_with('/') {
        return Some(location.to_owned());
    }
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{}://{rest}", from.split_once("://")?.0));
    }
    location.starts_with('/').then(|| Some(format!("{}{location}", origin(from)?)))?
}

pub(super) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn shorten(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port_and_a_look_alike_is_another() {
        let hub = origin("https://Hub.example/x").unwrap();
        assert_eq!(hub, "https://hub.example:443");
        assert_eq!(origin("https://hub.example:443/y?z"), Some(hub.clone()));
        for other in
            ["http://hub.example/x", "https://hub.example:8443/", "https://hub.example.evil/", "https://user@evil/hub.example"]
        {
            assert_ne!(origin(other), Some(hub.clone()), "{other}");
        }
        for wrong in ["hub.example", "ftp://hub.example", "", "https://"] {
            assert_eq!(origin(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_location_may_be_whole_relative_to_the_host_or_to_the_scheme() {
        let from = "https://hub.example/a/b";
        assert_eq!(resolved(from, "https://cdn.example/x?y=https://z").as_deref(), Some("https://cdn.example/x?y=https://z"));
        assert_eq!(resolved(from, "/c?u=http://x").as_deref(), Some("https://hub.example:443/c?u=http://x"));
        assert_eq!(resolved(from, "//cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        assert_eq!(resolved(from, "c"), None);
    }
}
