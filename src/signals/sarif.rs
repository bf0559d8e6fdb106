//! SARIF 2.1.0 (<https://docs.oasis-open.org/sarif/sarif/v2.1.0/>): ruff, ESLint, clippy-sarif, CodeQL, semgrep and others.
//!
//! A result counts where it is of kind "fail" (3.27.9), of level "error" (3.27.10), not suppressed (3.27.23), and new or there
//! before but changed (3.27.24). A level that a result does not have is that of its rule's default configuration, else "warning".

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

use serde::Deserialize;

use super::lint::{Class, Errors, class_of};
use super::{Observed, document, rustc};
use crate::error::{Error, Result};

/// Tools whose results are type errors.
const TYPE_CHECKERS: [&str; 8] = ["mypy", "pyright", "basedpyright", "tsc", "typescript", "pyre", "ty", "flow"];

#[derive(Deserialize)]
struct Log {
    version: String,
    runs: Option<Vec<Run>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    tool: Tool,
    results: Option<Vec<Finding>>,
    #[serde(default)]
    invocations: Vec<Invocation>,
}

#[derive(Deserialize)]
struct Tool {
    driver: Component,
    #[serde(default)]
    extensions: Vec<Component>,
}

#[derive(Deserialize)]
struct Component {
    name: String,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    id: String,
    default_configuration: Option<Configuration>,
}

#[derive(Deserialize)]
struct Configuration {
    level: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    rule_id: Option<String>,
    rule_index: Option<i64>,
    rule: Option<RuleReference>,
    level: Option<String>,
    kind: Option<String>,
    baseline_state: Option<String>,
    #[serde(default)]
    suppressions: Option<Vec<Suppression>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleReference {
    id: Option<String>,
    index: Option<i64>,
    tool_component: Option<ComponentReference>,
}

#[derive(Deserialize)]
struct ComponentReference {
    index: Option<i64>,
}

#[derive(Deserialize)]
struct Suppression {
    status: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Invocation {
    #[serde(default)]
    tool_execution_notifications: Vec<Notification>,
    #[serde(default)]
    tool_configuration_notifications: Vec<Notification>,
}

#[derive(Deserialize)]
struct Notification {
    level: Option<String>,
}

pub fn read(reader: impl BufRead, name: &str, from: &str) -> Result<Observed> {
    let log: Log = document::json(reader, "SARIF", name)?;
    if log.version != "2.1.0" {
        let message = format!("is SARIF {}, and 2.1.0 is read", log.version);
        return Err(Error::file(Path::new(name), message, "let the tool write SARIF 2.1.0"));
    }
    let (mut errors, mut left_out, mut notes) = (Errors::default(), BTreeMap::new(), Vec::new());
    for run in log.runs.iter().flatten() {
        match &run.results {
            Some(results) => count(run, results, &mut errors, &mut left_out),
            // 3.14.23: a run without results is one that did not look.
            None => notes.push(format!("{from}: {} has no results: it did not run to its end", run.tool.driver.name)),
        }
        let failed =
            run.invocations.iter().flat_map(|i| i.tool_execution_notifications.iter().chain(&i.tool_configuration_notifications));
        let failed = failed.filter(|n| n.level.as_deref() == Some("error")).count();
        if failed > 0 {
            notes.push(format!("{from}: {} tells of {failed} errors of its own run, not counted", run.tool.driver.name));
        }
    }
    for (why, n) in left_out {
        notes.push(format!("{from}: {n} left out: {why}"));
    }
    Ok(errors.observed(from, notes))
}

fn count(run: &Run, results: &[Finding], errors: &mut Errors, left_out: &mut BTreeMap<&'static str, u64>) {
    let tool = run.tool.driver.name.to_ascii_lowercase();
    let own = if TYPE_CHECKERS.contains(&tool.as_str()) { Class::Type } else { Class::Lint };
    errors.looked_at(own);
    for rule in run.tool.driver.rules.iter().chain(run.tool.extensions.iter().flat_map(|e| &e.rules)) {
        if let class @ (Class::Schema | Class::Boundary) = class_of(&rule.id) {
            errors.looked_at(class);
        }
    }
    for finding in results {
        let rule = run.rule_of(finding);
        let id =
            finding.rule_id.as_deref().or(finding.rule.as_ref().and_then(|r| r.id.as_deref())).or(rule.map(|r| r.id.as_str()));
        if let Some(why) = finding.left_out() {
            *left_out.entry(why).or_default() += 1;
            continue;
        }
        let by_rule = || rule?.default_configuration.as_ref()?.level.as_deref();
        let class = match (id, own) {
            // clippy-sarif hands on what the compiler says; errors of it that are neither types nor lints fail the build.
            (Some(id), Class::Lint) if rustc::is_error_code(id) && rustc::is_type_error(id) => Class::Type,
            (Some(id), Class::Lint) if rustc::is_error_code(id) => {
                *left_out.entry("errors of the compiler that are no type errors").or_default() += 1;
                continue;
            }
            (Some(id), own) => match class_of(id) {
                Class::Lint => own,
                other => other,
            },
            (None, own) => own,
        };
        let place = errors.looked_at(class);
        match finding.level.as_deref().or_else(by_rule).unwrap_or("warning") {
            "error" => *place += 1,
            "warning" => errors.warnings += 1,
            _ => *left_out.entry("notes").or_default() += 1,
        }
    }
}

impl Run {
    /// The rule's description: by its place, else by its id (3.27.7). An id may go deeper than its rule's: `CA1000/1`.
    fn rule_of(&self, finding: &Finding) -> Option<&Rule> {
        let reference = finding.rule.as_ref();
        let component = match reference.and_then(|r| r.tool_component.as_ref()?.index).and_then(|i| usize::try_from(i).ok()) {
            Some(index) => self.tool.extensions.get(index)?,
            None => &self.tool.driver,
        };
        let index = finding.rule_index.or(reference.and_then(|r| r.index)).and_then(|i| usize::try_from(i).ok());
        if let Some(rule) = index.and_then(|i| component.rules.get(i)) {
            return Some(rule);
        }
        let id = finding.rule_id.as_deref().or(reference.and_then(|r| r.id.as_deref()))?;
        let rules = || component.rules.iter().chain(self.tool.extensions.iter().flat_map(|e| &e.rules));
        rules().find(|r| r.id == id).or_else(|| {
            let (begin, _) = id.rsplit_once('/')?;
            rules().find(|r| r.id == begin)
        })
    }
}

impl Finding {
    /// Why it does not count, whatever its level.
    fn left_out(&self) -> Option<&'static str> {
        // 3.27.23: accepted is the default of a suppression; one under review or rejected leaves the result standing.
        let accepted = |s: &Suppression| s.status.as_deref().is_none_or(|status| status == "accepted");
        let suppressions = self.suppressions.as_deref().unwrap_or_default();
        match (self.kind.as_deref(), self.baseline_state.as_deref()) {
            _ if !suppressions.is_empty() && suppressions.iter().all(accepted) => Some("suppressed"),
            (Some(kind), _) if kind != "fail" => Some("not of kind fail"),
            (_, Some("unchanged" | "absent")) => Some("there before (baselineState)"),
            _ => None,
        }
    }
}
