//! One error for the whole program: what happened, where, and what to do next.

use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. `Display` is the message a user reads; `hint` says the next step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line or a setting is wrong (exit code 2).
    #[error("{message}")]
    Usage { message: String, hint: String },
    /// A file or a folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    /// A file was read, and what it holds is wrong.
    #[error("{}: {message}", path.display())]
    File { path: PathBuf, message: String, hint: String },
    /// Something is valid but not supported.
    #[error("{message}")]
    Unsupported { message: String, hint: String },
    /// Training data: nothing to train, a row that cannot be rendered, ...
    #[error("{message}")]
    Data { message: String, hint: String },
    /// Training stopped by itself: NaN, divergence, no gradient.
    #[error("{message}")]
    Training { message: String, hint: String },
    /// A server (Ollama, llama-server) is away, refuses, or says what is not true.
    #[error("{message}")]
    Server { message: String, hint: String },
    /// The user interrupted; what was done so far is kept.
    #[error("interrupted; {message}")]
    Interrupted { message: String },
}

impl Error {
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: hint.into() }
    }

    pub fn file(path: impl AsRef<Path>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_owned(), message: message.into(), hint: hint.into() }
    }

    pub fn unsupported(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unsupported { message: message.into(), hint: hint.into() }
    }

    pub fn data(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Data { message: message.into(), hint: hint.into() }
    }

    pub fn training(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Training { message: message.into(), hint: hint.into() }
    }

    pub fn server(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Server { message: message.into(), hint: hint.into() }
    }

    /// For `map_err`: `fs::read(p).map_err(Error::io("read", p))?`. `action` is a verb: read, write, create, ...
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// The next step, where there is one to tell.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Usage { hint, .. }
            | Self::File { hint, .. }
            | Self::Unsupported { hint, .. }
            | Self::Data { hint, .. }
            | Self::Training { hint, .. }
            | Self::Server { hint, .. } => hint.clone(),
            Self::Io { source, path, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    format!(
                        "free some space on the disk of {}, then run the same command again; nothing half written was left behind",
                        path.display()
                    )
                }
                std::io::ErrorKind::FileTooLarge => {
                    "the system allows no larger file here (`ulimit -f`, or the kind of file system): raise the limit or choose another place"
                        .to_owned()
                }
                std::io::ErrorKind::NotFound => "check the path".to_owned(),
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    "check who owns it and its permissions, or choose another place".to_owned()
                }
                std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotADirectory => {
                    "a file stands where a folder is expected: choose another path".to_owned()
                }
                std::io::ErrorKind::IsADirectory => "give the path of a file in this folder".to_owned(),
                std::io::ErrorKind::InvalidData => "the file must be text in UTF-8: save it so, or give another".to_owned(),
                _ => "check the path and its disk, then run the same command again".to_owned(),
            },
            Self::Interrupted { .. } => String::new(),
        };
        (!hint.is_empty()).then_some(hint)
    }

    /// The process's exit code: 2 wrong use, 1 failed.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Usage { .. } => 2,
            _ => 1,
        }
    }
}
