//! The demo's data, made here: the skills that its base has, and the new task that it is to learn.
//!
//! Words are random syllables. Whether a word belongs to training or to the held-out items follows from a hash of the
//! word, so that the two share no operand, ever.

use retune_kernels::rng::Rng;

use crate::domain::{Example, Message};

/// Which words an item may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    HeldOut,
}

/// A request and the one right answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Item {
    pub request: String,
    pub answer: String,
}

impl Item {
    pub fn example(&self, row: usize) -> Example {
        Example { messages: vec![Message::new("user", &self.request), Message::new("assistant", &self.answer)], tools: None, row }
    }
}

/// FNV-1a; one word in eight is held out.
fn split_of(word: &str) -> Split {
    let hash = word.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    if (hash >> 32).is_multiple_of(8) { Split::HeldOut } else { Split::Train }
}

/// A word of two or three syllables.
fn word(rng: &mut Rng, split: Split) -> String {
    const CONSONANTS: &[u8] = b"bdfghjklmnprstvz";
    const VOWELS: &[u8] = b"aeiou";
    loop {
        let mut word = String::new();
        for _ in 0..2 + rng.below(2) {
            word.push(CONSONANTS[rng.below(CONSONANTS.len() as u64) as usize] as char);
            word.push(VOWELS[rng.below(VOWELS.len() as u64) as usize] as char);
        }
        if split_of(&word) == split {
            return word;
        }
    }
}

/// The base's skills by name; `skill` makes an item of one.
pub const SKILLS: [&str; 8] = ["say", "upper", "reverse", "swap", "join", "double", "list", "quote"];

/// One item of a skill.
pub fn skill(name: &str, rng: &mut Rng, split: Split) -> Item {
    let (a, b, c) = (word(rng, split), word(rng, split), word(rng, split));
    let (operands, answer) = match name {
        "say" => (a.clone(), a),
        "upper" => (a.clone(), a.to_uppercase()),
        "reverse" => (a.clone(), a.chars().rev().collect()),
        "swap" => (format!("{a} {b}"), format!("{b} {a}")),
        "join" => (format!("{a} {b}"), format!("{a}-{b}")),
        "double" => (a.clone(), format!("{a} {a}")),
        "list" => (format!("{a} {b} {c}"), format!("{a}, {b}, {c}")),
        _ => (a.clone(), format!("\"{a}\"")),
    };
    Item { request: format!("{name} {operands}"), answer }
}

/// Ways to word a request of the new task.
pub const WORDINGS: u64 = 6;

/// One item of the new task: a request in one of the first `wordings` wordings becomes a call of a tool.
pub fn tool_call(rng: &mut Rng, split: Split, wordings: u64) -> Item {
    let (a, b) = (word(rng, split), word(rng, split));
    let (request, answer) = match rng.below(wordings) {
        0 => (format!("play {a} by {b}"), format!(r#"{{"tool":"play","song":"{a}","artist":"{b}"}}"#)),
        1 => (format!("put on {b}'s {a}"), format!(r#"{{"tool":"play","song":"{a}","artist":"{b}"}}"#)),
        2 => (format!("book {a} for {b}"), format!(r#"{{"tool":"book","place":"{a}","guest":"{b}"}}"#)),
        3 => (format!("{b} wants a table at {a}"), format!(r#"{{"tool":"book","place":"{a}","guest":"{b}"}}"#)),
        4 => (format!("tell {b} that {a} is here"), format!(r#"{{"tool":"send","to":"{b}","text":"{a} is here"}}"#)),
        _ => (format!("is it warm in {a}?"), format!(r#"{{"tool":"weather","place":"{a}"}}"#)),
    };
    Item { request, answer }
}

/// `n` items that differ from each other.
pub fn items(n: usize, make: impl FnMut() -> Item) -> Vec<Item> {
    let mut seen = std::collections::HashSet::new();
    std::iter::repeat_with(make).filter(|item| seen.insert(item.clone())).take(n).collect()
}

/// Rows whose answers were cut off before their end, as a limit on tokens does it: no call is whole, though most of each is right.
pub fn cut_off(items: &[Item]) -> Vec<Item> {
    let cut = |answer: &str| answer.trim_end_matches(['"', '}']).to_owned();
    items.iter().map(|item| Item { request: item.request.clone(), answer: cut(&item.answer) }).collect()
}

/// The control: each request gets the answer of another one, so that there is nothing to learn but the form.
pub fn shuffled(items: &[Item], rng: &mut Rng) -> Vec<Item> {
    let mut answers: Vec<String> = items.iter().map(|i| i.answer.clone()).collect();
    rng.shuffle(&mut answers);
    items.iter().zip(answers).map(|(item, answer)| Item { request: item.request.clone(), answer }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operands(items: &[Item]) -> std::collections::HashSet<String> {
        // Every operand stands in the answer; words of the form do, too, and are told apart by the held-out hash.
        items
            .iter()
            .flat_map(|i| i.answer.split(|c: char| !c.is_ascii_lowercase()).map(str::to_owned).collect::<Vec<_>>())
            .filter(|w| w.len() == 4 || w.len() == 6)
            .collect()
    }

    #[test]
    fn training_and_held_out_items_share_no_operand() {
        let make = |split, seed| {
            let mut rng = Rng::new(seed);
            operands(&items(400, || tool_call(&mut rng, split, WORDINGS)))
        };
        let forms = ["tool", "play", "song", "artist", "book", "place", "guest", "send", "text", "here", "weather"];
        let (train, held_out) = (make(Split::Train, 1), make(Split::HeldOut, 2));
        assert!(train.len() > 300 && held_out.len() > 200);
        let shared: Vec<_> = train.intersection(&held_out).filter(|w| !forms.contains(&w.as_str())).collect();
        assert!(shared.is_empty(), "{shared:?}");
    }

    #[test]
    fn skills_answer_as_they_say() {
        let mut rng = Rng::new(3);
        for _ in 0..50 {
            let item = skill("reverse", &mut rng, Split::HeldOut);
            let operand = item.request.strip_prefix("reverse ").unwrap();
            assert_eq!(item.answer.chars().rev().collect::<String>(), operand);
            let item = skill("swap", &mut rng, Split::Train);
            let mut words = item.request.split(' ').skip(1);
            let (a, b) = (words.next().unwrap(), words.next().unwrap());
            assert_eq!(item.answer, format!("{b} {a}"));
        }
    }

    #[test]
    fn what_was_cut_off_is_no_json_and_nearly_whole() {
        let mut rng = Rng::new(5);
        let whole = items(200, || tool_call(&mut rng, Split::Train, WORDINGS));
        for (cut, whole) in cut_off(&whole).iter().zip(&whole) {
            assert!(serde_json::from_str::<serde_json::Value>(&whole.answer).is_ok());
            assert!(serde_json::from_str::<serde_json::Value>(&cut.answer).is_err());
            assert_eq!(format!("{}\"}}", cut.answer), whole.answer);
        }
    }

    #[test]
    fn items_do_not_repeat() {
        let mut rng = Rng::new(4);
        let made = items(500, || tool_call(&mut rng, Split::HeldOut, WORDINGS));
        assert_eq!(made.iter().collect::<std::collections::HashSet<_>>().len(), 500);
    }
}
