//! A registry that is a folder: a small file a name, which says which base and which adapter. Moving an alias moves some hundred bytes.
//!
//! `<folder>/<model>/<tag>.json`. The digest of a name is that of its file's bytes, so that two names of one model have the same one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::fault;
use crate::formats::durable;
use crate::runtime::{Held, ModelName, Registry, Tag};

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub base: FileEntry,
    /// `None`: the base as it is.
    pub adapter: Option<FileEntry>,
    /// The system text that requests without one get.
    pub system: Option<String>,
    /// The text of the template, where the base's own is not the trained one or is not to be relied on.
    pub template: Option<String>,
    /// How answers are sampled where a request does not say.
    pub parameters: serde_json::Map<String, serde_json::Value>,
}

/// A file that a model is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    pub path: PathBuf,
    /// `sha256:<hex>`
    pub digest: String,
    pub size_bytes: u64,
}

/// The folder.
#[derive(Clone, Debug)]
pub struct Shelf {
    folder: PathBuf,
}

impl Shelf {
    /// Makes nothing yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Puts a model under a name; gives its digest.
    pub fn put(&self, name: &str, manifest: &Manifest) -> Result<String> {
        let path = self.path(name)?;
        let mut bytes = serde_json::to_vec_pretty(manifest)
            .map_err(|e| Error::data(format!("{name} cannot be written down: {e}"), "report this as a bug"))?;
        bytes.push(b'\n');
        self.write(&path, &bytes)?;
        Ok(digest(&bytes))
    }

    /// The file of a name, to put it back as it was; `None` where there is no such name.
    pub(super) fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        read(&self.path(name)?)
    }

    /// Makes a name what `bytes` had.
    pub(super) fn put_back(&self, name: &str, bytes: Option<&[u8]>) -> Result<()> {
        match bytes {
            Some(bytes) => self.write(&self.path(name)?, bytes),
            None => self.delete(name).map(drop),
        }
    }

    /// What a name stands for; `None` where there is no such name.
    pub fn get(&self, name: &str) -> Result<Option<Manifest>> {
        let path = self.path(name)?;
        let Some(bytes) = read(&path)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::file(&path, format!("does not read: {e}"), "deploy that version again, or remove the file"))
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        let name = ModelName::parse(name)?;
        if !name.same_model(&ModelName::parse(&name.model)?) {
            return Err(Error::usage(
                format!("{name} has a host or a user in it, which {} does not know", self.title()),
                "choose a --name-prefix without '/'",
            ));
        }
        // Its parts are safe as parts of a path.
        Ok(self.folder.join(&name.model).join(format!("{}.json", name.tag)))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        durable::write(path, bytes)
    }
}

impl Registry for Shelf {
    fn id(&self) -> String {
        format!("folder:{}", std::path::absolute(&self.folder).unwrap_or_else(|_| self.folder.clone()).display())
    }

    fn title(&self) -> String {
        format!("the registry in {}", self.folder.display())
    }

    fn look(&self) -> &'static str {
        "retune history"
    }

    fn tags(&self) -> Result<Vec<Tag>> {
        let mut tags = Vec::new();
        for model in entries(&self.folder)?.into_iter().filter(|path| path.is_dir()) {
            for path in entries(&model)? {
                let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let (model, file) = (last(&model), last(&path));
                let Some(tag) = file.strip_suffix(".json") else { continue };
                let Ok(name) = ModelName::parse(&format!("{model}:{tag}")) else { continue };
                let Some(bytes) = read(&path)? else { continue };
                let manifest: Option<Manifest> = serde_json::from_slice(&bytes).ok();
                let size = manifest.map_or(0, |m| m.base.size_bytes + m.adapter.map_or(0, |adapter| adapter.size_bytes));
                tags.push(Tag { name: name.to_string(), digest: digest(&bytes), size });
            }
        }
        tags.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(tags)
    }

    fn copy(&self, from: &str, to: &str) -> Result<()> {
        let path = self.path(from)?;
        let bytes = read(&path)?.ok_or_else(|| {
            Error::usage(format!("{} has no {from}", self.title()), "`retune history` shows what was registered")
        })?;
        fault::point(&format!("shelf copy {from} {to}"));
        self.write(&self.path(to)?, &bytes)
    }

    fn delete(&self, name: &str) -> Result<bool> {
        let path = self.path(name)?;
        fault::point(&format!("shelf delete {name}"));
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("remove", &path)(e)),
        }
    }

    /// The manifest alone: base and adapter lie where they were made, and belong to who made them.
    fn held(&self, tag: &Tag) -> Result<Option<Held>> {
        let bytes = read(&self.path(&tag.name)?)?;
        Ok(bytes.map(|bytes| Held { own_bytes: bytes.len() as u64, is_whole: true, ..Held::default() }))
    }

    fn has_file(&self, _digest: &str) -> Result<bool> {
        Ok(false)
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

/// What is in a folder; nothing where there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path()).map_err(Error::io("read", folder))).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io("read", folder)(e)),
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(base: &str) -> Manifest {
        let base = FileEntry { path: base.into(), digest: format!("sha256:{base}"), size_bytes: 100 };
        let adapter = FileEntry { path: "a.gguf".into(), digest: "sha256:a".into(), size_bytes: 7 };
        Manifest { base, adapter: Some(adapter), system: None, template: None, parameters: serde_json::Map::new() }
    }

    #[test]
    fn a_copy_has_the_digest_of_what_it_copies_and_outlives_it() {
        let scratch = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(scratch.path().join("none/yet"));
        assert_eq!(shelf.tags().unwrap(), []);
        let one = shelf.put("m-coder:v1", &manifest("one")).unwrap();
        let two = shelf.put("m-coder:v2", &manifest("two")).unwrap();
        assert_ne!(one, two);
        shelf.copy("m-coder:v1", "m-coder").unwrap();
        assert_eq!(
            shelf.tag("M-coder:latest").unwrap().unwrap(),
            Tag { name: "m-coder:latest".into(), digest: one.clone(), size: 107 }
        );
        assert!(shelf.delete("m-coder:v1").unwrap() && !shelf.delete("m-coder:v1").unwrap());
        assert_eq!(shelf.get("m-coder:latest").unwrap(), Some(manifest("one")));
        assert_eq!(shelf.get("m-coder:v1").unwrap(), None);
        let error = shelf.copy("m-coder:v1", "m-coder").unwrap_err().to_string();
        assert!(error.contains("has no m-coder:v1"), "{error}");
        let names: Vec<String> = shelf.tags().unwrap().into_iter().map(|tag| tag.name).collect();
        assert_eq!(names, ["m-coder:latest", "m-coder:v2"]);
    }

    #[test]
    fn what_is_no_manifest_is_no_model() {
        let scratch = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(scratch.path());
        shelf.put("m:v1", &manifest("one")).unwrap();
        std::fs::write(scratch.path().join("m/.v2.json.1-0.partial"), "{").unwrap();
        std::fs::write(scratch.path().join("m/notes.txt"), "mine").unwrap();
        std::fs::write(scratch.path().join("loose.json"), "{}").unwrap();
        assert!(shelf.put("you/m:v1", &manifest("one")).unwrap_err().to_string().contains("has a host or a user"));
        assert_eq!(shelf.tags().unwrap().len(), 1);
        std::fs::write(scratch.path().join("m/v3.json"), "{\"base\":").unwrap();
        let error = shelf.get("m:v3").unwrap_err().to_string();
        assert!(error.contains("v3.json") && error.contains("does not read"), "{error}");
    }
}
