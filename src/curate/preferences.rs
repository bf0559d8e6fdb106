//! Pairs of a good and a bad answer to one request: what went badly is not thrown away.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::boilerplate::Boilerplate;
use super::eligible::{DISLIKED, better_first};
use super::line::Line;
use super::split::OF_A_HELD_OUT_GROUP;
use super::words::{Digest, Said, item_digest, request_digest};
use super::{Part, Settings, Texts, eligible};
use crate::domain::{Candidate, Evidence};
use crate::error::Result;

/// A reward up to this is bad; what lies between is neither.
const BAD_REWARD: f64 = 0.3;
/// Pairs of one group at most.
const OF_A_GROUP: usize = 4;

/// Good and bad ones of a group that are looked at: enough for all its pairs where some are duplicates.
const LOOKED_AT: usize = 16;

/// Pairs (chosen, rejected) of the same group and the same request with another answer, at most four a group, sorted. Nothing of a
/// held-out group is among them, and nothing that repeats one: `parts` must hold the groups that `curate` decided.
///
/// # Errors
/// Only those of `texts`.
pub fn preferences(
    candidates: &[Candidate],
    parts: &HashMap<String, Part>,
    texts: &mut Texts,
    settings: &Settings,
) -> Result<Vec<(i64, i64)>> {
    let mut runs: Vec<&Candidate> = candidates.iter().collect();
    runs.sort_by(|a, b| better_first(a, b, settings));
    let (held_out, runs): (Vec<_>, Vec<_>) = runs.into_iter().partition(|run| parts.get(&run.group) == Some(&Part::HeldOut));
    let groups = two_sided(runs, settings);
    let all = groups.iter().flatten().flatten().chain(&held_out);
    let boilerplate = Boilerplate::of_runs(all.copied(), texts)?;
    let mut line = Line::new(settings.near_duplicate);
    add_held_out(&mut line, &held_out, texts, &boilerplate, settings)?;
    for (number, sides) in (held_out.len() as u32..).zip(&groups) {
        for run in sides.iter().flatten() {
            line.count(&line.grams_in(&Said::of(&texts(run.run)?)), number);
        }
    }
    let mut pairs = Vec::new();
    let mut seen = HashSet::new();
    for sides in groups {
        let mut of_group = Vec::new();
        for [good, bad] in by_request(sides, &line, texts, &boilerplate)? {
            let turns = if good.is_empty() || bad.is_empty() { 0 } else { good.len().max(bad.len()) };
            for (chosen, rejected) in (0..turns).map(|turn| (good[turn % good.len()], bad[turn % bad.len()])) {
                if of_group.len() < OF_A_GROUP && seen.insert((chosen.0, rejected.0)) {
                    of_group.push((chosen.1, rejected.1));
                }
            }
        }
        pairs.extend(of_group);
    }
    pairs.sort_unstable();
    Ok(pairs)
}

/// The good runs of a group, the best first, and its bad ones, the worst first.
type Sides<T> = [Vec<T>; 2];

/// The groups that have both.
fn two_sided<'a>(runs: Vec<&'a Candidate>, settings: &Settings) -> Vec<Sides<&'a Candidate>> {
    let mut groups: BTreeMap<&str, Sides<&Candidate>> = BTreeMap::new();
    for run in runs {
        let [good, bad] = groups.entry(&run.group).or_default();
        if eligible(run, settings).is_ok() {
            good.push(run);
        } else if is_bad(run, settings) {
            bad.push(run);
        }
    }
    let mut groups: Vec<Sides<&Candidate>> =
        groups.into_values().filter(|sides| sides.iter().all(|side| !side.is_empty())).collect();
    for [good, bad] in &mut groups {
        bad.reverse();
        good.truncate(LOOKED_AT);
        bad.truncate(LOOKED_AT);
    }
    groups
}

/// The answers of a group by what they answer, each once (an answer that was good and bad is good), with their digests. What repeats a held-out item is not
/// among them.
fn by_request(
    sides: Sides<&Candidate>,
    line: &Line,
    texts: &mut Texts,
    boilerplate: &Boilerplate,
) -> Result<Vec<Sides<(Digest, i64)>>> {
    let mut requests: BTreeMap<Digest, Sides<(Digest, i64)>> = BTreeMap::new();
    for (side, runs) in sides.into_iter().enumerate() {
        for run in runs {
            let example = texts(run.run)?;
            let said = Said::of(&example);
            if !said.is_answered() || line.crossed(&said, &boilerplate.strip(said.clone())).is_some() {
                continue;
            }
            let item = item_digest(&example);
            let sides = requests.entry(request_digest(&example)).or_default();
            if sides.iter().flatten().all(|(other, _)| *other != item) {
                sides[side].push((item, run.run));
            }
        }
    }
    Ok(requests.into_values().collect())
}

/// Bad, by what was observed or by its users; whoever may not be learnt from may not be learnt against either, and what a person
/// refused stays out.
fn is_bad(run: &Candidate, settings: &Settings) -> bool {
    if !run.may_train || run.review == Some(false) {
        return false;
    }
    let observed = run.evidence != Evidence::SelfReported && run.observed_weight >= settings.min_observed;
    run.vote.is_some_and(|vote| vote < DISLIKED) || observed && run.reward.is_some_and(|reward| reward <= BAD_REWARD)
}

/// The best of each held-out group: no fewer than `curate` lists.
fn add_held_out(
    line: &mut Line,
    runs: &[&Candidate],
    texts: &mut Texts,
    boilerplate: &Boilerplate,
    settings: &Settings,
) -> Result<()> {
    let mut of_group: HashMap<&str, (u32, usize)> = HashMap::new();
    for run in runs.iter().filter(|run| eligible(run, settings).is_ok()) {
        let next = of_group.len() as u32;
        let (number, count) = of_group.entry(&run.group).or_insert((next, 0));
        *count += 1;
        if *count <= OF_A_HELD_OUT_GROUP {
            let said = Said::of(&texts(run.run)?);
            line.add(&said, &boilerplate.strip(said.clone()), *number);
        }
    }
    Ok(())
}
