//! What this machine has left: disk and memory. Container limits count, as a process is killed by them.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes that a user may still write where `path` is, or will be; `None` where the system does not tell.
pub fn free_disk_bytes(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    let there = absolute.ancestors().find(|folder| folder.exists())?;
    let name = CString::new(there.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `name` ends with NUL, `stat` has the size that is written; it is read only after success.
    let stat = unsafe {
        if libc::statvfs(name.as_ptr(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    #[allow(clippy::unnecessary_cast, reason = "the fields have other widths on other systems")]
    Some(stat.f_bavail as u64 * stat.f_frsize as u64)
}

/// Memory that can be had without swapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub available_bytes: usize,
    /// The container's limit, where that is what decides.
    pub container_limit_bytes: Option<usize>,
}

/// `None` where the system does not tell (no /proc).
pub fn memory() -> Option<Memory> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let available_bytes = meminfo_available(&text)?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(within(available_bytes, container(Path::new("/sys/fs/cgroup"), &groups)))
}

fn meminfo_available(text: &str) -> Option<usize> {
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? * 1024)
}

/// Limit and use of a control group, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    limit: usize,
    used: usize,
}

fn within(available_bytes: usize, group: Option<Group>) -> Memory {
    match group {
        Some(Group { limit, used }) if limit.saturating_sub(used) < available_bytes => {
            Memory { available_bytes: limit.saturating_sub(used), container_limit_bytes: Some(limit) }
        }
        _ => Memory { available_bytes, container_limit_bytes: None },
    }
}

/// The tightest limit of the groups that this process is in (kernel docs: admin-guide/cgroup-v2, cgroup-v1/memory).
/// Pages of files count as used there, but go when memory is short: they are taken off.
fn container(root: &Path, groups: &str) -> Option<Group> {
    let mut tightest = None::<Group>;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (folder, files) = match controllers {
            "" => (root.to_owned(), ["memory.max", "memory.current"]),
            c if c.split(',').any(|c| c == "memory") => (root.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes"]),
            _ => continue,
        };
        // Inside a container the path may be one of the host's: then the root is the container's own group.
        let own = folder.join(path.trim_start_matches('/'));
        let mut at = if own.is_dir() { own } else { folder.clone() };
        loop {
            if let Some(group) = read_group(&at, files)
                && tightest.is_none_or(|t| group.limit.saturating_sub(group.used) < t.limit.saturating_sub(t.used))
            {
                tightest = Some(group);
            }
            if at == folder || !at.pop() {
                break;
            }
        }
    }
    tightest
}

fn read_group(folder: &Path, [limit, used]: [&str; 2]) -> Option<Group> {
    let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<usize>().ok();
    let statistics = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let inactive = ["total_inactive_file ", "inactive_file "]
        .iter()
        .find_map(|key| statistics.lines().find_map(|line| line.strip_prefix(key)).and_then(|n| n.trim().parse::<usize>().ok()));
    // `max` is no number: no limit.
    Some(Group { limit: number(limit)?, used: number(used)?.saturating_sub(inactive.unwrap_or(0)) })
}

/// Minutes since midnight, where the user lives.
pub fn local_minute() -> u32 {
    // SAFETY: localtime_r writes only the given struct, which is plain data, and reads the time behind the first pointer.
    let local = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut local: libc::tm = std::mem::zeroed();
        libc::localtime_r(&raw const now, &raw mut local);
        local
    };
    (local.tm_hour * 60 + local.tm_min).clamp(0, 24 * 60 - 1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(folder).unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(folder.join(name), text).unwrap());
    }

    #[test]
    fn the_tightest_control_group_of_either_version_counts_without_its_file_pages() {
        let root = tempfile::tempdir().unwrap();
        write(&root.path().join("a"), &[("memory.max", "5000\n"), ("memory.current", "1000\n")]);
        write(
            &root.path().join("a/b"),
            &[("memory.max", "4000\n"), ("memory.current", "3000\n"), ("memory.stat", "anon 5\ninactive_file 500\n")],
        );
        write(&root.path().join("a/c"), &[("memory.max", "max\n"), ("memory.current", "3000\n")]);
        let group = |groups: &str| container(root.path(), groups);
        assert_eq!(group("0::/a/b\n"), Some(Group { limit: 4000, used: 2500 }));
        assert_eq!(group("0::/a/c\n"), Some(Group { limit: 5000, used: 1000 }), "its parent's");
        assert_eq!(group("0::/\n"), None);
        write(
            &root.path().join("memory"),
            &[
                ("memory.limit_in_bytes", "900"),
                ("memory.usage_in_bytes", "100"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 30\n"),
            ],
        );
        assert_eq!(group("5:cpu:/x\n4:memory:/docker/of-the-host\n"), Some(Group { limit: 900, used: 70 }));
        assert_eq!(within(1000, group("4:memory:/")), Memory { available_bytes: 830, container_limit_bytes: Some(900) });
        assert_eq!(within(500, group("4:memory:/")), Memory { available_bytes: 500, container_limit_bytes: None });
        assert_eq!(within(500, None), Memory { available_bytes: 500, container_limit_bytes: None });
    }

    #[test]
    fn this_machine_tells_its_disk_also_for_a_folder_that_is_not_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        let free = free_disk_bytes(folder.path()).unwrap();
        assert!(free > 1 << 20);
        assert!(free_disk_bytes(&folder.path().join("a/b/c")).unwrap().abs_diff(free) < free / 2 + (1 << 30));
        assert!(memory().is_none_or(|m| m.available_bytes > 1 << 20));
    }
}
