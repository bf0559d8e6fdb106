//! The cache of Hugging Face's tools: `models--org--name/{blobs,refs,snapshots}`, blobs named by their ETag, snapshots
//! full of links to them. Source: huggingface_hub 2.4, file_download.py and constants.py.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::HubId;
use crate::error::{Error, Result};
use crate::fault;

/// What the weights are called.
pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Without one of these there is no tokenizer.
pub(super) const TOKENIZERS: [&str; 3] = ["tokenizer.json", "tokenizer.model", "vocab.json"];

/// The folder that `HF_HUB_CACHE`, `HF_HOME` and `XDG_CACHE_HOME` name.
#[derive(Clone, Debug)]
pub struct Cache {
    pub root: PathBuf,
}

impl Cache {
    pub fn from_env() -> Self {
        let root = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home().join("hub"));
        Self { root }
    }

    pub(super) fn model(&self, id: &str) -> ModelCache {
        let name = format!("models--{}", id.replace('/', "--"));
        ModelCache { folder: self.root.join(&name), locks: self.root.join(".locks").join(name) }
    }

    /// The complete snapshot of a model that is here, whatever the hub has by now.
    pub fn snapshot(&self, id: &HubId) -> Option<Snapshot> {
        let model = self.model(&id.id);
        let commit = model.commit_of(id.revision())?;
        let folder = model.snapshot(&commit);
        missing_from(&folder).is_none().then_some(Snapshot { folder, commit })
    }

    /// Ids of the models with a complete snapshot of `main`, sorted.
    pub fn models(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut ids: Vec<String> = entries
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("models--")?.replacen("--", "/", 1)))
            .filter(|id| HubId::parse(id).is_some_and(|id| self.snapshot(&id).is_some()))
            .collect();
        ids.sort();
        ids
    }
}

/// A model's files, all of them, at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub folder: PathBuf,
    /// 40 hexadecimal digits.
    pub commit: String,
}

/// An environment variable that names a path and is not empty; a leading `~` is the home folder.
fn set(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
    match (Path::new(&value).strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Some(Path::new(&home).join(rest)),
        _ => Some(value.into()),
    }
}

/// `HF_HOME`, else `huggingface` in the user's cache folder.
fn home() -> PathBuf {
    set("HF_HOME").unwrap_or_else(|| {
        let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        cache.unwrap_or_else(|| PathBuf::from(".cache")).join("huggingface")
    })
}

/// Where the token is kept that `hf auth login` wrote.
pub(super) fn token_file() -> PathBuf {
    set("HF_TOKEN_PATH").unwrap_or_else(|| home().join("token"))
}

/// 40 lowercase hexadecimal digits: what a commit is called.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The first file that a base needs and a snapshot lacks.
pub(super) fn missing_from(folder: &Path) -> Option<String> {
    if !folder.join("config.json").is_file() {
        return Some("config.json".to_owned());
    }
    if !TOKENIZERS.iter().any(|name| folder.join(name).is_file()) {
        return Some(TOKENIZERS[0].to_owned());
    }
    let index = folder.join(INDEX);
    if !index.is_file() {
        return (!folder.join(SINGLE).is_file()).then(|| SINGLE.to_owned());
    }
    let shards = fs::read(&index).ok().and_then(|bytes| shards_in(&bytes));
    match shards {
        None => Some(INDEX.to_owned()),
        Some(shards) => shards.into_iter().find(|shard| !folder.join(shard).is_file()),
    }
}

/// The shards that an index names, sorted; `None` where it is no index, or names a file elsewhere.
pub(super) fn shards_in(index: &[u8]) -> Option<Vec<String>> {
    let index: serde_json::Value = serde_json::from_slice(index).ok()?;
    let mut shards: Vec<String> = index
        .get("weight_map")?
        .as_object()?
        .values()
        .map(|file| file.as_str().filter(|file| is_plain_name(file) && file.ends_with(".safetensors")).map(str::to_owned))
        .collect::<Option<_>>()?;
    shards.sort();
    shards.dedup();
    (!shards.is_empty()).then_some(shards)
}

/// A file's name that stays in its folder.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.len() <= 200
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// The folder of one model in the cache.
pub(super) struct ModelCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl ModelCache {
    /// A revision's commit as it was when it was last fetched.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// What of a blob is here so far.
    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Takes the lock that huggingface_hub takes for a blob; `on_wait` is told before it is waited for.
    pub fn lock(&self, etag: &str, on_wait: impl FnOnce()) -> Result<File> {
        fs::create_dir_all(&self.locks).map_err(Error::io("create", &self.locks))?;
        let path = self.locks.join(format!("{etag}.lock"));
        let file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("create", &path))?;
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            on_wait();
            // A file system without locks costs at most that a file is fetched twice: what arrives is verified.
            let _ = file.lock();
        }
        Ok(file)
    }

    /// Makes the folders for blobs and for a commit.
    pub fn prepare(&self, commit: &str) -> Result<()> {
        for folder in [self.folder.join("blobs"), self.snapshot(commit)] {
            fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        }
        Ok(())
    }

    /// Gives a whole, verified blob its name.
    pub fn finish(&self, etag: &str) -> Result<()> {
        let (from, to) = (self.incomplete(etag), self.blob(etag));
        File::open(&from).and_then(|file| file.sync_all()).map_err(Error::io("sync", &from))?;
        fault::point("hub rename blob");
        fs::rename(&from, &to).map_err(Error::io("rename", &from))?;
        sync_folder_of(&to)
    }

    /// Lets a file of a commit be a blob: a relative link, or the blob itself where a file system has no links.
    pub fn link(&self, commit: &str, name: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(name);
        let temporary = beside(&path);
        let _ = fs::remove_file(&temporary);
        fault::point("hub link");
        let made = match std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), &temporary) {
            Ok(()) => fs::rename(&temporary, &path),
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => {
                fs::rename(self.blob(etag), &path)
            }
            Err(error) => Err(error),
        };
        made.map_err(Error::io("create", &path))
    }

    /// Remembers where a revision is now. It comes last: what a revision names is complete.
    pub fn set_ref(&self, revision: &str, commit: &str) -> Result<()> {
        sync_folder_of(&self.snapshot(commit).join("config.json"))?;
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let temporary = beside(&path);
        let write = || {
            use io::Write as _;
            let mut file = File::create(&temporary)?;
            file.write_all(commit.as_bytes())?;
            file.sync_all()?;
            fault::point("hub rename ref");
            fs::rename(&temporary, &path)
        };
        write().map_err(Error::io("write", &path))?;
        sync_folder_of(&path)
    }
}

/// A temporary name of this process; a leftover is overwritten by the next process with its number.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}

fn sync_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", folder))
}
