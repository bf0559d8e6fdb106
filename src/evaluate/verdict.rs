//! Promote, reject, or neither: what the statistics and the guards say together.
//!
//! A candidate is promoted when the whole interval of the primary measure is above 0, on enough items and groups, and every guard
//! holds. It is rejected when the whole interval is below 0, or a guard fell. Everything else is inconclusive: the champion stays.

use serde::{Deserialize, Serialize};

use super::collapse::is_collapsed;
use super::statistics::{Bootstrap, estimate, estimate_share, is_right};
use crate::domain::{Comparison, Estimate, Guard, Guarded, Interval, Primary, Reason, Standing, Verdict};
use crate::error::Result;

/// What a promotion asks for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rules {
    pub bootstrap: Bootstrap,
    /// Fewer held-out items promote nothing.
    pub min_items: usize,
    /// Fewer groups of tasks (as equal ones count) neither promote nor show that the candidate is worse.
    pub min_groups: usize,
    /// A guarded suite fell where its whole interval is more than this below 0: share of items, or nats a token.
    pub suite_tolerance: f64,
    /// A guarded suite fell where its interval is below 0 and what was measured is more than this below; where the interval
    /// spans 0, the guard is in doubt, and nothing is promoted.
    pub suite_limit: f64,
    /// The share of the champion's tokens a second that the candidate needs; it may have 1 / this of the memory.
    pub served_share: f64,
    /// So many more answers (a share of the items) may be empty or looping.
    pub collapse_limit: f64,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            bootstrap: Bootstrap::default(),
            min_items: 50,
            min_groups: 8,
            suite_tolerance: 0.02,
            suite_limit: 0.05,
            served_share: 0.8,
            collapse_limit: 0.05,
        }
    }
}

/// How one side was served, where it was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Served {
    pub tokens_per_second: Option<f64>,
    pub memory_bytes: Option<u64>,
}

/// Work beside the task that must not get worse.
#[derive(Clone, Debug, PartialEq)]
pub struct Suite {
    /// As it is told: `general ability`.
    pub name: String,
    pub comparison: Comparison,
}

/// All that a verdict is made of.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The held-out items of the task.
    pub work: &'a Comparison,
    pub suites: &'a [Suite],
    pub candidate: Served,
    pub champion: Served,
}

/// The verdict with its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Of the measure that decided.
    pub primary: Estimate,
    /// Of the other measures that the items have; they decide nothing.
    pub others: Vec<Estimate>,
    pub guards: Vec<Guarded>,
    /// One paragraph, with the numbers.
    pub explanation: String,
}

/// Judges the candidate. Errors: those of `estimate`, on the work or on a suite.
pub fn judge(evidence: &Evidence, measure: Primary, rules: &Rules) -> Result<Judgement> {
    let primary = estimate(evidence.work, measure, &rules.bootstrap)?;
    let others = other_measures(evidence.work, measure, &rules.bootstrap)?;
    let guards = guards(evidence, measure, rules)?;
    let verdict = decide(&primary, &others, &guards, rules);
    let explanation = explain(&verdict, &primary, &others, &guards);
    Ok(Judgement { verdict, primary, others, guards, explanation })
}

fn other_measures(work: &Comparison, measure: Primary, bootstrap: &Bootstrap) -> Result<Vec<Estimate>> {
    let mut others = Vec::new();
    let judged = || work.pairs().iter().any(|pair| pair.candidate().answer.as_ref().is_some_and(|a| a.judged.is_some()));
    if measure == Primary::Verified && judged() {
        others.push(estimate(work, Primary::Judged, bootstrap)?);
    }
    if matches!(measure, Primary::Verified | Primary::Judged) {
        others.push(estimate(work, Primary::Exact, bootstrap)?);
    }
    // Losses over other tokens on each side (another tokenizer) are no measure; losses that are no numbers are an error.
    let comparable = |pair: &crate::domain::Paired| pair.candidate().trained_tokens == pair.champion().trained_tokens;
    let scored = work.pairs().iter().any(|pair| pair.candidate().trained_tokens > 0);
    if measure != Primary::Loss && scored && work.pairs().iter().all(comparable) {
        others.push(estimate(work, Primary::Loss, bootstrap)?);
    }
    Ok(others)
}

fn guards(evidence: &Evidence, measure: Primary, rules: &Rules) -> Result<Vec<Guarded>> {
    let mut guards = Vec::new();
    for suite in evidence.suites {
        let estimate = estimate(&suite.comparison, Primary::of(&suite.comparison), &rules.bootstrap)?;
        let (tolerance, limit) = (rules.suite_tolerance, rules.suite_limit);
        let high = estimate.interval.map_or(f64::INFINITY, |i| i.high);
        let standing = match estimate.point < -limit {
            _ if high < -tolerance => Standing::Fell,
            true if high < 0.0 => Standing::Fell,
            true => Standing::InDoubt,
            false => Standing::Held,
        };
        guards.push(Guarded { guard: Guard::Suite { name: suite.name.clone(), estimate, tolerance, limit }, standing });
    }
    if measure != Primary::Loss {
        let limit = rules.collapse_limit;
        // A right answer is no collapse, whatever it looks like.
        let stands = |answer: &str, right: bool| right || !is_collapsed(answer);
        let estimate = estimate_share(evidence.work, &rules.bootstrap, |result, answer| {
            // A judge may like a loop better than what the other side said.
            let by = if measure == Primary::Judged { Primary::Exact } else { measure };
            stands(&answer.text, is_right(result, by).unwrap_or(false))
        })?;
        let standing = match estimate.point < -limit {
            true if estimate.interval.is_some_and(|i| i.high < 0.0) => Standing::Fell,
            true => Standing::InDoubt,
            false => Standing::Held,
        };
        guards.push(Guarded { guard: Guard::Collapse { estimate, limit }, standing });
    }
    let standing = |held| if held { Standing::Held } else { Standing::Fell };
    let (ours, theirs) = (&evidence.candidate, &evidence.champion);
    if let (Some(candidate), Some(champion)) = (ours.tokens_per_second, theirs.tokens_per_second) {
        let least = rules.served_share;
        // What is no number does not hold.
        let held = candidate >= least * champion;
        guards.push(Guarded { guard: Guard::Speed { candidate, champion, least }, standing: standing(held) });
    }
    if let (Some(candidate), Some(champion)) = (ours.memory_bytes, theirs.memory_bytes) {
        let most = 1.0 / rules.served_share;
        let held = candidate as f64 <= most * champion as f64;
        guards.push(Guarded { guard: Guard::Memory { candidate, champion, most }, standing: standing(held) });
    }
    Ok(guards)
}

/// The fewest groups that, all one way, chance does not explain (two-sided sign test): 6 at 95%.
fn fewest_that_differ(confidence: f64) -> usize {
    (2.0 / (1.0 - confidence)).log2().ceil() as usize
}

/// Whether losses are so skewed that the end of the interval towards 0 is not to be trusted: Cochran's rule, groups > 25 skewness^2
/// ("Sampling techniques", 1977, 2.15), where the long tail is on the other side of 0.
fn skewed(primary: &Estimate, interval: &Interval) -> Option<Reason> {
    let skewness = primary.skewness.filter(|_| primary.measure == Primary::Loss)?;
    let beyond = 25.0 * skewness * skewness > primary.effective_groups;
    let hidden = interval.low > 0.0 && skewness < 0.0 || interval.high < 0.0 && skewness > 0.0;
    (beyond && hidden).then_some(Reason::Skewed { skewness, groups: primary.groups })
}

fn decide(primary: &Estimate, others: &[Estimate], guards: &[Guarded], rules: &Rules) -> Verdict {
    let measure = primary.measure;
    let of = |standing| guards.iter().filter(move |g| g.standing == standing).cloned().map(Reason::Guard);
    let mut doubts = Vec::new();
    let interval = primary.interval.filter(|_| primary.effective_groups >= rules.min_groups as f64);
    if interval.is_none() {
        let (effective_groups, min_groups) = (primary.effective_groups, rules.min_groups);
        doubts.push(Reason::TooFewGroups { effective_groups, min_groups });
    }
    let needed = fewest_that_differ(rules.bootstrap.confidence);
    if primary.items_that_differ == 0 {
        doubts.push(Reason::NothingDiffers { measure, items: primary.items });
    } else if measure != Primary::Loss && primary.groups_that_differ < needed {
        doubts.push(Reason::TooFewDiffer { groups_that_differ: primary.groups_that_differ, needed });
    }
    doubts.extend(interval.and_then(|interval| skewed(primary, &interval)));
    let sure = doubts.is_empty();
    let worse = interval.filter(|interval| sure && interval.high < 0.0).map(|interval| Reason::Worse { measure, interval });
    let rejected: Vec<Reason> = worse.into_iter().chain(of(Standing::Fell)).collect();
    if !rejected.is_empty() {
        return Verdict::Reject(rejected);
    }
    if primary.items < rules.min_items {
        doubts.push(Reason::TooFewItems { items: primary.items, min_items: rules.min_items });
    }
    if let Some(interval) = interval
        && interval.low <= 0.0
        && interval.high >= 0.0
        && primary.items_that_differ > 0
    {
        doubts.push(Reason::SpansZero { measure, interval, smallest_effect: primary.smallest_effect });
    }
    if measure == Primary::Judged {
        let by_text = others.iter().find(|other| other.measure == Primary::Exact && other.groups_that_differ >= needed);
        let worse = by_text.and_then(|other| other.interval).filter(|interval| interval.high < 0.0);
        doubts.extend(worse.map(|interval| Reason::TextSaysWorse { interval }));
    }
    doubts.extend(of(Standing::InDoubt));
    let better = interval.is_some_and(|interval| interval.low > 0.0);
    if better && doubts.is_empty() { Verdict::Promote } else { Verdict::Inconclusive(doubts) }
}

fn explain(verdict: &Verdict, primary: &Estimate, others: &[Estimate], guards: &[Guarded]) -> String {
    let mut sentences = vec![format!("{}: {primary}.", capital(verdict.name()))];
    sentences.extend(verdict.reasons().iter().map(|reason| format!("{}.", capital(&reason.to_string()))));
    for other in others {
        let lower = other.interval.is_some_and(|i| i.low > 0.0);
        let alone = other.measure == Primary::Loss && lower && *verdict != Verdict::Promote;
        let name = if other.measure == Primary::Exact { "By the text alone: " } else { "" };
        let more = if alone { "; a lower loss alone promotes nothing" } else { "" };
        sentences.push(format!("{}{more}.", capital(&format!("{name}{other}"))));
    }
    let held: Vec<String> = guards.iter().filter(|g| g.standing == Standing::Held).map(|g| g.guard.to_string()).collect();
    if !held.is_empty() {
        sentences.push(format!("Guards that held: {}.", held.join("; ")));
    }
    sentences.join(" ")
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
