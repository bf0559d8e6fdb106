//! From a base and rows to an adapter in its folder: the stages in their order.

pub mod convert;
pub mod deploy;
pub mod doctor;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use retune_kernels::rng::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::base::{Base, hex};
use crate::domain::Tokens;
use crate::error::{Error, Result};
use crate::formats::{durable, rows};
use crate::infer::score;
use crate::model::{Adapter, AdapterSpec, adapter_files};
use crate::text::render::{Fitted, Long, Renderer, fit};
use crate::text::template::Template;
use crate::train::checkpoint::{self, Best};
use crate::train::plan::{MemoryPlan, default_budget};
use crate::train::{Job, Progress, TrainSettings, metrics, report};

/// The files of a run's folder.
pub const RUN_FILE: &str = "run.json";
pub const GGUF_ADAPTER_FILE: &str = "adapter.gguf";

/// What to train, on what, and where to put it.
#[derive(Clone, Debug)]
pub struct TrainRequest {
    pub data: PathBuf,
    pub eval_data: Option<PathBuf>,
    /// Share of the rows held out where no `eval_data` is given; 0 holds out none.
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
    pub rows: Vec<Tokens>,
    /// The number in the file (from 1) of each row.
    pub numbers: Vec<usize>,
    pub read: usize,
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
        notes
    }
}

/// Reads a file, renders every row, brings it to length.
pub fn load_dataset(base: &Base, template: &Template, path: &Path, reading: &Reading) -> Result<Dataset> {
    let file = rows::read(path)?;
    let renderer = Renderer { tokenizer: &base.tokenizer, template, system: reading.system.clone() };
    let read = file.examples.len();
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
    let (kept, fitted) = fit(tokens, max_length, reading.long)?;
    let (rows, places): (Vec<Tokens>, Vec<usize>) = kept.into_iter().unzip();
    let numbers = places.into_iter().map(|place| numbers[place]).collect();
    Ok(Dataset {
        digest: digest_rows(&rows),
        rows,
        numbers,
        read,
        trailing_user_turns: file.trailing_user_turns,
        fitted,
        max_length,
    })
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
    let mut dataset = load_dataset(base, &template, &request.data, &request.reading)?;
    dataset.notes().iter().for_each(|n| note(n));
    let held_out = match &request.eval_data {
        Some(path) => load_dataset(base, &template, path, &request.reading)?.rows,
        None => hold_out(&mut dataset.rows, request.eval_share)?,
    };
    let start = starting_adapter(base, request)?;
    let base_digest = base.digest()?;
    let identity = digest_of(&json!({
        "base": base_digest, "data": digest_rows(&dataset.rows), "held_out": digest_rows(&held_out), "settings": request.settings,
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
    let budget = request.memory_budget.unwrap_or_else(default_budget);
    let plan = MemoryPlan::new(&base.decoder, &start, &dataset.rows, &request.settings, budget)?;
    note(&plan.describe(base.decoder.config.layers));
    // Nothing before this point writes: what cannot be trained leaves no folder behind, and none is emptied for it.
    let folder = RunFolder::open(&request.out, request.resume, request.overwrite)?;

    let mut run = json!({
        "retune": env!("CARGO_PKG_VERSION"),
        "base": { "name": base.name, "digest": base_digest, "hub_id": base.hub_id, "weights": base.decoder.weights.dtype_name() },
        "data": { "path": request.data, "digest": dataset.digest, "rows": dataset.rows.len(), "read": dataset.read, "cut": dataset.fitted.cut, "dropped": dataset.fitted.dropped,
                  "without_target": dataset.fitted.without_target, "held_out": held_out.len(), "max_length": dataset.max_length },
        "template": template.name, "system": request.reading.system,
        "adapter": start.spec, "init_adapter": request.init_adapter, "settings": request.settings, "seed": request.settings.seed,
        "memory_plan": plan, "identity": identity, "finished": false,
    });
    folder.write_run(&run)?;

    let spec = start.spec.clone();
    let evaluate = |adapter: &Adapter| Ok(score::mean_loss(&score::row_losses(&base.decoder, &held_out, Some(adapter))));
    let job = Job {
        decoder: &base.decoder,
        rows: &dataset.rows,
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
    let (config, base_name) = (&base.decoder.config, base.hub_id.as_deref().unwrap_or(&base.name));
    adapter_files::save_peft(&request.out, &adapter, config, Some(base_name), request.settings.dropout)?;
    if adapter.spec.dora {
        folder.remove(GGUF_ADAPTER_FILE)?;
        note(
            "no adapter.gguf: that format cannot say DoRA's magnitudes; `retune deploy` and `retune merge` merge it into the base instead",
        );
    } else {
        adapter_files::save_gguf(&request.out.join(GGUF_ADAPTER_FILE), &adapter, config)?;
    }
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

/// Takes rows out by a hash of their ids, so that the same row is held out however the file grows or is ordered.
fn hold_out(rows: &mut Vec<Tokens>, share: f64) -> Result<Vec<Tokens>> {
    if !(0.0..1.0).contains(&share) {
        return Err(Error::usage(
            format!("--eval-share is {share}"),
            "it must be at least 0 and less than 1; 0.1 holds out a tenth",
        ));
    }
    let is_held_out = |row: &Tokens| {
        let hash = Sha256::digest(bytemuck::cast_slice::<u32, u8>(&row.ids));
        let head = u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]]);
        (head as f64 / u64::MAX as f64) < share
    };
    let (held_out, kept): (Vec<Tokens>, Vec<Tokens>) = std::mem::take(rows).into_iter().partition(is_held_out);
    if kept.is_empty() || (share > 0.0 && held_out.is_empty()) {
        return Err(Error::data(
            format!(
                "holding out {share} of {} rows leaves {} to train and {} to evaluate",
                kept.len() + held_out.len(),
                kept.len(),
                held_out.len()
            ),
            "give more rows, another --eval-share, or a file with --eval-data",
        ));
    }
    *rows = kept;
    Ok(held_out)
}

fn starting_adapter(base: &Base, request: &TrainRequest) -> Result<Adapter> {
    let Some(path) = &request.init_adapter else {
        return Ok(Adapter::fresh(&base.decoder, request.adapter.clone(), &mut Rng::new(request.settings.seed)));
    };
    let adapter = adapter_files::load(path, &base.decoder.config)?;
    if request.adapter.dora && !adapter.spec.dora {
        return Err(Error::usage(
            format!("--dora, and {} is an adapter without DoRA", path.display()),
            "leave --dora away to go on with it as it is, or leave --init-adapter away to start with DoRA",
        ));
    }
    Ok(adapter)
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
