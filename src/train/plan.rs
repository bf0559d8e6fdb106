//! The memory plan: decided and printed before the first step.

use serde::{Deserialize, Serialize};

use super::lessons::Lessons;
use super::settings::TrainSettings;
use crate::error::{Error, Result};
use crate::machine;
use crate::model::{Adapter, Decoder, Workspace};

/// How much memory a step may take, and what that means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// Blocks whose activations are kept for the backward pass; the others are computed again.
    pub kept_blocks: usize,
    /// Whether a micro-batch goes through the model at once.
    pub packing: bool,
    /// Tokens of the largest stream.
    pub max_tokens: usize,
    pub activation_bytes: usize,
    pub adapter_bytes: usize,
    pub base_bytes: usize,
}

/// Chunk of logits and temporary panels of dequantised weights (see `cross_entropy`, `weight`).
const FIXED_BYTES: usize = 96 << 20;

impl MemoryPlan {
    /// The plan that keeps most within `budget_bytes` (all of the process: base, adapter with its moments and
    /// gradients, activations).
    pub fn new(
        decoder: &Decoder,
        adapter: &Adapter,
        lessons: &Lessons,
        settings: &TrainSettings,
        budget_bytes: usize,
    ) -> Result<Self> {
        let config = &decoder.config;
        let mut lengths: Vec<usize> = lessons.lengths().collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let packed: usize = lengths.iter().take(settings.batch_size).sum();
        let longest = lengths.first().copied().unwrap_or(0);
        // Parameters, gradients, two moments, the best so far; with DoRA what is known of each row: its square, its scale.
        let dora_rows: usize = adapter.slots.iter().map(|s| s.magnitude.len()).sum();
        let adapter_bytes = adapter.params.len() * 5 * size_of::<f32>() + dora_rows * (size_of::<f64>() + 2 * size_of::<f32>());
        let base_bytes = decoder.weights.size_bytes();
        let asides = Workspace::scoring_bytes(config, &adapter.spec, lessons.tokens_scored_beside());
        let fixed = adapter_bytes + base_bytes + FIXED_BYTES;
        let plan = |packing: bool, max_tokens: usize, kept_blocks: usize| Self {
            kept_blocks,
            packing,
            max_tokens,
            activation_bytes: Workspace::training_bytes(config, &adapter.spec, settings.dropout > 0.0, max_tokens, kept_blocks)
                + asides,
            adapter_bytes,
            base_bytes,
        };
        let candidates = [(settings.packing, if settings.packing { packed } else { longest }), (false, longest)];
        for (packing, tokens) in candidates {
            for kept in (0..=config.layers).rev() {
                let candidate = plan(packing, tokens, kept);
                if fixed + candidate.activation_bytes <= budget_bytes {
                    return Ok(candidate);
                }
            }
        }
        let least = plan(false, longest, 0);
        Err(Error::training(
            format!(
                "a step needs at least {} (base {}, adapter {}, activations of one {} of {longest} tokens {}), the budget is {}",
                human(fixed + least.activation_bytes),
                human(base_bytes),
                human(adapter_bytes),
                if lessons.method().takes_pairs() { "pair" } else { "row" },
                human(least.activation_bytes),
                human(budget_bytes)
            ),
            "lower --max-length or --rank, choose a more strongly quantised base, or raise --memory-budget",
        ))
    }

    pub fn total_bytes(&self) -> usize {
        self.activation_bytes + self.adapter_bytes + self.base_bytes + FIXED_BYTES
    }

    /// One line for people.
    pub fn describe(&self, layers: usize) -> String {
        let blocks = if self.kept_blocks == layers {
            "all blocks kept".to_owned()
        } else {
            format!("{} of {layers} blocks kept, the others computed again", self.kept_blocks)
        };
        format!(
            "memory: {} planned (base {}, adapter {}, activations {}; {blocks}; at most {} tokens at once)",
            human(self.total_bytes()),
            human(self.base_bytes),
            human(self.adapter_bytes),
            human(self.activation_bytes),
            self.max_tokens
        )
    }
}

/// Four fifths of the memory that is available, a container's limit counted; 8 GiB where the system does not tell.
pub fn default_budget() -> usize {
    machine::memory().map_or(8 << 30, |memory| memory.available_bytes / 5 * 4)
}

/// `12.3 MB`
pub fn human(bytes: usize) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// `8GB`, `500MB`, `6GiB`, or plain bytes.
pub fn parse_bytes(text: &str) -> Result<usize> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let unit = match text[split..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "kib" => 1024.0,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        _ => f64::NAN,
    };
    let bytes = text[..split].parse::<f64>().unwrap_or(f64::NAN) * unit;
    if bytes.is_finite() && bytes >= 1.0 {
        return Ok(bytes as usize);
    }
    Err(Error::usage(format!("'{text}' is no amount of memory"), "write it like 8GB, 500MB or 6GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory_read_as_people_write_them() {
        assert_eq!(parse_bytes("8GB").unwrap(), 8_000_000_000);
        assert_eq!(parse_bytes("1.5 GiB").unwrap(), 1_610_612_736);
        assert_eq!(parse_bytes("4096").unwrap(), 4096);
        assert!(parse_bytes("lots").is_err());
        assert!(parse_bytes("-3GB").is_err());
    }
}
