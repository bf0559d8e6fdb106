//! Versions that a server was seen to serve.

use rusqlite::{OptionalExtension as _, Row, params};
use serde_json::Value;

use super::Store;
use super::adapters::{self, NewAdapter};
use crate::error::Result;

/// A version as it is recorded.
#[derive(Clone, Debug)]
pub struct NewDeployment<'a> {
    /// `http://127.0.0.1:11434`
    pub server: &'a str,
    /// `my-coder-tuned-coder`
    pub model: &'a str,
    pub version: u64,
    /// Of the manifest, as the server lists it.
    pub digest: &'a str,
    /// `adapter` or `merged`
    pub mode: &'a str,
    pub size_bytes: u64,
    /// What it takes to make it again.
    pub recipe: &'a Value,
}

/// A version that was recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    pub id: i64,
    pub server: String,
    pub model: String,
    pub version: u64,
    pub digest: String,
    pub mode: String,
    pub size_bytes: u64,
    pub recipe: Value,
    /// Where its adapter lies.
    pub adapter_path: String,
    pub adapter_digest: String,
    /// Of the base that the adapter was trained on.
    pub base_digest: String,
    /// RFC 3339, UTC.
    pub recorded_at: String,
}

impl Deployment {
    /// `my-coder-tuned-coder:v7`
    pub fn name(&self) -> String {
        format!("{}:v{}", self.model, self.version)
    }
}

const COLUMNS: &str = "d.id, d.server, d.model, d.version, d.digest, d.mode, d.size_bytes, d.recipe, a.path, a.digest,
    a.base_digest, d.recorded_at
    FROM deployments d JOIN adapters a ON a.id = d.adapter_id";

fn read(row: &Row) -> rusqlite::Result<Deployment> {
    Ok(Deployment {
        id: row.get(0)?,
        server: row.get(1)?,
        model: row.get(2)?,
        version: row.get(3)?,
        digest: row.get(4)?,
        mode: row.get(5)?,
        size_bytes: row.get(6)?,
        recipe: row.get(7)?,
        adapter_path: row.get(8)?,
        adapter_digest: row.get(9)?,
        base_digest: row.get(10)?,
        recorded_at: row.get(11)?,
    })
}

impl Store {
    /// Records a version with its adapter; a repeat changes nothing. Gives its number in the store.
    pub fn record_deployment(&mut self, deployment: &NewDeployment, adapter: &NewAdapter) -> Result<i64> {
        self.write("deployment", |transaction| {
            let adapter_id = adapters::record(transaction, adapter)?;
            transaction.query_row(
                "INSERT INTO deployments (server, model, version, digest, mode, adapter_id, size_bytes, recipe)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (server, model, version, digest) DO UPDATE SET adapter_id = excluded.adapter_id, recipe = excluded.recipe
                 RETURNING id",
                params![
                    deployment.server,
                    deployment.model,
                    deployment.version,
                    deployment.digest,
                    deployment.mode,
                    adapter_id,
                    deployment.size_bytes,
                    deployment.recipe,
                ],
                |row| row.get(0),
            )
        })
    }

    /// The versions of a model, oldest first. Where a number was given twice (an Ollama that began anew), the newer counts.
    pub fn deployments(&self, server: &str, model: &str) -> Result<Vec<Deployment>> {
        let sql = format!(
            "SELECT {COLUMNS} WHERE d.server = ?1 AND d.model = ?2 AND d.id = (SELECT max(id) FROM deployments
             WHERE server = d.server AND model = d.model AND version = d.version) ORDER BY d.version"
        );
        self.read(|db| db.prepare(&sql)?.query_map([server, model], read)?.collect())
    }

    /// All that was ever recorded, on every server, oldest first. A version stands here more than once where its number was given
    /// twice, or where it was made again and got another digest.
    pub fn every_deployment(&self) -> Result<Vec<Deployment>> {
        let sql = format!("SELECT {COLUMNS} ORDER BY d.id");
        self.read(|db| db.prepare(&sql)?.query_map([], read)?.collect())
    }

    /// The number after the last that was given to a version of this model, pruned ones and all; 1 for none.
    pub fn next_version(&self, server: &str, model: &str) -> Result<u64> {
        let sql = "SELECT max(version) FROM deployments WHERE server = ?1 AND model = ?2";
        let last = self.read(|db| db.query_row(sql, [server, model], |row| row.get::<_, Option<u64>>(0)).optional())?;
        Ok(last.flatten().unwrap_or(0) + 1)
    }
}
