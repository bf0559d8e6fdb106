//! From the runs of a role to its training set: curated, written, and recorded with the runs that it is made of.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::base::hex;
use crate::config::Config;
use crate::curate::{Curated, Part, Settings, curate, export, preferences};
use crate::domain::{Candidate, Example};
use crate::error::{Error, Result};
use crate::store::{NewSnapshot, Store};

/// A role's set as it would be now.
pub struct RoleSet {
    pub role: String,
    pub curated: Curated,
    /// The newest run that was looked at; 0: there was none.
    pub newest_run: i64,
    settings: Settings,
    candidates: Vec<Candidate>,
    parts: HashMap<String, Part>,
}

/// How a set is written for people and other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `{"instruction", "input", "output"}`; what that cannot say stands in a second file.
    Alpaca,
    /// `{"messages", "tools"?}`
    Messages,
    /// Pairs of a better and a worse answer.
    Preferences,
}

/// Files of a set, and what stands in them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExportedFile {
    pub path: PathBuf,
    pub rows: usize,
}

/// A file as it was written, to know it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    pub path: PathBuf,
    pub digest: String,
}

impl Frozen {
    fn of(path: PathBuf) -> Result<Self> {
        let digest = file_digest(&path)?;
        Ok(Self { path, digest })
    }

    /// That it is still what it was.
    pub fn check(&self) -> Result<()> {
        if file_digest(&self.path)? == self.digest {
            return Ok(());
        }
        Err(Error::file(
            &self.path,
            "is not what this cycle wrote",
            "put it back, or end the cycle with `retune cycle --give-up` and begin another",
        ))
    }
}

impl RoleSet {
    /// Looks at every run of a role, and writes nothing.
    pub fn of(store: &Store, config: &Config, role: &str) -> Result<Self> {
        let settings = Settings::from(config);
        let newest_run = store.newest_run(role)?;
        // What is recorded from here on is of the next set.
        let mut candidates = store.candidates(role)?;
        candidates.retain(|candidate| candidate.run <= newest_run);
        let part = |held_out| if held_out { Part::HeldOut } else { Part::Train };
        let parts: HashMap<String, Part> =
            store.task_parts(role)?.into_iter().map(|(group, held_out)| (group, part(held_out))).collect();
        let curated = curate(&candidates, &parts, &mut |run| store.example(run), &settings)?;
        Ok(Self { role: role.to_owned(), curated, newest_run, settings, candidates, parts })
    }

    /// Records the set with the runs that it is made of. Gives its number.
    pub fn record(&self, store: &mut Store) -> Result<i64> {
        let new_parts: Vec<(String, bool)> =
            self.curated.new_parts.iter().map(|(group, part)| (group.clone(), *part == Part::HeldOut)).collect();
        let settings = &self.settings;
        store.record_snapshot(&NewSnapshot {
            role: &self.role,
            digest: &self.curated.digest,
            train: &self.curated.train,
            held_out: &self.curated.held_out,
            newest_run: self.newest_run,
            settings: &json!({
                "minReward": settings.min_reward, "minObserved": settings.min_observed, "maxExamples": settings.max_examples,
                "maxPerTask": settings.max_per_task, "nearDuplicate": settings.near_duplicate,
                "heldOutShare": settings.held_out_share, "minHeldOut": settings.min_held_out, "maxHeldOut": settings.max_held_out,
            }),
            new_parts: &new_parts,
        })
    }

    /// How many were left out, by why.
    pub fn left_out(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        self.curated.left_out.iter().for_each(|(_, why)| *counts.entry(why.name()).or_default() += 1);
        counts
    }

    /// Writes the training part to `.agent/sft/<role>_sft.jsonl`, as other programs read it.
    pub fn write(&self, store: &Store, root: &Path, shape: Shape, out: Option<&Path>) -> Result<Vec<ExportedFile>> {
        let usual = |ending: &str| sft_folder(root).join(format!("{}_{ending}.jsonl", self.role));
        let path = |ending: &str| out.map_or_else(|| usual(ending), Path::to_owned);
        let make = |path: &Path| match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            Some(folder) => std::fs::create_dir_all(folder).map_err(Error::io("create", folder)),
            None => Ok(()),
        };
        match shape {
            Shape::Alpaca => {
                let (path, examples) = (path("sft"), self.examples(store, &self.curated.train)?);
                make(&path)?;
                let written = export::write_alpaca(&path, &examples)?;
                let beside = written.beside.map(|path| ExportedFile { path, rows: written.messages });
                Ok(std::iter::once(ExportedFile { path, rows: written.alpaca }).chain(beside).collect())
            }
            Shape::Messages => {
                let (path, examples) = (path("messages"), self.examples(store, &self.curated.train)?);
                make(&path)?;
                Ok(vec![ExportedFile { rows: export::write_messages(&path, &examples)?, path }])
            }
            Shape::Preferences => {
                let mut parts = self.parts.clone();
                parts.extend(self.curated.new_parts.iter().cloned());
                let pairs = preferences(&self.candidates, &parts, &mut |run| store.example(run), &self.settings)?;
                let pair = |(chosen, rejected): &(i64, i64)| Ok((store.example(*chosen)?, store.example(*rejected)?));
                let pairs = pairs.iter().map(pair).collect::<Result<Vec<_>>>()?;
                let path = path("preferences");
                make(&path)?;
                Ok(vec![ExportedFile { rows: export::write_preferences(&path, &pairs)?, path }])
            }
        }
    }

    /// Writes both parts into a folder, as `retune train` and `retune evaluate` read them: training, held out.
    pub fn freeze(&self, store: &Store, folder: &Path) -> Result<[Frozen; 2]> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let write = |name: &str, runs: &[i64]| {
            let path = folder.join(name);
            export::write_messages(&path, &self.examples(store, runs)?)?;
            Frozen::of(path)
        };
        Ok([write("train.jsonl", &self.curated.train)?, write("held_out.jsonl", &self.curated.held_out)?])
    }

    fn examples(&self, store: &Store, runs: &[i64]) -> Result<Vec<Example>> {
        runs.iter().map(|run| store.example(*run)).collect()
    }
}

pub fn sft_folder(root: &Path) -> PathBuf {
    root.join(".agent/sft")
}

fn file_digest(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    Ok(format!("sha256:{}", hex(&Sha256::digest(bytes))))
}
