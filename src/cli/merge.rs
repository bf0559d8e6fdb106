//! `retune merge`: base and adapter become one GGUF file.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::open_base;
use super::print_json;
use crate::error::Result;
use crate::export::merge::{MergeType, merge};
use crate::model::adapter_files;
use crate::pipeline::convert::as_gguf;

/// Merge an adapter into its base: one GGUF file, everything untouched byte for byte the same.
#[derive(clap::Args)]
pub struct Args {
    /// The base: a GGUF file, the tag of a model that your Ollama holds, a Hugging Face folder or a hub id in the local cache
    #[arg(long)]
    base: String,
    /// The adapter: a PEFT folder (what `retune train` writes) or a GGUF adapter
    #[arg(long, value_name = "DIR|FILE.gguf")]
    adapter: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE.gguf")]
    out: PathBuf,
    /// How merged weights are stored: keep (as they were), f32, f16, bf16, q8_0, q6_k, q5_k, q4_k, q5_1, q5_0, q4_1, q4_0
    #[arg(long = "type", value_name = "TYPE", default_value = "keep")]
    merge_type: String,
    /// One line of JSON: each merged tensor with its types and its error
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let merge_type: MergeType = args.merge_type.parse()?;
    let base = open_base(&args.base, args.json)?;
    let adapter = adapter_files::load(&args.adapter, &base.decoder.config)?;
    let pairs = adapter_files::gguf_pairs(&adapter, &base.decoder.config);
    // Beside the merged file, because a merge by hand knows no other place.
    let keep_in = args.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let gguf = as_gguf(&base, merge_type.of_base(), keep_in, &mut |text| eprintln!("note: {text}"))?;
    let report = merge(&gguf, &pairs, adapter.spec.scale(), merge_type, &args.out)?;
    if args.json {
        return print_json(&json!({"out": args.out, "tensors": report.tensors}));
    }
    say!("{} tensors merged into {}", report.tensors.len(), args.out.display())?;
    report.notes().iter().try_for_each(|n| say!("  {n}"))?;
    Ok(())
}
