//! `retune watch -- CMD`: runs a command, and reads how it went.

use std::ffi::OsString;
use std::io;
use std::time::SystemTime;

use super::signal_args::SignalArgs;
use super::{Ended, print_json};
use crate::error::{Error, Result};
use crate::signals::watch::{self, Meaning, Watched};

/// Run a command and record how it went, from what it prints.
///
/// Its output goes through as it is, its exit code is retune's (128 + n where signal n ended it), Ctrl-C and the standard input
/// are its own. What cargo, pytest, jest, go test, tsc, ESLint, mypy, ruff and others print is known by its shape; reports that
/// the command writes are better still.
#[derive(clap::Args)]
pub struct Args {
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
    if let Err(error) = record(&watched) {
        eprintln!("retune: not recorded: {error}");
    }
    for note in &watched.observed.notes {
        eprintln!("retune: {note}");
    }
    eprintln!("retune: {}", watched.observed.summary());
    if args.json {
        if watched.open_line {
            say!("")?;
        }
        print_json(&watched)?;
    }
    Ok(Ended::With(watched.exit))
}

/// Where the verdict goes: the store's record of runs.
fn record(_watched: &Watched) -> Result<()> {
    Ok(())
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
