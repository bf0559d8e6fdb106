//! Runs, their signals and their texts.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};
use serde::Serialize;
use serde_json::Value;

use super::Store;
use crate::domain::{Candidate, Difficulty, Evidence, Example, Message, Reward, RunResult, Source, Weights};
use crate::error::{Error, Result};

/// A run as it is stored: redacted, and rewarded.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRow {
    pub uid: String,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    pub role: String,
    pub task: Option<String>,
    pub task_group: Option<String>,
    pub model: Option<String>,
    pub prompt_variant: Option<String>,
    pub difficulty: Option<Difficulty>,
    pub action_type: Option<String>,
    pub session: Option<String>,
    pub user: Option<String>,
    pub choice_id: Option<String>,
    pub evidence: Evidence,
    pub source: Option<Source>,
    pub demonstration: bool,
    /// The run whose answer this one makes better.
    pub edit_of: Option<i64>,
    pub cost_tokens: Option<u64>,
    pub duration_ms: Option<u64>,
    pub result: RunResult,
    pub reward: Reward,
    pub reward_version: String,
    pub texts: Option<Texts>,
    /// Why there are no texts, though there were some.
    pub withheld: Option<String>,
}

/// A conversation whose last turn is the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Texts {
    pub messages: Vec<Message>,
    pub tools: Option<Value>,
}

/// What became of a run that was given to be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedRun {
    pub id: i64,
    /// It was there already; nothing was changed.
    pub repeated: bool,
}

/// A run as it was recorded, without its texts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunFacts {
    pub id: i64,
    pub uid: String,
    pub at_ms: i64,
    pub role: String,
    pub task: Option<String>,
    pub task_group: Option<String>,
    pub model: Option<String>,
    pub prompt_variant: Option<String>,
    pub reward: Option<f64>,
    pub observed_weight: f64,
    pub reward_version: String,
    pub vote: Option<f64>,
    pub review: Option<bool>,
    pub has_texts: bool,
    pub withheld: Option<String>,
}

/// What makes a run eligible, as SQL asks it; `curate::eligible` says the same with its reasons.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Eligible {
    pub min_reward: f64,
    pub min_observed: f64,
}

/// The mean of what some runs say; `None` where none says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Means {
    pub runs: u64,
    pub rewarded: u64,
    pub reward: Option<f64>,
    pub tokens: Option<f64>,
    pub ms: Option<f64>,
    pub compile_rate: Option<f64>,
    pub tests_passed: Option<f64>,
}

/// The last runs, all together and by what made them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    pub all: Means,
    pub by_model: BTreeMap<String, Means>,
    pub by_prompt_variant: BTreeMap<String, Means>,
    pub by_role: BTreeMap<String, Means>,
    /// All that were ever recorded.
    pub recorded: u64,
}

const FACTS: &str =
    "id, uid, at_ms, role, task, task_group, model, prompt_variant, reward, observed_weight, reward_version, vote, review,
    has_texts, withheld";

fn facts(row: &Row) -> rusqlite::Result<RunFacts> {
    Ok(RunFacts {
        id: row.get(0)?,
        uid: row.get(1)?,
        at_ms: row.get(2)?,
        role: row.get(3)?,
        task: row.get(4)?,
        task_group: row.get(5)?,
        model: row.get(6)?,
        prompt_variant: row.get(7)?,
        reward: row.get(8)?,
        observed_weight: row.get(9)?,
        reward_version: row.get(10)?,
        vote: row.get(11)?,
        review: row.get(12)?,
        has_texts: row.get(13)?,
        withheld: row.get(14)?,
    })
}

fn evidence_name(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Executed => "executed",
        Evidence::Judge => "judge",
        Evidence::SelfReported => "self_reported",
    }
}

fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
}

fn insert(transaction: &Transaction, run: &RunRow) -> rusqlite::Result<RecordedRun> {
    let may_train = run.source.as_ref().is_none_or(Source::may_train);
    let source = run.source.as_ref().map(json).transpose()?;
    let id: Option<i64> = transaction
        .prepare_cached(
            "INSERT INTO runs (uid, at_ms, role, task, task_group, model, prompt_variant, difficulty, action_type, session, user,
                 choice_id, evidence, source, may_train, demonstration, edit_of, cost_tokens, duration_ms, reward, observed_weight,
                 reward_version, has_texts, withheld)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24)
             ON CONFLICT (uid) DO NOTHING RETURNING id",
        )?
        .query_row(
            params![
                run.uid,
                run.at_ms,
                run.role,
                run.task,
                run.task_group,
                run.model,
                run.prompt_variant,
                run.difficulty.map(Difficulty::name),
                run.action_type,
                run.session,
                run.user,
                run.choice_id,
                evidence_name(run.evidence),
                source,
                may_train,
                run.demonstration,
                run.edit_of,
                run.cost_tokens,
                run.duration_ms,
                run.reward.reward,
                run.reward.observed_weight,
                run.reward_version,
                run.texts.is_some(),
                run.withheld,
            ],
            |row| row.get(0),
        )
        .optional()?;
    let Some(id) = id else {
        let id = transaction.query_row("SELECT id FROM runs WHERE uid = ?1", [&run.uid], |row| row.get(0))?;
        return Ok(RecordedRun { id, repeated: true });
    };
    let mut signal = transaction.prepare_cached("INSERT INTO signals (run_id, metric, value) VALUES (?1, ?2, ?3)")?;
    for (metric, value) in run.result.metrics() {
        signal.execute(params![id, metric, value])?;
    }
    if let Some(texts) = &run.texts {
        transaction.prepare_cached("INSERT INTO pairs (run_id, messages, tools) VALUES (?1, ?2, ?3)")?.execute(params![
            id,
            json(&texts.messages)?,
            texts.tools.as_ref().map(Value::to_string)
        ])?;
    }
    Ok(RecordedRun { id, repeated: false })
}

/// The result of a run, from its signals.
pub(super) fn result_of(db: &Connection, run: i64) -> rusqlite::Result<RunResult> {
    let mut query = db.prepare_cached("SELECT metric, value FROM signals WHERE run_id = ?1")?;
    let metrics: Vec<(String, f64)> =
        query.query_map([run], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
    Ok(RunResult::of_metrics(metrics.iter().map(|(name, value)| (name.as_str(), *value))))
}

impl Store {
    /// Records runs, all or none. One whose id is there already changes nothing.
    pub fn record_runs(&mut self, runs: &[RunRow]) -> Result<Vec<RecordedRun>> {
        self.write("runs", |transaction| runs.iter().map(|run| insert(transaction, run)).collect())
    }

    /// A run by its own id, or by its number.
    pub fn run(&self, name: &str) -> Result<Option<RunFacts>> {
        let by = |column: &str| format!("SELECT {FACTS} FROM runs WHERE {column} = ?1");
        let found = self.read(|db| db.query_row(&by("uid"), [name], facts).optional())?;
        match (found, name.parse::<i64>()) {
            (None, Ok(number)) => self.read(|db| db.query_row(&by("id"), [number], facts).optional()),
            (found, _) => Ok(found),
        }
    }

    /// The texts of a run.
    pub fn texts(&self, run: i64) -> Result<Option<Texts>> {
        let found: Option<(String, Option<String>)> = self.read(|db| {
            let mut query = db.prepare_cached("SELECT messages, tools FROM pairs WHERE run_id = ?1")?;
            query.query_row([run], |row| Ok((row.get(0)?, row.get(1)?))).optional()
        })?;
        let Some((messages, tools)) = found else { return Ok(None) };
        let damaged = |e: serde_json::Error| {
            Error::file(
                &self.path,
                format!("the texts of run {run} do not read: {e}"),
                "leave it out with `retune review --refuse`",
            )
        };
        let messages = serde_json::from_str(&messages).map_err(damaged)?;
        let tools = tools.map(|tools| serde_json::from_str(&tools)).transpose().map_err(damaged)?;
        Ok(Some(Texts { messages, tools }))
    }

    /// The texts of a run as an example.
    pub fn example(&self, run: i64) -> Result<Example> {
        let texts = self.texts(run)?.ok_or_else(|| {
            Error::data(format!("run {run} has no texts any more"), "run the same command again; it was removed meanwhile")
        })?;
        Ok(Example { messages: texts.messages, tools: texts.tools, row: usize::try_from(run).unwrap_or(0) })
    }

    /// The result of a run, as it was observed.
    pub fn result(&self, run: i64) -> Result<RunResult> {
        self.read(|db| result_of(db, run))
    }

    /// Every run of a role that has texts, oldest first. An answer that a person made better stands for the one that it was.
    pub fn candidates(&self, role: &str) -> Result<Vec<Candidate>> {
        self.read(|db| {
            let mut query = db.prepare(
                "SELECT id, task_group, reward, observed_weight, evidence, vote, demonstration, may_train, review, at_ms
                 FROM runs WHERE role = ?1 AND has_texts = 1 ORDER BY id",
            )?;
            let rows = query.query_map([role], |row| {
                let evidence: String = row.get(4)?;
                Ok(Candidate {
                    run: row.get(0)?,
                    group: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
                    reward: row.get(2)?,
                    observed_weight: row.get(3)?,
                    evidence: match evidence.as_str() {
                        "judge" => Evidence::Judge,
                        "self_reported" => Evidence::SelfReported,
                        _ => Evidence::Executed,
                    },
                    vote: row.get(5)?,
                    demonstration: row.get(6)?,
                    may_train: row.get(7)?,
                    review: row.get(8)?,
                    at_ms: row.get(9)?,
                })
            })?;
            rows.collect()
        })
    }

    /// How many runs of a role after `after` may be learnt from; counting stops at `most`.
    pub fn count_eligible(&self, role: &str, eligible: Eligible, after: i64, most: usize) -> Result<usize> {
        self.read(|db| {
            db.query_row(
                "SELECT count(*) FROM (SELECT 1 FROM runs WHERE role = ?1 AND has_texts = 1 AND id > ?2 AND may_train
                     AND (review = 1 OR (review IS NULL AND coalesce(vote, 1) >= 0.5
                         AND (vote >= ?3 OR demonstration
                             OR (evidence <> 'self_reported' AND reward >= ?3 AND observed_weight >= ?4))))
                 LIMIT ?5)",
                params![role, after, eligible.min_reward, eligible.min_observed, most],
                |row| row.get(0),
            )
        })
    }

    /// Every role that has runs.
    pub fn roles(&self) -> Result<Vec<String>> {
        // One look into the index a role, however many runs there are.
        self.read(|db| {
            let mut roles: Vec<String> = Vec::new();
            let mut next = db.prepare("SELECT role FROM runs WHERE role > ?1 ORDER BY role LIMIT 1")?;
            while let Some(role) =
                next.query_row([roles.last().map_or("", String::as_str)], |row| row.get::<_, String>(0)).optional()?
            {
                roles.push(role);
            }
            Ok(roles)
        })
    }

    /// The number of the newest run of a role; 0: there is none.
    pub fn newest_run(&self, role: &str) -> Result<i64> {
        self.read(|db| db.query_row("SELECT coalesce(max(id), 0) FROM runs WHERE role = ?1", [role], |row| row.get(0)))
    }

    /// The last runs (of a role), and what they say on the mean.
    pub fn stats(&self, role: Option<&str>, last: usize) -> Result<Stats> {
        let which = if role.is_some() { "WHERE role = ?2" } else { "WHERE ?2 IS NULL" };
        let sql = format!(
            "SELECT r.model, r.prompt_variant, r.role, r.reward, r.cost_tokens, r.duration_ms,
                 (SELECT value FROM signals WHERE run_id = r.id AND metric = 'compile_pass'),
                 (SELECT value FROM signals WHERE run_id = r.id AND metric = 'tests_passed'),
                 (SELECT value FROM signals WHERE run_id = r.id AND metric = 'tests_total')
             FROM (SELECT * FROM runs {which} ORDER BY id DESC LIMIT ?1) r"
        );
        self.read(|db| {
            let mut query = db.prepare_cached(&sql)?;
            let mut rows = query.query(params![last, role])?;
            let mut stats: Sums = Sums::default();
            while let Some(row) = rows.next()? {
                let tests: (Option<f64>, Option<f64>) = (row.get(7)?, row.get(8)?);
                let share = tests.0.zip(tests.1).filter(|(_, total)| *total > 0.0).map(|(passed, total)| passed / total);
                let said = [row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?, share];
                stats.all.add(said);
                let name = |at: usize| row.get::<_, Option<String>>(at).map(|name| name.unwrap_or_else(|| "unknown".to_owned()));
                stats.by_model.entry(name(0)?).or_default().add(said);
                stats.by_prompt_variant.entry(name(1)?).or_default().add(said);
                stats.by_role.entry(name(2)?).or_default().add(said);
            }
            // The newest number counts every run there ever was, without a walk through them.
            let recorded = db.query_row("SELECT coalesce(max(id), 0) FROM runs", [], |row| row.get(0))?;
            Ok(stats.means(recorded))
        })
    }

    /// Gives the next runs whose reward is of another version a new one, at most `batch`. How many there were.
    pub fn recompute_rewards(&mut self, weights: &Weights, batch: usize) -> Result<usize> {
        let version = weights.version();
        self.write("rewards", |transaction| {
            let mut query = transaction.prepare_cached("SELECT id, vote FROM runs WHERE reward_version < ?1 LIMIT ?2")?;
            let of = |query: &mut rusqlite::CachedStatement| -> rusqlite::Result<Vec<(i64, Option<f64>)>> {
                query.query_map(params![version, batch], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
            };
            let mut runs = of(&mut query)?;
            if runs.is_empty() {
                runs = of(&mut transaction.prepare_cached("SELECT id, vote FROM runs WHERE reward_version > ?1 LIMIT ?2")?)?;
            }
            for (run, vote) in &runs {
                rewarded(transaction, *run, *vote, weights)?;
            }
            Ok(runs.len())
        })
    }

    /// Adds what was observed of a run, in place of what was observed before under the same names, and gives it its reward.
    pub fn add_signals(&mut self, run: i64, result: &RunResult, weights: &Weights) -> Result<Reward> {
        self.write("signals", |transaction| {
            let mut signal =
                transaction.prepare_cached("INSERT OR REPLACE INTO signals (run_id, metric, value) VALUES (?1, ?2, ?3)")?;
            for (metric, value) in result.metrics() {
                signal.execute(params![run, metric, value])?;
            }
            let vote = transaction.query_row("SELECT vote FROM runs WHERE id = ?1", [run], |row| row.get(0))?;
            rewarded(transaction, run, vote, weights)
        })
    }

    /// What a reviewer says of a pair; `None` takes it back.
    pub fn review(&mut self, run: i64, takes: Option<bool>) -> Result<()> {
        self.write("review", |transaction| {
            transaction.execute("UPDATE runs SET review = ?2 WHERE id = ?1", params![run, takes]).map(drop)
        })
    }

    /// An answer that a person made better: it is recorded, and the first one is never learnt from.
    pub fn record_edit(&mut self, original: i64, edited: &RunRow) -> Result<RecordedRun> {
        self.write("edit", |transaction| {
            transaction.execute("UPDATE runs SET review = 0 WHERE id = ?1", [original])?;
            insert(transaction, edited)
        })
    }
}

/// Writes the reward that a run has with these weights.
pub(super) fn rewarded(db: &Connection, run: i64, vote: Option<f64>, weights: &Weights) -> rusqlite::Result<Reward> {
    let reward = weights.reward(&result_of(db, run)?, vote);
    db.prepare_cached("UPDATE runs SET vote = ?2, reward = ?3, observed_weight = ?4, reward_version = ?5 WHERE id = ?1")?
        .execute(params![run, vote, reward.reward, reward.observed_weight, weights.version()])?;
    Ok(reward)
}

pub(super) fn insert_run(transaction: &Transaction, run: &RunRow) -> rusqlite::Result<RecordedRun> {
    insert(transaction, run)
}

/// What is summed for one `Means`.
#[derive(Default)]
struct Sum {
    runs: u64,
    /// Sum and count of reward, tokens, milliseconds, compile_pass and the share of tests that passed.
    of: [(f64, u64); 5],
}

#[derive(Default)]
struct Sums {
    all: Sum,
    by_model: BTreeMap<String, Sum>,
    by_prompt_variant: BTreeMap<String, Sum>,
    by_role: BTreeMap<String, Sum>,
}

impl Sum {
    fn add(&mut self, said: [Option<f64>; 5]) {
        self.runs += 1;
        for (sum, value) in self.of.iter_mut().zip(said) {
            if let Some(value) = value {
                *sum = (sum.0 + value, sum.1 + 1);
            }
        }
    }

    fn means(&self) -> Means {
        let [reward, tokens, ms, compile_rate, tests_passed] =
            self.of.map(|(sum, count)| (count > 0).then(|| sum / count as f64));
        Means { runs: self.runs, rewarded: self.of[0].1, reward, tokens, ms, compile_rate, tests_passed }
    }
}

impl Sums {
    fn means(&self, recorded: u64) -> Stats {
        let each = |sums: &BTreeMap<String, Sum>| sums.iter().map(|(name, sum)| (name.clone(), sum.means())).collect();
        Stats {
            all: self.all.means(),
            by_model: each(&self.by_model),
            by_prompt_variant: each(&self.by_prompt_variant),
            by_role: each(&self.by_role),
            recorded,
        }
    }
}
