//! Fault points: places where a kill must lose nothing. Tests enumerate them and kill the process at each.
//!
//! `RETUNE_FAULT_LOG=FILE` appends the name of every point passed; `RETUNE_FAULT_AT=N` kills the process
//! (SIGKILL, no clean-up) when the N-th point is reached, counting from 1. Without these variables a
//! point costs one atomic load.

use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Plan {
    log: Option<std::path::PathBuf>,
    kill_at: Option<u64>,
}

static PLAN: OnceLock<Plan> = OnceLock::new();
static PASSED: AtomicU64 = AtomicU64::new(0);

/// Marks a moment between two effects on the world: a write, a sync, a rename, an HTTP call.
pub fn point(name: &str) {
    let plan = PLAN.get_or_init(|| Plan {
        log: std::env::var_os("RETUNE_FAULT_LOG").map(Into::into),
        kill_at: std::env::var("RETUNE_FAULT_AT").ok().and_then(|n| n.parse().ok()),
    });
    if plan.log.is_none() && plan.kill_at.is_none() {
        return;
    }
    let n = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
    if let Some(path) = &plan.log
        && let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = writeln!(file, "{n} {name}");
    }
    if plan.kill_at == Some(n) {
        // SAFETY: kill and getpid take no pointers; SIGKILL ends this very process.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}
