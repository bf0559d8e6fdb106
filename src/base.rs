//! Opening a base: a Hugging Face folder, a model of the hub, a GGUF file, the tag of a model that the local Ollama holds,
//! or `demo`, the small model in the binary. What comes back is complete: weights, tokenizer, template, digest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::formats::gguf::Gguf;
use crate::formats::safetensors::Tensors;
use crate::model::weights::Weights;
use crate::model::{Decoder, ModelConfig};
use crate::runtime::hub::{Event, Hub, HubId, Snapshot};
use crate::runtime::ollama::{ModelName, store};
use crate::text::template::{BUILT_IN, Template};
use crate::text::tokenizer::Tokenizer;

/// The demo's base, in the binary.
pub const DEMO: &str = "demo";
static DEMO_GGUF: &[u8] = include_bytes!("../models/demo.gguf");

/// Where a base's weights are.
#[derive(Clone)]
pub enum Origin {
    Folder(PathBuf),
    Gguf(Arc<Gguf>),
    /// The demo's, which has no file.
    BuiltIn(Arc<Gguf>),
    /// A tag of the local Ollama: the very blob that it serves.
    Ollama {
        tag: String,
        gguf: Arc<Gguf>,
    },
}

impl Origin {
    pub fn gguf(&self) -> Option<&Gguf> {
        match self {
            Self::Folder(_) => None,
            Self::Gguf(gguf) | Self::BuiltIn(gguf) | Self::Ollama { gguf, .. } => Some(gguf),
        }
    }
}

/// A base, ready to train, score and speak.
pub struct Base {
    /// As the user named it; a model of the hub with its commit (`org/name@<commit>`), so that the name stays what it is.
    pub name: String,
    pub origin: Origin,
    pub decoder: Decoder,
    pub tokenizer: Tokenizer,
    /// The model's own chat template.
    pub own_template: Option<Template>,
    /// The id on the hub, where the files tell it.
    pub hub_id: Option<String>,
}

impl Base {
    /// `open_with` without anybody listening.
    pub fn open(name: &str) -> Result<Self> {
        Self::open_with(name, &mut |_| ())
    }

    /// Opens a base by its name. A model of the hub that is not here is fetched, which `on_event` hears of.
    pub fn open_with(name: &str, on_event: &mut dyn FnMut(Event)) -> Result<Self> {
        let path = Path::new(name);
        if path.is_dir() {
            Self::open_folder(name, path, None)
        } else if path.is_file() {
            Self::open_gguf(name, Origin::Gguf(Arc::new(Gguf::open(path)?)))
        } else if name == DEMO {
            Self::open_gguf(name, Origin::BuiltIn(Arc::new(Gguf::from_bytes(DEMO, bytes::Bytes::from_static(DEMO_GGUF))?)))
        } else if let Some((id, snapshot)) = hub_snapshot(name, on_event)? {
            Self::open_folder(&format!("{id}@{}", snapshot.commit), &snapshot.folder, Some(id))
        } else if path.extension().is_some() && name.contains('/') || name.starts_with(['.', '/', '~']) || is_weight_file(path) {
            Err(Error::file(
                path,
                "there is no such base",
                "check the path; --base takes a folder, a GGUF file, the id of a model on the hub (org/name), an Ollama tag, or `demo`",
            ))
        } else {
            let stored = store::resolve(name)?;
            if !stored.adapters.is_empty() {
                return Err(Error::unsupported(
                    format!("the Ollama model {} already carries an adapter", stored.name),
                    "train on the pristine model that it was made from: adapters would stack",
                ));
            }
            let gguf = Arc::new(Gguf::open(&stored.model_blob)?);
            Self::open_gguf(name, Origin::Ollama { tag: stored.name, gguf })
        }
    }

    fn open_folder(name: &str, folder: &Path, hub_id: Option<String>) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let json: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| Error::file(&path, format!("no valid JSON: {e}"), "mend the file, or fetch the model again"))?;
        let config = ModelConfig::from_hf(&json, &path)?;
        let weights = Weights::from_hf(&Tensors::open_folder(folder)?, &config, folder)?;
        let tokenizer = Tokenizer::from_folder(folder)?;
        let own_template = Template::from_folder(folder, &tokenizer)?;
        let origin = || json.get("_name_or_path").and_then(|v| v.as_str()).filter(|id| is_hub_id(id)).map(str::to_owned);
        Self {
            name: name.to_owned(),
            origin: Origin::Folder(folder.to_owned()),
            decoder: Decoder { config, weights },
            tokenizer,
            own_template,
            hub_id: hub_id.or_else(origin),
        }
        .checked()
    }

    fn open_gguf(name: &str, origin: Origin) -> Result<Self> {
        let Some(gguf) = origin.gguf() else { unreachable!("only origins with a GGUF come here") };
        let config = ModelConfig::from_gguf(gguf)?;
        let weights = Weights::from_gguf(gguf, &config)?;
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        let own_template = Template::from_gguf(gguf, &tokenizer)?;
        let hub_id = gguf_hub_id(gguf)?;
        Self { name: name.to_owned(), decoder: Decoder { config, weights }, tokenizer, own_template, hub_id, origin }.checked()
    }

    /// A tokenizer with more tokens than the model has rows would index past the embedding.
    fn checked(self) -> Result<Self> {
        let (tokens, rows) = (self.tokenizer.vocab_size(), self.decoder.config.vocab_size);
        if tokens > rows {
            return Err(Error::unsupported(
                format!("the tokenizer of {} has {tokens} tokens, the model has {rows}", self.name),
                "the tokenizer belongs to another model; put the right tokenizer.json beside the weights",
            ));
        }
        if let Some(id) = self.tokenizer.largest_id().filter(|&id| id as usize >= rows) {
            return Err(Error::unsupported(
                format!("the tokenizer of {} has the id {id}, the model has the rows 0 to {}", self.name, rows - 1),
                "the tokenizer belongs to another model; put the right tokenizer.json beside the weights",
            ));
        }
        Ok(self)
    }

    /// What to tell where the model gives NaN or infinity.
    pub fn not_finite(&self, what: &str) -> Error {
        match self.decoder.weights.find_non_finite() {
            Some(place) => Error::data(
                format!("{what} is not finite: the weights of {} hold NaN or infinity, first in {place}", self.name),
                "fetch the base again, or take another version of it",
            ),
            None => Error::data(
                format!("{what} is not finite, though the weights of {} are", self.name),
                "look at the adapter (a training that diverged?), or take the base in a wider type",
            ),
        }
    }

    /// The template to render with: the given name or file, else the base's own.
    pub fn template(&self, choice: Option<&str>) -> Result<Template> {
        let known = BUILT_IN.join(", ");
        match choice {
            None => self.own_template.clone().ok_or_else(|| {
                Error::usage(
                    format!("{} has no chat template of its own", self.name),
                    format!("choose one with --template: {known}, or a file with a Jinja template"),
                )
            }),
            Some(name) => match Template::built_in(name) {
                Some(template) => Ok(template),
                None if Path::new(name).is_file() => {
                    let source = std::fs::read_to_string(name).map_err(Error::io("read", name))?;
                    Template::jinja_for(name, &source, &self.tokenizer)
                }
                None => Err(Error::usage(
                    format!("there is no template '{name}'"),
                    format!("--template takes {known}, or the path of a file with a Jinja template"),
                )),
            },
        }
    }

    /// SHA-256 over the files that hold the base's weights and vocabulary.
    pub fn digest(&self) -> Result<String> {
        let mut hash = Sha256::new();
        match &self.origin {
            Origin::Gguf(gguf) | Origin::BuiltIn(gguf) | Origin::Ollama { gguf, .. } => hash.update(gguf.bytes()),
            Origin::Folder(folder) => {
                for path in folder_files(folder)? {
                    hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
                    let mut file = std::fs::File::open(&path).map_err(Error::io("open", &path))?;
                    std::io::copy(&mut file, &mut HashWriter(&mut hash)).map_err(Error::io("read", &path))?;
                }
            }
        }
        Ok(format!("sha256:{}", hex(&hash.finalize())))
    }

    /// Row length when the user names none: 2,048 or the model's context where that is less.
    pub fn default_max_length(&self) -> usize {
        self.decoder.config.context_length.min(2048)
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Lowercase hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The files of a folder that decide what the model computes, sorted by name.
fn folder_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("list", folder))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| {
            p.extension().is_some_and(|e| ["safetensors", "json", "jinja", "txt", "model"].iter().any(|known| e == *known))
        })
        .collect();
    files.sort();
    Ok(files)
}

/// A file's name rather than a model's.
fn is_weight_file(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf") || e.eq_ignore_ascii_case("safetensors"))
}

fn is_hub_id(text: &str) -> bool {
    HubId::parse(text).is_some_and(|id| id.revision.is_none())
}

/// The id and the files of a model of the hub, where a name means one: fetched as far as they are not in the cache.
pub fn hub_snapshot(name: &str, on_event: &mut dyn FnMut(Event)) -> Result<Option<(String, Snapshot)>> {
    let Some((hub, id)) = on_hub(name)? else { return Ok(None) };
    let snapshot = hub.snapshot(&id, on_event)?;
    Ok(Some((id.id, snapshot)))
}

/// The hub, where a name is the id of a model there that would have to be fetched.
pub fn to_fetch(name: &str) -> Result<Option<(Hub, HubId)>> {
    if Path::new(name).exists() {
        return Ok(None);
    }
    Ok(on_hub(name)?.filter(|(hub, id)| hub.cache.snapshot(id).is_none()))
}

/// The hub, where a name is the id of a model there. Ollama has names of that form, too (`user/model`): one that its store
/// holds is meant, unless the cache of the hub has it as well.
fn on_hub(name: &str) -> Result<Option<(Hub, HubId)>> {
    let Some(id) = HubId::parse(name).filter(|_| !is_weight_file(Path::new(name))) else { return Ok(None) };
    let hub = Hub::from_env()?;
    let in_ollama = || {
        let wanted = ModelName::parse(name).ok();
        wanted.is_some_and(|wanted| store::Store::from_env().names().iter().any(|there| there.same(&wanted)))
    };
    Ok((hub.cache.snapshot(&id).is_some() || !in_ollama()).then_some((hub, id)))
}

/// The hub id that a GGUF names as its source (ggml docs/gguf.md, "Source metadata").
fn gguf_hub_id(gguf: &Gguf) -> Result<Option<String>> {
    for key in
        ["general.repo_url", "general.source.repo_url", "general.source.huggingface.repository", "general.base_model.0.repo_url"]
    {
        if let Some(value) = gguf.get_str(key)? {
            let id = value
                .trim_end_matches('/')
                .rsplit('/')
                .take(2)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect::<Vec<_>>()
                .join("/");
            if is_hub_id(&id) {
                return Ok(Some(id));
            }
        }
    }
    Ok(None)
}
