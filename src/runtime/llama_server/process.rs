//! A llama-server of our own, on a free port of this machine, for as long as it is needed.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::Llama;
use crate::error::{Error, Result};

const POLL: Duration = Duration::from_millis(50);
/// A base of many gigabytes is read from a slow disk in that time.
const PATIENCE: Duration = Duration::from_secs(600);
/// How much of its log an error shows.
const SHOWN_LINES: usize = 5;

/// The environment's name of the program; the start scripts read it, too.
pub const PROGRAM_VARIABLE: &str = "LLAMA_SERVER_BIN";
const PROGRAM: &str = "llama-server";

/// The program to start: the given one, or what `LLAMA_SERVER_BIN` says, or `llama-server` on the PATH. `None`: there is none. One
/// that was named and is not there is an error.
pub fn find_program(given: Option<&Path>) -> Result<Option<PathBuf>> {
    let set = || std::env::var_os(PROGRAM_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = given.map(Path::to_owned).or_else(set);
    let program = named.clone().unwrap_or_else(|| PROGRAM.into());
    let is_bare = program.components().count() == 1 && !program.is_file();
    let found = if is_bare {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(&program)).find(|file| file.is_file())
    } else {
        Some(program.clone()).filter(|file| file.is_file())
    };
    match (found, named) {
        (Some(found), _) => std::path::absolute(&found).map(Some).map_err(Error::io("find", &found)),
        (None, None) => Ok(None),
        (None, Some(named)) => Err(Error::file(
            named,
            "there is no such llama-server",
            format!("give its path with --server-bin or {PROGRAM_VARIABLE}, or put it on the PATH"),
        )),
    }
}

/// A running process, killed when this is dropped, and when retune dies.
pub struct Process {
    pub llama: Llama,
    child: Child,
}

impl Process {
    /// Runs `script`, which starts `program`, with a free port and `more` behind its own arguments, and waits until it takes
    /// requests. What it says goes to `log`.
    pub fn start(script: &Path, program: &Path, more: &[String], log: &Path) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(Error::io("find a free port for", script))?;
        let port = listener.local_addr().map_err(Error::io("find a free port for", script))?.port();
        drop(listener);
        let out = File::create(log).map_err(Error::io("create", log))?;
        let mut command = Command::new(script);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]).args(more).env(PROGRAM_VARIABLE, program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(out);
        die_with_us(&mut command);
        let child = command.spawn().map_err(Error::io("run", script))?;
        let mut process = Self { llama: Llama::on_loopback(port), child };
        let start = Instant::now();
        loop {
            if process.llama.is_ready().unwrap_or(false) {
                return Ok(process);
            }
            let why = match process.child.try_wait().map_err(Error::io("wait for", script))? {
                Some(status) => ended(status),
                None if start.elapsed() > PATIENCE => format!("it takes no requests after {} s", PATIENCE.as_secs()),
                None => {
                    std::thread::sleep(POLL);
                    continue;
                }
            };
            return Err(Error::server(
                format!("{} does not start: {why}; its last words: {}", program.display(), last_words(log)),
                format!("{} has all of it; --server-bin names another llama-server", log.display()),
            ));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Linux ends the process with the thread that started it, also where retune is killed.
fn die_with_us(command: &mut Command) {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt as _;
        let set = || {
            // SAFETY: this option takes a number only; prctl is a plain system call, which the child may make before exec.
            match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure allocates nothing and takes no lock.
        unsafe { command.pre_exec(set) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

fn ended(status: ExitStatus) -> String {
    format!("it ended with {status}")
}

fn last_words(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { "none".to_owned() } else { lines[lines.len().saturating_sub(SHOWN_LINES)..].join(" / ") }
}
