//! Whether an Ollama takes adapters: tried once for real, remembered by address and version.
//!
//! Up to about 0.30 Ollama runs models itself and takes adapters; later ones hand them to llama-server and refuse:
//! 0.34.1 answers 400 "LoRA adapters are no longer supported".

use std::path::Path;

use serde_json::{Map, Value, json};

use super::modelfile::{From, ModelSpec, Parameters};
use super::register::{create, served_digest, verify};
use crate::error::{Error, Result};
use crate::formats::durable;
use crate::runtime::Registry;
use crate::runtime::ollama::{Blob, Ollama};

/// What became known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterSupport {
    pub accepted: bool,
    /// Ollama's version, as it says it.
    pub version: String,
    /// Where it refuses: in its own words.
    pub said: String,
    /// It was known from an earlier time.
    pub remembered: bool,
}

/// The name under which the trial is made; it is gone afterwards.
const TRIAL: &str = "retune-trial:adapter";

/// Tries to create a model of `base` and `adapter`, unless `memory` (`.agent/ollama-capabilities.json`) knows the
/// outcome for this address and version. An error is something else going wrong: then nothing is remembered.
pub fn adapter_support(ollama: &Ollama, base: &From, adapter: &Blob, memory: &Path) -> Result<AdapterSupport> {
    let version = ollama.version()?;
    if let Some(known) = remembered_support(ollama, &version, memory) {
        return Ok(known);
    }
    let mut known = read_memory(memory);
    let said = trial(ollama, base, adapter)?;
    let accepted = said.is_none();
    let said = said.unwrap_or_default();
    known.insert(key(ollama, &version), json!({ "adapters": accepted, "said": said }));
    let text = format!("{:#}\n", Value::Object(known));
    if let Some(folder) = memory.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    durable::write(memory, text.as_bytes())?;
    Ok(AdapterSupport { accepted, version, said, remembered: false })
}

/// What an earlier trial found out about this address and version.
pub fn remembered_support(ollama: &Ollama, version: &str, memory: &Path) -> Option<AdapterSupport> {
    let known = read_memory(memory);
    let entry = known.get(&key(ollama, version))?;
    let accepted = entry.get("adapters").and_then(Value::as_bool)?;
    let said = entry.get("said").and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(AdapterSupport { accepted, version: version.to_owned(), said, remembered: true })
}

fn key(ollama: &Ollama, version: &str) -> String {
    format!("{} {version}", ollama.address())
}

/// `None`: taken; else the words of the refusal.
fn trial(ollama: &Ollama, base: &From, adapter: &Blob) -> Result<Option<String>> {
    let spec = ModelSpec::adapted(base.clone(), adapter.clone(), Parameters::default());
    let served = served_digest(ollama, base)?;
    // One that refuses does so before it looks for the files: gigabytes need not travel to hear a no.
    if let Err(error) = ollama.create(&spec.create_request(TRIAL), &mut |_| ())
        && is_refusal(&error)
    {
        return Ok(Some(error.to_string()));
    }
    let made = create(ollama, &spec, TRIAL, &mut |_| ()).and_then(|()| verify(ollama, &spec, &served, TRIAL));
    // The files that only the trial had go with it; a leftover is overwritten by the next trial.
    let _ = ollama.delete(TRIAL);
    match made {
        Ok(_) => Ok(None),
        Err(error) if is_refusal(&error) => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Whether an error says that adapters are not taken at all, not that this one is wrong.
fn is_refusal(error: &Error) -> bool {
    let text = error.to_string().to_lowercase();
    text.contains("adapter") && ["no longer supported", "not supported", "unsupported"].iter().any(|no| text.contains(no))
}

/// What is remembered. A file that cannot be read holds nothing: it is a memory, not a truth, and is written anew.
fn read_memory(path: &Path) -> Map<String, Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    serde_json::from_str::<Value>(&text).ok().and_then(|value| value.as_object().cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ollama::scripted::{Say, Scripted};

    fn files() -> (tempfile::TempDir, Blob) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter.gguf");
        std::fs::write(&path, "GGUF").unwrap();
        let blob = Blob::of(&path).unwrap();
        (folder, blob)
    }

    #[test]
    fn a_refusal_is_found_out_with_one_create_and_no_file_sent_and_then_remembered() {
        let (folder, blob) = files();
        let memory = folder.path().join(".agent/ollama-capabilities.json");
        let server = Scripted::start(|seen| match seen.line.as_str() {
            "GET /api/version" => Say::Json(200, json!({"version": "0.34.1"})),
            _ => Say::Json(400, json!({"error": "LoRA adapters are no longer supported"})),
        });
        let base = From::File(blob.clone());
        let support = adapter_support(&server.ollama, &base, &blob, &memory).unwrap();
        assert!(!support.accepted && !support.remembered);
        assert!(support.said.contains("LoRA adapters are no longer supported"), "{}", support.said);
        let again = adapter_support(&server.ollama, &base, &blob, &memory).unwrap();
        assert_eq!((again.accepted, again.remembered), (false, true));
        assert_eq!(server.lines(), ["GET /api/version", "POST /api/create", "GET /api/version"]);
        let written: Value = serde_json::from_str(&std::fs::read_to_string(&memory).unwrap()).unwrap();
        assert_eq!(written[format!("{} 0.34.1", server.ollama.address())]["adapters"], false);
    }

    #[test]
    fn another_failure_is_an_error_and_is_not_remembered() {
        let (folder, blob) = files();
        let memory = folder.path().join("ollama-capabilities.json");
        std::fs::write(&memory, "garbage").unwrap();
        let server = Scripted::start(|seen| match seen.line.as_str() {
            "GET /api/version" => Say::Json(200, json!({"version": "0.17.4"})),
            "POST /api/create" => Say::Json(500, json!({"error": "no space left on device"})),
            _ => Say::Text(200, ""),
        });
        let error = adapter_support(&server.ollama, &From::File(blob.clone()), &blob, &memory).unwrap_err();
        assert!(error.to_string().contains("no space left"), "{error}");
        assert_eq!(std::fs::read_to_string(&memory).unwrap(), "garbage");
    }
}
