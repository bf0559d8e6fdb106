//! One file, from the hub into the cache: it goes on where it was cut, and gets its name when it is whole and verified.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::cache::ModelCache;
use super::client::{ATTEMPTS, Failure, header, passing, pause};
use super::{Hub, HubId, Remote, human};
use crate::error::{Error, Result};
use crate::fault;

const BUFFER_BYTES: usize = 1 << 18;

/// Told of a sentence for people, else of the bytes that are there.
pub(super) type Tell<'a> = dyn FnMut(Option<&str>, u64) + 'a;

impl Hub {
    /// Fetches a file unless the cache has its blob, and links it into the snapshot.
    pub(super) fn download(&self, id: &HubId, model: &ModelCache, commit: &str, file: &Remote, tell: &mut Tell) -> Result<()> {
        let _lock = model.lock(&file.etag, || {
            tell(Some(&format!("another process is fetching {}: waiting for it", file.name)), 0);
        })?;
        if !model.blob(&file.etag).is_file() {
            self.fetch_blob(id, model, file, tell)?;
            model.finish(&file.etag)?;
        }
        tell(None, file.size);
        model.link(commit, &file.name, &file.etag)
    }

    fn fetch_blob(&self, id: &HubId, model: &ModelCache, file: &Remote, tell: &mut Tell) -> Result<()> {
        let mut partial = Partial::open(model.incomplete(&file.etag), file)?;
        // Bytes of an earlier process, or of a mirror that mixed versions, may be wrong: then all is fetched once more.
        let mut may_start_anew = partial.have > 0;
        let mut fruitless = 0;
        loop {
            let before = partial.have;
            let outcome = if before == file.size { Ok(()) } else { self.pull(id, file, &mut partial, tell) };
            match outcome {
                Ok(()) => match partial.verify(file) {
                    Ok(()) => return Ok(()),
                    Err(_) if may_start_anew => {
                        may_start_anew = false;
                        tell(Some(&format!("{} does not have its digest: fetching it once more", file.name)), 0);
                        partial.start_anew()?;
                    }
                    Err(why) => {
                        // It must not be gone on with.
                        partial.remove();
                        return Err(Error::server(
                            format!("{} of {id} arrived wrong: {why}", file.name),
                            format!(
                                "something between here and {} changes it (a mirror, a proxy): run the same command again, or set another HF_ENDPOINT",
                                self.endpoint()
                            ),
                        ));
                    }
                },
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { why, retry_after }) => {
                    fruitless = if partial.have > before { 1 } else { fruitless + 1 };
                    if fruitless >= ATTEMPTS {
                        let so_far = format!("{} of {} are here", human(partial.have), human(file.size));
                        return Err(self.client.away(id, &format!("{}: {why} ({so_far})", file.name)));
                    }
                    pause(fruitless, retry_after);
                }
            }
        }
    }

    /// Appends what one answer brings. `Ok`: all of the file is there.
    fn pull(&self, id: &HubId, file: &Remote, partial: &mut Partial, tell: &mut Tell) -> Result<(), Failure> {
        let reply = self.client.get(id, file, partial.have)?;
        match reply.status().as_u16() {
            206 => {
                let range = header(reply.headers(), "content-range").unwrap_or_default();
                let start =
                    range.strip_prefix("bytes ").and_then(|r| r.split_once('-')).and_then(|(start, _)| start.parse().ok());
                if start != Some(partial.have) {
                    partial.start_anew()?;
                    return Err(passing(format!("asked for a part, the answer is '{range}'")));
                }
            }
            // The server knows no parts, or ours is none of this file: from the beginning.
            status => {
                partial.start_anew()?;
                if status == 416 {
                    return Err(passing("the server has no such part"));
                }
            }
        }
        let mut body = reply.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            // What was read is on its way to the disk before a failure is looked at.
            let read = match body.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(passing(error.to_string())),
            };
            if read == 0 {
                break;
            }
            if partial.have + read as u64 > file.size {
                partial.remove();
                return Err(Failure::Final(Error::server(
                    format!("{} of {id} goes on after the {} bytes that it is to have", file.name, file.size),
                    format!(
                        "something between here and {} changes it (a mirror, a proxy): set another HF_ENDPOINT",
                        self.endpoint()
                    ),
                )));
            }
            partial.append(&buffer[..read])?;
            tell(None, partial.have);
        }
        if partial.have == file.size {
            return Ok(());
        }
        Err(passing(format!("the answer ended after {} of {} bytes", partial.have, file.size)))
    }
}

/// A blob on its way.
struct Partial {
    path: PathBuf,
    file: File,
    have: u64,
    /// Of the bytes that are there, where the hub tells the digest of the whole.
    hash: Option<Sha256>,
}

impl Partial {
    /// What an earlier process left is read once, to go on with its digest.
    fn open(path: PathBuf, remote: &Remote) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io("create", &path))?;
        let mut partial = Self { path, file, have: 0, hash: is_sha256(&remote.etag).then(Sha256::new) };
        let there = partial.file.metadata().map_err(Error::io("read", &partial.path))?.len();
        if there > remote.size {
            partial.start_anew()?;
            return Ok(partial);
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = partial.file.read(&mut buffer).map_err(Error::io("read", &partial.path))?;
            if read == 0 {
                return Ok(partial);
            }
            partial.have += read as u64;
            partial.hash.iter_mut().for_each(|hash| hash.update(&buffer[..read]));
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        fault::point("hub write blob");
        self.file.write_all(bytes).map_err(|error| full_disk(&self.path, error))?;
        self.have += bytes.len() as u64;
        self.hash.iter_mut().for_each(|hash| hash.update(bytes));
        Ok(())
    }

    fn start_anew(&mut self) -> Result<()> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(Error::io("write", &self.path))?;
        self.have = 0;
        self.hash.iter_mut().for_each(|hash| *hash = Sha256::new());
        Ok(())
    }

    /// Size and, for large files, SHA-256; why not, in words. Small files are named by git's SHA-1, which is no protection.
    fn verify(&self, remote: &Remote) -> Result<(), String> {
        let Some(hash) = &self.hash else { return Ok(()) };
        let found: String = hash.clone().finalize().iter().map(|b| format!("{b:02x}")).collect();
        if found == remote.etag { Ok(()) } else { Err(format!("its SHA-256 is {found}, expected {}", remote.etag)) }
    }

    fn remove(&self) {
        // Whole or wrong, the next process finds out.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What is there so far stays, so the usual words of a full disk would not be true.
fn full_disk(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::file(
            path,
            format!("cannot be written on: {error}"),
            "free some space, or set HF_HOME to a folder on another disk; run the same command again, and it goes on from here",
        ),
        _ => Error::io("write", path)(error),
    }
}
