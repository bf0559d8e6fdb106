//! retune's side of an item: starts the keeper, hands it the plan, waits for its report.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::plan::{Ended, Plan, Report, ScratchFile, View};
use super::{Verifier, VerifierItem, sys, view};
use crate::error::Result;

/// How often the flag that stops everything is looked at.
const GLANCE: Duration = Duration::from_millis(50);
/// What the keeper gets beyond the item's own time, to clear away what a machine under load left.
const GRACE: Duration = Duration::from_secs(30);
/// A report is the tail, escaped as JSON.
const MAX_REPORT_BYTES: u64 = 1 << 20;
/// Longer names are no file names on common systems.
const MAX_FIELD_NAME: usize = 100;

/// A verifier with what it sees, looked up once for all items.
pub struct Call<'a> {
    verifier: &'a Verifier,
    view: View,
}

impl<'a> Call<'a> {
    /// # Errors
    /// The project, or a folder to see, is not one that a verifier may see.
    pub fn new(verifier: &'a Verifier) -> Result<Self> {
        Ok(Self { verifier, view: view::of(verifier)? })
    }

    /// Runs the command on one item; `stop` ends it.
    pub fn run(&self, item: &VerifierItem, stop: Option<&AtomicBool>) -> (Ended, String) {
        let plan = Plan {
            command: self.verifier.command.clone(),
            limits: self.verifier.limits.clone(),
            confinement: self.verifier.confinement,
            view: self.view.clone(),
            files: files(item),
        };
        match self.keep(&plan, stop) {
            Ok(report) => (report.ended, report.output),
            Err(error) => {
                let step = format!("starting {} __confine", self.verifier.retune.display());
                (Ended::Refused { step, error: error.to_string() }, String::new())
            }
        }
    }

    fn keep(&self, plan: &Plan, stop: Option<&AtomicBool>) -> std::io::Result<Report> {
        let mut line = serde_json::to_vec(plan)?;
        line.push(b'\n');
        // The keeper ends all when this end closes, also by our death: no other process has it.
        let (ours, theirs) = UnixStream::pair()?;
        let mut keeper = Keeper(
            Command::new(&self.verifier.retune)
                .arg("__confine")
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()?,
        );
        let end = Instant::now() + plan.limits.wall() + GRACE;
        sys::send_all(ours.as_raw_fd(), &line)?;
        let out = keeper.0.stdout.take().ok_or_else(|| std::io::Error::other("the keeper has no output"))?;
        let mut ours = Some(ours);
        while !sys::readable(out.as_raw_fd(), GLANCE)? {
            if Instant::now() > end {
                return Err(std::io::Error::other("it did not end in time"));
            }
            if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                ours = None;
            }
        }
        let mut line = String::new();
        BufReader::new(out.take(MAX_REPORT_BYTES)).read_line(&mut line)?;
        let status = keeper.0.wait()?;
        drop(ours);
        serde_json::from_str(&line).map_err(|_| std::io::Error::other(format!("it gave no report and ended with {status}")))
    }
}

/// Killed when it is dropped, for the ways out by an error.
struct Keeper(Child);

impl Drop for Keeper {
    fn drop(&mut self) {
        // After `wait` both do nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The scratch folder's files.
fn files(item: &VerifierItem) -> Vec<ScratchFile> {
    let file = |name: &str, text: &str| ScratchFile { name: name.to_owned(), text: text.to_owned() };
    let mut files = vec![file("answer.txt", &item.answer), file("item.json", &format!("{}\n", item.row))];
    files.extend(item.expected.as_deref().map(|text| file("expected.txt", text)));
    // A shell reads no JSON: texts also stand by themselves.
    for (name, value) in item.row.as_object().into_iter().flatten() {
        let plain = !name.is_empty()
            && name.len() <= MAX_FIELD_NAME
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if let (true, Some(text)) = (plain, value.as_str()) {
            files.push(file(&format!("fields/{name}"), text));
        }
    }
    files
}
