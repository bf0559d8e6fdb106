//! `retune cycle`, `retune status` and `retune init`: what was recorded becomes a better model, by itself.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{Runtime, config_in, llama_server};
use super::record::begun;
use super::{Ended, print_json};
use crate::config::Config;
use crate::deploy::alias_name;
use crate::error::{Error, Result};
use crate::evaluate::judge_model::JudgeModel;
use crate::evaluate::verifier::Verifier;
use crate::formats::durable;
use crate::pipeline::cycle::{
    CycleRequest, Listeners, Outcome, Plan, Readiness, Report, STAGES, Server, TrainPlan, cycle, give_up, readiness,
};
use crate::pipeline::record::check_role;
use crate::runtime::ollama::Ollama;
use crate::store::Store;

/// Make a better model of what was recorded: export, train, register, evaluate, promote or not.
///
/// Each stage is written down when it is done. Killed anywhere, the same command carries on from the first stage that is missing. It begins
/// when there is enough (`retune status`), and what serves is replaced only by what was shown to be better.
#[derive(clap::Args)]
pub struct Args {
    /// What the model is for [default: every role that has runs, one after the other]
    #[arg(long)]
    role: Option<String>,
    /// The model to start from [default: autoTrain.baseModel of learning-config.json]
    #[arg(long, value_name = "BASE")]
    base: Option<String>,
    /// How conversations become text [default: the base's own]
    #[arg(long, value_name = "NAME|FILE")]
    template: Option<String>,
    /// Tokens of an example at most [default: 2048, or the model's context where that is less]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// Say what would be done, and why, and do nothing
    #[arg(long, conflicts_with = "give_up")]
    dry_run: bool,
    /// Also below the thresholds, and where a stage is switched off
    #[arg(long)]
    force: bool,
    /// End the cycle that is under way; what it made stays
    #[arg(long)]
    give_up: bool,
    /// A command that judges each answer: exit code 0 is right (docs/verifier.md)
    #[arg(long, value_name = "COMMAND")]
    verifier: Option<String>,
    /// A model at Ollama that says which answer is the better one
    #[arg(long, value_name = "MODEL")]
    judge: Option<String>,
    /// Rows of other work that must not get worse; may be given more than once
    #[arg(long = "guard", value_name = "FILE")]
    guards: Vec<PathBuf>,
    /// Tokens of an answer at most, where the two are compared; 0 compares losses only
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    max_tokens: usize,
    /// Steps of training [default: the epochs of learning-config.json]
    #[arg(long, value_name = "STEPS")]
    max_steps: Option<u64>,
    /// One seed, one result
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// How merged matrices are stored, as of `retune deploy --type`; also for a cycle that is carried on
    #[arg(long = "type", value_name = "TYPE")]
    merge_type: Option<String>,
    /// What is to serve it
    #[arg(long, value_enum, default_value = "ollama")]
    runtime: Runtime,
    /// The llama-server that proves a version where none runs [default: LLAMA_SERVER_BIN, or the one on the PATH]
    #[arg(long, value_name = "FILE")]
    server_bin: Option<PathBuf>,
    /// The folder that holds .agent
    #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
    root: PathBuf,
    /// One line of JSON a role
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<Ended> {
    let config = config_in(&args.root)?;
    let store = begun(&args.root)?;
    let roles = match &args.role {
        Some(role) => {
            check_role(role)?;
            vec![role.clone()]
        }
        None => store.roles()?,
    };
    if roles.is_empty() {
        return Err(Error::usage("no runs are recorded yet", "`retune record --help` and `retune import --help` show how"));
    }
    if args.give_up {
        return roles.iter().try_for_each(|role| told_given_up(args, role)).map(|()| Ended::Done);
    }
    if args.dry_run {
        return roles.iter().try_for_each(|role| dry_run(args, &config, &store, role)).map(|()| Ended::Done);
    }
    drop(store);
    let mut failed = None;
    for role in &roles {
        match make(args, &config, role) {
            Ok(report) => show(args, &report)?,
            // One role does not stand in the way of the others.
            Err(error) if roles.len() > 1 && !matches!(error, Error::Interrupted { .. }) => {
                eprintln!("note: the cycle of {role} failed: {error}");
                failed = failed.or(Some(error));
            }
            Err(error) => return Err(error),
        }
    }
    failed.map_or(Ok(Ended::Done), Err)
}

fn make(args: &Args, config: &Config, role: &str) -> Result<Report> {
    let request = args.request(config, role)?;
    let bar = super::progress::Line::new(args.json);
    let mut training = super::progress::for_training(args.json);
    let (mut note, mut doing) = (|text: &str| eprintln!("note: {text}"), |text: &str| bar.say(&format!("{role}: {text}")));
    let mut listeners =
        Listeners { stop: super::stop_on_interrupt(), training: training.as_mut(), note: &mut note, doing: &mut doing };
    let report = cycle(&request, &mut listeners);
    bar.clear();
    report
}

impl Args {
    fn server(&self) -> Result<Server> {
        Ok(match self.runtime {
            Runtime::Ollama => Server::Ollama(Ollama::from_env()?),
            Runtime::LlamaServer => {
                Server::LlamaServer { registry: Box::new(llama_server(&self.root)?), program: self.server_bin.clone() }
            }
        })
    }

    fn request(&self, config: &Config, role: &str) -> Result<CycleRequest> {
        let server = self.server()?;
        let (train, deploy) = (&config.auto_train, &config.auto_deploy);
        let plan = Plan {
            role: role.to_owned(),
            base: self.base.clone().unwrap_or_else(|| train.base_model.clone()),
            template: self.template.clone(),
            max_length: self.max_length,
            train: TrainPlan {
                rank: train.lora_rank,
                alpha: train.lora_alpha as f32,
                epochs: train.epochs as f64,
                max_steps: self.max_steps,
                batch_size: train.batch_size,
                grad_accum: train.grad_accum,
                learning_rate: train.learning_rate,
                seed: self.seed,
            },
            prefix: deploy.model_name_prefix.clone(),
            server: server.registry().id(),
            temperature: deploy.temperature,
            top_p: deploy.top_p,
            top_k: deploy.top_k,
            confidence: config.evaluation.confidence,
            min_items: config.evaluation.min_items,
            max_tokens: self.max_tokens,
            verifier: self.verifier.clone(),
            judge: self.judge.clone(),
            guards: self.guards.clone(),
        };
        Ok(CycleRequest {
            root: self.root.clone(),
            config: config.clone(),
            plan,
            force: self.force,
            merge_type: self.merge_type.as_deref().map(str::parse).transpose()?,
            server,
            verifier: self.verifier.as_ref().map(|command| Verifier::new(command.clone())).transpose()?,
            judge: self.judge.as_ref().map(|name| JudgeModel::open(Ollama::from_env()?, name)).transpose()?,
        })
    }
}

fn show(args: &Args, report: &Report) -> Result<()> {
    if args.json {
        return print_json(report);
    }
    match report.outcome {
        Outcome::Nothing => say!("{}", report.message),
        outcome => say!("{}: {}: {}", report.role, outcome.name(), report.message),
    }
}

fn told_given_up(args: &Args, role: &str) -> Result<()> {
    let ended = give_up(&args.root, role)?;
    if args.json {
        return print_json(&json!({ "role": role, "given_up": ended }));
    }
    match ended {
        Some(id) => say!("cycle {id} of {role} is ended; what it made stays"),
        None => say!("no cycle of {role} is under way"),
    }
}

/// What the next call would do, and why.
fn dry_run(args: &Args, config: &Config, store: &Store, role: &str) -> Result<()> {
    let base = args.base.as_deref().unwrap_or(&config.auto_train.base_model);
    if let Some(open) = store.open_cycle(role)? {
        let done: Vec<String> = store.stages(open.id)?.into_iter().map(|done| done.stage).collect();
        let next = STAGES.iter().find(|stage| !done.iter().any(|done| done == *stage)).copied();
        if args.json {
            return print_json(&json!({ "role": role, "would": "carry on", "cycle": open.id, "done": done, "next": next }));
        }
        let done = if done.is_empty() { "nothing".to_owned() } else { done.join(", ") };
        return say!("{role}: would carry on cycle {} from {} ({done} is done)", open.id, next.unwrap_or("its end"));
    }
    let ready = readiness(store, config, role)?;
    let why = ready.nothing_to_do();
    let begins = args.force || why.is_none();
    if args.json {
        let would = if begins { "begin" } else { "nothing" };
        return print_json(&json!({ "role": role, "would": would, "base": base, "missing": ready.missing(), "ready": ready }));
    }
    if let Some(why) = why.as_ref().filter(|_| !args.force) {
        return say!("{why}; nothing would be done (--force begins all the same)");
    }
    say!("{role}: would begin a cycle{}", if why.is_some() { " below the thresholds, because of --force" } else { "" })?;
    say!("  export    {} examples to learn from, {} held out", ready.examples, ready.held_out)?;
    ready.left_out.iter().try_for_each(|note| say!("            {note}"))?;
    say!("  train     an adapter of rank {} on {base}", config.auto_train.lora_rank)?;
    let server = args.server()?;
    say!("  register  as the next version of {}-{role} at {}", config.auto_deploy.model_name_prefix, server.registry().title())?;
    say!("  evaluate  against {}", serves(&server, config, role))?;
    if ready.held_out < ready.needed_held_out {
        say!("            {} held-out items promote nothing: {} are needed", ready.held_out, ready.needed_held_out)?;
    }
    say!("  promote   only what was shown to be better")
}

/// What serves now, for people.
fn serves(server: &Server, config: &Config, role: &str) -> String {
    let named = alias_name(&config.auto_deploy.model_name_prefix, role)
        .and_then(|alias| server.registry().tag(&alias.to_string()).map(|tag| (alias, tag)));
    match named {
        Ok((alias, Some(_))) => format!("what {alias} names"),
        Ok((_, None)) => "the base: nothing serves yet".to_owned(),
        Err(error) => format!("what serves ({error})"),
    }
}

/// Show what serves, what runs, and what is missing for the next training.
#[derive(clap::Args)]
pub struct StatusArgs {
    /// Only this role
    #[arg(long)]
    role: Option<String>,
    /// What serves
    #[arg(long, value_enum, default_value = "ollama")]
    runtime: Runtime,
    /// The folder that holds .agent
    #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
    root: PathBuf,
    /// A line of JSON a role
    #[arg(long)]
    json: bool,
}

pub fn run_status(args: &StatusArgs) -> Result<()> {
    let config = config_in(&args.root)?;
    let store = begun(&args.root)?;
    let roles = match &args.role {
        Some(role) => vec![role.clone()],
        None => store.roles()?,
    };
    if roles.is_empty() {
        return say!("no runs are recorded yet: `retune record --help` and `retune import --help` show how");
    }
    let registry = args.runtime.registry(&args.root)?;
    for role in &roles {
        let alias = alias_name(&config.auto_deploy.model_name_prefix, role)?;
        // One that is away is told; the rest is known without it.
        let serving = registry.tag(&alias.to_string());
        let version = serving.as_ref().ok().and_then(Option::as_ref).map(|tag| -> Result<String> {
            let known = store.deployments(&registry.id(), alias.to_string().trim_end_matches(":latest"))?;
            Ok(known.iter().rev().find(|d| d.digest == tag.digest).map_or_else(|| alias.to_string(), |d| d.name()))
        });
        let version = version.transpose()?;
        let ready = readiness(&store, &config, role)?;
        let last = store.cycles(Some(role), 1)?.into_iter().next();
        if args.json {
            let problem = serving.as_ref().err().map(ToString::to_string);
            print_json(&json!({ "role": role, "serves": version, "server": registry.title(), "server_problem": problem,
                "last_cycle": last, "ready": ready, "missing": ready.missing() }))?;
            continue;
        }
        say!("{role}")?;
        match (&version, &serving) {
            (Some(version), _) => say!("  serves        {version}, at {}", registry.title())?,
            (None, Ok(_)) => say!("  serves        nothing yet at {}: the base is the champion", registry.title())?,
            (None, Err(error)) => say!("  serves        not known: {error}")?,
        }
        match &last {
            None => say!("  last cycle    none")?,
            Some(last) => {
                let when = last.ended_at.as_ref().unwrap_or(&last.begun_at).get(..16).unwrap_or_default().replace('T', " ");
                let state = last.outcome.clone().unwrap_or_else(|| "under way, or cut off: `retune cycle` carries on".to_owned());
                say!("  last cycle    {} ({when}): {state}", last.id)?;
            }
        }
        needs(&ready)?;
    }
    Ok(())
}

fn needs(ready: &Readiness) -> Result<()> {
    let line = |name: &str, found: usize, needed: usize, what: &str| {
        let mark = if found >= needed { "enough" } else { "missing" };
        say!("  {name:13} {found} of {needed} {what}: {mark}")
    };
    line("new runs", ready.new_runs, ready.needed_runs, "since the last training")?;
    line("examples", ready.examples, ready.needed_examples, "in the set")?;
    line("new in it", ready.new_examples, ready.needed_new, "since the last training")?;
    line("held out", ready.held_out, ready.needed_held_out, "to promote by")?;
    for off in &ready.off {
        say!("  {off} is switched off")?;
    }
    Ok(())
}

/// Begin a project here: `.agent` with the settings, every one with its default.
#[derive(clap::Args)]
pub struct InitArgs {
    /// The model to start from, as `retune train --base` takes it [default: qwen2.5-coder:7b]
    #[arg(long, value_name = "BASE")]
    base: Option<String>,
    /// The folder that is to hold .agent
    #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
    root: PathBuf,
}

pub fn run_init(args: &InitArgs) -> Result<()> {
    let path = Config::path_in(&args.root);
    if path.exists() {
        // Read, so that what is wrong with it is told here and not at night.
        config_in(&args.root)?;
        if args.base.is_some() {
            return Err(Error::usage(format!("{} is there already", path.display()), "set autoTrain.baseModel in it"));
        }
        return say!("{} is there already, and reads well; nothing was changed", path.display());
    }
    let mut config = Config::default();
    if let Some(base) = &args.base {
        config.auto_train.base_model.clone_from(base);
    }
    Store::open(&args.root)?;
    durable::write(&path, config.to_text().as_bytes())?;
    ignore(&args.root)?;
    say!("settings are in {}, what happens goes to {}", path.display(), Store::path_in(&args.root).display())?;
    say!("next: `retune record --help`, or `retune import --help` for what there is already")
}

/// What people asked their models does not belong into a repository.
fn ignore(root: &Path) -> Result<()> {
    let path = root.join(".agent/.gitignore");
    if path.exists() {
        return Ok(());
    }
    durable::write(&path, b"*\n!.gitignore\n!learning-config.json\n")
}
