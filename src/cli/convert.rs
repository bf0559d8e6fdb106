//! `retune convert`: a Hugging Face folder becomes a GGUF file.

use std::path::PathBuf;

use serde_json::json;

use super::{print_json, progress};
use crate::error::Result;
use crate::export::convert::{ConvertType, convert};
use crate::pipeline::convert::folder_of;

/// Write a Hugging Face folder as a GGUF file, as llama.cpp's own converter would: what Ollama and llama.cpp serve.
///
/// For llama and qwen2 models. The vocabulary is checked on the way: the file must give the ids that the folder's own
/// tokenizer gives, or nothing is written.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder, or the id of a model on the hub (org/name or org/name@revision)
    #[arg(long, value_name = "DIR|ID")]
    base: String,
    /// The file to write
    #[arg(long, value_name = "FILE.gguf")]
    out: PathBuf,
    /// How matrices are stored: auto (bf16 or f16 as the folder has them, f16 for f32), f32, f16, bf16, q8_0, q6_k, q5_k, q4_k, q3_k, q2_k, q5_1, q5_0, q4_1, q4_0
    #[arg(long = "type", value_name = "TYPE", default_value = "auto")]
    convert_type: String,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let convert_type: ConvertType = args.convert_type.parse()?;
    let mut fetching = progress::Fetching::new(args.json);
    let (folder, name) = folder_of(&args.base, &mut |event| fetching.on_event(event))?;
    let report = convert(&folder, &name, convert_type, &args.out)?;
    if args.json {
        return print_json(&json!({"out": args.out, "tensors": report.tensors, "type": report.ggml_type, "notes": report.notes}));
    }
    say!("{} tensors written to {}, matrices as {}", report.tensors, args.out.display(), report.ggml_type)?;
    report.notes.iter().try_for_each(|n| say!("  {n}"))
}
