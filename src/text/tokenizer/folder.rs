//! A model's folder, as transformers reads it: tokenizer.json, or vocab.json and merges.txt, and the files beside them that
//! say which tokens are special.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;
use tokenizers::normalizers::unicode::NFC;

use super::gguf::ENDS_BY_NAME;
use super::{Inner, TokenBytes, Tokenizer, byte_level, pre};
use crate::error::{Error, Result};

/// Reads a folder. The files beside the vocabulary may be missing; where one is there, it must be JSON.
pub fn read(folder: &Path) -> Result<Tokenizer> {
    let config = Files::read(folder)?;
    let mut library = if folder.join("tokenizer.json").is_file() {
        from_json(&folder.join("tokenizer.json"))?
    } else if folder.join("vocab.json").is_file() && folder.join("merges.txt").is_file() {
        from_vocab_and_merges(folder, &config)?
    } else {
        return Err(Error::file(
            folder,
            "no tokenizer: neither tokenizer.json nor vocab.json with merges.txt is there",
            if folder.join("tokenizer.model").is_file() {
                "only tokenizer.model is: `retune convert` makes a GGUF file of this folder; train on that"
            } else {
                "give the folder of a whole model, as huggingface.co serves it; an adapter's folder has no tokenizer"
            },
        ));
    };
    add_missing(folder, &mut library, &config)?;
    let bytes = if speaks_byte_level(&library) { TokenBytes::ByteLevel } else { TokenBytes::Metaspace };
    let special = |key: &str| -> Option<u32> {
        let by_name = config.token(key).and_then(|text| library.token_to_id(&text));
        // Without a tokenizer_config.json, config.json's numbers are all there is.
        by_name.or_else(|| config.ids(&format!("{key}_id")).first().copied().filter(|_| !config.names_tokens()))
    };
    let (bos, eos) = (special("bos_token"), special("eos_token"));
    let add_bos = match config.tokenizer.get("add_bos_token").and_then(Value::as_bool) {
        Some(add) => add,
        // Then the post-processor decides: does it put a BOS before an empty text?
        None => bos.is_some() && library.encode("", true).is_ok_and(|e| e.get_ids().first().copied() == bos),
    };
    let added = library.get_added_vocabulary().get_added_tokens_decoder().clone();
    let mut tokenizer =
        Tokenizer::new(Inner::Library { tokenizer: Box::new(library), bytes }, bos, eos, add_bos && bos.is_some());
    tokenizer.specials = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
    tokenizer.specials.extend([bos, eos].into_iter().flatten());
    for id in config.ids("eos_token_id") {
        tokenizer.add_end(id);
    }
    for name in ENDS_BY_NAME {
        if let Some(id) = tokenizer.id(name).filter(|id| added.contains_key(id)) {
            tokenizer.add_end(id);
        }
    }
    for key in ["unk_token", "pad_token", "sep_token", "cls_token", "mask_token"] {
        if let Some(text) = config.token(key) {
            tokenizer.named.push((key.to_owned(), text));
        }
    }
    Ok(tokenizer)
}

/// A JSON file of a folder; `None` where it is missing.
pub fn json(path: &Path) -> Result<Option<Value>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(e) => Err(Error::file(path, format!("is no valid JSON: {e}"), "fetch the file again")),
    }
}

/// The files beside the vocabulary; empty where missing.
pub(super) struct Files {
    pub tokenizer: Map<String, Value>,
    special_tokens: Map<String, Value>,
    generation: Map<String, Value>,
    pub model: Map<String, Value>,
}

impl Files {
    pub fn read(folder: &Path) -> Result<Self> {
        let object = |name: &str| -> Result<Map<String, Value>> {
            match json(&folder.join(name))? {
                None => Ok(Map::new()),
                Some(Value::Object(map)) => Ok(map),
                Some(other) => {
                    let message = format!("holds {}, expected a JSON object", kind(&other));
                    Err(Error::file(folder.join(name), message, "fetch the file again"))
                }
            }
        };
        Ok(Self {
            tokenizer: object("tokenizer_config.json")?,
            special_tokens: object("special_tokens_map.json")?,
            generation: object("generation_config.json")?,
            model: object("config.json")?,
        })
    }

    /// The text of a special token: a string, or an object with `content`.
    pub fn token(&self, key: &str) -> Option<String> {
        [&self.tokenizer, &self.special_tokens].into_iter().find_map(|map| token_text(map.get(key)?))
    }

    /// Whether a file names special tokens by their texts at all.
    fn names_tokens(&self) -> bool {
        !self.tokenizer.is_empty() || !self.special_tokens.is_empty()
    }

    /// `eos_token_id` and its like: a number or a list, of generation_config.json, then of config.json.
    fn ids(&self, key: &str) -> Vec<u32> {
        let maps = [&self.generation, &self.model];
        let values = maps.into_iter().filter_map(|map| map.get(key)).flat_map(|value| match value {
            Value::Array(list) => list.clone(),
            one => vec![one.clone()],
        });
        values.filter_map(|value| value.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
    }
}

/// A token as the configuration files say it: a string, or an object with `content`.
pub fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content").and_then(Value::as_str)).map(str::to_owned)
}

fn from_json(path: &Path) -> Result<tokenizers::Tokenizer> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let mut library = tokenizers::Tokenizer::from_bytes(bytes)
        .map_err(|e| Error::file(path, format!("cannot be read as a tokenizer: {e}"), "fetch the file again"))?;
    // A file saved in the middle of a training run cuts and pads every text; that is for its batches, not for ours.
    library.with_truncation(None).map_err(|e| Error::file(path, e.to_string(), "fetch the file again"))?;
    library.with_padding(None);
    Ok(library)
}

/// GPT-2's old two files, with the normaliser and the words of the class that the configuration names.
fn from_vocab_and_merges(folder: &Path, config: &Files) -> Result<tokenizers::Tokenizer> {
    let class = config.tokenizer.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    let family = config.model.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let (name, normalised) = match (class.trim_end_matches("Fast"), family) {
        ("Qwen2Tokenizer", _) | ("", "qwen2" | "qwen3") => ("qwen2", true),
        ("GPT2Tokenizer", _) | ("", "gpt2") => ("gpt-2", false),
        _ => {
            return Err(Error::unsupported(
                format!(
                    "{}: there is no tokenizer.json, and from vocab.json and merges.txt only Qwen2Tokenizer and \
                     GPT2Tokenizer are known (tokenizer_class is {class:?})",
                    folder.display()
                ),
                "save a tokenizer.json with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
            ));
        }
    };
    let path = folder.join("vocab.json");
    let Some(Value::Object(map)) = json(&path)? else {
        return Err(Error::file(path, "expected a JSON object of tokens and ids", "fetch the file again"));
    };
    let mut vocab = Vec::with_capacity(map.len());
    for (token, id) in map {
        let Some(number) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
            return Err(Error::file(path, format!("token {token:?} has the id {id}, expected a number"), "fetch the file again"));
        };
        vocab.push((token, number));
    }
    let path = folder.join("merges.txt");
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let mut merges = Vec::new();
    for (number, line) in
        text.lines().enumerate().filter(|(n, line)| !line.is_empty() && (*n > 0 || !line.starts_with("#version")))
    {
        let Some((left, right)) = line.split_once(' ') else {
            let message = format!("line {}: {line:?}, expected two tokens with a space between", number + 1);
            return Err(Error::file(path, message, "fetch the file again"));
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    let pre = pre::named(name).ok_or_else(|| Error::unsupported(format!("pre-tokenizer {name} is not known"), ""))?;
    let mut library = byte_level::build(vocab, merges, &pre)
        .map_err(|e| Error::file(folder, format!("vocab.json and merges.txt do not fit: {e}"), "fetch both files again"))?;
    if normalised {
        library
            .with_normalizer(Some(NFC))
            .map_err(|e| Error::file(folder, format!("its added tokens cannot be normalised: {e}"), "fetch the files again"))?;
    }
    let path = folder.join("added_tokens.json");
    if let Some(Value::Object(map)) = json(&path)? {
        let mut added: Vec<(u64, String)> = map.into_iter().filter_map(|(text, id)| Some((id.as_u64()?, text))).collect();
        added.sort();
        // Which of them are special stands in tokenizer_config.json: those come with `add_missing`, before all others.
        let listed = listed(config);
        for (id, text) in added.into_iter().filter(|(id, _)| !listed.iter().any(|(other, _)| other == id)) {
            add(folder, &mut library, id, AddedToken::from(text, false).normalized(false))?;
        }
    }
    Ok(library)
}

/// `added_tokens_decoder` of tokenizer_config.json, by id.
pub(super) fn listed(config: &Files) -> Vec<(u64, AddedToken)> {
    let Some(Value::Object(map)) = config.tokenizer.get("added_tokens_decoder") else { return Vec::new() };
    let mut tokens: Vec<(u64, AddedToken)> = map
        .iter()
        .filter_map(|(id, entry)| {
            let flag = |key: &str| entry.get(key).and_then(Value::as_bool).unwrap_or(false);
            let token = AddedToken::from(entry.get("content")?.as_str()?, flag("special"))
                .normalized(flag("normalized"))
                .lstrip(flag("lstrip"))
                .rstrip(flag("rstrip"))
                .single_word(flag("single_word"));
            Some((id.parse().ok()?, token))
        })
        .collect();
    tokens.sort_by_key(|(id, _)| *id);
    tokens
}

/// Adds the tokens that tokenizer_config.json lists and the vocabulary's own file does not know as added ones.
fn add_missing(folder: &Path, library: &mut tokenizers::Tokenizer, config: &Files) -> Result<()> {
    for (id, token) in listed(config) {
        let known = library.get_added_vocabulary().get_added_tokens_decoder();
        if !known.values().any(|other| other.content == token.content) {
            add(folder, library, id, token)?;
        }
    }
    Ok(())
}

/// Adds one token and holds it to the id that the file gives it: another id would mean another row of the embedding.
fn add(folder: &Path, library: &mut tokenizers::Tokenizer, id: u64, token: AddedToken) -> Result<()> {
    let text = token.content.clone();
    let added = if token.special { library.add_special_tokens([token]) } else { library.add_tokens([token]) };
    added.map_err(|e| Error::file(folder, format!("added token {text:?}: {e}"), "fetch the tokenizer's files again"))?;
    let got = library.token_to_id(&text);
    if got.map(u64::from) != Some(id) {
        let got = got.map_or("none".to_owned(), |id| id.to_string());
        return Err(Error::file(
            folder,
            format!("added token {text:?} has the id {id} in the files, but the vocabulary gives it {got}"),
            "the tokenizer's files are of different models: fetch all of them again",
        ));
    }
    Ok(())
}

/// Whether tokens are spelled in GPT-2's alphabet: then a pre-tokenizer or the decoder says ByteLevel.
pub(super) fn speaks_byte_level(library: &tokenizers::Tokenizer) -> bool {
    let says = |json: serde_json::Result<String>| json.is_ok_and(|json| json.contains("\"ByteLevel\""));
    library.get_decoder().is_some_and(|d| says(serde_json::to_string(d)))
        || library.get_pre_tokenizer().is_some_and(|p| says(serde_json::to_string(p)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with the given files, and GPT-2's two where `old` says so.
    fn folder(files: &[(&str, &str)], old: bool) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let old =
            [("vocab.json", r#"{"a": 0, "b": 1, "ab": 2}"#), ("merges.txt", "#version: 0.2\na b\n")].into_iter().filter(|_| old);
        for (name, text) in old.chain(files.iter().copied()) {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn vocab_and_merges_make_the_tokenizer_that_the_class_names() {
        let config = r#"{"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": false, "eos_token": {"content": "<|im_end|>"},
            "pad_token": "<|endoftext|>", "added_tokens_decoder": {"4": {"content": "<|im_end|>", "special": true}, "3": {"content": "<|endoftext|>", "special": true}}}"#;
        let generation = r#"{"eos_token_id": [4, 3]}"#;
        let files = [("tokenizer_config.json", config), ("generation_config.json", generation)];
        let tokenizer = read(folder(&files, true).path()).unwrap();
        assert_eq!((tokenizer.bos, tokenizer.eos, tokenizer.add_bos), (None, Some(4), false));
        assert_eq!(tokenizer.end_ids(), [4, 3]);
        assert_eq!(tokenizer.encode("abb<|im_end|>", true).unwrap(), [2, 1, 4]);
        assert_eq!(tokenizer.named_tokens(), [("pad_token".to_owned(), "<|endoftext|>".to_owned())]);
    }

    #[test]
    fn what_is_wrong_with_a_folder_is_told() {
        let refused =
            |files: &[(&str, &str)], old: bool| read(folder(files, old).path()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(refused(&[], false).contains("neither tokenizer.json nor vocab.json with merges.txt"));
        assert!(refused(&[], true).contains("only Qwen2Tokenizer and GPT2Tokenizer are known (tokenizer_class is \"\")"));
        assert!(refused(&[("tokenizer.json", "{}")], false).contains("cannot be read as a tokenizer"));
        assert!(refused(&[("tokenizer_config.json", "{")], true).contains("is no valid JSON"));
        assert!(refused(&[("tokenizer_config.json", "[]")], true).contains("holds a list, expected a JSON object"));
        let class = r#""tokenizer_class": "GPT2Tokenizer""#;
        let wrong_id = format!(r#"{{{class}, "added_tokens_decoder": {{"9": {{"content": "<x>", "special": true}}}}}}"#);
        assert!(
            refused(&[("tokenizer_config.json", &wrong_id)], true)
                .contains("\"<x>\" has the id 9 in the files, but the vocabulary gives it 3")
        );
        let config = format!("{{{class}}}");
        assert!(refused(&[("tokenizer_config.json", &config), ("merges.txt", "a b\nab\n")], true).contains("line 2: \"ab\""));
    }
}
