//! Adapters: what was trained, on which base, from what.

use rusqlite::{Transaction, params};
use serde_json::Value;

/// An adapter as it is recorded.
#[derive(Clone, Debug)]
pub struct NewAdapter<'a> {
    pub role: &'a str,
    pub digest: &'a str,
    pub path: &'a str,
    pub base_name: &'a str,
    pub base_digest: &'a str,
    /// `run.json`, where there is one.
    pub run: Option<&'a Value>,
}

/// Its row; one that is there keeps its number, and learns where the adapter lies now.
pub(super) fn record(transaction: &Transaction, adapter: &NewAdapter) -> rusqlite::Result<i64> {
    transaction.query_row(
        "INSERT INTO adapters (role, digest, path, base_name, base_digest, run) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (role, digest) DO UPDATE SET path = excluded.path RETURNING id",
        params![
            adapter.role,
            adapter.digest,
            adapter.path,
            adapter.base_name,
            adapter.base_digest,
            adapter.run.map(Value::to_string)
        ],
        |row| row.get(0),
    )
}
