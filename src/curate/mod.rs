//! What was recorded becomes a training set: good, varied, without duplicates, and apart from the held-out work. Pure: values in,
//! values out; the same runs give the same set, in whatever order they come.
//!
//! `curate` reads as the rules of `docs/curate.md` do.

mod boilerplate;
mod eligible;
pub mod export;
mod line;
mod near;
mod preferences;
mod rows;
mod select;
mod sketch;
mod split;
mod words;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use self::boilerplate::Boilerplate;
use self::eligible::better_first;
pub use self::eligible::{Why, eligible};
use self::line::Line;
pub use self::line::Shared;
use self::near::{Index, Sets, Trace};
pub use self::preferences::preferences;
pub use self::rows::{Repeats, contaminated, repeats};
use self::split::{Group, OF_A_HELD_OUT_GROUP};
use self::words::{Said, hex};
use crate::config::Config;
use crate::domain::{Candidate, Example};
use crate::error::Result;

/// Examples that are traced side by side.
const AT_ONCE: usize = 512;

/// Fetches the conversation of a run.
pub type Texts<'a> = dyn FnMut(i64) -> Result<Example> + 'a;

/// The numbers of curation.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub min_reward: f64,
    /// Of the reward's weights.
    pub min_observed: f64,
    /// Of the training part.
    pub max_examples: usize,
    /// Different answers to one task teach more than one, but ever less (Yuan et al., *Scaling relationship on learning mathematical
    /// reasoning*, 2023); eight leave room for 125 tasks in a thousand examples.
    pub max_per_task: usize,
    /// Jaccard index of word shingles from which two texts are nearly the same.
    pub near_duplicate: f64,
    /// Of all items.
    pub held_out_share: f64,
    pub min_held_out: usize,
    pub max_held_out: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self::from(&Config::default())
    }
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self {
            min_reward: config.auto_export.min_reward,
            min_observed: 0.5,
            max_examples: config.auto_export.max_examples,
            max_per_task: 8,
            near_duplicate: 0.8,
            held_out_share: config.evaluation.held_out_share,
            min_held_out: config.evaluation.min_items,
            max_held_out: config.evaluation.max_items,
        }
    }
}

/// Where a task group belongs, once and for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Train,
    HeldOut,
}

/// Why a run is in neither part.
#[derive(Clone, Debug, PartialEq)]
pub enum LeftOut {
    NotEligible(Why),
    TermsForbid,
    Refused,
    SelfReported,
    /// The same conversation, white space aside.
    Exact {
        of: i64,
    },
    /// Nearly the same request with nearly the same answer.
    Near {
        of: i64,
    },
    /// It repeats a held-out item.
    Contaminated {
        held_out: i64,
        shared: Shared,
    },
    /// Its task has enough examples.
    OverTheCap,
    /// The set is full.
    NotSelected,
}

impl LeftOut {
    /// A name that stays, for tables and JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotEligible(_) => "not_eligible",
            Self::TermsForbid => "terms_forbid",
            Self::Refused => "refused",
            Self::SelfReported => "self_reported",
            Self::Exact { .. } => "exact_duplicate",
            Self::Near { .. } => "near_duplicate",
            Self::Contaminated { .. } => "contaminated",
            Self::OverTheCap => "over_the_cap",
            Self::NotSelected => "not_selected",
        }
    }

    /// How it is counted: "12 are not good enough".
    fn counted(&self) -> &'static str {
        match self {
            Self::NotEligible(_) => "are not good enough, or nothing says that they are",
            Self::TermsForbid => "come from a source whose terms forbid training",
            Self::Refused => "were refused by a person",
            Self::SelfReported => "are good only by the word of the model that wrote them",
            Self::Exact { .. } => "are the same as another",
            Self::Near { .. } => "are nearly the same as another",
            Self::Contaminated { .. } => "repeat a held-out item",
            Self::OverTheCap => "are of a task that has enough examples",
            Self::NotSelected => "found no place: the set is full",
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::NotEligible(why) => write!(out, "{why}"),
            Self::TermsForbid => write!(out, "the terms of its source forbid training"),
            Self::Refused => write!(out, "a person refused it"),
            Self::SelfReported => write!(out, "only the model that wrote it says that it is good"),
            Self::Exact { of } => write!(out, "the same as run {of}"),
            Self::Near { of } => write!(out, "nearly the same as run {of}"),
            Self::Contaminated { held_out, shared } => write!(out, "it shares {shared} with the held-out run {held_out}"),
            Self::OverTheCap => write!(out, "its task has enough examples"),
            Self::NotSelected => write!(out, "the set is full"),
        }
    }
}

/// Each candidate in exactly one of three lists, by its run's number, sorted.
#[derive(Clone, Debug, PartialEq)]
pub struct Curated {
    pub train: Vec<i64>,
    pub held_out: Vec<i64>,
    pub left_out: Vec<(i64, LeftOut)>,
    /// The groups that were decided now, to be kept for the next time.
    pub new_parts: Vec<(String, Part)>,
    /// SHA-256 over the items of both parts: the same texts have the same one, whatever their runs' numbers.
    pub digest: String,
}

impl Curated {
    /// How many were left out, and why, a sentence each; the most first.
    pub fn notes(&self) -> Vec<String> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        self.left_out.iter().for_each(|(_, why)| *counts.entry(why.counted()).or_default() += 1);
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        let all = self.train.len() + self.held_out.len() + self.left_out.len();
        counts.into_iter().map(|(why, n)| format!("{n} of {all} runs {why}")).collect()
    }
}

/// Curates runs. `parts`: what was decided of their groups before; it is never changed.
///
/// # Errors
/// Only those of `texts`.
pub fn curate(
    candidates: &[Candidate],
    parts: &HashMap<String, Part>,
    texts: &mut Texts,
    settings: &Settings,
) -> Result<Curated> {
    let mut work = Work::begin(candidates, parts, settings);
    let boilerplate = Boilerplate::of_runs(work.pool.iter().copied(), texts)?;
    let traces = work.trace(texts, &boilerplate)?;
    work.leave_out_exact(&traces);
    let like = work.leave_out_near(&traces, texts, &boilerplate)?;
    let new_parts = work.split(&like);
    work.cap_held_out();
    work.hold_the_line(texts, &boilerplate)?;
    work.fill_up();
    Ok(work.end(&traces, new_parts))
}

/// Runs that ask nearly the same in other groups, as places in the pool.
type Like = Vec<(usize, usize)>;

/// The runs that may be trained on, the better ones first, and what became of each.
struct Work<'a> {
    pool: Vec<&'a Candidate>,
    /// Of each of the pool; `None`: it is still in.
    fates: Vec<Option<LeftOut>>,
    never: Vec<(i64, LeftOut)>,
    parts: HashMap<String, Part>,
    settings: &'a Settings,
}

impl<'a> Work<'a> {
    fn begin(candidates: &'a [Candidate], parts: &HashMap<String, Part>, settings: &'a Settings) -> Self {
        let (mut pool, mut never) = (Vec::new(), Vec::new());
        for run in candidates {
            match eligible(run, settings) {
                Ok(()) => pool.push(run),
                Err(why) => never.push((run.run, why)),
            }
        }
        // What is held out stands before all that repeats it, so that it stays what it is.
        let held_out = |run: &Candidate| parts.get(&run.group) == Some(&Part::HeldOut);
        pool.sort_by(|a, b| held_out(b).cmp(&held_out(a)).then_with(|| better_first(a, b, settings)));
        Self { fates: vec![None; pool.len()], pool, never, parts: parts.clone(), settings }
    }

    fn part(&self, place: usize) -> Option<Part> {
        self.parts.get(&self.pool[place].group).copied()
    }

    /// The places of those that are still in.
    fn rest(&self) -> Vec<usize> {
        (0..self.pool.len()).filter(|&place| self.fates[place].is_none()).collect()
    }

    fn trace(&self, texts: &mut Texts, boilerplate: &Boilerplate) -> Result<Vec<Trace>> {
        let mut traces = Vec::with_capacity(self.pool.len());
        for some in self.pool.chunks(AT_ONCE) {
            let examples = some.iter().map(|run| texts(run.run)).collect::<Result<Vec<_>>>()?;
            let trace = |example: &Example| Trace::of(example, &boilerplate.strip(Said::of(example)));
            traces.par_extend(examples.par_iter().map(trace));
        }
        Ok(traces)
    }

    fn leave_out_exact(&mut self, traces: &[Trace]) {
        let mut first: HashMap<words::Digest, usize> = HashMap::new();
        for (place, trace) in traces.iter().enumerate() {
            if !trace.is_answered {
                self.fates[place] = Some(LeftOut::NotEligible(Why::NoAnswer));
                continue;
            }
            let of = *first.entry(trace.item).or_insert(place);
            if of != place {
                self.fates[place] = Some(LeftOut::Exact { of: self.pool[of].run });
            }
        }
    }

    /// Leaves out what is nearly the same as a better one, and what a task has more of than the cap. Gives who asks the same in other groups.
    fn leave_out_near(&mut self, traces: &[Trace], texts: &mut Texts, boilerplate: &Boilerplate) -> Result<Like> {
        let pool = &self.pool;
        let mut fetch = |place: usize| Ok(Sets::of(&boilerplate.strip(Said::of(&texts(pool[place].run)?))));
        let mut index = Index::new(self.settings.near_duplicate, traces, &mut fetch);
        let mut of_group: HashMap<&str, usize> = HashMap::new();
        let mut like = Vec::new();
        let places: HashMap<i64, usize> = pool.iter().enumerate().map(|(place, run)| (run.run, place)).collect();
        for place in 0..pool.len() {
            match &self.fates[place] {
                None => {}
                Some(LeftOut::Exact { of }) if pool[places[of]].group != pool[place].group => {
                    like.push((places[of], place));
                    continue;
                }
                Some(_) => continue,
            }
            let count = of_group.entry(&pool[place].group).or_default();
            if *count >= self.settings.max_per_task {
                self.fates[place] = Some(LeftOut::OverTheCap);
                continue;
            }
            let found = index.look(place, &|other| pool[other].group != pool[place].group)?;
            like.extend(found.asking.into_iter().map(|other| (other, place)));
            if let Some(of) = found.twin {
                self.fates[place] = Some(LeftOut::Near { of: pool[of].run });
                continue;
            }
            *count += 1;
            index.add(place);
        }
        Ok(like)
    }

    /// Decides the groups that are new.
    fn split(&mut self, like: &Like) -> Vec<(String, Part)> {
        let mut groups: BTreeMap<&str, Group> = BTreeMap::new();
        for place in self.rest() {
            groups.entry(&self.pool[place].group).or_default().items += 1;
        }
        for &(a, b) in like {
            for (a, b) in [(a, b), (b, a)] {
                if let Some(group) = groups.get_mut(self.pool[a].group.as_str()) {
                    group.like.insert(&self.pool[b].group);
                }
            }
        }
        let new = split::decide(&groups, &self.parts, self.settings);
        self.parts.extend(new.iter().cloned());
        new
    }

    fn cap_held_out(&mut self) {
        let mut of_group: HashMap<&str, usize> = HashMap::new();
        for place in self.rest() {
            if self.part(place) == Some(Part::HeldOut) {
                let count = of_group.entry(&self.pool[place].group).or_default();
                *count += 1;
                if *count > OF_A_HELD_OUT_GROUP {
                    self.fates[place] = Some(LeftOut::OverTheCap);
                }
            }
        }
    }

    /// Leaves out of the training part what repeats a held-out item.
    fn hold_the_line(&mut self, texts: &mut Texts, boilerplate: &Boilerplate) -> Result<()> {
        let (held_out, train): (Vec<usize>, Vec<usize>) =
            self.rest().into_iter().partition(|&place| self.part(place) == Some(Part::HeldOut));
        if held_out.is_empty() {
            return Ok(());
        }
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let mut number = |place: usize| {
            let next = numbers.len() as u32;
            *numbers.entry(&self.pool[place].group).or_insert(next)
        };
        let mut line = Line::new(self.settings.near_duplicate);
        for &place in &held_out {
            let said = Said::of(&texts(self.pool[place].run)?);
            line.add(&said, &boilerplate.strip(said.clone()), number(place));
        }
        // Whoever shares a gram is looked at again, when it is known which grams are boilerplate.
        let mut sharing = Vec::new();
        for some in train.chunks(AT_ONCE) {
            let examples = some.iter().map(|&place| texts(self.pool[place].run)).collect::<Result<Vec<_>>>()?;
            let look = |example: &Example| {
                let said = Said::of(example);
                (line.asked(&said, &boilerplate.strip(said.clone())), line.grams_in(&said))
            };
            let looked: Vec<_> = examples.par_iter().map(look).collect();
            for (&place, (asked, grams)) in some.iter().zip(looked) {
                line.count(&grams, number(place));
                self.fates[place] = asked.map(|(item, shared)| self.contaminated(held_out[item], shared));
                sharing.extend((self.fates[place].is_none() && !grams.is_empty()).then_some(place));
            }
        }
        for place in sharing {
            let quoted = line.quoted(&Said::of(&texts(self.pool[place].run)?));
            self.fates[place] = quoted.map(|(item, shared)| self.contaminated(held_out[item], shared));
        }
        Ok(())
    }

    fn contaminated(&self, held_out: usize, shared: Shared) -> LeftOut {
        LeftOut::Contaminated { held_out: self.pool[held_out].run, shared }
    }

    fn fill_up(&mut self) {
        let train: Vec<usize> = self.rest().into_iter().filter(|&place| self.part(place) == Some(Part::Train)).collect();
        let runs: Vec<&Candidate> = train.iter().map(|&place| self.pool[place]).collect();
        let chosen: std::collections::HashSet<usize> = select::select(&runs, self.settings.max_examples).into_iter().collect();
        for (number, place) in train.into_iter().enumerate() {
            if !chosen.contains(&number) {
                self.fates[place] = Some(LeftOut::NotSelected);
            }
        }
    }

    fn end(mut self, traces: &[Trace], new_parts: Vec<(String, Part)>) -> Curated {
        let (mut train, mut held_out, mut items) = (Vec::new(), Vec::new(), Vec::new());
        for place in self.rest() {
            let (list, name) = match self.part(place) {
                Some(Part::HeldOut) => (&mut held_out, "held_out"),
                _ => (&mut train, "train"),
            };
            list.push(self.pool[place].run);
            items.push(format!("{name} {}\n", hex(&traces[place].item)));
        }
        items.sort_unstable();
        let digest = format!("sha256:{}", hex(&Sha256::digest(items.concat())));
        let fates = self.pool.iter().zip(self.fates);
        let mut left_out = std::mem::take(&mut self.never);
        left_out.extend(fates.filter_map(|(run, fate)| Some((run.run, fate?))));
        left_out.sort_by_key(|(run, _)| *run);
        train.sort_unstable();
        held_out.sort_unstable();
        Curated { train, held_out, left_out, new_parts, digest }
    }
}

#[cfg(test)]
mod tests;
