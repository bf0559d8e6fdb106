//! The system calls of the keeper, each with its reason to be sound; the rest of the verifier has no `unsafe`.
//!
//! Those that start a process are sound only in a process of one thread, as the keeper is.

use std::ffi::CString;
use std::io::{self, Error};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

fn done(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

pub fn c_string(text: impl AsRef<std::ffi::OsStr>) -> io::Result<CString> {
    CString::new(text.as_ref().as_bytes()).map_err(|_| Error::new(io::ErrorKind::InvalidInput, "a NUL in a name"))
}

/// A pipe that no program inherits: its end to read, its end to write.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two numbers; each is then owned once.
    unsafe {
        done(libc::pipe(ends.as_mut_ptr()))?;
        for fd in ends {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// Writes all to a socket; a reader that is gone is an error and not a signal, which would end retune.
pub fn send_all(socket: RawFd, mut bytes: &[u8]) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    let flags = libc::MSG_NOSIGNAL;
    #[cfg(not(target_os = "linux"))]
    let flags = 0;
    #[cfg(target_vendor = "apple")]
    {
        let on: libc::c_int = 1;
        // SAFETY: the option's value is a c_int of the size given.
        unsafe {
            libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_NOSIGPIPE, (&raw const on).cast(), size_of_val(&on) as u32)
        };
    }
    while !bytes.is_empty() {
        // SAFETY: reads `bytes` within its length.
        let sent = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), flags) };
        match usize::try_from(sent) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(_) if Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(Error::last_os_error()),
        }
    }
    Ok(())
}

/// Whether there is something to read, or an end, within the time.
pub fn readable(fd: RawFd, within: Duration) -> io::Result<bool> {
    Ok(wait_any([fd], within)?[0])
}

/// Which of these have something to read, or an end; a negative one never has.
pub fn wait_any<const N: usize>(fds: [RawFd; N], within: Duration) -> io::Result<[bool; N]> {
    let mut polls = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let millis = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `polls` holds as many as are told.
    match done(unsafe { libc::poll(polls.as_mut_ptr(), N as libc::nfds_t, millis) }) {
        Ok(_) => Ok(polls.map(|p| p.revents != 0)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok([false; N]),
        Err(error) => Err(error),
    }
}

pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: changes a flag of an open file.
    done(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) }).map(drop)
}

pub fn close(fd: RawFd) {
    // SAFETY: closing a number that is not open does nothing; the callers own what they close.
    unsafe { libc::close(fd) };
}

pub fn duplicate(fd: RawFd, onto: RawFd) -> io::Result<()> {
    // SAFETY: both are plain numbers to the kernel.
    done(unsafe { libc::dup2(fd, onto) }).map(drop)
}

/// Closes what a shell or a parent left open beyond the three standard files.
pub fn close_from(first: RawFd) {
    for fd in first..1024 {
        close(fd);
    }
    // SAFETY: a system call on numbers; an older kernel says no, then the first thousand are closed.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0)
    };
}

/// Runs `child` in a new process, which ends with what it gives. Gives the new process's number.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<libc::pid_t> {
    // SAFETY: this process has one thread, so the child may do everything.
    match done(unsafe { libc::fork() })? {
        0 => end_with(child),
        pid => Ok(pid),
    }
}

/// `fork` into new namespaces.
#[cfg(target_os = "linux")]
pub fn fork_into(namespaces: libc::c_int, child: impl FnOnce() -> i32) -> io::Result<libc::pid_t> {
    let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
    // SAFETY: without a stack of its own and without CLONE_VM this is fork, in a process of one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match done(pid as libc::c_int)? {
        0 => end_with(child),
        pid => Ok(pid),
    }
}

/// A child must never go on as if it were its parent, whatever happens in it.
fn end_with(child: impl FnOnce() -> i32) -> ! {
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
    // SAFETY: ends this process without running what the parent registered to be run at its end.
    unsafe { libc::_exit(code) }
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Exit(i32),
    Signal(i32),
}

/// One that ended, of `pid` or (-1) of all; `None`: they go on, or there is none.
pub fn reap(pid: libc::pid_t) -> Option<(libc::pid_t, Status)> {
    wait(pid, libc::WNOHANG)
}

/// Waits for the end of a child.
pub fn wait_for(pid: libc::pid_t) -> Option<Status> {
    Some(wait(pid, 0)?.1)
}

fn wait(pid: libc::pid_t, flags: libc::c_int) -> Option<(libc::pid_t, Status)> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is written, nothing else.
        match done(unsafe { libc::waitpid(pid, &mut status, flags) }) {
            Ok(0) => return None,
            Ok(pid) if libc::WIFSIGNALED(status) => return Some((pid, Status::Signal(libc::WTERMSIG(status)))),
            Ok(pid) => return Some((pid, Status::Exit(libc::WEXITSTATUS(status)))),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// `pid` below 0: the process group.
pub fn kill(pid: libc::pid_t, signal: libc::c_int) {
    // 0, -1 and 1 are this group, everybody and the first of all: never asked for.
    if !(-1..=1).contains(&pid) {
        // SAFETY: a system call on numbers; one that is gone already is no matter.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Signals as a fresh program expects them, not as retune set them.
pub fn default_signals() {
    // SAFETY: sets dispositions and the mask to their defaults, in a process of one thread.
    unsafe {
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

pub fn new_group() {
    // SAFETY: numbers only; it fails for nobody that leads no session.
    unsafe { libc::setpgid(0, 0) };
}

pub fn new_session() {
    // SAFETY: no arguments; fails only for a leader of a group, which has its own session by then.
    unsafe { libc::setsid() };
}

pub fn umask(mask: libc::mode_t) {
    // SAFETY: always succeeds.
    unsafe { libc::umask(mask) };
}

pub fn is_root() -> bool {
    // SAFETY: always succeeds.
    unsafe { libc::geteuid() == 0 }
}

pub fn ids() -> (libc::uid_t, libc::gid_t) {
    // SAFETY: always succeeds.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Soft and hard limit of this process.
pub fn limit(resource: libc::c_int, soft: u64, hard: u64) -> io::Result<()> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is read and written as told. The resource's type differs between systems.
    #[allow(clippy::unnecessary_cast, reason = "types differ between systems")]
    unsafe {
        done(libc::getrlimit(resource as _, &mut now))?;
        // Nobody but root may raise the hard one; a stricter one of the system's stays.
        let hard = (hard as libc::rlim_t).min(now.rlim_max);
        let wanted = libc::rlimit { rlim_cur: (soft as libc::rlim_t).min(hard), rlim_max: hard };
        done(libc::setrlimit(resource as _, &wanted)).map(drop)
    }
}

/// Becomes another program; gives what kept it from that.
pub fn exec(program: &str, arguments: &[&str], environment: &[(String, String)]) -> Error {
    let strings = |texts: &mut dyn Iterator<Item = String>| texts.map(c_string).collect::<io::Result<Vec<CString>>>();
    let all = || {
        let program = c_string(program)?;
        let arguments = strings(&mut arguments.iter().map(|&a| a.to_owned()))?;
        let environment = strings(&mut environment.iter().map(|(name, value)| format!("{name}={value}")))?;
        Ok((program, arguments, environment))
    };
    let (program, arguments, environment) = match all() {
        Ok(all) => all,
        Err(error) => return error,
    };
    let pointers = |texts: &[CString]| texts.iter().map(|t| t.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    // SAFETY: strings end with NUL, lists with a null pointer, and all live until the call returns.
    unsafe { libc::execve(program.as_ptr(), pointers(&arguments).as_ptr(), pointers(&environment).as_ptr()) };
    Error::last_os_error()
}

/// A new folder in `parent` that nobody else may look into.
pub fn temporary_folder(parent: &Path) -> io::Result<std::path::PathBuf> {
    let mut name = c_string(parent.join("retune-verifier-XXXXXX"))?.into_bytes_with_nul();
    // SAFETY: the template ends with NUL and is changed in place, at the same length.
    if unsafe { libc::mkdtemp(name.as_mut_ptr().cast()) }.is_null() {
        return Err(Error::last_os_error());
    }
    name.pop();
    Ok(std::ffi::OsStr::from_bytes(&name).into())
}

/// What only Linux has.
#[cfg(target_os = "linux")]
pub mod linux {
    use super::{Path, c_string, done, io};

    pub use libc::{MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_REC, MS_SLAVE};

    pub fn mount(source: &Path, target: &Path, kind: &str, flags: libc::c_ulong, options: &str) -> io::Result<()> {
        let (source, target, kind, options) = (c_string(source)?, c_string(target)?, c_string(kind)?, c_string(options)?);
        // SAFETY: all strings end with NUL and live until the call returns.
        done(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) }).map(drop)
    }

    /// Takes the rights of a mount away, also (`recursive`) of all below it.
    pub fn restrict(target: &Path, attributes: u64, recursive: bool) -> io::Result<()> {
        /// `struct mount_attr`, linux/mount.h.
        #[repr(C)]
        struct Attributes {
            set: u64,
            clear: u64,
            propagation: u64,
            user_namespace: u64,
        }
        let wanted = Attributes { set: attributes, clear: 0, propagation: 0, user_namespace: 0 };
        let flags = if recursive { 0x8000 } else { 0 }; // AT_RECURSIVE
        let target = c_string(target)?;
        // SAFETY: the string ends with NUL, the struct has the size that is told; both are only read.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                libc::AT_FDCWD,
                target.as_ptr(),
                flags,
                &raw const wanted,
                size_of::<Attributes>(),
            )
        };
        done(result as libc::c_int).map(drop)
    }

    pub fn unmount(target: &Path) -> io::Result<()> {
        let target = c_string(target)?;
        // SAFETY: the string ends with NUL.
        done(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
    }

    pub fn pivot_root(new: &Path, old: &Path) -> io::Result<()> {
        let (new, old) = (c_string(new)?, c_string(old)?);
        // SAFETY: both strings end with NUL.
        done(unsafe { libc::syscall(libc::SYS_pivot_root, new.as_ptr(), old.as_ptr()) } as libc::c_int).map(drop)
    }

    pub fn set_host_name(name: &str) -> io::Result<()> {
        // SAFETY: reads as many bytes as are told.
        done(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
    }

    fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
        // SAFETY: these options take numbers only.
        done(unsafe { libc::prctl(option, value, 0, 0, 0) }).map(drop)
    }

    /// Killed when the thread that started this process ends.
    pub fn die_with_parent() -> io::Result<()> {
        prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
    }

    /// Orphans below this process become its children.
    pub fn adopt_orphans() -> io::Result<()> {
        prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
    }

    /// No program that this process becomes gets more rights than it has (set-user-ID, file capabilities).
    pub fn no_new_privileges() -> io::Result<()> {
        prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
    }

    /// Takes every capability away from what this process becomes.
    pub fn drop_capabilities() {
        // Numbers beyond the last one give an error, as they should.
        for capability in 0..64 {
            let _ = prctl(libc::PR_CAPBSET_DROP, capability);
        }
        let _ = prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong);
    }

    /// Leaves the keys of the user's session behind.
    pub fn new_keyring() {
        const JOIN_SESSION_KEYRING: libc::c_int = 1;
        // SAFETY: a null name asks for a ring without one. A kernel without keys has nothing to leave.
        unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    }

    pub fn become_user(user: libc::uid_t, group: libc::gid_t) -> io::Result<()> {
        // SAFETY: numbers, and an empty list.
        unsafe {
            done(libc::setgroups(0, std::ptr::null()))?;
            done(libc::setresgid(group, group, group))?;
            done(libc::setresuid(user, user, user)).map(drop)
        }
    }

    pub fn change_owner(path: &Path, user: libc::uid_t, group: libc::gid_t) -> io::Result<()> {
        std::os::unix::fs::lchown(path, Some(user), Some(group))
    }

    /// Switches the loopback of this network on, which has nothing else.
    pub fn loopback_up() -> io::Result<()> {
        // SAFETY: the request has the type that these calls want; the socket is closed at the end.
        unsafe {
            let socket = done(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
            let mut request = std::mem::zeroed::<libc::ifreq>();
            request.ifr_name[0] = b'l' as libc::c_char;
            request.ifr_name[1] = b'o' as libc::c_char;
            request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
            let result = done(libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw const request)).map(drop);
            libc::close(socket);
            result
        }
    }

    /// Blocks the signal of a child's end, so that [`child_ended`] can wait for it.
    pub fn block_child_signal() {
        // SAFETY: as in `default_signals`.
        unsafe {
            let set = child_signal();
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        }
    }

    /// Waits until a child ends, at most so long.
    pub fn child_ended(within: std::time::Duration) {
        let time = libc::timespec { tv_sec: within.as_secs() as _, tv_nsec: within.subsec_nanos() as _ };
        // SAFETY: both are read only, no information is asked for.
        unsafe { libc::sigtimedwait(&child_signal(), std::ptr::null_mut(), &time) };
    }

    fn child_signal() -> libc::sigset_t {
        // SAFETY: a set is made empty before it is used.
        unsafe {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGCHLD);
            set
        }
    }

    /// Major and minor version of the kernel.
    pub fn kernel() -> Option<(u32, u32)> {
        let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
        let mut numbers = text.split(['.', '-']).map(|part| part.trim().parse().ok());
        Some((numbers.next()??, numbers.next()??))
    }
}
