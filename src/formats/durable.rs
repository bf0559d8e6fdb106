//! Writing that survives a kill: to a temporary name beside the target, synced, renamed, the folder synced.
//! Whoever reads the target sees the whole old file or the whole new one.
//!
//! The temporary file is `.NAME.PID-N.partial`, and its writer holds a lock on it (flock) as long as it lives.
//! A leftover that nobody holds belongs to a killed run: the next write of the same target removes it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::fault;

/// Large enough that a model of gigabytes takes thousands of writes, not millions.
const BUFFER_BYTES: usize = 1 << 20;
/// File systems allow 255 bytes a name; the temporary name needs some of them for itself.
const MAX_STEM_BYTES: usize = 200;
const SUFFIX: &[u8] = b".partial";

/// Writes `path` through `fill`; on any error the target is as it was and the temporary file is gone.
/// A symbolic link is written through; a target that is no regular file (`/dev/stdout`) is written directly.
/// Fault points: "create", "write" (before each write), "sync", "rename", "sync folder" (with the file's name).
pub fn write_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let existing = match fs::metadata(path) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    if existing.as_ref().is_some_and(|metadata| metadata.is_dir()) {
        return Err(Error::file(path, "is a folder, expected the name of a file to write", "give a file's name in it"));
    }
    if existing.as_ref().is_some_and(|metadata| !metadata.is_file()) {
        return write_through(path, fill);
    }
    let target = if existing.is_some() { fs::canonicalize(path).map_err(Error::io("read", path))? } else { path.to_owned() };
    let name = target.file_name().ok_or_else(|| Error::file(path, "names no file to write", "give a file's name"))?;
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let shown = name.to_string_lossy();

    sweep(folder, name);
    fault::point(&format!("create {shown}"));
    let partial = Partial::create(folder, name).map_err(Error::io("create", path))?;
    if let Some(metadata) = &existing {
        // Not worth failing for: the new file then has the permissions of any new file.
        let _ = partial.file.set_permissions(metadata.permissions());
    }
    fill_file(&partial.file, &shown, path, fill)?;
    fault::point(&format!("sync {shown}"));
    partial.file.sync_all().map_err(Error::io("sync", path))?;
    fault::point(&format!("rename {shown}"));
    partial.rename(&target).map_err(Error::io("rename", path))?;
    fault::point(&format!("sync folder of {shown}"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync the folder of", path))
}

/// `write_with` for bytes that are there already.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |out| out.write_all(bytes).map_err(Error::io("write", path)))
}

/// Removes a file, and syncs its folder, so that it does not come back after a loss of power. `false`: there was none.
/// Fault points: "remove", "sync folder" (with the file's name).
pub fn remove(path: &Path) -> Result<bool> {
    let shown = path.file_name().unwrap_or_default().to_string_lossy();
    fault::point(&format!("remove {shown}"));
    match fs::remove_file(path) {
        Ok(()) => (),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("remove", path)(error)),
    }
    fault::point(&format!("sync folder of {shown}"));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync the folder of", path))?;
    Ok(true)
}

/// Devices and pipes cannot be renamed onto.
fn write_through(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path).map_err(Error::io("open", path))?;
    fill_file(&file, &path.to_string_lossy(), path, fill)
}

fn fill_file(file: &File, shown: &str, path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let point = format!("write {shown}");
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, Pointed { file, point: &point });
    let filled = fill(&mut out).and_then(|()| out.flush().map_err(Error::io("write", path)));
    // Dropping a BufWriter writes what is left in it; after an error there is no use in that.
    let _ = out.into_parts();
    filled
}

/// Passes a fault point before each write.
struct Pointed<'a> {
    file: &'a File,
    point: &'a str,
}

impl Write for Pointed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        fault::point(self.point);
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The temporary file; dropped without a rename, it is removed.
struct Partial {
    path: PathBuf,
    file: File,
    renamed: bool,
}

impl Partial {
    fn create(folder: &Path, name: &OsStr) -> io::Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let mut file_name = stem(name);
            let n = COUNTER.fetch_add(1, Ordering::Relaxed);
            file_name.extend_from_slice(format!("{}-{n}", std::process::id()).as_bytes());
            file_name.extend_from_slice(SUFFIX);
            let path = folder.join(OsString::from_vec(file_name));
            let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => file,
                // A leftover of a process that had our number, on a file system without locks.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            // Waits at most for a sweep that found the file before it was locked, took it for a leftover and
            // removes it: then it has no name any more. A file system without locks only costs the sweep.
            let _ = file.lock();
            if file.metadata()?.nlink() > 0 {
                return Ok(Self { path, file, renamed: false });
            }
        }
    }

    fn rename(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// `.NAME.`: what all temporary names of a target begin with.
fn stem(name: &OsStr) -> Vec<u8> {
    let name = name.as_bytes();
    let mut stem = vec![b'.'];
    stem.extend_from_slice(&name[..name.len().min(MAX_STEM_BYTES)]);
    stem.push(b'.');
    stem
}

/// Removes the leftovers of killed writers of this target. Failing costs disk space only, so it is no error.
fn sweep(folder: &Path, name: &OsStr) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let stem = stem(name);
    for entry in entries.flatten() {
        let found = entry.file_name();
        let middle = found.as_bytes().strip_prefix(&stem[..]).and_then(|rest| rest.strip_suffix(SUFFIX));
        // Only `PID-N` in the middle: another target may be called NAME.something.
        if !middle.is_some_and(|m| !m.is_empty() && m.iter().all(|b| b.is_ascii_digit() || *b == b'-')) {
            continue;
        }
        if let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
#[path = "durable_tests.rs"]
mod tests;
