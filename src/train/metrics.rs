//! metrics.jsonl: a line a step, a line an evaluation.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::formats::durable;

/// The file's name in the run's folder.
pub const FILE: &str = "metrics.jsonl";

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    Step(StepLine),
    Evaluation(EvaluationLine),
}

/// A step, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLine {
    pub step: u64,
    /// Epochs done after this step.
    pub epoch: f64,
    pub loss: f64,
    pub learning_rate: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub trained_tokens: usize,
    pub tokens: usize,
    /// Of this step.
    pub seconds: f64,
    #[serde(flatten)]
    pub rewards: Rewards,
}

/// What a preference is worth to the model; empty for other methods. A reward is beta times the change of an answer's
/// log-probability since training began (ORPO, which has no reference: times its mean log-probability).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rewards {
    /// Mean over the chosen answers, or the good ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewards_chosen: Option<f64>,
    /// Mean over the rejected answers, or the bad ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewards_rejected: Option<f64>,
    /// Share of pairs whose chosen answer has the larger reward, ties half (KTO: of answers on their side of the KL term).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_accuracy: Option<f64>,
    /// `rewards_chosen - rewards_rejected`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
}

/// The held-out loss after a step (0: before the first).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationLine {
    pub step: u64,
    pub eval_loss: f64,
    /// Of the held-out examples.
    #[serde(flatten)]
    pub rewards: Rewards,
}

impl Line {
    pub fn step(&self) -> u64 {
        match self {
            Self::Step(line) => line.step,
            Self::Evaluation(line) => line.step,
        }
    }
}

/// The file, open for appending.
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file of a run that stands at `step`: lines after it (a killed run may have written some) go away.
    pub fn open(folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join(FILE);
        let mut kept = Vec::new();
        // At step 0 nothing counts yet, not even the evaluation before the first step: it is made again.
        for line in read(folder)?.iter().filter(|line| line.step() <= step && step > 0) {
            write_line(&mut kept, line).map_err(Error::io("write", &path))?;
        }
        durable::write(&path, &kept)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("open", &path))?;
        Ok(Self { path, file })
    }

    pub fn push(&mut self, line: &Line) -> Result<()> {
        let mut bytes = Vec::new();
        write_line(&mut bytes, line).and_then(|()| self.file.write_all(&bytes)).map_err(Error::io("write", &self.path))
    }
}

fn write_line(out: &mut Vec<u8>, line: &Line) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.push(b'\n');
    Ok(())
}

/// All whole lines of a run's metrics; a last line cut by a kill is left out.
pub fn read(folder: &Path) -> Result<Vec<Line>> {
    let path = folder.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io("read", &path)(e)),
    }
}
