//! Cycles: what one is to make, and each stage that is done, with the digest of what it made.

use rusqlite::{OptionalExtension as _, Row, params};
use serde::Serialize;
use serde_json::Value;

use super::Store;
use crate::error::Result;

/// A cycle as it stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cycle {
    pub id: i64,
    pub role: String,
    /// Everything that decides what it makes.
    pub plan: Value,
    /// RFC 3339, UTC.
    pub begun_at: String,
    pub ended_at: Option<String>,
    /// `promoted`, `waits`, `rejected`, `inconclusive`, `failed`, `given_up`; `None`: it is under way, or was cut off.
    pub outcome: Option<String>,
    pub message: Option<String>,
}

/// A stage that is done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageDone {
    pub stage: String,
    pub digest: String,
    pub detail: Value,
    pub seconds: f64,
}

const COLUMNS: &str = "id, role, plan, begun_at, ended_at, outcome, message";

fn read(row: &Row) -> rusqlite::Result<Cycle> {
    Ok(Cycle {
        id: row.get(0)?,
        role: row.get(1)?,
        plan: row.get(2)?,
        begun_at: row.get(3)?,
        ended_at: row.get(4)?,
        outcome: row.get(5)?,
        message: row.get(6)?,
    })
}

impl Store {
    /// Begins a cycle. Gives its number.
    pub fn begin_cycle(&mut self, role: &str, plan: &Value) -> Result<i64> {
        self.write("begin of a cycle", |transaction| {
            transaction
                .query_row("INSERT INTO cycles (role, plan) VALUES (?1, ?2) RETURNING id", params![role, plan], |row| row.get(0))
        })
    }

    /// The cycle of a role that is not ended.
    pub fn open_cycle(&self, role: &str) -> Result<Option<Cycle>> {
        let sql = format!("SELECT {COLUMNS} FROM cycles WHERE role = ?1 AND ended_at IS NULL ORDER BY id DESC LIMIT 1");
        self.read(|db| db.query_row(&sql, [role], read).optional())
    }

    /// Cycles, the newest first; of one role, or of all.
    pub fn cycles(&self, role: Option<&str>, most: usize) -> Result<Vec<Cycle>> {
        let sql = format!("SELECT {COLUMNS} FROM cycles WHERE ?1 IS NULL OR role = ?1 ORDER BY id DESC LIMIT ?2");
        self.read(|db| db.prepare(&sql)?.query_map(params![role, most], read)?.collect())
    }

    /// The stages of a cycle that are done, in their order.
    pub fn stages(&self, cycle: i64) -> Result<Vec<StageDone>> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT stage, digest, detail, seconds FROM cycle_stages WHERE cycle_id = ?1 ORDER BY ended_at",
            )?;
            query
                .query_map([cycle], |row| {
                    Ok(StageDone { stage: row.get(0)?, digest: row.get(1)?, detail: row.get(2)?, seconds: row.get(3)? })
                })?
                .collect()
        })
    }

    /// A stage is done: what it made is there.
    pub fn end_stage(&mut self, cycle: i64, done: &StageDone) -> Result<()> {
        self.write(&format!("stage {}", done.stage), |transaction| {
            transaction
                .execute(
                    "INSERT INTO cycle_stages (cycle_id, stage, digest, detail, seconds) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT (cycle_id, stage) DO NOTHING",
                    params![cycle, done.stage, done.digest, done.detail, done.seconds],
                )
                .map(drop)
        })
    }

    /// How a cycle ended; one that ended stays so.
    pub fn end_cycle(&mut self, cycle: i64, outcome: &str, message: &str) -> Result<()> {
        self.write("end of a cycle", |transaction| {
            transaction
                .execute(
                    "UPDATE cycles SET ended_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), outcome = ?2, message = ?3
                     WHERE id = ?1 AND ended_at IS NULL",
                    params![cycle, outcome, message],
                )
                .map(drop)
        })
    }

    /// The newest run that the last training of a role saw, and how many examples that had; `None`: it was never trained.
    pub fn last_training(&self, role: &str) -> Result<Option<(i64, usize)>> {
        let sql = "SELECT json_extract(e.detail, '$.newestRun'), json_extract(e.detail, '$.train') FROM cycles c
            JOIN cycle_stages t ON t.cycle_id = c.id AND t.stage = 'train'
            JOIN cycle_stages e ON e.cycle_id = c.id AND e.stage = 'export'
            WHERE c.role = ?1 ORDER BY c.id DESC LIMIT 1";
        self.read(|db| db.query_row(sql, [role], |row| Ok((row.get(0)?, row.get(1)?))).optional())
    }
}
