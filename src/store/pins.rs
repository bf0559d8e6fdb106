//! Pins: versions that are never pruned.

use super::Store;
use crate::error::Result;

impl Store {
    /// Pins a version. `false`: it was pinned before.
    pub fn pin(&mut self, server: &str, model: &str, version: u64) -> Result<bool> {
        self.write("pin", |transaction| {
            let sql = "INSERT INTO pins (server, model, version) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
            transaction.execute(sql, (server, model, version)).map(|rows| rows > 0)
        })
    }

    /// Takes a pin away. `false`: there was none.
    pub fn unpin(&mut self, server: &str, model: &str, version: u64) -> Result<bool> {
        self.write("unpin", |transaction| {
            let sql = "DELETE FROM pins WHERE server = ?1 AND model = ?2 AND version = ?3";
            transaction.execute(sql, (server, model, version)).map(|rows| rows > 0)
        })
    }

    /// The pinned versions of a model, in order.
    pub fn pins(&self, server: &str, model: &str) -> Result<Vec<u64>> {
        let sql = "SELECT version FROM pins WHERE server = ?1 AND model = ?2 ORDER BY version";
        self.read(|db| db.prepare(sql)?.query_map([server, model], |row| row.get(0))?.collect())
    }
}
