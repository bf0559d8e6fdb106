//! `retune train`: rows in, an adapter out.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::args::{BaseArgs, LengthArgs};
use super::{print_json, progress};
use crate::error::{Error, Result};
use crate::model::{AdapterSpec, Module};
use crate::pipeline::{self, TrainRequest};
use crate::train::plan::parse_bytes;
use crate::train::{Schedule, TrainSettings};

/// Train a LoRA adapter on rows of good work.
///
/// DIR gets adapter_model.safetensors and adapter_config.json (a PEFT folder), adapter.gguf (not with --dora), metrics.jsonl, report.html
/// and run.json. Stop it at any moment, even with kill -9: the same command with --resume goes on, to the same bits.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    base: BaseArgs,
    /// The rows: alpaca, prompt/completion, messages or sharegpt, as JSON lines or a JSON array
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
    /// What is learnt from the rows: sft (kto, dpo and orpo are not supported yet)
    #[arg(long, default_value = "sft")]
    method: String,
    /// Times that every row is seen
    #[arg(long, allow_negative_numbers = true, default_value_t = 3.0)]
    epochs: f64,
    /// Steps to train; overrides --epochs
    #[arg(long)]
    max_steps: Option<u64>,
    /// Rows of a micro-batch
    #[arg(long, default_value_t = 2)]
    batch_size: usize,
    /// Micro-batches of a step
    #[arg(long, default_value_t = 4)]
    grad_accum: usize,
    #[arg(long, allow_negative_numbers = true, default_value_t = 2e-4)]
    learning_rate: f64,
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
        if self.method != "sft" {
            return refuse(&format!("--method {}", self.method), "use --method sft");
        }
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

    fn request(&self) -> Result<TrainRequest> {
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
                epochs: self.epochs,
                max_steps: self.max_steps,
                batch_size: self.batch_size,
                grad_accum: self.grad_accum,
                learning_rate: self.learning_rate,
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

/// Set by the first Ctrl-C; the second one ends the process as usual.
static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(signal: libc::c_int) {
    STOP.store(true, Ordering::SeqCst);
    // SAFETY: signal() is async-signal-safe and restores the default for the next Ctrl-C.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

pub fn run(args: &Args) -> Result<()> {
    args.check_supported()?;
    let request = args.request()?;
    request.settings.check()?;
    let base = args.base.open(args.json)?;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to an atomic and calls signal().
        unsafe { libc::signal(signal, on_interrupt as *const () as libc::sighandler_t) };
    }
    let mut progress = progress::for_training(args.json);
    let quiet = args.json;
    let report = pipeline::train(&base, &request, progress.as_mut(), &STOP, &mut |text| {
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
