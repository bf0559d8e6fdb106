//! Whether a role has enough for a cycle, and what is missing.

use serde::Serialize;

use crate::config::Config;
use crate::curate::Settings;
use crate::domain::time;
use crate::error::Result;
use crate::machine;
use crate::pipeline::export::RoleSet;
use crate::store::{Eligible, Store};

/// What there is, beside what it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Readiness {
    pub role: String,
    /// Eligible runs since the last export that was trained on (one by hand delays nothing); counted up to `needed_runs`.
    pub new_runs: usize,
    pub needed_runs: usize,
    /// Examples of the set as it would be now.
    pub examples: usize,
    pub needed_examples: usize,
    pub held_out: usize,
    pub needed_held_out: usize,
    /// Of the examples, those that the last training did not have.
    pub new_examples: usize,
    pub needed_new: usize,
    /// Switches that are off.
    pub off: Vec<&'static str>,
    /// Why runs were left out, a sentence each.
    pub left_out: Vec<String>,
}

/// Looks at a role, and changes nothing.
pub fn readiness(store: &Store, config: &Config, role: &str) -> Result<Readiness> {
    let set = RoleSet::of(store, config, role)?;
    let settings = Settings::from(config);
    let eligible = Eligible { min_reward: settings.min_reward, min_observed: settings.min_observed };
    let trained = store.last_training(role)?.map_or(0, |(newest, _)| newest);
    let off = [
        ("enabled", config.enabled),
        ("autoExport", config.auto_export.enabled),
        ("autoTrain", config.auto_train.enabled),
        ("autoDeploy", config.auto_deploy.enabled),
    ];
    Ok(Readiness {
        role: role.to_owned(),
        new_runs: store.count_eligible(role, eligible, trained, config.auto_export.min_runs)?,
        needed_runs: config.auto_export.min_runs,
        examples: set.curated.train.len(),
        needed_examples: config.auto_train.min_examples,
        held_out: set.curated.held_out.len(),
        needed_held_out: config.evaluation.min_items,
        new_examples: set.curated.train.iter().filter(|run| **run > trained).count(),
        needed_new: config.auto_train.min_new,
        off: off.into_iter().filter(|(_, on)| !on).map(|(name, _)| name).collect(),
        left_out: set.curated.notes(),
    })
}

impl Readiness {
    /// What is missing, a sentence each; nothing: a cycle can begin.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for name in self.off.iter().filter(|name| **name == "enabled" || **name == "autoExport") {
            missing.push(format!("{name} is switched off"));
        }
        for (found, needed, what) in [
            (self.new_runs, self.needed_runs, "eligible runs since the last training"),
            (self.examples, self.needed_examples, "examples in the set"),
            (self.new_examples, self.needed_new, "examples that the last training did not have"),
        ] {
            if found < needed {
                missing.push(format!("{found} of {needed} {what}"));
            }
        }
        missing
    }

    /// Why no cycle begins by itself.
    pub fn nothing_to_do(&self) -> Option<String> {
        let missing = self.missing();
        (!missing.is_empty()).then(|| format!("{} has too little for a cycle: {}", self.role, missing.join("; ")))
    }
}

/// Whether a cycle of a role is to begin by itself: the thresholds, counted without reading a text; the window; and no cycle that
/// failed or was cut off within a day, which somebody has to look at first.
pub fn is_due(store: &Store, config: &Config, role: &str) -> Result<bool> {
    let on = config.enabled && config.auto_export.enabled && config.auto_train.enabled;
    if !on || !config.windows.is_open(machine::local_minute()) {
        return Ok(false);
    }
    if let Some(last) = store.cycles(Some(role), 1)?.first()
        && last.outcome.as_deref().is_none_or(|outcome| outcome == "failed")
        && time::parse_ms(&last.begun_at).is_some_and(|begun| time::now_ms() - begun < DAY_MS)
    {
        return Ok(false);
    }
    let settings = Settings::from(config);
    let eligible = Eligible { min_reward: settings.min_reward, min_observed: settings.min_observed };
    let trained = store.last_training(role)?.map_or(0, |(newest, _)| newest);
    let has = |after: i64, needed: usize| Ok(store.count_eligible(role, eligible, after, needed)? >= needed);
    Ok(has(trained, config.auto_export.min_runs.max(config.auto_train.min_new))? && has(0, config.auto_train.min_examples)?)
}

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

#[cfg(test)]
mod tests {
    use retune_kernels::rng::Rng;

    use super::*;
    use crate::curate::eligible;
    use crate::domain::{Evidence, NewRun, RunResult, Source};
    use crate::pipeline::record::{Recorder, Said};

    /// The store counts as curation judges, whatever a run is like.
    #[test]
    fn what_is_counted_is_what_may_be_learnt_from() {
        let root = tempfile::tempdir().unwrap();
        let mut store = Store::open(root.path()).unwrap();
        let recorder = Recorder::new(&Config::default()).unwrap();
        let mut rng = Rng::new(1);
        for n in 0..400 {
            let mut one_in = |n: u64| rng.below(n) == 0;
            let result = RunResult {
                compile_pass: (!one_in(3)).then(|| !one_in(3)),
                human_accept: one_in(8).then(|| one_in(2)),
                lint_errors: one_in(2).then_some(if one_in(2) { 0 } else { 9 }),
                ..RunResult::default()
            };
            let run = NewRun {
                id: Some(format!("r{n}")),
                role: "coder".to_owned(),
                prompt: Some(format!("p{n}")),
                output: (!one_in(9)).then(|| "o".to_owned()),
                result,
                evidence: if one_in(6) { Evidence::SelfReported } else { Evidence::Executed },
                source: one_in(6).then(|| Source { name: "gpt-4o".to_owned(), ..Source::default() }),
                ..NewRun::default()
            };
            let demonstration = one_in(5);
            let recorded = recorder.record(&mut store, &[run], demonstration).unwrap().remove(0);
            if one_in(3) {
                let score = [0.0, 0.4, 0.5, 0.6, 0.7, 1.0][rng.below(6) as usize];
                let said = Said { user: "u".to_owned(), score: Some(score), ..Said::default() };
                recorder.feedback(&mut store, &recorded.id, &said).unwrap();
            }
            if rng.below(5) == 0 {
                store.review(recorded.number, Some(rng.below(2) == 0)).unwrap();
            }
        }
        let settings = Settings::default();
        let limits = Eligible { min_reward: settings.min_reward, min_observed: settings.min_observed };
        for after in [0, 200] {
            let candidates = store.candidates("coder").unwrap();
            let judged = candidates.iter().filter(|run| run.run > after && eligible(run, &settings).is_ok()).count();
            assert!(judged > 40, "{judged}");
            assert_eq!(store.count_eligible("coder", limits, after, 1000).unwrap(), judged);
            assert_eq!(store.count_eligible("coder", limits, after, 7).unwrap(), 7);
        }
    }
}
