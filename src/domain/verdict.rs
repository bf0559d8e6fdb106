//! What an evaluation finds: each side's result on each item, how sure the difference is, and the verdict.

mod display;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a model answered to an item, and whether that was right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    pub text: String,
    /// The text is the expected one.
    pub exact: bool,
    /// What the user's verifier says of the text; `None` where the item has no verifier.
    #[serde(default)]
    pub verified: Option<bool>,
    /// What a judge model says of it beside the other side's; `None` where none was asked.
    #[serde(default)]
    pub judged: Option<Preference>,
}

/// What a judge model says of an answer, asked twice, each answer first once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Preference {
    /// The better one, both times.
    Better,
    /// The other one, both times.
    Worse,
    /// As good as the other, or the same text.
    Same,
    /// The order of the answers changed what it said.
    Unsure,
}

impl Preference {
    /// The same, as the other side's answer sees it.
    pub fn turned(self) -> Self {
        match self {
            Self::Better => Self::Worse,
            Self::Worse => Self::Better,
            even => even,
        }
    }
}

/// What one side did with one item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ItemResult {
    /// The item's digest: the same item has the same one in every evaluation.
    pub item: String,
    /// The task group. Items of one group may go well or badly together, so that only groups count as independent.
    pub group: String,
    /// In nats, over the trained tokens of the expected answer.
    pub loss_sum: f64,
    /// Tokens that `loss_sum` is over; 0 where no loss was measured.
    pub trained_tokens: usize,
    /// `None` where nothing was generated.
    #[serde(default)]
    pub answer: Option<Answer>,
}

/// Both sides on one item.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paired {
    candidate: ItemResult,
    champion: ItemResult,
}

impl Paired {
    pub fn candidate(&self) -> &ItemResult {
        &self.candidate
    }

    pub fn champion(&self) -> &ItemResult {
        &self.champion
    }

    pub fn item(&self) -> &str {
        &self.candidate.item
    }

    pub fn group(&self) -> &str {
        &self.candidate.group
    }
}

/// Candidate and champion over the same items, each item once, in the order of their digests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pairs: Vec<Paired>,
}

/// Why two lists of results are no comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unpaired {
    /// One side has the item twice.
    Twice { side: &'static str, item: String },
    /// One side has no result for it.
    Missing { side: &'static str, item: String },
    /// The sides name different groups.
    Groups { item: String, candidate: String, champion: String },
}

impl fmt::Display for Unpaired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Twice { side, item } => write!(f, "the {side} has two results for item {item}"),
            Self::Missing { side, item } => write!(f, "the {side} has no result for item {item}"),
            Self::Groups { item, candidate, champion } => {
                write!(f, "item {item} is of group {candidate:?} for the candidate and {champion:?} for the champion")
            }
        }
    }
}

impl Comparison {
    /// Pairs the results by item. Every item must be there once on each side, in one group.
    pub fn pair(candidate: Vec<ItemResult>, champion: Vec<ItemResult>) -> Result<Self, Unpaired> {
        let mut candidates = by_item("candidate", candidate)?;
        let mut pairs = Vec::with_capacity(candidates.len());
        for (item, champion) in by_item("champion", champion)? {
            let Some(candidate) = candidates.remove(&item) else {
                return Err(Unpaired::Missing { side: "candidate", item });
            };
            if candidate.group != champion.group {
                return Err(Unpaired::Groups { item, candidate: candidate.group, champion: champion.group });
            }
            pairs.push(Paired { candidate, champion });
        }
        match candidates.pop_first() {
            Some((item, _)) => Err(Unpaired::Missing { side: "champion", item }),
            None => Ok(Self { pairs }),
        }
    }

    pub fn pairs(&self) -> &[Paired] {
        &self.pairs
    }
}

fn by_item(side: &'static str, results: Vec<ItemResult>) -> Result<BTreeMap<String, ItemResult>, Unpaired> {
    let mut sorted = BTreeMap::new();
    for result in results {
        if let Some(twice) = sorted.insert(result.item.clone(), result) {
            return Err(Unpaired::Twice { side, item: twice.item });
        }
    }
    Ok(sorted)
}

/// What decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Primary {
    /// Right is what the user's verifier accepts; an item without a verifier is right by its text.
    Verified,
    /// An answer counts where a judge model calls it the better one of the two, in both orders.
    Judged,
    /// Right is the expected text.
    Exact,
    /// The mean loss over trained tokens. Only where nothing was generated: a lower loss is no better answer.
    Loss,
}

impl Primary {
    /// The strongest measure that the results have.
    pub fn of(comparison: &Comparison) -> Self {
        let answers = || comparison.pairs.iter().flat_map(|pair| [&pair.candidate.answer, &pair.champion.answer]).flatten();
        if answers().any(|answer| answer.verified.is_some()) {
            Self::Verified
        } else if answers().any(|answer| answer.judged.is_some()) {
            Self::Judged
        } else if answers().next().is_some() {
            Self::Exact
        } else {
            Self::Loss
        }
    }

    /// A difference with its unit: `+21.0 points`, `-0.120 nats a token`. More is better in both.
    pub fn with_unit(self, difference: f64) -> String {
        format!("{} {}", self.signed(difference), self.unit())
    }

    /// The unit of a difference as it is shown.
    pub fn unit(self) -> &'static str {
        if self == Self::Loss { "nats a token" } else { "points" }
    }

    /// A difference with its sign, without its unit: `+21.0` is a share of .21 more, `+0.120` a loss that is .12 lower.
    pub fn signed(self, difference: f64) -> String {
        let text = if self == Self::Loss { format!("{difference:+.3}") } else { format!("{:+.1}", 100.0 * difference) };
        // -0.04 points are no fall.
        if text.trim_start_matches(['-', '+']).trim_matches(['0', '.']).is_empty() { text.replace(['-', '+'], "") } else { text }
    }
}

/// Where the true difference lies, at `confidence`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interval {
    pub low: f64,
    pub high: f64,
    /// The share of such intervals that hold the truth, 0 to 1.
    pub confidence: f64,
}

/// A paired difference, candidate less champion, turned so that more is better: a share of items for correctness (-1 to 1), nats
/// a trained token for losses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    pub measure: Primary,
    /// The candidate's own value: share of items that are right, or mean loss.
    pub candidate: f64,
    /// The champion's.
    pub champion: f64,
    /// The difference that was measured.
    pub point: f64,
    /// `None`: too few groups for any.
    pub interval: Option<Interval>,
    /// Clustered by group; in the unit of `point`. `None`: one group.
    pub standard_error: Option<f64>,
    /// The share of bootstrap means that are not above 0. Near 0: better; near 1: worse. `None`: one group.
    pub share_not_better: Option<f64>,
    /// Of the groups' differences: negative where a few lose far more than the others gain. `None`: one group, or no spread.
    pub skewness: Option<f64>,
    /// The smallest true difference that so many items and groups would show in 8 of 10 evaluations; `None` where it cannot be told.
    pub smallest_effect: Option<f64>,
    pub items: usize,
    /// Items on which the sides differ.
    pub items_that_differ: usize,
    pub groups: usize,
    /// Groups whose sums differ between the sides.
    pub groups_that_differ: usize,
    /// As many groups of equal size say as much: (sum of sizes)^2 / sum of squared sizes (Kish, 1965).
    pub effective_groups: f64,
}

/// What a candidate must not lose, with what was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "guard", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Guard {
    /// Work that was not trained for: general ability.
    Suite { name: String, estimate: Estimate, tolerance: f64, limit: f64 },
    /// Served tokens a second; the candidate needs `least` of the champion's (a share).
    Speed { candidate: f64, champion: f64, least: f64 },
    /// Bytes that the served model holds; the candidate may have `most` times the champion's.
    Memory { candidate: u64, champion: u64, most: f64 },
    /// Answers that are empty or repeat themselves without end, and are not right. The estimate counts those that are not such.
    Collapse { estimate: Estimate, limit: f64 },
}

/// How a guard stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Standing {
    Held,
    /// What was measured is beyond the limit, but chance alone may do it.
    InDoubt,
    Fell,
}

/// A guard, and how it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Guarded {
    pub guard: Guard,
    pub standing: Standing,
}

/// What becomes of the candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", content = "reasons", rename_all = "camelCase")]
pub enum Verdict {
    /// It is better, and no guard fell.
    Promote,
    /// It is worse, or a guard fell.
    Reject(Vec<Reason>),
    /// Neither is shown: the champion stays.
    Inconclusive(Vec<Reason>),
}

impl Verdict {
    /// `promote`, `reject` or `inconclusive`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::Reject(_) => "reject",
            Self::Inconclusive(_) => "inconclusive",
        }
    }

    /// Empty for a promotion.
    pub fn reasons(&self) -> &[Reason] {
        match self {
            Self::Promote => &[],
            Self::Reject(reasons) | Self::Inconclusive(reasons) => reasons,
        }
    }
}

/// Why a candidate is not promoted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Reason {
    /// The whole interval is below 0.
    Worse {
        measure: Primary,
        interval: Interval,
    },
    /// A guard fell, or is in doubt.
    Guard(Guarded),
    /// No item has another result.
    NothingDiffers {
        measure: Primary,
        items: usize,
    },
    /// The interval spans 0.
    SpansZero {
        measure: Primary,
        interval: Interval,
        smallest_effect: Option<f64>,
    },
    TooFewItems {
        items: usize,
        min_items: usize,
    },
    /// Items of one group are not independent; this many groups say too little, however many items they have.
    TooFewGroups {
        effective_groups: f64,
        min_groups: usize,
    },
    /// So few groups differ that chance alone gives any split of them (sign test).
    TooFewDiffer {
        groups_that_differ: usize,
        needed: usize,
    },
    /// The judge prefers it, and it gives the expected answer more rarely: a judge model is the weaker witness.
    TextSaysWorse {
        interval: Interval,
    },
    /// The interval lies on one side of 0 but cannot be trusted there: a few groups differ far more than the others, on the other side.
    Skewed {
        skewness: f64,
        groups: usize,
    },
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
