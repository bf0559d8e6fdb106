//! The vocabulary in a GGUF file's metadata, read as llama.cpp reads it (src/llama-vocab.cpp, `llama_vocab::impl::load`).

use std::collections::HashMap;

use tokenizers::AddedToken;

use super::spm::{Kind, Spm, Token};
use super::{Inner, TokenBytes, Tokenizer, byte_level, pre};
use crate::error::{Error, Result};
use crate::formats::gguf::Gguf;

/// What `tokenizer.ggml.*` says.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// The file, for messages.
    pub path: std::path::PathBuf,
    /// `gpt2` (byte-level BPE) or `llama` (SPM).
    pub model: String,
    /// The pre-tokenizer of a byte-level vocabulary.
    pub pre: Option<String>,
    /// By id. Bytes, because tokens of SPM vocabularies may be no UTF-8.
    pub tokens: Vec<Vec<u8>>,
    /// One a token, or none at all.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. One a token, or none.
    pub types: Vec<u8>,
    /// `left right`, in order of rank.
    pub merges: Vec<Vec<u8>>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
    /// End of turn, end of message.
    pub ends: Vec<u32>,
    pub add_bos: Option<bool>,
    pub add_space_prefix: Option<bool>,
    /// `general.name`: Phi-3's special tokens are known by it.
    pub name: String,
}

/// Tokens that end a turn by their name, whatever else the file says: llama.cpp's list of end-of-generation tokens.
pub const ENDS_BY_NAME: [&str; 24] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
];

impl GgufVocab {
    /// Reads the metadata. Errors: no vocabulary in the file, a key of a wrong type, an id outside the vocabulary.
    pub fn read(gguf: &Gguf) -> Result<Self> {
        let ids = |key: &str| -> Result<Option<u32>> {
            Ok(gguf.get_u64(&format!("tokenizer.ggml.{key}"))?.and_then(|id| u32::try_from(id).ok()))
        };
        let strings = |key: &str| -> Result<Vec<Vec<u8>>> {
            let list = gguf.get_strings(&format!("tokenizer.ggml.{key}"))?.unwrap_or_default();
            Ok(list.into_iter().map(<[u8]>::to_vec).collect())
        };
        let numbers = |key: &str| gguf.get_numbers(&format!("tokenizer.ggml.{key}")).map(Option::unwrap_or_default);
        let Some(model) = gguf.get_str("tokenizer.ggml.model")? else {
            return Err(Error::file(
                &gguf.path,
                "no tokenizer in the file (key tokenizer.ggml.model is missing)",
                "use a GGUF of a whole model; an adapter or a projector has no tokenizer",
            ));
        };
        Ok(Self {
            path: gguf.path.clone(),
            model: model.to_owned(),
            pre: gguf.get_str("tokenizer.ggml.pre")?.map(str::to_owned),
            tokens: strings("tokens")?,
            // Scores and types are small numbers: the casts keep them.
            scores: numbers("scores")?.into_iter().map(|n| n as f32).collect(),
            types: numbers("token_type")?.into_iter().map(|n| n as u8).collect(),
            merges: strings("merges")?,
            bos: ids("bos_token_id")?,
            eos: ids("eos_token_id")?,
            unknown: ids("unknown_token_id")?,
            padding: ids("padding_token_id")?,
            ends: [ids("eot_token_id")?, ids("eom_token_id")?].into_iter().flatten().collect(),
            add_bos: gguf.get_bool("tokenizer.ggml.add_bos_token")?,
            add_space_prefix: gguf.get_bool("tokenizer.ggml.add_space_prefix")?,
            name: gguf.get_str("general.name")?.unwrap_or_default().to_owned(),
        })
    }

    /// Builds the tokenizer. Errors: a vocabulary or pre-tokenizer of a kind that is not known here, lists of unequal
    /// length, a token that stands twice.
    pub fn into_tokenizer(mut self) -> Result<Tokenizer> {
        let count = self.tokens.len();
        if count == 0 {
            return Err(self.error("the vocabulary is empty (key tokenizer.ggml.tokens)", "fetch the model again"));
        }
        for (key, len) in [("scores", self.scores.len()), ("token_type", self.types.len())] {
            if len != 0 && len < count {
                let message = format!("tokenizer.ggml.{key} has {len} entries for {count} tokens");
                return Err(self.error(message, "the file is damaged: fetch it again"));
            }
        }
        let in_range = |id: Option<u32>| id.filter(|&id| (id as usize) < count);
        (self.bos, self.eos) = (in_range(self.bos), in_range(self.eos));
        (self.unknown, self.padding) = (in_range(self.unknown), in_range(self.padding));
        let ids = self.index()?;
        let by_name = self.ends_by_name(&ids);
        let mut kinds: Vec<Kind> = (0..count).map(|id| kind(self.types.get(id).copied().unwrap_or(1))).collect();
        for &id in &by_name {
            kinds[id as usize] = Kind::Control;
        }
        let mut tokenizer = match self.model.as_str() {
            "gpt2" => self.byte_level(&kinds)?,
            "llama" => self.spm(&kinds, ids),
            other => {
                return Err(Error::unsupported(
                    format!(
                        "{}: tokenizer.ggml.model is {other:?}; known are gpt2 (byte-level BPE) and llama (SPM)",
                        self.path.display()
                    ),
                    "use the model's Hugging Face folder with its tokenizer.json instead",
                ));
            }
        };
        tokenizer.specials =
            (0u32..).zip(&kinds).filter(|(_, k)| matches!(k, Kind::Control | Kind::Unknown)).map(|(id, _)| id).collect();
        for id in self.ends.iter().chain(&by_name) {
            tokenizer.add_end(*id);
        }
        for (name, id) in [("unk_token", self.unknown), ("pad_token", self.padding)] {
            if let Some(text) = id.and_then(|id| tokenizer.token(id)) {
                tokenizer.named.push((name.to_owned(), text));
            }
        }
        if tokenizer.add_bos && tokenizer.bos.is_none() {
            return Err(self.error(
                "tokenizer.ggml.add_bos_token is true, but there is no tokenizer.ggml.bos_token_id in the vocabulary",
                "the file is damaged or badly converted: fetch another",
            ));
        }
        Ok(tokenizer)
    }

    /// Ids by token. llama.cpp, too, refuses a token that stands twice.
    fn index(&self) -> Result<HashMap<Vec<u8>, u32>> {
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (id, token) in (0u32..).zip(&self.tokens) {
            if let Some(first) = ids.insert(token.clone(), id)
                && !token.is_empty()
            {
                let message = format!("token {:?} stands twice, as id {first} and as id {id}", String::from_utf8_lossy(token));
                return Err(self.error(message, "the file is badly converted: fetch another"));
            }
        }
        Ok(ids)
    }

    fn ends_by_name(&self, ids: &HashMap<Vec<u8>, u32>) -> Vec<u32> {
        let id = |name: &str| ids.get(name.as_bytes()).copied();
        // gpt-oss (harmony) ends with these two; its <|end|> only closes a part of a turn.
        let harmony = id("<|call|>").or(id("<|calls|>")).is_some() && id("<|return|>").or(id("<|flush|>")).is_some();
        ENDS_BY_NAME.iter().filter(|&&name| !(harmony && name == "<|end|>")).filter_map(|name| id(name)).collect()
    }

    fn byte_level(&mut self, kinds: &[Kind]) -> Result<Tokenizer> {
        // llama.cpp, too, takes "default" where the key is missing.
        let name = self.pre.as_deref().unwrap_or("default");
        let Some(pre) = pre::named(name) else {
            return Err(Error::unsupported(
                format!(
                    "{}: pre-tokenizer {name:?} (tokenizer.ggml.pre) is not known; known are {}",
                    self.path.display(),
                    pre::names().join(", ")
                ),
                "use the model's Hugging Face folder with its tokenizer.json instead",
            ));
        };
        let mut vocab = Vec::with_capacity(self.tokens.len());
        for (id, token) in (0u32..).zip(&self.tokens) {
            let Ok(token) = String::from_utf8(token.clone()) else {
                let message = format!("token {id} of a byte-level vocabulary is no UTF-8: {:?}", String::from_utf8_lossy(token));
                return Err(self.error(message, "the file is damaged: fetch it again"));
            };
            vocab.push((token, id));
        }
        let mut merges = Vec::with_capacity(self.merges.len());
        for (rank, merge) in self.merges.iter().enumerate() {
            // The first character may itself be a space in odd vocabularies: look for the separator behind it.
            let pair = std::str::from_utf8(merge).ok().and_then(|merge| {
                let first = merge.chars().next()?.len_utf8();
                let at = first + merge[first..].find(' ')?;
                Some((merge[..at].to_owned(), merge[at + 1..].to_owned()))
            });
            let Some(pair) = pair else {
                let message =
                    format!("merge {rank} is {:?}, expected two tokens with a space between", String::from_utf8_lossy(merge));
                return Err(self.error(message, "the file is damaged: fetch it again"));
            };
            merges.push(pair);
        }
        let added = (0u32..).zip(kinds).filter_map(|(id, kind)| {
            let special = match kind {
                Kind::Control | Kind::Unknown => true,
                Kind::UserDefined => false,
                Kind::Normal | Kind::Unused | Kind::Byte => return None,
            };
            let text = vocab[id as usize].0.clone();
            (!text.is_empty()).then(|| AddedToken::from(text, special).normalized(false))
        });
        let added: Vec<AddedToken> = added.collect();
        let mut library = byte_level::build(vocab, merges, &pre).map_err(|e| {
            self.error(format!("the vocabulary and its merges do not fit: {e}"), "the file is damaged: fetch it again")
        })?;
        let before = library.get_vocab_size(true);
        library
            .add_tokens(added)
            .map_err(|e| self.error(format!("special tokens cannot be added: {e}"), "the file is damaged: fetch it again"))?;
        debug_assert_eq!(before, library.get_vocab_size(true), "special tokens are in the vocabulary already");
        let inner = Inner::Library { tokenizer: Box::new(library), bytes: TokenBytes::ByteLevel };
        Ok(Tokenizer::new(inner, self.bos, self.eos, self.add_bos.unwrap_or(pre.add_bos)))
    }

    fn spm(&mut self, kinds: &[Kind], ids: HashMap<Vec<u8>, u32>) -> Tokenizer {
        let count = self.tokens.len();
        // llama.cpp's defaults for SPM: <unk> 0, <s> 1, </s> 2.
        let default = |id: u32| ((id as usize) < count).then_some(id);
        let unknown = self.unknown.or(default(0));
        let (bos, eos) = (self.bos.or(default(1)), self.eos.or(default(2)));
        let name = self.name.to_lowercase();
        let phi3 = name.contains("phi-3") || name.contains("phi3");
        let strip_after = (0..count)
            .map(|id| {
                let special =
                    matches!(kinds[id], Kind::Control | Kind::Unknown | Kind::UserDefined) || self.tokens[id] == b"</s>";
                phi3 && special && ![&b"<unk>"[..], b"<s>", b"<|endoftext|>"].contains(&&self.tokens[id][..])
            })
            .collect();
        let tokens = std::mem::take(&mut self.tokens)
            .into_iter()
            .enumerate()
            .map(|(id, bytes)| Token { bytes, score: self.scores.get(id).copied().unwrap_or(0.0), kind: kinds[id] })
            .collect();
        let spm = Spm::new(tokens, ids, unknown, self.add_space_prefix.unwrap_or(true), strip_after);
        Tokenizer::new(Inner::Spm(spm), bos, eos, self.add_bos.unwrap_or(true))
    }

    fn error(&self, message: impl Into<String>, hint: &str) -> Error {
        Error::file(&self.path, message, hint)
    }
}

fn kind(number: u8) -> Kind {
    match number {
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        _ => Kind::Normal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte-level vocabulary: `a b ab <|im_end|>`, the last a control token.
    fn vocabulary() -> GgufVocab {
        GgufVocab {
            path: "m.gguf".into(),
            model: "gpt2".into(),
            pre: Some("qwen2".into()),
            tokens: ["a", "b", "ab", "<|im_end|>"].map(|t| t.as_bytes().to_vec()).to_vec(),
            types: vec![1, 1, 1, 3],
            merges: vec![b"a b".to_vec()],
            eos: Some(0),
            ..GgufVocab::default()
        }
    }

    #[test]
    fn a_small_vocabulary_merges_and_knows_its_ends() {
        let tokenizer = vocabulary().into_tokenizer().unwrap();
        assert_eq!(tokenizer.encode("abb<|im_end|>a", true).unwrap(), [2, 1, 3, 0]);
        assert_eq!(tokenizer.end_ids(), [0, 3]);
        assert!(tokenizer.is_special(3) && !tokenizer.is_special(2));
        assert_eq!(tokenizer.decode(&[2, 3], false).unwrap(), "ab<|im_end|>");
        assert_eq!(tokenizer.decode(&[2, 3], true).unwrap(), "ab");
        assert!(tokenizer.decode(&[9], true).unwrap_err().to_string().contains("id 9 is not in the vocabulary of 4 tokens"));
    }

    #[test]
    fn what_is_wrong_with_a_vocabulary_is_told() {
        let refused = |change: &dyn Fn(&mut GgufVocab)| {
            let mut vocab = vocabulary();
            change(&mut vocab);
            vocab.into_tokenizer().err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(
            refused(&|v| v.pre = Some("nonesuch".into()))
                .contains("\"nonesuch\" (tokenizer.ggml.pre) is not known; known are default, gpt-2")
        );
        assert!(refused(&|v| v.model = "bert".into()).contains("tokenizer.ggml.model is \"bert\""));
        assert!(refused(&|v| v.tokens.clear()).contains("m.gguf: the vocabulary is empty"));
        assert!(refused(&|v| v.types = vec![1]).contains("token_type has 1 entries for 4 tokens"));
        assert!(refused(&|v| v.tokens[1] = b"a".to_vec()).contains("\"a\" stands twice, as id 0 and as id 1"));
        assert!(refused(&|v| v.merges = vec![b"ab".to_vec()]).contains("merge 0 is \"ab\""));
        assert!(refused(&|v| v.merges = vec![b"a x".to_vec()]).contains("do not fit"));
        assert!(refused(&|v| v.tokens[0] = vec![0xff]).contains("token 0 of a byte-level vocabulary is no UTF-8"));
        assert!(refused(&|v| v.add_bos = Some(true)).contains("no tokenizer.ggml.bos_token_id"));
        // An id outside the vocabulary names no token, as in llama.cpp.
        let mut vocab = vocabulary();
        vocab.bos = Some(99);
        assert_eq!(vocab.into_tokenizer().unwrap().bos, None);
    }
}
