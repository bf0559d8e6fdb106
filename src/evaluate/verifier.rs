//! The user's own judge: a command that says of one answer whether it is right, confined while it says so.
//!
//! The command runs once an item under a keeper, which is this binary again (`retune __confine`): a process of many threads
//! may not fork and then do much, a fresh one may. The keeper holds what it started by namespaces ([`Confinement`]), and
//! nothing of that outlives the item. `docs/verifier.md` is the user's page.

mod call;
pub mod keeper;
#[cfg(target_os = "linux")]
mod namespaces;
mod plan;
mod sys;
mod view;
mod watch;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use plan::Ended;

/// What a verifier's exit code says of itself, as in `git bisect`: this item cannot be judged.
const CANNOT_JUDGE: i32 = 125;
/// From so many items on, a verifier that says the same of all of them is looked at twice.
const SUSPICIOUS_ITEMS: usize = 3;
/// A year has 31 million seconds; clocks take that much.
const LONG: Duration = Duration::from_secs(31_000_000);

/// What an item may use. Whatever is beyond ends it, and it counts as not verified.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Seconds by the clock for the whole item.
    pub wall_secs: f64,
    /// Seconds of computing, each process by itself.
    pub cpu_secs: u64,
    /// Memory of all its processes together; one alone gets no more than a quarter above it, whatever its haste.
    pub memory_bytes: u64,
    /// Processes and threads at one time.
    pub processes: u64,
    /// All that it writes into its scratch folder, its home and `/tmp`, together.
    pub disk_bytes: u64,
    /// What it prints.
    pub output_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wall_secs: 60.0,
            cpu_secs: 60,
            memory_bytes: 2 << 30,
            processes: 128,
            disk_bytes: 512 << 20,
            output_bytes: 16 << 20,
        }
    }
}

impl Limits {
    /// A number that is no time is a long one.
    fn wall(&self) -> Duration {
        Duration::try_from_secs_f64(self.wall_secs).unwrap_or(LONG).min(LONG)
    }
}

/// How a verifier is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confinement {
    /// Linux namespaces: own files, processes and network. It sees system folders, toolchains and the project, all read-only.
    #[default]
    Namespaces,
    /// Limits, a clean environment and the end of what it started; no promise about files and network.
    Limits,
}

/// A user's command and all that it may do. The fields of [`Verifier::new`]'s result may be changed.
#[derive(Clone, Debug)]
pub struct Verifier {
    /// Run by `sh -c`.
    pub command: String,
    pub limits: Limits,
    pub confinement: Confinement,
    /// Visible read-only at its own path; the scratch folder has links to what lies in it.
    pub project: PathBuf,
    /// More folders and files to be visible, read-only.
    pub see: Vec<PathBuf>,
    /// Names of environment variables to let through, besides the usual ones.
    pub pass: Vec<String>,
    /// The environment that PATH, HOME and what is let through come from.
    pub environment: Vec<(String, String)>,
    /// This program, which is started again as the keeper.
    pub retune: PathBuf,
}

/// One answer to judge.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VerifierItem {
    /// What the model said: `answer.txt`.
    pub answer: String,
    /// The row as the user's data file has it: `item.json`, and its texts one by one in `fields/`.
    pub row: serde_json::Value,
    /// The right answer, where the row has one: `expected.txt`.
    pub expected: Option<String>,
}

/// What a verifier says of an answer. `output`: the end of what it printed.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Pass {
        output: String,
    },
    Fail {
        reason: Reason,
        output: String,
    },
    /// The verifier itself does not work: this says nothing of the answer.
    Broken {
        why: String,
        output: String,
    },
}

/// Why an answer is not verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The command's exit code, not 0.
    Exit(i32),
    Signal(i32),
    Time,
    Cpu,
    Memory,
    Processes,
    Disk,
    Output,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "it ended with exit code {code}"),
            Self::Signal(signal) => write!(f, "it was ended by signal {signal}"),
            Self::Time => f.write_str("it ran longer than an item may"),
            Self::Cpu => f.write_str("it computed longer than an item may"),
            Self::Memory => f.write_str("it used more memory than an item may"),
            Self::Processes => f.write_str("it started more processes than an item may"),
            Self::Disk => f.write_str("it wrote more than an item may"),
            Self::Output => f.write_str("it printed more than an item may"),
        }
    }
}

impl Outcome {
    pub fn passed(&self) -> bool {
        matches!(self, Self::Pass { .. })
    }

    /// The end of what the verifier printed, 4 KiB at most.
    pub fn output(&self) -> &str {
        match self {
            Self::Pass { output } | Self::Fail { output, .. } | Self::Broken { output, .. } => output,
        }
    }

    fn broken(why: impl Into<String>, output: impl Into<String>) -> Self {
        Self::Broken { why: why.into(), output: output.into() }
    }

    fn of(ended: Ended, output: String) -> Self {
        let reason = match ended {
            Ended::Exit(0) => return Self::Pass { output },
            Ended::Exit(126) => {
                return Self::broken("the command cannot be run (exit code 126: no permission, or no program)", output);
            }
            Ended::Exit(127) => return Self::broken("the command, or what it calls, is not found (exit code 127)", output),
            Ended::Exit(CANNOT_JUDGE) => {
                return Self::broken("the verifier says that it cannot judge this item (exit code 125)", output);
            }
            Ended::Refused { step, error } => {
                return Self::broken(format!("the verifier could not be confined: {step}: {error}"), output);
            }
            Ended::Stopped => return Self::broken("stopped before it had an end", output),
            // A shell says so that a signal ended what it ran.
            Ended::Exit(code) if (129..=128 + 64).contains(&code) => of_signal(code - 128),
            Ended::Exit(code) => Reason::Exit(code),
            Ended::Signal(signal) => of_signal(signal),
            Ended::Limit(reason) => reason,
        };
        Self::Fail { reason, output }
    }
}

fn of_signal(signal: i32) -> Reason {
    match signal {
        libc::SIGXCPU => Reason::Cpu,
        libc::SIGXFSZ => Reason::Disk,
        _ => Reason::Signal(signal),
    }
}

impl Verifier {
    /// A verifier with the usual limits, for the current folder and environment.
    ///
    /// # Errors
    /// The current folder, or the path of this program, cannot be told.
    pub fn new(command: impl Into<String>) -> Result<Self> {
        Ok(Self {
            command: command.into(),
            limits: Limits::default(),
            confinement: Confinement::default(),
            project: std::env::current_dir().map_err(Error::io("find", "the current folder"))?,
            see: Vec::new(),
            pass: Vec::new(),
            // What is not UTF-8 is not among the variables that a verifier gets.
            environment: std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect(),
            retune: std::env::current_exe().map_err(Error::io("find", "this program's own file"))?,
        })
    }

    /// Whether this system can hold a verifier as asked: runs a command that does nothing.
    ///
    /// # Errors
    /// The project is no folder that may be seen; the confinement is not to be had here, with what to do about it.
    pub fn probe(&self) -> Result<()> {
        let probe = Self { command: "exit 0".into(), limits: Limits::default(), ..self.clone() };
        let call = call::Call::new(&probe)?;
        let (ended, _) = call.run(&VerifierItem::default(), None);
        match ended {
            Ended::Exit(0) => Ok(()),
            Ended::Refused { step, error } => Err(refusal(self.confinement, &step, &error)),
            other => Err(refusal(self.confinement, "an empty command", &format!("{other:?}"))),
        }
    }

    /// Judges one answer. What keeps the verifier from being run at all is [`Outcome::Broken`], too.
    pub fn check(&self, item: &VerifierItem) -> Outcome {
        match call::Call::new(self) {
            Ok(call) => {
                let (ended, output) = call.run(item, None);
                Outcome::of(ended, output)
            }
            Err(error) => Outcome::broken(error.to_string(), error.hint().unwrap_or_default()),
        }
    }

    /// Judges all items, `jobs` at a time (0: as many as this machine has cores); the outcomes are in the order of the items.
    /// `progress` hears how many are done. Where all fail and say the same, the verifier is looked at twice: see
    /// [`Outcome::Broken`].
    ///
    /// # Errors
    /// As [`Verifier::probe`]; `stop` was set: everything is killed, nothing is kept.
    pub fn check_all(
        &self,
        items: &[VerifierItem],
        jobs: usize,
        progress: &(dyn Fn(usize) + Sync),
        stop: &AtomicBool,
    ) -> Result<Vec<Outcome>> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        self.probe()?;
        let call = call::Call::new(self)?;
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let jobs = if jobs == 0 { cores() } else { jobs }.min(items.len());
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let outcomes: Vec<Mutex<Option<Outcome>>> = items.iter().map(|_| Mutex::new(None)).collect();
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(item) = items.get(i) else { return };
                        let (ended, output) = call.run(item, Some(stop));
                        *outcomes[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(Outcome::of(ended, output));
                        progress(done.fetch_add(1, Ordering::Relaxed) + 1);
                    }
                });
            }
        });
        let interrupted = || Error::Interrupted { message: "the verifier was stopped, its outcomes are not kept".into() };
        if stop.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        let outcomes: Vec<Outcome> =
            outcomes.into_iter().filter_map(|o| o.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
        debug_assert_eq!(outcomes.len(), items.len());
        let doubt = doubt(&call, items, &outcomes, stop);
        if stop.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        Ok(match doubt {
            Some(why) => outcomes.iter().map(|o| Outcome::broken(&*why, o.output())).collect(),
            None => outcomes,
        })
    }
}

/// Why these outcomes are those of a broken verifier, not of bad answers; `None` where they are not.
///
/// A script that misses a module, or may not read a file, fails on every item alike; so may an honest one on a base that knows
/// nothing of the task. What tells them apart is whether it lets the right answers pass, where the items have some.
fn doubt(call: &call::Call, items: &[VerifierItem], outcomes: &[Outcome], stop: &AtomicBool) -> Option<String> {
    let Outcome::Fail { reason: Reason::Exit(code), output } = outcomes.first()? else { return None };
    let alike =
        outcomes.iter().all(|o| matches!(o, Outcome::Fail { reason: Reason::Exit(c), output: p } if c == code && p == output));
    let answers: BTreeSet<&str> = items.iter().map(|item| item.answer.as_str()).collect();
    if !alike || items.len() < SUSPICIOUS_ITEMS || answers.len() < 2 {
        return None;
    }
    let said = match output.trim() {
        "" => format!("exit code {code} and no word"),
        text => format!("exit code {code} and \"{}\"", text.lines().last().unwrap_or_default()),
    };
    let mut right =
        items.iter().filter_map(|item| Some(VerifierItem { answer: item.expected.clone()?, ..item.clone() })).take(3).peekable();
    if right.peek().is_some() {
        let none_passes = right.all(|item| !matches!(call.run(&item, Some(stop)).0, Ended::Exit(0)));
        return none_passes.then(|| {
            format!("the verifier says the same of all {} answers, and of the expected ones as well: {said}", items.len())
        });
    }
    is_own_trouble(output).then(|| format!("the verifier says the same of all {} answers: {said}", items.len()))
}

/// What interpreters and the system say where something is missing, which no answer is to blame for.
fn is_own_trouble(output: &str) -> bool {
    const WORDS: [&str; 10] = [
        "No such file or directory",
        "Permission denied",
        "Read-only file system",
        "Network is unreachable",
        "Temporary failure in name resolution",
        "not found",
        "can't open file",
        "ModuleNotFoundError",
        "Cannot find module",
        "cannot load such file",
    ];
    WORDS.iter().any(|word| output.contains(word))
}

fn refusal(confinement: Confinement, step: &str, error: &str) -> Error {
    match confinement {
        Confinement::Namespaces => Error::unsupported(
            format!("this system does not let a verifier be confined by namespaces: {step}: {error}"),
            "allow user namespaces (Ubuntu: `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`; Docker: \
             `--security-opt seccomp=unconfined --security-opt systempaths=unconfined`; Linux 5.12 or later), or accept weaker \
             holding, with the network and your files open to what the model wrote: --verifier-confinement limits",
        ),
        Confinement::Limits => Error::unsupported(
            format!("the verifier could not be started: {step}: {error}"),
            "check that `sh` is there, and that the folder for temporary files (TMPDIR) can be written to",
        ),
    }
}

#[cfg(test)]
#[path = "verifier/tests.rs"]
mod tests;
