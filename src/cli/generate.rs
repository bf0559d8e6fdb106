//! `retune generate`: a model answers a prompt, or the prompts of a file.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::{AdapterArgs, BaseArgs};
use super::print_json;
use crate::base::Base;
use crate::domain::Message;
use crate::error::{Error, Result};
use crate::formats::rows;
use crate::infer::generate::{Generated, Request, Sampling, Step, generate};
use crate::text::render::Renderer;
use crate::text::tokenizer::Tokenizer;

/// Let a model, with or without an adapter, answer a prompt, or every prompt of a file.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("question").required(true).args(["prompt", "data"]))]
pub struct Args {
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// What to ask; `-` reads it from standard input
    #[arg(long)]
    prompt: Option<String>,
    /// Rows to answer, each from its beginning to before its last answer, many at once
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    data: Option<PathBuf>,
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
    /// Tell, with --json, this many of the most probable tokens at each place
    #[arg(long, value_name = "TOKENS", default_value_t = 0, requires = "json")]
    alternatives: usize,
    /// A line of JSON an answer: text, ids, their log-probabilities, whether the model ended by itself
    #[arg(long)]
    json: bool,
}

/// A prompt, ready for the model.
struct Question {
    /// The row's number in the file, from 1.
    row: Option<usize>,
    ids: Vec<u32>,
}

pub fn run(args: &Args) -> Result<()> {
    if !(args.temperature.is_finite() && args.temperature >= 0.0 && args.top_p > 0.0 && args.top_p <= 1.0) {
        return Err(Error::usage(
            "--temperature must be 0 or more, --top-p above 0 and at most 1",
            "see `retune generate --help`",
        ));
    }
    let base = args.base.open(args.json)?;
    let adapter = args.adapter.load(&base)?;
    let questions = match &args.data {
        Some(path) => questions_of(args, &base, path)?,
        None => vec![Question { row: None, ids: prompt_ids(args, &base)? }],
    };
    let context = base.decoder.config.context_length;
    let mut longest = 0;
    for Question { row, ids } in &questions {
        if ids.is_empty() || ids.len() >= context {
            let which = row.map_or_else(|| "the prompt".to_owned(), |row| format!("the prompt of row {row}"));
            return Err(Error::data(
                format!("{which} has {} tokens; {} sees 1 to {}", ids.len(), base.name, context - 1),
                "shorten or fill the prompt",
            ));
        }
        longest = longest.max(ids.len());
    }
    let request = Request {
        max_tokens: args.max_tokens.min(context - longest),
        end_ids: base.tokenizer.end_ids(),
        sampling: Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed },
        top: args.alternatives,
    };
    let prompts: Vec<Vec<u32>> = questions.iter().map(|q| q.ids.clone()).collect();
    let mut shown = Shown { tokenizer: &base.tokenizer, ids: Vec::new(), text: String::new() };
    let streamed = !args.json && args.data.is_none();
    let answers = generate(&base.decoder, &prompts, adapter.as_ref(), &request, |_, step| {
        if streamed {
            shown.push(step);
        }
    });
    if answers.iter().flat_map(|answer| &answer.steps).any(|step| !step.logprob.is_finite()) {
        return Err(base.not_finite("what the model predicts"));
    }
    if streamed {
        return say!("");
    }
    for (question, answer) in questions.iter().zip(&answers) {
        if args.json {
            print_json(&as_json(&base.tokenizer, question, answer, args.alternatives > 0)?)?;
        } else {
            say!("row {}: {}", question.row.unwrap_or(1), base.tokenizer.decode(&answer.ids(), true)?)?;
        }
    }
    Ok(())
}

fn prompt_ids(args: &Args, base: &Base) -> Result<Vec<u32>> {
    let prompt = match args.prompt.as_deref().unwrap_or_default() {
        "-" => std::io::read_to_string(std::io::stdin()).map_err(Error::io("read", "standard input"))?,
        prompt => prompt.to_owned(),
    };
    if args.raw {
        return base.tokenizer.encode(&prompt, true);
    }
    let template = args.base.template(base)?;
    let renderer = Renderer { tokenizer: &base.tokenizer, template: &template, system: args.base.system_text()? };
    Ok(renderer.prompt(&[Message::new("user", prompt)], None)?.1)
}

/// Each row's conversation before its last answer.
fn questions_of(args: &Args, base: &Base, path: &Path) -> Result<Vec<Question>> {
    let template = args.base.template(base)?;
    let renderer = Renderer { tokenizer: &base.tokenizer, template: &template, system: args.base.system_text()? };
    let examples = rows::read_as(path, rows::Wanted::Prompts)?.examples;
    let question = |example: &crate::domain::Example| {
        let last = example.messages.iter().rposition(|m| m.role == "assistant").unwrap_or(example.messages.len());
        let ids = renderer.prompt(&example.messages[..last], example.tools.as_ref())?.1;
        Ok(Question { row: Some(example.row), ids })
    };
    examples.iter().map(question).collect()
}

/// An answer on its way to the terminal.
struct Shown<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    text: String,
}

impl Shown<'_> {
    /// A character may span several tokens: what does not decode yet waits for the next one.
    fn push(&mut self, step: &Step) {
        if self.tokenizer.end_ids().contains(&step.id) {
            return;
        }
        self.ids.push(step.id);
        if let Ok(text) = self.tokenizer.decode(&self.ids, true)
            && !text.ends_with('\u{fffd}')
            && let Some(new) = text.strip_prefix(&self.text)
        {
            // A disk that is full is told with the last line.
            let mut out = std::io::stdout();
            let _ = write!(out, "{new}").and_then(|()| out.flush());
            self.text = text;
        }
    }
}

/// What a machine is told of an answer; `alternatives[i]` are the most probable tokens at the place of `ids[i]`.
fn as_json(tokenizer: &Tokenizer, question: &Question, answer: &Generated, with_alternatives: bool) -> Result<Value> {
    let logprobs: Vec<f32> = answer.steps.iter().map(|s| s.logprob).collect();
    let ids: Vec<u32> = answer.steps.iter().map(|s| s.id).collect();
    let text = tokenizer.decode(&answer.ids(), true)?;
    let mut json =
        json!({"text": text, "ids": ids, "logprobs": logprobs, "ended": answer.ended, "prompt_tokens": question.ids.len()});
    if let Some(row) = question.row {
        json["row"] = json!(row);
    }
    if with_alternatives {
        let piece = |id| String::from_utf8_lossy(&tokenizer.piece(id).unwrap_or_default()).into_owned();
        let token = |&(id, logprob): &(u32, f32)| json!({"id": id, "text": piece(id), "logprob": logprob});
        json["alternatives"] = answer.steps.iter().map(|step| step.top.iter().map(token).collect::<Value>()).collect();
    }
    Ok(json)
}
