//! From a base and rows to an adapter in its folder: the stages in their order.

pub mod champion;
pub mod check;
pub mod convert;
pub mod cycle;
mod dataset;
pub mod deploy;
pub mod doctor;
pub mod evaluate;
pub mod export;
pub mod import;
pub mod prune;
pub mod rebuild;
pub mod record;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use retune_kernels::rng::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

pub use self::dataset::{Dataset, Reading, load_dataset};
use self::dataset::{digest_rows, hold_out, load_for, lopsided};
use crate::base::{Base, hex};
use crate::error::{Error, Result};
use crate::formats::durable;
use crate::model::{Adapter, AdapterSpec, adapter_files};
use crate::train::checkpoint::{self, Best};
use crate::train::plan::{MemoryPlan, default_budget};
use crate::train::{Job, Lessons, Progress, TrainSettings, metrics, report};

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
    let plan = MemoryPlan::new(&base.decoder, &start, &lessons, &request.settings, budget)?;
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

/// Of what an adapter is: its settings and its numbers.
pub fn adapter_digest(adapter: &Adapter) -> String {
    digest_of(&json!({"spec": adapter.spec, "params": digest_bytes(bytemuck::cast_slice(&adapter.params))}))
}

fn digest_bytes(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn digest_of(value: &serde_json::Value) -> String {
    digest_bytes(value.to_string().as_bytes())
}
