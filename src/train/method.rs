//! What is learnt from the rows: good work, or which answer is better.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A method with its knobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum Method {
    /// Cross entropy on examples of good work.
    #[default]
    Sft,
    /// Direct preference optimisation on pairs (Rafailov et al., 2023), with the share of labels that are taken to be wrong.
    Dpo { beta: f64, label_smoothing: f64 },
    /// Odds ratio preference optimisation on pairs (Hong et al., 2024); beta is the paper's lambda.
    Orpo { beta: f64 },
    /// Kahneman-Tversky optimisation on answers marked good or bad (Ethayarajh et al., 2024), with the weight of each kind.
    Kto { beta: f64, desirable_weight: f64, undesirable_weight: f64 },
}

impl Method {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Dpo { .. } => "dpo",
            Self::Orpo { .. } => "orpo",
            Self::Kto { .. } => "kto",
        }
    }

    pub fn beta(self) -> Option<f64> {
        match self {
            Self::Sft => None,
            Self::Dpo { beta, .. } | Self::Orpo { beta } | Self::Kto { beta, .. } => Some(beta),
        }
    }

    /// Whether an example is two rows, the chosen and the rejected one.
    pub fn takes_pairs(self) -> bool {
        matches!(self, Self::Dpo { .. } | Self::Orpo { .. })
    }

    pub fn rows_per_example(self) -> usize {
        if self.takes_pairs() { 2 } else { 1 }
    }

    /// Where the user gave none. Preferences need a gentler one than imitation: TRL advises about 5e-6 for whole models, and
    /// ten times that for LoRA.
    pub fn default_learning_rate(self) -> f64 {
        if self == Self::Sft { 2e-4 } else { 5e-5 }
    }

    /// Refuses values that cannot train, and says which do.
    pub fn check(self) -> Result<()> {
        let positive = |name: &str, value: f64, usual: &str| {
            if value.is_finite() && value > 0.0 {
                return Ok(());
            }
            Err(Error::usage(format!("--{name} is {value}"), format!("it must be greater than 0; {usual} is usual")))
        };
        if let Some(beta) = self.beta() {
            positive("beta", beta, "0.1")?;
        }
        match self {
            Self::Dpo { label_smoothing, .. } if !(0.0..0.5).contains(&label_smoothing) => Err(Error::usage(
                format!("--label-smoothing is {label_smoothing}"),
                "it must be at least 0 and less than 0.5: the share of pairs that may be labelled the wrong way round",
            )),
            Self::Kto { desirable_weight, undesirable_weight, .. } => {
                positive("desirable-weight", desirable_weight, "1")?;
                positive("undesirable-weight", undesirable_weight, "1")
            }
            _ => Ok(()),
        }
    }
}
