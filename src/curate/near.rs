//! Near duplicates: found by bands of their sketches, dropped only where the true Jaccard index of their shingles says so.

use std::collections::HashMap;

use super::sketch::{BANDS, Sketch};
use super::words::{self, ByHash, Digest, Said};
use crate::domain::Example;
use crate::error::Result;

/// How far an estimate may lie below the threshold: five deviations at .8, as an estimate that is too low hides a duplicate.
const MARGIN: f64 = 0.25;
/// So many may stand in one bucket, so that time stays linear whatever a set holds. Others of the same band are found by their other bands.
const IN_A_BUCKET: usize = 64;
/// So many of the likeliest are compared by their texts.
const COMPARED: usize = 16;
/// Shingle sets that are kept; texts are fetched again for the others.
const SETS_KEPT: usize = 1024;

/// All that is kept of an example while others are looked at: 320 bytes, whatever its length.
#[derive(Clone, Copy, Debug)]
pub struct Trace {
    pub item: Digest,
    /// What is asked, with system text and tools.
    pub asked: Digest,
    request: Sketch,
    answer: Sketch,
    pub is_answered: bool,
}

/// The shingles of both parts of an example.
#[derive(Clone, Debug, Default)]
pub struct Sets {
    pub request: Vec<u64>,
    pub answer: Vec<u64>,
}

impl Sets {
    pub fn of(said: &Said) -> Self {
        Self { request: words::shingles(&said.request), answer: words::shingles(&said.answer) }
    }
}

impl Trace {
    /// `said`: what the example says, without the lines that all requests share.
    pub fn of(example: &Example, said: &Said) -> Self {
        let Sets { request, answer } = Sets::of(said);
        Self {
            item: words::item_digest(example),
            asked: words::request_digest(example),
            request: Sketch::of(&request),
            answer: Sketch::of(&answer),
            is_answered: said.is_answered(),
        }
    }
}

/// What stands beside an example among those that were added before.
#[derive(Debug, Default)]
pub struct Found {
    /// Asks and answers nearly the same.
    pub twin: Option<usize>,
    /// Ask nearly the same.
    pub asking: Vec<usize>,
}

/// Those that stay, to be found by those that come after them.
pub struct Index<'a> {
    threshold: f64,
    traces: &'a [Trace],
    /// Gives the shingles of an example again.
    fetch: &'a mut dyn FnMut(usize) -> Result<Sets>,
    kept: HashMap<usize, Sets>,
    buckets: ByHash<Vec<u32>>,
}

impl<'a> Index<'a> {
    pub fn new(threshold: f64, traces: &'a [Trace], fetch: &'a mut dyn FnMut(usize) -> Result<Sets>) -> Self {
        Self { threshold, traces, fetch, kept: HashMap::new(), buckets: ByHash::default() }
    }

    pub fn add(&mut self, example: usize) {
        for band in self.traces[example].request.bands() {
            let bucket = self.buckets.entry(band).or_default();
            if bucket.len() < IN_A_BUCKET {
                bucket.push(example as u32);
            }
        }
    }

    /// Compares an example with those that were added. `asking_counts`: whether it matters that another one asks the same and answers otherwise.
    pub fn look(&mut self, example: usize, asking_counts: &dyn Fn(usize) -> bool) -> Result<Found> {
        let own = &self.traces[example];
        let mut near: Vec<usize> = Vec::with_capacity(BANDS);
        for band in own.request.bands() {
            near.extend(self.buckets.get(&band).into_iter().flatten().map(|&other| other as usize));
        }
        near.sort_unstable();
        near.dedup();
        let least = self.threshold - MARGIN;
        let mut likely: Vec<(f64, usize)> = near
            .into_iter()
            .filter_map(|other| {
                let trace = &self.traces[other];
                let (request, answer) = (own.request.likeness(&trace.request), own.answer.likeness(&trace.answer));
                (request >= least && (answer >= least || asking_counts(other))).then_some((request + answer, other))
            })
            .collect();
        likely.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        if self.kept.len() + COMPARED >= SETS_KEPT {
            self.kept.clear();
        }
        let mut found = Found::default();
        for (_, other) in likely.into_iter().take(COMPARED) {
            let trace = &self.traces[other];
            let asks = asking_counts(other);
            if found.twin.is_some() && !asks {
                continue;
            }
            self.load(example)?;
            self.load(other)?;
            let (own, other_sets) = (&self.kept[&example], &self.kept[&other]);
            // Where a request says nothing of its own, the work stands in the system text or nowhere: that must be the same.
            let bare = own.request.is_empty() || other_sets.request.is_empty();
            if bare && self.traces[example].asked != trace.asked
                || words::jaccard(&own.request, &other_sets.request) < self.threshold
            {
                continue;
            }
            if asks {
                found.asking.push(other);
            }
            if found.twin.is_none() && words::jaccard(&own.answer, &other_sets.answer) >= self.threshold {
                found.twin = Some(other);
            }
        }
        Ok(found)
    }

    fn load(&mut self, example: usize) -> Result<()> {
        if !self.kept.contains_key(&example) {
            let sets = (self.fetch)(example)?;
            self.kept.insert(example, sets);
        }
        Ok(())
    }
}
