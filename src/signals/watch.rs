//! `retune watch -- CMD`: runs a command as if retune were not there, and reads what it prints.
//!
//! Its output goes through pipes, so that stdout and stderr stay apart and a line is printed once: on a terminal many tools go
//! back and write over what they said, and a test would be counted as often as it was drawn. Colours are therefore those that the
//! tool gives a pipe (`--color=always` and its like bring them back, and are read as well).

mod ear;
mod passing;

use std::ffi::OsString;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use self::ear::Ear;
use super::{Kind, Observed, combine, counted, listen};
use crate::domain::RunResult;
use crate::error::{Error, Result};

/// What the exit code of a command means whose output says nothing that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    Compile,
    Tests,
    Lint,
    Types,
}

/// A command that ended.
#[derive(Debug, Serialize)]
pub struct Watched {
    /// Its exit code; 128 + n where signal n ended it, as shells have it.
    pub exit: u8,
    pub signal: Option<i32>,
    pub seconds: f64,
    #[serde(flatten)]
    pub observed: Observed,
    /// Its standard output ended within a line.
    #[serde(skip)]
    pub open_line: bool,
}

/// How it ended, for the verdict.
#[derive(Clone, Copy)]
struct End {
    exit: u8,
    signal: Option<i32>,
    /// It was asked to stop.
    interrupted: bool,
    /// Nobody took its output any more.
    unread: bool,
}

impl End {
    fn why_stopped(&self) -> Option<String> {
        match *self {
            Self { interrupted: true, .. } => Some("it was interrupted".to_owned()),
            Self { unread: true, .. } => Some("its output was not read to the end".to_owned()),
            Self { signal: Some(signal), .. } => Some(format!("signal {signal} ended it")),
            _ => None,
        }
    }
}

/// Runs a command to its end. Its standard input is ours, Ctrl-C reaches it as it would without us, and other signals are handed
/// on. `reports` reads what it wrote to files, and is asked where it came to its own end. An error is only that it could not be
/// started.
pub fn run(command: &[OsString], meaning: Option<Meaning>, reports: impl FnOnce() -> Observed) -> Result<Watched> {
    let Some((program, args)) = command.split_first() else {
        return Err(Error::usage("there is no command to watch", "retune watch -- cargo test"));
    };
    let began = Instant::now();
    let guard = passing::Guard::set();
    let mut child = Command::new(program);
    child.args(args).stdin(Stdio::inherit()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: only calls signal(), which is async-signal-safe, between fork and exec.
    unsafe { child.pre_exec(passing::restore_for_child) };
    let mut child = child.spawn().map_err(Error::io("start", Path::new(program)))?;
    guard.started(child.id());
    let ears = [Ear::listen(child.stdout.take(), "stdout"), Ear::listen(child.stderr.take(), "stderr")];
    let status = child.wait().map_err(Error::io("wait for", Path::new(program)))?;
    guard.ended();
    wait_for_output(&ears);
    let end = End {
        exit: exit_code(status),
        signal: status.signal(),
        interrupted: guard.interrupted(),
        unread: ears.iter().any(|ear| ear.is_unread()),
    };
    let open_line = ears[0].has_open_line();
    let shown = command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let observed = verdict(ears.iter().map(Ear::heard).collect(), end, meaning, &shown, reports);
    Ok(Watched { exit: end.exit, signal: end.signal, seconds: began.elapsed().as_secs_f64(), observed, open_line })
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// After the command's end its output may still be held by what it started, as in `cmd | cat`.
fn wait_for_output(ears: &[Ear]) {
    let began = Instant::now();
    let mut told = false;
    while !ears.iter().all(Ear::is_done) && !passing::stop_waiting() {
        std::thread::sleep(Duration::from_millis(2));
        if !told && began.elapsed() > Duration::from_secs(2) {
            eprintln!(
                "retune: the command ended, and something that it started still holds its output; Ctrl-C stops waiting for it"
            );
            told = true;
        }
    }
}

/// What one stream said.
pub struct Said {
    pub heard: Vec<listen::Heard>,
    /// Commands that a package manager announced.
    pub announced: Vec<String>,
    pub notes: Vec<String>,
}

/// A report is better than the text of the same command, and both better than its exit code.
fn verdict(said: Vec<Said>, end: End, meaning: Option<Meaning>, command: &str, reports: impl FnOnce() -> Observed) -> Observed {
    let (mut parts, mut kinds, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    let mut commands = vec![command.to_owned()];
    for Said { heard, announced, notes: more } in said {
        commands.extend(announced);
        notes.extend(more);
        for part in heard {
            match part.cut {
                Some(cut) => notes.push(format!("{} {cut}: nothing of it is counted", part.kind.what())),
                None => {
                    kinds.push(part.kind);
                    parts.push(part.observed);
                }
            }
        }
    }
    if let Some(why) = end.why_stopped() {
        notes.push(format!("{why}, so nothing is claimed"));
        return Observed { notes, ..Observed::default() };
    }
    if end.exit == 0 {
        let quiet = commands.iter().flat_map(|command| quiet_tools(command)).filter(|kind| !kinds.contains(kind));
        let mut quiet: Vec<Kind> =
            quiet.filter(|kind| !(*kind == Kind::EslintText && kinds.contains(&Kind::EslintJson))).collect();
        quiet.dedup();
        parts.extend(
            quiet.into_iter().map(|kind| listen::clean(kind, "a tool that says nothing where all is well, and exit code 0")),
        );
    }
    let mut observed = reports().or(combine(parts));
    let bad = is_bad(&observed.result);
    if end.exit != 0 && !observed.is_empty() && !bad {
        notes.push(format!("it failed (exit code {}), though nothing that was read did", end.exit));
    }
    if end.exit == 0 && bad {
        notes.push("it ended well (exit code 0), though something that was read did not".to_owned());
    }
    if let Some(meaning) = meaning {
        let (said, note) = by_exit_code(meaning, end.exit);
        notes.extend(note);
        observed = observed.or(said);
    } else if observed.is_empty() && kinds.is_empty() {
        notes.push("nothing that it printed is known, so nothing is claimed of it; --as compile|tests|lint|types says what its exit code means".into());
    }
    observed.notes.extend(notes);
    observed
}

fn is_bad(result: &RunResult) -> bool {
    let errors = [result.lint_errors, result.type_errors, result.schema_errors, result.boundary_errors];
    result.compile_pass == Some(false) || result.tests_passed < result.tests_total || errors.iter().flatten().any(|n| *n > 0)
}

fn by_exit_code(meaning: Meaning, exit: u8) -> (Observed, Option<String>) {
    if matches!(exit, 126 | 127) {
        return (
            Observed::default(),
            Some(format!("exit code {exit} says that a command was not found or could not be run, not how it went")),
        );
    }
    let (passed, failed) = (u64::from(exit == 0), u64::from(exit != 0));
    let result = match meaning {
        Meaning::Compile => RunResult { compile_pass: Some(exit == 0), ..RunResult::default() },
        Meaning::Tests => RunResult { tests_passed: Some(passed), tests_total: Some(1), ..RunResult::default() },
        Meaning::Lint => RunResult { lint_errors: Some(failed), ..RunResult::default() },
        Meaning::Types => RunResult { type_errors: Some(failed), ..RunResult::default() },
    };
    let one = match meaning {
        Meaning::Compile => None,
        Meaning::Tests => Some("the whole command counts as one test"),
        Meaning::Lint | Meaning::Types => (exit != 0).then_some("its exit code counts as one error; there may be more"),
    };
    (Observed::new(result, &format!("exit code {exit}"), Vec::new()), one.map(str::to_owned))
}

/// tsc and ESLint print nothing where they find nothing. Left at that, only their failures would be recorded.
fn quiet_tools(command: &str) -> Vec<Kind> {
    // With these the exit code may be another command's.
    if command.contains(';') || command.contains('|') {
        return Vec::new();
    }
    command.split("&&").filter_map(quiet_tool).collect()
}

fn quiet_tool(command: &str) -> Option<Kind> {
    let base = |word: &str| word.rsplit('/').next().unwrap_or(word).to_owned();
    let words: Vec<&str> = command.split_whitespace().collect();
    let asks = |word: &&str| matches!(*word, "-v" | "--version" | "-h" | "--help" | "--init" | "--print-config");
    if words.iter().any(asks) {
        return None;
    }
    let runs_others =
        |word: &str| matches!(word, "npx" | "bunx" | "npm" | "pnpm" | "yarn" | "bun" | "exec" | "dlx" | "x" | "node");
    let tool = words.iter().map(|word| base(word)).find(|word| !word.starts_with('-') && !runs_others(word))?;
    match tool.as_str() {
        "tsc" | "vue-tsc" => Some(Kind::Tsc),
        "eslint" => Some(Kind::EslintText),
        _ => None,
    }
}

impl Observed {
    /// One line of what was seen: "12 of 13 tests passed, 2 lint errors".
    pub fn summary(&self) -> String {
        let result = &self.result;
        let errors = |n: Option<u64>, of: &str| n.map(|n| counted(n, &format!("{of} error")));
        let tests = result
            .tests_passed
            .zip(result.tests_total)
            .map(|(passed, all)| format!("{passed} of {} passed", counted(all, "test")));
        let said = [
            result.compile_pass.map(|passed| if passed { "compiled" } else { "did not compile" }.to_owned()),
            tests,
            errors(result.type_errors, "type"),
            errors(result.lint_errors, "lint"),
            errors(result.schema_errors, "schema"),
            errors(result.boundary_errors, "boundary"),
            result.coverage_pct.map(|percent| format!("{percent:.1}% of lines covered")),
        ];
        let said: Vec<String> = said.into_iter().flatten().collect();
        if said.is_empty() { "nothing was seen".to_owned() } else { said.join(", ") }
    }
}

#[cfg(test)]
mod tests;
