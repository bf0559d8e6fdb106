//! llama-server as a registry: a shelf of small manifests, start scripts that are written from it, and the server that runs, if one
//! does. One base in memory, an adapter a version: a move changes a manifest, a script, and how much of each adapter is added.
//!
//! `.agent/llama-server/` holds the manifests (`<model>/<tag>.json`), `adapters/<digest>.gguf`, `templates/<digest>.jinja` and
//! `start-<group>`. The files are the truth; a server that does not run is no error.

mod script;

use std::path::{Path, PathBuf};

use self::script::{Group, groups};
use super::register::Registered;
use super::shelf::{FileEntry, Manifest, Shelf};
use crate::error::{Error, Result};
use crate::fault;
use crate::formats::durable;
use crate::runtime::llama_server::{Llama, LoadedAdapter, Props};
use crate::runtime::ollama::Blob;
use crate::runtime::{ModelName, Registry, Tag};

/// The registry of a project.
pub struct LlamaServer {
    shelf: Shelf,
    llama: Llama,
    note: Box<dyn Fn(&str)>,
}

/// How the running server took what the names say.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Running {
    /// Nobody is there, or another program.
    Nobody,
    /// It holds something else, or lacks an adapter: what, and what to do.
    Cannot(String),
    /// The champion of the one role is on.
    On,
    /// Several roles share the base: no adapter is on by itself. How a request names each.
    ByRequest(Vec<String>),
}

impl LlamaServer {
    /// How the ids of such registries begin in the store.
    pub const SCHEME: &str = "llama-server:";

    /// The registry in `root/.agent/llama-server` and the server at `LLAMA_SERVER_HOST`. `note` hears what a user should know.
    pub fn open(root: &Path, note: impl Fn(&str) + 'static) -> Result<Self> {
        Ok(Self::new(root, Llama::from_env()?, note))
    }

    /// `open` with a server at another address.
    pub fn new(root: &Path, llama: Llama, note: impl Fn(&str) + 'static) -> Self {
        Self { shelf: Shelf::new(root.join(".agent/llama-server")), llama, note: Box::new(note) }
    }

    /// The server that the environment names.
    pub fn llama(&self) -> &Llama {
        &self.llama
    }

    /// Keeps a GGUF adapter under its digest, so that training again into its folder changes no version.
    pub fn keep_adapter(&self, file: &Path) -> Result<FileEntry> {
        let blob = Blob::of(file)?;
        let path = Path::new("adapters").join(format!("{}.gguf", short(&blob.digest)));
        let kept = self.shelf.folder().join(&path);
        if !kept.is_file() || Blob::of(&kept)?.digest != blob.digest {
            make_folder_of(&kept)?;
            durable::write_with(&kept, |out| {
                let mut file_in = std::fs::File::open(file).map_err(Error::io("open", file))?;
                std::io::copy(&mut file_in, out).map(drop).map_err(Error::io("copy", file))
            })?;
        }
        Ok(FileEntry { path, digest: blob.digest, size_bytes: blob.size_bytes })
    }

    /// Puts a version beside what serves, or finds the one with an equal manifest. `first_version`: smaller numbers were given
    /// before.
    pub fn register(&self, alias: &ModelName, manifest: &Manifest, first_version: u64) -> Result<Registered> {
        self.checked_path(manifest)?;
        let tags = self.tags()?;
        let named = |tag: &Tag| ModelName::parse(&tag.name).ok().filter(|name| name.same_model(alias));
        let mut versions: Vec<(u64, &Tag)> = tags.iter().filter_map(|tag| Some((named(tag)?.version()?, tag))).collect();
        versions.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
        for (version, tag) in &versions {
            if self.shelf.get(&tag.name)?.as_ref() == Some(manifest) {
                // A killed process may have left the script behind.
                self.write_scripts()?;
                let (name, digest) = (tag.name.clone(), tag.digest.clone());
                return Ok(Registered { name, version: *version, digest, reused: true, promoted: false });
            }
        }
        let version = (versions.first().map_or(0, |(version, _)| *version) + 1).max(first_version);
        let name = alias.with_tag(format!("v{version}")).to_string();
        fault::point(&format!("shelf put {name}"));
        let digest = self.shelf.put(&name, manifest)?;
        self.write_scripts()?;
        Ok(Registered { name, version, digest, reused: false, promoted: false })
    }

    /// The script that starts a server with this model among its adapters.
    pub fn script_of(&self, manifest: &Manifest) -> PathBuf {
        self.shelf.folder().join(script::file_name(manifest))
    }

    /// Under which id a server has the adapter of a manifest loaded, on its base and with its template. `None`: it has not, or
    /// nobody is there.
    pub fn loaded(&self, llama: &Llama, manifest: &Manifest) -> Result<Option<u32>> {
        let Some(adapter) = &manifest.adapter else { return Ok(None) };
        // Another program at that address is nobody, too.
        let Ok(Some(props)) = llama.props() else { return Ok(None) };
        if !same_file(&props.model_path, &manifest.base.path) || !same_template(&props, manifest.template.as_deref()) {
            return Ok(None);
        }
        Ok(id_of(&llama.adapters()?, &adapter.path))
    }

    /// What a name stands for, and the id under which the running server has its adapter.
    pub fn running(&self, name: &str) -> Result<(Manifest, u32)> {
        let manifest = self.shelf.get(name)?.ok_or_else(|| {
            Error::usage(format!("{} has no {name}", self.title()), "`retune history` shows what was registered")
        })?;
        match self.loaded(&self.llama, &manifest)? {
            Some(id) => Ok((manifest, id)),
            None => Err(Error::server(
                format!("no llama-server that has {name} answers at {}", self.llama.address()),
                format!(
                    "start it with {}, or name its address in LLAMA_SERVER_HOST; one that was started before the version was there \
                     does not have it",
                    self.script_of(&manifest).display()
                ),
            )),
        }
    }

    fn groups(&self) -> Result<Vec<Group>> {
        groups(&self.shelf, &self.tags()?)
    }

    /// `--lora-scaled` divides a path from its scale by a colon, and knows no way to write one.
    fn checked_path(&self, manifest: &Manifest) -> Result<()> {
        let Some(adapter) = &manifest.adapter else { return Ok(()) };
        let path = script::absolute(&self.shelf.folder().join(&adapter.path))?;
        if path.contains(':') {
            return Err(Error::usage(
                format!("llama-server cannot be told of an adapter whose path has a ':' in it: {path}"),
                "choose another --root",
            ));
        }
        Ok(())
    }

    /// Makes the start scripts say what the names say; those that nothing belongs to any more go.
    fn write_scripts(&self) -> Result<()> {
        script::write_all(self.shelf.folder(), &self.groups()?)
    }

    /// Makes the running server do what the names say, and looks whether it does. `forget`: also drops the prompts that its slots
    /// have computed, which a process that was killed may have left from the former adapter.
    fn align(&self, forget: bool) -> Result<Running> {
        // What does not answer as a llama-server does is another program on a port that many use.
        let Ok(Some(props)) = self.llama.props() else { return Ok(Running::Nobody) };
        let at = self.llama.address();
        let mut on_base = self.groups()?;
        on_base.retain(|group| same_file(&group.base.path, &props.model_path));
        if on_base.is_empty() {
            let base = props.model_path.display();
            return Ok(Running::Cannot(format!("the llama-server at {at} serves another base, {base}; it was left as it is")));
        }
        let Some(group) = on_base.iter().find(|group| same_template(&props, group.template.as_deref())) else {
            let script = self.shelf.folder().join(on_base[0].file_name());
            return Ok(Running::Cannot(format!(
                "the llama-server at {at} has another chat template than was trained; it was left as it is: start it with {}",
                script.display()
            )));
        };
        let loaded = self.llama.adapters()?;
        let roles: Vec<_> = group.champions.iter().filter(|role| role.is_known_to(&loaded)).collect();
        let mut wanted: Vec<(u32, f32)> = loaded.iter().map(|one| (one.id, one.scale)).collect();
        for (id, scale) in &mut wanted {
            if loaded.iter().any(|one| one.id == *id && group.has(&one.path)) {
                *scale = 0.0;
            }
        }
        let mut running = Running::On;
        if let [role] = &roles[..]
            && let Some(champion) = &role.adapter
        {
            let Some(id) = id_of(&loaded, champion) else {
                return Ok(Running::Cannot(format!(
                    "the llama-server at {at} was started before {} was there, and goes on as it is: start it again with {}",
                    role.version,
                    self.shelf.folder().join(group.file_name()).display()
                )));
            };
            wanted.iter_mut().filter(|(there, _)| *there == id).for_each(|(_, scale)| *scale = 1.0);
        } else if roles.len() > 1 {
            let named = roles.iter().filter_map(|role| Some((&role.model, id_of(&loaded, role.adapter.as_deref()?)?)));
            let text =
                |(model, id)| format!("requests for {model} name its adapter: \"lora\": [{{\"id\": {id}, \"scale\": 1.0}}]");
            running = Running::ByRequest(named.map(text).collect());
        }
        let is_so = |loaded: &[LoadedAdapter]| {
            wanted.iter().all(|(id, scale)| loaded.iter().any(|one| one.id == *id && one.scale == *scale))
        };
        let as_wanted = is_so(&loaded);
        if !as_wanted {
            self.llama.set_scales(&wanted)?;
            let now = self.llama.adapters()?;
            if !is_so(&now) {
                let found: Vec<String> = now.iter().map(|one| format!("adapter {} has {}", one.id, one.scale)).collect();
                let expected: Vec<String> = wanted.iter().map(|(id, scale)| format!("{id}: {scale}")).collect();
                let found = format!("{}, expected {}", found.join(", "), expected.join(", "));
                return Err(self.llama.lied("set the scales of its adapters", &found));
            }
        }
        if forget || !as_wanted {
            self.llama.forget_prompts(props.total_slots)?;
        }
        Ok(running)
    }
}

impl Registry for LlamaServer {
    fn id(&self) -> String {
        let folder = self.shelf.folder();
        format!("{}{}", Self::SCHEME, std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned()).display())
    }

    fn title(&self) -> String {
        format!("llama-server's folder {}", self.shelf.folder().display())
    }

    fn look(&self) -> &'static str {
        "retune history"
    }

    fn tags(&self) -> Result<Vec<Tag>> {
        self.shelf.tags()
    }

    /// An alias moves with the running server, or not at all.
    fn copy(&self, from: &str, to: &str) -> Result<()> {
        let is_alias = ModelName::parse(to)?.tag == "latest";
        let before = self.shelf.bytes(to)?;
        self.shelf.copy(from, to)?;
        self.write_scripts()?;
        if !is_alias {
            return Ok(());
        }
        match self.align(false) {
            Ok(Running::On | Running::Nobody) => {}
            Ok(Running::Cannot(why)) => (self.note)(&why),
            Ok(Running::ByRequest(names)) => {
                (self.note)("several roles share this base, so that no adapter is on by itself");
                names.iter().for_each(|name| (self.note)(name));
            }
            Err(error) => {
                self.shelf.put_back(to, before.as_deref())?;
                self.write_scripts()?;
                // Whatever it does now: the first error is the one to tell.
                let _ = self.align(true);
                return Err(error);
            }
        }
        Ok(())
    }

    fn delete(&self, name: &str) -> Result<bool> {
        let was_there = self.shelf.delete(name)?;
        self.write_scripts()?;
        Ok(was_there)
    }

    fn has_file(&self, digest: &str) -> Result<bool> {
        self.shelf.has_file(digest)
    }

    fn settle(&self, cut_off: bool) -> Result<()> {
        self.write_scripts()?;
        if let Err(error) = self.align(cut_off) {
            (self.note)(&format!("the running llama-server was not brought in line: {error}"));
        }
        Ok(())
    }
}

/// By the name of its file, which is its digest: a server in a container sees it under another folder.
fn id_of(loaded: &[LoadedAdapter], adapter: &Path) -> Option<u32> {
    loaded.iter().find(|one| one.path.file_name().is_some() && one.path.file_name() == adapter.file_name()).map(|one| one.id)
}

fn same_file(one: &Path, other: &Path) -> bool {
    one == other || one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

fn same_template(props: &Props, template: Option<&str>) -> bool {
    template.is_none_or(|template| template.trim() == props.chat_template.trim())
}

fn make_folder_of(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), |folder| std::fs::create_dir_all(folder).map_err(Error::io("create", folder)))
}

/// The first 12 digits of a digest.
fn short(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(12).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
