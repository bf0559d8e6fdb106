//! A server that says what a test tells it to: for failures only, which no real Ollama shows on demand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::{Address, Ollama, Patience};

/// A request that came in.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// `POST /api/create`
    pub line: String,
    /// `name: value`, names in lower case.
    pub headers: Vec<String>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// What the request says under `key`.
    pub fn text(&self, key: &str) -> String {
        self.json()[key].as_str().unwrap_or_default().to_owned()
    }
}

pub(crate) enum Say {
    Json(u16, Value),
    Text(u16, &'static str),
    /// Lines of JSON.
    Lines(Vec<Value>),
    /// These bytes in place of a whole answer; then the connection is closed.
    Raw(&'static str),
    /// Nothing, for so long.
    Silence(Duration),
}

pub(crate) struct Scripted {
    pub ollama: Ollama,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Scripted {
    /// `answer` hears one request after the other, each on a connection of its own.
    pub fn start(mut answer: impl FnMut(&Seen) -> Say + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(request) = read(&stream) else { continue };
                all.lock().unwrap().push(request.clone());
                say(stream, &answer(&request));
            }
        });
        let patience =
            Patience { connect: Duration::from_secs(5), quick: Duration::from_millis(700), idle: Duration::from_millis(700) };
        Self { ollama: Ollama::new(address, Some("secret".to_owned())).with_patience(patience), seen }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// `POST /api/create`, ... in order.
    pub fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }
}

fn read(stream: &TcpStream) -> Option<Seen> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let line = line.rsplit_once(" HTTP/")?.0.to_owned();
    let (mut headers, mut length) = (Vec::new(), 0);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().ok()?;
        }
        headers.push(format!("{}: {value}", name.to_ascii_lowercase()));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Seen { line, headers, body })
}

fn say(mut stream: TcpStream, say: &Say) {
    let (status, body) = match say {
        Say::Json(status, value) => (*status, value.to_string()),
        Say::Text(status, text) => (*status, (*text).to_owned()),
        Say::Lines(lines) => (200, lines.iter().map(|line| format!("{line}\n")).collect()),
        Say::Raw(bytes) => {
            let _ = stream.write_all(bytes.as_bytes());
            return;
        }
        Say::Silence(time) => {
            // On a thread of its own, so that the next request finds somebody.
            let time = *time;
            std::thread::spawn(move || {
                std::thread::sleep(time);
                drop(stream);
            });
            return;
        }
    };
    let location = if (300..400).contains(&status) { "location: http://elsewhere.example/\r\n" } else { "" };
    let _ = write!(stream, "HTTP/1.1 {status} X\r\n{location}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
}
