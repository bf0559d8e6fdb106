//! `retune generate`: a model answers a prompt.

use std::io::Write as _;

use serde_json::json;

use super::args::{AdapterArgs, BaseArgs};
use super::print_json;
use crate::domain::Message;
use crate::error::{Error, Result};
use crate::infer::generate::{Request, Sampling, generate};
use crate::text::render::Renderer;

/// Let a model, with or without an adapter, answer a prompt.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// What to ask; `-` reads it from standard input
    #[arg(long)]
    prompt: String,
    /// Tokens to generate at most
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// 0 is greedy: always the most probable token
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Keep only the most probable tokens of this number; 0 keeps all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Keep the most probable tokens that together reach this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// The prompt is the beginning of the text itself: no chat template
    #[arg(long)]
    raw: bool,
    /// One line of JSON: text, ids, their log-probabilities, whether the model ended by itself
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if !(args.temperature.is_finite() && args.temperature >= 0.0) || !(args.top_p > 0.0 && args.top_p <= 1.0) {
        return Err(Error::usage("--temperature must be 0 or more, --top-p above 0 and at most 1", "see `retune generate --help`"));
    }
    let prompt = if args.prompt == "-" { std::io::read_to_string(std::io::stdin()).map_err(Error::io("read", "standard input"))? } else { args.prompt.clone() };
    let base = args.base.open()?;
    let adapter = args.adapter.load(&base)?;
    let ids = if args.raw {
        base.tokenizer.encode(&prompt, true)?
    } else {
        let template = args.base.template(&base)?;
        Renderer { tokenizer: &base.tokenizer, template: &template, system: args.base.system_text()? }.prompt(&[Message::new("user", prompt)], None)?.1
    };
    let context = base.decoder.config.context_length;
    if ids.is_empty() || ids.len() >= context {
        return Err(Error::data(format!("the prompt has {} tokens; {} sees 1 to {}", ids.len(), base.name, context - 1), "shorten or fill the prompt"));
    }
    let request = Request {
        max_tokens: args.max_tokens.min(context - ids.len()),
        end_ids: base.tokenizer.end_ids(),
        sampling: Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed },
        top: 0,
    };
    let mut shown = String::new();
    let mut so_far = Vec::new();
    let results = generate(&base.decoder, &[ids], adapter.as_ref(), &request, |_, step| {
        if args.json || base.tokenizer.end_ids().contains(&step.id) {
            return;
        }
        so_far.push(step.id);
        // A character may span several tokens: what does not decode yet waits for the next one.
        if let Ok(text) = base.tokenizer.decode(&so_far, true)
            && !text.ends_with('\u{fffd}')
            && let Some(new) = text.strip_prefix(&shown)
        {
            print!("{new}");
            let _ = std::io::stdout().flush();
            shown = text;
        }
    });
    let answer = &results[0];
    if answer.steps.iter().any(|step| !step.logprob.is_finite()) {
        return Err(base.not_finite("what the model predicts"));
    }
    if args.json {
        let logprobs: Vec<f32> = answer.steps.iter().map(|s| s.logprob).collect();
        let ids: Vec<u32> = answer.steps.iter().map(|s| s.id).collect();
        return print_json(&json!({"text": base.tokenizer.decode(&answer.ids(), true)?, "ids": ids, "logprobs": logprobs, "ended": answer.ended}));
    }
    say!("")?;
    Ok(())
}
