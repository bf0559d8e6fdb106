//! Registering: a new version beside what serves, looked at after it was made; the alias moves only when told to.
//!
//! Names are `<prefix>-<role>:vN`; `:latest` is the alias that clients use. A version's name is never written twice, so
//! whatever fails or dies here, what served before still serves. Killed anywhere, the same call carries on: files that
//! Ollama has are not sent again, and a version that serves the same is used again.

use std::path::Path;

use super::modelfile::{From, ModelSpec};
use crate::error::{Error, Result};
use crate::formats::gguf::Gguf;
use crate::runtime::ollama::{Ollama, ParameterValue, Shown};
use crate::runtime::{ModelName, Registry, Tag};

/// What to register, and as what.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// `my-coder-tuned`
    pub prefix: String,
    /// `coder`, `fixer`, `judge`, or a stage of a curriculum.
    pub role: String,
    pub spec: ModelSpec,
    pub promote: Promote,
    pub number: Number,
}

/// Which number a version gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// The one after the last that is there, at least this one (from 1): smaller ones were given before, to versions that may be
    /// pruned by now.
    From(u64),
    /// This one: a version that is made again.
    Exactly(u64),
}

/// When the alias `:latest` moves to the new version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Promote {
    /// It stays where it is: the candidate is to be compared with the champion first.
    #[default]
    No,
    /// Only where there is none yet.
    IfFirst,
    Yes,
}

/// A version that Ollama serves, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// `my-coder-tuned-coder:v7`
    pub name: String,
    pub version: u64,
    /// Digest of its manifest, as `/api/tags` shows it.
    pub digest: String,
    /// It was there already, made of the same files, texts and parameters.
    pub reused: bool,
    /// Whether the alias names this version now.
    pub promoted: bool,
}

/// What happens while registering.
pub enum Progress<'a> {
    Sending {
        path: &'a Path,
        sent_bytes: u64,
        total_bytes: u64,
    },
    /// In Ollama's words.
    Status(&'a str),
}

/// `<prefix>-<role>` with the tag `latest`: the alias.
pub fn alias_name(prefix: &str, role: &str) -> Result<ModelName> {
    if prefix.is_empty() || role.is_empty() {
        return Err(Error::usage(
            format!("'{prefix}-{role}' lacks its prefix or its role"),
            "give both, for example my-coder-tuned and coder",
        ));
    }
    let name = ModelName::parse(&format!("{prefix}-{role}"))?;
    if name.tag == "latest" && !prefix.contains(':') && !role.contains(':') {
        return Ok(name);
    }
    Err(Error::usage(
        format!("'{prefix}-{role}' has a tag of its own"),
        "give prefix and role without ':'; versions get the tags v1, v2, ...",
    ))
}

/// Registers a version (or finds the one that serves the same) and moves the alias as asked.
pub fn register(ollama: &Ollama, deployment: &Deployment, on_progress: &mut dyn FnMut(Progress)) -> Result<Registered> {
    register_like(ollama, deployment, None, on_progress)
}

/// `register` where a model made of the same spec exists under another name: a version is used again only if it has
/// the digest `twin`, too (a spec does not say the template that Ollama finds by itself).
pub(super) fn register_like(
    ollama: &Ollama,
    deployment: &Deployment,
    twin: Option<&str>,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Registered> {
    let alias = alias_name(&deployment.prefix, &deployment.role)?;
    let served = served_digest(ollama, &deployment.spec.from)?;
    let tags = ollama.tags()?;
    let mut versions = versions_of(&tags, &alias);
    versions.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    let mut there = None;
    for (version, tag) in &versions {
        if matches!(deployment.number, Number::Exactly(wanted) if wanted != *version) {
            continue;
        }
        if twin.is_some_and(|twin| twin != tag.digest) {
            continue;
        }
        if let Some(shown) = ollama.show(&tag.name)?
            && difference(&deployment.spec, &served, &shown).is_none()
        {
            there = Some((*version, tag.name.clone()));
            break;
        }
    }
    let reused = there.is_some();
    let (version, name) = match there {
        Some(found) => found,
        None => {
            let last = versions.first().map_or(0, |(version, _)| *version);
            let version = match deployment.number {
                Number::From(least) => (last + 1).max(least),
                Number::Exactly(version) => version,
            };
            let name = alias.with_tag(format!("v{version}")).to_string();
            if versions.iter().any(|(there, _)| *there == version) {
                return Err(Error::server(
                    format!("{name} is there already, and it is another model"),
                    format!("look with `ollama show --modelfile {name}`; where it is not needed, `ollama rm {name}` makes room"),
                ));
            }
            create_fresh(ollama, &deployment.spec, &name, on_progress)?;
            (version, name)
        }
    };
    let digest = verify(ollama, &deployment.spec, &served, &name)?;
    let promoted = promote(ollama, deployment, deployment.promote, &name)?;
    Ok(Registered { name, version, digest, reused, promoted })
}

/// Moves the alias of a deployment to one of its versions, if `when` says so. `true`: the alias names that version now,
/// be it since today or since an earlier run.
pub fn promote(ollama: &Ollama, deployment: &Deployment, when: Promote, version: &str) -> Result<bool> {
    let alias = alias_name(&deployment.prefix, &deployment.role)?.to_string();
    let now = ollama.tag(&alias)?;
    if when == Promote::Yes || when == Promote::IfFirst && now.is_none() {
        move_alias(ollama, &alias, version)?;
        return Ok(true);
    }
    Ok(now.is_some_and(|now| ollama.tag(version).is_ok_and(|tag| tag.is_some_and(|tag| tag.digest == now.digest))))
}

/// Moves an alias to a version that is there: one copy of a manifest, then a look at both. Promotion and roll-back are
/// this. An alias that names the version already is left alone.
pub fn move_alias(registry: &dyn Registry, alias: &str, version: &str) -> Result<()> {
    let wanted = digest_of(registry, version)?;
    let named = |tag: Option<Tag>| tag.map(|tag| tag.digest);
    if named(registry.tag(alias)?).as_ref() == Some(&wanted) {
        return Ok(());
    }
    registry.copy(version, alias)?;
    match named(registry.tag(alias)?) {
        Some(now) if now == wanted => Ok(()),
        now => Err(Error::server(
            format!(
                "{} said that it copied {version} to {alias}, but {alias} names {}, expected {wanted}",
                registry.title(),
                now.as_deref().unwrap_or("nothing")
            ),
            format!("look with `{}`, then promote it again", registry.look()),
        )),
    }
}

/// Sends the files and creates a model under a name that may be overwritten or is free. `Ok`: Ollama said success.
pub(super) fn create(ollama: &Ollama, spec: &ModelSpec, name: &str, on_progress: &mut dyn FnMut(Progress)) -> Result<()> {
    for blob in spec.blobs() {
        if !ollama.has_blob(&blob.digest)? {
            // Ollama 0.17.4 dies, with all that it serves, of a file that only begins like a GGUF.
            Gguf::open(&blob.path)?;
        }
        ollama.push_blob(&blob.path, &blob.digest, &mut |sent_bytes| {
            on_progress(Progress::Sending { path: &blob.path, sent_bytes, total_bytes: blob.size_bytes });
        })?;
    }
    ollama.create(&spec.create_request(name), &mut |status| on_progress(Progress::Status(status)))
}

/// `create` under a free name: what a failed create left there is no version, and goes.
fn create_fresh(ollama: &Ollama, spec: &ModelSpec, name: &str, on_progress: &mut dyn FnMut(Progress)) -> Result<()> {
    create(ollama, spec, name, on_progress).inspect_err(|_| {
        // The first error is the one to tell; a remnant under a number of its own does no harm.
        if ollama.tag(name).is_ok_and(|tag| tag.is_some()) {
            let _ = ollama.delete(name);
        }
    })
}

/// The digest of the GGUF that is to be served.
pub(super) fn served_digest(ollama: &Ollama, from: &From) -> Result<String> {
    let base = match from {
        From::File(blob) => return Ok(blob.digest.clone()),
        From::Model(base) => base,
    };
    let shown = ollama.show(base)?.ok_or_else(|| {
        Error::server(
            format!("Ollama at {} has no model {base} to put an adapter on", ollama.address()),
            format!("`ollama pull {base}` fetches it"),
        )
    })?;
    if !shown.adapter_blobs().is_empty() {
        return Err(Error::unsupported(
            format!("{base} already carries an adapter, and Ollama would stack both"),
            "deploy on the pristine model that it was made from",
        ));
    }
    shown.model_blobs().into_iter().next().ok_or_else(|| {
        Error::unsupported(
            format!("Ollama at {} does not tell which file {base} serves", ollama.address()),
            "deploy in merged mode instead",
        )
    })
}

/// Looks at what Ollama made; gives the digest of its manifest.
pub(super) fn verify(ollama: &Ollama, spec: &ModelSpec, served: &str, name: &str) -> Result<String> {
    let lied = |message: String| {
        Error::server(
            format!("Ollama at {} said that it made {name}, but {message}", ollama.address()),
            format!("look with `ollama show --modelfile {name}`; the alias was not moved, what served before still serves"),
        )
    };
    let shown = ollama.show(name)?.ok_or_else(|| lied("there is no such model".to_owned()))?;
    match difference(spec, served, &shown) {
        None => digest_of(ollama, name),
        Some(difference) => Err(lied(difference)),
    }
}

fn digest_of(registry: &dyn Registry, name: &str) -> Result<String> {
    match registry.tag(name)? {
        Some(tag) if !tag.digest.is_empty() => Ok(tag.digest),
        Some(_) => Err(Error::server(format!("{} lists {name} without a digest", registry.title()), "update it")),
        None => Err(Error::server(
            format!("{} does not list {name}", registry.title()),
            format!("look with `{}`, then run the same command again", registry.look()),
        )),
    }
}

/// The versions of a model among the tags, in the order of the tags.
fn versions_of<'a>(tags: &'a [Tag], alias: &ModelName) -> Vec<(u64, &'a Tag)> {
    let version = |tag: &Tag| ModelName::parse(&tag.name).ok().filter(|name| name.same_model(alias))?.version();
    tags.iter().filter_map(|tag| Some((version(tag)?, tag))).collect()
}

/// Where a served model is not what the spec says; `None` where it is.
fn difference(spec: &ModelSpec, served: &str, shown: &Shown) -> Option<String> {
    let models = shown.model_blobs();
    if models.first().map(String::as_str) != Some(served) {
        return Some(format!("it serves the file {}, expected {served}", models.first().map_or("(none)", String::as_str)));
    }
    let adapters = shown.adapter_blobs();
    let wanted: Vec<&str> = spec.adapter.iter().map(|blob| blob.digest.as_str()).collect();
    if adapters != wanted {
        return Some(format!("it has the adapters [{}], expected [{}]", adapters.join(", "), wanted.join(", ")));
    }
    let system_fits = match (&spec.system, &spec.from) {
        (Some(system), _) => shown.system == *system,
        (None, From::File(_)) => shown.system.is_empty(),
        // Handed down.
        (None, From::Model(_)) => true,
    };
    if !system_fits {
        return Some(format!("its system text is {:?}, expected {:?}", shown.system, spec.system.as_deref().unwrap_or_default()));
    }
    // Ollama 0.34 shows the Jinja template of the file as `template` where it prefers that; the Modelfile has both.
    if let Some(template) = &spec.template
        && shown.template != *template
        && !shown.modelfile.contains(template.as_str())
    {
        return Some(format!("its template is {:?}, expected {template:?}", shown.template));
    }
    parameter_difference(spec, shown)
}

fn parameter_difference(spec: &ModelSpec, shown: &Shown) -> Option<String> {
    let parameters = shown.parameters();
    for (name, wanted) in spec.parameters.to_json() {
        let list = wanted.as_array().cloned().unwrap_or_else(|| vec![wanted.clone()]);
        let values: Vec<&ParameterValue> =
            parameters.iter().filter(|(there, _)| *there == name).map(|(_, value)| value).collect();
        let same = |value: &ParameterValue, wanted: &serde_json::Value| match value {
            // Ollama keeps single precision.
            ParameterValue::Number(number) => {
                wanted.as_f64().is_some_and(|wanted| (number - wanted).abs() <= 1e-6 * wanted.abs())
            }
            ParameterValue::Flag(flag) => wanted.as_bool() == Some(*flag),
            ParameterValue::Text(text) => wanted.as_str() == Some(text),
        };
        if values.len() != list.len() || !list.iter().all(|wanted| values.iter().any(|value| same(value, wanted))) {
            return Some(format!("its parameter {name} is {values:?}, expected {wanted}"));
        }
    }
    None
}

#[cfg(test)]
#[path = "register_tests.rs"]
mod tests;
