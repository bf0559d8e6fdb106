//! `retune prune`, `retune pin` and `retune rebuild`: old versions go, and come again.

use super::args::Runtime;
use super::print_json;
use super::progress::Fetching;
use super::promote::RoleArgs;
use crate::error::{Error, Result};
use crate::pipeline::prune::{Fate, PruneRequest, Pruned, pin, prune};
use crate::pipeline::rebuild::{RebuildRequest, rebuild};
use crate::runtime::ollama::Ollama;
use crate::train::plan::human;

/// Remove old versions from Ollama; their adapters stay.
///
/// Kept are what serves, what served before it (`retune rollback` goes back to it), the last versions, the pinned ones (`retune
/// pin`), and what this project did not record or could not make again. A pruned version keeps its number: `retune rebuild`
/// makes it again from its adapter.
#[derive(clap::Args)]
pub struct Args {
    /// How many of the last versions stay in any case
    #[arg(long, value_name = "N", default_value_t = 3)]
    keep: usize,
    /// Remove nothing; say what would go
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    role: RoleArgs,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    args.role.is_begun()?;
    let request = PruneRequest {
        prefix: args.role.prefix()?,
        role: args.role.role.clone(),
        root: args.role.root.clone(),
        keep: args.keep,
        dry_run: args.dry_run,
    };
    let pruned = prune(&ollama(&args.role)?, &request, &mut note)?;
    if args.json { print_json(&pruned) } else { show(&pruned) }
}

fn show(pruned: &Pruned) -> Result<()> {
    let size = |bytes: u64| human(usize::try_from(bytes).unwrap_or(usize::MAX));
    let (goes, freed) = if pruned.dry_run { ("would go", "would free") } else { ("pruned", "freed") };
    say!("{} at {}", pruned.model, pruned.server)?;
    if pruned.versions.is_empty() {
        say!("  it has no versions")?;
    }
    for Fate { version, kept, freed_bytes, .. } in &pruned.versions {
        let reasons: Vec<String> = kept.iter().map(ToString::to_string).collect();
        match reasons.is_empty() {
            true => say!("  v{version}  {goes}, {freed} {}", size(*freed_bytes))?,
            false => say!("  v{version}  kept: {}", reasons.join("; "))?,
        }
    }
    for file in &pruned.files {
        say!("  {}  {goes}, {freed} {}", file.path.display(), size(file.freed_bytes))?;
    }
    let local: u64 = pruned.files.iter().map(|file| file.freed_bytes).sum();
    say!("{freed} {} on the server and {} here", size(pruned.freed_bytes), size(local))?;
    let stays = &pruned.stays;
    say!(
        "what stays: {} of versions on the server; here {} of adapters and {} of converted bases",
        size(stays.server_bytes),
        size(stays.adapter_bytes),
        size(stays.base_bytes)
    )
}

/// Keep a version from being pruned.
#[derive(clap::Args)]
pub struct PinArgs {
    /// v7, 7, or the whole name
    version: String,
    /// Take the pin away
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    role: RoleArgs,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

pub fn run_pin(args: &PinArgs) -> Result<()> {
    let RoleArgs { role, root, .. } = &args.role;
    args.role.is_begun()?;
    let pin = pin(&ollama(&args.role)?, root, (&args.role.prefix()?, role), &args.version, args.undo, &mut note)?;
    if args.json {
        return print_json(&pin);
    }
    match (pin.pinned, pin.already) {
        (true, false) => say!("{} is pinned: it is never pruned", pin.name),
        (true, true) => say!("{} is pinned already", pin.name),
        (false, false) => say!("{} is not pinned any more", pin.name),
        (false, true) => say!("{} was not pinned", pin.name),
    }
}

/// Make a pruned version again, under its own number.
///
/// It is made from its adapter and from what was recorded of it (base, type, template, system text, parameters), compared
/// with what was trained as `retune deploy` does. Where its digest is not the one that it had, that is told.
#[derive(clap::Args)]
pub struct RebuildArgs {
    /// v7, 7, or the whole name
    version: String,
    /// Move the alias :latest to it
    #[arg(long)]
    promote: bool,
    #[command(flatten)]
    role: RoleArgs,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

pub fn run_rebuild(args: &RebuildArgs) -> Result<()> {
    ollama(&args.role)?;
    args.role.is_begun()?;
    let request = RebuildRequest {
        version: args.version.clone(),
        prefix: args.role.prefix()?,
        role: args.role.role.clone(),
        root: args.role.root.clone(),
        promote: args.promote,
    };
    let mut fetching = Fetching::new(args.json);
    let rebuilt = rebuild(&request, &mut note, &mut |event| fetching.on_event(event))?;
    if args.json {
        return print_json(&rebuilt);
    }
    let what = match rebuilt.already {
        true => "is there still",
        false if rebuilt.digest == rebuilt.recorded_digest => "is served again, the same as it was",
        false => "is served again",
    };
    say!("{} {what}{}", rebuilt.name, if rebuilt.promoted { ", and :latest names it" } else { "" })
}

fn ollama(role: &RoleArgs) -> Result<Ollama> {
    match role.runtime {
        Runtime::Ollama => Ollama::from_env(),
        Runtime::LlamaServer => Err(Error::unsupported(
            "a version of llama-server is an adapter of some megabytes on a base that all share: there is nothing to prune",
            "`retune deploy --runtime llama-server` registers one that is missing",
        )),
    }
}

fn note(text: &str) {
    eprintln!("note: {text}");
}
