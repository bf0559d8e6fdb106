//! What people say of runs. The last vote of a user on a run counts, and the run's reward follows it in the same transaction.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::Store;
use super::runs::{RunRow, insert_run, rewarded};
use crate::domain::Weights;
use crate::error::Result;

/// A vote, a comment, an answer that was made better.
#[derive(Clone, Debug, PartialEq)]
pub struct NewFeedback<'a> {
    pub uid: &'a str,
    pub run: i64,
    pub user: &'a str,
    pub at_ms: i64,
    pub thumb: Option<bool>,
    /// 0 to 1.
    pub score: Option<f64>,
    /// Redacted.
    pub comment: Option<&'a str>,
    /// The answer as the user made it: a run of its own.
    pub edited: Option<&'a RunRow>,
}

/// What a vote made of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Voted {
    pub repeated: bool,
    pub vote: Option<f64>,
    pub reward: Option<f64>,
}

/// The mean of each user's last vote: a score as it is, a thumb 1 or 0, an answer that had to be edited 0.
fn vote_of(db: &Connection, run: i64) -> rusqlite::Result<Option<f64>> {
    db.prepare_cached(
        "SELECT avg(coalesce(score, thumb, 0.0)) FROM feedback WHERE id IN (SELECT max(id) FROM feedback
             WHERE run_id = ?1 AND (score IS NOT NULL OR thumb IS NOT NULL OR edit_run IS NOT NULL) GROUP BY user)",
    )?
    .query_row([run], |row| row.get(0))
}

impl Store {
    /// Records what a user says, and the reward that the run has now. Said twice under one id it counts once.
    pub fn record_feedback(&mut self, new: &NewFeedback, weights: &Weights) -> Result<Voted> {
        self.write("feedback", |transaction| {
            let known: Option<i64> =
                transaction.query_row("SELECT id FROM feedback WHERE uid = ?1", [new.uid], |row| row.get(0)).optional()?;
            if known.is_none() {
                let edit = new.edited.map(|edited| insert_run(transaction, edited)).transpose()?;
                transaction.execute(
                    "INSERT INTO feedback (uid, run_id, user, at_ms, thumb, score, comment, edit_run)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                    params![new.uid, new.run, new.user, new.at_ms, new.thumb, new.score, new.comment, edit.map(|edit| edit.id)],
                )?;
                let vote = vote_of(transaction, new.run)?;
                rewarded(transaction, new.run, vote, weights)?;
            }
            transaction.query_row("SELECT vote, reward FROM runs WHERE id = ?1", [new.run], |row| {
                Ok(Voted { repeated: known.is_some(), vote: row.get(0)?, reward: row.get(1)? })
            })
        })
    }
}
