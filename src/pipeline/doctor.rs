//! Is everything here to train and to serve? Looks, tells, and changes nothing, on this machine or on the Ollama.

use std::path::PathBuf;

use retune_kernels::simd;
use serde::Serialize;

use super::deploy::default_system;
use crate::base::{self, Base, Origin};
use crate::deploy::{self, Foresight, PromptProbe, Remedies};
use crate::domain::{Message, Tokens};
use crate::error::{Error, Result};
use crate::formats::gguf::Gguf;
use crate::machine;
use crate::model::weights::Weights;
use crate::model::{Adapter, AdapterSpec, ModelConfig};
use crate::runtime::Registry;
use crate::runtime::hub::{Hub, HubId};
use crate::runtime::ollama::store::Store;
use crate::runtime::ollama::{ModelName, Ollama, Patience};
use crate::text::render::Renderer;
use crate::text::template::{BUILT_IN, Template};
use crate::train::plan::{MemoryPlan, default_budget, human};
use crate::train::{Lessons, TrainSettings};

/// What to look at.
#[derive(Clone, Debug)]
pub struct DoctorRequest {
    pub base: Option<String>,
    pub template: Option<String>,
    /// Where a training would write.
    pub out: PathBuf,
    /// The folder that holds `.agent`.
    pub root: PathBuf,
    pub memory_budget: Option<usize>,
}

/// How a finding is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Good to know; nothing stands in the way.
    Note,
    /// Training or serving would fail.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `machine`, `ollama`, `hub`, `base`
    pub section: &'static str,
    pub level: Level,
    pub what: String,
    /// The next step, where there is one.
    pub next: Option<String>,
}

/// The rank that adapters are counted with, and the tokens of a row below which training makes no sense.
const RANK: usize = 16;
const LEAST_TOKENS: usize = 64;
/// An adapter with its checkpoint, and a merged model of some billions of weights.
const LITTLE_DISK: u64 = 1 << 30;
const ROOM_FOR_A_MODEL: u64 = 10 << 30;
/// Tags of the store that are told one by one.
const SHOWN_TAGS: usize = 30;

/// Findings as they come.
pub fn examine(request: &DoctorRequest, tell: &mut dyn FnMut(Finding)) {
    machine(request, &mut Section { name: "machine", tell });
    let served = ollama(request, &mut Section { name: "ollama", tell });
    hub(&mut Section { name: "hub", tell });
    if let Some(name) = &request.base {
        let mut section = Section { name: "base", tell };
        if let Err(error) = base(name, request, served.as_ref(), &mut section) {
            section.problem(&error);
        }
    }
}

/// Tells findings of one section.
struct Section<'a> {
    name: &'static str,
    tell: &'a mut dyn FnMut(Finding),
}

impl Section<'_> {
    fn say(&mut self, level: Level, what: impl Into<String>, next: Option<String>) {
        (self.tell)(Finding { section: self.name, level, what: what.into(), next });
    }

    fn ok(&mut self, what: impl Into<String>) {
        self.say(Level::Ok, what, None);
    }

    fn note(&mut self, what: impl Into<String>, next: impl Into<String>) {
        self.say(Level::Note, what, Some(next.into()).filter(|next: &String| !next.is_empty()));
    }

    fn problem(&mut self, error: &Error) {
        self.say(Level::Problem, error.to_string(), error.hint());
    }
}

fn machine(request: &DoctorRequest, section: &mut Section) {
    let cores = rayon::current_num_threads();
    let work = format!("{cores} {}", if cores == 1 { "core" } else { "cores" });
    match simd::level() {
        simd::Level::Avx512 => section.ok(format!("{work}, with AVX-512")),
        simd::Level::Avx2 => section.ok(format!("{work}, with AVX2")),
        simd::Level::Plain => section.note(
            format!("{work}, without AVX2: training runs in plain code, many times slower"),
            "choose a small base, or a machine with AVX2 (x86-64-v3)",
        ),
    }
    match machine::memory() {
        None => section.note("the system does not tell how much memory is free", "give --memory-budget when you train"),
        Some(memory) => {
            let limit = memory.container_limit_bytes;
            let limit = limit.map_or_else(String::new, |bytes| format!(" under the container's limit of {}", human(bytes)));
            section.ok(format!(
                "{} of memory free{limit}: a training plans with at most {} of it",
                human(memory.available_bytes),
                human(default_budget())
            ));
        }
    }
    let place = std::path::absolute(&request.out).unwrap_or_else(|_| request.out.clone());
    let next = "free some space, or write elsewhere with --out";
    match machine::free_disk_bytes(&place) {
        None => section.note(format!("the system does not tell the free space of {}", place.display()), ""),
        Some(free) => {
            let what = format!("{} of disk free in {}", human(free as usize), place.display());
            match free {
                0..LITTLE_DISK => section.say(Level::Problem, what, Some(next.to_owned())),
                LITTLE_DISK..ROOM_FOR_A_MODEL => section.note(format!("{what}: merged models may not fit"), next),
                _ => section.ok(what),
            }
        }
    }
}

/// The Ollama, where one answers, and the names of its models.
struct Served {
    ollama: Ollama,
    names: Vec<ModelName>,
}

fn ollama(request: &DoctorRequest, section: &mut Section) -> Option<Served> {
    let served = match Ollama::from_env() {
        Err(error) => {
            section.problem(&error);
            None
        }
        Ok(ollama) => reach(ollama, request, section),
    };
    let store = Store::from_env();
    for (folder, why) in store.unreadable() {
        section.problem(&Error::Io { action: "read", path: folder, source: why });
    }
    let here = store.names();
    if here.is_empty() {
        section.note(
            "no models of Ollama on this disk",
            "`ollama pull qwen2.5:0.5b` fetches one; OLLAMA_MODELS says where another store is",
        );
    }
    for name in here.iter().take(SHOWN_TAGS) {
        match can_be_base(&store, name) {
            Ok(what) => section.ok(format!("{name} can be a base: {what}")),
            Err(error) => section.note(format!("{name} cannot be a base: {error}"), ""),
        }
    }
    if here.len() > SHOWN_TAGS {
        section.note(format!("and {} more models", here.len() - SHOWN_TAGS), "");
    }
    if let Some(served) = &served {
        let elsewhere = served.names.iter().filter(|name| !here.iter().any(|there| there.same(name))).count();
        if elsewhere > 0 {
            section.note(
                format!("{elsewhere} of the {} models that this Ollama lists are not on this disk", served.names.len()),
                "to train on them, set OLLAMA_MODELS to its folder (where it runs on this machine)",
            );
        }
    }
    served
}

fn reach(ollama: Ollama, request: &DoctorRequest, section: &mut Section) -> Option<Served> {
    let patience = Patience { quick: std::time::Duration::from_secs(10), ..Patience::default() };
    let ollama = ollama.with_patience(patience);
    let version = match ollama.version() {
        Ok(version) => version,
        // Training needs none, and deploy makes its files without one.
        Err(error) => {
            section.note(error.to_string(), error.hint().unwrap_or_default());
            return None;
        }
    };
    section.ok(format!("Ollama {version} at {}", ollama.address()));
    match deploy::remembered_support(&ollama, &version, &request.root.join(".agent/ollama-capabilities.json")) {
        Some(support) if support.accepted => section.ok("it takes adapters: they are served on the base as it is"),
        Some(_) => section.ok("it takes no adapters: deploy merges them into the base"),
        None => section.ok("whether it takes adapters is tried once by deploy, which merges where it does not"),
    }
    let names = match ollama.tags() {
        Ok(tags) => tags.iter().filter_map(|tag| ModelName::parse(&tag.name).ok()).collect(),
        Err(error) => {
            section.problem(&error);
            return None;
        }
    };
    Some(Served { ollama, names })
}

/// Family and size of a model of the store that can be trained on; an error says why it cannot.
fn can_be_base(store: &Store, name: &ModelName) -> Result<String> {
    let stored = store.resolve(&name.to_string())?;
    if stored.has_adapter() {
        return Err(Error::unsupported("it carries an adapter already", ""));
    }
    let gguf = Gguf::open(&stored.model_blob).map_err(in_brief)?;
    let config = ModelConfig::from_gguf(&gguf).map_err(in_brief)?;
    let weights = Weights::from_gguf(&gguf, &config).map_err(in_brief)?;
    Ok(format!("{}, {}, {}", config.architecture.name(), weights.dtype_name(), human(weights.size_bytes())))
}

/// Without the path of the blob, which says nothing beside the name.
fn in_brief(error: Error) -> Error {
    match error {
        Error::File { message, hint, .. } => Error::unsupported(message, hint),
        other => other,
    }
}

fn hub(section: &mut Section) {
    let hub = match Hub::from_env() {
        Ok(hub) => hub,
        Err(error) => return section.problem(&error),
    };
    let models = hub.cache.models();
    let count = match models.len() {
        0 => "no models yet".to_owned(),
        1 => format!("one model: {}", models[0]),
        n => format!("{n} models: {}", models.join(", ")),
    };
    let free = machine::free_disk_bytes(&hub.cache.root)
        .map_or_else(String::new, |free| format!("; {} of disk free", human(free as usize)));
    section.ok(format!("cache in {}, {count}{free}", hub.cache.root.display()));
    if hub.is_offline() {
        section.note("HF_HUB_OFFLINE is set: only what is in the cache can be a base", "unset it to fetch others");
    }
    match hub.token_source() {
        None => section.ok(format!("{} without a token: public models only", hub.endpoint())),
        Some(source) if hub.token_is_sent() => section.ok(format!("{} with the token of {source}", hub.endpoint())),
        Some(source) => section.note(
            format!("the token of {source} is not sent to {}, as http:// would show it to the network", hub.endpoint()),
            "set HF_ENDPOINT to an https:// address",
        ),
    }
}

fn base(name: &str, request: &DoctorRequest, served: Option<&Served>, section: &mut Section) -> Result<()> {
    if let Some((hub, id)) = base::to_fetch(name)? {
        let (files, bytes) = hub.to_fetch(&id)?;
        let free = machine::free_disk_bytes(&hub.cache.root).filter(|&free| free < bytes);
        let what = format!("{id} is not in the cache: {files} files, {} to fetch", human(bytes as usize));
        match free {
            Some(free) => section.say(
                Level::Problem,
                format!("{what}, and {} of disk free", human(free as usize)),
                Some("free some space, or set HF_HOME to a folder on another disk".to_owned()),
            ),
            None => {
                section.note(what, format!("any command fetches it (`retune tokenize --base {id} --text Hi`); then look again"))
            }
        }
        return Ok(());
    }
    let base = Base::open(&pinned(name)?)?;
    let config = &base.decoder.config;
    let embedding = if config.tied_head { 0 } else { config.vocab_size * config.hidden };
    section.ok(format!(
        "{}: {}, {} weights in {}, {}; it sees {} tokens",
        base.name,
        config.architecture.name(),
        count(config.linear_weights() + embedding),
        base.decoder.weights.dtype_name(),
        human(base.decoder.weights.size_bytes()),
        config.context_length
    ));
    memory(&base, request, section);
    match base.template(request.template.as_deref()) {
        Ok(template) => {
            let name = if template.is_built_in() {
                format!("the built-in template {}", template.name)
            } else {
                "its own chat template".to_owned()
            };
            let name = if request.template.is_some() && !template.is_built_in() {
                format!("the template {}", template.name)
            } else {
                name
            };
            section.ok(format!("conversations become text by {name}"));
            prompts(&base, &template, served, section)?;
        }
        Err(_) if request.template.is_none() => section.note(
            "it has no chat template of its own",
            format!("say how conversations become text: --template {}, or a file with a Jinja template", BUILT_IN.join(", ")),
        ),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// The name of a snapshot that is here, so that opening it fetches nothing.
fn pinned(name: &str) -> Result<String> {
    let hub = Hub::from_env();
    let snapshot = HubId::parse(name)
        .filter(|_| !std::path::Path::new(name).exists())
        .and_then(|id| Some((id.id.clone(), hub.as_ref().ok()?.cache.snapshot(&id)?.commit)));
    Ok(snapshot.map_or_else(|| name.to_owned(), |(id, commit)| format!("{id}@{commit}")))
}

/// Whether a training fits, by the plan that it would make.
fn memory(base: &Base, request: &DoctorRequest, section: &mut Section) {
    let config = &base.decoder.config;
    let adapter = Adapter::zeros(config, AdapterSpec { rank: RANK, ..AdapterSpec::default() });
    let parameters = adapter.params.len();
    section.ok(format!("an adapter of rank {RANK} on all linear layers has {} parameters", count(parameters)));
    let budget = request.memory_budget.unwrap_or_else(default_budget);
    let settings = TrainSettings::default();
    let plan = |tokens: usize| {
        let row = Tokens { ids: vec![0; tokens], trained: vec![true; tokens] };
        MemoryPlan::new(&base.decoder, &adapter, &Lessons::good_work(vec![row; settings.batch_size]), &settings, budget)
    };
    let longest = base.default_max_length();
    match plan(longest) {
        Ok(plan) => section.ok(format!(
            "a training on rows of {longest} tokens takes {} of the {} that it may take",
            human(plan.total_bytes()),
            human(budget)
        )),
        Err(error) => {
            let shorter = std::iter::successors(Some(longest / 2), |n| Some(n / 2)).take_while(|&n| n >= LEAST_TOKENS);
            match shorter.into_iter().find(|&tokens| plan(tokens).is_ok()) {
                Some(tokens) => section.note(
                    format!(
                        "rows of {longest} tokens need more than the {} that a training may take; rows of {tokens} fit",
                        human(budget)
                    ),
                    format!("train with --max-length {tokens}, or free some memory"),
                ),
                None => section.problem(&error),
            }
        }
    }
}

/// Whether Ollama renders what training renders; what deploy would have to write.
fn prompts(base: &Base, template: &Template, served: Option<&Served>, section: &mut Section) -> Result<()> {
    let renderer = Renderer { tokenizer: &base.tokenizer, template, system: None };
    let probes = probes(&renderer);
    if probes.is_empty() {
        // A template may want what these conversations do not have; a row of the data shows more.
        section.note("the template refuses a plain question", "look at your rows with `retune render`");
        return Ok(());
    }
    let bos = base.tokenizer.bos_text();
    let remedies = Remedies {
        default_system: default_system(&renderer)?,
        templates: template.ollama_twin(&base.tokenizer).into_iter().collect(),
        bos: (!bos.is_empty()).then_some(bos),
    };
    let tag = match &base.origin {
        Origin::Ollama { tag, .. } => served.and_then(|served| {
            served
                .names
                .iter()
                .find(|name| ModelName::parse(tag).is_ok_and(|tag| tag.same(name)))
                .map(|name| (&served.ollama, name.to_string()))
        }),
        _ => None,
    };
    let foresight = deploy::foresee(tag.as_ref().map(|(ollama, name)| (*ollama, name.as_str())), &probes, &remedies)?;
    match tag {
        Some((_, tag)) => tell_compared(&tag, probes.len(), &foresight, section),
        None => tell_foreseen(&remedies, template, &foresight, section),
    }
    Ok(())
}

fn tell_compared(tag: &str, conversations: usize, foresight: &Foresight, section: &mut Section) {
    let Some(first) = foresight.differences.first() else {
        return section.ok(format!("Ollama prompts {tag} as training does, token for token, in {conversations} conversations"));
    };
    match &foresight.remedy {
        Some(remedy) if foresight.proven => {
            section.note(format!("Ollama prompts {tag} otherwise by itself: deploy writes {remedy}, and then they are the same"), "");
        }
        Some(remedy) => section.note(format!("Ollama prompts {tag} otherwise ({first}): deploy would write {remedy}, and register nothing where that is not the same"), ""),
        None => section.say(
            Level::Problem,
            format!("Ollama prompts {tag} otherwise, and deploy could not make it the same: {first}; {}", foresight.notes.join("; ")),
            Some(format!("train with --template {}, which Ollama renders the same", BUILT_IN.join(", "))),
        ),
    }
}

fn tell_foreseen(remedies: &Remedies, template: &Template, foresight: &Foresight, section: &mut Section) {
    if let Some(system) = &remedies.default_system {
        section.note(
            format!("the template puts in a system text of its own, {system:?}; Ollama may drop it: deploy writes it as SYSTEM"),
            "",
        );
    }
    let seen_at_deploy = "whether Ollama prompts as training does is seen by deploy, on a trial model";
    match &foresight.remedy {
        Some(_) if template.is_built_in() => {
            section.ok(format!("{seen_at_deploy}; if not, it writes the template's twin as TEMPLATE"))
        }
        Some(_) => section.ok(format!("{seen_at_deploy}; if not, it writes a TEMPLATE learnt from the prompts")),
        None => section.note(
            format!(
                "{seen_at_deploy}; if Ollama does not know this template, it cannot be learnt: {}",
                foresight.notes.join("; ")
            ),
            format!("should deploy refuse, train with --template {}", BUILT_IN.join(", ")),
        ),
    }
}

/// A question alone, one under a system text, and one in a conversation; those that the template takes.
fn probes(renderer: &Renderer) -> Vec<PromptProbe> {
    let talks: [(&str, &[(&str, &str)]); 4] = [
        ("a question alone", &[("user", "Who are you?")]),
        ("a question under a system text", &[("system", "Answer with one word."), ("user", "Name a colour, please.")]),
        ("a conversation", &[("user", "What is two plus two?"), ("assistant", "Four."), ("user", "And three plus three?")]),
        (
            "a conversation under a system text",
            &[("system", "Be brief."), ("user", "Is it late?"), ("assistant", "Yes."), ("user", "How late?")],
        ),
    ];
    let probe = |(name, talk): (&str, &[(&str, &str)])| {
        let messages: Vec<Message> = talk.iter().map(|(role, content)| Message::new(*role, *content)).collect();
        let (text, ids) = renderer.prompt(&messages, None).ok()?;
        Some(PromptProbe { name: name.to_owned(), messages, tools: None, text, ids })
    };
    talks.into_iter().filter_map(probe).collect()
}

/// `135 M`, `1.5 G`
fn count(n: usize) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..10_000_000 => format!("{:.2} M", n as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} M", n as f64 / 1e6),
        _ => format!("{:.1} G", n as f64 / 1e9),
    }
}
