//! Candidate against champion on the same frozen items: let both answer, let the verifier look, judge, record.

mod in_process;
mod served;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

pub use self::in_process::{Answered, InProcess, Side};
pub use self::served::{Answering, AtServer, Said, ServedSides};
use crate::domain::{Comparison, ItemResult, Preference, Primary};
use crate::error::{Error, Result};
use crate::evaluate::items::Items;
use crate::evaluate::judge_model::{JudgeModel, Opinion};
use crate::evaluate::report::{self, Report, Shown};
use crate::evaluate::verdict::{Evidence, Judgement, Rules, Served, Suite, judge};
use crate::evaluate::verifier::{Outcome, Verifier, VerifierItem};
use crate::store::{NewEvaluation, Store};

/// What a side, or the base, is called, and the digest that tells it from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideName {
    pub name: String,
    pub digest: String,
}

/// Candidate and champion, wherever they run.
pub trait Sides {
    /// Candidate, champion.
    fn names(&self) -> [SideName; 2];

    /// What both stand on: the base, or the server.
    fn base(&self) -> Result<SideName>;

    /// The candidate's architecture as GGUF calls it; empty where it cannot be told.
    fn architecture(&self) -> Result<String>;

    /// Whether the model with this manifest is one of the two.
    fn is_one_of(&self, _digest: &str) -> bool {
        false
    }

    /// What else decides the answers, for the record: a JSON object.
    fn settings(&self) -> Value;

    /// The items of a file, as the sides need them.
    fn load(&self, path: &Path, group_by: Option<&str>) -> Result<Items>;

    /// What each side makes of the items. `max_tokens` 0: only losses.
    fn answer(
        &mut self,
        items: &Items,
        max_tokens: usize,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> Result<[Vec<ItemResult>; 2]>;

    /// How they were served, where that was measured.
    fn served(&self) -> [Served; 2] {
        <[Served; 2]>::default()
    }
}

/// On what to judge, and how.
#[derive(Debug)]
pub struct EvaluateRequest {
    pub role: String,
    /// The held-out work.
    pub data: PathBuf,
    /// Files of work that must not get worse.
    pub guards: Vec<PathBuf>,
    /// The row's field that names its group of tasks.
    pub group_by: Option<String>,
    /// Tokens of an answer at most; 0: only losses are compared.
    pub max_tokens: usize,
    pub verifier: Option<Verifier>,
    /// A model that says whose answer is the better one.
    pub judge: Option<JudgeModel>,
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

/// Judges the candidate, records everything and writes the report. `note` hears what a user should know, `progress` what is being
/// done.
pub fn evaluate(
    sides: &mut dyn Sides,
    request: &EvaluateRequest,
    stop: &AtomicBool,
    note: &mut dyn FnMut(&str),
    progress: &mut dyn FnMut(&str),
) -> Result<Evaluated> {
    let clock = Instant::now();
    if let Some(verifier) = &request.verifier {
        // Before minutes of generation, not after.
        verifier.probe()?;
    }
    if let Some(judge) = &request.judge {
        check_judge(judge, sides, request.max_tokens)?;
    }
    let mut store = Store::open(&request.root)?;
    let load = |path: &Path| sides.load(path, request.group_by.as_deref());
    let work = load(&request.data)?;
    let suites = request.guards.iter().map(|path| Ok((suite_name(path), load(path)?))).collect::<Result<Vec<_>>>()?;
    for items in std::iter::once(&work).chain(suites.iter().map(|(_, items)| items)) {
        items.notes().iter().for_each(|n| note(n));
    }

    let mut compare = |items: &Items, verifier: Option<&Verifier>, judge: Option<&JudgeModel>| -> Result<Comparison> {
        let [mut candidate, mut champion] = sides.answer(items, request.max_tokens, stop, progress)?;
        let mut unjudged = Unjudged::new();
        if let Some(verifier) = verifier.filter(|_| request.max_tokens > 0) {
            for (who, results) in [("candidate", &mut candidate), ("champion", &mut champion)] {
                progress(&format!("the verifier looks at {} answers of the {who}", items.items.len()));
                unjudged.append(&mut verify(verifier, items, results, stop)?);
            }
        }
        if let Some(judge) = judge {
            unjudged.append(&mut prefer(judge, items, [&mut candidate, &mut champion], stop, note, progress)?);
        }
        if let Some((_, told)) = unjudged.values().min() {
            // What says nothing of one side's answer says nothing of the pair.
            for side in [&mut candidate, &mut champion] {
                side.retain(|result| !unjudged.contains_key(&result.item));
            }
            if candidate.is_empty() {
                return Err(Error::data(
                    format!("{told}, and no other row can be judged either"),
                    "run the verifier by hand on an answer of yours (docs/verifier.md says in which folder it runs), or name another judge",
                ));
            }
            note(&format!("{} of {} items were left out: {told}", unjudged.len(), items.items.len()));
        }
        Comparison::pair(candidate, champion).map_err(|unpaired| Error::data(unpaired.to_string(), "report this"))
    };
    let comparison = compare(&work, request.verifier.as_ref(), request.judge.as_ref())?;
    let suites = suites
        .iter()
        .map(|(name, items)| Ok(Suite { name: name.clone(), comparison: compare(items, None, None)? }))
        .collect::<Result<Vec<_>>>()?;

    let [candidate, champion] = sides.served();
    let evidence = Evidence { work: &comparison, suites: &suites, candidate, champion };
    let judgement = judge(&evidence, Primary::of(&comparison), &request.rules)?;
    let comparisons: Vec<(&str, &Comparison)> =
        std::iter::once(("", &comparison)).chain(suites.iter().map(|s| (s.name.as_str(), &s.comparison))).collect();
    let seconds = clock.elapsed().as_secs_f64();
    let as_json =
        serde_json::to_value(&judgement).map_err(|e| Error::data(format!("the verdict is no JSON: {e}"), "report this"))?;
    let ([candidate, champion], base) = (sides.names(), sides.base()?);
    let mut settings = json!({
        "rules": request.rules, "maxTokens": request.max_tokens, "groupBy": request.group_by,
        "verifier": request.verifier.as_ref().map(|v| &v.command), "judge": request.judge.as_ref().map(JudgeModel::who),
    });
    if let (Some(all), Value::Object(own)) = (settings.as_object_mut(), sides.settings()) {
        all.extend(own);
    }
    let id = store.record_evaluation(&NewEvaluation {
        role: &request.role,
        base_name: &base.name,
        base_digest: &base.digest,
        candidate: &candidate.name,
        candidate_digest: &candidate.digest,
        champion: &champion.name,
        champion_digest: &champion.digest,
        data: &request.data.to_string_lossy(),
        items_digest: &work.digest,
        verdict: &judgement.verdict,
        judgement: &as_json,
        settings: &settings,
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

/// A judge that may not judge, or does not work, is found out before minutes of generation.
fn check_judge(judge: &JudgeModel, sides: &dyn Sides, max_tokens: usize) -> Result<()> {
    let who = judge.who();
    if max_tokens == 0 {
        return Err(Error::usage("a judge compares answers, and none are generated", "leave --judge out, or raise --max-tokens"));
    }
    if sides.is_one_of(who.digest) {
        return Err(Error::usage(
            format!("{} is one of the two that are compared, and cannot judge itself", who.model),
            "name another judge",
        ));
    }
    judge.check_family(&sides.architecture()?)?;
    judge.probe()
}

/// Asks the judge about every pair of answers, and tells how often it contradicted itself.
fn prefer(
    judge: &JudgeModel,
    items: &Items,
    [candidate, champion]: [&mut Vec<ItemResult>; 2],
    stop: &AtomicBool,
    note: &mut dyn FnMut(&str),
    progress: &mut dyn FnMut(&str),
) -> Result<Unjudged> {
    let all = items.items.len();
    let text = |result: &ItemResult| result.answer.as_ref().map(|answer| answer.text.clone()).unwrap_or_default();
    let texts: Vec<[String; 2]> = candidate.iter().zip(champion.iter()).map(|(a, b)| [text(a), text(b)]).collect();
    let pairs: Vec<_> = items.items.iter().zip(&texts).map(|(item, pair)| (item, pair.each_ref().map(String::as_str))).collect();
    let opinions = judge.compare(&pairs, &mut |done| {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted { message: "nothing was recorded".to_owned() });
        }
        progress(&format!("the judge compares the answers: {done} of {all}"));
        Ok(())
    })?;
    let unsure = opinions.iter().filter(|opinion| **opinion == Opinion::Said(Preference::Unsure)).count();
    if unsure > 0 {
        note(&format!(
            "on {unsure} of {all} items the judge preferred whichever answer stood first, or second: they count for neither"
        ));
    }
    let mut unjudged = Unjudged::new();
    for ((item, opinion), (a, b)) in items.items.iter().zip(opinions).zip(candidate.iter_mut().zip(champion.iter_mut())) {
        match (opinion, &mut a.answer, &mut b.answer) {
            (Opinion::Said(said), Some(a), Some(b)) => (a.judged, b.judged) = (Some(said), Some(said.turned())),
            (Opinion::Nothing(said), ..) => {
                unjudged.insert(
                    item.id.clone(),
                    (item.row, format!("the judge gave no verdict on row {}: it said {said:?}", item.row)),
                );
            }
            (Opinion::Said(_), ..) => (),
        }
    }
    Ok(unjudged)
}

/// Items that could not be judged: their row, and what a user is told of it.
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
                unjudged.insert(item.id.clone(), (item.row, format!("the verifier cannot judge row {}: {why}{said}", item.row)));
            }
            (outcome, Some(answer)) => answer.verified = Some(outcome.passed()),
            (_, None) => (),
        }
    }
    Ok(unjudged)
}
