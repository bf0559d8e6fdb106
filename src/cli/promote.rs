//! `retune promote`, `retune rollback` and `retune history`: which version serves, and which did.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{Runtime, config_in, prefix_in};
use super::print_json;
use crate::deploy::llama_server::LlamaServer;
use crate::error::{Error, Result};
use crate::pipeline::champion::{Champion, Moved};
use crate::store::{AliasMove, Store};

/// Which model of which project.
#[derive(clap::Args)]
pub struct RoleArgs {
    /// What the model is for; the end of its name
    #[arg(long, default_value = "coder")]
    pub role: String,
    /// The beginning of its name [default: my-coder-tuned, or what learning-config.json says]
    #[arg(long)]
    name_prefix: Option<String>,
    /// What serves it
    #[arg(long, value_enum, default_value = "ollama")]
    pub runtime: Runtime,
    /// The folder that holds .agent
    #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
    pub root: PathBuf,
}

impl RoleArgs {
    /// In a wrong folder nothing is begun.
    pub fn is_begun(&self) -> Result<()> {
        store_in(&self.root).map(drop)
    }

    pub fn prefix(&self) -> Result<String> {
        prefix_in(&self.root, self.name_prefix.as_deref())
    }

    /// Takes the alias and runs `act` on it.
    fn with_champion(&self, act: impl FnOnce(&mut Champion, &mut dyn FnMut(&str)) -> Result<Moved>) -> Result<Moved> {
        self.is_begun()?;
        let registry = self.runtime.registry(&self.root)?;
        let mut note = |text: &str| eprintln!("note: {text}");
        act(&mut Champion::open(&*registry, &self.root, &self.prefix()?, &self.role, &mut note)?, &mut note)
    }
}

/// Let a version serve: move the alias `:latest` to it.
///
/// The version must be registered (`retune deploy`); one that `retune evaluate` rejected needs --force. What served before keeps its version, and `retune rollback` goes back
/// to it. Clients that ask for the alias get the new version with their next request.
#[derive(clap::Args)]
pub struct Args {
    /// v7, 7, or the whole name
    version: String,
    /// Why, for the history [default: what the evaluation said]
    #[arg(long)]
    reason: Option<String>,
    /// Also where its evaluation rejected it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    role: RoleArgs,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let promoted = args
        .role
        .with_champion(|champion, note| champion.promote_judged(&args.version, args.reason.as_deref(), args.force, note))?;
    show(&promoted, args.json)
}

/// Let what served before serve again.
///
/// A second rollback goes further back. Every version stays; `retune promote` brings one back. Whom alerts of learning-config.json
/// name is told.
#[derive(clap::Args)]
pub struct RollbackArgs {
    /// The version to go back to [default: what served before]
    #[arg(long, value_name = "VERSION")]
    to: Option<String>,
    /// Why, for the history
    #[arg(long, default_value = "by hand")]
    reason: String,
    #[command(flatten)]
    role: RoleArgs,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

pub fn run_rollback(args: &RollbackArgs) -> Result<()> {
    let config = config_in(&args.role.root)?;
    let moved = args.role.with_champion(|champion, _| champion.roll_back(args.to.as_deref(), &args.reason))?;
    for failure in moved.alert(&config.alerts, &args.reason) {
        eprintln!("note: it was rolled back, but {failure}");
    }
    show(&moved, args.json)
}

fn show(moved: &Moved, json: bool) -> Result<()> {
    if json {
        return print_json(moved);
    }
    match &moved.from {
        _ if moved.already => say!("{} names {} already", moved.alias, moved.to.name),
        Some(from) => say!("{} names {} now (it was {})", moved.alias, moved.to.name, from.name),
        None => say!("{} names {} now", moved.alias, moved.to.name),
    }
}

/// Show every promotion and rollback, the newest last.
#[derive(clap::Args)]
pub struct HistoryArgs {
    /// Only this role
    #[arg(long)]
    role: Option<String>,
    /// Only what moved there [default: all]
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// The folder that holds .agent
    #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
    root: PathBuf,
    /// A line of JSON a move
    #[arg(long)]
    json: bool,
}

pub fn run_history(args: &HistoryArgs) -> Result<()> {
    let store = store_in(&args.root)?;
    let mut moves = store.moves(None)?;
    if let Some(role) = &args.role {
        moves.retain(|m| m.alias.trim_end_matches(":latest").ends_with(&format!("-{role}")));
    }
    if let Some(runtime) = args.runtime {
        moves.retain(|m| m.server.starts_with(LlamaServer::SCHEME) == (runtime == Runtime::LlamaServer));
    }
    if args.json {
        return moves.iter().try_for_each(|m| print_json(&json!(m)));
    }
    if moves.is_empty() {
        return say!("no alias has moved yet");
    }
    let mut last = None;
    for m in &moves {
        let heading = (&m.alias, &m.server);
        if last != Some(heading) {
            say!("{} at {}", m.alias, m.server)?;
            last = Some(heading);
        }
        say!("  {}", line(m))?;
    }
    Ok(())
}

fn store_in(root: &Path) -> Result<Store> {
    Store::open_if_there(root)?.ok_or_else(|| {
        Error::usage(
            format!("there is no {}", Store::path_in(root).display()),
            "`retune deploy` begins it; --root names the folder that holds .agent",
        )
    })
}

/// `2026-11-21 17:30  promotion  v1 -> v2  better on 61 of 100`
fn line(m: &AliasMove) -> String {
    let tag = |name: &str| name.rsplit_once(':').map_or(name, |(_, tag)| tag).to_owned();
    let when = m.begun_at.get(..16).unwrap_or(&m.begun_at).replace('T', " ");
    let from = m.from_name.as_deref().map_or_else(|| "nothing".to_owned(), tag);
    let mut text = format!("{when}  {:9}  {from} -> {}  {}", m.kind.name(), tag(&m.to_name), m.reason);
    match &m.end {
        None => text.push_str(" (under way, or cut off)"),
        Some(end) if !end.done => text.push_str(&format!(" (not made: {})", end.message)),
        Some(_) => (),
    }
    text.trim_end().to_owned()
}
