//! Writing that survives a kill: to a temporary name beside the target, synced, renamed, the folder synced.
//! Whoever reads the target sees the whole old file or the whole new one.

use std::io::Write;
use std::path::Path;

use crate::error::Result;

/// Writes `path` through `fill`; on any error the target is as it was and the temporary file is gone.
/// Fault points: "create", "write", "sync", "rename", "sync folder" (with the file's name).
pub fn write_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let _ = (path, &fill);
    todo!()
}

/// `write_with` for bytes that are there already.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |out| out.write_all(bytes).map_err(crate::Error::io("write", path)))
}
