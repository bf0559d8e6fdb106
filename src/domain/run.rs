//! A run: what a model (or a person) was asked, what came of it, and how well it went.

use serde::{Deserialize, Serialize};

use super::Message;

/// How well a run went, as far as it was observed. Nothing is required; what is `None` was not looked at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunResult {
    /// It compiled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compile_pass: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lint_errors: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub type_errors: Option<u64>,
    /// Never more than `tests_total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tests_passed: Option<u64>,
    /// Tests that were to run; skipped ones are not among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tests_total: Option<u64>,
    /// 0 to 100, of lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage_pct: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_errors: Option<u64>,
    /// Imports or calls across a line that the project forbids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boundary_errors: Option<u64>,
    /// A person took the answer, or did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub human_accept: Option<bool>,
    /// 0 to 1: how well it keeps to the project's conventions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convention_score: Option<f64>,
    /// Tries until it was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iterations: Option<u64>,
}

impl RunResult {
    /// Every metric that was observed, by its name; a flag is 0 or 1.
    pub fn metrics(&self) -> Vec<(&'static str, f64)> {
        let flag = |pass: Option<bool>| pass.map(|pass| f64::from(u8::from(pass)));
        let count = |count: Option<u64>| count.map(|count| count as f64);
        let all = [
            ("compile_pass", flag(self.compile_pass)),
            ("lint_errors", count(self.lint_errors)),
            ("type_errors", count(self.type_errors)),
            ("tests_passed", count(self.tests_passed)),
            ("tests_total", count(self.tests_total)),
            ("coverage_pct", self.coverage_pct),
            ("schema_errors", count(self.schema_errors)),
            ("boundary_errors", count(self.boundary_errors)),
            ("human_accept", flag(self.human_accept)),
            ("convention_score", self.convention_score),
            ("iterations", count(self.iterations)),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// The result whose `metrics` these are; other names say nothing.
    pub fn of_metrics<'a>(metrics: impl IntoIterator<Item = (&'a str, f64)>) -> Self {
        let mut result = Self::default();
        for (name, value) in metrics {
            let (flag, count) = (Some(value != 0.0), Some(value as u64));
            match name {
                "compile_pass" => result.compile_pass = flag,
                "lint_errors" => result.lint_errors = count,
                "type_errors" => result.type_errors = count,
                "tests_passed" => result.tests_passed = count,
                "tests_total" => result.tests_total = count,
                "coverage_pct" => result.coverage_pct = Some(value),
                "schema_errors" => result.schema_errors = count,
                "boundary_errors" => result.boundary_errors = count,
                "human_accept" => result.human_accept = flag,
                "convention_score" => result.convention_score = Some(value),
                "iterations" => result.iterations = count,
                _ => (),
            }
        }
        result
    }

    /// What cannot be: the field and why.
    pub fn problem(&self) -> Option<String> {
        if let (Some(passed), Some(total)) = (self.tests_passed, self.tests_total)
            && passed > total
        {
            return Some(format!("tests_passed is {passed}, more than tests_total ({total})"));
        }
        for (name, value, most) in [("coverage_pct", self.coverage_pct, 100.0), ("convention_score", self.convention_score, 1.0)]
        {
            if let Some(value) = value
                && !(0.0..=most).contains(&value)
            {
                return Some(format!("{name} is {value}, expected 0 to {most}"));
            }
        }
        // A count is exact in the store up to 2^53.
        let counts =
            [self.lint_errors, self.type_errors, self.tests_total, self.schema_errors, self.boundary_errors, self.iterations];
        counts.into_iter().flatten().find(|&count| count > 1 << 53).map(|count| format!("{count} is no count"))
    }
}

/// Who says how well it went. A stronger witness stands first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// It was executed: compilers, linters and tests said so.
    #[default]
    Executed,
    /// Another model judged it.
    Judge,
    /// The model that wrote it says so: no evidence, never trained on.
    SelfReported,
}

/// Who wrote an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    #[default]
    Model,
    Person,
    Dataset,
}

/// Which model, person or data set wrote an output, and under which terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub name: String,
    #[serde(default)]
    pub kind: SourceKind,
    /// A licence or whose terms of use: `Apache-2.0`, `OpenAI terms of use`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<String>,
    /// Whether its terms allow to train on it; where nothing is said, `may_train` guesses on the safe side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<bool>,
}

impl Source {
    /// Whether a model may be trained on what it wrote: as `training` says, else not where name or terms are of a service that is
    /// known to forbid training competing models.
    pub fn may_train(&self) -> bool {
        const FORBIDDING: [&str; 9] = ["openai", "gpt-4", "gpt-5", "chatgpt", "anthropic", "claude", "gemini", "o1-", "o3-"];
        let said = format!("{} {}", self.name, self.terms.as_deref().unwrap_or_default()).to_lowercase();
        // gpt-oss is open under Apache-2.0.
        self.training.unwrap_or_else(|| said.contains("gpt-oss") || !FORBIDDING.iter().any(|service| said.contains(service)))
    }
}

/// How hard a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Difficulty {
    Easy,
    Medium,
    Hard,
}

impl Difficulty {
    pub const ALL: [Self; 3] = [Self::Easy, Self::Medium, Self::Hard];

    pub fn name(self) -> &'static str {
        match self {
            Self::Easy => "easy",
            Self::Medium => "medium",
            Self::Hard => "hard",
        }
    }
}

/// What is recorded of a run, as JSON has it. All but the role may be missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NewRun {
    /// The client's own: what is recorded twice under one counts once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// When it was, RFC 3339 [default: now].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// coder, fixer, judge, or any other name.
    pub role: String,
    /// What names the work: runs of one task are one group, which is trained on or held out as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_variant: Option<String>,
    /// What was asked, where it is one text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The text that stood before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// What was asked as a conversation, in place of `prompt` and `system`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Message>>,
    /// Tools that the conversation could call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<serde_json::Value>,
    /// The answer; where the conversation ends with it, it may be left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    pub result: RunResult,
    pub evidence: Evidence,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difficulty: Option<Difficulty>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Of the choice that picked prompt and model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// A run that may become an example, as curation sees it: everything but its texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The run's number in the store.
    pub run: i64,
    /// Digest of the task, or of what was asked.
    pub group: String,
    /// `None`: nothing was observed.
    pub reward: Option<f64>,
    /// 0 to 1: how much of the reward's weights was observed.
    pub observed_weight: f64,
    pub evidence: Evidence,
    /// The mean of the users' last votes, 0 to 1.
    pub vote: Option<f64>,
    /// Written by a named source to be learnt from, or edited by a person: good without a reward.
    pub demonstration: bool,
    /// Its source's terms allow it.
    pub may_train: bool,
    /// What a person said who reviewed it: take it, or leave it out.
    pub review: Option<bool>,
    /// Milliseconds since 1970.
    pub at_ms: i64,
}
