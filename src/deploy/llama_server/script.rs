//! The scripts that start llama-server: one a base and template, written from the manifests.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::super::modelfile::shell_word;
use super::super::shelf::{FileEntry, Manifest, Shelf};
use super::{id_of, make_folder_of, short};
use crate::error::{Error, Result};
use crate::fault;
use crate::formats::durable;
use crate::runtime::llama_server::LoadedAdapter;
use crate::runtime::{ModelName, Tag};

const PREFIX: &str = "start-";

/// What one process of llama-server can serve: the models of one base and one template.
pub(super) struct Group {
    pub base: FileEntry,
    pub template: Option<String>,
    adapters: Vec<Member>,
    /// The roles that have an alias here.
    pub champions: Vec<Champion>,
}

/// An adapter, and the names that have it.
struct Member {
    path: PathBuf,
    names: Vec<String>,
}

/// What the alias of a role names.
pub(super) struct Champion {
    /// `my-coder-tuned-coder`
    pub model: String,
    /// `my-coder-tuned-coder:v7`; the alias where no version is the same.
    pub version: String,
    /// `None`: the base as it is.
    pub adapter: Option<PathBuf>,
    /// The adapters of all its versions.
    adapters: Vec<PathBuf>,
    parameters: serde_json::Map<String, serde_json::Value>,
}

impl Champion {
    /// Whether a server has an adapter of this role loaded.
    pub fn is_known_to(&self, loaded: &[LoadedAdapter]) -> bool {
        self.adapters.iter().any(|adapter| id_of(loaded, adapter).is_some())
    }
}

/// What the names on a shelf come to.
pub(super) fn groups(shelf: &Shelf, tags: &[Tag]) -> Result<Vec<Group>> {
    // By version, so that an adapter has the same place whatever serves.
    let mut named: Vec<(ModelName, &Tag)> =
        tags.iter().filter_map(|tag| Some((ModelName::parse(&tag.name).ok()?, tag))).collect();
    named.sort_by_key(|(name, _)| (name.model.clone(), name.version().is_none(), name.version(), name.tag.clone()));
    let mut groups: Vec<(String, Group)> = Vec::new();
    for (name, tag) in named {
        let Some(manifest) = shelf.get(&tag.name)? else { continue };
        let id = file_name(&manifest);
        if !groups.iter().any(|(there, _)| *there == id) {
            let (base, template) = (manifest.base.clone(), manifest.template.clone());
            groups.push((id.clone(), Group { base, template, adapters: Vec::new(), champions: Vec::new() }));
        }
        let Some((_, group)) = groups.iter_mut().find(|(there, _)| *there == id) else { continue };
        let adapter = manifest.adapter.as_ref().map(|adapter| shelf.folder().join(&adapter.path));
        if name.tag == "latest" {
            let same = |other: &&Tag| other.digest == tag.digest && other.name != tag.name;
            let version = tags.iter().filter(same).find(|other| is_of(other, &name)).map_or(&tag.name, |other| &other.name);
            group.champions.push(Champion {
                model: name.to_string().trim_end_matches(":latest").to_owned(),
                version: version.clone(),
                adapter: adapter.clone(),
                adapters: Vec::new(),
                parameters: manifest.parameters.clone(),
            });
        }
        let Some(path) = adapter else { continue };
        match group.adapters.iter_mut().find(|member| member.path == path) {
            Some(member) => member.names.push(tag.name.clone()),
            None => group.adapters.push(Member { path, names: vec![tag.name.clone()] }),
        }
    }
    for (_, group) in &mut groups {
        let Group { adapters, champions, .. } = group;
        for champion in champions {
            let own =
                |member: &&Member| member.names.iter().any(|name| name.rsplit_once(':').is_some_and(|n| n.0 == champion.model));
            champion.adapters = adapters.iter().filter(own).map(|member| member.path.clone()).collect();
        }
    }
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

fn is_of(tag: &Tag, alias: &ModelName) -> bool {
    ModelName::parse(&tag.name).is_ok_and(|name| name.same_model(alias))
}

/// The script's name: a base with another template is another process.
pub(super) fn file_name(manifest: &Manifest) -> String {
    name_of(&manifest.base, manifest.template.as_deref())
}

fn name_of(base: &FileEntry, template: Option<&str>) -> String {
    let mut hash = Sha256::new();
    hash.update(&base.digest);
    hash.update(template.unwrap_or_default());
    format!("{PREFIX}{}", short(&hex(&hash.finalize())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Writes the script of every group, with its template, and removes those of no group. One that is so already is left alone.
pub(super) fn write_all(folder: &Path, groups: &[Group]) -> Result<()> {
    for group in groups {
        let template = group.template.as_deref().map(|text| write_template(folder, text)).transpose()?;
        let path = folder.join(group.file_name());
        let text = group.script(template.as_deref())?;
        if std::fs::read(&path).is_ok_and(|there| there == text.as_bytes()) && is_executable(&path) {
            continue;
        }
        make_folder_of(&path)?;
        durable::write(&path, text.as_bytes())?;
        fault::point(&format!("make executable {}", group.file_name()));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).map_err(Error::io("make executable", &path))?;
    }
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("read", folder)(e)),
    };
    for entry in entries {
        let path = entry.map_err(Error::io("read", folder))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let ours = name.strip_prefix(PREFIX).is_some_and(|id| id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()));
        if ours && path.is_file() && !groups.iter().any(|group| group.file_name() == name) {
            fault::point(&format!("remove {name}"));
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o111 == 0o111)
}

fn write_template(folder: &Path, text: &str) -> Result<PathBuf> {
    let path = folder.join("templates").join(format!("{}.jinja", short(&hex(&Sha256::digest(text)))));
    if !std::fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
        make_folder_of(&path)?;
        durable::write(&path, text.as_bytes())?;
    }
    Ok(path)
}

/// An absolute path as text.
pub(super) fn absolute(path: &Path) -> Result<String> {
    let whole = std::path::absolute(path).map_err(Error::io("find", path))?;
    let text = whole.to_str().filter(|text| !text.contains('\n'));
    text.map(str::to_owned).ok_or_else(|| {
        Error::file(&whole, "its path has a line end in it or is no UTF-8", "choose another --root, or move the file")
    })
}

impl Group {
    pub fn file_name(&self) -> String {
        name_of(&self.base, self.template.as_deref())
    }

    /// Whether a loaded adapter is one of this group.
    pub fn has(&self, path: &Path) -> bool {
        self.adapters.iter().any(|member| member.path.file_name() == path.file_name())
    }

    fn script(&self, template: Option<&Path>) -> Result<String> {
        let mut text = String::from(
            "#!/bin/sh\n\
             # Starts llama-server with a base and the adapter of every version. Written by retune whenever a version is\n\
             # deployed or moved: what is changed here by hand is lost. What is given to this script goes to llama-server,\n\
             # too: --host, --port, ...\n\
             # LLAMA_SERVER_BIN names another llama-server than the one on the PATH.\n\
             #\n",
        );
        let mut add = |line: String| {
            let _ = writeln!(text, "{line}");
        };
        let on = match &self.champions[..] {
            [] => {
                add("# No version serves yet: no adapter is on by itself.".to_owned());
                None
            }
            [champion] => {
                add(format!("# {} serves.", champion.version));
                Some(champion)
            }
            several => {
                add(
                    "# Several roles share this base: no adapter is on by itself, and every request names its own by the id that"
                        .to_owned(),
                );
                add("# GET /lora-adapters tells: \"lora\": [{\"id\": 0, \"scale\": 1.0}]".to_owned());
                several.iter().for_each(|champion| add(format!("# {} serves for {}.", champion.version, champion.model)));
                None
            }
        };
        for member in &self.adapters {
            let file = member.path.file_name().unwrap_or_default().to_string_lossy();
            add(format!("# {file}: {}", member.names.join(", ")));
        }
        add("exec \"${LLAMA_SERVER_BIN:-llama-server}\" \\".to_owned());
        add(format!("  --model {} \\", shell_word(&absolute(&self.base.path)?)));
        if let Some(template) = template {
            add(format!("  --jinja --chat-template-file {} \\", shell_word(&absolute(template)?)));
        }
        for member in &self.adapters {
            let scale = u8::from(on.is_some_and(|champion| champion.adapter.as_ref() == Some(&member.path)));
            // A comma divides adapters, but for one in quotes.
            let path = absolute(&member.path)?.replace('"', "\"\"");
            add(format!("  --lora-scaled {} \\", shell_word(&format!("\"{path}\":{scale}"))));
        }
        // Prompts that are kept in memory do not remember which adapter computed them, and would be used for another.
        add("  --cache-ram 0 \\".to_owned());
        for (parameter, flag) in FLAGS {
            if let Some(value) = on.and_then(|champion| champion.parameters.get(parameter)).filter(|value| value.is_number()) {
                add(format!("  {flag} {value} \\"));
            }
        }
        if let Some(champion) = on {
            add(format!("  --alias {} \\", shell_word(&champion.model)));
        }
        add("  \"$@\"".to_owned());
        Ok(text)
    }
}

/// Parameters of a model, and what llama-server calls them.
const FLAGS: [(&str, &str); 6] = [
    ("temperature", "--temp"),
    ("top_p", "--top-p"),
    ("top_k", "--top-k"),
    ("min_p", "--min-p"),
    ("repeat_penalty", "--repeat-penalty"),
    ("num_ctx", "--ctx-size"),
];
