//! From an adapter to a model that Ollama serves, prompted as it was trained and proven to be what was trained.

pub mod llama_server;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use retune_kernels::DType;
use serde::Serialize;
use serde_json::json;

use super::RUN_FILE;
use super::champion::{Champion, hold};
use super::convert::{as_gguf, stored_as};
use crate::base::{Base, Origin};
use crate::deploy::{
    self, Deployment, From, ModelSpec, Number, OwnAnswer, OwnEnd, OwnToken, Parameters, Promote, PromptProbe, Registered,
    Remedies, Settlement,
};
use crate::domain::{Example, Message};
use crate::error::{Error, Result};
use crate::export::merge::{MergeReport, MergeType, merge};
use crate::formats::gguf::{GgmlType, Gguf, TensorInfo};
use crate::formats::rows::{self, Wanted};
use crate::infer::generate::{Request, Step, generate, log_sum_exp};
use crate::model::{Adapter, Module, Stream, Workspace, adapter_files};
use crate::runtime::Registry;
use crate::runtime::ollama::{Blob, Ollama};
use crate::store::{NewAdapter, NewDeployment, Store};
use crate::text::render::Renderer;
use crate::text::template::Template;

/// How the adapter gets into the served model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Adapter where this Ollama takes one, else merged.
    Auto,
    Merged,
    Adapter,
}

/// What to deploy, and how.
#[derive(Clone, Debug)]
pub struct DeployRequest {
    pub adapter: PathBuf,
    /// Where the system text of training is not in the run's folder.
    pub system: Option<String>,
    /// Rows whose prompts are compared; without them a plain request.
    pub data: Option<PathBuf>,
    pub prefix: String,
    pub role: String,
    pub mode: Mode,
    /// How the matrices are stored: merged ones, or those of the base that an adapter is put on. `None`: the base as it is; merged
    /// ones as the base has them, or f16 or q8_0 where that is too coarse for a small change.
    pub merge_type: Option<MergeType>,
    /// The folder that holds `.agent`.
    pub root: PathBuf,
    pub promote: Promote,
    pub parameters: Parameters,
    /// A version that is made again, of what was recorded of it; `None`: a new one.
    pub again: Option<Again>,
}

/// A version that is made again under its own number. The request's parameters are then complete.
#[derive(Clone, Debug)]
pub struct Again {
    pub version: u64,
    /// What was registered to make the prompts the trained ones; `None`: a record of before that was written down.
    pub settled: Option<Settled>,
}

/// The texts of a registered model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Settled {
    pub system: Option<String>,
    pub template: Option<String>,
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct Deployed {
    pub modelfile: PathBuf,
    pub merged: Option<(PathBuf, MergeReport)>,
    pub outcome: Outcome,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    Served {
        registered: Registered,
        settlement: Box<Settlement>,
        mode: Mode,
        compared: Box<deploy::Report>,
    },
    /// No Ollama answered: why, and what to run later.
    Later {
        why: String,
        commands: Vec<String>,
    },
}

/// How far served and trained log-probabilities may be apart. llama.cpp rounds activations to 8 bits where weights are
/// quantised or bf16, and merged weights are rounded once more: .23 was measured on Q4_1 between two Ollamas that ran the same
/// file, .14 on SmolLM2 in bf16.
const TOLERANCE: f64 = 0.05;
const TOLERANCE_COARSE: f64 = 0.3;
/// Prompts that are compared, and tokens of each answer.
const PROBES: usize = 3;
const ANSWER_TOKENS: usize = 24;
const TOP: usize = 5;

/// A merged model beside its adapter; it can be made again.
pub(super) const MERGED_FILE: &str = "merged.gguf";

/// What the run that made an adapter remembers: base, template, system text.
#[derive(Clone, Debug, Default, serde::Deserialize)]
pub struct RunMemory {
    base: Option<RunBase>,
    pub template: Option<String>,
    pub system: Option<String>,
    data: Option<RunData>,
}

#[derive(Clone, Debug, Default, serde::Deserialize)]
struct RunBase {
    name: String,
}

#[derive(Clone, Debug, Default, serde::Deserialize)]
struct RunData {
    path: PathBuf,
}

impl RunMemory {
    /// From `run.json` beside the adapter; empty where there is none.
    pub fn beside(adapter: &Path) -> Result<Self> {
        Self::text(adapter)?.map_or_else(|| Ok(Self::default()), |(path, text)| Self::parse(&path, &text))
    }

    /// All of `run.json` beside the adapter.
    fn whole(adapter: &Path) -> Result<Option<serde_json::Value>> {
        Self::text(adapter)?.map(|(path, text)| Self::parse(&path, &text)).transpose()
    }

    fn text(adapter: &Path) -> Result<Option<(PathBuf, String)>> {
        let path = folder_of(adapter).join(RUN_FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some((path, text))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    fn parse<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
        serde_json::from_str(text)
            .map_err(|e| Error::file(path, format!("does not read: {e}"), "give --base and --template by hand, or train again"))
    }

    pub fn base(&self) -> Option<&str> {
        self.base.as_ref().map(|b| b.name.as_str())
    }

    /// The rows that were trained on, where they are still there.
    pub fn data(&self) -> Option<PathBuf> {
        self.data.as_ref().map(|d| d.path.clone()).filter(|p| p.is_file())
    }
}

/// Exports, registers, verifies, compares. Without an Ollama the files are made, and the outcome says what to run later.
pub fn deploy(base: &Base, template: &Template, request: &DeployRequest, note: &mut dyn FnMut(&str)) -> Result<Deployed> {
    let adapter = adapter_files::load(&request.adapter, &base.decoder.config)?;
    let renderer = Renderer { tokenizer: &base.tokenizer, template, system: request.system.clone() };
    let probes = probes(&renderer, request.data.as_deref(), base)?;
    let modelfile = request.root.join(".agent").join(format!("Modelfile.{}", request.role));
    let alias = deploy::alias_name(&request.prefix, &request.role)?.to_string();
    let parameters = served_parameters(base, request)?;
    let texts = match request.again.as_ref().and_then(|again| again.settled.clone()) {
        Some(settled) => settled,
        None => Settled { system: request.system.clone().or(default_system(&renderer)?), template: None },
    };
    let spec_of = |from: From, blob: Option<Blob>| ModelSpec {
        system: texts.system.clone(),
        template: texts.template.clone(),
        ..match blob {
            Some(blob) => ModelSpec::adapted(from, blob, parameters.clone()),
            None => match from {
                From::File(model) => ModelSpec::merged(model, parameters.clone()),
                From::Model(_) => unreachable!("a merged model is a file"),
            },
        }
    };

    let merge_type = request.merge_type.unwrap_or_else(|| fine_enough(base));
    let bases = request.root.join(".agent/bases");
    let ollama = Ollama::from_env()?;
    let version = ollama.version();
    // Two at once would give one number twice.
    let _turn = hold(&request.root.join(".agent/deploy.lock"), "another retune is deploying: waiting for it", note)?;
    let gguf = as_gguf(base, merge_type.of_base(), &bases, note)?;
    if adapter.spec.dora && request.mode == Mode::Adapter {
        return Err(Error::unsupported(
            format!(
                "{} is a DoRA adapter, which has to be merged: a GGUF adapter cannot say its magnitudes",
                request.adapter.display()
            ),
            "use --mode merged, or leave --mode away",
        ));
    }
    let as_adapter = match (&version, request.mode) {
        (_, Mode::Merged) => None,
        (_, Mode::Auto) if adapter.spec.dora => {
            note("this is a DoRA adapter, which a GGUF adapter cannot say: merging");
            None
        }
        (Err(_), Mode::Auto) => None,
        (Err(_), Mode::Adapter) => Some(adapter_spec_parts(base, &gguf, &adapter, &request.adapter)?),
        (Ok(version), mode) => {
            let (from, blob) = adapter_spec_parts(base, &gguf, &adapter, &request.adapter)?;
            let support = deploy::adapter_support(&ollama, &from, &blob, &request.root.join(".agent/ollama-capabilities.json"))?;
            if support.accepted {
                Some((from, blob))
            } else if mode == Mode::Adapter {
                let next = match &request.again {
                    None => "use --mode merged, or --mode auto".to_owned(),
                    Some(_) => format!("`retune deploy --adapter {}` makes a new version of it", request.adapter.display()),
                };
                return Err(Error::unsupported(
                    format!("Ollama {version} takes no adapters: it says \"{}\"", support.said),
                    next,
                ));
            } else {
                note(&format!("Ollama {version} takes no adapters: merging"));
                None
            }
        }
    };
    let (spec, merged, mode, tolerance) = match as_adapter {
        Some((from, blob)) => {
            let stored = stored_as(base, &gguf, request.merge_type.unwrap_or(MergeType::Keep), &bases, note)?;
            let from = if Arc::ptr_eq(&stored, &gguf) { from } else { From::File(Blob::of(&stored.path)?) };
            (spec_of(from, Some(blob)), None, Mode::Adapter, tolerance(&stored))
        }
        None => {
            let out = folder_of(&request.adapter).join(MERGED_FILE);
            let report =
                merge(&gguf, &adapter_files::gguf_pairs(&adapter, &base.decoder.config), adapter.spec.scale(), merge_type, &out)?;
            report.notes().iter().for_each(|n| note(n));
            let tolerance = tolerance(&Gguf::open(&out)?);
            (spec_of(From::File(Blob::of(&out)?), None), Some((out, report)), Mode::Merged, tolerance)
        }
    };

    if let Err(why) = version {
        spec.write_modelfile(&modelfile, &alias)?;
        let commands = deploy::later_commands(
            &modelfile,
            &format!("{}:v1", alias.trim_end_matches(":latest")),
            &alias,
            request.promote != Promote::No,
        );
        return Ok(Deployed { modelfile, merged, outcome: Outcome::Later { why: why.to_string(), commands } });
    }
    let server = ollama.address().to_string();
    let model = alias.trim_end_matches(":latest").to_owned();
    let mut store = Store::open(&request.root)?;
    // The alias waits until the comparison below has shown that the right thing is served.
    let deployment = Deployment {
        prefix: request.prefix.clone(),
        role: request.role.clone(),
        spec,
        promote: Promote::No,
        number: match &request.again {
            Some(again) => Number::Exactly(again.version),
            None => Number::From(store.next_version(&server, &model)?),
        },
    };
    let bos = base.tokenizer.bos_text();
    let remedies = Remedies {
        default_system: None,
        templates: template.ollama_twin(&base.tokenizer).into_iter().collect(),
        bos: (!bos.is_empty()).then_some(bos),
    };
    let (mut registered, settlement) = deploy::deploy(&ollama, &deployment, &probes, &remedies, true, &mut |_| {})?;
    if let Some(remedy) = &settlement.remedy {
        note(&format!("the prompt that Ollama renders was made the trained one: {remedy}"));
    }
    settlement.spec.write_modelfile(&modelfile, &registered.name)?;
    let own = own_answers(base, &adapter, &probes)?;
    let compared = deploy::compare_served(&ollama, &registered.name, &own, tolerance)?;
    if let deploy::Verdict::Different(why) = &compared.verdict {
        return Err(Error::server(
            format!("{} is registered, but does not answer as it was trained: {why}", registered.name),
            format!(
                "the alias was not moved, what served before still serves; try --type f16, or look at {}",
                modelfile.display()
            ),
        ));
    }
    let proven = Proven {
        registered: &registered,
        registry: &ollama,
        mode: if mode == Mode::Adapter { "adapter" } else { "merged" },
        recipe: recipe(base, template, request, mode, &settlement.spec),
    };
    proven.record(&mut store, base, &adapter, request)?;
    drop(store);
    registered.promoted = promote_as_asked(&ollama, request, &registered, note)?;
    Ok(Deployed {
        modelfile,
        merged,
        outcome: Outcome::Served { registered, settlement: Box::new(settlement), mode, compared: Box::new(compared) },
    })
}

/// A version that was seen to serve what was trained.
struct Proven<'a> {
    registered: &'a Registered,
    registry: &'a dyn Registry,
    /// `adapter` or `merged`
    mode: &'a str,
    /// What it takes to make it again.
    recipe: serde_json::Value,
}

impl Proven<'_> {
    fn record(&self, store: &mut Store, base: &Base, adapter: &Adapter, request: &DeployRequest) -> Result<()> {
        let run = RunMemory::whole(&request.adapter)?;
        let model = deploy::alias_name(&request.prefix, &request.role)?.to_string();
        store.record_deployment(
            &NewDeployment {
                server: &self.registry.id(),
                model: model.trim_end_matches(":latest"),
                version: self.registered.version,
                digest: &self.registered.digest,
                mode: self.mode,
                size_bytes: self.registry.tag(&self.registered.name)?.map_or(0, |tag| tag.size),
                recipe: &self.recipe,
            },
            &NewAdapter {
                role: &request.role,
                digest: &super::adapter_digest(adapter),
                path: &std::path::absolute(&request.adapter).map_err(Error::io("find", &request.adapter))?.to_string_lossy(),
                base_name: &base.name,
                base_digest: &base.digest()?,
                run: run.as_ref(),
            },
        )?;
        Ok(())
    }
}

/// Moves the alias to the new version where the request says so. `true`: it names that version now.
fn promote_as_asked(
    registry: &dyn Registry,
    request: &DeployRequest,
    registered: &Registered,
    note: &mut dyn FnMut(&str),
) -> Result<bool> {
    let mut champion = Champion::open(registry, &request.root, &request.prefix, &request.role, note)?;
    let now = champion.now()?;
    match (request.promote, &now) {
        (Promote::Yes, _) => champion.promote_judged(&registered.name, None, false, note).map(|_| true),
        (Promote::IfFirst, None) => champion.promote(&registered.name, "the first version").map(|_| true),
        _ => Ok(now.is_some_and(|now| now.digest == registered.digest)),
    }
}

/// The request's, with the ends of an answer as stops, and with what an Ollama tag says itself; those of a version that is made again
/// have that already.
fn served_parameters(base: &Base, request: &DeployRequest) -> Result<Parameters> {
    let mut parameters = request.parameters.clone();
    if request.again.is_some() {
        return Ok(parameters);
    }
    for &id in base.tokenizer.end_ids() {
        parameters.add_stop(&base.tokenizer.token(id).unwrap_or_default());
    }
    if let Origin::Ollama { tag, .. } = &base.origin
        && let Some(params) = crate::runtime::ollama::store::resolve(tag)?.params
    {
        parameters.inherit(&params);
    }
    Ok(parameters)
}

/// What it takes to make a version again, from any folder: `pipeline/rebuild.rs` reads it.
fn recipe(base: &Base, template: &Template, request: &DeployRequest, mode: Mode, spec: &ModelSpec) -> serde_json::Value {
    let at = |name: &Path| std::path::absolute(name).ok().filter(|path| path.exists());
    json!({
        "base": base.name, "base_at": at(Path::new(&base.name)),
        "template": template.name, "template_source": template.source(),
        "system": request.system, "mode": mode, "type": request.merge_type.map(|t| t.to_string()),
        "parameters": spec.parameters.to_json(),
        "settled": Settled { system: spec.system.clone(), template: spec.template.clone() },
        "data": request.data.as_ref().map(|data| at(data).unwrap_or_else(|| data.clone())),
    })
}

pub(super) fn folder_of(adapter: &Path) -> &Path {
    if adapter.is_dir() { adapter } else { adapter.parent().unwrap_or(Path::new(".")) }
}

/// The pristine base and the GGUF adapter on it.
fn adapter_spec_parts(base: &Base, gguf: &Gguf, adapter: &Adapter, path: &Path) -> Result<(From, Blob)> {
    let file = gguf_adapter(base, adapter, path)?;
    let from = match &base.origin {
        Origin::Ollama { tag, .. } => From::Model(tag.clone()),
        Origin::Gguf(_) | Origin::BuiltIn(_) | Origin::Folder(_) => From::File(gguf_blob(gguf, folder_of(path))?),
    };
    Ok((from, Blob::of(&file)?))
}

/// The adapter as a GGUF file; written beside the other files where it is missing.
fn gguf_adapter(base: &Base, adapter: &Adapter, path: &Path) -> Result<PathBuf> {
    let file = if path.is_dir() { path.join(super::GGUF_ADAPTER_FILE) } else { path.to_owned() };
    if !file.is_file() {
        adapter_files::save_gguf(&file, adapter, &base.decoder.config)?;
    }
    Ok(file)
}

/// The base as a file; the one in the binary is written out first.
fn gguf_blob(gguf: &Gguf, folder: &Path) -> Result<Blob> {
    if gguf.path.is_file() {
        return Blob::of(&gguf.path);
    }
    let path = folder.join("base.gguf");
    crate::formats::durable::write(&path, gguf.bytes())?;
    Blob::of(&path)
}

/// By what is served: the merged file, or the base that the adapter is put on.
fn tolerance(served: &Gguf) -> f64 {
    let is_coarse = |t: &TensorInfo| match t.ggml_type {
        GgmlType::F32 | GgmlType::F16 => false,
        GgmlType::BF16 => true,
        _ => t.name.starts_with("blk."),
    };
    if served.tensors.iter().any(is_coarse) { TOLERANCE_COARSE } else { TOLERANCE }
}

/// A change of some thousandths drowns in the rounding of four bits, and a third of it in bf16's: where they are touched,
/// such bases get q8_0 and f16. A folder is served in f16 whatever it is in.
fn fine_enough(base: &Base) -> MergeType {
    use retune_kernels::weight::GgmlDType;
    let stored = base.decoder.weights.blocks.first().map(|b| b.linear(Module::Q).weight.dtype());
    match stored {
        _ if matches!(base.origin, Origin::Folder(_)) => MergeType::To(DType::F16),
        Some(DType::Quant(q)) if q != GgmlDType::Q8_0 => MergeType::To(DType::Quant(GgmlDType::Q8_0)),
        Some(DType::BF16) => MergeType::To(DType::F16),
        _ => MergeType::Keep,
    }
}

/// The system text that the template puts in by itself where a conversation has none: it is said in the Modelfile, because
/// Ollama drops it otherwise (for SmolLM2, and for any model whose Go template knows no default).
pub(super) fn default_system(renderer: &Renderer) -> Result<Option<String>> {
    const SENTINEL: &str = "retune-system-text";
    let user = Message::new("user", "Hi");
    let without = renderer.prompt(std::slice::from_ref(&user), None)?.0;
    // A template that refuses a system turn has no default either.
    let Ok((with, _)) = renderer.prompt(&[Message::new("system", SENTINEL), user], None) else { return Ok(None) };
    let text = with.split_once(SENTINEL).and_then(|(before, after)| without.strip_prefix(before)?.strip_suffix(after));
    Ok(text.filter(|t| !t.is_empty()).map(str::to_owned))
}

/// Prompts as training rendered them: of the first rows, or of a plain request.
fn probes(renderer: &Renderer, data: Option<&Path>, base: &Base) -> Result<Vec<PromptProbe>> {
    let plain = || vec![Example { messages: vec![Message::new("user", "Hello, what can you do?")], tools: None, row: 1 }];
    let examples = match data {
        Some(path) => rows::read_as(path, Wanted::Prompts)?.examples,
        None => plain(),
    };
    let limit = base.default_max_length().saturating_sub(ANSWER_TOKENS);
    let mut probes = Vec::new();
    for example in examples {
        let turns: Vec<Message> = example.messages.iter().take_while(|m| m.role != "assistant").cloned().collect();
        let (text, ids) = renderer.prompt(&turns, example.tools.as_ref())?;
        if ids.len() <= limit {
            probes.push(PromptProbe { name: format!("row {}", example.row), messages: turns, tools: example.tools, text, ids });
        }
        if probes.len() == PROBES {
            break;
        }
    }
    if probes.is_empty() {
        return Err(Error::data(
            format!("every prompt of the data is longer than {limit} tokens"),
            "give rows with shorter prompts by --data",
        ));
    }
    Ok(probes)
}

/// Our own greedy answers with the adapter, token by token, and what the base would have thought of each token.
fn own_answers(base: &Base, adapter: &Adapter, probes: &[PromptProbe]) -> Result<Vec<OwnAnswer>> {
    let tokenizer = &base.tokenizer;
    let prompts: Vec<Vec<u32>> = probes.iter().map(|p| p.ids.clone()).collect();
    let request = Request { max_tokens: ANSWER_TOKENS, end_ids: tokenizer.end_ids(), top: TOP, ..Request::default() };
    let answers = generate(&base.decoder, &prompts, Some(adapter), &request, |_, _| {});
    let piece = |id: u32| tokenizer.piece(id).unwrap_or_default();
    let top = |step: &Step| {
        let told = |&(id, logprob)| ((!tokenizer.end_ids().contains(&id)).then(|| piece(id)), f64::from(logprob));
        step.top.iter().map(told).collect()
    };
    let mut own = Vec::new();
    for (probe, answer) in probes.iter().zip(answers) {
        let ids = answer.ids();
        let whole: Vec<u32> = probe.ids.iter().chain(&ids).copied().collect();
        let rows: Vec<usize> = (0..ids.len()).map(|i| probe.ids.len() - 1 + i).collect();
        let vocab = base.decoder.config.vocab_size;
        let base_logits = base.decoder.logits(&Stream::packed(&[&whole]), &rows, None, &mut Workspace::default(), None);
        let tokens = ids.iter().zip(&answer.steps).zip(base_logits.chunks_exact(vocab)).map(|((&id, step), logits)| OwnToken {
            piece: piece(id),
            logprob: f64::from(step.logprob),
            base_logprob: Some(f64::from(logits[id as usize] - log_sum_exp(logits))),
            top: top(step),
        });
        let end = answer.steps.last().filter(|_| answer.ended);
        // The served model puts its BOS in front by itself.
        let bos = tokenizer.bos_text();
        let starts_with_bos =
            tokenizer.add_bos && probe.ids.first().is_some_and(|&id| Some(id) == tokenizer.bos) && !bos.is_empty();
        let prompt = if starts_with_bos { probe.text.strip_prefix(&bos).unwrap_or(&probe.text) } else { &probe.text };
        own.push(OwnAnswer {
            name: probe.name.clone(),
            prompt: prompt.to_owned(),
            prompt_tokens: probe.ids.len(),
            tokens: tokens.collect(),
            end: end.map(|step| OwnEnd { logprob: f64::from(step.logprob), top: top(step) }),
        });
    }
    Ok(own)
}
