//! Tokenizers: `tokenizer.json` through the tokenizers crate; GGUF vocabularies (gpt2 with its pre-tokenizers,
//! llama/SPM) built from the file's metadata. A tokenizer read from GGUF gives the ids that llama.cpp (and so Ollama)
//! gives, one read from a folder the ids that transformers gives.

mod byte_level;
mod folder;
mod gguf;
mod pre;
mod pre_hash;
mod spm;
mod spm_model;
mod to_gguf;

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use self::spm::Spm;
use crate::error::{Error, Result};
use crate::formats::gguf::Gguf;

pub(super) use self::folder::{json, token_text};
pub use self::gguf::GgufVocab;
pub use self::to_gguf::{Served, to_gguf};

/// A tokenizer with what the model's files say about special tokens.
pub struct Tokenizer {
    inner: Inner,
    /// `<s>` and the like, where the vocabulary has one.
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// Whether plain text gets a BOS in front (`add_bos_token`).
    pub add_bos: bool,
    ends: Vec<u32>,
    specials: HashSet<u32>,
    /// `pad_token`, `unk_token`, ...: the names by which chat templates may ask for them, and their texts.
    named: Vec<(String, String)>,
}

/// The two implementations.
enum Inner {
    Library { tokenizer: Box<tokenizers::Tokenizer>, bytes: TokenBytes },
    Spm(Spm),
}

/// How a token of the tokenizers crate spells its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenBytes {
    /// One character of GPT-2's alphabet a byte.
    ByteLevel,
    /// UTF-8, with U+2581 for a space and `<0xXX>` for a byte.
    Metaspace,
}

impl Tokenizer {
    /// A folder with tokenizer.json (or vocab.json and merges.txt), and beside it tokenizer_config.json,
    /// special_tokens_map.json, generation_config.json, config.json. Errors: none of them there, or not readable.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        folder::read(folder)
    }

    /// The vocabulary in a GGUF file's metadata (`tokenizer.ggml.*`), as llama.cpp reads it.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        GgufVocab::read(gguf)?.into_tokenizer()
    }

    /// Ids of a text; special tokens inside the text become their ids. No BOS unless `add_special` and `add_bos`, and
    /// never a second one where the text begins with it. No EOS is ever added.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        Ok(self.encode_with_offsets(text, add_special)?.0)
    }

    /// Ids, and for each the byte range of `text` that it came from (an added BOS has an empty range at 0). Where one
    /// character became several tokens, each has its own bytes of it, unless the text was normalised there: then each has
    /// the whole character.
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let (mut ids, mut ranges) = match &self.inner {
            Inner::Library { tokenizer, .. } => {
                let encoding = tokenizer.encode(text, false).map_err(|e| {
                    Error::data(format!("the tokenizer cannot encode {}: {e}", shorten(text)), "check tokenizer.json")
                })?;
                let reported = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
                let ids = encoding.get_ids().to_vec();
                let ranges = self.refine(text, &ids, reported);
                (ids, ranges)
            }
            Inner::Spm(spm) => spm.encode(text)?.into_iter().unzip(),
        };
        if add_special
            && self.add_bos
            && let Some(bos) = self.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
            ranges.insert(0, 0..0);
        }
        Ok((ids, ranges))
    }

    /// The text of ids; special tokens are left out when `skip_special`. The space that an SPM vocabulary puts before a text
    /// is taken off again.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(&id) = ids.iter().find(|&&id| self.token(id).is_none()) {
            return Err(Error::data(
                format!("id {id} is not in the vocabulary of {} tokens", self.vocab_size()),
                "check that ids and tokenizer are of the same model",
            ));
        }
        match &self.inner {
            Inner::Library { tokenizer, .. } => tokenizer
                .decode(ids, skip_special)
                .map_err(|e| Error::data(format!("the tokenizer cannot decode {} ids: {e}", ids.len()), "check tokenizer.json")),
            Inner::Spm(spm) => Ok(spm.decode(ids, skip_special)),
        }
    }

    /// The token's text as the vocabulary has it (`<|im_end|>`, `Ġthe`, `▁the`, `<0x0A>`).
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.inner {
            Inner::Library { tokenizer, .. } => tokenizer.id_to_token(id),
            Inner::Spm(spm) => spm.token(id).map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
        }
    }

    /// The bytes that a token adds to a text: spaces and bytes spelled out, special tokens as they are called.
    pub fn piece(&self, id: u32) -> Option<Vec<u8>> {
        match &self.inner {
            Inner::Library { tokenizer, bytes } => {
                let token = tokenizer.id_to_token(id)?;
                match bytes {
                    TokenBytes::ByteLevel if !self.is_special(id) => byte_level::bytes(&token).or(Some(token.into_bytes())),
                    TokenBytes::Metaspace if !self.is_special(id) => Some(spm::spelled(token.as_bytes())),
                    _ => Some(token.into_bytes()),
                }
            }
            Inner::Spm(spm) => spm.token(id).map(spm::spelled),
        }
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        match &self.inner {
            Inner::Library { tokenizer, .. } => tokenizer.token_to_id(token),
            Inner::Spm(spm) => spm.id(token.as_bytes()),
        }
    }

    pub fn vocab_size(&self) -> usize {
        match &self.inner {
            Inner::Library { tokenizer, .. } => tokenizer.get_vocab_size(true),
            Inner::Spm(spm) => spm.vocab_size(),
        }
    }

    /// The largest id; larger than the number of tokens allows where a vocabulary has holes. `None` for an empty one.
    pub fn largest_id(&self) -> Option<u32> {
        match &self.inner {
            Inner::Library { tokenizer, .. } => tokenizer.get_vocab(true).into_values().max(),
            Inner::Spm(spm) => (spm.vocab_size() as u32).checked_sub(1),
        }
    }

    /// Ids that end a turn in generation: eos, and whatever the files call an end (eot, eog, generation_config's list).
    pub fn end_ids(&self) -> &[u32] {
        &self.ends
    }

    /// Whether the token is a special (control) token, which text stands for only on purpose.
    pub fn is_special(&self, id: u32) -> bool {
        self.specials.contains(&id)
    }

    /// `pad_token`, `unk_token` and the like with their texts, for chat templates that ask for them.
    pub fn named_tokens(&self) -> &[(String, String)] {
        &self.named
    }

    /// The text of the BOS token; empty where there is none.
    pub fn bos_text(&self) -> String {
        self.bos.and_then(|id| self.token(id)).unwrap_or_default()
    }

    /// The text of the EOS token; empty where there is none.
    pub fn eos_text(&self) -> String {
        self.eos.and_then(|id| self.token(id)).unwrap_or_default()
    }

    /// Puts an end first in the list of ends, once; ids outside the vocabulary are left out.
    fn new(inner: Inner, bos: Option<u32>, eos: Option<u32>, add_bos: bool) -> Self {
        Self { inner, bos, eos, add_bos, ends: eos.into_iter().collect(), specials: HashSet::new(), named: Vec::new() }
    }

    /// Adds an id that ends a turn.
    fn add_end(&mut self, id: u32) {
        if !self.ends.contains(&id) && self.token(id).is_some() {
            self.ends.push(id);
        }
    }

    /// Exact byte ranges from the ones that the tokenizers crate reports: it trims spaces from some and gives the whole
    /// character to each token of a split one. Where the bytes that a token spells stand next in the text, they are its
    /// range; elsewhere (normalised text, stripped spaces) the reported range stays.
    fn refine(&self, text: &str, ids: &[u32], reported: Vec<Range<usize>>) -> Vec<Range<usize>> {
        let mut position = 0;
        let mut ranges = Vec::with_capacity(ids.len());
        for (&id, reported) in ids.iter().zip(reported) {
            let spelled = self.spelled(id).unwrap_or_default();
            let stands_next = |bytes: &[u8]| text.as_bytes()[position..].starts_with(bytes);
            let length = if stands_next(&spelled) {
                Some(spelled.len())
            } else {
                // The space that was put before the text is no part of it.
                spelled.strip_prefix(b" ").filter(|rest| stands_next(rest)).map(<[u8]>::len)
            };
            // Touching the reported range guards against a chance match after a place where the text was changed.
            let touches = |end: usize| position <= reported.end && reported.start <= end;
            let range = length.map(|length| position..position + length).filter(|r| touches(r.end)).unwrap_or(reported);
            position = position.max(range.end);
            ranges.push(range);
        }
        ranges
    }

    /// The bytes that a token of the tokenizers crate stands for.
    fn spelled(&self, id: u32) -> Option<Vec<u8>> {
        let Inner::Library { tokenizer, bytes } = &self.inner else { return None };
        let token = tokenizer.id_to_token(id)?;
        if tokenizer.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
            return Some(token.into_bytes());
        }
        match bytes {
            TokenBytes::ByteLevel => byte_level::bytes(&token),
            TokenBytes::Metaspace => Some(spm::spelled(token.as_bytes())),
        }
    }
}

/// The start of a text, quoted, for messages.
fn shorten(text: &str) -> String {
    let start: String = text.chars().take(40).collect();
    if start.len() < text.len() { format!("{start:?}...") } else { format!("{start:?}") }
}
