//! A checkpoint is one file, replaced atomically: parameters, both moments, the best adapter so far, and the few
//! numbers that say where the training stands.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::MemoryPlan;
use super::step::State;
use crate::error::{Error, Result};
use crate::formats::safetensors::{self, Tensors};

/// The file's name in the run's folder.
pub const FILE: &str = "checkpoint.safetensors";
const FORMAT: u32 = 1;

/// What stands beside the tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    format: u32,
    /// Digest of everything that decides the result: base, data, start, settings.
    pub identity: String,
    pub step: u64,
    pub total_steps: u64,
    pub plan: MemoryPlan,
    pub best: Option<Best>,
    /// Evaluations in a row without a new best.
    pub stale_evaluations: u64,
    /// Seconds spent training so far.
    pub seconds: f64,
}

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub step: u64,
    pub eval_loss: f64,
}

impl Header {
    pub fn new(identity: String, total_steps: u64, plan: MemoryPlan) -> Self {
        Self { format: FORMAT, identity, step: 0, total_steps, plan, best: None, stale_evaluations: 0, seconds: 0.0 }
    }
}

/// A training as it was when it was saved.
pub struct Checkpoint {
    pub header: Header,
    pub params: Vec<f32>,
    pub m: Vec<f32>,
    pub v: Vec<f32>,
    pub best_params: Option<Vec<f32>>,
}

pub fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// Saves durably over the one before.
pub fn save(folder: &Path, header: &Header, state: &State, best_params: Option<&[f32]>) -> Result<()> {
    let n = state.adapter.params.len();
    let mut tensors: Vec<(String, Vec<usize>, &[f32])> =
        vec![("params".into(), vec![n], &state.adapter.params), ("m".into(), vec![n], &state.m), ("v".into(), vec![n], &state.v)];
    if let Some(best) = best_params {
        tensors.push(("best_params".into(), vec![n], best));
    }
    let text = serde_json::to_string(header)
        .map_err(|e| Error::training(format!("the checkpoint's header cannot be written: {e}"), "report this"))?;
    safetensors::write_f32(&path(folder), &tensors, &[("retune", text)])
}

/// Loads the checkpoint of a run with `params` adapter parameters and the given identity.
pub fn load(folder: &Path, params: usize, identity: &str) -> Result<Checkpoint> {
    let path = path(folder);
    let tensors = Tensors::open(&path)?;
    let damaged = |what: String| Error::file(&path, what, "start again without --resume, in another folder or with --overwrite");
    let text = tensors.metadata("retune").ok_or_else(|| damaged("this is no checkpoint of retune".into()))?;
    let header: Header =
        serde_json::from_str(text).map_err(|e| damaged(format!("the checkpoint's header does not read: {e}")))?;
    if header.format != FORMAT {
        return Err(damaged(format!("the checkpoint has format {}, this retune reads {FORMAT}", header.format)));
    }
    if header.identity != identity {
        return Err(Error::usage(
            format!(
                "{} belongs to another training: the base, the data, the settings or the starting adapter differ",
                path.display()
            ),
            "run --resume with exactly the options of the first run (run.json in the folder has them), or start in another folder",
        ));
    }
    let read = |name: &str| tensors.f32(name, &[params]);
    let best_params = if tensors.get("best_params").is_some() { Some(read("best_params")?) } else { None };
    Ok(Checkpoint { params: read("params")?, m: read("m")?, v: read("v")?, best_params, header })
}
