//! Files: GGUF, safetensors, PEFT folders, rows of data, and how anything is written so that a kill loses nothing.

use std::fs::File;
use std::path::Path;

use bytes::Bytes;

use crate::error::{Error, Result};

pub mod durable;
pub mod gguf;
pub mod gguf_adapter;
pub mod html;
pub mod peft;
pub mod row_order;
pub mod rows;
pub mod safetensors;

/// The file's bytes as a memory map. It stays mapped as long as a slice of it lives.
fn map_file(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let metadata = file.metadata().map_err(Error::io("read", path))?;
    if !metadata.is_file() {
        return Err(Error::file(path, "is no regular file", "give the path of a file"));
    }
    if metadata.len() == 0 {
        // mmap refuses an empty range; the parsers say what is missing.
        return Ok(Bytes::new());
    }
    // SAFETY: the map is read only. Another process that truncates or changes the file while we run is out of
    // scope, as documented; our own writers never change a file in place (see durable).
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io("map", path))?;
    Ok(Bytes::from_owner(map))
}
