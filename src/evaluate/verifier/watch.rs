//! What the processes of an item use together, which no limit of a single process holds.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::{Limits, Reason};

/// A folder is counted so far; with more files in it, it is over any limit.
const MAX_FILES: usize = 200_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Processes and their threads.
    pub processes: u64,
    /// Their own memory and what they share by memory; pages of files, which go when memory is short, do not count.
    pub memory_bytes: u64,
}

impl Use {
    /// The limit that is passed, where one is.
    pub fn beyond(self, limits: &Limits) -> Option<Reason> {
        match () {
            () if self.memory_bytes > limits.memory_bytes => Some(Reason::Memory),
            () if self.processes > limits.processes => Some(Reason::Processes),
            () => None,
        }
    }
}

/// What these processes use; one that ended meanwhile uses nothing.
pub fn used_by(pids: &[libc::pid_t]) -> Use {
    let mut sum = Use::default();
    for pid in pids {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let number = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        sum.processes += number("Threads:");
        sum.memory_bytes += 1024 * (number("RssAnon:") + number("RssShmem:"));
    }
    sum
}

/// All processes that /proc shows.
pub fn pids() -> Vec<libc::pid_t> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The children of a process, and theirs.
pub fn descendants(of: libc::pid_t) -> Vec<libc::pid_t> {
    let mut children = HashMap::<libc::pid_t, Vec<libc::pid_t>>::new();
    for pid in pids() {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut next) = (Vec::new(), vec![of]);
    while let Some(pid) = next.pop() {
        let below = children.remove(&pid).unwrap_or_default();
        next.extend(&below);
        found.extend(below);
    }
    found
}

fn parent(pid: libc::pid_t) -> Option<libc::pid_t> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // `pid (name) state parent`: the name may hold anything, also `)`.
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// How many processes and threads a user has.
pub fn processes_of_user(user: libc::uid_t) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let own = |pid: &libc::pid_t| fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid() == user);
    used_by(&pids().into_iter().filter(own).collect::<Vec<_>>()).processes
}

/// The bytes that a folder takes on the disk.
pub fn folder_bytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let (mut bytes, mut seen, mut next) = (0, 0, vec![folder.to_owned()]);
    while let Some(folder) = next.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            seen += 1;
            if seen > MAX_FILES {
                return u64::MAX;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                next.push(entry.path());
            }
        }
    }
    bytes
}
