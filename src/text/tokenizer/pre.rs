//! The pre-tokenizers that `tokenizer.ggml.pre` names: how a text is cut into words before byte-level BPE merges inside
//! them. Each pattern is applied to the pieces that the one before it left; what matches is a piece, and so is what lies
//! between matches. Source: ggml-org/llama.cpp, src/llama-vocab.cpp (names, patterns), and the tokenizer.json files of the
//! models named. Letters' cases are spelled out (`'[sS]`), as there, so that no Unicode case folding comes in.

/// How a vocabulary's texts are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pre {
    pub patterns: &'static [&'static str],
    /// A word that is in the vocabulary as a whole is that token, whatever the merges say.
    pub whole_words: bool,
    /// Whether a text gets a BOS where the file does not say.
    pub add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
// Runs of capitals and of small letters: like llama.cpp, by what is no ASCII letter of the other case.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?(?:(?=\p{L})[^a-z])*(?:(?=\p{L})[^A-Z])+|[^\r\n\p{L}\p{N}]?(?:(?=\p{L})[^a-z])+(?:(?=\p{L})[^A-Z])*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?(?:(?=\p{L})[^a-z])*(?:(?=\p{L})[^A-Z])+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?(?:(?=\p{L})[^a-z])+(?:(?=\p{L})[^A-Z])*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SEED_CODER: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

const fn pre(patterns: &'static [&'static str]) -> Pre {
    Pre { patterns, whole_words: false, add_bos: false }
}

const fn llama3_like(patterns: &'static [&'static str]) -> Pre {
    Pre { patterns, whole_words: true, add_bos: true }
}

/// Names of `tokenizer.ggml.pre`, grouped by what they mean.
const TABLE: &[(&[&str], Pre)] = &[
    (&["default"], pre(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"])),
    (
        &["gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "a.x-4.0", "mellum", "exaone4", "trillion", "granite-docling"],
        pre(&[GPT2]),
    ),
    (&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"], pre(&[r"\p{N}", GPT2])),
    (&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"], llama3_like(&[LLAMA3])),
    (&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], pre(&[LLAMA3])),
    (&["qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "grok-2", "solar-open", "f2llmv2"], pre(&[QWEN2])),
    (&["qwen35"], pre(&[QWEN35])),
    (&["tekken"], llama3_like(&[TEKKEN])),
    (&["gpt-4o", "llama4", "kanana2", "minimax-m2"], pre(&[GPT4O])),
    (&["deepseek-coder"], pre(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"])),
    (&["deepseek-v3", "hunyuan-dense", "joyai-llm"], pre(&[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3])),
    (&["falcon"], pre(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"])),
    (&["seed-coder"], pre(&[SEED_CODER])),
    (&["bailingmoe", "bailingmoe2", "llada-moe"], pre(&[BAILING])),
];

/// The pre-tokenizer of a name.
pub fn named(name: &str) -> Option<Pre> {
    TABLE.iter().find(|(names, _)| names.contains(&name)).map(|(_, pre)| *pre)
}

/// Every name known, for messages.
pub fn names() -> Vec<&'static str> {
    TABLE.iter().flat_map(|(names, _)| names.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words that a pre-tokenizer makes of a text.
    fn words(name: &str, text: &str) -> Vec<String> {
        use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};
        let mut pieces = PreTokenizedString::from(text);
        for pattern in named(name).unwrap().patterns {
            Split::new(SplitPattern::Regex((*pattern).to_owned()), SplitDelimiterBehavior::Isolated, false)
                .unwrap()
                .pre_tokenize(&mut pieces)
                .unwrap();
        }
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.iter().map(|(word, _, _)| (*word).to_owned()).collect()
    }

    #[test]
    fn digits_are_cut_as_each_family_cuts_them() {
        assert_eq!(words("gpt-2", "in 12345"), ["in", " 12345"]);
        assert_eq!(words("smollm", "in 12345"), ["in", " ", "1", "2", "3", "4", "5"]);
        assert_eq!(words("llama-bpe", "in 12345"), ["in", " ", "123", "45"]);
        assert_eq!(words("qwen2", "in 12345"), ["in", " ", "1", "2", "3", "4", "5"]);
        assert_eq!(words("default", "in 12345"), ["in", " ", "123", "45"]);
        assert_eq!(words("deepseek-v3", "in 12345"), ["in", " ", "123", "45"]);
    }

    #[test]
    fn contractions_and_capitals_are_cut_as_each_family_cuts_them() {
        assert_eq!(words("gpt-2", "I'LL don't"), ["I", "'", "LL", " don", "'t"]);
        assert_eq!(words("qwen2", "I'LL don't"), ["I", "'LL", " don", "'t"]);
        assert_eq!(words("gpt-4o", "fooBar don't"), ["foo", "Bar", " don't"]);
        assert_eq!(words("tekken", "fooBar don't"), ["foo", "Bar", " don", "'t"]);
        assert_eq!(words("llama-bpe", "a.\n\n  b"), ["a", ".\n\n", " ", " b"]);
    }

    #[test]
    fn every_pattern_compiles_and_every_name_stands_once() {
        let all = names();
        for name in &all {
            assert_eq!(words(name, "Aa 1").concat(), "Aa 1", "{name}");
            assert_eq!(all.iter().filter(|other| other == &name).count(), 1, "{name}");
        }
        assert!(named("nonesuch").is_none());
    }
}
