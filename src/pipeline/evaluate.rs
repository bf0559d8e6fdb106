//! Candidate against champion on the same frozen items, in process: run both, let the verifier look, judge, record.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde_json::json;

use super::Reading;
use crate::base::Base;
use crate::domain::{Comparison, ItemResult, Primary};
use crate::error::{Error, Result};
use crate::evaluate::items::Items;
use crate::evaluate::report::{self, Report, Shown};
use crate::evaluate::verdict::{Evidence, Judgement, Rules, Served, Suite, judge};
use crate::evaluate::verifier::{Outcome, Verifier, VerifierItem};
use crate::model::{Adapter, adapter_files};
use crate::store::{NewEvaluation, Store};
use crate::text::render::Renderer;
use crate::text::template::Template;

/// One side of an evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// The base as it is.
    Base,
    /// An adapter on it.
    Adapter(PathBuf),
}

/// A side that is open: its name, its digest, its adapter.
struct Player {
    name: String,
    digest: String,
    adapter: Option<Adapter>,
}

impl Side {
    fn open(&self, base: &Base) -> Result<Player> {
        match self {
            Self::Base => Ok(Player { name: "base".to_owned(), digest: base.digest()?, adapter: None }),
            Self::Adapter(path) => {
                let adapter = adapter_files::load(path, &base.decoder.config)?;
                let whole = std::path::absolute(path).map_err(Error::io("find", path))?;
                let digest = super::adapter_digest(&adapter);
                Ok(Player { name: whole.to_string_lossy().into_owned(), digest, adapter: Some(adapter) })
            }
        }
    }
}

/// What to judge, on what.
#[derive(Clone, Debug)]
pub struct EvaluateRequest {
    pub candidate: Side,
    pub champion: Side,
    pub role: String,
    /// The held-out work.
    pub data: PathBuf,
    /// Files of work that must not get worse.
    pub guards: Vec<PathBuf>,
    pub reading: Reading,
    /// The row's field that names its group of tasks.
    pub group_by: Option<String>,
    /// Tokens of an answer at most; 0: only losses are compared.
    pub max_tokens: usize,
    pub verifier: Option<Verifier>,
    pub rules: Rules,
    /// The folder that holds `.agent`.
    pub root: PathBuf,
    /// Where the report goes; `None`: `.agent/reports`.
    pub report: Option<PathBuf>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// In the store.
    pub id: i64,
    pub judgement: Judgement,
    pub report: PathBuf,
    pub seconds: f64,
    /// What both sides made of the work.
    pub work: Comparison,
    /// What was asked and expected, by the item's digest.
    pub shown: BTreeMap<String, Shown>,
}

/// What sides made of items, kept over several evaluations with one base, one template and one reading: each side answers the same
/// items once.
#[derive(Default)]
pub struct Answered(HashMap<(String, Vec<String>, usize), Vec<ItemResult>>);

/// `evaluate_again` with nothing known before.
pub fn evaluate(
    base: &Base,
    template: &Template,
    request: &EvaluateRequest,
    stop: &AtomicBool,
    note: &mut dyn FnMut(&str),
    progress: &mut dyn FnMut(&str),
) -> Result<Evaluated> {
    evaluate_again(base, template, request, &mut Answered::default(), stop, note, progress)
}

/// Judges the candidate, records everything and writes the report. `note` hears what a user should know, `progress` what is being
/// done.
pub fn evaluate_again(
    base: &Base,
    template: &Template,
    request: &EvaluateRequest,
    answered: &mut Answered,
    stop: &AtomicBool,
    note: &mut dyn FnMut(&str),
    progress: &mut dyn FnMut(&str),
) -> Result<Evaluated> {
    let clock = Instant::now();
    if let Some(verifier) = &request.verifier {
        // Before minutes of generation, not after.
        verifier.probe()?;
    }
    let mut store = Store::open(&request.root)?;
    let (candidate, champion) = (request.candidate.open(base)?, request.champion.open(base)?);
    let renderer = Renderer { tokenizer: &base.tokenizer, template, system: request.reading.system.clone() };
    let max_length = request.reading.max_length.unwrap_or_else(|| base.default_max_length());
    let load = |path: &Path| Items::load(&renderer, path, request.group_by.as_deref(), max_length);
    let work = load(&request.data)?;
    let suites = request.guards.iter().map(|path| Ok((suite_name(path), load(path)?))).collect::<Result<Vec<_>>>()?;
    for items in std::iter::once(&work).chain(suites.iter().map(|(_, items)| items)) {
        items.notes(max_length).iter().for_each(|n| note(n));
    }

    let mut compare = |items: &Items, verifier: Option<&Verifier>| -> Result<Comparison> {
        let mut unjudged = Unjudged::new();
        let mut run = |who: &str, player: &Player| -> Result<Vec<ItemResult>> {
            let all = items.items.len();
            let ids = items.items.iter().map(|item| item.id.clone()).collect();
            let known = (player.digest.clone(), ids, request.max_tokens);
            let mut results = match answered.0.get(&known) {
                Some(results) => results.clone(),
                None => {
                    let results = items.run(base, player.adapter.as_ref(), request.max_tokens, stop, &mut |done| {
                        progress(&format!("the {who} answers: {done} of {all}"));
                    })?;
                    answered.0.entry(known).or_insert(results).clone()
                }
            };
            if let Some(verifier) = verifier.filter(|_| request.max_tokens > 0) {
                progress(&format!("the verifier looks at {all} answers of the {who}"));
                unjudged.append(&mut verify(verifier, items, &mut results, stop)?);
            }
            Ok(results)
        };
        let (mut candidate, mut champion) = (run("candidate", &candidate)?, run("champion", &champion)?);
        if let Some((row, why)) = unjudged.values().min() {
            // What says nothing of one side's answer says nothing of the pair.
            for side in [&mut candidate, &mut champion] {
                side.retain(|result| !unjudged.contains_key(&result.item));
            }
            let told = format!("the verifier cannot judge row {row}: {why}");
            if candidate.is_empty() {
                return Err(Error::data(
                    told + ", and no other row either",
                    "run it by hand on an answer of yours (docs/verifier.md says in which folder it runs)",
                ));
            }
            note(&format!("{} of {} items were left out: {told}", unjudged.len(), items.items.len()));
        }
        Comparison::pair(candidate, champion).map_err(|unpaired| Error::data(unpaired.to_string(), "report this"))
    };
    let comparison = compare(&work, request.verifier.as_ref())?;
    let suites = suites
        .iter()
        .map(|(name, items)| Ok(Suite { name: name.clone(), comparison: compare(items, None)? }))
        .collect::<Result<Vec<_>>>()?;

    let evidence = Evidence { work: &comparison, suites: &suites, candidate: Served::default(), champion: Served::default() };
    let judgement = judge(&evidence, Primary::of(&comparison), &request.rules)?;
    let comparisons: Vec<(&str, &Comparison)> =
        std::iter::once(("", &comparison)).chain(suites.iter().map(|s| (s.name.as_str(), &s.comparison))).collect();
    let seconds = clock.elapsed().as_secs_f64();
    let as_json =
        serde_json::to_value(&judgement).map_err(|e| Error::data(format!("the verdict is no JSON: {e}"), "report this"))?;
    let id = store.record_evaluation(&NewEvaluation {
        role: &request.role,
        base_name: &base.name,
        base_digest: &base.digest()?,
        candidate: &candidate.name,
        candidate_digest: &candidate.digest,
        champion: &champion.name,
        champion_digest: &champion.digest,
        data: &request.data.to_string_lossy(),
        items_digest: &work.digest,
        verdict: &judgement.verdict,
        judgement: &as_json,
        settings: &json!({
            "rules": request.rules, "maxTokens": request.max_tokens, "maxLength": max_length, "groupBy": request.group_by,
            "verifier": request.verifier.as_ref().map(|v| &v.command), "template": template.name, "system": request.reading.system,
        }),
        seconds,
        comparisons: &comparisons,
    })?;
    let report = request.report.clone().unwrap_or_else(|| request.root.join(format!(".agent/reports/evaluation-{id}.html")));
    if let Some(folder) = report.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let shown: BTreeMap<String, Shown> = work
        .items
        .iter()
        .map(|item| (item.id.clone(), Shown { request: item.asked.clone(), expected: item.expected.clone() }))
        .collect();
    let page =
        Report { candidate: &candidate.name, champion: &champion.name, judgement: &judgement, work: &comparison, shown: &shown };
    report::write(&report, &page)?;
    Ok(Evaluated { id, judgement, report, seconds, work: comparison, shown })
}

/// The file's name without its ending.
fn suite_name(path: &Path) -> String {
    path.file_stem().map_or_else(|| "suite".to_owned(), |stem| stem.to_string_lossy().into_owned())
}

/// Items that a verifier could not judge: their row, and why.
type Unjudged = BTreeMap<String, (usize, String)>;

/// Asks the verifier about every answer. Where it does not work, that says nothing of the answer.
fn verify(verifier: &Verifier, items: &Items, results: &mut [ItemResult], stop: &AtomicBool) -> Result<Unjudged> {
    let asked: Vec<VerifierItem> = items
        .items
        .iter()
        .zip(results.iter())
        .map(|(item, result)| VerifierItem {
            answer: result.answer.as_ref().map(|answer| answer.text.clone()).unwrap_or_default(),
            row: item.source.clone(),
            expected: Some(item.expected.clone()),
        })
        .collect();
    let outcomes = verifier.check_all(&asked, 0, &|_| (), stop)?;
    let mut unjudged = Unjudged::new();
    for ((item, result), outcome) in items.items.iter().zip(results).zip(&outcomes) {
        match (outcome, &mut result.answer) {
            (Outcome::Broken { why, output }, _) => {
                let said = output.trim();
                let said = if said.is_empty() { String::new() } else { format!("; it said: {said}") };
                unjudged.insert(item.id.clone(), (item.row, format!("{why}{said}")));
            }
            (outcome, Some(answer)) => answer.verified = Some(outcome.passed()),
            (_, None) => (),
        }
    }
    Ok(unjudged)
}
