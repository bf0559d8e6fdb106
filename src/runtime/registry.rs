//! Where names stand for models: what an alias is moved on.

use super::{ModelName, Tag};
use crate::error::Result;

/// What one name keeps on a registry's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes that no other name can share: the manifest.
    pub own_bytes: u64,
    /// Files that other names may share.
    pub files: Vec<HeldFile>,
    /// Whether `files` are all of them. Else they are the weights, and small texts may stand beside them.
    pub is_whole: bool,
    /// Bytes of the small texts that are not among `files`, at most.
    pub texts_at_most_bytes: u64,
}

/// A file by its digest, in which two names share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldFile {
    /// `sha256:<hex>`
    pub digest: String,
    /// `None`: the registry does not tell.
    pub size_bytes: Option<u64>,
    /// A GGUF, not a small text.
    pub is_weights: bool,
}

/// A server, or a folder, that keeps models under names: versions (`my-coder-tuned-coder:v7`) and the alias `:latest`. It is never
/// trusted to have done what it says: callers look again.
pub trait Registry {
    /// Which one it is, as the store knows it: the same one has the same text in every run. `http://127.0.0.1:11434`
    fn id(&self) -> String;

    /// For people, in the middle of a sentence: `Ollama at http://127.0.0.1:11434`.
    fn title(&self) -> String;

    /// The command that lists what is there.
    fn look(&self) -> &'static str;

    /// Every model that is there, by name.
    fn tags(&self) -> Result<Vec<Tag>>;

    /// Makes `to` another name of `from`. What `to` named before stays as long as another name has it.
    fn copy(&self, from: &str, to: &str) -> Result<()>;

    /// Removes a name, and what no other name has. `false`: there was none.
    fn delete(&self, name: &str) -> Result<bool>;

    /// Brings what runs in line with the names, where a killed process or another hand left it otherwise. `cut_off`: a move was
    /// found under way. What cannot be done is no error here: the names are the truth.
    fn settle(&self, _cut_off: bool) -> Result<()> {
        Ok(())
    }

    /// What a name keeps on this registry's disk; `None` where that cannot be told, so that nobody knows what is freed with it.
    fn held(&self, _tag: &Tag) -> Result<Option<Held>> {
        Ok(None)
    }

    /// Whether a file that a name kept is still there.
    fn has_file(&self, digest: &str) -> Result<bool>;

    /// The model of that name among the tags; case does not matter.
    fn tag(&self, name: &str) -> Result<Option<Tag>> {
        let wanted = ModelName::parse(name)?;
        Ok(self.tags()?.into_iter().find(|tag| ModelName::parse(&tag.name).is_ok_and(|name| name.same(&wanted))))
    }
}
