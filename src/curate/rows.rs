//! What repeats what among the rows of files, for those who look before they train.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use super::boilerplate::{Boilerplate, SAMPLE};
use super::line::{Line, Shared};
use super::near::{Index, Sets, Trace};
use super::words::{self, Digest, Said};
use crate::domain::Example;
use crate::error::Result;

/// What an earlier row has already. Rows are places in the list that was given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Repeats {
    /// The same conversation, white space aside.
    Exact { of: usize },
    /// Nearly the same request and answer: the lesser of both Jaccard indices.
    Near { of: usize, likeness: f64 },
    /// The same request with another answer; no duplicate.
    Request { of: usize },
}

/// For each example what it repeats of the ones before it.
///
/// # Errors
/// None of its own.
pub fn repeats(examples: &[Example], near_duplicate: f64) -> Result<Vec<Option<Repeats>>> {
    let boilerplate = shared_lines(examples.iter());
    let stripped = |example: &Example| boilerplate.strip(Said::of(example));
    let traces: Vec<Trace> = examples.par_iter().map(|example| Trace::of(example, &stripped(example))).collect();
    let mut fetch = |place: usize| Ok(Sets::of(&stripped(&examples[place])));
    let mut index = Index::new(near_duplicate, &traces, &mut fetch);
    let (mut items, mut requests): (HashMap<Digest, usize>, HashMap<Digest, usize>) = Default::default();
    let mut found = Vec::with_capacity(examples.len());
    for (place, trace) in traces.iter().enumerate() {
        let asked_before = requests.get(&trace.asked).copied();
        requests.entry(trace.asked).or_insert(place);
        if let Some(&of) = items.get(&trace.item) {
            found.push(Some(Repeats::Exact { of }));
            continue;
        }
        items.insert(trace.item, place);
        match index.look(place, &|_| false)?.twin {
            Some(of) => {
                let [a, b] = [place, of].map(|place| Sets::of(&stripped(&examples[place])));
                let likeness = words::jaccard(&a.request, &b.request).min(words::jaccard(&a.answer, &b.answer));
                found.push(Some(Repeats::Near { of, likeness }));
            }
            None => {
                index.add(place);
                found.push(asked_before.map(|of| Repeats::Request { of }));
            }
        }
    }
    Ok(found)
}

/// For each example which held-out one it repeats, and by what.
pub fn contaminated(examples: &[Example], held_out: &[Example], near_duplicate: f64) -> Vec<Option<(usize, Shared)>> {
    let boilerplate = shared_lines(examples.iter().chain(held_out));
    let mut groups: HashMap<Digest, u32> = HashMap::new();
    let mut group = |example: &Example| {
        let next = groups.len() as u32;
        *groups.entry(words::request_digest(example)).or_insert(next)
    };
    let mut line = Line::new(near_duplicate);
    for example in held_out {
        let said = Said::of(example);
        line.add(&said, &boilerplate.strip(said.clone()), group(example));
    }
    let grams: Vec<Vec<u64>> = examples.par_iter().map(|example| line.grams_in(&Said::of(example))).collect();
    examples.iter().zip(grams).for_each(|(example, grams)| line.count(&grams, group(example)));
    let crossed = |example: &Example| {
        let said = Said::of(example);
        line.crossed(&said, &boilerplate.strip(said.clone()))
    };
    examples.par_iter().map(crossed).collect()
}

/// Of one example of each request, in an order that has nothing to do with the file's.
fn shared_lines<'a>(examples: impl Iterator<Item = &'a Example>) -> Boilerplate {
    let mut first: BTreeMap<Digest, &Example> = BTreeMap::new();
    for example in examples {
        first.entry(words::request_digest(example)).or_insert(example);
    }
    let said: Vec<Said> = first.into_values().take(SAMPLE).map(Said::of).collect();
    Boilerplate::of(said.iter())
}
