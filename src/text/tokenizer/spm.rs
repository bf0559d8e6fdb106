//! SentencePiece-style BPE as llama.cpp runs it (`tokenizer.ggml.model = "llama"`): characters merge by the score of the
//! merged token, highest first, leftmost first among equals; what no token spells falls to bytes `<0xXX>`.
//! Source: ggml-org/llama.cpp, src/llama-vocab.cpp, `llm_tokenizer_spm` and `tokenizer_st_partition`.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;

use crate::error::{Error, Result};

/// What stands for a space inside tokens: U+2581.
const SPACE: &str = "\u{2581}";

/// What a token is, by `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// A token as the file has it.
#[derive(Clone, Debug)]
pub struct Token {
    pub bytes: Vec<u8>,
    pub score: f32,
    pub kind: Kind,
}

/// An SPM vocabulary.
pub struct Spm {
    tokens: Vec<Token>,
    ids: HashMap<Vec<u8>, u32>,
    /// Control, unknown and user-defined tokens, longest text first: they are cut out of a text before merging.
    cut_out: Vec<u32>,
    /// The token of each byte, for what no other token spells.
    bytes: Vec<Option<u32>>,
    /// What stands for a byte that has no token.
    unknown: Option<u32>,
    /// A space goes before a text, and before what follows a special token.
    space_prefix: bool,
    /// Special tokens that swallow the white space after them (Phi-3).
    strip_after: Vec<bool>,
}

/// A piece of a text, cut at special tokens.
enum Piece {
    Text(Range<usize>),
    Special(u32, Range<usize>),
}

impl Spm {
    /// `strip_after` says by id whether white space after a special token is swallowed; all false where it is empty.
    pub fn new(
        tokens: Vec<Token>,
        ids: HashMap<Vec<u8>, u32>,
        unknown: Option<u32>,
        space_prefix: bool,
        strip_after: Vec<bool>,
    ) -> Self {
        let bytes =
            (0..=255u8).map(|b| ids.get(format!("<0x{b:02X}>").as_bytes()).or_else(|| ids.get(&[b][..])).copied()).collect();
        let mut cut_out: Vec<u32> = (0u32..)
            .zip(&tokens)
            .filter(|(_, token)| matches!(token.kind, Kind::Control | Kind::Unknown | Kind::UserDefined))
            .map(|(id, _)| id)
            .collect();
        cut_out.sort_by_key(|&id| std::cmp::Reverse(tokens[id as usize].bytes.len()));
        Self { tokens, ids, cut_out, bytes, unknown, space_prefix, strip_after }
    }

    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    pub fn token(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id as usize).map(|token| &token.bytes[..])
    }

    pub fn id(&self, token: &[u8]) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// Ids with the byte range of `text` that each came from; the space prefix has none. Error: a byte that no token spells.
    pub fn encode(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let mut ids = Vec::new();
        let mut after_special = true;
        for piece in self.partition(text) {
            match piece {
                Piece::Special(id, range) => {
                    ids.push((id, range));
                    after_special = true;
                }
                Piece::Text(range) => {
                    self.merge(text, range, self.space_prefix && after_special, &mut ids)?;
                    after_special = false;
                }
            }
        }
        Ok(ids)
    }

    /// The text of ids. As transformers' decoders do, the space prefix is taken off what comes first.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes: Vec<u8> = Vec::new();
        for token in ids.iter().filter_map(|&id| self.tokens.get(id as usize)) {
            match token.kind {
                Kind::Control | Kind::Unknown if skip_special => {}
                Kind::Control | Kind::Unknown | Kind::UserDefined => bytes.extend_from_slice(&token.bytes),
                Kind::Normal | Kind::Unused | Kind::Byte => bytes.extend(spelled(&token.bytes)),
            }
        }
        let start = usize::from(self.space_prefix && bytes.first() == Some(&b' '));
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    }

    /// Cuts special tokens out of a text: the longest first, wherever it stands.
    fn partition(&self, text: &str) -> Vec<Piece> {
        let mut pieces = vec![];
        if !text.is_empty() {
            pieces.push(Piece::Text(0..text.len()));
        }
        for &id in &self.cut_out {
            // Tokens that are no UTF-8 cannot stand in a text.
            let Some(special) = std::str::from_utf8(&self.tokens[id as usize].bytes).ok().filter(|s| !s.is_empty()) else {
                continue;
            };
            if !text.contains(special) {
                continue;
            }
            let strip = self.strip_after.get(id as usize).copied().unwrap_or(false);
            pieces = pieces
                .into_iter()
                .flat_map(|piece| match piece {
                    Piece::Text(range) => cut(text, range, special, id, strip),
                    special => vec![special],
                })
                .collect();
        }
        pieces
    }

    /// Merges one piece of plain text.
    fn merge(&self, text: &str, range: Range<usize>, prefix: bool, ids: &mut Vec<(u32, Range<usize>)>) -> Result<()> {
        let escaped = Escaped::new(text, range, prefix);
        let mut symbols = escaped.symbols();
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.propose(&escaped, &symbols, Some(right - 1), Some(right), &mut queue);
        }
        while let Some(pair) = queue.pop() {
            let (left, right) = (&symbols[pair.left], &symbols[pair.right]);
            // One of the two has been merged since.
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                continue;
            }
            let next = right.next;
            symbols[pair.left].len = pair.len;
            symbols[pair.left].next = next;
            symbols[pair.right].len = 0;
            if let Some(next) = next {
                symbols[next].previous = Some(pair.left);
            }
            self.propose(&escaped, &symbols, symbols[pair.left].previous, Some(pair.left), &mut queue);
            self.propose(&escaped, &symbols, Some(pair.left), next, &mut queue);
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let (start, end) = (symbol.start, symbol.start + symbol.len);
            if let Some(id) = self.id(&escaped.bytes[start..end]) {
                ids.push((id, escaped.range(start, end)));
                continue;
            }
            for at in start..end {
                let byte = escaped.bytes[at];
                let id = self.bytes[usize::from(byte)].or(self.unknown).ok_or_else(|| {
                    Error::data(
                        format!("the vocabulary has no token for byte 0x{byte:02X} and no unknown token"),
                        "the model cannot read this text; check that the GGUF's tokenizer is complete",
                    )
                })?;
                ids.push((id, escaped.range(at, at + 1)));
            }
        }
        Ok(())
    }

    /// Queues a pair of neighbours where they spell a token together.
    fn propose(
        &self,
        escaped: &Escaped,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
        queue: &mut BinaryHeap<Pair>,
    ) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let start = symbols[left].start;
        let len = symbols[left].len + symbols[right].len;
        if let Some(id) = self.id(&escaped.bytes[start..start + len]) {
            queue.push(Pair { left, right, score: self.tokens[id as usize].score, len });
        }
    }
}

/// The bytes that a token stands for: U+2581 is a space, `<0xXX>` a byte.
pub fn spelled(token: &[u8]) -> Vec<u8> {
    if let [b'<', b'0', b'x', hex @ .., b'>'] = token
        && hex.len() == 2
        && let Some(byte) = std::str::from_utf8(hex).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok())
    {
        return vec![byte];
    }
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token;
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(SPACE.as_bytes()) {
            bytes.push(b' ');
            rest = tail;
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    bytes
}

/// Cuts every occurrence of a special token out of a range of text.
fn cut(text: &str, mut range: Range<usize>, special: &str, id: u32, strip: bool) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while let Some(found) = text[range.clone()].find(special) {
        let start = range.start + found;
        if start > range.start {
            pieces.push(Piece::Text(range.start..start));
        }
        let end = start + special.len();
        pieces.push(Piece::Special(id, start..end));
        range.start = end;
        if strip {
            let rest = &text[range.clone()];
            // C's isspace in the C locale, as llama.cpp asks it.
            let white = |c: char| matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r');
            range.start = range.end - rest.trim_start_matches(white).len();
        }
    }
    if !range.is_empty() {
        pieces.push(Piece::Text(range));
    }
    pieces
}

/// A text with its spaces as U+2581, and where each byte came from.
struct Escaped {
    bytes: Vec<u8>,
    /// `origin[i]..origin[j]` is the range of the text behind `bytes[i..j]`; one longer than `bytes`.
    origin: Vec<usize>,
    /// Where characters start.
    starts: Vec<usize>,
}

impl Escaped {
    fn new(text: &str, range: Range<usize>, prefix: bool) -> Self {
        let mut escaped = Self { bytes: Vec::new(), origin: Vec::new(), starts: Vec::new() };
        if prefix {
            escaped.push(SPACE, |_| range.start);
        }
        for (at, character) in text[range.clone()].char_indices() {
            let at = range.start + at;
            if character == ' ' {
                escaped.push(SPACE, |_| at);
            } else {
                escaped.push(character.encode_utf8(&mut [0; 4]), |i| at + i);
            }
        }
        escaped.origin.push(range.end);
        escaped
    }

    fn push(&mut self, character: &str, origin: impl Fn(usize) -> usize) {
        self.starts.push(self.bytes.len());
        self.origin.extend((0..character.len()).map(origin));
        self.bytes.extend_from_slice(character.as_bytes());
    }

    fn range(&self, start: usize, end: usize) -> Range<usize> {
        self.origin[start]..self.origin[end]
    }

    /// One symbol a character, linked in order.
    fn symbols(&self) -> Vec<Symbol> {
        let count = self.starts.len();
        let end = |i: usize| self.starts.get(i + 1).copied().unwrap_or(self.bytes.len());
        (0..count)
            .map(|i| Symbol {
                start: self.starts[i],
                len: end(i) - self.starts[i],
                previous: i.checked_sub(1),
                next: (i + 1 < count).then_some(i + 1),
            })
            .collect()
    }
}

/// A run of bytes that is one token so far; `len` 0: merged into the one before.
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that could become one token of `len` bytes.
struct Pair {
    left: usize,
    right: usize,
    score: f32,
    len: usize,
}

impl Ord for Pair {
    /// The greatest is merged first: the highest score, then the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

#[cfg(test)]
mod tests {
    use super::*;

    /// `<unk> <s> </s>`, bytes, then words whose scores fall with the index.
    fn vocabulary(words: &[(&str, f32, Kind)], space_prefix: bool) -> Spm {
        let mut tokens = vec![
            ("<unk>".to_owned(), 0.0, Kind::Unknown),
            ("<s>".to_owned(), 0.0, Kind::Control),
            ("</s>".to_owned(), 0.0, Kind::Control),
        ];
        tokens.extend((0..=255u8).map(|b| (format!("<0x{b:02X}>"), 0.0, Kind::Byte)));
        tokens.extend(words.iter().map(|&(w, score, kind)| (w.to_owned(), score, kind)));
        let ids = (0u32..).zip(&tokens).map(|(id, (text, _, _))| (text.clone().into_bytes(), id)).collect();
        let tokens = tokens.into_iter().map(|(text, score, kind)| Token { bytes: text.into_bytes(), score, kind }).collect();
        Spm::new(tokens, ids, Some(0), space_prefix, vec![])
    }

    fn spell(spm: &Spm, text: &str) -> Vec<(String, Range<usize>)> {
        let ids = spm.encode(text).unwrap();
        ids.into_iter().map(|(id, range)| (String::from_utf8(spm.token(id).unwrap().to_vec()).unwrap(), range)).collect()
    }

    #[test]
    fn the_highest_score_merges_first_and_the_leftmost_among_equals() {
        let n = Kind::Normal;
        let spm = vocabulary(&[("a", -9.0, n), ("b", -9.0, n), ("ab", -2.0, n), ("ba", -1.0, n), ("aa", -3.0, n)], false);
        // "ba" beats "ab", so the first a stays alone.
        assert_eq!(spell(&spm, "aba"), [("a".into(), 0..1), ("ba".into(), 1..3)]);
        assert_eq!(spell(&spm, "aaa"), [("aa".into(), 0..2), ("a".into(), 2..3)]);
    }

    #[test]
    fn bytes_spell_what_no_token_does_and_know_their_place() {
        let n = Kind::Normal;
        let spm = vocabulary(&[("▁", -1.0, n), ("é", -1.0, n)], true);
        let expected = [
            ("▁".to_owned(), 0..0),
            ("é".into(), 0..2),
            ("▁".into(), 2..3),
            ("<0xE6>".into(), 3..4),
            ("<0xBC>".into(), 4..5),
            ("<0xA2>".into(), 5..6),
        ];
        assert_eq!(spell(&spm, "é 漢"), expected);
        let ids: Vec<u32> = spm.encode("é 漢").unwrap().into_iter().map(|(id, _)| id).collect();
        assert_eq!(spm.decode(&ids, false), "é 漢");
    }

    #[test]
    fn special_tokens_are_cut_out_longest_first_and_a_space_goes_before_what_follows() {
        let n = Kind::Normal;
        let spm = vocabulary(&[("▁", -1.0, n), ("a", -1.0, n), ("<s>a", -1.0, Kind::UserDefined)], true);
        assert_eq!(
            spell(&spm, "<s>a</s>a"),
            [("<s>a".into(), 0..4), ("</s>".into(), 4..8), ("▁".into(), 8..8), ("a".into(), 8..9)]
        );
        assert_eq!(spell(&spm, ""), []);
        assert_eq!(spm.decode(&[1, spm.id("▁".as_bytes()).unwrap(), spm.id(b"a").unwrap(), 2], true), "a");
        assert_eq!(spm.decode(&[1, spm.id(b"a").unwrap(), 2], false), "<s>a</s>");
    }

    #[test]
    fn a_vocabulary_without_bytes_and_unknown_refuses_with_the_byte() {
        let ids = HashMap::from([(b"a".to_vec(), 0)]);
        let tokens = vec![Token { bytes: b"a".to_vec(), score: 0.0, kind: Kind::Normal }];
        let spm = Spm::new(tokens, ids, None, false, vec![]);
        assert_eq!(spm.encode("aa").unwrap(), [(0, 0..1), (0, 1..2)]);
        assert!(spm.encode("ab").unwrap_err().to_string().contains("byte 0x62"));
    }
}
