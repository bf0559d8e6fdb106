//! Paired differences with their interval, by clusters.
//!
//! Items of one task group go well or badly together, so that a resample draws whole groups with replacement (the pairs cluster
//! bootstrap: Cameron, Gelbach and Miller, "Bootstrap-based improvements for inference with clustered errors", 2008). Which interval is made of the
//! draws was chosen by measuring how often it holds the truth; docs/evaluate.md has the table, tests/coverage.rs makes it:
//!
//! - **right or wrong**: the percentile interval (Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13), widened for few groups
//!   as t is wider than the normal ("expanded percentile": Hesterberg, "What teachers should know about the bootstrap", 2015),
//!   with half a group's worth of items added that was won and as much that was lost. Few items differ where most are easy or
//!   hard, and draws from few say too little of what was not seen (Agresti and Min, "Simple improved confidence intervals for
//!   comparing matched proportions", 2005, add half an item to each cell).
//! - **losses**: the symmetric bootstrap-t (Hall, "The bootstrap and Edgeworth expansion", 1992, section 3.5): their differences are skewed and
//!   have heavy tails, and have no natural size of an item to add.

use std::collections::BTreeMap;

use retune_kernels::rng::Rng;
use serde::{Deserialize, Serialize};

use super::quantiles::{normal_cdf, t_quantile};
use crate::domain::{Answer, Comparison, Estimate, Interval, ItemResult, Paired, Preference, Primary};
use crate::error::{Error, Result};

/// How often a true difference of `smallest_effect` is to be shown.
const POWER: f64 = 0.8;

/// How an interval is made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Bootstrap {
    /// The share of intervals that are to hold the truth; .5 to .999.
    pub confidence: f64,
    /// How many times the groups are drawn again; 200 or more.
    pub resamples: usize,
    /// The same seed draws the same groups.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { confidence: 0.95, resamples: 4_000, seed: 42 }
    }
}

impl Bootstrap {
    fn check(&self) -> Result<()> {
        if !(0.5..=0.999).contains(&self.confidence) {
            return Err(Error::usage(
                format!("confidence {} is no share from .5 to .999", self.confidence),
                "give a share such as .95",
            ));
        }
        if self.resamples < 200 {
            return Err(Error::usage(
                format!("{} resamples make no interval", self.resamples),
                "take 200 or more; 4,000 are usual",
            ));
        }
        Ok(())
    }
}

/// The difference of candidate and champion in one measure. The order of the items changes nothing.
///
/// Errors: no items; a loss that is no number, or over other tokens on each side; an item without an answer or with one side's verifier
/// missing. Each names the item.
pub fn estimate(comparison: &Comparison, measure: Primary, bootstrap: &Bootstrap) -> Result<Estimate> {
    let scored: Vec<Scored> = match measure {
        Primary::Loss => losses(comparison)?,
        _ => comparison.pairs().iter().map(|pair| correctness(pair, measure)).collect::<Result<_>>()?,
    };
    estimate_scored(&scored, measure, bootstrap)
}

/// The share of answers that are `good`, candidate less champion, as `estimate` has it for right ones.
pub fn estimate_share(
    comparison: &Comparison,
    bootstrap: &Bootstrap,
    good: impl Fn(&ItemResult, &Answer) -> bool,
) -> Result<Estimate> {
    let share = |result: &ItemResult| Ok(good(result, answer(result)?));
    let scored: Result<Vec<Scored>> =
        comparison.pairs().iter().map(|pair| Ok(Scored::of(pair, share(pair.candidate())?, share(pair.champion())?))).collect();
    estimate_scored(&scored?, Primary::Exact, bootstrap)
}

/// Whether a result is right by `measure`; an error for one without an answer.
pub fn is_right(result: &ItemResult, measure: Primary) -> Result<bool> {
    let answer = answer(result)?;
    Ok(match measure {
        Primary::Verified => answer.verified.unwrap_or(answer.exact),
        Primary::Judged => answer.judged == Some(Preference::Better),
        Primary::Exact | Primary::Loss => answer.exact,
    })
}

fn answer(result: &ItemResult) -> Result<&Answer> {
    result.answer.as_ref().ok_or_else(|| {
        Error::data(
            format!("item {} has no answer to judge", result.item),
            "generate an answer to every item on both sides, or compare the losses alone",
        )
    })
}

/// Both sides on one item as numbers; a difference is `(candidate - champion) / weight`, more is better.
struct Scored<'a> {
    group: &'a str,
    candidate: f64,
    champion: f64,
    weight: f64,
}

impl<'a> Scored<'a> {
    fn of(pair: &'a Paired, candidate: bool, champion: bool) -> Self {
        let number = |right| f64::from(u8::from(right));
        Self { group: pair.group(), candidate: number(candidate), champion: number(champion), weight: 1.0 }
    }
}

fn correctness(pair: &Paired, measure: Primary) -> Result<Scored<'_>> {
    let (candidate, champion) = (pair.candidate(), pair.champion());
    if measure == Primary::Verified && answer(candidate)?.verified.is_some() != answer(champion)?.verified.is_some() {
        return Err(Error::data(
            format!("the verifier judged one side of item {} only", pair.item()),
            "run it on both sides' answers again; a verifier that stops counts as a failed answer",
        ));
    }
    Ok(Scored::of(pair, is_right(candidate, measure)?, is_right(champion, measure)?))
}

fn losses(comparison: &Comparison) -> Result<Vec<Scored<'_>>> {
    let mut scored = Vec::new();
    for pair in comparison.pairs() {
        for (side, result) in [("candidate", pair.candidate()), ("champion", pair.champion())] {
            if !result.loss_sum.is_finite() {
                return Err(Error::data(
                    format!("the {side}'s loss of item {} is {}, expected a number", pair.item(), result.loss_sum),
                    "score it alone with `retune loss`; an adapter that gives no number is broken",
                ));
            }
        }
        let (candidate, champion) = (pair.candidate(), pair.champion());
        if candidate.trained_tokens != champion.trained_tokens {
            return Err(Error::data(
                format!(
                    "item {} has {} trained tokens for the candidate and {} for the champion: such losses are no measure of one thing",
                    pair.item(),
                    candidate.trained_tokens,
                    champion.trained_tokens
                ),
                "compare answers instead, or score both sides with one tokenizer and one template",
            ));
        }
        if candidate.trained_tokens > 0 {
            // A lower loss is better.
            let weight = candidate.trained_tokens as f64;
            scored.push(Scored { group: pair.group(), candidate: -candidate.loss_sum, champion: -champion.loss_sum, weight });
        }
    }
    Ok(scored)
}

/// The sum of a group's differences, and of its weights (items, or trained tokens).
#[derive(Clone, Copy, Default)]
struct Group {
    sum: f64,
    size: f64,
}

fn estimate_scored(scored: &[Scored], measure: Primary, bootstrap: &Bootstrap) -> Result<Estimate> {
    bootstrap.check()?;
    if scored.is_empty() {
        return Err(Error::data("there are no items to compare", "hold some examples out of training, 50 or more"));
    }
    // By name, so that the order of the items changes no draw.
    let mut by_name: BTreeMap<&str, Group> = BTreeMap::new();
    for item in scored {
        let group = by_name.entry(item.group).or_default();
        group.sum += item.candidate - item.champion;
        group.size += item.weight;
    }
    let groups: Vec<Group> = by_name.into_values().collect();
    let weight: f64 = groups.iter().map(|g| g.size).sum();
    let mean = |value: fn(&Scored) -> f64| scored.iter().map(value).sum::<f64>() / weight;
    let (candidate, champion) = (mean(|s| s.candidate), mean(|s| s.champion));
    let sign = if measure == Primary::Loss { -1.0 } else { 1.0 };
    let spread = if groups.len() > 1 { Some(spread(&groups, scored.len(), measure, bootstrap)) } else { None };
    Ok(Estimate {
        measure,
        candidate: sign * candidate,
        champion: sign * champion,
        point: total(&groups).mean(),
        interval: spread.as_ref().and_then(|s| s.interval(bootstrap.confidence)),
        standard_error: spread.as_ref().map(|s| s.standard_error),
        share_not_better: spread.as_ref().map(|s| s.share_not_better),
        skewness: skewness(&groups),
        smallest_effect: smallest_effect(scored, &groups, measure, bootstrap.confidence),
        items: scored.len(),
        items_that_differ: scored.iter().filter(|s| s.candidate != s.champion).count(),
        groups: groups.len(),
        groups_that_differ: groups.iter().filter(|g| g.sum != 0.0).count(),
        effective_groups: effective(&groups),
    })
}

fn total(groups: &[Group]) -> Group {
    groups.iter().fold(Group::default(), |all, g| Group { sum: all.sum + g.sum, size: all.size + g.size })
}

impl Group {
    fn mean(self) -> f64 {
        self.sum / self.size
    }
}

/// As many equal groups have a mean as sure (Kish, "Survey sampling", 1965). Degrees of freedom follow it: a few large groups among many small
/// ones are few (Carter, Schnepel and Steigerwald, "Asymptotic behavior of a t-test robust to cluster heterogeneity", 2017).
fn effective(groups: &[Group]) -> f64 {
    total(groups).size.powi(2) / groups.iter().map(|g| g.size * g.size).sum::<f64>()
}

/// The standard error of the ratio of sums, by groups, with the factor groups / (groups - 1) (Cochran, "Sampling techniques", 1977, 6.3).
fn standard_error(groups: &[Group]) -> f64 {
    let (all, count) = (total(groups), groups.len() as f64);
    let squares: f64 = groups.iter().map(|g| (g.sum - g.size * all.mean()).powi(2)).sum();
    (squares * count / (count - 1.0)).sqrt() / all.size
}

/// The third central moment of the groups' differences over the second to 3/2.
fn skewness(groups: &[Group]) -> Option<f64> {
    let (mean, count) = (total(groups).mean(), groups.len() as f64);
    let moment = |k| groups.iter().map(|g| (g.sum - g.size * mean).powi(k)).sum::<f64>() / count;
    let spread = moment(2).powf(1.5);
    (groups.len() > 1 && spread > 0.0).then(|| moment(3) / spread)
}

/// What the draws say: where the ends of the interval lie.
struct Spread {
    low: f64,
    high: f64,
    standard_error: f64,
    share_not_better: f64,
}

impl Spread {
    /// `None` where the draws know no end: too many of them held one group alone.
    fn interval(&self, confidence: f64) -> Option<Interval> {
        let known = self.low.is_finite() && self.high.is_finite();
        known.then_some(Interval { low: self.low, high: self.high, confidence })
    }
}

fn spread(groups: &[Group], items: usize, measure: Primary, bootstrap: &Bootstrap) -> Spread {
    let mut rng = Rng::new(bootstrap.seed);
    let standard_error_of_all = standard_error(groups);
    let tail = (1.0 - bootstrap.confidence) / 2.0;
    if measure == Primary::Loss {
        let center = total(groups).mean();
        let (mut means, mut ts) = (Vec::with_capacity(bootstrap.resamples), Vec::with_capacity(bootstrap.resamples));
        for _ in 0..bootstrap.resamples {
            let (mean, error) = draw(groups, &mut rng);
            let off = (mean - center).abs();
            // Sums in another order leave a little.
            let none = 1e-12 * (center.abs() + standard_error_of_all);
            means.push(mean);
            ts.push(if off <= none {
                0.0
            } else if error <= none {
                f64::INFINITY
            } else {
                off / error
            });
        }
        ts.sort_by(f64::total_cmp);
        let reach = if standard_error_of_all == 0.0 { 0.0 } else { quantile(&ts, bootstrap.confidence) * standard_error_of_all };
        let (low, high) = (center - reach, center + reach);
        return Spread { low, high, standard_error: standard_error_of_all, share_not_better: share_not_above_0(&means) };
    }
    let half = 0.5 * (items as f64 / groups.len() as f64).sqrt();
    let with_halves = [groups, &[Group { sum: half, size: half }, Group { sum: -half, size: half }]].concat();
    let mut means: Vec<f64> = (0..bootstrap.resamples).map(|_| draw(&with_halves, &mut rng).0).collect();
    means.sort_by(f64::total_cmp);
    let count = with_halves.len() as f64;
    let t = t_quantile(2.0 * tail, effective(&with_halves) - 1.0);
    let tail = normal_cdf(-t * (count / (count - 1.0)).sqrt());
    let (low, high) = (quantile(&means, tail), quantile(&means, 1.0 - tail));
    Spread { low, high, standard_error: standard_error_of_all, share_not_better: share_not_above_0(&means) }
}

/// The mean of as many groups drawn with replacement, and its standard error.
fn draw(groups: &[Group], rng: &mut Rng) -> (f64, f64) {
    let (mut sum, mut size, mut sum_sum, mut sum_size, mut size_size) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for _ in groups {
        let group = groups[rng.below(groups.len() as u64) as usize];
        sum += group.sum;
        size += group.size;
        sum_sum += group.sum * group.sum;
        sum_size += group.sum * group.size;
        size_size += group.size * group.size;
    }
    let (mean, count) = (sum / size, groups.len() as f64);
    let squares = (sum_sum - 2.0 * mean * sum_size + mean * mean * size_size).max(0.0);
    (mean, (squares * count / (count - 1.0)).sqrt() / size)
}

fn share_not_above_0(means: &[f64]) -> f64 {
    means.iter().filter(|&&mean| mean <= 1e-12).count() as f64 / means.len() as f64
}

/// Between the two nearest of sorted values (Hyndman and Fan, 1996, type 7).
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let at = p.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    // Equal infinities have no difference.
    if below == above { below } else { below + (at - at.floor()) * (above - below) }
}

/// The smallest true difference that so many items show in `POWER` of all evaluations: (t of the confidence + t of the power) standard errors
/// (Bloom, "Minimum detectable effects", 1995). For right and wrong at least what is left where every item that differs is won, d = c sqrt(d (1 - d) / n), which
/// says something where no item differs, too.
fn smallest_effect(scored: &[Scored], groups: &[Group], measure: Primary, confidence: f64) -> Option<f64> {
    if groups.len() < 2 {
        return None;
    }
    let degrees = effective(groups) - 1.0;
    let c = t_quantile(1.0 - confidence, degrees) + t_quantile(2.0 * (1.0 - POWER), degrees);
    let clustered = standard_error(groups);
    if measure == Primary::Loss {
        return (clustered > 0.0).then_some(c * clustered);
    }
    let singles: Vec<Group> = scored.iter().map(|s| Group { sum: s.candidate - s.champion, size: s.weight }).collect();
    let single = standard_error(&singles);
    let independent = if clustered > 0.0 && single > 0.0 {
        // Never more than there are items.
        scored.len() as f64 * (single / clustered).powi(2).min(1.0)
    } else {
        effective(groups)
    };
    let all_won = c * c / (independent + c * c);
    Some((c * clustered).max(all_won).min(1.0))
}

#[cfg(test)]
#[path = "statistics_tests.rs"]
mod tests;
