//! The command line: thin shells over the library, one file a command. Errors go to stderr as one readable message;
//! exit code 0 is done, 1 failed, 2 wrong use, 3 done as far as it goes without a server (`retune deploy`). `retune watch` has that
//! of the command that it ran.

/// `println!` that gives an error where it cannot write (a full disk behind `> file`) and does not panic.
macro_rules! say {
    ($($arg:tt)*) => { $crate::cli::print_line(format_args!($($arg)*)) };
}

mod args;
mod convert;
mod cycle;
mod data;
mod demo;
mod deploy;
mod doctor;
mod env_file;
mod evaluate;
mod export;
mod generate;
mod import;
mod loss;
mod merge;
mod progress;
mod promote;
mod prune;
mod record;
mod redact;
mod render;
mod signal_args;
mod stats;
mod tokenize;
mod train;
mod watch;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};

use crate::error::{Error, Result};

/// Make the language models that you serve better at your work.
///
/// retune trains LoRA adapters in its own process, on the very weights that you serve, exports them to GGUF and
/// registers the new model with Ollama. `retune demo` shows the whole of it on a small model, in about a minute.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong use, 3 the files are made but no server was there to take them."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Train(Box<train::Args>),
    Loss(loss::Args),
    Generate(generate::Args),
    Convert(convert::Args),
    Merge(merge::Args),
    Deploy(deploy::Args),
    Evaluate(Box<evaluate::Args>),
    Promote(promote::Args),
    Rollback(promote::RollbackArgs),
    History(promote::HistoryArgs),
    Prune(prune::Args),
    Pin(prune::PinArgs),
    Rebuild(prune::RebuildArgs),
    Record(Box<record::Args>),
    Feedback(record::FeedbackArgs),
    Reward(record::RewardArgs),
    Import(Box<import::Args>),
    Export(export::Args),
    Review(export::ReviewArgs),
    Cycle(Box<cycle::Args>),
    Status(cycle::StatusArgs),
    Stats(stats::Args),
    Init(cycle::InitArgs),
    Redact(redact::Args),
    Data(data::Args),
    Render(render::Args),
    Tokenize(tokenize::Args),
    Doctor(doctor::Args),
    Watch(Box<watch::Args>),
    /// Holds a verifier's command for one item; retune starts this itself
    #[command(name = "__confine", hide = true)]
    Confine,
}

/// How a command ended that did not fail.
pub enum Ended {
    Done,
    /// The files are made, but no server was there to take them.
    WithoutServer,
    /// What was looked at is not as it should be, and that was told.
    WithProblems,
    /// With the exit code of a command that was watched.
    With(u8),
}

/// Runs the process's command line.
pub fn main() -> ExitCode {
    set_signals();
    if let Err(error) = env_file::load(std::env::args_os()) {
        return failed(&error);
    }
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Demo(args) => demo::run(args).map(|()| Ended::Done),
        Command::Train(args) => train::run(args).map(|()| Ended::Done),
        Command::Loss(args) => loss::run(args).map(|()| Ended::Done),
        Command::Generate(args) => generate::run(args).map(|()| Ended::Done),
        Command::Convert(args) => convert::run(args).map(|()| Ended::Done),
        Command::Merge(args) => merge::run(args).map(|()| Ended::Done),
        Command::Deploy(args) => deploy::run(args),
        Command::Evaluate(args) => evaluate::run(args).map(|()| Ended::Done),
        Command::Promote(args) => promote::run(args).map(|()| Ended::Done),
        Command::Rollback(args) => promote::run_rollback(args).map(|()| Ended::Done),
        Command::History(args) => promote::run_history(args).map(|()| Ended::Done),
        Command::Prune(args) => prune::run(args).map(|()| Ended::Done),
        Command::Pin(args) => prune::run_pin(args).map(|()| Ended::Done),
        Command::Rebuild(args) => prune::run_rebuild(args).map(|()| Ended::Done),
        Command::Record(args) => record::run(args).map(|()| Ended::Done),
        Command::Feedback(args) => record::run_feedback(args).map(|()| Ended::Done),
        Command::Reward(args) => record::run_reward(args).map(|()| Ended::Done),
        Command::Import(args) => import::run(args),
        Command::Export(args) => export::run(args).map(|()| Ended::Done),
        Command::Review(args) => export::run_review(args).map(|()| Ended::Done),
        Command::Cycle(args) => cycle::run(args),
        Command::Status(args) => cycle::run_status(args).map(|()| Ended::Done),
        Command::Init(args) => cycle::run_init(args).map(|()| Ended::Done),
        Command::Stats(args) => stats::run(args).map(|()| Ended::Done),
        Command::Redact(args) => redact::run(args),
        Command::Data(args) => data::run(args),
        Command::Render(args) => render::run(args).map(|()| Ended::Done),
        Command::Tokenize(args) => tokenize::run(args).map(|()| Ended::Done),
        Command::Doctor(args) => doctor::run(args),
        Command::Watch(args) => watch::run(args),
        Command::Confine => return ExitCode::from(crate::evaluate::verifier::keeper::main()),
    };
    match result {
        Ok(Ended::Done) => ExitCode::SUCCESS,
        Ok(Ended::WithoutServer) => ExitCode::from(3),
        Ok(Ended::WithProblems) => ExitCode::FAILURE,
        Ok(Ended::With(code)) => ExitCode::from(code),
        Err(error) => failed(&error),
    }
}

/// Tells an error as a user reads it, with the next step.
fn failed(error: &Error) -> ExitCode {
    eprintln!("error: {error}");
    if let Some(hint) = error.hint() {
        eprintln!("  next: {hint}");
    }
    ExitCode::from(error.exit_code() as u8)
}

/// `retune loss ... | head` ends quietly, as other tools do; a file that grows beyond a limit (`ulimit -f`) is an error that
/// cleans up behind itself, not a death on the spot.
fn set_signals() {
    // SAFETY: sets the disposition of two signals before any thread is started.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Set by the first Ctrl-C, or a polite kill.
static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(signal: libc::c_int) {
    STOP.store(true, Ordering::SeqCst);
    // SAFETY: signal() is async-signal-safe and restores the default for the next Ctrl-C.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// From here on the first Ctrl-C asks to stop in good order; the second one ends the process as usual.
fn stop_on_interrupt() -> &'static AtomicBool {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to an atomic and calls signal().
        unsafe { libc::signal(signal, on_interrupt as *const () as libc::sighandler_t) };
    }
    &STOP
}

/// Prints a value as one line of JSON on stdout.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let line = serde_json::to_string(value)
        .map_err(|e| Error::data(format!("the result cannot be written as JSON: {e}"), "report this"))?;
    say!("{line}")
}

/// Writes a line to stdout.
fn print_line(line: std::fmt::Arguments) -> Result<()> {
    use std::io::Write as _;
    writeln!(std::io::stdout().lock(), "{line}").map_err(Error::io("write", "standard output"))
}
