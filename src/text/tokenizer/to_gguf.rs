//! A folder's vocabulary as the `tokenizer.*` keys of a GGUF file, in the order and with the values of llama.cpp's converter
//! (conversion/base.py: `get_vocab_base`, `_create_vocab_sentencepiece`, `_set_vocab_llama_hf`; conversion/llama.py), and the
//! proof that both give the same ids. Where the converter would not serve the ids that were trained, ours is other on purpose:
//! - an SPM vocabulary without tokenizer.model gets scores by the rank of its merges (there: -1000 for all, so that the
//!   leftmost pair merges first whatever it is);
//! - ids without a token up to the model's rows are `[PADn]` in every kind (there, a file that does not load);
//! - BOS, EOS and whether a BOS is put in front are what the folder's tokenizer does, whatever its files say beside it.

mod special;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use self::special::Special;
use super::folder::{self, Files};
use super::spm::Kind;
use super::{Inner, Tokenizer, pre, pre_hash, spm_model};
use crate::error::{Error, Result};
use crate::formats::gguf::{Gguf, Value, Writer};

/// A folder's vocabulary in GGUF's words.
pub struct Served {
    /// `tokenizer.ggml.*`, without the chat template.
    pub metadata: Vec<(String, Value)>,
    /// What llama.cpp makes of it.
    pub tokenizer: Tokenizer,
}

/// The vocabulary of a folder for a model with `rows` rows in its embedding. Errors: no tokenizer, one of a kind that GGUF or
/// llama.cpp does not have, one that would be served other ids than the folder's own tokenizer gives.
pub fn to_gguf(folder: &Path, rows: usize) -> Result<Served> {
    let files = Files::read(folder)?;
    let json = folder::json(&folder.join("tokenizer.json"))?;
    let model = folder.join("tokenizer.model");
    // transformers reads tokenizer.json where it is there; from tokenizer.model alone llama.cpp's reading is the only one.
    let own = if json.is_none() && model.is_file() { None } else { Some(folder::read(folder)?) };
    let mut metadata = Metadata::default();
    if let Some(add) = files.tokenizer.get("add_prefix_space").and_then(Json::as_bool)
        && is_llama(&files)
    {
        metadata.set("add_space_prefix", Value::Bool(add));
    }
    let special = match (&own, &json) {
        _ if model.is_file() => {
            metadata.vocabulary(Vocabulary::of_sentencepiece(folder, &model, &files, rows)?);
            Special::read(json.as_ref(), &files, Some(rows))
        }
        (Some(own), Some(json)) if is_spm_like(json) => {
            metadata.vocabulary(Vocabulary::of_spm_like(own, &files, json, rows));
            Special::read(Some(json), &files, Some(rows))
        }
        (Some(own), json) => {
            metadata.vocabulary(Vocabulary::of_byte_level(folder, own, &files, json.as_ref(), rows)?);
            Special::read(json.as_ref(), &files, None)
        }
        (None, _) => unreachable!("without a tokenizer of its own the folder has tokenizer.model"),
    };
    metadata.special(&special);
    if is_llama(&files) {
        metadata.llama_exceptions(rows);
    }
    let tokenizer = match &own {
        None => metadata.read(folder)?,
        Some(own) => {
            metadata.as_trained(own, folder)?;
            let served = metadata.read(folder)?;
            check(folder, own, &served)?;
            served
        }
    };
    Ok(Served { metadata: metadata.0, tokenizer })
}

/// Some of what the converter does stands in its class for llama.
fn is_llama(files: &Files) -> bool {
    files.model.get("model_type").and_then(Json::as_str) == Some("llama")
}

/// SentencePiece's BPE as tokenizer.json spells it (gguf-py, vocab.py, `LlamaHfVocab`).
fn is_spm_like(json: &Json) -> bool {
    json["model"]["type"] == "BPE" && json["model"]["byte_fallback"] == true && json["decoder"]["type"] == "Sequence"
}

/// Tokens by id, and how texts become them.
struct Vocabulary {
    /// `gpt2` or `llama`.
    model: &'static str,
    pre: &'static str,
    tokens: Vec<Vec<u8>>,
    scores: Vec<f32>,
    kinds: Vec<Kind>,
    /// `left right`
    merges: Vec<String>,
}

impl Vocabulary {
    /// As many tokens as the model has rows, all unused.
    fn unused(model: &'static str, pre: &'static str, rows: usize, score: Option<f32>) -> Self {
        Self {
            model,
            pre,
            tokens: (0..rows).map(|id| format!("[PAD{id}]").into_bytes()).collect(),
            scores: score.map_or_else(Vec::new, |score| vec![score; rows]),
            kinds: vec![Kind::Unused; rows],
            merges: Vec::new(),
        }
    }

    /// GPT-2's alphabet and merges (`get_vocab_base`).
    fn of_byte_level(folder: &Path, own: &Tokenizer, files: &Files, json: Option<&Json>, rows: usize) -> Result<Self> {
        let Inner::Library { tokenizer: library, .. } = &own.inner else { unreachable!("a folder's tokenizer is the library's") };
        if !folder::speaks_byte_level(library) {
            return Err(Error::unsupported(
                format!(
                    "{}: its tokenizer is neither byte-level BPE nor SentencePiece's BPE with byte fallback, and only these two can be written",
                    folder.display()
                ),
                "take a GGUF file of the model that others made",
            ));
        }
        let mut vocabulary = Self::unused("gpt2", pre_tokenizer(folder, own, json)?, rows, None);
        let added = added_tokens(own, files);
        for (token, id) in library.get_vocab(true) {
            let Some(place) = vocabulary.tokens.get_mut(id as usize) else { return Err(too_many(folder, rows)) };
            let mut token = token;
            vocabulary.kinds[id as usize] = match added.get(&id) {
                None => Kind::Normal,
                Some(added) => {
                    if !added.normalized {
                        // llama.cpp looks for added tokens in the text as it is.
                        let spelled = library.encode(token.as_str(), false).and_then(|e| library.decode(e.get_ids(), false));
                        token = spelled.unwrap_or(token);
                    }
                    if added.special || looks_special(&token) {
                        Kind::Control
                    } else {
                        token = token.replace('\u{2581}', " ");
                        Kind::UserDefined
                    }
                }
            };
            *place = token.into_bytes();
        }
        vocabulary.merges = merges(folder, json)?;
        Ok(vocabulary)
    }

    /// tokenizer.json of an SPM vocabulary (`_set_vocab_llama_hf`), with scores that merge in the order of the merges.
    fn of_spm_like(own: &Tokenizer, files: &Files, json: &Json, rows: usize) -> Self {
        let Inner::Library { tokenizer: library, .. } = &own.inner else { unreachable!("a folder's tokenizer is the library's") };
        let pairs = merge_pairs(json);
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (rank, (left, right)) in pairs.iter().enumerate() {
            ranks.entry(format!("{left}{right}")).or_insert(rank);
        }
        let mut vocabulary = Self::unused("llama", "default", rows, Some(-1000.0));
        let added = added_tokens(own, files);
        let base = library.get_vocab_size(false);
        for (token, id) in library.get_vocab(true) {
            let at = id as usize;
            if at >= rows {
                continue; // told by the check of ids
            }
            vocabulary.kinds[at] = match added.get(&id) {
                _ if is_byte(&token) => Kind::Byte,
                Some(added) if added.special => Kind::Control,
                Some(_) if at >= base => Kind::UserDefined,
                _ => Kind::Normal,
            };
            if let Some(&rank) = ranks.get(&token) {
                vocabulary.scores[at] = -(rank as f32);
            } else if vocabulary.kinds[at] == Kind::Normal {
                // Nothing merges into it: a single character.
                vocabulary.scores[at] = -(pairs.len() as f32);
            }
            vocabulary.tokens[at] = token.into_bytes();
        }
        vocabulary
    }

    /// tokenizer.model, with what was added beside it (`_create_vocab_sentencepiece`).
    fn of_sentencepiece(folder: &Path, path: &Path, files: &Files, rows: usize) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let pieces = spm_model::pieces(&bytes).map_err(|problem| {
            Error::file(
                path,
                problem,
                "fetch it again; where the folder has tokenizer.json, move this file away and that is taken",
            )
        })?;
        if pieces.len() > rows {
            return Err(too_many(folder, rows));
        }
        let mut vocabulary = Self::unused("llama", "default", rows, Some(-10_000.0));
        for (at, piece) in pieces.into_iter().enumerate() {
            vocabulary.tokens[at] = piece.text;
            vocabulary.scores[at] = piece.score;
            vocabulary.kinds[at] = if piece.kind == Kind::UserDefined { Kind::Normal } else { piece.kind };
        }
        let mut add = |id: u64, token: String, kind: Kind| -> Result<()> {
            let at = usize::try_from(id).ok().filter(|&at| at < rows).ok_or_else(|| too_many(folder, rows))?;
            vocabulary.tokens[at] = token.into_bytes();
            vocabulary.scores[at] = -1000.0;
            vocabulary.kinds[at] = kind;
            Ok(())
        };
        if let Some(Json::Object(map)) = folder::json(&folder.join("added_tokens.json"))? {
            for (token, id) in map {
                add(id.as_u64().unwrap_or(u64::MAX), token, Kind::UserDefined)?;
            }
        }
        for (id, token) in folder::listed(files) {
            if token.special || looks_special(&token.content) {
                add(id, token.content, Kind::Control)?;
            } else {
                add(id, token.content.replace('\u{2581}', " "), Kind::UserDefined)?;
            }
        }
        Ok(vocabulary)
    }
}

/// The keys, in the order of writing.
#[derive(Default)]
struct Metadata(Vec<(String, Value)>);

impl Metadata {
    /// Sets `tokenizer.ggml.KEY`, in its old place where it stands already.
    fn set(&mut self, key: &str, value: Value) {
        let key = format!("tokenizer.ggml.{key}");
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some(known) => known.1 = value,
            None => self.0.push((key, value)),
        }
    }

    fn vocabulary(&mut self, vocabulary: Vocabulary) {
        const F32: u32 = 6;
        const I32: u32 = 5;
        self.set("model", Value::string(vocabulary.model));
        self.set("pre", Value::string(vocabulary.pre));
        self.set("tokens", Value::strings(&vocabulary.tokens));
        if !vocabulary.scores.is_empty() {
            self.set("scores", Value::Array(F32, vocabulary.scores.into_iter().map(Value::F32).collect()));
        }
        let number = |kind: &Kind| match kind {
            Kind::Normal => 1,
            Kind::Unknown => 2,
            Kind::Control => 3,
            Kind::UserDefined => 4,
            Kind::Unused => 5,
            Kind::Byte => 6,
        };
        self.set("token_type", Value::Array(I32, vocabulary.kinds.iter().map(|k| Value::I32(number(k))).collect()));
        if !vocabulary.merges.is_empty() {
            self.set("merges", Value::strings(&vocabulary.merges));
        }
    }

    fn special(&mut self, special: &Special) {
        for (role, id) in &special.ids {
            if let Some(key) = special::id_key(role) {
                self.set(key, Value::U32(*id));
            }
        }
        for (role, add) in &special.add {
            if matches!(role.as_str(), "bos" | "eos" | "sep") {
                self.set(&format!("add_{role}_token"), Value::Bool(*add));
            }
        }
    }

    /// What conversion/llama.py knows of single models by the size of their vocabularies.
    fn llama_exceptions(&mut self, rows: usize) {
        if rows == 32_016 {
            // CodeLlama
            for (key, id) in [("prefix", 32_007), ("suffix", 32_008), ("middle", 32_009), ("eot", 32_010)] {
                self.set(&format!("{key}_token_id"), Value::U32(id));
            }
        }
        if rows == 49_152 {
            // Granite; SmolLM2, too, has none.
            self.set("add_bos_token", Value::Bool(false));
        }
    }

    /// BOS and EOS as the folder's own tokenizer has them.
    fn as_trained(&mut self, own: &Tokenizer, folder: &Path) -> Result<()> {
        let served = self.read(folder)?;
        for (key, own, served) in [("bos_token_id", own.bos, served.bos), ("eos_token_id", own.eos, served.eos)] {
            if let Some(id) = own.filter(|_| own != served) {
                self.set(key, Value::U32(id));
            }
        }
        if own.add_bos != served.add_bos {
            self.set("add_bos_token", Value::Bool(own.add_bos));
        }
        Ok(())
    }

    /// The tokenizer that these keys make.
    fn read(&self, folder: &Path) -> Result<Tokenizer> {
        let header = Writer::new(self.0.clone()).header()?;
        Tokenizer::from_gguf(&Gguf::from_bytes(&format!("{} as GGUF", folder.display()), header)?)
    }
}

/// An added token, by what matters here.
struct Added {
    special: bool,
    normalized: bool,
}

/// The added tokens by id; what the files name as BOS, EOS and the like is special whether it was added or not, as
/// transformers has it.
fn added_tokens(own: &Tokenizer, files: &Files) -> HashMap<u32, Added> {
    let Inner::Library { tokenizer: library, .. } = &own.inner else { return HashMap::new() };
    let decoder = library.get_added_vocabulary().get_added_tokens_decoder();
    let mut added: HashMap<u32, Added> =
        decoder.iter().map(|(&id, token)| (id, Added { special: token.special, normalized: token.normalized })).collect();
    let named =
        ["bos", "eos", "unk", "sep", "pad", "cls", "mask"].into_iter().filter_map(|role| files.token(&format!("{role}_token")));
    let lists =
        ["additional_special_tokens", "extra_special_tokens"].into_iter().filter_map(|key| files.tokenizer.get(key)?.as_array());
    let listed = lists.flatten().filter_map(folder::token_text);
    for id in named.chain(listed).filter_map(|text| library.token_to_id(&text)) {
        added.entry(id).or_insert(Added { special: true, normalized: false }).special = true;
    }
    added
}

/// Tokens that are not marked as special, but are (`does_token_look_special`).
fn looks_special(token: &str) -> bool {
    let within = |start: &str, end: &str| token.starts_with(start) && token.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&token)
        || within("<|", "|>")
        || within("<\u{ff5c}", "\u{ff5c}>")
        || within("<unused", ">")
}

/// `<0x0A>`
fn is_byte(token: &str) -> bool {
    token
        .strip_prefix("<0x")
        .and_then(|t| t.strip_suffix('>'))
        .is_some_and(|t| t.len() == 2 && t.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn too_many(folder: &Path, rows: usize) -> Error {
    Error::unsupported(
        format!("the tokenizer of {} has ids behind the model's {rows} rows", folder.display()),
        "the tokenizer belongs to another model; put the right tokenizer's files beside the weights",
    )
}

/// Merges as tokenizer.json has them: pairs, or texts with a space between.
fn merge_pairs(json: &Json) -> Vec<(String, String)> {
    let pair = |merge: &Json| match merge {
        Json::String(text) => text.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())),
        Json::Array(pair) => Some((pair.first()?.as_str()?.to_owned(), pair.get(1)?.as_str()?.to_owned())),
        _ => None,
    };
    json["model"]["merges"].as_array().into_iter().flatten().filter_map(pair).collect()
}

/// `left right` in order of rank, of tokenizer.json or merges.txt. A space inside a part is spelled in GPT-2's alphabet.
fn merges(folder: &Path, json: Option<&Json>) -> Result<Vec<String>> {
    if let Some(json) = json {
        let spelled = |part: &str| part.replace(' ', "\u{120}");
        return Ok(merge_pairs(json).iter().map(|(left, right)| format!("{} {}", spelled(left), spelled(right))).collect());
    }
    let path = folder.join("merges.txt");
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let lines = text.lines().enumerate().filter(|(n, line)| !line.is_empty() && (*n > 0 || !line.starts_with('#')));
    Ok(lines.map(|(_, line)| line.trim().to_owned()).collect())
}

/// The name that llama.cpp has for the folder's pre-tokenizer: by the hash of what it makes of one text, as the converter
/// knows it, else by its own description.
fn pre_tokenizer(folder: &Path, own: &Tokenizer, json: Option<&Json>) -> Result<&'static str> {
    let Inner::Library { tokenizer: library, .. } = &own.inner else { unreachable!("a folder's tokenizer is the library's") };
    let ids = |special: bool| library.encode(pre_hash::TEXT, special).map(|e| e.get_ids().to_vec()).unwrap_or_default();
    // The converter's tokenizer may put a BOS in front by its class, without saying so in tokenizer.json.
    let plain = ids(false);
    let with_bos: Vec<u32> = own.bos.into_iter().chain(plain.iter().copied()).collect();
    let by_hash = [ids(true), with_bos, plain].into_iter().find_map(|ids| {
        let list = format!("[{}]", ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", "));
        let hash: String = Sha256::digest(list).iter().map(|byte| format!("{byte:02x}")).collect();
        pre_hash::named(&hash)
    });
    by_hash.or_else(|| by_description(json?)).ok_or_else(|| {
        Error::unsupported(
            format!("{}: llama.cpp has no name for the way in which this tokenizer cuts texts into words", folder.display()),
            format!("known are {}; take a GGUF file of the model that others made", pre::names().join(", ")),
        )
    })
}

/// A vocabulary that was made smaller or larger has another hash, but the same pre-tokenizer.
fn by_description(json: &Json) -> Option<&'static str> {
    const QWEN2: &str =
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const LLAMA3: &str =
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let outer = &json["pre_tokenizer"];
    let steps = outer["pretokenizers"].as_array().map_or(std::slice::from_ref(outer), Vec::as_slice);
    let pattern = |step: &Json| -> Option<String> { Some(step["pattern"]["Regex"].as_str()?.to_owned()) };
    let byte_level = |step: &Json, cuts: bool| {
        step["type"] == "ByteLevel" && step["use_regex"].as_bool().unwrap_or(true) == cuts && step["add_prefix_space"] != true
    };
    match steps {
        [one] if byte_level(one, true) => Some("gpt-2"),
        [digits, last] if digits["type"] == "Digits" && digits["individual_digits"] == true && byte_level(last, true) => {
            Some("smollm")
        }
        [split, last] if split["type"] == "Split" && split["behavior"] == "Isolated" && byte_level(last, false) => {
            match (pattern(split)?.as_str(), json["model"]["ignore_merges"] == true) {
                (QWEN2, false) => Some("qwen2"),
                (LLAMA3, true) => Some("llama-bpe"),
                (LLAMA3, false) => Some("dbrx"),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Holds that the served tokenizer gives the folder's ids: on the text that tells pre-tokenizers apart, on words out of the
/// vocabulary, and on every special token.
fn check(folder: &Path, own: &Tokenizer, served: &Tokenizer) -> Result<()> {
    const WORDS: usize = 4000;
    let Inner::Library { tokenizer: library, .. } = &own.inner else { return Ok(()) };
    let mut words: Vec<(u32, String)> = library.get_vocab(false).into_iter().map(|(token, id)| (id, token)).collect();
    words.sort_unstable();
    let spelled = |token: &str| {
        let text = token.replace(['\u{120}', '\u{2581}'], " ");
        text.bytes().all(|b| b == b' ' || b.is_ascii_alphanumeric()).then_some(text)
    };
    let step = words.len().div_ceil(WORDS).max(1);
    let words: String = words.iter().step_by(step).filter_map(|(_, token)| spelled(token)).collect();
    let added: HashSet<&str> =
        library.get_added_vocabulary().get_added_tokens_decoder().values().map(|token| token.content.as_str()).collect();
    let mut added: Vec<&str> = added.into_iter().filter(|text| !text.trim().is_empty()).collect();
    added.sort_unstable();
    for text in [pre_hash::TEXT, words.as_str(), "Hello, world!\n"].into_iter().chain(added) {
        let (own, served) = (own.encode(text, true)?, served.encode(text, true)?);
        if own != served {
            let same = own.iter().zip(&served).take_while(|(a, b)| a == b).count();
            let around = |ids: &[u32]| ids[same.min(ids.len())..ids.len().min(same + 5)].to_vec();
            return Err(Error::unsupported(
                format!(
                    "{}: llama.cpp would cut texts into other tokens than this tokenizer: {:?} becomes {:?} here and {:?} there, from token {same} on",
                    folder.display(),
                    text.chars().take(40).collect::<String>(),
                    around(&own),
                    around(&served)
                ),
                "what is served would not be what was trained; take a GGUF file of the model that others made, and train on that",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pre_tokenizer_is_known_by_its_own_description() {
        let byte_level =
            |cuts: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cuts});
        let split =
            |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let sequence = |steps: Vec<Json>| json!({"type": "Sequence", "pretokenizers": steps});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let named = |pre: Json, whole: bool| by_description(&json!({"pre_tokenizer": pre, "model": {"ignore_merges": whole}}));
        assert_eq!(named(byte_level(true), false), Some("gpt-2"));
        assert_eq!(named(sequence(vec![digits.clone(), byte_level(true)]), false), Some("smollm"));
        let words = |digits: &str| {
            format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )
        };
        assert_eq!(named(sequence(vec![split(&words("")), byte_level(false)]), false), Some("qwen2"));
        assert_eq!(named(sequence(vec![split(&words("{1,3}")), byte_level(false)]), true), Some("llama-bpe"));
        assert_eq!(named(sequence(vec![split(&words("{1,3}")), byte_level(false)]), false), Some("dbrx"));
        for unknown in [
            byte_level(false),
            sequence(vec![split(&words("{1,2}")), byte_level(false)]),
            sequence(vec![split(&words("")), byte_level(true)]),
            sequence(vec![digits, byte_level(false)]),
            json!({"type": "ByteLevel", "add_prefix_space": true}),
            Json::Null,
        ] {
            assert_eq!(named(unknown.clone(), false), None, "{unknown}");
        }
        assert!(["gpt-2", "smollm", "qwen2", "llama-bpe", "dbrx"].iter().all(|name| pre::named(name).is_some()));
    }
}
