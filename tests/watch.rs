//! `retune watch`: a command is run as if retune were not there, and what it printed is read.

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

fn watch(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
    command.arg("watch").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a script of a shell under watch.
fn shell(args: &[&str], script: &str) -> Output {
    watch(&[args, &["--", "sh", "-c", script]].concat()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The object that `--json` prints behind what the command said.
fn json_of(output: &Output) -> Value {
    let stdout = text(&output.stdout);
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap_or_else(|e| panic!("{e}: {stdout}"))
}

fn fixture(name: &str) -> String {
    common::root().join("tests/fixtures/signals").join(name).to_str().unwrap().to_owned()
}

#[test]
fn output_and_exit_code_are_the_commands_own() {
    let script = "printf 'a\\033[31mb\\0\\377 no end'; printf 'to stderr\\n' >&2; exit 7";
    let (bare, watched) = (Command::new("sh").args(["-c", script]).output().unwrap(), shell(&[], script));
    assert_eq!(watched.stdout, bare.stdout);
    assert!(watched.stderr.starts_with(&bare.stderr), "{}", text(&watched.stderr));
    assert_eq!(watched.status.code(), Some(7));
    let said = text(&watched.stderr);
    assert!(said.contains("retune: nothing that it printed is known"), "{said}");
    assert!(said.ends_with("retune: nothing was seen (not recorded: give --role, or --run)\n"), "{said}");
}

#[test]
fn megabytes_go_through_unchanged() {
    let script = "head -c 30000000 /dev/zero | tr '\\0' 'x'; echo; seq 1 400000; echo '==== 2 passed in 0.01s ===='";
    let (bare, watched) = (Command::new("sh").args(["-c", script]).output().unwrap(), shell(&[], script));
    assert!(watched.stdout == bare.stdout, "{} bytes, expected {}", watched.stdout.len(), bare.stdout.len());
    assert_eq!(text(&watched.stderr), "retune: 2 of 2 tests passed (not recorded: give --role, or --run)\n");
}

#[test]
fn what_a_tool_prints_is_its_verdict() {
    let output = shell(&["--json"], &format!("cat {} >&2; echo done; exit 101", fixture("cargo_test_types.txt")));
    assert_eq!(output.status.code(), Some(101));
    let json = json_of(&output);
    assert_eq!(json["result"], json!({"compile_pass": false, "type_errors": 3}));
    assert_eq!((&json["exit"], &json["signal"]), (&json!(101), &Value::Null));
    assert_eq!(json["signals"][0], json!({"metric": "compile_pass", "value": 0.0, "from": "stderr (cargo's text)"}));
    assert!(
        text(&output.stderr).ends_with("retune: did not compile, 3 type errors (not recorded: give --role, or --run)\n"),
        "{}",
        text(&output.stderr)
    );
    // A report that is printed, behind the words of a package manager; the line before it has no end of its own.
    let script = format!("echo '> shop@1.0.0 lint'; cat {}; printf open", fixture("eslint.json"));
    let json = json_of(&shell(&["--json"], &script));
    assert_eq!(json["result"], json!({"lint_errors": 3, "boundary_errors": 2}));
    let script = format!("echo; cat {}", fixture("pyright.json"));
    assert_eq!(json_of(&shell(&["--json"], &script))["result"], json!({"type_errors": 3}));
}

#[test]
fn real_cargo_is_watched() {
    let project = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(project.path().join(name), text).unwrap();
    fs::create_dir(project.path().join("src")).unwrap();
    write("Cargo.toml", "[package]\nname = \"shop\"\nversion = \"0.1.0\"\nedition = \"2024\"\n");
    write("src/lib.rs", "#[test]\nfn good() {}\n#[test]\nfn bad() {\n    assert_eq!(1, 2);\n}\n");
    let run = |args: &[&str]| {
        let mut command = watch(&[&["--json", "--", "cargo"], args].concat());
        command.current_dir(project.path()).env("CARGO_TARGET_DIR", project.path().join("target")).env_remove("RUSTFLAGS");
        command.output().unwrap()
    };
    let tested = run(&["test", "--offline"]);
    assert_eq!(tested.status.code(), Some(101), "{}", text(&tested.stderr));
    let expected = json!({"compile_pass": true, "lint_errors": 0, "type_errors": 0, "tests_passed": 1, "tests_total": 2});
    assert_eq!(json_of(&tested)["result"], expected);
    write("src/lib.rs", "pub fn name() -> String {\n    5\n}\n");
    let built = run(&["build", "--offline", "--message-format=json"]);
    assert_eq!(built.status.code(), Some(101));
    assert_eq!(json_of(&built)["result"], json!({"compile_pass": false, "type_errors": 1}));
}

#[test]
fn reports_that_the_command_writes_are_read_and_count_for_its_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (junit, sarif, lcov, old) = (path("j.xml"), path("s.sarif"), path("c.lcov"), path("old.xml"));
    fs::copy(fixture("mocha.xml"), &old).unwrap();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
    let script = format!(
        "cp {} {junit}; cp {} {sarif}; cp {} {lcov}; echo '==== 9 passed in 0.01s ====' ; exit 1",
        fixture("pytest.xml"),
        fixture("ruff.sarif"),
        fixture("jest.lcov")
    );
    let missing = path("missing.json");
    let args = ["--json", "--junit", &junit, "--junit", &old, "--sarif", &sarif, "--lcov", &lcov, "--eslint", &missing];
    let output = shell(&args, &script);
    assert_eq!(output.status.code(), Some(1));
    let json = json_of(&output);
    assert_eq!(json["result"], json!({"tests_passed": 3, "tests_total": 6, "lint_errors": 2, "coverage_pct": 75.0}));
    let notes = json["notes"].to_string();
    assert!(notes.contains("old.xml is older than this run: not counted"), "{notes}");
    assert!(notes.contains("missing.json") && notes.contains("not counted"), "{notes}");
    // A folder of reports, as surefire writes them.
    let reports = folder.path().join("reports");
    fs::create_dir(&reports).unwrap();
    let copies = format!(
        "cp {0} {1}/TEST-a.xml; cp {0} {1}/TEST-b.xml; echo x > {1}/other.xml",
        fixture("surefire.xml"),
        reports.display()
    );
    let json = json_of(&shell(&["--json", "--junit", reports.to_str().unwrap()], &copies));
    assert_eq!(json["result"], json!({"tests_passed": 4, "tests_total": 8}));
}

#[test]
fn the_exit_code_alone_is_a_verdict_only_where_it_is_said_of_what() {
    for (meaning, good, bad) in [
        ("compile", json!({"compile_pass": true}), json!({"compile_pass": false})),
        ("tests", json!({"tests_passed": 1, "tests_total": 1}), json!({"tests_passed": 0, "tests_total": 1})),
        ("lint", json!({"lint_errors": 0}), json!({"lint_errors": 1})),
        ("types", json!({"type_errors": 0}), json!({"type_errors": 1})),
    ] {
        assert_eq!(json_of(&shell(&["--json", "--as", meaning], "true"))["result"], good);
        assert_eq!(json_of(&shell(&["--json", "--as", meaning], "exit 3"))["result"], bad);
    }
    assert_eq!(json_of(&shell(&["--json"], "exit 3"))["result"], json!({}));
}

#[test]
fn a_command_that_cannot_be_started_is_told_as_a_shell_does() {
    let gone = watch(&["--", "no-such-command-here"]).output().unwrap();
    assert_eq!(gone.status.code(), Some(127));
    assert!(text(&gone.stderr).starts_with("error: cannot start no-such-command-here"), "{}", text(&gone.stderr));
    let folder = watch(&["--", "/"]).output().unwrap();
    assert_eq!(folder.status.code(), Some(126));
    let none = watch(&[]).output().unwrap();
    assert_eq!(none.status.code(), Some(2));
    let stdin = watch(&["--junit", "-", "--", "true"]).output().unwrap();
    assert_eq!(stdin.status.code(), Some(2));
}

#[test]
fn standard_input_is_the_commands() {
    let mut child = watch(&["--", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"handed on\n").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), "handed on\n");
}

#[test]
fn output_comes_as_it_is_printed() {
    let mut child = watch(&["--", "sh", "-c", "printf first; sleep 20"]).process_group(0).spawn().unwrap();
    let began = Instant::now();
    let mut first = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!((&first, began.elapsed() < Duration::from_secs(15)), (b"first", true));
    // SAFETY: the group was made for this child.
    unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
    child.wait().unwrap();
}

/// Starts a command, waits until it says "ready", sends a signal to retune alone, and gives what came of it.
fn signalled(script: &str, signal: i32) -> (ExitStatus, String, String) {
    let mut child = watch(&["--json", "--", "sh", "-c", script]).process_group(0).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"ready\n") {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        said.push(byte[0]);
    }
    // SAFETY: the child is ours and was not waited for.
    unsafe { libc::kill(child.id() as i32, signal) };
    let status = wait(&mut child);
    stdout.read_to_end(&mut said).unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (status, text(&said), stderr)
}

fn wait(child: &mut Child) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "it does not end");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn signals_reach_the_command_and_its_end_is_told() {
    // It ends as the signal has it.
    let script = "echo '==== 3 passed in 0.01s ===='; echo ready; exec sleep 60";
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let (status, stdout, stderr) = signalled(script, signal);
        assert_eq!((status.code(), status.signal()), (Some(128 + signal), None), "{stderr}");
        assert!(stdout.contains("\"result\":{}") && stdout.contains(&format!("\"signal\":{signal}")), "{stdout}");
        assert!(stderr.contains("it was interrupted, so nothing is claimed"), "{stderr}");
    }
    // It takes the signal and ends by itself: the code is its own, and what it had said by then is not the whole.
    let script = "trap 'exit 5' TERM; echo '==== 3 passed in 0.01s ===='; echo ready; while :; do sleep 0.02; done";
    let (status, stdout, _) = signalled(script, libc::SIGTERM);
    assert_eq!(status.code(), Some(5));
    assert!(stdout.contains("\"result\":{}"), "{stdout}");
}

static INTERRUPTS: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];

extern "C" fn count_interrupt(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the system gives a valid siginfo_t.
    let from_process = unsafe { (*info).si_code } == libc::SI_USER;
    INTERRUPTS[usize::from(from_process)].fetch_add(1, Ordering::SeqCst);
}

/// Not a test by itself: the next one runs it as the command that is watched.
#[test]
fn the_command_that_counts_interrupts() {
    let Some(group) = std::env::var_os("RETUNE_COUNT_INTERRUPTS") else { return };
    // SAFETY: the handler only touches atomics.
    unsafe {
        if group == "own" {
            libc::setpgid(0, 0);
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count_interrupt as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigaction(libc::SIGINT, &action, std::ptr::null_mut());
    }
    println!("ready");
    let began = Instant::now();
    while INTERRUPTS[0].load(Ordering::SeqCst) == 0 && group != "own" && began.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(5));
    }
    // Long enough for another one to come.
    thread::sleep(Duration::from_millis(500));
    let [terminal, process] = [0, 1].map(|n: usize| INTERRUPTS[n].load(Ordering::SeqCst));
    println!("{terminal} from the terminal, {process} from a process");
    std::process::exit(3);
}

/// Runs under a terminal of its own, as a user does: the line discipline sends Ctrl-C to the whole group.
fn ctrl_c(group: &str) -> String {
    let (mut ours, mut theirs) = (0, 0);
    let null = std::ptr::null_mut();
    // SAFETY: both are written by the call; the rest may be null.
    assert_eq!(unsafe { libc::openpty(&mut ours, &mut theirs, null, null as *const _, null as *const _) }, 0);
    // SAFETY: openpty() made them, and nobody else owns them.
    let (mut ours, theirs) = unsafe { (fs::File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    let own = std::env::current_exe().unwrap();
    let mut command = watch(&["--", own.to_str().unwrap(), "--exact", "the_command_that_counts_interrupts", "--nocapture"]);
    command.env("RETUNE_COUNT_INTERRUPTS", group);
    command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap()).stderr(theirs);
    // SAFETY: setsid() and ioctl() are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            }
        })
    };
    let mut child = command.spawn().unwrap();
    // What is kept of the other side would keep reading from ending.
    drop(command);
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    // Linux ends a terminal whose other side is closed by an error.
    while let Ok(length @ 1..) = ours.read(&mut piece) {
        let before = text(&said).contains("ready");
        said.extend_from_slice(&piece[..length]);
        if !before && text(&said).contains("ready") {
            ours.write_all(b"\x03").unwrap();
        }
    }
    assert_eq!(wait(&mut child).code(), Some(3));
    text(&said)
}

#[test]
fn ctrl_c_of_a_terminal_reaches_the_command_once() {
    let said = ctrl_c("same");
    assert!(said.contains("1 from the terminal, 0 from a process"), "{said}");
    assert!(said.contains("it was interrupted, so nothing is claimed"), "{said}");
    // One that left the group is not the terminal's to interrupt, nor ours. (Of two at the same time the system may make one, so
    // that the command in the group would not tell.)
    let said = ctrl_c("own");
    assert!(said.contains("0 from the terminal, 0 from a process"), "{said}");
}

#[test]
fn a_command_that_a_signal_ended_claims_nothing() {
    let output = shell(&["--json"], "echo '==== 3 passed in 0.01s ===='; kill -9 $$");
    assert_eq!(output.status.code(), Some(137));
    let json = json_of(&output);
    assert_eq!((&json["result"], &json["signal"]), (&json!({}), &json!(9)));
    assert!(json["notes"][0].as_str().unwrap().starts_with("signal 9 ended it"), "{json}");
}

#[test]
fn a_reader_that_goes_ends_the_command_as_in_a_pipe() {
    let mut child = watch(&["--", "sh", "-c", "while :; do echo '==== 3 passed in 0.01s ===='; done"]).spawn().unwrap();
    let mut first = [0; 10];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    drop(child.stdout.take());
    let status = wait(&mut child);
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(status.code(), Some(128 + libc::SIGPIPE), "{stderr}");
    assert!(stderr.contains("its output was not read to the end, so nothing is claimed"), "{stderr}");
}

#[test]
fn an_endless_line_and_endless_output_do_not_fill_the_memory() {
    // 300 MB without an end of line, then a report that is larger than what is held.
    let script = "head -c 300000000 /dev/zero; echo; echo '{'; yes 'some more of it' | head -c 100000000; echo; echo '==== 1 passed in 0.01s ===='";
    let mut command = watch(&["--json", "--", "sh", "-c", script]);
    command.stdout(Stdio::null());
    // SAFETY: setrlimit() is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 1 << 30, rlim_max: 1 << 30 };
            match libc::setrlimit(libc::RLIMIT_AS, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    };
    let output = command.output().unwrap();
    let stderr = text(&output.stderr);
    assert!(
        output.status.success() && stderr.ends_with("retune: 1 of 1 test passed (not recorded: give --role, or --run)\n"),
        "{stderr}"
    );
    assert!(stderr.contains("a report of more than 64 MiB is not read"), "{stderr}");
}

#[test]
fn what_a_command_left_behind_does_not_hold_it_up_after_an_interrupt() {
    let began = Instant::now();
    let mut child =
        watch(&["--json", "--", "sh", "-c", "sleep 40 & echo '==== 1 passed in 0.01s ===='"]).process_group(0).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let mut said = Vec::new();
    while !text(&said).contains("still holds its output") {
        let mut byte = [0];
        stderr.read_exact(&mut byte).unwrap();
        said.push(byte[0]);
    }
    // SAFETY: the child is ours and was not waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let status = wait(&mut child);
    assert!(status.success() && began.elapsed() < Duration::from_secs(30), "{status} after {:?}", began.elapsed());
    // SAFETY: the group was made for this child; what is left in it is the sleep.
    unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert!(stdout.contains("\"tests_passed\":1"), "{stdout}");
}

#[test]
fn help_names_the_reports() {
    let help = text(&watch(&["--help"]).output().unwrap().stdout);
    for flag in ["--junit", "--sarif", "--lcov", "--cargo-json", "--tsc", "--eslint", "--log", "--as"] {
        assert!(help.contains(flag), "{flag}: {help}");
    }
}
