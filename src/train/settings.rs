//! Every knob of a training, its default and its bounds.

use serde::{Deserialize, Serialize};

use super::method::Method;
use crate::error::{Error, Result};

/// How the learning rate moves after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine down to 0 (Loshchilov and Hutter, 2017).
    #[default]
    Cosine,
    /// A straight line down to 0.
    Linear,
    /// As it is.
    Constant,
}

/// The settings that decide what a training computes. Two runs with equal settings, base, data and starting
/// adapter end with the same bits on the same machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    #[serde(flatten)]
    pub method: Method,
    pub epochs: f64,
    /// Overrides epochs.
    pub max_steps: Option<u64>,
    /// Rows of a micro-batch, or pairs.
    pub batch_size: usize,
    /// Micro-batches of a step.
    pub grad_accum: usize,
    pub learning_rate: f64,
    /// B learns this many times faster than A (LoRA+, Hayou et al., 2024); 1 is plain LoRA.
    pub lora_plus: f64,
    pub schedule: Schedule,
    /// `None`: 3% of the steps.
    pub warmup_steps: Option<u64>,
    pub weight_decay: f64,
    /// Share of the adapter's inputs that each step leaves out; 0 is none.
    pub dropout: f64,
    /// The largest norm of the gradient; 0 does not clip.
    pub clip: f64,
    pub seed: u64,
    pub shuffle: bool,
    /// Rows of a micro-batch go through the model as one packed stream; without it row after row.
    pub packing: bool,
    /// Steps between evaluations; `None`: once an epoch.
    pub eval_every: Option<u64>,
    /// Stop after this many evaluations in a row without a new best; `None`: never.
    pub patience: Option<u64>,
}

/// Rows of a micro-batch, and micro-batches of a step, at most: their product fits into any integer.
const MAX_ROWS: usize = 1 << 24;

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            method: Method::Sft,
            epochs: 3.0,
            max_steps: None,
            batch_size: 2,
            grad_accum: 4,
            learning_rate: Method::Sft.default_learning_rate(),
            lora_plus: 1.0,
            schedule: Schedule::Cosine,
            warmup_steps: None,
            weight_decay: 0.01,
            dropout: 0.0,
            clip: 1.0,
            seed: 42,
            shuffle: true,
            packing: true,
            eval_every: None,
            patience: None,
        }
    }
}

impl TrainSettings {
    /// Refuses values that cannot train, and says which do.
    pub fn check(&self) -> Result<()> {
        self.method.check()?;
        let positive = |name: &str, value: f64| {
            if value.is_finite() && value > 0.0 {
                return Ok(());
            }
            Err(Error::usage(format!("--{name} is {value}"), "it must be greater than 0"))
        };
        positive("epochs", self.epochs)?;
        positive("learning-rate", self.learning_rate)?;
        positive("lora-plus", self.lora_plus)?;
        positive("batch-size", self.batch_size as f64)?;
        positive("grad-accum", self.grad_accum as f64)?;
        for (name, value) in [("batch-size", self.batch_size), ("grad-accum", self.grad_accum)] {
            if value > MAX_ROWS {
                return Err(Error::usage(format!("--{name} is {value}"), format!("use at most {MAX_ROWS}; 1 to 64 is usual")));
            }
        }
        if self.max_steps == Some(0) {
            return Err(Error::usage("--max-steps is 0", "it must be at least 1; to only measure the loss use `retune loss`"));
        }
        if self.eval_every == Some(0) {
            return Err(Error::usage("--eval-every is 0", "it must be at least 1"));
        }
        for (name, value) in [("weight-decay", self.weight_decay), ("clip", self.clip)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::usage(format!("--{name} is {value}"), "it must be 0 or more"));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::usage(
                format!("--dropout is {}", self.dropout),
                "it must be at least 0 and less than 1; 0.05 to 0.1 is usual",
            ));
        }
        Ok(())
    }

    pub fn rows_per_step(&self) -> usize {
        self.batch_size * self.grad_accum
    }

    pub fn steps_per_epoch(&self, rows: usize) -> u64 {
        rows.div_ceil(self.rows_per_step()) as u64
    }

    pub fn total_steps(&self, rows: usize) -> u64 {
        self.max_steps.unwrap_or_else(|| (self.epochs * self.steps_per_epoch(rows) as f64).ceil().max(1.0) as u64)
    }

    pub fn warmup(&self, total_steps: u64) -> u64 {
        self.warmup_steps.unwrap_or_else(|| (0.03 * total_steps as f64).ceil() as u64)
    }

    /// The rate of step `step` (from 1), as transformers' schedulers give it: the n-th step runs at the
    /// schedule's value for n - 1, so that the first step of a warm-up has the rate 0.
    pub fn rate(&self, step: u64, total_steps: u64) -> f64 {
        let (done, warmup) = ((step - 1) as f64, self.warmup(total_steps) as f64);
        if done < warmup {
            return self.learning_rate * done / warmup;
        }
        let progress = (done - warmup) / (total_steps as f64 - warmup).max(1.0);
        let factor = match self.schedule {
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Schedule::Linear => 1.0 - progress,
            Schedule::Constant => 1.0,
        };
        self.learning_rate * factor.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_starts_at_zero_and_the_cosine_ends_near_zero() {
        let s = TrainSettings { learning_rate: 1.0, warmup_steps: Some(5), ..TrainSettings::default() };
        assert_eq!(s.rate(1, 75), 0.0);
        assert!((s.rate(4, 75) - 0.6).abs() < 1e-12);
        assert_eq!(s.rate(6, 75), 1.0);
        assert!((s.rate(41, 75) - 0.5).abs() < 1e-12); // half of the 70 steps after the warm-up
        assert!(s.rate(75, 75) > 0.0 && s.rate(75, 75) < 1e-3);
    }

    #[test]
    fn constant_and_linear_follow_their_lines() {
        let s =
            TrainSettings { learning_rate: 2.0, warmup_steps: Some(0), schedule: Schedule::Linear, ..TrainSettings::default() };
        assert_eq!([s.rate(1, 4), s.rate(2, 4), s.rate(3, 4), s.rate(4, 4)], [2.0, 1.5, 1.0, 0.5]);
        let s = TrainSettings { schedule: Schedule::Constant, ..s };
        assert_eq!(s.rate(4, 4), 2.0);
    }

    #[test]
    fn steps_come_from_epochs_unless_given() {
        let s = TrainSettings::default();
        assert_eq!((s.steps_per_epoch(17), s.total_steps(17), s.warmup(100)), (3, 9, 3));
        assert_eq!(TrainSettings { max_steps: Some(5), ..s }.total_steps(17), 5);
    }

    #[test]
    fn impossible_settings_are_refused_by_name() {
        let wrong = TrainSettings { learning_rate: f64::NAN, ..TrainSettings::default() };
        assert!(wrong.check().unwrap_err().to_string().contains("--learning-rate"));
        assert!(TrainSettings { batch_size: 0, ..TrainSettings::default() }.check().is_err());
        assert!(TrainSettings::default().check().is_ok());
    }
}
