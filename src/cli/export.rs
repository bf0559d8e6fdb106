//! `retune export` and `retune review`: what the next training would learn from.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::args::config_in;
use super::print_json;
use super::record::begun;
use crate::domain::Message;
use crate::error::{Error, Result};
use crate::pipeline::export::{RoleSet, Shape};
use crate::pipeline::record::{Recorder, check_role, short_digest};
use crate::store::Store;

/// Write the set of a role as a file that `retune train`, PEFT, Unsloth and others read.
///
/// What may be learnt from is chosen as for a training: good, without duplicates, apart from the held-out work. The set is recorded with its
/// digest and the runs that it is made of.
#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    role: String,
    /// sft: {"instruction", "input", "output"}; messages: conversations with tools; preferences: a better and a worse answer
    #[arg(long, value_enum, default_value = "sft")]
    shape: ShapeArg,
    /// The least reward [default: autoExport.minReward of learning-config.json]
    #[arg(long, value_name = "REWARD")]
    min_reward: Option<f64>,
    /// Examples at most [default: autoExport.maxExamples of learning-config.json]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Where to write [default: .agent/sft/<role>_<shape>.jsonl]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The folder that holds .agent
    #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
    root: PathBuf,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ShapeArg {
    Sft,
    Messages,
    Preferences,
}

pub fn run(args: &Args) -> Result<()> {
    check_role(&args.role)?;
    let mut config = config_in(&args.root)?;
    if let Some(least) = args.min_reward {
        if !(0.0..=1.0).contains(&least) {
            return Err(Error::usage(format!("--min-reward is {least}"), "give 0 to 1; .7 is usual"));
        }
        config.auto_export.min_reward = least;
    }
    if let Some(limit) = args.limit {
        config.auto_export.max_examples = limit.max(1);
    }
    let mut store = begun(&args.root)?;
    let set = RoleSet::of(&store, &config, &args.role)?;
    if set.newest_run == 0 {
        let roles = store.roles()?;
        return Err(Error::usage(format!("no runs of {} are recorded", args.role), format!("there are: {}", roles.join(", "))));
    }
    let shape = match args.shape {
        ShapeArg::Sft => Shape::Alpaca,
        ShapeArg::Messages => Shape::Messages,
        ShapeArg::Preferences => Shape::Preferences,
    };
    let files = set.write(&store, &args.root, shape, args.out.as_deref())?;
    let snapshot = set.record(&mut store)?;
    if args.json {
        return print_json(&json!({ "role": args.role, "snapshot": snapshot, "digest": set.curated.digest, "files": files,
            "train": set.curated.train.len(), "held_out": set.curated.held_out.len(), "left_out": set.left_out() }));
    }
    for file in &files {
        say!("{} rows in {}", file.rows, file.path.display())?;
    }
    say!(
        "{} more are held out, to judge by; the set is snapshot {snapshot}, {}",
        set.curated.held_out.len(),
        set.curated.digest
    )?;
    set.curated.notes().iter().try_for_each(|note| say!("  {note}"))
}

/// Look at the examples of the next training one by one: take, edit or refuse them.
///
/// A refused one stays out; an edited one is learnt from in place of the original. On a terminal each is shown and asked about; with --run one is
/// decided by a flag, and --list shows them all.
#[derive(clap::Args)]
pub struct ReviewArgs {
    #[arg(long, required_unless_present = "run")]
    role: Option<String>,
    /// The run to decide about: its number, or its id
    #[arg(long)]
    run: Option<String>,
    #[arg(long, requires = "run")]
    accept: bool,
    #[arg(long, requires = "run", conflicts_with = "accept")]
    refuse: bool,
    /// Take back what was decided
    #[arg(long, requires = "run", conflicts_with_all = ["accept", "refuse"])]
    undo: bool,
    /// A file with the answer as it should be
    #[arg(long, value_name = "FILE", requires = "run", conflicts_with_all = ["accept", "refuse", "undo"])]
    edited: Option<PathBuf>,
    /// Show what would be learnt from, and what was left out and why
    #[arg(long)]
    list: bool,
    /// The folder that holds .agent
    #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
    root: PathBuf,
    /// A line of JSON an example
    #[arg(long)]
    json: bool,
}

pub fn run_review(args: &ReviewArgs) -> Result<()> {
    let config = config_in(&args.root)?;
    let mut store = begun(&args.root)?;
    let recorder = Recorder::new(&config)?;
    if let Some(name) = &args.run {
        return decide(args, &mut store, &recorder, name);
    }
    let role = args.role.as_deref().unwrap_or_default();
    check_role(role)?;
    let set = RoleSet::of(&store, &config, role)?;
    if args.list || args.json {
        return list(args, &store, &set);
    }
    if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
        return Err(Error::usage(
            "there is no terminal to ask on",
            "use --list to see the examples, and --run N with --accept, --refuse or --edited to decide about one",
        ));
    }
    ask_about_each(&mut store, &recorder, &set)
}

fn decide(args: &ReviewArgs, store: &mut Store, recorder: &Recorder, name: &str) -> Result<()> {
    let found = store.run(name)?.map_or_else(|| store.run(&recorder.identifier(name)), |found| Ok(Some(found)))?;
    let run = found.ok_or_else(|| Error::usage(format!("there is no run '{name}'"), "`retune review --list` shows them"))?.id;
    let told = if let Some(path) = &args.edited {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        edit(store, recorder, run, &text)?
    } else {
        let takes = if args.undo { None } else { Some(!args.refuse) };
        if !(args.accept || args.refuse || args.undo) {
            return show(store, run, "");
        }
        store.review(run, takes)?;
        match takes {
            Some(true) => "will be learnt from, as far as the set has room".to_owned(),
            Some(false) => "is refused: it stays out".to_owned(),
            None => "is undecided again".to_owned(),
        }
    };
    if args.json { print_json(&json!({ "run": run, "told": told })) } else { say!("run {run} {told}") }
}

/// The better answer is recorded, and the first one is never learnt from.
fn edit(store: &mut Store, recorder: &Recorder, run: i64, text: &str) -> Result<String> {
    let row = recorder.edited(store, run, text, &format!("e{run}-{}", short_digest(text)))?;
    let recorded = store.record_edit(run, &row)?;
    Ok(format!("is learnt from as run {} has it", recorded.id))
}

fn list(args: &ReviewArgs, store: &Store, set: &RoleSet) -> Result<()> {
    let parts = [("train", &set.curated.train), ("held_out", &set.curated.held_out)];
    for (part, runs) in parts {
        for run in runs {
            one_of_list(args, store, *run, part, None)?;
        }
    }
    for (run, why) in &set.curated.left_out {
        one_of_list(args, store, *run, "left_out", Some(why.to_string()))?;
    }
    Ok(())
}

fn one_of_list(args: &ReviewArgs, store: &Store, run: i64, part: &str, why: Option<String>) -> Result<()> {
    let texts = store.texts(run)?;
    let last = |role: &str| -> String {
        let found = texts.as_ref().and_then(|texts| texts.messages.iter().rfind(|m| m.role == role));
        found.map(|m| m.content.clone()).unwrap_or_default()
    };
    if args.json {
        let messages: Option<&Vec<Message>> = texts.as_ref().map(|texts| &texts.messages);
        return print_json(&json!({ "run": run, "part": part, "why": why, "messages": messages }));
    }
    let why = why.map_or_else(String::new, |why| format!(" ({why})"));
    say!("{run:>7}  {part:8}  {}{why}", short(&format!("{} -> {}", last("user"), last("assistant")), 60))
}

/// One line of a text.
fn short(text: &str, most: usize) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= most { line } else { line.chars().take(most - 1).chain(['\u{2026}']).collect() }
}

fn show(store: &Store, run: i64, heading: &str) -> Result<()> {
    let facts = store.run(&run.to_string())?;
    let texts = store.texts(run)?;
    say!("{heading}run {run}")?;
    if let Some(facts) = &facts {
        let number = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |value| format!("{value:.2}"));
        say!(
            "  task {}, model {}, reward {}, votes {}",
            facts.task.as_deref().unwrap_or("none"),
            facts.model.as_deref().unwrap_or("unknown"),
            number(facts.reward),
            number(facts.vote)
        )?;
    }
    let Some(texts) = texts else { return say!("  its texts are not stored") };
    for message in &texts.messages {
        say!("--- {}", message.role)?;
        say!("{}", message.content)?;
        for (name, value) in &message.extra {
            say!("  {name}: {}", if let Value::String(text) = value { text.clone() } else { value.to_string() })?;
        }
    }
    say!("---")
}

fn ask_about_each(store: &mut Store, recorder: &Recorder, set: &RoleSet) -> Result<()> {
    let runs: Vec<i64> = set.curated.train.iter().chain(&set.curated.held_out).copied().collect();
    let undecided: Vec<i64> = runs.into_iter().filter(|run| !is_decided(store, *run)).collect();
    for (n, run) in undecided.iter().enumerate() {
        show(store, *run, &format!("{} of {}: ", n + 1, undecided.len()))?;
        loop {
            print!("[a]ccept, [r]efuse, [e]dit, [s]kip, [q]uit? ");
            std::io::stdout().flush().map_err(Error::io("write", "standard output"))?;
            let mut answer = String::new();
            let read = std::io::stdin().lock().read_line(&mut answer).map_err(Error::io("read", "standard input"))?;
            match answer.trim() {
                "a" => store.review(*run, Some(true))?,
                "r" => store.review(*run, Some(false))?,
                "e" => match edited_by_hand(store, *run)? {
                    Some(text) => say!("it {}", edit(store, recorder, *run, &text)?)?,
                    None => {
                        say!("nothing was changed")?;
                        continue;
                    }
                },
                "s" => (),
                "q" => return Ok(()),
                _ if read == 0 => return Ok(()),
                _ => continue,
            }
            break;
        }
    }
    say!("all {} were looked at", undecided.len())
}

fn is_decided(store: &Store, run: i64) -> bool {
    store.run(&run.to_string()).ok().flatten().is_some_and(|facts| facts.review.is_some())
}

/// The answer in the user's editor; `None`: it was left as it is.
fn edited_by_hand(store: &Store, run: i64) -> Result<Option<String>> {
    let Some(answer) = store.texts(run)?.and_then(|texts| texts.messages.last().map(|m| m.content.clone())) else {
        return Ok(None);
    };
    let editor = std::env::var("VISUAL").or_else(|_| std::env::var("EDITOR")).unwrap_or_else(|_| "vi".to_owned());
    let path = std::env::temp_dir().join(format!("retune-review-{}-{run}.txt", std::process::id()));
    std::fs::write(&path, &answer).map_err(Error::io("write", &path))?;
    let status = std::process::Command::new("sh").arg("-c").arg(format!("{editor} \"$1\"")).arg("sh").arg(&path).status();
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path));
    let _ = std::fs::remove_file(&path);
    match status {
        Ok(status) if status.success() => Ok(text.ok().filter(|text| *text != answer)),
        Ok(status) => Err(Error::usage(format!("{editor} ended with {status}"), "set EDITOR to an editor that works here")),
        Err(error) => {
            Err(Error::usage(format!("{editor} cannot be started: {error}"), "set EDITOR to an editor that works here"))
        }
    }
}
