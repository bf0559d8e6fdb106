//! A verifier within Linux namespaces: files, processes, network, users, names of its own.
//!
//! The keeper stays outside. Its child is the first process of the new pid namespace: it builds the file system (after
//! bubblewrap: a new root, filled by read-only binds, the old one let go), starts the command as its child, without any
//! capability, and watches what all use together. When it ends, the kernel ends all that is within.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use libc::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};

use super::keeper::{self, GLANCE, refused};
use super::plan::{Ended, Plan, SCRATCH};
use super::sys::linux::{MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_REC, MS_SLAVE, mount, restrict, unmount};
use super::{Reason, sys, watch};

/// For root the command runs as this user, nobody: the kernel counts no processes of root's.
const NOBODY: u32 = 65534;
const READ_ONLY: u64 = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
/// Where the machine's own files are while the new root is filled.
const OLD: &str = "/old-root";
/// Where the part that can be written to is mounted until its folders are where they belong.
const WRITABLE: &str = "/writable";

/// Starts the command. Gives the first process, and where it tells how the command ended.
pub fn start(plan: &Plan, output: RawFd) -> Result<(libc::pid_t, OwnedFd), Ended> {
    let pipe = || sys::pipe().map_err(|e| refused("a pipe", &e));
    let ((status, tell), (go, let_go)) = (pipe()?, pipe()?);
    let as_root = sys::is_root();
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let first = || {
        // With the keeper gone, nobody would end this one; the byte comes only from a keeper that lives on.
        sys::close(let_go.as_raw_fd());
        let lives = sys::linux::die_with_parent().is_ok() && fs::File::from(go.try_clone().ok()?).read_exact(&mut [0]).is_ok();
        lives.then(|| first_process(plan, output, as_root))
    };
    let pid = sys::fork_into(namespaces, || {
        let ended = first().unwrap_or(Ended::Stopped);
        let line = serde_json::to_string(&ended).unwrap_or_default();
        // Less than a pipe holds: nobody needs to read yet.
        i32::from(fs::File::from(tell.try_clone().unwrap_or_else(|_| std::process::abort())).write_all(line.as_bytes()).is_err())
    });
    let pid = pid.map_err(|e| refused("a user namespace", &e))?;
    let mapped = map_users(pid, as_root).and_then(|()| fs::File::from(let_go).write_all(b"g"));
    match mapped {
        Ok(()) => Ok((pid, status)),
        Err(error) => {
            sys::kill(pid, libc::SIGKILL);
            sys::wait_for(pid);
            Err(refused("the users of a user namespace", &error))
        }
    }
}

/// The same numbers within as outside: of this user only, or for root of all, so that it can read its way to the files.
fn map_users(pid: libc::pid_t, as_root: bool) -> io::Result<()> {
    let write = |file: &str, text: &str| {
        fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/{file}"))?.write_all(text.as_bytes())
    };
    let (user, group) = sys::ids();
    if !as_root {
        write("uid_map", &format!("{user} {user} 1\n"))?;
        // Without this nobody but root may map groups.
        write("setgroups", "deny")?;
        return write("gid_map", &format!("{group} {group} 1\n"));
    }
    for file in ["uid_map", "gid_map"] {
        let own = fs::read_to_string(format!("/proc/self/{file}"))?;
        let mut same = String::new();
        for line in own.lines() {
            if let [first, _, count] = line.split_whitespace().collect::<Vec<_>>()[..] {
                same.push_str(&format!("{first} {first} {count}\n"));
            }
        }
        write(file, &same)?;
    }
    Ok(())
}

fn first_process(plan: &Plan, output: RawFd, as_root: bool) -> Ended {
    sys::new_group();
    let home = match build(plan, as_root) {
        Ok(home) => home,
        Err((step, error)) => return refused(step, &error),
    };
    // Since 5.14 the limit of processes counts those of the namespace only. This process is one of them, unless it is root.
    let counted_alone = sys::linux::kernel().is_none_or(|version| version >= (5, 14));
    let others = match () {
        () if as_root => 0,
        () if counted_alone => 1,
        () => 1 + plan.view.processes_of_user,
    };
    sys::linux::block_child_signal();
    let command = sys::fork(|| {
        let confined = || -> io::Result<()> {
            sys::linux::drop_capabilities();
            if as_root {
                sys::linux::become_user(NOBODY, NOBODY)?;
            }
            sys::linux::no_new_privileges()
        };
        match confined() {
            Ok(()) => keeper::become_command(plan, output, Path::new(SCRATCH), &home, Path::new("/tmp"), others),
            // Told as what it is by the exit code of what cannot be run.
            Err(_) => 126,
        }
    });
    sys::close(output);
    match command {
        Ok(command) => watch_over(plan, command),
        Err(error) => refused("starting a process", &error),
    }
}

fn watch_over(plan: &Plan, command: libc::pid_t) -> Ended {
    loop {
        sys::linux::child_ended(GLANCE);
        while let Some((pid, status)) = sys::reap(-1) {
            match status {
                _ if pid != command => {}
                sys::Status::Exit(code) => return Ended::Exit(code),
                sys::Status::Signal(signal) => return Ended::Signal(signal),
            }
        }
        let others: Vec<_> = watch::pids().into_iter().filter(|&pid| pid != 1).collect();
        // The kernel holds the number of processes here: a fork fails, and nothing needs to end.
        if let Some(Reason::Memory) = watch::used_by(&others).beyond(&plan.limits) {
            return Ended::Limit(Reason::Memory);
        }
    }
}

/// A step of the building, and what went wrong in it.
type Step<T> = Result<T, (String, io::Error)>;

fn at<T>(step: impl FnOnce() -> String, result: io::Result<T>) -> Step<T> {
    result.map_err(|error| (step(), error))
}

/// Builds the file system that the command sees, and leaves the old one. Gives the home folder.
fn build(plan: &Plan, as_root: bool) -> Step<PathBuf> {
    let builder = Builder { owner: as_root.then_some(NOBODY) };
    sys::umask(0o022);
    builder.new_root(plan)?;
    let home = builder.fill(plan)?;
    builder.devices_and_etc(&home)?;
    at(|| "the scratch folder's files".into(), keeper::write_scratch(plan, Path::new(SCRATCH)))?;
    at(|| "the scratch folder's owner".into(), builder.give(Path::new(SCRATCH)))?;
    let leave = || -> io::Result<()> {
        for folder in [WRITABLE, OLD] {
            unmount(Path::new(folder))?;
            fs::remove_dir(folder)?;
        }
        restrict(Path::new("/"), READ_ONLY, false)
    };
    at(|| "leaving the old root".into(), leave())?;
    // A network with nothing but itself; who has no use for it is not kept from the rest.
    let _ = sys::linux::loopback_up();
    let _ = sys::linux::set_host_name("retune");
    sys::linux::new_keyring();
    // No namespaces within, which would open more of the kernel.
    let _ = fs::write("/proc/sys/user/max_user_namespaces", "0");
    Ok(home)
}

struct Builder {
    /// Whom the folders that can be written to belong to, if not to who makes them.
    owner: Option<u32>,
}

impl Builder {
    fn new_root(&self, plan: &Plan) -> Step<()> {
        let root = Path::new("/tmp");
        let make = || -> io::Result<()> {
            // Nothing of what is mounted here goes out; what others mount is of no concern, as the old root goes.
            mount(Path::new("none"), Path::new("/"), "none", MS_SLAVE | MS_REC, "")?;
            mount(Path::new("tmpfs"), root, "tmpfs", MS_NOSUID | MS_NODEV, "size=16m,nr_inodes=65536,mode=755")?;
            let old = root.join(&OLD[1..]);
            fs::create_dir(&old)?;
            sys::linux::pivot_root(root, &old)?;
            std::env::set_current_dir("/")
        };
        at(|| "a new root".into(), make())?;
        let size = format!("size={},nr_inodes=131072,mode=755", plan.limits.disk_bytes);
        let writable = || -> io::Result<()> {
            fs::create_dir(WRITABLE)?;
            mount(Path::new("tmpfs"), Path::new(WRITABLE), "tmpfs", MS_NOSUID | MS_NODEV, &size)?;
            for (name, target) in [("item", SCRATCH), ("tmp", "/tmp"), ("tmp", "/var/tmp"), ("shm", "/dev/shm")] {
                self.place(name, Path::new(target))?;
            }
            Ok(())
        };
        at(|| "the folders to write to".into(), writable())
    }

    /// Puts a folder of the writable part where it belongs.
    fn place(&self, name: &str, target: &Path) -> io::Result<()> {
        let folder = Path::new(WRITABLE).join(name);
        fs::create_dir_all(&folder)?;
        self.give_one(&folder)?;
        fs::create_dir_all(target)?;
        mount(&folder, target, "none", MS_BIND, "")
    }

    fn fill(&self, plan: &Plan) -> Step<PathBuf> {
        let view = &plan.view;
        let home = view.home.clone().unwrap_or_else(|| "/tmp/home".into());
        // The home folder empties what it lies in, and what is visible of it comes into the empty one.
        let (around, others): (Vec<_>, Vec<_>) = view.visible.iter().partition(|path| home.starts_with(path));
        for path in around {
            at(|| format!("showing {}", path.display()), self.show(path, &home))?;
        }
        at(|| format!("an empty {}", home.display()), self.place("home", &home))?;
        for path in others {
            at(|| format!("showing {}", path.display()), self.show(path, &home))?;
        }
        for path in &view.covered {
            at(|| format!("hiding {}", path.display()), cover(path))?;
        }
        for (name, target) in &view.links {
            let link = || -> io::Result<()> {
                self.folders_to(name, &home)?;
                match std::os::unix::fs::symlink(target, name) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                    _ => Ok(()),
                }
            };
            at(|| format!("the link {}", name.display()), link())?;
        }
        Ok(home)
    }

    /// Shows a folder or a file of the old root at the same path, read-only.
    fn show(&self, path: &Path, home: &Path) -> io::Result<()> {
        let old = old(path);
        self.folders_to(path, home)?;
        match old.is_dir() {
            true if !path.is_dir() => fs::create_dir(path)?,
            false if !path.exists() => fs::write(path, "")?,
            _ => {}
        }
        mount(&old, path, "none", MS_BIND | MS_REC, "")?;
        restrict(path, READ_ONLY, true)
    }

    /// The folders above a path; those in the home folder belong to the command.
    fn folders_to(&self, path: &Path, home: &Path) -> io::Result<()> {
        let missing: Vec<_> = path.ancestors().skip(1).take_while(|folder| !folder.exists()).collect();
        for folder in missing.into_iter().rev() {
            fs::create_dir(folder)?;
            if folder.starts_with(home) {
                self.give_one(folder)?;
            }
        }
        Ok(())
    }

    fn devices_and_etc(&self, home: &Path) -> Step<()> {
        for name in ["null", "zero", "full", "random", "urandom"] {
            let device = Path::new("/dev").join(name);
            let bind = || fs::write(&device, "").and_then(|()| mount(&old(&device), &device, "none", MS_BIND, ""));
            at(|| device.display().to_string(), bind())?;
        }
        for (name, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
            at(|| "/dev".into(), std::os::unix::fs::symlink(format!("/proc/self/{target}"), format!("/dev/{name}")))?;
        }
        // While the old one is still there: the kernel wants to see one that nothing hides.
        let proc = || {
            fs::create_dir("/proc")
                .and_then(|()| mount(Path::new("proc"), Path::new("/proc"), "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""))
        };
        at(|| "a /proc of its own".into(), proc())?;
        let (user, group) = self.owner.map_or_else(sys::ids, |owner| (owner, owner));
        let etc = || -> io::Result<()> {
            fs::create_dir_all("/etc")?;
            fs::write("/etc/passwd", format!("verifier:x:{user}:{group}::{}:/bin/sh\n", home.display()))?;
            fs::write("/etc/group", format!("verifier:x:{group}:\n"))?;
            fs::write("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
            fs::write("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n")
        };
        at(|| "/etc".into(), etc())
    }

    fn give_one(&self, path: &Path) -> io::Result<()> {
        self.owner.map_or(Ok(()), |owner| sys::linux::change_owner(path, owner, owner))
    }

    /// With what is in it, which is ours, two levels deep.
    fn give(&self, folder: &Path) -> io::Result<()> {
        self.give_one(folder)?;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => self.give(&entry.path())?,
                false => self.give_one(&entry.path())?,
            }
        }
        Ok(())
    }
}

fn old(path: &Path) -> PathBuf {
    Path::new(OLD).join(path.strip_prefix("/").unwrap_or(path))
}

/// Puts something empty over a path; one that is gone needs nothing.
fn cover(path: &Path) -> io::Result<()> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    let empty = Path::new("/.covered");
    fs::create_dir_all(empty.join("folder"))?;
    if !metadata.is_dir() {
        fs::write(empty.join("file"), "")?;
    }
    // A link shows only what is visible anyway, and a mount would follow it.
    match () {
        () if metadata.is_symlink() => Ok(()),
        () if metadata.is_dir() => mount(&empty.join("folder"), path, "none", MS_BIND, ""),
        () => mount(&empty.join("file"), path, "none", MS_BIND, ""),
    }
}
