//! The Hugging Face hub: a model's files are fetched into the cache that huggingface_hub uses, so that they are there for
//! other tools, too. Why no crate does it: docs/decisions/0005-an-own-client-of-the-hub.md.

mod cache;
mod client;
mod download;

use std::fmt;

pub use self::cache::{Cache, Snapshot};
use self::cache::{INDEX, ModelCache, SINGLE, TOKENIZERS, missing_from, shards_in};
use self::client::{ATTEMPTS, Client, Failure, Listing, is_true, patiently};
use crate::error::{Error, Result};
use crate::machine;

/// `org/name`, or `org/name@revision` (a branch, a tag, a commit).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    pub id: String,
    pub revision: Option<String>,
}

impl HubId {
    /// `None` where the text has not the form of one.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let (org, name) = id.split_once('/')?;
        let revision_is_fine = |r: &str| r.split('/').all(cache::is_plain_name);
        let fine = cache::is_plain_name(org) && cache::is_plain_name(name) && revision.is_none_or(revision_is_fine);
        // The cache writes `/` as `--`.
        (fine && !id.contains("--")).then(|| Self { id: id.to_owned(), revision: revision.map(str::to_owned) })
    }

    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

/// What is told while a model is fetched.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A sentence for people.
    Note(&'a str),
    /// Files that were here when it began count as done.
    Bytes { file: &'a str, done: u64, total: u64 },
}

/// A file as the hub describes it.
struct Remote {
    name: String,
    url: String,
    /// For a large file its SHA-256; the blob's name in the cache.
    etag: String,
    size: u64,
}

/// The hub, and the cache before it.
pub struct Hub {
    pub cache: Cache,
    client: Client,
    offline: bool,
}

/// What is read of a model besides its weights; all of it where it is there.
const SMALL: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

impl Hub {
    /// As the variables of Hugging Face's tools say: `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT`,
    /// `HF_HUB_OFFLINE`. Asks nothing yet.
    pub fn from_env() -> Result<Self> {
        let is_set = |name: &str| std::env::var(name).is_ok_and(|value| is_true(value.trim()));
        let offline = is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE");
        Ok(Self { cache: Cache::from_env(), client: Client::from_env()?, offline })
    }

    pub fn endpoint(&self) -> &str {
        &self.client.endpoint
    }

    /// Where the token is from; the token itself is shown to nobody.
    pub fn token_source(&self) -> Option<&str> {
        self.client.token_source()
    }

    /// Whether the token goes to this endpoint: over http:// to another machine it does not.
    pub fn token_is_sent(&self) -> bool {
        self.client.token_is_sent()
    }

    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// The folder of a model, complete: fetched as far as it is not in the cache. Where the hub is away, or refuses, a
    /// snapshot that is here is used and told. A commit that is here is not asked for: it never changes.
    pub fn snapshot(&self, id: &HubId, on_event: &mut dyn FnMut(Event)) -> Result<Snapshot> {
        let cached = self.cache.snapshot(id);
        if let Some(snapshot) = cached.as_ref().filter(|s| self.offline || id.revision() == s.commit) {
            return Ok(snapshot.clone());
        }
        let model = self.cache.model(&id.id);
        if self.offline {
            return Err(self.not_here(id, &model));
        }
        // What is here is better than a long wait.
        let attempts = if cached.is_some() { 1 } else { ATTEMPTS };
        let listing = match (patiently(attempts, || self.client.list(id)), cached) {
            (Ok(listing), _) => listing,
            (Err(failure), Some(snapshot)) => {
                let why = match failure {
                    Failure::Passing { why, .. } => why,
                    Failure::Final(error) => error.to_string(),
                };
                on_event(Event::Note(&format!(
                    "{id} is taken from the cache ({}), as the hub does not answer: {why}",
                    &snapshot.commit[..12]
                )));
                return Ok(snapshot);
            }
            (Err(Failure::Final(error)), None) => return Err(error),
            (Err(Failure::Passing { why, .. }), None) => return Err(self.client.away(id, &why)),
        };
        self.fetch(id, &model, &listing, on_event)?;
        Ok(Snapshot { folder: model.snapshot(&listing.commit), commit: listing.commit })
    }

    /// What fetching a model would bring: how many files, and their bytes. Writes nothing.
    pub fn to_fetch(&self, id: &HubId) -> Result<(usize, u64)> {
        let model = self.cache.model(&id.id);
        if self.offline {
            return Err(self.not_here(id, &model));
        }
        let listing = match patiently(2, || self.client.list(id)) {
            Ok(listing) => listing,
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing { why, .. }) => return Err(self.client.away(id, &why)),
        };
        check_kind(id, &listing.files)?;
        let mut names = wanted(&listing.files);
        if names.iter().any(|name| name == INDEX) {
            // As nearly all indices name their shards; which ones it really names is seen when it is fetched.
            let is_shard = |name: &&String| name.starts_with("model-") && name.ends_with(".safetensors");
            names.extend(listing.files.iter().filter(is_shard).cloned());
        }
        let missing = self.heads(id, &model, &listing.commit, &names)?;
        Ok((missing.len(), missing.iter().map(|file| file.size).sum()))
    }

    fn fetch(&self, id: &HubId, model: &ModelCache, listing: &Listing, on_event: &mut dyn FnMut(Event)) -> Result<()> {
        let commit = &listing.commit;
        let has = |name: &str| listing.files.iter().any(|file| file == name);
        check_kind(id, &listing.files)?;
        let names = wanted(&listing.files);
        let mut missing = self.heads(id, model, commit, &names)?;
        if !has(SINGLE) {
            // The index says which shards there are; it is small.
            let place = missing.iter().position(|file| file.name == INDEX);
            if let Some(file) = place.map(|place| missing.remove(place)) {
                model.prepare(commit)?;
                self.download(id, model, commit, &file, &mut |_, _| ())?;
            }
            let path = model.snapshot(commit).join(INDEX);
            let index = std::fs::read(&path).map_err(Error::io("read", &path))?;
            let shards = shards_in(&index).filter(|shards| shards.iter().all(|shard| has(shard))).ok_or_else(|| {
                Error::file(
                    &path,
                    "names shards that the model does not have",
                    "the model is incomplete on the hub: choose another revision",
                )
            })?;
            missing.extend(self.heads(id, model, commit, &shards)?);
        }
        self.check_disk(id, model, &missing)?;
        model.prepare(commit)?;
        if !missing.is_empty() {
            let total: u64 = missing.iter().map(|file| file.size).sum();
            let text = format!("fetching {id} from {}: {} files, {}", self.client.endpoint, missing.len(), human(total));
            on_event(Event::Note(&text));
            let mut before = 0;
            for file in &missing {
                let mut tell = |note: Option<&str>, done: u64| match note {
                    Some(note) => on_event(Event::Note(note)),
                    None => on_event(Event::Bytes { file: &file.name, done: before + done, total }),
                };
                self.download(id, model, commit, file, &mut tell)?;
                before += file.size;
            }
        }
        model.set_ref(id.revision(), commit)
    }

    /// What the hub says of the files that the snapshot does not have yet.
    fn heads(&self, id: &HubId, model: &ModelCache, commit: &str, names: &[String]) -> Result<Vec<Remote>> {
        let missing = names.iter().filter(|name| !model.snapshot(commit).join(name).is_file());
        missing
            .map(|name| match patiently(ATTEMPTS, || self.client.head(id, commit, name)) {
                Ok(remote) => Ok(remote),
                Err(Failure::Final(error)) => Err(error),
                Err(Failure::Passing { why, .. }) => Err(self.client.away(id, &why)),
            })
            .collect()
    }

    /// Said before gigabytes are fetched, not after.
    fn check_disk(&self, id: &HubId, model: &ModelCache, files: &[Remote]) -> Result<()> {
        let here = |path: std::path::PathBuf| std::fs::metadata(path).map_or(0, |m| m.len());
        let left = |file: &Remote| file.size.saturating_sub(here(model.blob(&file.etag)).max(here(model.incomplete(&file.etag))));
        let needed: u64 = files.iter().map(left).sum();
        match machine::free_disk_bytes(&self.cache.root) {
            Some(free) if free < needed => Err(Error::file(
                &self.cache.root,
                format!("{id} needs {} more, and its disk has {} free", human(needed), human(free)),
                "free some space, or set HF_HOME to a folder on another disk",
            )),
            _ => Ok(()),
        }
    }

    fn not_here(&self, id: &HubId, model: &ModelCache) -> Error {
        let why = match model.commit_of(id.revision()) {
            Some(commit) => {
                let lacks = missing_from(&model.snapshot(&commit)).unwrap_or_default();
                format!("its snapshot in {} lacks {lacks}", self.cache.root.display())
            }
            None => format!("it is not in {}", self.cache.root.display()),
        };
        Error::usage(
            format!("HF_HUB_OFFLINE forbids to fetch {id}, and {why}"),
            "unset HF_HUB_OFFLINE once to fetch it, or set HF_HOME to where it is",
        )
    }
}

/// The files to fetch, without shards: the index says those.
fn wanted(files: &[String]) -> Vec<String> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let mut names: Vec<String> = SMALL.iter().filter(|name| has(name)).map(|&name| name.to_owned()).collect();
    // For bases with a SentencePiece model only; where there is a tokenizer.json nobody reads it.
    if !has("tokenizer.json") && has("tokenizer.model") {
        names.push("tokenizer.model".to_owned());
    }
    names.push(if has(SINGLE) { SINGLE } else { INDEX }.to_owned());
    names
}

/// Refuses what is no base in safetensors, by the names of its files.
fn check_kind(id: &HubId, files: &[String]) -> Result<()> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let some = |end: &str| files.iter().any(|file| file.ends_with(end));
    let unsupported = |message: String, hint: String| Err(Error::unsupported(message, hint));
    if has("adapter_config.json") && !has("config.json") {
        return unsupported(
            format!("{id} is an adapter, not a base"),
            "its page names the base that it was trained on: give that with --base".to_owned(),
        );
    }
    if has(SINGLE) || has(INDEX) {
        return match (has("config.json"), TOKENIZERS.iter().any(|name| has(name))) {
            (true, true) => Ok(()),
            (false, _) => {
                unsupported(format!("{id} has no config.json"), "choose a model in the layout of transformers".to_owned())
            }
            (_, false) => {
                unsupported(format!("{id} has no tokenizer"), "choose a copy of the model with a tokenizer.json".to_owned())
            }
        };
    }
    if some(".gguf") {
        return unsupported(
            format!("{id} holds GGUF files, no safetensors"),
            format!("`ollama pull hf.co/{0}` fetches it, then --base hf.co/{0}; or download one file and give its path", id.id),
        );
    }
    if some(".bin") || some(".pt") || some(".pth") {
        return unsupported(
            format!("{id} has only pickled weights, no {SINGLE}"),
            "pickled weights can run code and are not read: choose a copy in safetensors (often a revision, such as @refs/pr/1), or save it with safe_serialization=True".to_owned(),
        );
    }
    unsupported(format!("{id} holds no weights in safetensors"), "choose a model in the layout of transformers".to_owned())
}

/// `12.3 MB`
fn human(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        0.0..1e6 => format!("{:.1} kB", bytes / 1e3),
        1e6..1e9 => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.2} GB", bytes / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_an_organisation_a_name_and_perhaps_a_revision_and_never_leaves_the_cache() {
        let id = HubId::parse("Qwen/Qwen2.5-0.5B-Instruct").unwrap();
        assert_eq!((id.id.as_str(), id.revision(), id.revision.as_ref()), ("Qwen/Qwen2.5-0.5B-Instruct", "main", None));
        let id = HubId::parse("org/name@refs/pr/1").unwrap();
        assert_eq!((id.id.as_str(), id.revision(), id.to_string().as_str()), ("org/name", "refs/pr/1", "org/name@refs/pr/1"));
        for wrong in
            ["name", "a/b/c", "../x", "a/..", "a/b@../../x", "a/b@", "/a", "a/", "a/b:tag", "./a", "a b/c", "a--b/c", "a/b@x//y"]
        {
            assert_eq!(HubId::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_no_base_is_told_by_its_files() {
        let said = |files: &[&str]| {
            let files: Vec<String> = files.iter().map(|f| (*f).to_owned()).collect();
            check_kind(&HubId::parse("o/m").unwrap(), &files).map_err(|e| format!("{e}; {}", e.hint().unwrap_or_default()))
        };
        assert_eq!(said(&["config.json", "tokenizer.json", SINGLE, "pytorch_model.bin"]), Ok(()));
        assert_eq!(said(&["config.json", "vocab.json", INDEX]), Ok(()));
        for (files, part) in [
            (&["config.json", "pytorch_model.bin"][..], "only pickled weights"),
            (&["a.Q4_0.gguf"], "ollama pull hf.co/o/m"),
            (&["adapter_config.json", "adapter_model.safetensors"], "is an adapter"),
            (&["config.json", SINGLE], "no tokenizer"),
            (&["tokenizer.json", SINGLE], "no config.json"),
            (&["README.md"], "no weights"),
        ] {
            let error = said(files).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
