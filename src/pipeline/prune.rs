//! Old versions go from the server: all but what serves, what served before it, the last ones and the pinned ones. The
//! adapters stay, and a version that was pruned is made again from its own (`pipeline/rebuild.rs`). Killed anywhere, the
//! same call carries on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::champion::{Champion, Named, hold};
use super::convert::stored_name;
use super::deploy::{MERGED_FILE, folder_of};
use super::rebuild::{Bases, number, records_of, unknown};
use crate::deploy::alias_name;
use crate::error::{Error, Result};
use crate::formats::durable;
use crate::runtime::ollama::Blob;
use crate::runtime::{Held, HeldFile, ModelName, Registry, Tag};
use crate::store::{Deployment, Store};

/// What is pruned, and what is kept of it.
#[derive(Clone, Debug)]
pub struct PruneRequest {
    pub prefix: String,
    pub role: String,
    /// The folder that holds `.agent`.
    pub root: PathBuf,
    /// How many of the last versions stay in any case.
    pub keep: usize,
    /// Nothing is removed; what would be is told.
    pub dry_run: bool,
}

/// What went, what stays and why.
#[derive(Clone, Debug, Serialize)]
pub struct Pruned {
    pub model: String,
    pub server: String,
    pub dry_run: bool,
    /// In their order.
    pub versions: Vec<Fate>,
    /// On the server, never more than really became free.
    pub freed_bytes: u64,
    /// Files of ours that only versions needed that are gone.
    pub files: Vec<RemovedFile>,
    pub stays: Stays,
}

/// A version, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fate {
    pub name: String,
    pub version: u64,
    pub digest: String,
    /// Why it stays; empty: it is pruned.
    pub kept: Vec<Why>,
    /// What became free with it: not what other names have, too.
    pub freed_bytes: u64,
}

/// A file that went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RemovedFile {
    pub path: PathBuf,
    pub freed_bytes: u64,
}

/// What stays, in bytes of disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stays {
    /// The model's versions on the server, what they share counted once.
    pub server_bytes: u64,
    /// The folders of its adapters.
    pub adapter_bytes: u64,
    /// `.agent/bases`.
    pub base_bytes: u64,
}

/// Why a version stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    Serves,
    ServedBefore,
    Pinned,
    /// It is one of so many last ones.
    Last(usize),
    Unrecorded,
    /// It could not be made again, and why.
    Irreplaceable(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serves => f.write_str("it serves"),
            Self::ServedBefore => f.write_str("it served before: `retune rollback` goes back to it"),
            Self::Pinned => f.write_str("it is pinned"),
            Self::Last(1) => f.write_str("it is the last"),
            Self::Last(keep) => write!(f, "it is one of the last {keep}"),
            Self::Unrecorded => f.write_str("this store did not record it, so that it could not be made again"),
            Self::Irreplaceable(why) => write!(f, "it could not be made again: {why}"),
        }
    }
}

impl Serialize for Why {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Prunes the versions of a model. Neither a deployment nor a move of an alias runs meanwhile; `note` is told of waiting for one.
pub fn prune(registry: &dyn Registry, request: &PruneRequest, note: &mut dyn FnMut(&str)) -> Result<Pruned> {
    let alias = alias_name(&request.prefix, &request.role)?;
    // In the order in which a deployment takes them.
    let _turn = hold(&request.root.join(".agent/deploy.lock"), "another retune is deploying: waiting for it", note)?;
    let mut champion = Champion::open(registry, &request.root, &request.prefix, &request.role, note)?;
    let (now, before) = (champion.now()?, champion.before()?);
    let store = champion.store();
    let server = registry.id();
    let model = alias.to_string().trim_end_matches(":latest").to_owned();
    let recorded = records_of(store, registry, &alias)?;
    let pinned = store.pins(&server, &model)?;
    let every = store.every_deployment()?;

    let tags = registry.tags()?;
    let facts = Facts { alias: &alias, now: now.as_ref(), before: before.as_ref(), pinned: &pinned, recorded: &recorded };
    let mut versions = choose(&facts, &tags, request.keep);
    let mut bases = Bases::default();
    for fate in versions.iter_mut().filter(|fate| fate.kept.is_empty()) {
        let record = recorded.iter().rfind(|d| d.version == fate.version && d.digest == fate.digest);
        if let Some(Err(error)) = record.map(|record| bases.check(record)) {
            fate.kept.push(Why::Irreplaceable(error.to_string()));
        }
    }
    drop(bases);

    let mut ledger = Ledger::open(registry, &tags, &recorded)?;
    for fate in versions.iter_mut().filter(|fate| fate.kept.is_empty()) {
        let goes = ledger.goes_with(&fate.name);
        let is_gone = request.dry_run || remove(registry, &alias, fate)?;
        ledger.held.remove(&fate.name);
        if !is_gone {
            continue;
        }
        fate.freed_bytes = goes.own_bytes;
        for (digest, size_bytes) in goes.files {
            if request.dry_run || !registry.has_file(&digest)? {
                fate.freed_bytes += size_bytes;
            }
        }
    }

    let left: BTreeSet<String> = ledger.held.keys().map(|name| name.to_ascii_lowercase()).collect();
    let is_left = |d: &Deployment| d.server != server || left.contains(&d.name().to_ascii_lowercase());
    let mut files = Vec::new();
    for path in unneeded(&recorded, &every, &is_left, &request.root.join(".agent/bases")) {
        let Ok(metadata) = path.metadata() else { continue };
        // Under another name its bytes stay.
        let freed_bytes = if metadata.nlink() > 1 { 0 } else { metadata.len() };
        if request.dry_run || durable::remove(&path)? {
            files.push(RemovedFile { path, freed_bytes });
        }
    }
    let removed: BTreeSet<&Path> = files.iter().map(|file| file.path.as_path()).collect();
    let adapters: BTreeSet<&Path> = recorded.iter().map(|d| Path::new(&d.adapter_path)).collect();
    let stays = Stays {
        server_bytes: ledger.bytes_of(&tags, &alias),
        adapter_bytes: adapters.into_iter().map(|path| bytes_in(path, &removed)).sum(),
        base_bytes: bytes_in(&request.root.join(".agent/bases"), &removed),
    };
    let freed_bytes = versions.iter().map(|fate| fate.freed_bytes).sum();
    Ok(Pruned { model, server, dry_run: request.dry_run, versions, freed_bytes, files, stays })
}

/// What is known when it is chosen what stays.
struct Facts<'a> {
    alias: &'a ModelName,
    now: Option<&'a Named>,
    before: Option<&'a Named>,
    pinned: &'a [u64],
    /// Of this model on this server.
    recorded: &'a [Deployment],
}

/// The versions among the tags, in their order, each with the reasons for which it stays.
fn choose(facts: &Facts, tags: &[Tag], keep: usize) -> Vec<Fate> {
    let version_of = |tag: &Tag| ModelName::parse(&tag.name).ok().filter(|name| name.same_model(facts.alias))?.version();
    let mut versions: Vec<(u64, &Tag)> = tags.iter().filter_map(|tag| Some((version_of(tag)?, tag))).collect();
    versions.sort_by_key(|(version, _)| *version);
    let first_of_last = versions.len().saturating_sub(keep);
    let is = |named: Option<&Named>, tag: &Tag| named.is_some_and(|named| named.digest == tag.digest);
    // It may have been made again with another digest.
    let is_named = |named: Option<&Named>, tag: &Tag| named.is_some_and(|named| named.name.eq_ignore_ascii_case(&tag.name));
    let fate = |at: usize, version: u64, tag: &Tag| {
        let is_recorded = facts.recorded.iter().any(|d| d.version == version && d.digest == tag.digest);
        let reasons = [
            (is(facts.now, tag), Why::Serves),
            (is(facts.before, tag) || is_named(facts.before, tag), Why::ServedBefore),
            (facts.pinned.contains(&version), Why::Pinned),
            (at >= first_of_last, Why::Last(keep)),
            (!is_recorded, Why::Unrecorded),
        ];
        let kept = reasons.into_iter().filter_map(|(holds, why)| holds.then_some(why)).collect();
        Fate { name: tag.name.clone(), version, digest: tag.digest.clone(), kept, freed_bytes: 0 }
    };
    versions.into_iter().enumerate().map(|(at, (version, tag))| fate(at, version, tag)).collect()
}

/// Removes a version, with a look before and after. `false`: another hand was faster.
fn remove(registry: &dyn Registry, alias: &ModelName, fate: &Fate) -> Result<bool> {
    let Some(tag) = registry.tag(&fate.name)? else { return Ok(false) };
    let serves = registry.tag(&alias.to_string())?.is_some_and(|now| now.digest == tag.digest);
    if serves || tag.digest != fate.digest {
        let what = if serves { "serves now" } else { "is another model now" };
        return Err(Error::server(
            format!("{} {what}: somebody changed {} meanwhile", fate.name, registry.title()),
            "run the same command again: it looks anew",
        ));
    }
    let deleted = registry.delete(&fate.name);
    match (registry.tag(&fate.name)?, deleted) {
        // Its answer may have been lost.
        (None, _) => Ok(true),
        (Some(_), Err(error)) => Err(error),
        (Some(_), Ok(_)) => Err(Error::server(
            format!("{} said that it deleted {}, and lists it still", registry.title(), fate.name),
            format!("look with `{}`, then run the same command again; nothing that serves was touched", registry.look()),
        )),
    }
}

/// What each name on the server keeps on its disk, and so what becomes free.
struct Ledger {
    /// `None`: the server does not tell.
    held: BTreeMap<String, Option<Held>>,
}

/// What becomes free with a name.
#[derive(Debug, Default, PartialEq, Eq)]
struct Goes {
    own_bytes: u64,
    /// Digest and size.
    files: Vec<(String, u64)>,
}

impl Ledger {
    fn open(registry: &dyn Registry, tags: &[Tag], recorded: &[Deployment]) -> Result<Self> {
        let mut held = BTreeMap::new();
        for tag in tags {
            // Somebody's broken model is no reason not to prune: what it holds cannot be told.
            held.insert(tag.name.clone(), registry.held(tag).unwrap_or(None));
        }
        let mut ledger = Self { held };
        if ledger.files().any(|file| file.size_bytes.is_none()) {
            ledger.learn_sizes(&local_sizes(recorded)?, tags);
        }
        Ok(ledger)
    }

    fn files(&self) -> impl Iterator<Item = &HeldFile> {
        self.held.values().flatten().flat_map(|held| &held.files)
    }

    /// Sizes that the server does not tell: of files that are here, too; else what a tag has beside all other files and its
    /// small texts.
    fn learn_sizes(&mut self, known: &BTreeMap<String, u64>, tags: &[Tag]) {
        for tag in tags {
            let Some(Some(held)) = self.held.get_mut(&tag.name) else { continue };
            for file in &mut held.files {
                file.size_bytes = file.size_bytes.or_else(|| known.get(&file.digest).copied());
            }
            let others: u64 = held.files.iter().filter_map(|file| file.size_bytes).sum::<u64>() + held.texts_at_most_bytes;
            let mut unknown = held.files.iter_mut().filter(|file| file.size_bytes.is_none());
            if let (Some(file), None) = (unknown.next(), unknown.next()) {
                file.size_bytes = Some(tag.size.saturating_sub(others));
            }
        }
    }

    /// What becomes free when this name goes and the others stay; nothing that is not known for sure.
    fn goes_with(&self, name: &str) -> Goes {
        let Some(Some(held)) = self.held.get(name) else { return Goes::default() };
        let others = || self.held.iter().filter(|(other, _)| *other != name).map(|(_, held)| held.as_ref());
        if others().any(|other| other.is_none()) {
            return Goes { own_bytes: held.own_bytes, files: Vec::new() };
        }
        // One that tells its weights only may share each small text.
        let texts_go = others().flatten().all(|other| other.is_whole);
        let is_shared = |file: &HeldFile| others().flatten().flat_map(|other| &other.files).any(|f| f.digest == file.digest);
        let alone = held.files.iter().filter(|file| (file.is_weights || texts_go) && !is_shared(file));
        Goes {
            own_bytes: held.own_bytes,
            files: alone.filter_map(|file| Some((file.digest.clone(), file.size_bytes?))).collect(),
        }
    }

    /// What the tags of a model that are left take, each file once.
    fn bytes_of(&self, tags: &[Tag], alias: &ModelName) -> u64 {
        let is_ours = |tag: &&Tag| ModelName::parse(&tag.name).is_ok_and(|name| name.same_model(alias));
        let (mut files, mut bytes) = (BTreeMap::new(), 0);
        for tag in tags.iter().filter(is_ours) {
            match self.held.get(&tag.name) {
                None => continue,
                Some(Some(held)) if held.files.iter().all(|file| file.size_bytes.is_some()) => {
                    bytes += held.own_bytes;
                    files.extend(held.files.iter().map(|file| (&file.digest, file.size_bytes.unwrap_or_default())));
                }
                Some(_) => bytes += tag.size,
            }
        }
        bytes + files.values().sum::<u64>()
    }
}

/// The files beside the adapters that a server may have got, by their digests.
fn local_sizes(recorded: &[Deployment]) -> Result<BTreeMap<String, u64>> {
    let mut sizes = BTreeMap::new();
    let adapters: BTreeSet<&Path> = recorded.iter().map(|d| Path::new(&d.adapter_path)).filter(|path| path.exists()).collect();
    for adapter in adapters {
        let file = if adapter.is_dir() { adapter.join(super::GGUF_ADAPTER_FILE) } else { adapter.to_owned() };
        for path in [file, folder_of(adapter).join(MERGED_FILE)] {
            if path.is_file() {
                let blob = Blob::of(&path)?;
                sizes.insert(blob.digest, blob.size_bytes);
            }
        }
    }
    Ok(sizes)
}

/// The files that versions which are gone needed and no version that is left does: merged models beside their adapters, and
/// bases that were stored in another type. `recorded`: of the model that is pruned; `every`: of this store.
fn unneeded(recorded: &[Deployment], every: &[Deployment], is_left: &dyn Fn(&Deployment) -> bool, bases: &Path) -> Vec<PathBuf> {
    let merged = |d: &Deployment| {
        let adapter = Path::new(&d.adapter_path);
        // Where the adapter is gone, it cannot be told from a file which folder it lay in.
        (d.mode == "merged" && adapter.exists()).then(|| folder_of(adapter).join(MERGED_FILE))
    };
    let stored = |d: &Deployment| {
        let name = d.recipe["type"].as_str().filter(|_| d.mode == "adapter")?;
        Some(bases.join(stored_name(&d.base_digest, name)))
    };
    let left: Vec<&Deployment> = every.iter().filter(|d| is_left(d)).collect();
    let mut paths = BTreeSet::new();
    for gone in recorded.iter().filter(|d| !is_left(d)) {
        let same_adapter = |d: &&Deployment| d.mode == "merged" && d.adapter_digest == gone.adapter_digest;
        paths.extend(merged(gone).filter(|path| !left.iter().any(|d| same_adapter(d) || merged(d).as_ref() == Some(path))));
        paths.extend(stored(gone).filter(|path| !left.iter().any(|d| stored(d).as_ref() == Some(path))));
    }
    paths.into_iter().filter(|path| path.is_file()).collect()
}

/// The bytes of a file, or of all files in a folder; 0 where there is none.
fn bytes_in(path: &Path, without: &BTreeSet<&Path>) -> u64 {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| bytes_in(&entry.path(), without)).sum()
        }
        Ok(metadata) if !without.contains(path) => metadata.len(),
        _ => 0,
    }
}

/// A pin as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pin {
    pub name: String,
    pub pinned: bool,
    /// It was so before.
    pub already: bool,
}

/// Pins a version, so that it is never pruned, or with `undo` takes the pin away. Asks the server nothing.
pub fn pin(
    registry: &dyn Registry,
    root: &Path,
    (prefix, role): (&str, &str),
    version: &str,
    undo: bool,
    note: &mut dyn FnMut(&str),
) -> Result<Pin> {
    let alias = alias_name(prefix, role)?;
    let version = number(&alias, version)?;
    let name = alias.with_tag(format!("v{version}")).to_string();
    let mut store = Store::open(root)?;
    // A prune that runs has read the pins.
    let _turn = hold(&root.join(".agent/alias.lock"), "another retune is moving an alias or pruning: waiting for it", note)?;
    let records = records_of(&store, registry, &alias)?;
    if !undo && records.iter().all(|d| d.version != version) {
        return Err(unknown(&name, &records, root));
    }
    let (server, model) = (registry.id(), alias.to_string().trim_end_matches(":latest").to_owned());
    let changed = if undo { store.unpin(&server, &model, version)? } else { store.pin(&server, &model, version)? };
    Ok(Pin { name, pinned: !undo, already: !changed })
}

#[cfg(test)]
#[path = "prune_tests.rs"]
mod tests;
