//! From a run as it is told to a run in the store: checked, redacted, rewarded.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::base::hex;
use crate::config::Config;
use crate::domain::{Message, NewRun, Reward, RunResult, Source, Weights, time};
use crate::error::{Error, Result};
use crate::redact::Redactor;
use crate::store::{NewFeedback, RunFacts, RunRow, Store, Texts, Voted};

/// Runs that one commit takes together.
pub const BATCH: usize = 256;

/// Makes runs ready for the store.
pub struct Recorder {
    redactor: Redactor,
    weights: Weights,
}

/// What became of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recorded {
    pub number: i64,
    /// The client's own, or one that was made for it.
    pub id: String,
    /// It was there already, and nothing was changed.
    pub repeated: bool,
    pub reward: Option<f64>,
    pub observed_weight: f64,
    /// Why its texts were not stored, though there were some.
    pub withheld: Option<String>,
}

/// What a user says of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// Makes saying it twice harmless.
    pub id: Option<String>,
    pub user: String,
    pub thumb: Option<bool>,
    pub score: Option<f64>,
    pub comment: Option<String>,
    /// The answer as it should have been.
    pub edited: Option<String>,
}

impl Recorder {
    pub fn new(config: &Config) -> Result<Self> {
        Ok(Self { redactor: Redactor::new(&config.redaction.extra_patterns)?, weights: config.reward_weights.into() })
    }

    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Records runs, all or none. `demonstration`: their outputs are good work by who wrote them, with no reward needed.
    pub fn record(&self, store: &mut Store, runs: &[NewRun], demonstration: bool) -> Result<Vec<Recorded>> {
        let rows = runs.iter().map(|run| self.row(run, demonstration)).collect::<Result<Vec<_>>>()?;
        let recorded = store.record_runs(&rows)?;
        let told = |(row, recorded): (RunRow, crate::store::RecordedRun)| Recorded {
            number: recorded.id,
            id: row.uid,
            repeated: recorded.repeated,
            reward: row.reward.reward,
            observed_weight: row.reward.observed_weight,
            withheld: row.withheld,
        };
        Ok(rows.into_iter().zip(recorded).map(told).collect())
    }

    /// What a client calls a run, a user or a session, as the store does: a name that is private itself becomes a digest of it.
    pub fn identifier(&self, text: &str) -> String {
        match self.redactor.pair().redact(text) {
            Ok(redacted) if redacted.found.is_empty() => text.to_owned(),
            // Where it cannot be told, it counts as private.
            _ => format!("x{}", short_digest(text)),
        }
    }

    /// A run, ready for the store.
    pub fn row(&self, run: &NewRun, demonstration: bool) -> Result<RunRow> {
        check(run)?;
        let at_ms = match &run.at {
            None => time::now_ms(),
            Some(text) => time::parse_ms(text).ok_or_else(|| {
                Error::usage(format!("at is '{text}'"), "give a moment as RFC 3339 says it: 2026-11-21T17:30:00Z")
            })?,
        };
        let conversation = conversation(run)?;
        let reward = self.weights.reward(&run.result, None);
        let optional = |text: &Option<String>| text.as_deref().map(|text| self.identifier(text));
        let mut row = RunRow {
            uid: run.id.as_deref().map_or_else(fresh_id, |id| self.identifier(id)),
            at_ms,
            role: run.role.clone(),
            task: None,
            task_group: None,
            model: optional(&run.model),
            prompt_variant: optional(&run.prompt_variant),
            difficulty: run.difficulty,
            action_type: optional(&run.action_type),
            session: optional(&run.session),
            user: optional(&run.user),
            choice_id: optional(&run.choice_id),
            evidence: run.evidence,
            source: None,
            demonstration,
            edit_of: None,
            cost_tokens: run.cost_tokens,
            duration_ms: run.duration_ms,
            result: run.result.clone(),
            reward,
            reward_version: self.weights.version(),
            texts: None,
            withheld: None,
        };
        match self.redacted(run, conversation.as_ref()) {
            Ok(Redacted { task, source, texts }) => {
                row.task_group = group(task.as_deref(), texts.as_ref());
                (row.task, row.source, row.texts) = (task, source, texts);
            }
            // The numbers are kept; of the source only whether it may be learnt from, which is asked of texts alone.
            Err(error) => row.withheld = Some(format!("redaction failed: {error}")),
        }
        Ok(row)
    }

    /// All texts of a run in one pass, so that the same value has the same placeholder in each.
    fn redacted(&self, run: &NewRun, conversation: Option<&Texts>) -> Result<Redacted> {
        let damaged = |e: serde_json::Error| Error::data(format!("a text is no JSON: {e}"), "report this");
        let raw = json!({ "task": run.task, "source": run.source, "messages": conversation.map(|texts| &texts.messages),
            "tools": conversation.and_then(|texts| texts.tools.as_ref()) });
        let Value::Object(mut clean) = self.redactor.pair().redact_json(&raw)? else {
            return Err(Error::data("redaction gave no object", "report this"));
        };
        let mut take = |key: &str| clean.remove(key).unwrap_or_default();
        let (task, mut source): (Option<String>, Option<Source>) =
            (serde_json::from_value(take("task")).map_err(damaged)?, serde_json::from_value(take("source")).map_err(damaged)?);
        if let (Some(source), Some(raw)) = (&mut source, &run.source) {
            // What was taken out of its name may be what says so.
            source.training = raw.training.or_else(|| (source.may_train() != raw.may_train()).then_some(raw.may_train()));
        }
        let messages: Option<Vec<Message>> = serde_json::from_value(take("messages")).map_err(damaged)?;
        let tools: Option<Value> = Some(take("tools")).filter(|tools| !tools.is_null());
        Ok(Redacted { task, source, texts: messages.map(|messages| Texts { messages, tools }) })
    }

    /// Adds what was observed of a run that is there; what was observed before under the same names is replaced. Its reward follows.
    pub fn observe(&self, store: &mut Store, run: &str, result: &RunResult) -> Result<Reward> {
        if let Some(problem) = result.problem() {
            return Err(Error::usage(problem, "mend the result; leave out what was not observed"));
        }
        let run = self.find(store, run)?;
        store.add_signals(run.id, result, &self.weights)
    }

    /// A run by the name that a client has for it.
    fn find(&self, store: &Store, run: &str) -> Result<RunFacts> {
        let known = store.run(run)?.map_or_else(|| store.run(&self.identifier(run)), |found| Ok(Some(found)))?;
        known.ok_or_else(|| {
            Error::usage(format!("there is no run '{run}'"), "give the id that `retune record` told, or its number")
        })
    }

    /// Records what a user says of a run; the run's reward follows.
    pub fn feedback(&self, store: &mut Store, run: &str, said: &Said) -> Result<Voted> {
        let run = self.find(store, run)?;
        if let Some(score) = said.score
            && !(0.0..=1.0).contains(&score)
        {
            return Err(Error::usage(format!("the score is {score}"), "give 0 (bad) to 1 (good)"));
        }
        if said.thumb.is_none() && said.score.is_none() && said.comment.is_none() && said.edited.is_none() {
            return Err(Error::usage(
                "nothing is said of the run",
                "give a thumb, a score, a comment, or the answer as it should be",
            ));
        }
        let comment = said.comment.as_deref().map(|text| self.redactor.pair().redact(text)).transpose();
        // A comment that cannot be made safe is left out; the vote counts.
        let comment = comment.ok().flatten().map(|redacted| redacted.text);
        let uid = said.id.as_deref().map_or_else(fresh_id, |id| self.identifier(id));
        let user = self.identifier(&said.user);
        let edited = said.edited.as_deref().map(|text| self.edited(store, run.id, text, &format!("{uid}-edit"))).transpose()?;
        let feedback = NewFeedback {
            uid: &uid,
            run: run.id,
            user: &user,
            at_ms: time::now_ms(),
            thumb: said.thumb,
            score: said.score,
            comment: comment.as_deref(),
            edited: edited.as_ref(),
        };
        store.record_feedback(&feedback, &self.weights)
    }

    /// The run that holds a better answer to what another one was asked: a demonstration.
    pub fn edited(&self, store: &Store, original: i64, answer: &str, uid: &str) -> Result<RunRow> {
        let facts = store.run(&original.to_string())?;
        let (Some(facts), Some(mut texts)) = (facts, store.texts(original)?) else {
            return Err(Error::usage(
                format!("the texts of run {original} are not stored, so that its answer cannot be edited"),
                "record the better answer as a run of its own, with its prompt",
            ));
        };
        if let Some(last) = texts.messages.last_mut() {
            last.content = answer.to_owned();
            // Its tool calls and reasoning belong to the answer that it was.
            last.extra.clear();
        }
        let run = NewRun {
            id: Some(uid.to_owned()),
            role: facts.role.clone(),
            task: facts.task.clone(),
            messages: Some(texts.messages),
            tools: texts.tools,
            source: Some(Source {
                name: "a person's edit".to_owned(),
                kind: crate::domain::SourceKind::Person,
                ..Source::default()
            }),
            ..NewRun::default()
        };
        let mut row = self.row(&run, true)?;
        // What was asked is the same work, whatever redaction makes of its second reading.
        (row.task_group, row.edit_of) = (facts.task_group, Some(original));
        Ok(row)
    }
}

/// The texts of a run without what is private.
struct Redacted {
    task: Option<String>,
    source: Option<Source>,
    texts: Option<Texts>,
}

fn check(run: &NewRun) -> Result<()> {
    check_role(&run.role)?;
    if let Some(problem) = run.result.problem() {
        return Err(Error::usage(problem, "mend the result; leave out what was not observed"));
    }
    for (name, id) in [("id", &run.id), ("session", &run.session), ("user", &run.user), ("choice_id", &run.choice_id)] {
        if let Some(id) = id
            && (id.is_empty() || id.len() > 200 || id.chars().any(char::is_control))
        {
            return Err(Error::usage(format!("{name} is {id:?}"), "give 1 to 200 characters on one line"));
        }
    }
    let fits = |count: Option<u64>| count.is_none_or(|count| i64::try_from(count).is_ok());
    if !fits(run.cost_tokens) || !fits(run.duration_ms) {
        return Err(Error::usage("cost_tokens or duration_ms is too large", "give what was measured"));
    }
    Ok(())
}

/// The role is the end of a model's name and the name of a folder.
pub fn check_role(role: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    if role.is_empty() || role.len() > 64 || !role.chars().all(is_plain) || !role.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Err(Error::usage(
            format!("the role is '{role}'"),
            "give a name of small letters, digits, - and _, such as coder, fixer or judge: it becomes a part of the model's name",
        ));
    }
    Ok(())
}

/// What was asked and answered; `None` where one of the two was not told.
fn conversation(run: &NewRun) -> Result<Option<Texts>> {
    let mut messages = match (&run.messages, &run.prompt) {
        (Some(_), Some(_)) => {
            return Err(Error::usage(
                "the run has messages and a prompt",
                "give what was asked once: as messages, or as a prompt",
            ));
        }
        (Some(_), None) if run.system.is_some() => {
            return Err(Error::usage("the run has messages and a system text", "put the system text into the messages"));
        }
        (Some(messages), None) => messages.clone(),
        (None, Some(prompt)) => {
            let system = run.system.iter().map(|text| Message::new("system", text.clone()));
            system.chain([Message::new("user", prompt.clone())]).collect()
        }
        (None, None) => return Ok(None),
    };
    if let Some(output) = &run.output {
        if messages.last().is_some_and(|last| last.role == "assistant") {
            return Err(Error::usage("the messages end with an answer, and there is an output", "give the answer once"));
        }
        messages.push(Message::new("assistant", output.clone()));
    }
    let asked = messages.len() > 1 && messages.last().is_some_and(|last| last.role == "assistant");
    Ok(asked.then(|| Texts { messages, tools: run.tools.clone() }))
}

/// Runs of one task, or of one request, are one group. Case and space do not make another request.
fn group(task: Option<&str>, texts: Option<&Texts>) -> Option<String> {
    if let Some(task) = task {
        return Some(short_digest(&format!("task\n{}", plain(task))));
    }
    let texts = texts?;
    let asked = texts.messages.split_last()?.1.iter().map(|m| format!("{}: {}", m.role, plain(&m.content)));
    Some(short_digest(&format!("asked\n{}", asked.collect::<Vec<_>>().join("\n"))))
}

fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// 128 bits of SHA-256.
pub fn short_digest(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes())[..16])
}

/// An id that no other run has.
fn fresh_id() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    format!("r{}", &short_digest(&format!("{nanos} {number} {} {boot}", std::process::id()))[..24])
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
