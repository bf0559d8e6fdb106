//! The line between what is held out and what is trained on: nothing that repeats a held-out item crosses it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::boilerplate::MANY_GROUPS;
use super::words::{self, ByHash, GRAM, Said};

/// What an example shares with a held-out one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shared {
    /// It asks nearly the same.
    Request,
    /// Thirteen words in a row.
    Gram(String),
    /// Both are shorter than that, and the same but for case and punctuation.
    Whole,
}

impl fmt::Display for Shared {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Request => write!(out, "nearly the same request"),
            Self::Gram(words) => write!(out, "the words \"{words}\""),
            Self::Whole => write!(out, "the same words"),
        }
    }
}

/// A gram of a held-out item.
#[derive(Debug)]
struct Gram {
    item: u32,
    /// The first groups that have it: what more have is boilerplate (imports, licences, a prompt's fixed text).
    groups: Vec<u32>,
}

/// What the held-out items say.
#[derive(Debug)]
pub struct Line {
    threshold: f64,
    /// For each shingle of a request, the items that have it.
    shingles: ByHash<Vec<u32>>,
    /// How many shingles each item's request has.
    sizes: Vec<usize>,
    grams: ByHash<Gram>,
    /// Short items as a whole.
    wholes: ByHash<u32>,
}

impl Line {
    pub fn new(threshold: f64) -> Self {
        Self { threshold, shingles: ByHash::default(), sizes: Vec::new(), grams: ByHash::default(), wholes: ByHash::default() }
    }

    /// Adds a held-out item, as it is and without the lines that all requests share. Items are numbered from 0.
    pub fn add(&mut self, said: &Said, stripped: &Said, group: u32) {
        let item = self.sizes.len() as u32;
        let shingles = words::shingles(&stripped.request);
        self.sizes.push(shingles.len());
        shingles.into_iter().for_each(|shingle| self.shingles.entry(shingle).or_default().push(item));
        let mut is_long = false;
        for gram in texts(said).flat_map(|text| words::grams(text)) {
            is_long = true;
            self.grams.entry(gram).or_insert(Gram { item, groups: Vec::new() });
        }
        if !is_long {
            self.wholes.entry(whole(said)).or_insert(item);
        }
        self.count(&self.grams_in(said), group);
    }

    /// The grams of held-out items that an example has.
    pub fn grams_in(&self, said: &Said) -> Vec<u64> {
        texts(said).flat_map(|text| words::grams(text)).filter(|gram| self.grams.contains_key(gram)).collect()
    }

    /// Tells that a group uses grams of held-out items: for every example on both sides, before any is asked about.
    pub fn count(&mut self, grams: &[u64], group: u32) {
        for hash in grams {
            if let Some(gram) = self.grams.get_mut(hash)
                && gram.groups.len() <= MANY_GROUPS
                && !gram.groups.contains(&group)
            {
                gram.groups.push(group);
            }
        }
    }

    /// The held-out item that an example repeats, and by what.
    pub fn crossed(&self, said: &Said, stripped: &Said) -> Option<(usize, Shared)> {
        self.asked(said, stripped).or_else(|| self.quoted(said))
    }

    /// By its request, or as a whole.
    pub fn asked(&self, said: &Said, stripped: &Said) -> Option<(usize, Shared)> {
        if let Some(item) = self.asks(&words::shingles(&stripped.request)) {
            return Some((item, Shared::Request));
        }
        self.wholes.get(&whole(said)).map(|&item| (item as usize, Shared::Whole))
    }

    /// By thirteen words, none of which stands in boilerplate of thirteen words.
    pub fn quoted(&self, said: &Said) -> Option<(usize, Shared)> {
        for text in texts(said) {
            let grams: Vec<Option<&Gram>> = words::grams(text).iter().map(|gram| self.grams.get(gram)).collect();
            let is_boilerplate = |gram: &Option<&Gram>| gram.is_some_and(|gram| gram.groups.len() > MANY_GROUPS);
            // The first place that no word of the boilerplate so far reaches.
            let mut clean_from = 0;
            for (place, gram) in grams.iter().enumerate() {
                if is_boilerplate(gram) {
                    clean_from = place + GRAM;
                } else if let Some(gram) = gram
                    && place >= clean_from
                    && !grams[place..grams.len().min(place + GRAM)].iter().any(is_boilerplate)
                {
                    let words = words::bare_texts(text)[place..place + GRAM].join(" ");
                    return Some((gram.item as usize, Shared::Gram(words)));
                }
            }
        }
        None
    }

    /// The item whose request is the likest one above the threshold, by its true Jaccard index.
    fn asks(&self, request: &[u64]) -> Option<usize> {
        let mut both = vec![0usize; self.sizes.len()];
        for shingle in request {
            self.shingles.get(shingle).into_iter().flatten().for_each(|&item| both[item as usize] += 1);
        }
        let likeness = |item: usize| both[item] as f64 / (request.len() + self.sizes[item] - both[item]) as f64;
        (0..both.len())
            .filter(|&item| both[item] > 0 && likeness(item) >= self.threshold)
            .max_by(|&a, &b| likeness(a).total_cmp(&likeness(b)).then(b.cmp(&a)))
    }
}

fn texts(said: &Said) -> impl Iterator<Item = &String> {
    said.request.iter().chain(&said.answer)
}

/// Two short examples with the same one say the same, case and punctuation aside.
fn whole(said: &Said) -> u64 {
    let of = |texts: &[String]| words::chained(&texts.iter().flat_map(|text| words::bare_words(text)).collect::<Vec<_>>());
    words::mixed(of(&said.request).rotate_left(1) ^ of(&said.answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(request: &str, answer: &str) -> Said {
        Said { request: vec![request.to_owned()], answer: vec![answer.to_owned()] }
    }

    fn line(items: &[Said]) -> Line {
        let mut line = Line::new(0.8);
        items.iter().enumerate().for_each(|(group, said)| line.add(said, said, group as u32));
        line
    }

    fn crossed(line: &Line, said: &Said) -> Option<(usize, Shared)> {
        line.crossed(said, said)
    }

    const LONG: &str = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen";

    #[test]
    fn thirteen_words_in_a_row_cross_the_line_whatever_their_case_and_punctuation() {
        let line = line(&[said("x y z", LONG)]);
        let other =
            said("p q r", "So: One, two, three -- four five six 'seven' eight. Nine ten ELEVEN twelve (thirteen) and more");
        let words = LONG.rsplit_once(' ').unwrap().0.to_owned();
        assert_eq!(crossed(&line, &other), Some((0, Shared::Gram(words))));
        // Twelve do not, and neither do words of two turns.
        assert_eq!(crossed(&line, &said("p q r", &other.answer[0].replace("thirteen", ""))), None);
        let (a, b) = LONG.split_at(40);
        assert_eq!(crossed(&line, &Said { request: vec![a.to_owned(), b.to_owned()], answer: vec![] }), None);
        // A held-out answer may not be asked for, nor a held-out request answered.
        assert!(crossed(&line, &said(&LONG.to_uppercase(), "a")).is_some());
    }

    #[test]
    fn what_more_than_ten_groups_say_is_boilerplate() {
        let mut line = line(&[said("x y z", LONG)]);
        let train = said("p q r", LONG);
        for group in 1..10 {
            (0..3).for_each(|_| line.count(&line.grams_in(&train), group));
        }
        assert!(crossed(&line, &train).is_some(), "ten groups");
        line.count(&line.grams_in(&train), 10);
        assert_eq!(crossed(&line, &train), None, "eleven groups");
        // Its edge is no evidence: of the words behind it, thirteen must be the held-out item's.
        let tail = "a b c d e f g h i j k l m";
        line.add(&said("x", &format!("{LONG} {tail}")), &said("x", ""), 11);
        let behind = |words: usize| said("p q r", &format!("{LONG} {}", &tail[..2 * words - 1]));
        assert_eq!(crossed(&line, &behind(12)), None);
        assert_eq!(crossed(&line, &behind(13)), Some((1, Shared::Gram(tail.to_owned()))));
        // The same in front of it.
        line.add(&said("x", &format!("{tail} {LONG}")), &said("x", ""), 12);
        let before = |words: usize| said("p q r", &format!("{} {LONG}", &tail[26 - 2 * words..]));
        assert_eq!(crossed(&line, &before(12)), None);
        assert_eq!(crossed(&line, &before(13)), Some((1, Shared::Gram(tail.to_owned()))));
    }

    #[test]
    fn short_items_cross_as_a_whole_only() {
        let line = line(&[said("Is it so?", "Yes."), said("Play some jazz", "{\"tool\": \"play\"}")]);
        assert_eq!(crossed(&line, &said("is it SO?", "yes")), Some((0, Shared::Request)));
        assert_eq!(crossed(&line, &said("is IT, so", "yes")), Some((0, Shared::Whole)));
        assert_eq!(crossed(&line, &said("Is that so?", "Yes.")), None);
        assert_eq!(crossed(&line, &said("is it", "so yes")), None, "words do not move from the request to the answer");
    }

    #[test]
    fn a_request_that_is_nearly_a_held_out_one_crosses_whatever_its_answer() {
        let request: Vec<String> = (0..60).map(|i| format!("w{i}x{}", i * i)).collect();
        let line = line(&[said("a b c d e f", "g"), said(&request.join(" "), "g")]);
        let mut near = request.clone();
        near[0] = "else".to_owned();
        assert_eq!(crossed(&line, &said(&near.join(" "), "another")), Some((1, Shared::Request)));
        // Every sixth word: no five words are left that are the same.
        (0..60).step_by(5).for_each(|i| near[i] = "else".to_owned());
        assert_eq!(crossed(&line, &said(&near.join(" "), "another")), None);
    }
}
