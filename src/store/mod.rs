//! What happened, in one SQLite file, `.agent/experience.db`: the only room that speaks SQL. One file a group of tables.
//!
//! STRICT tables, foreign keys, a write-ahead log that is synced at every commit. What belongs together is one
//! transaction; `fault::point` stands before and after each commit. Several processes may have it open at once.

mod adapters;
mod aliases;
mod cycles;
mod deployments;
mod evaluations;
mod feedback;
mod migrations;
mod pins;
mod runs;
mod snapshots;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

pub use adapters::NewAdapter;
pub use aliases::{AliasMove, End, MoveKind, NewMove};
pub use cycles::{Cycle, StageDone};
pub use deployments::{Deployment, NewDeployment};
pub use evaluations::{Evaluation, NewEvaluation};
pub use feedback::{NewFeedback, Voted};
pub use runs::{Eligible, Means, RecordedRun, RunFacts, RunRow, Stats, Texts};
pub use snapshots::{NewSnapshot, Snapshot};

use crate::error::{Error, Result};
use crate::fault;

/// How long a write waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// The open database.
pub struct Store {
    db: Connection,
    path: PathBuf,
}

impl Store {
    /// `.agent/experience.db` under `root`, made where it is missing, brought to this version's tables where it is older (with a
    /// backup before). One that a newer retune wrote is an error.
    pub fn open(root: &Path) -> Result<Self> {
        let folder = root.join(".agent");
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let path = Self::path_in(root);
        // Never opened by hand: closing it would drop the locks that other connections of this process hold
        // (https://www.sqlite.org/howtocorrupt.html, 2.2).
        let is_new = !path.exists();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&path, flags).map_err(|e| failed(&path, e))?;
        if is_new {
            // What people asked their models is nobody else's to read; the log gets the same permissions.
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(Error::io("protect", &path))?;
        }
        let mut store = Self { db, path };
        patiently(|| store.prepare()).map_err(|e| failed(&store.path, e))?;
        migrations::apply(&mut store)?;
        Ok(store)
    }

    /// `open` where there is one: a command that only looks makes none.
    pub fn open_if_there(root: &Path) -> Result<Option<Self>> {
        if Self::path_in(root).is_file() { Self::open(root).map(Some) } else { Ok(None) }
    }

    pub fn path_in(root: &Path) -> PathBuf {
        root.join(".agent/experience.db")
    }

    fn prepare(&self) -> rusqlite::Result<()> {
        self.db.busy_timeout(BUSY_TIMEOUT)?;
        self.db.pragma_update(None, "journal_mode", "WAL")?;
        // A commit that was reported survives a loss of power, too.
        self.db.pragma_update(None, "synchronous", "FULL")?;
        self.db.pragma_update(None, "foreign_keys", true)?;
        self.db.pragma_update(None, "trusted_schema", false)
    }

    /// Runs `write` in one transaction that no other process interrupts. `what` names it among the fault points.
    fn write<T>(&mut self, what: &str, write: impl FnOnce(&Transaction) -> rusqlite::Result<T>) -> Result<T> {
        let run = || {
            let transaction = patiently(|| Transaction::new_unchecked(&self.db, TransactionBehavior::Immediate))?;
            let value = write(&transaction)?;
            fault::point(&format!("commit {what}"));
            transaction.commit()?;
            fault::point(&format!("committed {what}"));
            Ok(value)
        };
        run().map_err(|e| failed(&self.path, e))
    }

    fn read<T>(&self, read: impl Fn(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        patiently(|| read(&self.db)).map_err(|e| failed(&self.path, e))
    }
}

/// SQLite waits by itself where another one writes, and not where another one opens, closes or recovers the log.
fn patiently<T>(act: impl Fn() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    let start = Instant::now();
    loop {
        match act() {
            Err(e) if is_busy(&e) && start.elapsed() < BUSY_TIMEOUT => std::thread::sleep(Duration::from_millis(5)),
            result => return result,
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// In a user's words.
fn failed(path: &Path, error: rusqlite::Error) -> Error {
    let hint = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another retune is writing for long: wait until it has ended, then run the same command again"
        }
        Some(ErrorCode::DiskFull) => {
            "free some space on its disk, then run the same command again; what was recorded before is there"
        }
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            "move it away and put the newest file of .agent/backups in its place, or go on with a new one; adapters and models are not touched"
        }
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            "check who owns it and its folder, or choose another --root"
        }
        _ => "run the same command again; if it stays, please report it with this message",
    };
    Error::file(path, format!("the store says: {error}"), hint)
}

#[cfg(test)]
mod tests;
