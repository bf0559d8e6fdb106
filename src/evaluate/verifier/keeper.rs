//! `retune __confine`: the process that starts a verifier's command for one item, watches it and ends it.
//!
//! It has one thread, reads the plan from its standard input, which stays open as long as retune wants the item, and tells the
//! end of it on its standard output.

use std::fs;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use super::namespaces;
use super::plan::{Ended, Plan, Report, TAIL_BYTES};
use super::{Confinement, Limits, Reason, sys, watch};

/// How often it looks at what is used.
pub const GLANCE: Duration = Duration::from_millis(50);
/// Walking a folder costs more.
const GLANCE_AT_DISK: Duration = Duration::from_millis(250);
/// Rounds of ending what is left; each takes a few milliseconds.
const MAX_ROUNDS: usize = 1000;
/// A plan holds one item.
const MAX_PLAN_BYTES: u64 = 1 << 30;

/// The hidden command. Gives the process's exit code.
pub fn main() -> u8 {
    // Ctrl-C goes to the terminal's session: the keeper is not to die of it, but to clear away first. The command stays in
    // the keeper's session: Linux shares the processors out by session (autogroup), and from another one than the busy
    // item's the watch was seen to come 40 s late.
    sys::new_session();
    sys::close_from(3);
    let report = match read_plan() {
        Ok(plan) => keep(&plan),
        Err(error) => Report { ended: refused("reading the plan", &error), output: String::new() },
    };
    let line = serde_json::to_string(&report).unwrap_or_default();
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

/// For a step that could not be done.
pub fn refused(step: impl Into<String>, error: &io::Error) -> Ended {
    Ended::Refused { step: step.into(), error: error.to_string() }
}

fn read_plan() -> io::Result<Plan> {
    let mut line = String::new();
    io::stdin().lock().take(MAX_PLAN_BYTES).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// What was started: its first process, and what is to be cleared away behind it.
struct Started {
    pid: libc::pid_t,
    /// Where a confined one tells how it ended.
    status: Option<OwnedFd>,
    /// The scratch folder on the disk, without namespaces.
    folder: Option<Folder>,
}

fn keep(plan: &Plan) -> Report {
    let until = Instant::now() + plan.limits.wall();
    let mut tail = Tail::default();
    let run = || -> Result<(Started, OwnedFd), Ended> {
        let (output, theirs) = sys::pipe().map_err(|e| refused("a pipe", &e))?;
        let started = match plan.confinement {
            Confinement::Namespaces => start_confined(plan, theirs.as_raw_fd())?,
            Confinement::Limits => start_limited(plan, theirs.as_raw_fd())?,
        };
        Ok((started, output))
    };
    let (mut started, output) = match run() {
        Ok(started) => started,
        Err(ended) => return Report { ended, output: String::new() },
    };
    let ended = watch_over(plan, &started, output.as_raw_fd(), until, &mut tail);
    let ended = ended.unwrap_or_else(|error| refused("waiting for the command", &error));
    let ended = clear_away(&mut started, ended);
    // What was printed last is still in the pipe; nobody writes any more.
    if sys::set_nonblocking(output.as_raw_fd()).is_ok() {
        while matches!(tail.read(output.as_raw_fd()), Ok(n) if n > 0 && tail.seen < plan.limits.output_bytes) {}
    }
    drop(started.folder.take());
    Report { ended, output: tail.text() }
}

#[cfg(target_os = "linux")]
fn start_confined(plan: &Plan, output: RawFd) -> Result<Started, Ended> {
    let (pid, status) = namespaces::start(plan, output)?;
    Ok(Started { pid, status: Some(status), folder: None })
}

#[cfg(not(target_os = "linux"))]
fn start_confined(_: &Plan, _: RawFd) -> Result<Started, Ended> {
    Err(Ended::Refused { step: "namespaces".into(), error: "only Linux has them".into() })
}

/// Waits for the end, for a limit, or for retune to go. The command's exit is `Ended::Exit`, here also that of the namespaces'
/// first process, which says more in its status.
fn watch_over(plan: &Plan, started: &Started, output: RawFd, until: Instant, tail: &mut Tail) -> io::Result<Ended> {
    let (mut printing, mut disk_at) = (output, Instant::now());
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Without a writer left the end is a moment away; a daemon may hold the pipe beyond it.
        let glance = if printing < 0 { Duration::from_millis(2) } else { GLANCE };
        let [gone, printed] = sys::wait_any([0, printing], glance.min(left))?;
        if gone {
            return Ok(Ended::Stopped);
        }
        if printed && tail.read(printing)? == 0 {
            printing = -1;
        }
        match sys::reap(started.pid) {
            Some((_, sys::Status::Exit(code))) => return Ok(Ended::Exit(code)),
            Some((_, sys::Status::Signal(signal))) => return Ok(Ended::Signal(signal)),
            None => {}
        }
        if tail.seen > plan.limits.output_bytes {
            return Ok(Ended::Limit(Reason::Output));
        }
        if left.is_zero() {
            return Ok(Ended::Limit(Reason::Time));
        }
        // Within namespaces their first process looks at what is used, and the disk has its size.
        let Some(folder) = &started.folder else { continue };
        if let Some(reason) = watch::used_by(&watch::descendants(own_pid())).beyond(&plan.limits) {
            return Ok(Ended::Limit(reason));
        }
        if disk_at.elapsed() > GLANCE_AT_DISK {
            disk_at = Instant::now();
            if watch::folder_bytes(&folder.0) > plan.limits.disk_bytes {
                return Ok(Ended::Limit(Reason::Disk));
            }
        }
    }
}

/// Ends all that is left, and gives how it ended.
fn clear_away(started: &mut Started, ended: Ended) -> Ended {
    let by_itself = matches!(ended, Ended::Exit(_) | Ended::Signal(_));
    let Some(status) = started.status.take() else {
        end_descendants(started.pid);
        return ended;
    };
    if !by_itself {
        // The first process of a pid namespace takes all others with it: they are gone when it can be waited for.
        sys::kill(started.pid, libc::SIGKILL);
        sys::wait_for(started.pid);
        return ended;
    }
    let mut said = String::new();
    let read = fs::File::from(status).read_to_string(&mut said);
    match read.ok().and_then(|_| serde_json::from_str(&said).ok()) {
        Some(ended) => ended,
        None => Ended::Refused {
            step: "the first process of the namespaces".into(),
            error: format!("it ended without a word: {ended:?}"),
        },
    }
}

/// Ends what `start_limited` started: daemons as well, as orphans become children of this process.
fn end_descendants(first: libc::pid_t) {
    for round in 0..MAX_ROUNDS {
        let left = watch::descendants(own_pid());
        // Stopped first, a fork bomb grows no more while it is killed.
        let stop = (round == 0).then_some(libc::SIGSTOP);
        for signal in stop.into_iter().chain([libc::SIGKILL]) {
            // Its group, for systems without /proc.
            if round == 0 {
                sys::kill(-first, signal);
            }
            left.iter().for_each(|&pid| sys::kill(pid, signal));
        }
        while sys::reap(-1).is_some() {}
        if left.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

fn own_pid() -> libc::pid_t {
    std::process::id() as libc::pid_t
}

/// The end of what is printed.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    seen: u64,
}

impl Tail {
    /// 0: nothing comes any more.
    fn read(&mut self, from: RawFd) -> io::Result<usize> {
        let mut buffer = [0; 65536];
        // SAFETY: the file stays open and is not closed here, as it is never dropped.
        let mut file = std::mem::ManuallyDrop::new(unsafe { fs::File::from_raw_fd(from) });
        let read = file.read(&mut buffer)?;
        self.seen += read as u64;
        self.bytes.extend_from_slice(&buffer[..read]);
        let surplus = self.bytes.len().saturating_sub(TAIL_BYTES);
        self.bytes.drain(..surplus);
        Ok(read)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// The command without namespaces: a process group of its own, limits, a clean environment and a home in the scratch folder.
fn start_limited(plan: &Plan, output: RawFd) -> Result<Started, Ended> {
    let folder = Folder::new().map_err(|e| refused("a folder for temporary files", &e))?;
    let (item, home, tmp) = (folder.0.join("item"), folder.0.join("home"), folder.0.join("tmp"));
    [&item, &home, &tmp].into_iter().try_for_each(fs::create_dir).map_err(|e| refused("the scratch folder", &e))?;
    write_scratch(plan, &item).map_err(|e| refused("the scratch folder's files", &e))?;
    #[cfg(target_os = "linux")]
    sys::linux::adopt_orphans().map_err(|e| refused("taking care of orphans", &e))?;
    // The limit counts all that the user runs, not this item alone. For root there is none: it is watched only.
    let others = watch::processes_of_user(sys::ids().0);
    let pid = sys::fork(|| {
        #[cfg(target_os = "linux")]
        let _ = sys::linux::die_with_parent().and_then(|()| sys::linux::no_new_privileges());
        become_command(plan, output, &item, &home, &tmp, others)
    });
    Ok(Started { pid: pid.map_err(|e| refused("starting a process", &e))?, status: None, folder: Some(folder) })
}

/// Fills the scratch folder.
pub fn write_scratch(plan: &Plan, folder: &Path) -> io::Result<()> {
    for file in &plan.files {
        let path = folder.join(&file.name);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, &file.text)?;
    }
    for name in &plan.view.project_entries {
        // The item's own files go first.
        match std::os::unix::fs::symlink(plan.view.project.join(name), folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The last step of the child: becomes the command. `others`: processes that the limit of processes counts as well. Gives an
/// exit code where it cannot.
pub fn become_command(plan: &Plan, output: RawFd, item: &Path, home: &Path, tmp: &Path, others: u64) -> i32 {
    // What it sends to its group goes to itself, not to the keeper.
    sys::new_group();
    let go = || -> io::Result<io::Error> {
        std::env::set_current_dir(item)?;
        let nothing = fs::File::open("/dev/null")?;
        sys::duplicate(nothing.as_raw_fd(), 0)?;
        sys::duplicate(output, 1)?;
        sys::duplicate(output, 2)?;
        // Where memory is short, this is what the kernel may take first.
        let _ = fs::write("/proc/self/oom_score_adj", "1000");
        set_limits(&plan.limits, others)?;
        sys::umask(0o022);
        sys::close_from(3);
        std::mem::forget(nothing);
        sys::default_signals();
        let mut environment = plan.view.environment.clone();
        for (name, path) in [("HOME", home), ("TMPDIR", tmp)] {
            environment.push((name.to_owned(), path.to_string_lossy().into_owned()));
        }
        Ok(sys::exec("/bin/sh", &["sh", "-c", &plan.command], &environment))
    };
    let error = go().unwrap_or_else(|error| error);
    let _ = writeln!(io::stderr(), "retune: cannot start sh: {error}");
    127
}

fn set_limits(limits: &Limits, others: u64) -> io::Result<()> {
    let one = |what: libc::c_int, value: u64| sys::limit(what, value, value);
    // A second more until the kernel kills what does not listen to SIGXCPU.
    sys::limit(libc::RLIMIT_CPU as _, limits.cpu_secs, limits.cpu_secs.saturating_add(1))?;
    // Private memory that can be written to; an address space is reserved in gigabytes by some (Go, Java, node).
    one(libc::RLIMIT_DATA as _, limits.memory_bytes.saturating_add(limits.memory_bytes / 4))?;
    one(libc::RLIMIT_FSIZE as _, limits.disk_bytes)?;
    one(libc::RLIMIT_CORE as _, 0)?;
    one(libc::RLIMIT_NOFILE as _, 1024)?;
    one(libc::RLIMIT_NPROC as _, limits.processes.saturating_add(others))
}

/// A scratch folder on the disk; gone when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        // The keeper has an empty environment: this is /tmp.
        sys::temporary_folder(&std::env::temp_dir()).map(Self)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if fs::remove_dir_all(&self.0).is_err() {
            // Folders whose rights were taken away.
            allow(&self.0, 0);
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

fn allow(folder: &Path, depth: usize) {
    use std::os::unix::fs::PermissionsExt as _;
    let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if depth < 64 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            allow(&entry.path(), depth + 1);
        }
    }
}
