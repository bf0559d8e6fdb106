//! `retune watch -- CMD`: runs a command, and reads how it went.

use std::ffi::OsString;
use std::io;
use std::time::SystemTime;

use super::args::config_in;
use super::record::{RunArgs, begun, record_one};
use super::signal_args::SignalArgs;
use super::{Ended, print_json};
use crate::error::{Error, Result};
use crate::pipeline::record::Recorder;
use crate::signals::watch::{self, Meaning, Watched};

/// Run a command and record how it went, from what it prints.
///
/// Its output goes through as it is, its exit code is retune's (128 + n where signal n ended it), Ctrl-C and the standard input
/// are its own. What cargo, pytest, jest, go test, tsc, ESLint, mypy, ruff and others print is known by its shape; reports that
/// the command writes are better still.
#[derive(clap::Args)]
pub struct Args {
    /// The run that it tells of, by its number or id: what was seen is added to it [default: a run of its own, where --role is given]
    #[arg(long = "run", value_name = "RUN", conflicts_with = "role")]
    of: Option<String>,
    #[command(flatten)]
    about: RunArgs,
    #[command(flatten)]
    reports: SignalArgs,
    /// What the exit code means where the output says nothing of it; without it, nothing is claimed then
    #[arg(long = "as", value_enum, value_name = "WHAT")]
    meaning: Option<MeaningArg>,
    /// One line of JSON at the end of the standard output: exit, signal, seconds, result, signals, notes
    #[arg(long)]
    json: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum MeaningArg {
    /// It compiled, or did not
    Compile,
    /// One test, that passed or did not
    Tests,
    /// No lint error, or one
    Lint,
    /// No type error, or one
    Types,
}

pub fn run(args: &Args) -> Result<Ended> {
    args.reports.refuse_stdin()?;
    let meaning = args.meaning.map(|meaning| match meaning {
        MeaningArg::Compile => Meaning::Compile,
        MeaningArg::Tests => Meaning::Tests,
        MeaningArg::Lint => Meaning::Lint,
        MeaningArg::Types => Meaning::Types,
    });
    let began = SystemTime::now();
    let watched = match watch::run(&args.command, meaning, || args.reports.observe_since(began)) {
        Ok(watched) => watched,
        Err(error) => return not_started(error),
    };
    // The command ran and ended; what goes wrong here is told, and its exit code stays ours.
    let recorded = record(args, &watched).unwrap_or_else(|error| {
        eprintln!("retune: not recorded: {error}");
        None
    });
    for note in &watched.observed.notes {
        eprintln!("retune: {note}");
    }
    let told = recorded.as_ref().map_or_else(|| "not recorded: give --role, or --run".to_owned(), |told| told.clone());
    eprintln!("retune: {} ({told})", watched.observed.summary());
    if args.json {
        if watched.open_line {
            say!("")?;
        }
        print_json(&watched)?;
    }
    Ok(Ended::With(watched.exit))
}

/// Where the verdict goes: to a run of its own, or to one that is there. `None`: nobody asked for it.
fn record(args: &Args, watched: &Watched) -> Result<Option<String>> {
    let root = &args.about.root;
    let reward = |reward: Option<f64>| reward.map_or_else(|| "no reward".to_owned(), |reward| format!("reward {reward:.2}"));
    if args.of.is_none() && args.about.role.is_none() {
        return Ok(None);
    }
    let config = config_in(root)?;
    let recorder = Recorder::new(&config)?;
    if let Some(run) = &args.of {
        let mut store = begun(root)?;
        let seen = recorder.observe(&mut store, run, &watched.observed.result)?;
        return Ok(Some(format!("run {run}: {}", reward(seen.reward))));
    }
    let mut run = args.about.new_run(watched.observed.result.clone())?;
    run.duration_ms = run.duration_ms.or(Some((watched.seconds * 1e3) as u64));
    let recorded = record_one(&config, &recorder, root, &run)?;
    Ok(Some(format!("run {}: {}", recorded.number, reward(recorded.reward))))
}

/// As a shell has it: 127 where there is no such command, 126 where it cannot be run.
fn not_started(error: Error) -> Result<Ended> {
    let Error::Io { source, .. } = &error else { return Err(error) };
    let exit = if source.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    eprintln!("error: {error}");
    eprintln!(
        "  next: check the command's name and PATH; what a shell would do (&&, |, >) needs one: retune watch -- sh -c '...'"
    );
    Ok(Ended::With(exit))
}
