//! Tokenizers: `tokenizer.json` through the tokenizers crate; GGUF vocabularies (gpt2 with its pre-tokenizers,
//! llama/SPM) built from the file's metadata.

use std::path::Path;

use crate::error::Result;
use crate::formats::gguf::Gguf;

/// A tokenizer with what the model's files say about special tokens.
pub struct Tokenizer {
    // own: the implementation
    /// `<s>` and the like, where the vocabulary has one.
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// Whether plain text gets a BOS in front (`add_bos_token`).
    pub add_bos: bool,
}

impl Tokenizer {
    /// A folder with tokenizer.json (and tokenizer_config.json, special_tokens_map.json, generation_config.json).
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let _ = folder;
        todo!()
    }

    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let _ = gguf;
        todo!()
    }

    /// Ids of a text; special tokens inside the text become their ids. No BOS unless `add_special` and `add_bos`.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let _ = (text, add_special);
        todo!()
    }

    /// Ids, and for each the byte range of `text` that it came from (an added BOS has an empty range at 0).
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<(Vec<u32>, Vec<std::ops::Range<usize>>)> {
        let _ = (text, add_special);
        todo!()
    }

    /// The text of ids; special tokens are left out when `skip_special`.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let _ = (ids, skip_special);
        todo!()
    }

    /// The token's text as the vocabulary has it (`<|im_end|>`).
    pub fn token(&self, id: u32) -> Option<String> {
        let _ = id;
        todo!()
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        let _ = token;
        todo!()
    }

    pub fn vocab_size(&self) -> usize {
        todo!()
    }

    /// Ids that end a turn in generation: eos, and whatever the files call an end (eot, eog, generation_config's list).
    pub fn end_ids(&self) -> &[u32] {
        todo!()
    }
}
