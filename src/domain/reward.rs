//! The reward of a run: how well it went, as one number from 0 to 1.

use serde::Serialize;

use super::RunResult;

/// How much each part counts, and how many errors count half.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    pub compile: f64,
    pub tests: f64,
    pub errors: f64,
    pub human: f64,
    /// The part for errors is 1 - e / (e + this).
    pub half_errors: f64,
}

/// A reward, and how much of it was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Reward {
    /// 0 to 1; `None` where nothing was observed.
    pub reward: Option<f64>,
    /// The share of all weights whose part was observed, 0 to 1.
    pub observed_weight: f64,
}

impl Weights {
    /// Names the formula and its numbers: rewards of another version are not comparable.
    pub fn version(&self) -> String {
        let Self { compile, tests, errors, human, half_errors } = self;
        format!("1:{compile}/{tests}/{errors}/{human}/{half_errors}")
    }

    /// The weighted mean of what was observed. `vote` is the mean of the users' last votes; the accept flag stands above it.
    pub fn reward(&self, result: &RunResult, vote: Option<f64>) -> Reward {
        let flag = |pass: bool| f64::from(u8::from(pass));
        let tests = result.tests_passed.zip(result.tests_total).filter(|(_, total)| *total > 0);
        let parts = [
            (self.compile, result.compile_pass.map(flag)),
            (self.tests, tests.map(|(passed, total)| (passed as f64 / total as f64).min(1.0))),
            (self.errors, errors(result).map(|e| 1.0 - e / (e + self.half_errors))),
            (self.human, result.human_accept.map(flag).or(vote)),
        ];
        let all: f64 = parts.iter().map(|(weight, _)| weight).sum();
        let seen = || parts.iter().filter_map(|(weight, part)| Some((weight, (*part)?)));
        let observed: f64 = seen().map(|(weight, _)| weight).sum();
        let sum: f64 = seen().map(|(weight, part)| weight * part).sum();
        Reward { reward: (observed > 0.0).then(|| (sum / observed).clamp(0.0, 1.0)), observed_weight: observed / all }
    }
}

/// Errors of all kinds; `None` where nobody looked for any.
fn errors(result: &RunResult) -> Option<f64> {
    let kinds = [result.lint_errors, result.type_errors, result.schema_errors, result.boundary_errors];
    let seen: Vec<f64> = kinds.into_iter().flatten().map(|count| count as f64).collect();
    (!seen.is_empty()).then(|| seen.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Weights = Weights { compile: 0.25, tests: 0.25, errors: 0.25, human: 0.25, half_errors: 5.0 };

    fn result(text: &str) -> RunResult {
        serde_json::from_str(text).unwrap()
    }

    /// What was seen, the vote, the reward, the weight observed. Worked out by hand.
    #[test]
    fn the_golden_table() {
        let table: [(&str, Option<f64>, Option<f64>, f64); 20] = [
            ("{}", None, None, 0.0),
            (r#"{"compile_pass": true}"#, None, Some(1.0), 0.25),
            (r#"{"compile_pass": false}"#, None, Some(0.0), 0.25),
            (r#"{"tests_passed": 3, "tests_total": 4}"#, None, Some(0.75), 0.25),
            (r#"{"tests_passed": 0, "tests_total": 0}"#, None, None, 0.0),
            (r#"{"tests_passed": 3}"#, None, None, 0.0),
            (r#"{"lint_errors": 0}"#, None, Some(1.0), 0.25),
            (r#"{"lint_errors": 5}"#, None, Some(0.5), 0.25),
            (r#"{"lint_errors": 2, "type_errors": 3}"#, None, Some(0.5), 0.25),
            (r#"{"lint_errors": 1, "type_errors": 1, "schema_errors": 2, "boundary_errors": 1}"#, None, Some(0.5), 0.25),
            (r#"{"lint_errors": 15}"#, None, Some(0.25), 0.25),
            (r#"{"human_accept": true}"#, None, Some(1.0), 0.25),
            ("{}", Some(0.5), Some(0.5), 0.25),
            (r#"{"human_accept": false}"#, Some(1.0), Some(0.0), 0.25),
            (r#"{"compile_pass": true, "tests_passed": 1, "tests_total": 2}"#, None, Some(0.75), 0.5),
            (r#"{"compile_pass": true, "lint_errors": 5}"#, None, Some(0.75), 0.5),
            (
                r#"{"compile_pass": true, "tests_passed": 1, "tests_total": 1, "lint_errors": 0, "human_accept": true}"#,
                None,
                Some(1.0),
                1.0,
            ),
            (
                r#"{"compile_pass": true, "tests_passed": 1, "tests_total": 2, "lint_errors": 5, "human_accept": false}"#,
                None,
                Some(0.5),
                1.0,
            ),
            (r#"{"compile_pass": true, "tests_passed": 1, "tests_total": 2, "lint_errors": 5}"#, Some(0.8), Some(0.7), 1.0),
            (r#"{"coverage_pct": 12.5, "convention_score": 0.5, "iterations": 9}"#, None, None, 0.0),
        ];
        for (seen, vote, reward, observed) in table {
            let found = USUAL.reward(&result(seen), vote);
            assert_eq!(found.reward.map(|r| (r * 1e9).round() / 1e9), reward, "{seen} {vote:?}");
            assert!((found.observed_weight - observed).abs() < 1e-12, "{seen} {vote:?}: {}", found.observed_weight);
        }
    }

    #[test]
    fn weights_count_as_they_are_set() {
        let weights = Weights { compile: 3.0, tests: 1.0, errors: 0.0, human: 0.0, half_errors: 5.0 };
        let found =
            weights.reward(&result(r#"{"compile_pass": true, "tests_passed": 0, "tests_total": 2, "lint_errors": 9}"#), None);
        assert_eq!(found, Reward { reward: Some(0.75), observed_weight: 1.0 });
        // A part that counts nothing is no observation.
        let found = weights.reward(&result(r#"{"lint_errors": 9}"#), Some(1.0));
        assert_eq!(found, Reward { reward: None, observed_weight: 0.0 });
        let half = Weights { half_errors: 1.0, ..USUAL };
        assert_eq!(half.reward(&result(r#"{"lint_errors": 1}"#), None).reward, Some(0.5));
        assert_ne!(half.version(), USUAL.version());
        assert_eq!(USUAL.version(), "1:0.25/0.25/0.25/0.25/5");
    }
}
