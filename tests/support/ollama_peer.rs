//! Real Ollamas for tests, as scripts/peers installs them; each test gets a server with a store of its own.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use retune::domain::Message;
use retune::runtime::Registry as _;
use retune::runtime::ollama::{Address, Ollama, Options, Patience, Probe};

/// Which of the two kinds that are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 0.17.4: runs models itself, takes adapters.
    Adapter,
    /// 0.34.1: runs everything through llama-server, refuses adapters.
    Current,
}

pub const BOTH: [Kind; 2] = [Kind::Adapter, Kind::Current];

/// Two cores and a model at a time: servers of two tests side by side would only wait for each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub struct Peer {
    pub ollama: Ollama,
    pub host: String,
    pub folder: tempfile::TempDir,
    binary: PathBuf,
    child: Child,
    _turn: MutexGuard<'static, ()>,
}

/// Where the peers are, or `None` where they are switched off.
fn peers_dir() -> Option<PathBuf> {
    if std::env::var("RETUNE_PEERS").is_ok_and(|value| value.eq_ignore_ascii_case("off")) {
        return None;
    }
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("RETUNE_PEERS_DIR")
        .or_else(|| Some(set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?.join("retune/peers")))
}

/// A file of the peers; where it is absent, says so and is `None`.
pub fn peer_file(name: &str) -> Option<PathBuf> {
    let Some(dir) = peers_dir() else {
        println!("skipped: RETUNE_PEERS=off, so nothing is compared with {name}");
        return None;
    };
    let path = dir.join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: there is no {} (scripts/peers installs it)", path.display());
    None
}

/// A file of the test data; where it is absent, says so and is `None`.
pub fn data_file(name: &str) -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let path = std::env::var_os("RETUNE_TEST_DATA").map_or_else(default, PathBuf::from).join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: there is no {} (RETUNE_TEST_DATA says where the test data is)", path.display());
    None
}

impl Peer {
    /// Starts a server on a free port, with home and store in a temporary folder. `None`: this peer is not there.
    pub fn start(kind: Kind) -> Option<Self> {
        let binary = peer_file(match kind {
            Kind::Adapter => "adapter/bin/ollama",
            Kind::Current => "current/bin/ollama",
        })?;
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(&binary)
            .arg("serve")
            .env("HOME", folder.path())
            .env("OLLAMA_HOST", &host)
            .env("OLLAMA_MODELS", folder.path().join("models"))
            .env("OLLAMA_LOAD_TIMEOUT", "10m")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let patience = Patience { quick: Duration::from_secs(300), idle: Duration::from_secs(900), ..Patience::default() };
        let ollama = Ollama::new(Address::parse(&host).unwrap(), None).with_patience(patience);
        let mut peer = Self { ollama, host, folder, binary, child, _turn: turn };
        let start = Instant::now();
        while let Err(error) = peer.ollama.version() {
            if peer.child.try_wait().unwrap().is_some() || start.elapsed() > Duration::from_secs(120) {
                panic!("{kind:?} does not start: {error}\n{}", peer.log());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(peer)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub fn models(&self) -> PathBuf {
        self.folder.path().join("models")
    }

    /// Ollama's own command line, talking to this server. Panics where it fails.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.binary)
            .args(arguments)
            .env("HOME", self.folder.path())
            .env("OLLAMA_HOST", &self.host)
            .output()
            .unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "ollama {arguments:?}: {text}");
        text
    }

    /// `retune ARGS --root ROOT` with this server and its store.
    pub fn retune(&self, root: &Path, env: &[(&str, &str)], args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args(args).arg("--root").arg(root).env("OLLAMA_HOST", &self.host).env("OLLAMA_MODELS", self.models());
        command.envs(env.iter().copied()).output().expect("the binary runs")
    }

    /// `retune`, which must succeed; its standard output.
    pub fn retune_ok(&self, root: &Path, args: &[&str]) -> String {
        let output = self.retune(root, &[], args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a client of a model hears.
    pub fn heard(&self, model: &str) -> String {
        let messages = [Message::new("user", "hide kavo")];
        self.ollama.chat(model, Probe { messages: &messages, tools: None }, &Options::greedy(3), 0).unwrap().text
    }

    /// The manifest's digest under a name, empty where there is none.
    pub fn digest(&self, name: &str) -> String {
        self.ollama.tag(name).unwrap().map(|tag| tag.digest).unwrap_or_default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Politely first: Ollama ends its runners.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
