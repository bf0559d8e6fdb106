//! The `.env` of a project: settings that its people keep beside it. What the environment says already stands above it, and only
//! the names below are taken: a folder that someone else made cannot set what other programs heed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

const KNOWN: [&str; 18] = [
    "ANTHROPIC_API_KEY",
    "DATABASE_URL",
    "ENABLE_AUTO_FINETUNE",
    "ENABLE_TRAINING_DATA_COLLECTION",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "LLAMA_API_KEY",
    "LLAMA_SERVER_BIN",
    "LLAMA_SERVER_HOST",
    "MIN_CONFIDENCE_FOR_TRAINING",
    "OLLAMA_API_KEY",
    "OLLAMA_HOST",
    "OLLAMA_MODELS",
    "OLLAMA_MODEL_NAME",
    "OPENAI_API_KEY",
    "TRAINING_DATA_DIR",
];

/// Reads `.env` in the root that the command line or `RETUNE_ROOT` names. Call it before any thread is started.
pub fn load(args: impl Iterator<Item = OsString>) -> Result<()> {
    let path = root(args).join(".env");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    for (name, value) in taken(&text, &path)? {
        if std::env::var_os(&name).is_none() {
            // SAFETY: no other thread runs yet that could read the environment.
            unsafe { std::env::set_var(name, value) };
        }
    }
    Ok(())
}

fn taken(text: &str, path: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in dotenvy::from_read_iter(text.as_bytes()) {
        let (name, value) = entry.map_err(|error| {
            // The line may hold a key: only where it is wrong is told.
            let place = match error {
                dotenvy::Error::LineParse(line, _) => {
                    text.lines().position(|l| l == line).map_or_else(String::new, |n| format!("line {}: ", n + 1))
                }
                _ => String::new(),
            };
            Error::file(path, format!("{place}is no NAME=VALUE"), "mend the line, or put # before it")
        })?;
        if KNOWN.contains(&name.as_str()) {
            found.push((name, value));
        }
    }
    Ok(found)
}

/// Before clap reads the arguments: it takes values from the environment itself.
fn root(mut args: impl Iterator<Item = OsString>) -> PathBuf {
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        if text == "--" {
            break;
        }
        if text == "--root" {
            return args.next().map(PathBuf::from).unwrap_or_default();
        }
        if let Some(root) = text.strip_prefix("--root=") {
            return root.into();
        }
    }
    std::env::var_os("RETUNE_ROOT").filter(|root| !root.is_empty()).map_or_else(|| PathBuf::from("."), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_retune_heeds_are_taken() {
        let text = "# mine\nOLLAMA_HOST=http://box:11434\nexport HF_TOKEN='a b'\nLD_PRELOAD=/tmp/x.so\nPATH=/tmp\nOPENAI_API_KEY=\"k#1\"\n";
        let found = taken(text, Path::new(".env")).unwrap();
        let expected = [("OLLAMA_HOST", "http://box:11434"), ("HF_TOKEN", "a b"), ("OPENAI_API_KEY", "k#1")];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_line_that_is_wrong_is_told_by_its_number_and_not_by_its_text() {
        let error = taken("HF_TOKEN=x\nSECRET TOKEN is this\n", Path::new(".env")).unwrap_err().to_string();
        assert!(error.contains("line 2: is no NAME=VALUE") && !error.contains("SECRET"), "{error}");
    }

    #[test]
    fn the_root_is_the_one_that_the_command_line_names() {
        let of = |args: &[&str]| root(args.iter().map(|arg| OsString::from(*arg)));
        assert_eq!(of(&["retune", "stats", "--root", "/a"]), PathBuf::from("/a"));
        assert_eq!(of(&["retune", "--root=/b", "stats"]), PathBuf::from("/b"));
        assert_ne!(of(&["retune", "watch", "--", "x", "--root", "/c"]), PathBuf::from("/c"));
    }
}
