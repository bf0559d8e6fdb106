//! Signals while a command runs.
//!
//! Ctrl-C goes from the terminal to the command and to retune alike; retune lets it pass, and ends when the command does. What
//! another process sends to retune alone is handed on.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// The command's process; 0 before it is started and after it ended.
static CHILD: AtomicI32 = AtomicI32::new(0);
/// Came before there was a command to hand it to.
static EARLY: AtomicI32 = AtomicI32::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static ENDED: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

const HANDED_ON: [libc::c_int; 6] = [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];

extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    if !matches!(signal, libc::SIGUSR1 | libc::SIGUSR2) {
        INTERRUPTED.store(!ENDED.load(Ordering::SeqCst) || INTERRUPTED.load(Ordering::SeqCst), Ordering::SeqCst);
        STOP.store(ENDED.load(Ordering::SeqCst), Ordering::SeqCst);
    }
    // SAFETY: with SA_SIGINFO the system gives a valid siginfo_t.
    let code = unsafe { (*info).si_code };
    // The terminal sends to the whole group, and so to the command itself.
    if code != libc::SI_USER && code >= 0 {
        return;
    }
    match CHILD.load(Ordering::SeqCst) {
        0 => EARLY.store(signal, Ordering::SeqCst),
        // SAFETY: kill() is async-signal-safe; the number is that of a child that was not waited for yet.
        child => drop(unsafe { libc::kill(child, signal) }),
    }
}

/// The dispositions before, put back when it is dropped.
pub struct Guard {
    before: Vec<(libc::c_int, libc::sigaction)>,
}

impl Guard {
    pub fn set() -> Self {
        for flag in [&INTERRUPTED, &ENDED, &STOP] {
            flag.store(false, Ordering::SeqCst);
        }
        EARLY.store(0, Ordering::SeqCst);
        let mut before = Vec::new();
        for signal in HANDED_ON {
            let old = current(signal);
            // `nohup` and background jobs of scripts ignore some; the command is to ignore them, too.
            if old.sa_sigaction != libc::SIG_IGN {
                before.push((signal, old));
                set(signal, on_signal as *const () as libc::sighandler_t, libc::SA_SIGINFO | libc::SA_RESTART);
            }
        }
        // Who reads our output may be gone before the command: then it is the command that is to hear of it.
        before.push((libc::SIGPIPE, current(libc::SIGPIPE)));
        set(libc::SIGPIPE, libc::SIG_IGN, 0);
        Self { before }
    }

    pub fn started(&self, id: u32) {
        CHILD.store(id as i32, Ordering::SeqCst);
        let early = EARLY.swap(0, Ordering::SeqCst);
        if early != 0 {
            // SAFETY: the child was just started and not waited for.
            unsafe { libc::kill(id as i32, early) };
        }
    }

    pub fn ended(&self) {
        CHILD.store(0, Ordering::SeqCst);
        ENDED.store(true, Ordering::SeqCst);
    }

    pub fn interrupted(&self) -> bool {
        INTERRUPTED.load(Ordering::SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        for (signal, action) in &self.before {
            // SAFETY: puts back what sigaction() gave.
            unsafe { libc::sigaction(*signal, action, std::ptr::null_mut()) };
        }
    }
}

/// A signal came after the command's end.
pub fn stop_waiting() -> bool {
    STOP.load(Ordering::SeqCst)
}

/// In the child, before exec: what retune ignores for itself is not ignored there. Handlers end with exec by themselves.
pub fn restore_for_child() -> io::Result<()> {
    for signal in [libc::SIGPIPE, libc::SIGXFSZ] {
        // SAFETY: signal() is async-signal-safe.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    Ok(())
}

fn current(signal: libc::c_int) -> libc::sigaction {
    // SAFETY: a zeroed sigaction is valid, and is filled by the call.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action);
        action
    }
}

fn set(signal: libc::c_int, handler: libc::sighandler_t, flags: libc::c_int) {
    // SAFETY: the handler only touches atomics and calls kill().
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}
