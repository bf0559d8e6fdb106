//! One stream of a command: handed on as it comes, and read beside.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::Said;
use crate::signals::listen::{Hall, Heard};
use crate::signals::text::{Line, Lines};
use crate::signals::{self, Kind, recognise};

const BUFFER_BYTES: usize = 64 << 10;
/// A report that is printed and not written to a file; more of it is not held.
const MAX_DOCUMENT_BYTES: usize = 64 << 20;

/// A stream that is read by a thread of its own.
pub struct Ear {
    name: &'static str,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    lines: Lines,
    hall: Hall,
    document: Document,
    open_line: bool,
    unread: bool,
    done: bool,
}

/// A report in the output: SARIF, JUnit, pyright's JSON. The lines of it, from the one that begins like one.
#[derive(Default)]
enum Document {
    #[default]
    None,
    Held(Vec<u8>),
    TooLarge,
}

impl Document {
    fn line(&mut self, line: &Line) {
        match self {
            Self::None if begins_document(line.bytes) => *self = Self::Held(line.bytes.to_vec()),
            Self::Held(bytes) if line.cut || bytes.len() + line.bytes.len() > MAX_DOCUMENT_BYTES => *self = Self::TooLarge,
            Self::Held(bytes) => {
                bytes.push(b'\n');
                bytes.extend_from_slice(line.bytes);
            }
            Self::None | Self::TooLarge => (),
        }
    }
}

/// `{`, `<?xml` or `<testsuite`, but no object of JSON lines, which listeners read.
fn begins_document(line: &[u8]) -> bool {
    let starts = [&b"{"[..], b"<?xml", b"<testsuite"].iter().any(|start| line.starts_with(start));
    starts && !matches!(recognise(line), Some(Kind::CargoJson | Kind::GoTest | Kind::CargoTestText))
}

impl Ear {
    /// Begins to read; what comes is written to our stream of the same name.
    pub fn listen(from: Option<impl Read + Send + 'static>, name: &'static str) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let Some(mut from) = from else {
            lock(&state).done = true;
            return Self { name, state };
        };
        thread::spawn(move || {
            let mut to = ours(name);
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                match from.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => {
                        let taken = to.as_mut().is_ok_and(|to| to.write_all(&buffer[..length]).is_ok());
                        let mut state = lock(&shared);
                        state.take(&buffer[..length]);
                        if !taken {
                            state.unread = true;
                            break;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                    Err(_) => break,
                }
            }
            // Closed before it is told: a command that still writes is to hear that nobody reads.
            drop(from);
            lock(&shared).done = true;
        });
        Self { name, state }
    }

    pub fn is_done(&self) -> bool {
        lock(&self.state).done
    }

    /// Our own reader closed before the command did.
    pub fn is_unread(&self) -> bool {
        lock(&self.state).unread
    }

    pub fn has_open_line(&self) -> bool {
        lock(&self.state).open_line
    }

    /// All that was said so far.
    pub fn heard(&self) -> Said {
        let mut state = lock(&self.state);
        let State { lines, hall, document, .. } = &mut *state;
        lines.finish(&mut |line| {
            document.line(&line);
            hall.line(&line);
        });
        let mut said = Said { heard: hall.done(self.name), announced: hall.announced().to_vec(), notes: Vec::new() };
        match std::mem::take(document) {
            Document::Held(bytes) => {
                if let Some(kind) = recognise(&bytes) {
                    match signals::read(kind, &bytes[..], self.name) {
                        Ok(observed) => said.heard.push(Heard { kind, observed, cut: None }),
                        Err(error) => said.notes.push(format!("{error}: not counted")),
                    }
                }
            }
            Document::TooLarge => {
                said.notes.push(format!("{}: a report of more than 64 MiB is not read; let it go to a file", self.name))
            }
            Document::None => (),
        }
        said
    }
}

impl State {
    fn take(&mut self, bytes: &[u8]) {
        let Self { lines, hall, document, .. } = self;
        lines.push(bytes, &mut |line| {
            document.line(&line);
            hall.line(&line);
        });
        self.open_line = bytes.last() != Some(&b'\n');
    }
}

/// Unbuffered, so that what comes is seen at once.
fn ours(name: &str) -> io::Result<File> {
    let fd = match name {
        "stdout" => io::stdout().as_fd().try_clone_to_owned(),
        _ => io::stderr().as_fd().try_clone_to_owned(),
    };
    fd.map(File::from)
}

/// A reader that panicked has told what it told.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
