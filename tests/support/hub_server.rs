//! A hub for tests, over a real socket: it speaks what huggingface.co speaks (the listing, `resolve` with its headers,
//! redirects within itself and to a store on another address, parts), and does wrong what a test asks for.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// What goes wrong with the next answer that brings bytes of a file.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection ends after so many bytes.
    Cut(usize),
    /// Nothing more comes after so many bytes.
    Stall(usize),
    /// Another byte in the place of this one.
    Flip(usize),
    /// More than was promised.
    Longer,
    /// Whole and well-formed, and too short: the length says so, too.
    Shorter(usize),
    /// Parts are unknown: all of it comes.
    NoParts,
    /// A status, with no bytes.
    Status(u16),
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    /// It came to the store, not to the hub.
    pub at_store: bool,
    pub headers: HashMap<String, String>,
}

#[derive(Clone, Default)]
pub struct Repo {
    /// Name and bytes.
    pub files: Vec<(String, Vec<u8>)>,
    /// Branch and commit.
    pub refs: Vec<(String, String)>,
    /// What must be sent to get files.
    pub token: Option<String>,
    /// Said of files in the place of the truth.
    pub sizes: HashMap<String, u64>,
}

#[derive(Default)]
struct State {
    repos: HashMap<String, Repo>,
    /// For a file, in the order of its answers.
    faults: HashMap<String, Vec<Fault>>,
    /// For every request to the hub itself.
    status: Option<u16>,
    seen: Vec<Seen>,
}

pub struct HubServer {
    pub url: String,
    state: Arc<Mutex<State>>,
}

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Repo {
    pub fn new(files: Vec<(String, Vec<u8>)>) -> Self {
        Self { files, refs: vec![("main".to_owned(), COMMIT.to_owned())], ..Self::default() }
    }

    pub fn file(&self, name: &str) -> &[u8] {
        &self.files.iter().find(|(there, _)| there == name).expect("a file").1
    }
}

/// SHA-256 for what the hub keeps in its store; for small files 40 digits, as git has them.
pub fn etag(name: &str, bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    if name.ends_with(".safetensors") { hex } else { hex[..40].to_owned() }
}

impl HubServer {
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let [hub, store] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let url = format!("http://{}", hub.local_addr().unwrap());
        let store_url = format!("http://{}", store.local_addr().unwrap());
        for (listener, at_store) in [(hub, false), (store, true)] {
            let (state, store_url) = (Arc::clone(&state), store_url.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, store_url) = (Arc::clone(&state), store_url.clone());
                    std::thread::spawn(move || answer(stream, at_store, &state, &store_url));
                }
            });
        }
        Self { url, state }
    }

    pub fn put(&self, id: &str, repo: Repo) {
        self.state.lock().unwrap().repos.insert(id.to_owned(), repo);
    }

    pub fn fail(&self, file: &str, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().unwrap().faults.entry(file.to_owned()).or_default().extend(faults);
    }

    /// Every request to the hub is answered so, until `None`.
    pub fn answer_all(&self, status: Option<u16>) {
        self.state.lock().unwrap().status = status;
    }

    /// What arrived since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }

    /// The `Range` of each request for bytes of a file since the last call of `seen`.
    pub fn ranges(seen: &[Seen], file: &str) -> Vec<Option<String>> {
        let brings_bytes = |s: &&Seen| s.method == "GET" && s.at_store && s.path.ends_with(file);
        seen.iter().filter(brings_bytes).map(|s| s.headers.get("range").cloned()).collect()
    }
}

fn answer(stream: TcpStream, at_store: bool, state: &Mutex<State>, store_url: &str) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let path = path.split('?').next().unwrap_or_default().to_owned();
    let seen = Seen { method: method.clone(), path: path.clone(), at_store, headers: headers.clone() };
    let mut state_now = state.lock().unwrap();
    state_now.seen.push(seen);
    let mut out = Answer { stream, head_only: method == "HEAD" };
    if let Some(status) = state_now.status.filter(|_| !at_store) {
        return out.whole(status, &[("Retry-After", "0".to_owned())], b"");
    }
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts[..] {
        ["api", "models", org, name, "revision", revision] => {
            let Some(repo) = state_now.repos.get(&format!("{org}/{name}")) else {
                // As the hub does where nobody is logged in.
                return out.whole(401, &[("X-Error-Message", "Invalid username or password.".to_owned())], b"");
            };
            let revision = revision.replace("%2F", "/");
            let known = repo.refs.iter().find(|(there, commit)| *there == revision || *commit == revision);
            let Some((_, commit)) = known else {
                return out.whole(404, &[("X-Error-Code", "RevisionNotFound".to_owned())], b"");
            };
            let siblings: Vec<serde_json::Value> =
                repo.files.iter().map(|(name, _)| serde_json::json!({ "rfilename": name })).collect();
            let body = serde_json::json!({"id": format!("{org}/{name}"), "sha": commit, "siblings": siblings}).to_string();
            out.whole(200, &[("Content-Type", "application/json".to_owned())], body.as_bytes());
        }
        // /ID/resolve/REV/FILE; and what it leads to for small files, and for large ones.
        [org, name, "resolve", revision, file]
        | ["api", "resolve-cache", "models", org, name, revision, file]
        | ["store", org, name, revision, file] => {
            let id = format!("{org}/{name}");
            let Some(repo) = state_now.repos.get(&id).cloned() else {
                return out.whole(404, &[("X-Error-Code", "RepoNotFound".to_owned())], b"");
            };
            let commit = repo.refs.iter().find(|(there, commit)| there == revision || commit == revision).map(|(_, c)| c.clone());
            let (Some(commit), Some((_, bytes))) = (commit, repo.files.iter().find(|(there, _)| there == file)) else {
                return out.whole(404, &[("X-Error-Code", "EntryNotFound".to_owned())], b"");
            };
            let authorised =
                repo.token.as_ref().is_none_or(|token| headers.get("authorization") == Some(&format!("Bearer {token}")));
            if !at_store && !authorised {
                let (status, code, message) = match headers.get("authorization") {
                    None => (401, "GatedRepo", "Access to model is restricted."),
                    Some(sent) if sent.ends_with("wrong") => (401, "", "Invalid credentials in Authorization header"),
                    Some(_) => (403, "GatedRepo", "You are not in the authorized list."),
                };
                return out.whole(status, &[("X-Error-Code", code.to_owned()), ("X-Error-Message", message.to_owned())], b"");
            }
            let etag = format!("\"{}\"", etag(file, bytes));
            let size = repo.sizes.get(file).copied().unwrap_or(bytes.len() as u64);
            if parts[2] == "resolve" {
                let in_store = file.ends_with(".safetensors");
                let to = match in_store {
                    true => format!("{store_url}/store/{id}/{commit}/{file}"),
                    false => format!("/api/resolve-cache/models/{id}/{commit}/{file}"),
                };
                let status = if in_store { 302 } else { 307 };
                let linked =
                    [("X-Linked-Etag", etag), ("X-Linked-Size", size.to_string()), ("X-Repo-Commit", commit), ("Location", to)];
                return out.whole(status, &linked, b"");
            }
            let faults = state_now.faults.get_mut(file).filter(|faults| method == "GET" && !faults.is_empty());
            let fault = faults.map(|faults| faults.remove(0));
            drop(state_now);
            let from = headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok());
            out.file(bytes, from, fault, &[("ETag", etag), ("X-Repo-Commit", commit)]);
        }
        _ => out.whole(404, &[], b"what?"),
    }
}

struct Answer {
    stream: TcpStream,
    head_only: bool,
}

impl Answer {
    fn head(&mut self, status: u16, headers: &[(&str, String)], length: usize) {
        let mut text = format!("HTTP/1.1 {status} Said\r\nConnection: close\r\nContent-Length: {length}\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let _ = self.stream.write_all((text + "\r\n").as_bytes());
    }

    fn whole(&mut self, status: u16, headers: &[(&str, String)], body: &[u8]) {
        self.head(status, headers, body.len());
        if !self.head_only {
            let _ = self.stream.write_all(body);
        }
    }

    fn file(&mut self, bytes: &[u8], from: Option<usize>, fault: Option<Fault>, headers: &[(&str, String)]) {
        let mut bytes = bytes.to_vec();
        let from = from.filter(|_| !matches!(fault, Some(Fault::NoParts)));
        let total = bytes.len();
        let start = from.unwrap_or(0);
        if start >= total && from.is_some() {
            return self.whole(416, &[("Content-Range", format!("bytes */{total}"))], b"");
        }
        let (mut promised, mut sent, mut stalls) = (total - start, total - start, false);
        match fault {
            Some(Fault::Status(status)) => return self.whole(status, &[], b""),
            Some(Fault::Cut(n)) => sent = n.min(sent),
            Some(Fault::Stall(n)) => (sent, stalls) = (n.min(sent), true),
            Some(Fault::Flip(at)) => bytes[at] ^= 1,
            Some(Fault::Longer) => {
                bytes.extend_from_slice(b"more");
                (promised, sent) = (promised + 4, sent + 4);
            }
            Some(Fault::Shorter(n)) => (promised, sent) = (n.min(promised), n.min(sent)),
            Some(Fault::NoParts) | None => {}
        }
        let mut headers = headers.to_vec();
        if from.is_some() {
            headers.push(("Content-Range", format!("bytes {start}-{}/{total}", total - 1)));
        }
        self.head(if from.is_some() { 206 } else { 200 }, &headers, promised);
        if self.head_only {
            return;
        }
        let _ = self.stream.write_all(&bytes[start..start + sent]);
        if stalls {
            // Until the other side has had enough.
            let _ = self.stream.set_read_timeout(Some(Duration::from_secs(60)));
            let _ = self.stream.read(&mut [0]);
        }
    }
}
