//! `retune loss`: the mean loss over trained tokens.

use std::path::PathBuf;

use serde_json::json;

use super::args::{AdapterArgs, BaseArgs, LengthArgs};
use super::print_json;
use crate::error::Result;
use crate::infer::score;
use crate::pipeline::load_dataset;

/// Measure how well a model predicts the answers in a file.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// The rows: alpaca, prompt/completion, messages or sharegpt, as JSON lines or a JSON array
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    length: LengthArgs,
    /// A line of JSON a row, then one with the mean
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let base = args.base.open(args.json)?;
    let template = args.base.template(&base)?;
    let adapter = args.adapter.load(&base)?;
    let dataset = load_dataset(&base, &template, &args.data, &args.base.reading(&args.length)?)?;
    dataset.notes().iter().for_each(|n| eprintln!("note: {n}"));
    let losses = score::row_losses(&base.decoder, &dataset.rows, adapter.as_ref());
    let trained_tokens: usize = losses.iter().map(|l| l.trained_tokens).sum();
    let loss = score::mean_loss(&losses);
    if !loss.is_finite() {
        return Err(base.not_finite("the loss"));
    }
    if args.json {
        for (row, number) in losses.iter().zip(&dataset.numbers) {
            print_json(&json!({"row": number, "loss_sum": row.loss_sum, "trained_tokens": row.trained_tokens}))?;
        }
        return print_json(&json!({"loss": loss, "trained_tokens": trained_tokens, "rows": losses.len()}));
    }
    say!("loss {loss:.5} over {trained_tokens} trained tokens of {} rows (perplexity {:.3})", losses.len(), loss.exp())?;
    Ok(())
}
