//! Ollama's local store: from a tag to the files that are served, so that the very weights that are served are trained.
//!
//! `<root>/manifests/<host>/<namespace>/<model>/<tag>` is JSON that lists layers; a layer is the file
//! `<root>/blobs/sha256-<hex>`. Source: ollama, manifest/ and types/model/name.go.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::blob::{digest_in, digest_text};
use super::name::ModelName;
use super::wire::Tag;
use crate::error::{Error, Result};
use crate::runtime::{Held, HeldFile};

/// A manifest is a few kilobytes; templates and parameters, too.
const MAX_TEXT_BYTES: u64 = 16 << 20;
const LAYER: &str = "application/vnd.ollama.image.";

/// A model of the store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredModel {
    /// The shortest form, as Ollama lists it, spelled as the store has it.
    pub name: String,
    pub manifest: PathBuf,
    /// SHA-256 of the manifest, as `/api/tags` shows it: `sha256:` and the digits.
    pub digest: String,
    /// The GGUF that is served, and its digest as the manifest says it.
    pub model_blob: PathBuf,
    pub model_digest: String,
    /// The Go template, where the model has one of its own.
    pub template: Option<String>,
    pub system: Option<String>,
    /// `{"stop": [...], "temperature": ...}`.
    pub params: Option<Value>,
    /// Adapters that are served with it. A new adapter would be stacked on these: refuse to train on such a model.
    pub adapters: Vec<PathBuf>,
    /// The name of a renderer that is built into Ollama and stands in the template's place.
    pub renderer: Option<String>,
}

impl StoredModel {
    /// Whether it is a base with an adapter on it already.
    pub fn has_adapter(&self) -> bool {
        !self.adapters.is_empty()
    }
}

/// The folders that hold a store, in the order in which they are searched.
#[derive(Clone, Debug)]
pub struct Store {
    roots: Vec<PathBuf>,
}

/// `Store::from_env().resolve(tag)`.
pub fn resolve(tag: &str) -> Result<StoredModel> {
    Store::from_env().resolve(tag)
}

impl Store {
    /// `OLLAMA_MODELS`, `~/.ollama/models`, and where the Linux service keeps its models.
    pub fn from_env() -> Self {
        let set = std::env::var_os("OLLAMA_MODELS").filter(|path| !path.is_empty()).map(PathBuf::from);
        let home = std::env::var_os("HOME").filter(|path| !path.is_empty()).map(|home| Path::new(&home).join(".ollama/models"));
        Self::new(set.into_iter().chain(home).chain([PathBuf::from("/usr/share/ollama/.ollama/models")]))
    }

    pub fn new(roots: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { roots: roots.into_iter().collect() }
    }

    /// Finds a tag (`smollm2`, `smollm2:135m`, `user/model:tag`, `host/user/model:tag`; case does not matter). A tag that
    /// is not there is an error that lists near names that are.
    pub fn resolve(&self, tag: &str) -> Result<StoredModel> {
        let name = ModelName::parse(tag)?;
        for root in &self.roots {
            if let Some((found, manifest)) = find(&root.join("manifests"), &name) {
                return read_model(root, &found, &manifest);
            }
        }
        Err(self.missing(&name))
    }

    /// What a tag of a server keeps on its disk, read from this store: `None` where the tag is not in it. A manifest of the
    /// same digest names the same files of the same sizes, whatever machine it lies on.
    pub fn held(&self, tag: &Tag) -> Option<Held> {
        let name = ModelName::parse(&tag.name).ok()?;
        self.roots.iter().find_map(|root| {
            let text = read_small(&find(&root.join("manifests"), &name)?.1).ok()?;
            let digest = digest_text(&Sha256::digest(&text));
            if tag.digest.trim_start_matches("sha256:") != &digest["sha256:".len()..] {
                return None;
            }
            let manifest: Manifest = serde_json::from_slice(&text).ok()?;
            let mut files: Vec<HeldFile> = Vec::new();
            for layer in manifest.layers.iter().chain(&manifest.config) {
                let digest = digest_in(&layer.digest)?;
                let kind = layer.media_type.strip_prefix(LAYER).unwrap_or_default();
                if files.iter().all(|file| file.digest != digest) {
                    let is_weights = ["model", "adapter", "projector"].contains(&kind);
                    files.push(HeldFile { digest, size_bytes: Some(layer.size?), is_weights });
                }
            }
            Some(Held { own_bytes: text.len() as u64, files, is_whole: true, texts_at_most_bytes: 0 })
        })
    }

    /// Every name of the store, sorted.
    pub fn names(&self) -> Vec<ModelName> {
        let mut names = Vec::new();
        for root in &self.roots {
            for (parts, _) in walk(&root.join("manifests"), 4) {
                let [host, namespace, model, tag] = &parts[..] else { continue };
                names.extend(ModelName::parse(&format!("{host}/{namespace}/{model}:{tag}")));
            }
        }
        names.sort_by_key(ToString::to_string);
        names.dedup();
        names
    }

    /// Roots that are there and cannot be read, and why: the store of the Linux service may be its user's alone.
    pub fn unreadable(&self) -> Vec<(PathBuf, std::io::Error)> {
        let folders = self.roots.iter().flat_map(|root| [root.join("manifests"), root.join("blobs")]);
        let failed = folders.filter_map(|folder| Some((folder.clone(), fs::read_dir(&folder).err()?)));
        failed.filter(|(_, why)| why.kind() == std::io::ErrorKind::PermissionDenied).collect()
    }

    fn missing(&self, name: &ModelName) -> Error {
        let mut near: Vec<(usize, String)> =
            self.names().iter().map(|there| (distance(name, there), there.to_string())).collect();
        near.sort();
        let roots: Vec<String> = self.roots.iter().filter(|root| root.is_dir()).map(|root| root.display().to_string()).collect();
        let message = if roots.is_empty() {
            let tried: Vec<String> = self.roots.iter().map(|root| root.display().to_string()).collect();
            format!("no Ollama model '{name}': there is no store at {}", tried.join(", "))
        } else {
            format!("no Ollama model '{name}' in {}", roots.join(", "))
        };
        let pull = format!("`ollama pull {name}` fetches it; OLLAMA_MODELS says where another store is");
        let near: Vec<String> = near.into_iter().take(5).map(|(_, name)| name).collect();
        Error::usage(message, if near.is_empty() { pull } else { format!("there are {}; {pull}", near.join(", ")) })
    }
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    config: Option<Layer>,
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: Option<u64>,
}

/// The manifest of a name under `manifests`: spelled so, else in another case, as file systems and Ollama's names allow.
fn find(manifests: &Path, name: &ModelName) -> Option<(ModelName, PathBuf)> {
    let exact = name.parts().iter().fold(manifests.to_owned(), |path, part| path.join(part));
    if exact.is_file() {
        return Some((name.clone(), exact));
    }
    let mut candidates = vec![(Vec::<String>::new(), manifests.to_owned())];
    for part in name.parts() {
        candidates = candidates
            .iter()
            .flat_map(|(parts, folder)| {
                let fits = entries(folder).into_iter().filter(|entry| entry.eq_ignore_ascii_case(part));
                fits.map(|entry| ([parts.as_slice(), std::slice::from_ref(&entry)].concat(), folder.join(&entry)))
            })
            .collect();
    }
    let (parts, path) = candidates.into_iter().find(|(_, path)| path.is_file())?;
    let [host, namespace, model, tag] = <[String; 4]>::try_from(parts).ok()?;
    Some((ModelName { host, namespace, model, tag }, path))
}

/// Names in a folder, sorted; none where it cannot be read.
fn entries(folder: &Path) -> Vec<String> {
    let read = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = read.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Files that lie exactly `depth` below, with the parts of their way.
fn walk(folder: &Path, depth: usize) -> Vec<(Vec<String>, PathBuf)> {
    let mut level = vec![(Vec::new(), folder.to_owned())];
    for _ in 0..depth {
        level = level
            .iter()
            .flat_map(|(parts, folder)| {
                entries(folder)
                    .into_iter()
                    .map(|entry| ([parts.as_slice(), std::slice::from_ref(&entry)].concat(), folder.join(&entry)))
            })
            .collect();
    }
    level.retain(|(_, path)| path.is_file());
    level
}

fn read_model(root: &Path, name: &ModelName, path: &Path) -> Result<StoredModel> {
    let broken =
        |message: String| Error::file(path, message, format!("`ollama pull {name}` (or creating it again) mends the store"));
    let text = read_small(path)?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| broken(format!("is no manifest of Ollama's: {error}")))?;
    let layers = |kind: &str| {
        manifest.layers.iter().filter(move |layer| layer.media_type.strip_prefix(LAYER) == Some(kind)).collect::<Vec<_>>()
    };
    let file = |layer: &Layer| blob_path(root, layer).map_err(&broken);
    let text_of = |kinds: &[&str]| -> Result<Option<String>> {
        let Some(layer) = kinds.iter().flat_map(|kind| layers(kind)).next_back() else { return Ok(None) };
        let path = file(layer)?;
        String::from_utf8(read_small(&path)?).map(Some).map_err(|_| broken(format!("its layer {} is no UTF-8", layer.digest)))
    };

    let models = layers("model");
    let model = match models[..] {
        [model] => model,
        [] if manifest.layers.iter().any(|layer| layer.media_type.ends_with("tensor")) => {
            return Err(Error::unsupported(
                format!("the Ollama model {name} is stored as safetensors, not as GGUF"),
                "give the Hugging Face folder that it was made from",
            ));
        }
        [] => {
            return Err(Error::unsupported(
                format!("the Ollama model {name} has no weights on this machine (a cloud model?)"),
                "choose a model that runs here",
            ));
        }
        _ => {
            return Err(Error::unsupported(
                format!("the Ollama model {name} is split into {} files", models.len()),
                "join them with llama-gguf-split --merge and give the GGUF file",
            ));
        }
    };
    let params = match text_of(&["params"])? {
        None => None,
        Some(text) => Some(serde_json::from_str(&text).map_err(|error| broken(format!("its parameters are no JSON: {error}")))?),
    };
    // Only a hint for the prompt: a store without it is still whole.
    let config: Option<Value> =
        manifest.config.as_ref().and_then(|layer| serde_json::from_slice(&read_small(&file(layer).ok()?).ok()?).ok());
    let renderer =
        config.and_then(|config| config.get("renderer")?.as_str().map(str::to_owned)).filter(|renderer| !renderer.is_empty());
    Ok(StoredModel {
        name: name.to_string(),
        manifest: path.to_owned(),
        digest: digest_text(&Sha256::digest(&text)),
        model_blob: file(model)?,
        model_digest: digest_in(&model.digest).ok_or_else(|| broken(format!("has the digest '{}'", model.digest)))?,
        template: text_of(&["template", "prompt"])?,
        system: text_of(&["system"])?,
        params,
        adapters: layers("adapter").into_iter().map(file).collect::<Result<_>>()?,
        renderer,
    })
}

/// The file of a layer. The digest comes from a file, so it is checked before it becomes a path.
fn blob_path(root: &Path, layer: &Layer) -> Result<PathBuf, String> {
    let digest = digest_in(&layer.digest)
        .filter(|digest| digest.len() == layer.digest.len())
        .ok_or_else(|| format!("has a layer with the digest '{}', expected sha256: and 64 hexadecimal digits", layer.digest))?;
    let hex = &digest["sha256:".len()..];
    // Stores of before 2024 have a colon in the names.
    let names = [format!("sha256-{hex}"), digest.clone()];
    let found = names.iter().map(|name| root.join("blobs").join(name)).find_map(|path| Some((fs::metadata(&path).ok()?, path)));
    let (metadata, path) =
        found.ok_or_else(|| format!("names the blob sha256-{hex}, which is not in {}", root.join("blobs").display()))?;
    match layer.size {
        Some(size) if size != metadata.len() => Err(format!(
            "says that blob sha256-{hex} has {size} bytes, the file has {}: a download was cut short",
            metadata.len()
        )),
        _ => Ok(path),
    }
}

fn read_small(path: &Path) -> Result<Vec<u8>> {
    let size = fs::metadata(path).map_err(Error::io("read", path))?.len();
    if size > MAX_TEXT_BYTES {
        return Err(Error::file(
            path,
            format!("has {size} bytes, expected at most {MAX_TEXT_BYTES}"),
            "this is no manifest or text of Ollama's; fetch the model again",
        ));
    }
    fs::read(path).map_err(Error::io("read", path))
}

/// How far two names are apart: the same model under another tag is near, then edits of the model's name.
fn distance(wanted: &ModelName, there: &ModelName) -> usize {
    let (a, b) = (wanted.model.to_ascii_lowercase(), there.model.to_ascii_lowercase());
    let mut model = edits(a.as_bytes(), b.as_bytes());
    if a.starts_with(&b) || b.starts_with(&a) {
        model = model.min(1);
    }
    model * 100 + edits(wanted.tag.as_bytes(), there.tag.as_bytes())
}

/// Levenshtein's distance.
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
