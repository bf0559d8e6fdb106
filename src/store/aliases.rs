//! The history of aliases: each move is written down before it is made, and what became of it after.

use rusqlite::{OptionalExtension as _, Row, params};
use serde::Serialize;

use super::Store;
use crate::error::Result;

/// Why an alias moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MoveKind {
    /// There was none before.
    First,
    Promotion,
    Rollback,
    /// Somebody else moved it (`ollama cp`); seen, not done.
    Outside,
}

impl MoveKind {
    const ALL: [Self; 4] = [Self::First, Self::Promotion, Self::Rollback, Self::Outside];

    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Promotion => "promotion",
            Self::Rollback => "rollback",
            Self::Outside => "outside",
        }
    }
}

/// A move as it is written down before it is made.
#[derive(Clone, Debug)]
pub struct NewMove<'a> {
    pub server: &'a str,
    /// `my-coder-tuned-coder:latest`
    pub alias: &'a str,
    pub kind: MoveKind,
    /// Name and digest of what it named before.
    pub from: Option<(&'a str, &'a str)>,
    pub to: (&'a str, &'a str),
    pub reason: &'a str,
}

/// What became of a move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct End {
    pub done: bool,
    /// What went wrong, or was found later; else empty.
    pub message: String,
}

/// A move in the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AliasMove {
    pub id: i64,
    pub server: String,
    pub alias: String,
    pub kind: MoveKind,
    pub from_name: Option<String>,
    pub from_digest: Option<String>,
    pub to_name: String,
    pub to_digest: String,
    pub reason: String,
    /// RFC 3339, UTC.
    pub begun_at: String,
    /// `None`: it is being made, or its process died over it.
    pub end: Option<End>,
}

impl AliasMove {
    pub fn is_done(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end.done)
    }
}

fn read(row: &Row) -> rusqlite::Result<AliasMove> {
    let kind: String = row.get(3)?;
    let done: Option<bool> = row.get(10)?;
    let message: Option<String> = row.get(11)?;
    Ok(AliasMove {
        id: row.get(0)?,
        server: row.get(1)?,
        alias: row.get(2)?,
        // The table holds no other words.
        kind: MoveKind::ALL.into_iter().find(|known| known.name() == kind).unwrap_or(MoveKind::Outside),
        from_name: row.get(4)?,
        from_digest: row.get(5)?,
        to_name: row.get(6)?,
        to_digest: row.get(7)?,
        reason: row.get(8)?,
        begun_at: row.get(9)?,
        end: done.map(|done| End { done, message: message.unwrap_or_default() }),
    })
}

const INSERT: &str = "INSERT INTO aliases (server, alias, kind, from_name, from_digest, to_name, to_digest, reason)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) RETURNING id";
const INSERT_END: &str = "INSERT INTO alias_ends (move_id, done, message) VALUES (?1, ?2, ?3)";

fn insert(db: &rusqlite::Connection, new: &NewMove) -> rusqlite::Result<i64> {
    let (from_name, from_digest) = new.from.unzip();
    db.query_row(
        INSERT,
        params![new.server, new.alias, new.kind.name(), from_name, from_digest, new.to.0, new.to.1, new.reason],
        |row| row.get(0),
    )
}

impl Store {
    /// Writes a move down that is about to be made.
    pub fn begin_move(&mut self, new: &NewMove) -> Result<i64> {
        self.write("begin of a move", |transaction| insert(transaction, new))
    }

    /// What became of it. A move ends once.
    pub fn end_move(&mut self, id: i64, end: &End) -> Result<()> {
        self.write("end of a move", |transaction| transaction.execute(INSERT_END, params![id, end.done, end.message]).map(|_| ()))
    }

    /// A move that somebody else made.
    pub fn record_outside_move(&mut self, new: &NewMove) -> Result<()> {
        self.write("outside move", |transaction| {
            let id = insert(transaction, new)?;
            transaction.execute(INSERT_END, params![id, true, ""]).map(|_| ())
        })
    }

    /// The history of an alias, oldest first; with `None` of every alias on every server.
    pub fn moves(&self, of: Option<(&str, &str)>) -> Result<Vec<AliasMove>> {
        let (server, alias) = of.unzip();
        let sql =
            "SELECT m.id, m.server, m.alias, m.kind, m.from_name, m.from_digest, m.to_name, m.to_digest, m.reason, m.begun_at,
                e.done, e.message
            FROM aliases m LEFT JOIN alias_ends e ON e.move_id = m.id
            WHERE (?1 IS NULL OR (m.server = ?1 AND m.alias = ?2)) ORDER BY m.id";
        self.read(|db| db.prepare(sql)?.query_map([server, alias], read)?.collect())
    }

    /// What the whole file says of itself (`PRAGMA integrity_check`, foreign keys): `None` for a sound one.
    pub fn damage(&self) -> Result<Option<String>> {
        self.read(|db| {
            let said: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
            let orphan: Option<String> = db.query_row("PRAGMA foreign_key_check", [], |row| row.get(0)).optional()?;
            Ok(if said != "ok" { Some(said) } else { orphan.map(|table| format!("a row of {table} refers to nothing")) })
        })
    }
}
