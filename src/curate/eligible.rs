//! Which runs may be trained on, and which of two that are equal is the better one.

use std::cmp::Ordering;
use std::fmt;

use super::{LeftOut, Settings};
use crate::domain::{Candidate, Evidence};

/// Below this the users' votes say no.
pub(super) const DISLIKED: f64 = 0.5;

/// Why a run that may be trained on is not good enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Why {
    /// Nothing of its reward was observed, and nobody voted.
    Unobserved,
    /// Less of the reward's weights was observed than is asked for.
    LittleObserved { observed: f64, asked: f64 },
    /// The reward is too low.
    LowReward { reward: f64, asked: f64 },
    /// Its users' votes say no.
    Disliked { vote: f64 },
    /// It has no answer to learn.
    NoAnswer,
}

impl fmt::Display for Why {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Unobserved => write!(out, "nothing says how well it went"),
            Self::LittleObserved { observed, asked } => {
                write!(out, "{:.0}% of its reward was observed, less than {:.0}%", observed * 100.0, asked * 100.0)
            }
            Self::LowReward { reward, asked } => write!(out, "its reward is {reward:.2}, less than {asked:.2}"),
            Self::Disliked { vote } => write!(out, "its users' votes are {vote:.2} on the mean"),
            Self::NoAnswer => write!(out, "its answer is empty"),
        }
    }
}

/// Whether a run may be trained on, from its numbers. In this order: terms that forbid training are the law, whoever likes it; then
/// what a person said who reviewed it; then its users' votes; then where it comes from and what was observed.
pub fn eligible(run: &Candidate, settings: &Settings) -> Result<(), LeftOut> {
    let asked = settings.min_reward;
    let not = |why| Err(LeftOut::NotEligible(why));
    if !run.may_train {
        return Err(LeftOut::TermsForbid);
    }
    match (run.review, run.vote) {
        (Some(true), _) => return Ok(()),
        (Some(false), _) => return Err(LeftOut::Refused),
        (None, Some(vote)) if vote < DISLIKED => return not(Why::Disliked { vote }),
        (None, Some(vote)) if vote >= asked => return Ok(()),
        _ if run.demonstration => return Ok(()),
        _ if run.evidence == Evidence::SelfReported => return Err(LeftOut::SelfReported),
        _ => {}
    }
    let Some(reward) = run.reward else { return not(Why::Unobserved) };
    // What is no number is not enough.
    if reward.is_nan() || reward < asked {
        return not(Why::LowReward { reward, asked });
    }
    if run.observed_weight.is_nan() || run.observed_weight < settings.min_observed {
        return not(Why::LittleObserved { observed: run.observed_weight, asked: settings.min_observed });
    }
    Ok(())
}

/// Who says that an eligible run is good; the stronger witness stands first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Witness {
    /// A person who looked at this very pair.
    Reviewed,
    /// Compilers, linters and tests.
    Executed,
    /// A person who wrote or edited it, or a source that is learnt from.
    Demonstrated,
    /// Its users' votes.
    Liked,
    Judged,
}

fn witness(run: &Candidate, settings: &Settings) -> Witness {
    let rewarded = run.reward.is_some_and(|reward| reward >= settings.min_reward) && run.observed_weight >= settings.min_observed;
    match () {
        () if run.review == Some(true) => Witness::Reviewed,
        () if rewarded && run.evidence == Evidence::Executed => Witness::Executed,
        () if run.demonstration => Witness::Demonstrated,
        () if run.vote.is_some_and(|vote| vote >= settings.min_reward) => Witness::Liked,
        () => Witness::Judged,
    }
}

/// The better one of two eligible runs first: by witness, reward (else vote), then the newer one. Total, so that the same runs have
/// one order.
pub(super) fn better_first(a: &Candidate, b: &Candidate, settings: &Settings) -> Ordering {
    let worth = |run: &Candidate| run.reward.or(run.vote).unwrap_or(0.0);
    witness(a, settings).cmp(&witness(b, settings)).then_with(|| worth(b).total_cmp(&worth(a))).then_with(|| newer_first(a, b))
}

pub(super) fn newer_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.at_ms.cmp(&a.at_ms).then_with(|| b.run.cmp(&a.run))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::tests::candidate;

    fn said(run: &Candidate) -> String {
        eligible(run, &Settings::default()).map_or_else(|why| why.to_string(), |()| "eligible".to_owned())
    }

    #[test]
    fn a_run_is_eligible_by_what_was_observed_or_what_people_say() {
        let run = candidate(1, "g");
        let told = |change: &dyn Fn(&mut Candidate)| {
            let mut run = run.clone();
            change(&mut run);
            said(&run)
        };
        assert_eq!(told(&|_| ()), "eligible");
        assert_eq!(told(&|run| run.reward = Some(0.7)), "eligible");
        assert_eq!(told(&|run| run.reward = Some(0.699)), "its reward is 0.70, less than 0.70");
        assert_eq!(told(&|run| run.reward = Some(f64::NAN)), "its reward is NaN, less than 0.70");
        assert_eq!(told(&|run| run.reward = None), "nothing says how well it went");
        assert_eq!(told(&|run| run.observed_weight = 0.5), "eligible");
        assert_eq!(told(&|run| run.observed_weight = 0.25), "25% of its reward was observed, less than 50%");
        assert_eq!(told(&|run| run.evidence = Evidence::Judge), "eligible");
        assert_eq!(told(&|run| run.evidence = Evidence::SelfReported), "only the model that wrote it says that it is good");
        // Votes outweigh the reward, both ways; one in between says nothing.
        assert_eq!(told(&|run| (run.reward, run.vote) = (None, Some(0.7))), "eligible");
        assert_eq!(told(&|run| run.vote = Some(0.49)), "its users' votes are 0.49 on the mean");
        assert_eq!(told(&|run| (run.reward, run.vote) = (None, Some(0.5))), "nothing says how well it went");
        assert_eq!(told(&|run| (run.evidence, run.vote) = (Evidence::SelfReported, Some(1.0))), "eligible");
        // A demonstration needs no reward, but nobody may dislike it.
        assert_eq!(told(&|run| (run.reward, run.observed_weight, run.demonstration) = (None, 0.0, true)), "eligible");
        assert_eq!(told(&|run| (run.demonstration, run.vote) = (true, Some(0.0))), "its users' votes are 0.00 on the mean");
        // A reviewer outweighs all but the terms.
        assert_eq!(told(&|run| (run.review, run.vote, run.reward) = (Some(true), Some(0.0), Some(0.0))), "eligible");
        assert_eq!(told(&|run| (run.review, run.evidence) = (Some(true), Evidence::SelfReported)), "eligible");
        assert_eq!(told(&|run| (run.review, run.vote) = (Some(false), Some(1.0))), "a person refused it");
        assert_eq!(
            told(&|run| (run.may_train, run.review, run.vote) = (false, Some(true), Some(1.0))),
            "the terms of its source forbid training"
        );
    }

    #[test]
    fn the_stronger_witness_stands_first_then_the_reward_then_the_newer_run() {
        let settings = Settings::default();
        let run = |number, change: &dyn Fn(&mut Candidate)| {
            let mut run = candidate(number, "g");
            change(&mut run);
            run
        };
        let ranked = [
            run(1, &|run| (run.review, run.reward) = (Some(true), None)),
            run(2, &|run| run.reward = Some(0.9)),
            run(3, &|run| (run.reward, run.at_ms) = (Some(0.8), 9)),
            run(4, &|run| (run.reward, run.at_ms) = (Some(0.8), 8)),
            run(5, &|run| (run.reward, run.demonstration) = (None, true)),
            // Tests that were not run say nothing, whatever the kind of the evidence.
            run(6, &|run| (run.reward, run.observed_weight, run.vote) = (Some(1.0), 0.25, Some(1.0))),
            run(7, &|run| (run.reward, run.evidence) = (Some(1.0), Evidence::Judge)),
        ];
        let mut shuffled: Vec<_> = ranked.iter().rev().cloned().collect();
        shuffled.sort_by(|a, b| better_first(a, b, &settings));
        assert_eq!(shuffled, ranked);
    }
}
