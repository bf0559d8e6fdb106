//! Byte-level BPE (GPT-2): every byte is one printable character, so that any text is spelled without an unknown token.
//! Source: openai/gpt-2, src/encoder.py, `bytes_to_unicode`.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::pre::Pre;

/// A tokenizer of the tokenizers crate from a vocabulary, merges in order of rank, and a pre-tokenizer.
/// The error is the library's text: a merge whose parts or result are not in the vocabulary, say.
pub fn build(vocab: Vec<(String, u32)>, merges: Vec<(String, String)>, pre: &Pre) -> Result<Tokenizer, String> {
    let vocab: Vocab = vocab.into_iter().collect();
    let model =
        BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre.whole_words).build().map_err(|e| e.to_string())?;
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in pre.patterns {
        let split = Split::new(SplitPattern::Regex((*pattern).to_owned()), SplitDelimiterBehavior::Isolated, false)
            .map_err(|e| format!("pattern {pattern}: {e}"))?;
        steps.push(split.into());
    }
    // The patterns have split the words already: no prefix space, no pattern of its own.
    steps.push(ByteLevel::new(false, false, false).into());
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}

/// The bytes that a token spells; `None` where it holds a character that is none of the alphabet.
pub fn bytes(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte).collect()
}

/// The byte of one character: printable Latin-1 stands for itself, the 68 others for U+0100 and on, in order.
fn byte(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),        // 0x00..=0x20
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(), // 0x7f..=0xa0
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_has_one_character_for_each_byte() {
        let mut seen = [0; 256];
        for code in 0..0x200 {
            if let Some(b) = char::from_u32(code).and_then(byte) {
                seen[usize::from(b)] += 1;
            }
        }
        assert_eq!(seen, [1; 256]);
        assert_eq!(bytes("Ġé").unwrap(), [0x20, 0xe9]);
        assert_eq!(bytes("Ċ").unwrap(), [0x0a]);
        assert_eq!(bytes("漢"), None);
    }
}
