//! Rows of data: alpaca, prompt/completion, messages, sharegpt; JSON arrays or JSON lines.

use std::path::Path;

use crate::domain::Example;
use crate::error::Result;

/// What a file held.
#[derive(Debug)]
pub struct Rows {
    pub examples: Vec<Example>,
    /// Conversations that ended on a user's turn: that turn was dropped.
    pub trailing_user_turns: usize,
}

/// Reads a whole file; a bad row is an error that names the file, the line and what is wrong with it.
pub fn read(path: &Path) -> Result<Rows> {
    let _ = path;
    todo!()
}
