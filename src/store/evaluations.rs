//! Evaluations with what each side made of each item.

use rusqlite::{OptionalExtension as _, Row, params};
use serde_json::Value;

use super::Store;
use crate::domain::{Comparison, Verdict};
use crate::error::Result;

/// An evaluation as it is recorded.
#[derive(Clone, Debug)]
pub struct NewEvaluation<'a> {
    pub role: &'a str,
    pub base_name: &'a str,
    pub base_digest: &'a str,
    /// The adapter's folder, or `base`.
    pub candidate: &'a str,
    pub candidate_digest: &'a str,
    pub champion: &'a str,
    pub champion_digest: &'a str,
    pub data: &'a str,
    pub items_digest: &'a str,
    pub verdict: &'a Verdict,
    pub judgement: &'a Value,
    pub settings: &'a Value,
    pub seconds: f64,
    /// The work under an empty name, then the guarded suites under theirs.
    pub comparisons: &'a [(&'a str, &'a Comparison)],
}

/// An evaluation that was recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    pub id: i64,
    pub candidate: String,
    pub champion: String,
    pub champion_digest: String,
    pub items_digest: String,
    /// `promote`, `reject` or `inconclusive`.
    pub verdict: String,
    pub judgement: Value,
    /// RFC 3339, UTC.
    pub recorded_at: String,
}

fn read(row: &Row) -> rusqlite::Result<Evaluation> {
    Ok(Evaluation {
        id: row.get(0)?,
        candidate: row.get(1)?,
        champion: row.get(2)?,
        champion_digest: row.get(3)?,
        items_digest: row.get(4)?,
        verdict: row.get(5)?,
        judgement: row.get(6)?,
        recorded_at: row.get(7)?,
    })
}

impl Store {
    /// Records an evaluation with all its items, or nothing. Gives its number.
    pub fn record_evaluation(&mut self, new: &NewEvaluation) -> Result<i64> {
        let items: usize = new.comparisons.iter().filter(|(suite, _)| suite.is_empty()).map(|(_, c)| c.pairs().len()).sum();
        self.write("evaluation", |transaction| {
            let id: i64 = transaction.query_row(
                "INSERT INTO evaluations (role, base_name, base_digest, candidate, candidate_digest, champion, champion_digest,
                     data, items_digest, items, verdict, judgement, settings, seconds)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14) RETURNING id",
                params![
                    new.role,
                    new.base_name,
                    new.base_digest,
                    new.candidate,
                    new.candidate_digest,
                    new.champion,
                    new.champion_digest,
                    new.data,
                    new.items_digest,
                    items as u64,
                    new.verdict.name(),
                    new.judgement,
                    new.settings,
                    new.seconds,
                ],
                |row| row.get(0),
            )?;
            let mut insert = transaction.prepare(
                "INSERT INTO evaluation_items (evaluation_id, suite, item, item_group, candidate, champion)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for (suite, comparison) in new.comparisons {
                for pair in comparison.pairs() {
                    let side =
                        |result| serde_json::to_value(result).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()));
                    let (candidate, champion) = (side(pair.candidate())?, side(pair.champion())?);
                    insert.execute(params![id, suite, pair.item(), pair.group(), candidate, champion])?;
                }
            }
            Ok(id)
        })
    }

    /// The newest evaluation of a candidate.
    pub fn last_evaluation(&self, role: &str, candidate_digest: &str) -> Result<Option<Evaluation>> {
        let sql =
            "SELECT id, candidate, champion, champion_digest, items_digest, verdict, judgement, recorded_at FROM evaluations
            WHERE role = ?1 AND candidate_digest = ?2 ORDER BY id DESC LIMIT 1";
        self.read(|db| db.query_row(sql, [role, candidate_digest], read).optional())
    }

    /// How many items of an evaluation are recorded, of all its suites.
    pub fn evaluation_items(&self, evaluation: i64) -> Result<u64> {
        let sql = "SELECT count(*) FROM evaluation_items WHERE evaluation_id = ?1";
        self.read(|db| db.query_row(sql, [evaluation], |row| row.get(0)))
    }
}
