//! From one version of the tables to the next: forward only, all in one transaction, with a backup before.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;

use super::{Store, failed};
use crate::error::{Error, Result};
use crate::fault;

/// `MIGRATIONS[n]` leads from version `n` to `n + 1` (`user_version`). What stands here never changes: a change is a new one.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_deployments.sql"),
    include_str!("migrations/0002_evaluations.sql"),
    include_str!("migrations/0003_pins.sql"),
    include_str!("migrations/0004_runs.sql"),
];

/// In SQLite's header, so that `file` and others know whose it is: "rtun".
const APPLICATION_ID: i32 = 0x7274_756E;

pub(super) fn apply(store: &mut Store) -> Result<()> {
    apply_all(store, MIGRATIONS)
}

/// `apply` with other migrations, for tests.
pub(super) fn apply_all(store: &mut Store, migrations: &[&str]) -> Result<()> {
    loop {
        let version = version_of(store)?;
        if version == migrations.len() {
            return Ok(());
        }
        let id = store.read(|db| db.pragma_query_value(None, "application_id", |row| row.get::<_, i32>(0)))?;
        let tables = store.read(|db| db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)))?;
        // Another process may have made the tables between these looks.
        if tables > 0 && id != APPLICATION_ID && version_of(store)? == version {
            return Err(Error::file(
                &store.path,
                "is a database of another program",
                "move it away, or choose another --root; retune keeps its own there",
            ));
        }
        if version > migrations.len() {
            return Err(Error::file(
                &store.path,
                format!("has tables of version {version}, this retune knows {}", migrations.len()),
                "it was written by a newer retune: use that one, or choose another --root",
            ));
        }
        if version > 0 && !back_up(store, version)? {
            continue;
        }
        store.write("tables", |transaction| {
            let now: usize = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
            // Another process may have been faster since we looked.
            if now == version {
                migrations[version..].iter().try_for_each(|migration| transaction.execute_batch(migration))?;
                transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
                transaction.pragma_update(None, "user_version", migrations.len() as i64)?;
            }
            Ok(())
        })?;
    }
}

fn version_of(store: &Store) -> Result<usize> {
    store
        .read(|db| db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)))
        .map(|version| version.max(0) as usize)
}

/// A copy of the whole database as it is, `.agent/backups/experience-v1.db`, under a temporary name first. One that is there
/// from a try before is made anew: it was made of the same tables. `false`: another process was faster, there is nothing of
/// that version any more.
fn back_up(store: &Store, version: usize) -> Result<bool> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let folder = store.path.parent().unwrap_or(Path::new(".")).join("backups");
    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    let path = folder.join(format!("experience-v{version}.db"));
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let partial = folder.join(format!(".experience-v{version}.{}-{number}.partial", std::process::id()));
    let remove = |path: &Path| match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    };
    remove(&partial)?;
    store.read(|db| db.execute("VACUUM INTO ?1", [partial.to_string_lossy()]))?;
    let copied = Connection::open(&partial)
        .and_then(|copy| copy.pragma_query_value(None, "user_version", |row| row.get::<_, usize>(0)))
        .map_err(|e| failed(&partial, e))?;
    if copied != version {
        remove(&partial)?;
        return Ok(false);
    }
    let private = Permissions::from_mode(0o600);
    std::fs::set_permissions(&partial, private).map_err(Error::io("protect", &partial))?;
    std::fs::File::open(&partial).and_then(|file| file.sync_all()).map_err(Error::io("sync", &partial))?;
    fault::point("rename backup");
    std::fs::rename(&partial, &path).map_err(Error::io("rename", &path))?;
    std::fs::File::open(&folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", &folder))?;
    Ok(true)
}
