//! Texts as they are compared: normalised, as words, as shingles, as grams; and what identifies an example.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use unicode_normalization::{IsNormalized, UnicodeNormalization as _, is_nfc_quick};

use crate::domain::{Example, Message};

pub type Digest = [u8; 32];

/// Words of a shingle (Broder, *On the resemblance and containment of documents*, 1997).
const SHINGLE: usize = 5;
/// Words of a gram (Brown et al., *Language models are few-shot learners*, 2020, appendix C).
pub const GRAM: usize = 13;
/// Says how a turn is trained, not what it says.
const HOW_IT_IS_TRAINED: &str = "loss_weight";

/// NFC, and every run of white space is one space. Case counts.
pub fn normalised(text: &str) -> String {
    let text = composed(text);
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

/// What is asked and what is answered, as texts. System texts and tools are in neither: they are of the role, not of the work.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// The turns before the answer.
    pub request: Vec<String>,
    /// The answer, and every turn behind its first.
    pub answer: Vec<String>,
}

impl Said {
    pub fn of(example: &Example) -> Self {
        let (before, after) = example.messages.split_at(example.prompt().len());
        let texts = |turns: &[Message]| turns.iter().filter(|turn| turn.role != "system").map(said).collect();
        Self { request: texts(before), answer: texts(after) }
    }

    pub fn is_answered(&self) -> bool {
        self.answer.iter().any(|text| !text.trim().is_empty())
    }
}

/// The text of a turn, then what it thinks and calls.
fn said(message: &Message) -> String {
    let mut text = message.content.clone();
    for key in ["reasoning_content", "tool_calls"] {
        match message.extra.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(more)) => text = format!("{text}\n{more}"),
            Some(more) => text = format!("{text}\n{more}"),
        }
    }
    text
}

/// Identifies a conversation with its answer, whatever its white space and Unicode form.
pub fn item_digest(example: &Example) -> Digest {
    digest_of(&example.messages, example.tools.as_ref())
}

/// Identifies what is asked, with system text and tools.
pub fn request_digest(example: &Example) -> Digest {
    digest_of(example.prompt(), example.tools.as_ref())
}

fn digest_of(messages: &[Message], tools: Option<&Value>) -> Digest {
    let mut hash = Sha256::new();
    let mut put = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    for message in messages {
        put(&message.role);
        put(&normalised(&message.content));
        let mut extra = String::new();
        for (key, value) in sorted(&message.extra) {
            if key != HOW_IT_IS_TRAINED && !value.is_null() {
                extra.push_str(key);
                canonical(value, &mut extra);
            }
        }
        put(&extra);
    }
    let mut text = String::new();
    tools.iter().for_each(|tools| canonical(tools, &mut text));
    put(&text);
    hash.finalize().into()
}

/// JSON whose keys are sorted and whose texts are normalised.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::String(text) => out.push_str(&Value::String(normalised(text)).to_string()),
        Value::Array(list) => {
            out.push('[');
            list.iter().for_each(|value| {
                canonical(value, out);
                out.push(',');
            });
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (key, value) in sorted(map) {
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

fn sorted(map: &serde_json::Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    entries
}

/// The shingles of texts as hashes, sorted, each once: five words in a row, a text of fewer words is one. Words are runs of letters and digits in
/// lower case; every other visible character is one by itself, so that code compares by its tokens, however it is laid out.
pub fn shingles<S: AsRef<str>>(texts: &[S]) -> Vec<u64> {
    let mut found = Vec::new();
    let mut words = Vec::new();
    for text in texts {
        words.clear();
        hash_words(text.as_ref(), &mut words);
        match words.len() {
            0 => {}
            n if n < SHINGLE => found.push(chained(&words)),
            _ => found.extend(words.windows(SHINGLE).map(chained)),
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Of two sorted sets: what is in both, of what is in either. Two empty sets are the same.
pub fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0usize);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, both) = (i + 1, j + 1, both + 1),
        }
    }
    let either = a.len() + b.len() - both;
    if either == 0 { 1.0 } else { both as f64 / either as f64 }
}

fn hash_words(text: &str, words: &mut Vec<u64>) {
    let mut word = None;
    for c in composed(text).chars() {
        if (c.is_alphanumeric() || c == '_') && !is_written_without_spaces(c) {
            word = Some(c.to_lowercase().fold(word.unwrap_or(START), letter));
            continue;
        }
        words.extend(word.take());
        if !c.is_whitespace() {
            words.push(letter(START, c));
        }
    }
    words.extend(word);
}

/// NFC.
fn composed(text: &str) -> Cow<'_, str> {
    match text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        true => text.into(),
        false => text.nfc().collect::<String>().into(),
    }
}

fn letter(hash: u64, c: char) -> u64 {
    (hash ^ u64::from(c)).wrapping_mul(PRIME)
}

/// Of FNV-1a.
const START: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// Splitmix64's end: every bit depends on all.
pub fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Chinese and Japanese: each character counts as a word.
fn is_written_without_spaces(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

/// The words between white space, in lower case and without punctuation, as hashes; what is punctuation alone is none.
pub fn bare_words(text: &str) -> Vec<u64> {
    let mut words = Vec::new();
    let mut word = None;
    for c in composed(text).chars() {
        if c.is_whitespace() {
            words.extend(word.take());
        } else if is_written_without_spaces(c) {
            words.extend(word.take());
            words.push(letter(START, c));
        } else if c.is_alphanumeric() {
            word = Some(c.to_lowercase().fold(word.unwrap_or(START), letter));
        }
    }
    words.extend(word);
    words
}

/// The same words as texts.
pub fn bare_texts(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for piece in composed(text).split_whitespace() {
        let mut word = String::new();
        for c in piece.chars().filter(|c| c.is_alphanumeric()) {
            if is_written_without_spaces(c) {
                words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
                words.push(c.to_string());
            } else {
                word.extend(c.to_lowercase());
            }
        }
        words.extend((!word.is_empty()).then_some(word));
    }
    words
}

/// The grams of a text, each by the place of its first word.
pub fn grams(text: &str) -> Vec<u64> {
    bare_words(text).windows(GRAM).map(chained).collect()
}

/// The hash of words in a row.
pub fn chained(words: &[u64]) -> u64 {
    words.iter().fold(START, |hash, &word| mixed(hash.rotate_left(23) ^ word))
}

/// The hash of a line of a text; `None` where it has no word.
pub fn line_hash(line: &str) -> Option<u64> {
    let mut words = Vec::new();
    hash_words(line, &mut words);
    (!words.is_empty()).then(|| chained(&words))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// For keys that are hashes already.
#[derive(Default)]
pub struct Passing(u64);

impl Hasher for Passing {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = mixed(self.0 ^ u64::from(byte)));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

pub type ByHash<T> = HashMap<u64, T, BuildHasherDefault<Passing>>;

#[cfg(test)]
mod tests {
    use super::*;

    fn example(turns: &[(&str, &str)]) -> Example {
        Example { messages: turns.iter().map(|(role, text)| Message::new(*role, *text)).collect(), ..Example::default() }
    }

    #[test]
    fn white_space_and_unicode_form_make_no_other_item_but_case_does() {
        let one = example(&[("user", "Say  caf\u{e9}\n"), ("assistant", "x = 1")]);
        let same = example(&[("user", "\tSay cafe\u{301}"), ("assistant", "x\n=\r\n1 ")]);
        assert_eq!(item_digest(&one), item_digest(&same));
        for other in [
            [("user", "say caf\u{e9}"), ("assistant", "x = 1")],
            [("user", "Say caf\u{e9}"), ("assistant", "x = 2")],
            [("user", "Say caf\u{e9} x = 1"), ("assistant", "")],
        ] {
            assert_ne!(item_digest(&one), item_digest(&example(&other)));
        }
        assert_eq!(request_digest(&one), request_digest(&example(&[("user", "Say caf\u{e9}"), ("assistant", "y")])));
    }

    #[test]
    fn tools_calls_and_system_texts_make_another_item_and_weights_of_the_loss_do_not() {
        let call = |order: &str| {
            let mut example = example(&[("user", "u"), ("assistant", "")]);
            example.messages[1].extra.insert("tool_calls".to_owned(), serde_json::from_str(order).unwrap());
            example
        };
        let one = call(r#"[{"name":"f","arguments":{"a":1,"b":"x"}}]"#);
        assert_eq!(item_digest(&one), item_digest(&call(r#"[{"arguments":{"b":" x","a":1},"name":"f"}]"#)));
        assert_ne!(item_digest(&one), item_digest(&call(r#"[{"name":"f","arguments":{"a":2,"b":"x"}}]"#)));
        let mut weighted = one.clone();
        weighted.messages[0].extra.insert("loss_weight".to_owned(), 0.0.into());
        assert_eq!(item_digest(&one), item_digest(&weighted));
        let with_tools = Example { tools: Some(serde_json::json!([{"name": "f"}])), ..one.clone() };
        assert_ne!(item_digest(&one), item_digest(&with_tools));
    }

    #[test]
    fn what_is_said_leaves_the_system_text_out_and_holds_calls() {
        let mut example = example(&[("system", "s"), ("user", "u"), ("assistant", "a"), ("tool", "t"), ("assistant", "b")]);
        example.messages[2].extra.insert("tool_calls".to_owned(), serde_json::json!([{"name": "f"}]));
        let said = Said::of(&example);
        assert_eq!(said.request, ["u"]);
        assert_eq!(said.answer, ["a\n[{\"name\":\"f\"}]", "t", "b"]);
        assert!(said.is_answered());
        assert!(!Said::of(&self::example(&[("user", "u"), ("assistant", " \n")])).is_answered());
    }

    #[test]
    fn shingles_are_five_words_in_a_row_whatever_the_layout() {
        // 9 words: foo ( a , b ) + 1 ;
        assert_eq!(shingles(&["foo(a, b) + 1;"]).len(), 5);
        assert_eq!(shingles(&["foo(a, b) + 1;"]), shingles(&["FOO( a,b )\n  +1 ;"]));
        assert_ne!(shingles(&["foo(a, b) + 1;"]), shingles(&["foo(a, b) - 1;"]));
        assert_eq!(shingles(&["a few words"]).len(), 1);
        assert_eq!(shingles(&["", " \n"]).len(), 0);
        // Six characters are six words.
        assert_eq!(shingles(&["\u{4f60}\u{597d}\u{4e16}\u{754c}\u{4f60}\u{597d}"]).len(), 2);
    }

    #[test]
    fn jaccard_counts_what_both_have_of_what_either_has() {
        assert_eq!(jaccard(&[1, 2, 3, 4], &[2, 3, 5]), 0.4);
        assert_eq!((jaccard(&[], &[]), jaccard(&[], &[1]), jaccard(&[7], &[7])), (1.0, 0.0, 1.0));
    }

    #[test]
    fn bare_words_have_no_case_and_no_punctuation() {
        assert_eq!(bare_texts("It's -- a (Test), v2.0!"), ["its", "a", "test", "v20"]);
        assert_eq!(bare_texts("a\u{4f60}\u{597d}b"), ["a", "\u{4f60}", "\u{597d}", "b"]);
        for (text, same) in
            [("It's -- a (Test), v2.0!", "ITS A\ntest v20"), ("a\u{4f60}b", "A \u{4f60} ,b"), ("cafe\u{301}", "caf\u{e9}")]
        {
            assert_eq!(bare_words(text), bare_words(same));
            assert_eq!(bare_words(text).len(), bare_texts(text).len());
        }
        assert_ne!(bare_words("a b"), bare_words("b a"));
        assert_eq!(grams(&"w ".repeat(14)).len(), 2);
    }
}
