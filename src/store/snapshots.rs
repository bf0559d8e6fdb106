//! Training sets as they were, and on which side of the held-out line each group of tasks is.

use std::collections::HashMap;

use rusqlite::{OptionalExtension as _, params};
use serde_json::Value;

use super::Store;
use crate::error::Result;

/// A training set as it is recorded.
#[derive(Clone, Debug)]
pub struct NewSnapshot<'a> {
    pub role: &'a str,
    pub digest: &'a str,
    /// The runs, in the order of the file.
    pub train: &'a [i64],
    pub held_out: &'a [i64],
    /// The newest run that was looked at.
    pub newest_run: i64,
    pub settings: &'a Value,
    /// Groups that were decided with it, and whether they are held out.
    pub new_parts: &'a [(String, bool)],
}

/// A training set that was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub id: i64,
    pub digest: String,
    pub train: usize,
    pub held_out: usize,
    pub newest_run: i64,
    /// RFC 3339, UTC.
    pub taken_at: String,
}

impl Store {
    /// Which groups of a role are held out (`true`) and which are trained on, as far as it was decided.
    pub fn task_parts(&self, role: &str) -> Result<HashMap<String, bool>> {
        self.read(|db| {
            let mut query = db.prepare("SELECT task_group, part = 'held_out' FROM task_parts WHERE role = ?1")?;
            query.query_map([role], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
    }

    /// Records a training set with its runs and what it decided, or nothing. A set that is the last one already keeps its number, and
    /// learns up to which run was looked.
    pub fn record_snapshot(&mut self, new: &NewSnapshot) -> Result<i64> {
        self.write("snapshot", |transaction| {
            let mut part =
                transaction.prepare("INSERT OR IGNORE INTO task_parts (role, task_group, part) VALUES (?1, ?2, ?3)")?;
            for (group, held_out) in new.new_parts {
                part.execute(params![new.role, group, if *held_out { "held_out" } else { "train" }])?;
            }
            let last: Option<(i64, String)> = transaction
                .query_row("SELECT id, digest FROM snapshots WHERE role = ?1 ORDER BY id DESC LIMIT 1", [new.role], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()?;
            if let Some((id, digest)) = last
                && digest == new.digest
            {
                transaction.execute("UPDATE snapshots SET newest_run = ?2 WHERE id = ?1", params![id, new.newest_run])?;
                return Ok(id);
            }
            let id: i64 = transaction.query_row(
                "INSERT INTO snapshots (role, digest, train, held_out, newest_run, settings) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 RETURNING id",
                params![new.role, new.digest, new.train.len(), new.held_out.len(), new.newest_run, new.settings],
                |row| row.get(0),
            )?;
            let mut item = transaction
                .prepare("INSERT INTO snapshot_items (snapshot_id, part, position, run_id) VALUES (?1, ?2, ?3, ?4)")?;
            for (part, runs) in [("train", new.train), ("held_out", new.held_out)] {
                for (position, run) in runs.iter().enumerate() {
                    item.execute(params![id, part, position, run])?;
                }
            }
            Ok(id)
        })
    }

    /// The newest training set of a role.
    pub fn last_snapshot(&self, role: &str) -> Result<Option<Snapshot>> {
        let sql =
            "SELECT id, digest, train, held_out, newest_run, taken_at FROM snapshots WHERE role = ?1 ORDER BY id DESC LIMIT 1";
        self.read(|db| {
            db.query_row(sql, [role], |row| {
                Ok(Snapshot {
                    id: row.get(0)?,
                    digest: row.get(1)?,
                    train: row.get(2)?,
                    held_out: row.get(3)?,
                    newest_run: row.get(4)?,
                    taken_at: row.get(5)?,
                })
            })
            .optional()
        })
    }

    /// The runs of a training set, in the order of its files: to train on, held out.
    pub fn snapshot_runs(&self, snapshot: i64) -> Result<[Vec<i64>; 2]> {
        let of = |part: &str| {
            self.read(|db| {
                let sql = "SELECT run_id FROM snapshot_items WHERE snapshot_id = ?1 AND part = ?2 ORDER BY position";
                db.prepare_cached(sql)?.query_map(params![snapshot, part], |row| row.get(0))?.collect()
            })
        };
        Ok([of("train")?, of("held_out")?])
    }
}
