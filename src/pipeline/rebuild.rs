//! A version that the server does not have any more is made again: of its adapter and of what was recorded of it, under its
//! own number.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::champion::Champion;
use super::deploy::{Again, DeployRequest, Mode, Outcome, Settled, deploy};
use crate::base::{Base, to_fetch};
use crate::deploy::{Parameters, Promote, alias_name};
use crate::error::{Error, Result};
use crate::model::adapter_files;
use crate::runtime::hub::Event;
use crate::runtime::ollama::Ollama;
use crate::runtime::{ModelName, Registry};
use crate::store::{Deployment, Store};
use crate::text::template::Template;

/// Which version of which model.
#[derive(Clone, Debug)]
pub struct RebuildRequest {
    /// `v7`, `7`, or the whole name
    pub version: String,
    pub prefix: String,
    pub role: String,
    /// The folder that holds `.agent`.
    pub root: PathBuf,
    /// Whether the alias moves to it.
    pub promote: bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rebuilt {
    pub name: String,
    pub version: u64,
    pub digest: String,
    /// What was recorded when it was deployed; where the two differ, its answers were compared all the same.
    pub recorded_digest: String,
    /// It was never away.
    pub already: bool,
    /// Whether the alias names it now.
    pub promoted: bool,
}

/// Makes a version again, or tells that it is there. `note` is told what is not as it was; `on_event` hears of a base that
/// is fetched.
pub fn rebuild(request: &RebuildRequest, note: &mut dyn FnMut(&str), on_event: &mut dyn FnMut(Event)) -> Result<Rebuilt> {
    let ollama = Ollama::from_env()?;
    let alias = alias_name(&request.prefix, &request.role)?;
    let version = number(&alias, &request.version)?;
    let name = alias.with_tag(format!("v{version}")).to_string();
    let store = Store::open(&request.root)?;
    let records = records_of(&store, &ollama, &alias)?;
    let recorded: Vec<&Deployment> = records.iter().filter(|d| d.version == version).collect();
    let record = *recorded.last().ok_or_else(|| unknown(&name, &records, &request.root))?;
    if let Some(tag) = ollama.tag(&name)?
        && let Some(there) = recorded.iter().rev().find(|d| d.digest == tag.digest)
    {
        let mut champion = Champion::open(&ollama, &request.root, &request.prefix, &request.role, note)?;
        let promoted = if request.promote {
            champion.promote_judged(&name, None, false, note).map(|_| true)?
        } else {
            champion.now()?.is_some_and(|now| now.digest == tag.digest)
        };
        let recorded_digest = there.digest.clone();
        return Ok(Rebuilt { name, version, digest: tag.digest, recorded_digest, already: true, promoted });
    }
    drop(store);

    let mut bases = Bases::default();
    let base = bases.of(record, on_event)?;
    let template = template_of(record, base)?;
    let text = |key: &str| record.recipe[key].as_str().map(str::to_owned);
    let settled: Option<Settled> = serde_json::from_value(record.recipe["settled"].clone()).ok();
    if settled.is_none() {
        note(&format!(
            "{name} was recorded before the texts that settle its prompts were written down: they are found out anew, and the \
             digest may differ"
        ));
    }
    let data = text("data").map(PathBuf::from);
    if let Some(gone) = data.as_ref().filter(|path| !path.is_file()) {
        note(&format!(
            "{} is not there any more: the prompt of a plain request is compared in place of its rows'",
            gone.display()
        ));
    }
    let deployed = deploy(
        base,
        &template,
        &DeployRequest {
            adapter: PathBuf::from(&record.adapter_path),
            system: text("system"),
            data: data.filter(|path| path.is_file()),
            prefix: request.prefix.clone(),
            role: request.role.clone(),
            mode: if record.mode == "adapter" { Mode::Adapter } else { Mode::Merged },
            merge_type: text("type").map(|name| name.parse()).transpose()?,
            root: request.root.clone(),
            promote: if request.promote { Promote::Yes } else { Promote::No },
            parameters: parameters_of(record)?,
            again: Some(Again { version, settled }),
        },
        note,
    )?;
    let registered = match deployed.outcome {
        Outcome::Served { registered, .. } => registered,
        Outcome::Later { why, .. } => {
            return Err(Error::server(why, "start it, then run the same command again: what was made is used again"));
        }
    };
    if registered.digest != record.digest {
        note(&format!(
            "{name} has another digest than it had ({}, recorded {}): this Ollama writes it down otherwise; its answers were \
             compared, and are those of the trained model",
            registered.digest, record.digest
        ));
    }
    Ok(Rebuilt {
        name,
        version,
        digest: registered.digest,
        recorded_digest: record.digest.clone(),
        already: false,
        promoted: registered.promoted,
    })
}

/// All that was recorded of a model on a server, oldest first.
pub(super) fn records_of(store: &Store, registry: &dyn Registry, alias: &ModelName) -> Result<Vec<Deployment>> {
    let (server, alias) = (registry.id(), alias.to_string());
    let mut records = store.every_deployment()?;
    records.retain(|d| d.server == server && d.model == alias.trim_end_matches(":latest"));
    Ok(records)
}

/// N of `v7`, `7` or a whole name of this model.
pub(super) fn number(alias: &ModelName, version: &str) -> Result<u64> {
    let tag = if version.bytes().all(|b| b.is_ascii_digit()) { format!("v{version}") } else { version.to_owned() };
    let name = if tag.contains(':') { ModelName::parse(&tag)? } else { ModelName::parse(&format!("m:{tag}"))? };
    let is_ours = !tag.contains(':') || name.same_model(alias);
    name.version().filter(|_| is_ours).ok_or_else(|| {
        Error::usage(
            format!("'{version}' is no version of {}", alias.with_tag("vN")),
            "give one such as v7; `retune prune --dry-run` shows those that are there",
        )
    })
}

/// That nothing is recorded of a version.
pub(super) fn unknown(name: &str, records: &[Deployment], root: &Path) -> Error {
    let mut known: Vec<u64> = records.iter().map(|d| d.version).collect();
    known.sort_unstable();
    known.dedup();
    let known: Vec<String> = known.into_iter().map(|version| format!("v{version}")).collect();
    let known = if known.is_empty() { "nothing of this model".to_owned() } else { known.join(", ") };
    Error::usage(
        format!("{} records no {name}", Store::path_in(root).display()),
        format!("it has {known}; --role, --name-prefix, --root and OLLAMA_HOST say which model of which server is meant"),
    )
}

/// Bases that were opened and known by their digest, each once.
#[derive(Default)]
pub(super) struct Bases {
    open: BTreeMap<String, (Base, String)>,
}

impl Bases {
    /// That a version can be made again: its base and its adapter are there, and they are what they were. A base that would
    /// have to be fetched is not looked at.
    pub fn check(&mut self, record: &Deployment) -> Result<()> {
        if base_name(record)?.1 {
            return adapter_is_there(record);
        }
        self.of(record, &mut |_| ()).map(drop)
    }

    /// The base of a version, after a look that base and adapter are those that it was made of.
    fn of(&mut self, record: &Deployment, on_event: &mut dyn FnMut(Event)) -> Result<&Base> {
        adapter_is_there(record)?;
        let (name, _) = base_name(record)?;
        if !self.open.contains_key(&name) {
            let base = Base::open_with(&name, on_event)?;
            let digest = base.digest()?;
            self.open.insert(name.clone(), (base, digest));
        }
        let (base, digest) = &self.open[&name];
        if *digest != record.base_digest {
            return Err(Error::unsupported(
                format!("{name} is another base now than {} was made on ({digest}, then {})", record.name(), record.base_digest),
                "put the old one back; or train anew, and deploy that as a new version",
            ));
        }
        let path = Path::new(&record.adapter_path);
        let adapter = super::adapter_digest(&adapter_files::load(path, &base.decoder.config)?);
        if adapter != record.adapter_digest {
            return Err(Error::file(
                path,
                format!("is another adapter now than {} was made of ({adapter}, then {})", record.name(), record.adapter_digest),
                format!("put the old one back; or `retune deploy --adapter {}` makes a new version of this one", path.display()),
            ));
        }
        Ok(base)
    }
}

/// The base as it is opened now, and whether it would have to be fetched for that.
fn base_name(record: &Deployment) -> Result<(String, bool)> {
    let recipe = &record.recipe;
    let at = recipe["base_at"].as_str().filter(|at| Path::new(at).exists());
    let name = at.or(recipe["base"].as_str()).ok_or_else(|| lacks(record, "its base"))?;
    Ok((name.to_owned(), to_fetch(name)?.is_some()))
}

fn adapter_is_there(record: &Deployment) -> Result<()> {
    let path = Path::new(&record.adapter_path);
    if path.exists() {
        return Ok(());
    }
    Err(Error::file(
        path,
        format!("is not there any more, and {} is made of it", record.name()),
        "put the adapter back there; without it this version cannot be made again",
    ))
}

/// The template that prompts were trained with: its own text, where the record has it.
fn template_of(record: &Deployment, base: &Base) -> Result<Template> {
    let name = record.recipe["template"].as_str().ok_or_else(|| lacks(record, "its template"))?;
    if let Some(source) = record.recipe["template_source"].as_str() {
        return Template::jinja_for(name, source, &base.tokenizer);
    }
    let is_own = base.own_template.as_ref().is_some_and(|own| own.name == name);
    base.template((!is_own).then_some(name))
}

fn parameters_of(record: &Deployment) -> Result<Parameters> {
    match &record.recipe["parameters"] {
        Value::Object(parameters) => Ok(Parameters::from_json(parameters)),
        _ => Err(lacks(record, "its parameters")),
    }
}

fn lacks(record: &Deployment, what: &str) -> Error {
    Error::unsupported(
        format!("the record of {} does not tell {what}", record.name()),
        format!("`retune deploy --adapter {}` makes a new version of its adapter", record.adapter_path),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_named_by_its_number_its_tag_or_its_whole_name() {
        let alias = alias_name("m", "coder").unwrap();
        for text in ["v7", "7", "V7", "m-coder:v7", "M-coder:v7"] {
            assert_eq!(number(&alias, text).unwrap(), 7, "{text}");
        }
        for text in ["", "v0", "latest", "kept-0123", "other:v7", "m-coder", "a b"] {
            assert_eq!(number(&alias, text).unwrap_err().exit_code(), 2, "{text:?}");
        }
    }
}
