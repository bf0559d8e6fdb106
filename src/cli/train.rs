//! `retune train`: rows in, an adapter out.

use std::path::PathBuf;

use clap::ValueEnum as _;

use super::args::{BaseArgs, LengthArgs, MethodArg};
use super::{print_json, progress};
use crate::error::{Error, Result};
use crate::model::{AdapterSpec, Module};
use crate::pipeline::{self, TrainRequest};
use crate::train::plan::parse_bytes;
use crate::train::{Method, Schedule, TrainSettings};

/// Train a LoRA adapter on rows of good work, or on preferences.
///
/// DIR gets adapter_model.safetensors and adapter_config.json (a PEFT folder), adapter.gguf (not with --dora), metrics.jsonl, report.html
/// and run.json. Stop it at any moment, even with kill -9: the same command with --resume goes on, to the same bits.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    base: BaseArgs,
    /// The rows: alpaca, prompt/completion, messages or sharegpt, as JSON lines or a JSON array; pairs with "chosen" and
    /// "rejected" for dpo and orpo, rows with "label": true or false for kto
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Where the adapter and everything about the run goes
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Held-out rows: their loss is followed, and the best adapter on them is the one that is kept
    #[arg(long, value_name = "FILE")]
    eval_data: Option<PathBuf>,
    /// Hold out this share of the rows instead, chosen by their content
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE", default_value_t = 0.0, conflicts_with = "eval_data")]
    eval_share: f64,
    /// Steps between evaluations [default: once an epoch]
    #[arg(long, value_name = "STEPS")]
    eval_every: Option<u64>,
    /// Stop after this many evaluations in a row without a new best [default: never]
    #[arg(long, value_name = "EVALUATIONS")]
    patience: Option<u64>,
    #[command(flatten)]
    length: LengthArgs,
    /// Rank of the adapter
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// The adapter's output is scaled by alpha / rank
    #[arg(long, allow_negative_numbers = true, default_value_t = 32.0)]
    alpha: f32,
    /// Scale by alpha / sqrt(rank) instead (rsLoRA)
    #[arg(long)]
    rslora: bool,
    /// Weight-decomposed LoRA (DoRA): also learn how long each row of a weight is. Often a little better at small ranks,
    /// slower, and always merged when it is served
    #[arg(long)]
    dora: bool,
    /// B (and DoRA's magnitude) learns this many times faster than A (LoRA+)
    #[arg(long, allow_negative_numbers = true, value_name = "RATIO", default_value_t = 1.0)]
    lora_plus: f64,
    /// Share of the adapter's inputs that each step leaves out, against learning few rows by heart; 0.05 to 0.1 is usual
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE", default_value_t = 0.0)]
    dropout: f64,
    /// Linear layers to adapt: all, or a list such as q_proj,v_proj
    #[arg(long, default_value = "all")]
    targets: String,
    /// Go on from this adapter (its rank, alpha, targets, rsLoRA and DoRA are kept)
    #[arg(long, value_name = "DIR|FILE.gguf")]
    init_adapter: Option<PathBuf>,
    /// What is learnt from the rows: good work (sft), or which of two answers is better (dpo, orpo), or good and bad
    /// answers that are marked as such (kto)
    #[arg(long, value_enum, default_value = "sft")]
    method: MethodArg,
    /// dpo and kto: how dear it is to leave the model that training starts from (more keeps nearer to it); orpo: the weight
    /// of the preference beside imitation [default: 0.1]
    #[arg(long, allow_negative_numbers = true)]
    beta: Option<f64>,
    /// dpo: share of pairs that may be labelled the wrong way round [default: 0]
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE")]
    label_smoothing: Option<f64>,
    /// kto: weight of the good answers [default: 1]
    #[arg(long, allow_negative_numbers = true, value_name = "WEIGHT")]
    desirable_weight: Option<f64>,
    /// kto: weight of the bad answers [default: 1]
    #[arg(long, allow_negative_numbers = true, value_name = "WEIGHT")]
    undesirable_weight: Option<f64>,
    /// Times that every row is seen
    #[arg(long, allow_negative_numbers = true, default_value_t = 3.0)]
    epochs: f64,
    /// Steps to train; overrides --epochs
    #[arg(long)]
    max_steps: Option<u64>,
    /// Rows of a micro-batch; for dpo and orpo, pairs
    #[arg(long, default_value_t = 2)]
    batch_size: usize,
    /// Micro-batches of a step
    #[arg(long, default_value_t = 4)]
    grad_accum: usize,
    /// [default: 2e-4 for sft, 5e-5 for dpo, orpo and kto]
    #[arg(long, allow_negative_numbers = true)]
    learning_rate: Option<f64>,
    /// How the learning rate moves after the warm-up
    #[arg(long, value_enum, default_value = "cosine")]
    schedule: Schedule,
    /// Steps until the full learning rate [default: 3% of the steps]
    #[arg(long, value_name = "STEPS")]
    warmup_steps: Option<u64>,
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.01)]
    weight_decay: f64,
    /// Largest norm of the gradient; 0 does not clip
    #[arg(long, allow_negative_numbers = true, default_value_t = 1.0)]
    clip: f64,
    /// One seed, one result
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Take the rows in the order of the file
    #[arg(long)]
    no_shuffle: bool,
    /// Send rows through the model one by one instead of packed (the same numbers, but for rounding)
    #[arg(long)]
    no_packing: bool,
    /// Type of the activations: f32
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Where to compute: cpu
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Memory that the whole process may take, like 8GB [default: four fifths of what is free]
    #[arg(long, value_name = "BYTES")]
    memory_budget: Option<String>,
    /// Steps between checkpoints
    #[arg(long, value_name = "STEPS", default_value_t = 50)]
    save_every: u64,
    /// Go on where an interrupted run in DIR stopped
    #[arg(long)]
    resume: bool,
    /// Start again even if DIR already holds a training
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// One line of JSON at the end; no progress
    #[arg(long)]
    json: bool,
}

impl Args {
    fn check_supported(&self) -> Result<()> {
        let refuse = |what: &str, instead: &str| Err(Error::usage(format!("{what} is not supported yet"), instead.to_owned()));
        if self.dtype != "f32" {
            return refuse(&format!("--dtype {}", self.dtype), "use --dtype f32; the base keeps its own type in memory");
        }
        if self.device != "cpu" {
            return refuse(&format!("--device {}", self.device), "use --device cpu");
        }
        if self.rank == 0 || self.rank > 4096 {
            return Err(Error::usage(format!("--rank is {}", self.rank), "use 1 to 4096; 8 to 64 is usual"));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(Error::usage(format!("--alpha is {}", self.alpha), "it must be greater than 0; twice the rank is usual"));
        }
        if self.save_every == 0 {
            return Err(Error::usage("--save-every is 0", "it must be at least 1"));
        }
        Ok(())
    }

    /// The method with its knobs. Error: a knob of another method.
    fn method(&self) -> Result<Method> {
        for (flag, given, of) in [
            ("--beta", self.beta, &[MethodArg::Dpo, MethodArg::Orpo, MethodArg::Kto][..]),
            ("--label-smoothing", self.label_smoothing, &[MethodArg::Dpo]),
            ("--desirable-weight", self.desirable_weight, &[MethodArg::Kto]),
            ("--undesirable-weight", self.undesirable_weight, &[MethodArg::Kto]),
        ] {
            if given.is_some() && !of.contains(&self.method) {
                let name = |method: &MethodArg| method.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
                return Err(Error::usage(
                    format!("{flag} says nothing to --method {}", name(&self.method)),
                    format!("leave it out, or use it with --method {}", of.iter().map(name).collect::<Vec<_>>().join(", ")),
                ));
            }
        }
        let beta = self.beta.unwrap_or(0.1);
        Ok(match self.method {
            MethodArg::Sft => Method::Sft,
            MethodArg::Dpo => Method::Dpo { beta, label_smoothing: self.label_smoothing.unwrap_or(0.0) },
            MethodArg::Orpo => Method::Orpo { beta },
            MethodArg::Kto => Method::Kto {
                beta,
                desirable_weight: self.desirable_weight.unwrap_or(1.0),
                undesirable_weight: self.undesirable_weight.unwrap_or(1.0),
            },
        })
    }

    fn request(&self) -> Result<TrainRequest> {
        let method = self.method()?;
        Ok(TrainRequest {
            data: self.data.clone(),
            eval_data: self.eval_data.clone(),
            eval_share: self.eval_share,
            out: self.out.clone(),
            reading: self.base.reading(&self.length)?,
            adapter: AdapterSpec {
                rank: self.rank,
                alpha: self.alpha,
                rslora: self.rslora,
                dora: self.dora,
                targets: Module::parse_list(&self.targets)?,
            },
            init_adapter: self.init_adapter.clone(),
            settings: TrainSettings {
                method,
                epochs: self.epochs,
                max_steps: self.max_steps,
                batch_size: self.batch_size,
                grad_accum: self.grad_accum,
                learning_rate: self.learning_rate.unwrap_or(method.default_learning_rate()),
                lora_plus: self.lora_plus,
                schedule: self.schedule,
                warmup_steps: self.warmup_steps,
                weight_decay: self.weight_decay,
                dropout: self.dropout,
                clip: self.clip,
                seed: self.seed,
                shuffle: !self.no_shuffle,
                packing: !self.no_packing,
                eval_every: self.eval_every,
                patience: self.patience,
            },
            memory_budget: self.memory_budget.as_deref().map(parse_bytes).transpose()?,
            save_every: self.save_every,
            resume: self.resume,
            overwrite: self.overwrite,
        })
    }
}

pub fn run(args: &Args) -> Result<()> {
    args.check_supported()?;
    let request = args.request()?;
    request.settings.check()?;
    let base = args.base.open(args.json)?;
    let stop = super::stop_on_interrupt();
    let mut progress = progress::for_training(args.json);
    let quiet = args.json;
    let report = pipeline::train(&base, &request, progress.as_mut(), stop, &mut |text| {
        if !quiet {
            eprintln!("{text}");
        }
    })?;
    if args.json {
        return print_json(&report);
    }
    let held_out =
        report.best.map_or_else(String::new, |best| format!(", held-out loss {:.4} at step {}", best.eval_loss, best.step));
    let early = if report.stopped_early { " (stopped early)" } else { "" };
    say!("{} steps{early} in {:.0} s, training loss {:.4}{held_out}", report.steps, report.seconds, report.last_loss)?;
    say!("adapter in {}; look at {}", report.out.display(), report.out.join("report.html").display())?;
    Ok(())
}
