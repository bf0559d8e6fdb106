//! `retune tokenize`: the ids of a text.

use serde_json::json;

use super::args::open_base;
use super::print_json;
use crate::error::Result;

/// Show the tokens of a text.
///
/// Special tokens in the text become their ids; a BOS is put in front where the model's tokenizer says so and the text has
/// none.
#[derive(clap::Args)]
pub struct Args {
    /// The model: a Hugging Face folder, a GGUF file, the tag of a model that your Ollama holds, the id of a model on
    /// the Hugging Face hub, or `demo`
    #[arg(long, value_name = "BASE")]
    base: String,
    /// The text
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    text: String,
    /// No BOS in front, whatever the tokenizer says
    #[arg(long)]
    no_bos: bool,
    /// One line of JSON: ids
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let tokenizer = open_base(&args.base, args.json)?.tokenizer;
    let ids = tokenizer.encode(&args.text, !args.no_bos)?;
    if args.json {
        return print_json(&json!({ "ids": ids }));
    }
    for id in ids {
        say!("{id:>8}  {}", tokenizer.token(id).unwrap_or_default().escape_debug())?;
    }
    Ok(())
}
