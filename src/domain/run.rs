//! A run: what a model (or a person) was asked, what came of it, and how well it went.

use serde::{Deserialize, Serialize};

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
