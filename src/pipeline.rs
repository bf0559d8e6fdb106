//! From a base and rows to an adapter in its folder: the stages in their order.

pub mod deploy;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use retune_kernels::rng::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::base::{Base, hex};
use crate::domain::{Example, Tokens};
use crate::error::{Error, Result};
use crate::formats::rows::Wanted;
use crate::formats::{durable, rows};
use crate::model::{Adapter, AdapterSpec, adapter_files};
use crate::text::render::{Fitted, Long, Renderer, fit};
use crate::text::template::Template;
use crate::train::checkpoint::{self, Best};
use crate::train::plan::{MemoryPlan, default_budget};
use crate::train::{Job, Lessons, Method, Progress, TrainSettings, metrics, report};

/// The files of a run's folder.
pub const RUN_FILE: &str = "run.json";
pub const GGUF_ADAPTER_FILE: &str = "adapter.gguf";

/// What to train, on what, and where to put it.
#[derive(Clone, Debug)]
pub struct TrainRequest {
    pub data: PathBuf,
    pub eval_data: Option<PathBuf>,
    /// Share of the examples held out where no `eval_data` is given; 0 holds out none.
    pub eval_share: f64,
    pub out: PathBuf,
    pub reading: Reading,
    pub adapter: AdapterSpec,
    pub init_adapter: Option<PathBuf>,
    pub settings: TrainSettings,
    pub memory_budget: Option<usize>,
    pub save_every: u64,
    pub resume: bool,
    pub overwrite: bool,
}

/// How rows become tokens.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub template: Option<String>,
    /// A system text before every row.
    pub system: Option<String>,
    pub max_length: Option<usize>,
    pub long: Long,
}

/// Rows ready for the model, and what happened to them on the way.
#[derive(Debug)]
pub struct Dataset {
    /// Of a pair, the chosen answer and then the rejected one, each with its prompt.
    pub rows: Vec<Tokens>,
    /// Whether each row is good work.
    pub good: Vec<bool>,
    /// The number in the file (from 1) of each row.
    pub numbers: Vec<usize>,
    /// A hash of what stands before each row's answer.
    prompts: Vec<u64>,
    pub read: usize,
    /// Rows of bad work, in a file that is read for the good.
    pub unwanted: usize,
    /// Pairs that are learnt from as a good and a bad row.
    pub unpaired: usize,
    /// Pairs left out because both answers are the same tokens.
    pub same: usize,
    /// Pairs left out because one of their rows was.
    pub broken: usize,
    pub trailing_user_turns: usize,
    pub fitted: Fitted,
    pub max_length: usize,
    /// SHA-256 over ids and masks.
    pub digest: String,
}

impl Dataset {
    /// What a user should know of the rows, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note = |n: usize, what: &str| {
            if n > 0 {
                notes.push(format!("{n} of {} rows {what}", self.read));
            }
        };
        note(
            self.fitted.cut,
            &format!("were longer than {} tokens and cut at the end (--long drop|error changes that)", self.max_length),
        );
        note(self.fitted.dropped, &format!("were longer than {} tokens and left out", self.max_length));
        note(self.fitted.without_target, "had nothing to train and were left out");
        note(self.trailing_user_turns, "ended on a user's turn, which was left out");
        note(self.unwanted, "are marked as bad work and were left out (--method kto learns from them, too)");
        for (n, what) in [
            (self.unpaired, "pairs are learnt from as a good and a bad row each (--method dpo or orpo keeps them together)"),
            (self.same, "pairs were left out: both of their answers are the same tokens"),
            (self.broken, "pairs were left out, because one of their rows was"),
        ] {
            if n > 0 {
                notes.push(format!("{n} {what}"));
            }
        }
        notes
    }
}

/// Reads a file of good work, renders every row, brings it to length.
pub fn load_dataset(base: &Base, template: &Template, path: &Path, reading: &Reading) -> Result<Dataset> {
    load_for(Method::Sft, base, template, path, reading)
}

/// Reads a file as a method wants it, renders every row, brings it to length.
fn load_for(method: Method, base: &Base, template: &Template, path: &Path, reading: &Reading) -> Result<Dataset> {
    let wanted = match method {
        Method::Sft => Wanted::GoodWork,
        Method::Dpo { .. } | Method::Orpo { .. } => Wanted::Pairs,
        Method::Kto { .. } => Wanted::Labelled,
    };
    let file = rows::read_as(path, wanted)?;
    let renderer = Renderer { tokenizer: &base.tokenizer, template, system: reading.system.clone() };
    let read = file.examples.len() + file.unwanted_rows;
    let prompts: Vec<u64> = file.examples.iter().map(prompt_hash).collect();
    let numbers: Vec<usize> = file.examples.iter().map(|e| e.row).collect();
    let tokens = file.examples.iter().map(|e| Ok(renderer.render(e)?.tokens)).collect::<Result<Vec<_>>>()?;
    let max_length = reading.max_length.unwrap_or_else(|| base.default_max_length());
    let context = base.decoder.config.context_length;
    if max_length > context {
        return Err(Error::usage(
            format!("--max-length {max_length} is more than the {context} tokens that {} can see", base.name),
            format!("use at most {context}"),
        ));
    }
    let (mut kept, fitted) = fit(tokens, max_length, reading.long)?;
    let (mut same, mut broken) = (0, 0);
    if method.takes_pairs() {
        (kept, same, broken) = whole_pairs(kept);
    }
    let (rows, places): (Vec<Tokens>, Vec<usize>) = kept.into_iter().unzip();
    let good: Vec<bool> = places.iter().map(|&place| file.good[place]).collect();
    check_preferences(method, path, &good, same)?;
    Ok(Dataset {
        digest: digest_rows(&rows),
        rows,
        good,
        numbers: places.iter().map(|&place| numbers[place]).collect(),
        prompts: places.iter().map(|&place| prompts[place]).collect(),
        read,
        unwanted: file.unwanted_rows,
        unpaired: file.unpaired,
        same,
        broken,
        trailing_user_turns: file.trailing_user_turns,
        fitted,
        max_length,
    })
}

/// Rows with their places in the file.
type Placed = Vec<(Tokens, usize)>;

/// The pairs of which both rows are left and differ; how many pairs were the same twice, and how many lost a row.
fn whole_pairs(kept: Placed) -> (Placed, usize, usize) {
    let (mut pairs, mut same, mut broken) = (Vec::with_capacity(kept.len()), 0, 0);
    let mut rest = kept.into_iter().peekable();
    while let Some(first) = rest.next() {
        let is_other = |(_, place): &(Tokens, usize)| first.1.is_multiple_of(2) && *place == first.1 + 1;
        match rest.next_if(is_other) {
            None => broken += 1,
            Some(second) if first.0.ids == second.0.ids => same += 1,
            Some(second) => pairs.extend([first, second]),
        }
    }
    (pairs, same, broken)
}

/// There must be something to prefer.
fn check_preferences(method: Method, path: &Path, good: &[bool], same: usize) -> Result<()> {
    let wanted = good.iter().filter(|&&good| good).count();
    let one_kind = if wanted == good.len() { "good" } else { "bad" };
    match method {
        Method::Sft => Ok(()),
        _ if good.is_empty() => Err(Error::file(
            path,
            format!("no pair is left to learn from ({same} of them have the same answer twice)"),
            "raise --max-length if answers were cut before they part, or look at the pairs: the two answers must differ",
        )),
        Method::Kto { .. } if wanted == 0 || wanted == good.len() => Err(Error::file(
            path,
            format!("all {} rows that can be trained are marked {one_kind}", good.len()),
            "--method kto learns from the difference: add rows of the other kind, or train on good work alone with --method sft",
        )),
        _ => Ok(()),
    }
}

/// Tells where rows of one kind outweigh the others: TRL's guide to KTO advises 1 to 1 up to 4 to 3.
fn lopsided(method: Method, good: &[bool]) -> Option<String> {
    let Method::Kto { desirable_weight, undesirable_weight, .. } = method else { return None };
    let wanted = good.iter().filter(|&&good| good).count();
    let unwanted = good.len() - wanted;
    let ratio = desirable_weight * wanted as f64 / (undesirable_weight * unwanted as f64);
    if (0.75..=1.34).contains(&ratio) {
        return None;
    }
    let (flag, weight) = match wanted > unwanted {
        true => ("--undesirable-weight", desirable_weight * wanted as f64 / unwanted as f64),
        false => ("--desirable-weight", undesirable_weight * unwanted as f64 / wanted as f64),
    };
    Some(format!(
        "{wanted} good rows and {unwanted} bad ones, weighed {ratio:.2} to 1: KTO learns best between 1 and 1.33 to 1; {flag} {weight:.2} makes them equal"
    ))
}

/// What a training left behind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainReport {
    pub out: PathBuf,
    pub steps: u64,
    pub total_steps: u64,
    pub last_loss: f64,
    pub best: Option<Best>,
    pub stopped_early: bool,
    pub seconds: f64,
}

/// Trains an adapter and writes everything that belongs to it.
pub fn train(
    base: &Base,
    request: &TrainRequest,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
    note: &mut dyn FnMut(&str),
) -> Result<TrainReport> {
    request.settings.check()?;
    RunFolder::check(&request.out, request.resume, request.overwrite)?;
    let template = base.template(request.reading.template.as_deref())?;
    let method = request.settings.method;
    let mut dataset = load_for(method, base, &template, &request.data, &request.reading)?;
    dataset.notes().iter().for_each(|n| note(n));
    let held_out = match &request.eval_data {
        Some(path) => {
            let held_out = load_for(method, base, &template, path, &request.reading)?;
            (held_out.rows, held_out.good)
        }
        None => hold_out(&mut dataset, method, request.eval_share)?,
    };
    lopsided(method, &dataset.good).iter().for_each(|n| note(n));
    let start = starting_adapter(base, request)?;
    let base_digest = base.digest()?;
    let digest_good = |good: &[bool]| digest_bytes(&good.iter().map(|&good| good.into()).collect::<Vec<u8>>());
    let identity = digest_of(&json!({
        "base": base_digest, "data": digest_rows(&dataset.rows), "held_out": digest_rows(&held_out.0), "settings": request.settings,
        "good": [digest_good(&dataset.good), digest_good(&held_out.1)],
        "adapter": start.spec, "start": digest_bytes(bytemuck::cast_slice(&start.params)),
    }));
    if request.resume
        && let Some(done) = RunFolder::finished(&request.out, &identity)?
    {
        // A kill right before the end leaves the checkpoint, which nobody needs any more.
        RunFolder::open(&request.out, request.resume, request.overwrite)?.remove_checkpoint()?;
        note("this training is finished already; nothing to do");
        return Ok(done);
    }
    let lessons = Lessons::new(method, dataset.rows, dataset.good, dataset.max_length);
    let held_out = Lessons::new(method, held_out.0, held_out.1, dataset.max_length);
    let budget = request.memory_budget.unwrap_or_else(default_budget);
    let plan = MemoryPlan::new(&base.decoder, start.params.len(), &lessons, &request.settings, budget)?;
    note(&plan.describe(base.decoder.config.layers));
    // Nothing before this point writes: what cannot be trained leaves no folder behind, and none is emptied for it.
    let folder = RunFolder::open(&request.out, request.resume, request.overwrite)?;
    if lessons.needs_reference() {
        note("asking the model that training starts from about every answer, once");
    }
    let [lessons, held_out] = [lessons, held_out].map(|lessons| lessons.with_reference(&base.decoder, &start));

    let mut run = json!({
        "retune": env!("CARGO_PKG_VERSION"),
        "method": method.name(), "beta": method.beta(),
        "base": { "name": base.name, "digest": base_digest, "hub_id": base.hub_id, "weights": base.decoder.weights.dtype_name() },
        "data": { "path": request.data, "digest": dataset.digest, "rows": lessons.len(), "read": dataset.read, "cut": dataset.fitted.cut, "dropped": dataset.fitted.dropped,
                  "without_target": dataset.fitted.without_target, "held_out": held_out.len(), "max_length": dataset.max_length },
        "template": template.name, "system": request.reading.system,
        "adapter": start.spec, "init_adapter": request.init_adapter, "settings": request.settings, "seed": request.settings.seed,
        "memory_plan": plan, "identity": identity, "finished": false,
    });
    folder.write_run(&run)?;

    let spec = start.spec.clone();
    let evaluate = |adapter: &Adapter| Ok(held_out.evaluate(&base.decoder, adapter));
    let job = Job {
        decoder: &base.decoder,
        lessons: &lessons,
        settings: &request.settings,
        plan,
        start,
        evaluate: if held_out.is_empty() { None } else { Some(&evaluate) },
        folder: &request.out,
        identity,
        save_every: request.save_every,
        stop,
    };
    let outcome = job.run(request.resume, progress)?;
    if outcome.steps == 0
        && let Some(failure) = outcome.failure
    {
        // Nothing was learnt: no file may look as if there were an adapter.
        return Err(failure);
    }

    let mut adapter = outcome.adapter;
    adapter.spec = spec;
    adapter_files::save_peft(&request.out, &adapter, &base.decoder.config, Some(base.hub_id.as_deref().unwrap_or(&base.name)))?;
    adapter_files::save_gguf(&request.out.join(GGUF_ADAPTER_FILE), &adapter, &base.decoder.config)?;
    report::write(&request.out, &run, &metrics::read(&request.out)?)?;
    let report = TrainReport {
        out: request.out.clone(),
        steps: outcome.steps,
        total_steps: outcome.total_steps,
        last_loss: outcome.last_loss,
        best: outcome.best,
        stopped_early: outcome.stopped_early,
        seconds: outcome.seconds,
    };
    run["finished"] = json!(outcome.failure.is_none());
    run["result"] = json!(report);
    run["failure"] = json!(outcome.failure.as_ref().map(ToString::to_string));
    folder.write_run(&run)?;
    if let Some(failure) = outcome.failure {
        note(&format!("the last good adapter is kept in {}", request.out.display()));
        return Err(failure);
    }
    folder.remove_checkpoint()?;
    Ok(report)
}

/// The first bytes of a hash.
fn hash_head(bytes: &[u8]) -> u64 {
    let hash = Sha256::digest(bytes);
    u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]])
}

fn prompt_hash(example: &Example) -> u64 {
    hash_head(json!([example.prompt(), example.tools]).to_string().as_bytes())
}

/// Takes rows out (and whether they are good work) by a hash of their ids, so that the same row is held out however the
/// file grows or is ordered; rows of preferences by a hash of their prompt, so that none stands on both sides.
fn hold_out(dataset: &mut Dataset, method: Method, share: f64) -> Result<(Vec<Tokens>, Vec<bool>)> {
    if !(0.0..1.0).contains(&share) {
        return Err(Error::usage(
            format!("--eval-share is {share}"),
            "it must be at least 0 and less than 1; 0.1 holds out a tenth",
        ));
    }
    let heads: Vec<u64> = match method {
        Method::Sft => dataset.rows.iter().map(|row| hash_head(bytemuck::cast_slice::<u32, u8>(&row.ids))).collect(),
        _ => std::mem::take(&mut dataset.prompts),
    };
    let rows = std::mem::take(&mut dataset.rows).into_iter().zip(std::mem::take(&mut dataset.good));
    let (held_out, kept): (Vec<_>, Vec<_>) =
        heads.into_iter().zip(rows).partition(|(head, _)| (*head as f64 / u64::MAX as f64) < share);
    if kept.is_empty() || (share > 0.0 && held_out.is_empty()) {
        let n = method.rows_per_example();
        return Err(Error::data(
            format!(
                "holding out {share} of {} {} leaves {} to train and {} to evaluate",
                (kept.len() + held_out.len()) / n,
                if n == 2 { "pairs" } else { "rows" },
                kept.len() / n,
                held_out.len() / n
            ),
            "give more rows, another --eval-share, or a file with --eval-data",
        ));
    }
    (dataset.rows, dataset.good) = kept.into_iter().map(|(_, row)| row).unzip();
    Ok(held_out.into_iter().map(|(_, row)| row).unzip())
}

fn starting_adapter(base: &Base, request: &TrainRequest) -> Result<Adapter> {
    let config = &base.decoder.config;
    match &request.init_adapter {
        Some(path) => adapter_files::load(path, config),
        None => Ok(Adapter::fresh(config, request.adapter.clone(), &mut Rng::new(request.settings.seed))),
    }
}

/// The folder of one training, held by one process at a time.
struct RunFolder {
    path: PathBuf,
    _lock: std::fs::File,
}

impl RunFolder {
    const LOCK: &str = ".lock";

    /// Whether a training may start in `path`. Changes nothing.
    fn check(path: &Path, resume: bool, overwrite: bool) -> Result<()> {
        if path.exists() && !path.is_dir() {
            return Err(Error::usage(format!("--out {} is a file, expected a folder", path.display()), "choose another --out"));
        }
        if let Ok(lock) = std::fs::File::open(path.join(Self::LOCK)) {
            Self::hold(&lock, path)?;
        }
        Self::check_empty(path, resume || overwrite)
    }

    fn check_empty(path: &Path, may_hold_a_training: bool) -> Result<()> {
        if path.join(RUN_FILE).exists() && !may_hold_a_training {
            return Err(Error::usage(
                format!("{} already holds a training", path.display()),
                "add --resume to go on with it, --overwrite to start again, or choose another --out",
            ));
        }
        Ok(())
    }

    /// Locks until the file is closed. A file system without locks is no reason not to train.
    fn hold(lock: &std::fs::File, path: &Path) -> Result<()> {
        match lock.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) => Err(Error::usage(
                format!("another retune is training in {}", path.display()),
                "wait for it, or choose another --out",
            )),
            _ => Ok(()),
        }
    }

    /// Makes the folder where it is missing and takes it; with `overwrite`, removes what a training before left in it.
    fn open(path: &Path, resume: bool, overwrite: bool) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(Error::io("create", path))?;
        let lock_path = path.join(Self::LOCK);
        let lock = std::fs::File::create(&lock_path).map_err(Error::io("create", &lock_path))?;
        Self::hold(&lock, path)?;
        // Again, for a training that began and ended here since the first look.
        Self::check_empty(path, resume || overwrite)?;
        let folder = Self { path: path.to_owned(), _lock: lock };
        if overwrite {
            for name in [
                RUN_FILE,
                checkpoint::FILE,
                metrics::FILE,
                GGUF_ADAPTER_FILE,
                report::FILE,
                "adapter_model.safetensors",
                "adapter_config.json",
            ] {
                folder.remove(name)?;
            }
        }
        Ok(folder)
    }

    /// The report of this very training where it was finished.
    fn finished(folder: &Path, identity: &str) -> Result<Option<TrainReport>> {
        let path = folder.join(RUN_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        let damaged = |e: serde_json::Error| {
            Error::file(&path, format!("does not read: {e}"), "start again with --overwrite, or in another folder")
        };
        let run: serde_json::Value = serde_json::from_str(&text).map_err(damaged)?;
        if run["identity"] != identity {
            return Err(Error::usage(
                format!(
                    "{} holds another training: the base, the data, the settings or the starting adapter differ",
                    folder.display()
                ),
                "run --resume with exactly the options of the first run (run.json in the folder has them), or choose another --out",
            ));
        }
        if run["finished"] == true { Ok(Some(serde_json::from_value(run["result"].clone()).map_err(damaged)?)) } else { Ok(None) }
    }

    fn write_run(&self, run: &serde_json::Value) -> Result<()> {
        let text = serde_json::to_string_pretty(run)
            .map_err(|e| Error::training(format!("run.json cannot be written: {e}"), "report this"))?;
        durable::write(&self.path.join(RUN_FILE), text.as_bytes())
    }

    fn remove_checkpoint(&self) -> Result<()> {
        self.remove(checkpoint::FILE)
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path)(e)),
            _ => Ok(()),
        }
    }
}

fn digest_rows(rows: &[Tokens]) -> String {
    let mut hash = Sha256::new();
    for row in rows {
        hash.update((row.ids.len() as u64).to_le_bytes());
        hash.update(bytemuck::cast_slice::<u32, u8>(&row.ids));
        hash.update(row.trained.iter().map(|&t| u8::from(t)).collect::<Vec<_>>());
    }
    format!("sha256:{}", hex(&hash.finalize()))
}

fn digest_bytes(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn digest_of(value: &serde_json::Value) -> String {
    digest_bytes(value.to_string().as_bytes())
}
