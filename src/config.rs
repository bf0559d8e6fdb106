//! `.agent/learning-config.json`: every setting, its default, what it means and what it may be. What a file leaves out has its
//! default; a key that is not known is an error that names the nearest one.

mod check;
mod read;

use serde::{Deserialize, Serialize};

pub use read::{FILE, Loaded};

use crate::domain::Weights;

/// All settings. The doc comments are what a user reads of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Everything that retune does by itself is off when false.
    pub enabled: bool,
    pub reward_weights: RewardWeights,
    pub prompt_bandit: PromptBandit,
    pub model_router: ModelRouter,
    pub auto_export: AutoExport,
    pub auto_train: AutoTrain,
    pub auto_deploy: AutoDeploy,
    pub drift_detection: DriftDetection,
    pub evaluation: Evaluation,
    pub feedback: Feedback,
    pub web: Web,
    pub memory: Memory,
    pub redaction: Redaction,
    pub alerts: Alerts,
    pub windows: Windows,
}

/// How much each part of the reward counts; what a run did not observe is left out and the others count for more.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RewardWeights {
    pub compile: f64,
    pub tests: f64,
    pub errors: f64,
    pub human: f64,
    /// So many errors count half: the part for errors is 1 - e / (e + this).
    #[serde(skip_serializing_if = "is_usual_half")]
    pub half_errors: f64,
}

/// How a prompt variant is chosen for a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct PromptBandit {
    pub policy: Policy,
    /// The share of choices that explore.
    pub epsilon: f64,
    pub variants: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    Thompson,
    EpsilonGreedy,
}

/// How a model is chosen for a task.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelRouter {
    pub epsilon: f64,
    /// US dollars.
    pub max_cost_per_million_tokens: f64,
    pub target_quality: f64,
}

/// When the good runs of a role are exported.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct AutoExport {
    pub enabled: bool,
    /// Eligible runs that are new since the last export.
    pub min_runs: usize,
    pub min_reward: f64,
    pub max_examples: usize,
}

/// When and how a role is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct AutoTrain {
    pub enabled: bool,
    /// Examples that the role's set needs.
    pub min_examples: usize,
    /// Of them, so many that are new since its last training.
    pub min_new: usize,
    pub base_model: String,
    pub lora_rank: usize,
    pub lora_alpha: f64,
    pub epochs: usize,
    pub batch_size: usize,
    pub grad_accum: usize,
    pub learning_rate: f64,
}

/// How what was trained is registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct AutoDeploy {
    pub enabled: bool,
    /// The model of role R is called `<this>-R`.
    pub model_name_prefix: String,
    pub temperature: f64,
    pub top_p: f64,
    pub top_k: u32,
}

/// When a version that serves is held to have become worse.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct DriftDetection {
    pub enabled: bool,
    /// Of the mean reward, absolute.
    pub min_performance_drop: f64,
    pub evaluation_runs: usize,
}

/// What a candidate is judged on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Evaluation {
    /// The share of task groups that are never trained on.
    pub held_out_share: f64,
    pub min_items: usize,
    pub max_items: usize,
    /// How sure a promotion must be.
    pub confidence: f64,
}

/// When feedback says enough.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Feedback {
    pub ready_at: usize,
    pub optimal_at: usize,
    /// Percent.
    pub approval_threshold: f64,
    pub analyse_every_minutes: u64,
}

/// Which documentation may be looked up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Web {
    pub domains: Vec<String>,
    pub cache_days: u64,
}

/// How solutions are remembered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Memory {
    pub embedder: String,
    pub reuse_above: f64,
    pub local_above: f64,
    pub top_k: usize,
}

/// What is taken out of texts before they are stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Redaction {
    /// Regular expressions; what they match becomes `<CUSTOM_1>`.
    pub extra_patterns: Vec<String>,
}

/// Who is told when something goes wrong: a version was rolled back, a cycle failed, approval fell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Alerts {
    /// Gets a POST with JSON.
    pub webhook: Option<String>,
    /// Run by `sh -c`, with the JSON on its standard input: `mail -s "$RETUNE_EVENT" me@example.org`.
    pub command: Option<String>,
}

/// When cycles may run by themselves, in local time; from `22:00` to `06:00` spans midnight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Windows {
    pub start: Option<String>,
    pub end: Option<String>,
}

/// What it takes to have an `e / (e + 5)`.
const HALF_ERRORS: f64 = 5.0;

impl From<RewardWeights> for Weights {
    fn from(weights: RewardWeights) -> Self {
        let RewardWeights { compile, tests, errors, human, half_errors } = weights;
        Self { compile, tests, errors, human, half_errors }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_usual_half(errors: &f64) -> bool {
    *errors == HALF_ERRORS
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            reward_weights: RewardWeights::default(),
            prompt_bandit: PromptBandit::default(),
            model_router: ModelRouter::default(),
            auto_export: AutoExport::default(),
            auto_train: AutoTrain::default(),
            auto_deploy: AutoDeploy::default(),
            drift_detection: DriftDetection::default(),
            evaluation: Evaluation::default(),
            feedback: Feedback::default(),
            web: Web::default(),
            memory: Memory::default(),
            redaction: Redaction::default(),
            alerts: Alerts::default(),
            windows: Windows::default(),
        }
    }
}

impl Default for RewardWeights {
    fn default() -> Self {
        Self { compile: 0.25, tests: 0.25, errors: 0.25, human: 0.25, half_errors: HALF_ERRORS }
    }
}

impl Default for PromptBandit {
    fn default() -> Self {
        let variants = ["default", "detailed", "concise"].map(str::to_owned).to_vec();
        Self { policy: Policy::Thompson, epsilon: 0.1, variants }
    }
}

impl Default for ModelRouter {
    fn default() -> Self {
        Self { epsilon: 0.1, max_cost_per_million_tokens: 2.0, target_quality: 0.7 }
    }
}

impl Default for AutoExport {
    fn default() -> Self {
        Self { enabled: true, min_runs: 100, min_reward: 0.7, max_examples: 1000 }
    }
}

impl Default for AutoTrain {
    fn default() -> Self {
        Self {
            enabled: true,
            min_examples: 500,
            min_new: 100,
            base_model: "qwen2.5-coder:7b".to_owned(),
            lora_rank: 16,
            lora_alpha: 32.0,
            epochs: 3,
            batch_size: 2,
            grad_accum: 4,
            learning_rate: 2e-4,
        }
    }
}

impl Default for AutoDeploy {
    fn default() -> Self {
        Self { enabled: true, model_name_prefix: "my-coder-tuned".to_owned(), temperature: 0.2, top_p: 0.9, top_k: 40 }
    }
}

impl Default for DriftDetection {
    fn default() -> Self {
        Self { enabled: true, min_performance_drop: 0.05, evaluation_runs: 20 }
    }
}

impl Default for Evaluation {
    fn default() -> Self {
        Self { held_out_share: 0.1, min_items: 50, max_items: 500, confidence: 0.95 }
    }
}

impl Default for Feedback {
    fn default() -> Self {
        Self { ready_at: 500, optimal_at: 1000, approval_threshold: 85.0, analyse_every_minutes: 30 }
    }
}

impl Default for Web {
    fn default() -> Self {
        Self { domains: DOMAINS.map(str::to_owned).to_vec(), cache_days: 7 }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self { embedder: "nomic-embed-text".to_owned(), reuse_above: 0.8, local_above: 0.85, top_k: 3 }
    }
}

/// Documentation that is looked up: languages, then what is built with them.
const DOMAINS: [&str; 36] = [
    "doc.rust-lang.org",
    "docs.rs",
    "docs.python.org",
    "developer.mozilla.org",
    "www.typescriptlang.org",
    "nodejs.org",
    "go.dev",
    "pkg.go.dev",
    "docs.oracle.com",
    "kotlinlang.org",
    "learn.microsoft.com",
    "en.cppreference.com",
    "www.php.net",
    "ruby-doc.org",
    "docs.swift.org",
    "react.dev",
    "vuejs.org",
    "svelte.dev",
    "angular.dev",
    "nextjs.org",
    "docs.djangoproject.com",
    "flask.palletsprojects.com",
    "fastapi.tiangolo.com",
    "docs.spring.io",
    "www.postgresql.org",
    "www.sqlite.org",
    "redis.io",
    "docs.docker.com",
    "kubernetes.io",
    "git-scm.com",
    "docs.github.com",
    "docs.pytest.org",
    "eslint.org",
    "numpy.org",
    "pandas.pydata.org",
    "pytorch.org",
];

#[cfg(test)]
mod tests;
