//! The verifier, with real commands: what it says of an answer, and that nothing a command does gets out.

mod common;

use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use retune::evaluate::verifier::{Confinement, Limits, Outcome, Reason, Verifier, VerifierItem};
use serde_json::json;
use tempfile::TempDir;

/// The binary; the run as an ordinary user has a copy that such a one can read.
fn retune() -> PathBuf {
    std::env::var_os("RETUNE_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_retune").into(), PathBuf::from)
}

/// A project folder, a home folder with a secret, and a verifier between them.
struct World {
    project: TempDir,
    home: TempDir,
    verifier: Verifier,
}

fn world(command: &str) -> World {
    let folder = || {
        let folder = tempfile::tempdir().unwrap();
        // As others make them; for root the command runs as nobody.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        folder
    };
    let (project, home) = (folder(), folder());
    fs::create_dir(home.path().join(".ssh")).unwrap();
    fs::write(home.path().join(".ssh/id_ed25519"), "the secret key\n").unwrap();
    let mut verifier = Verifier::new(command).unwrap();
    verifier.retune = retune();
    verifier.project = project.path().to_owned();
    set(&mut verifier, "HOME", home.path().to_str().unwrap());
    // The toolchains of whoever runs this are not in the home of the tests.
    for (name, folder) in [("RUSTUP_HOME", ".rustup"), ("PYENV_ROOT", ".pyenv")] {
        if let Some(own) = std::env::var_os("HOME").map(|own| Path::new(&own).join(folder)).filter(|path| path.is_dir()) {
            set(&mut verifier, name, own.to_str().unwrap());
        }
    }
    verifier.limits = Limits {
        wall_secs: 20.0,
        cpu_secs: 20,
        processes: 64,
        disk_bytes: 32 << 20,
        output_bytes: 1 << 20,
        memory_bytes: 512 << 20,
    };
    World { project, home, verifier }
}

fn set(verifier: &mut Verifier, name: &str, value: &str) {
    verifier.environment.retain(|(n, _)| n != name);
    verifier.environment.push((name.to_owned(), value.to_owned()));
}

fn answer(text: &str) -> VerifierItem {
    VerifierItem { answer: text.into(), row: json!({}), expected: None }
}

/// What a command prints that ends well.
fn printed(world: &World) -> String {
    match world.verifier.check(&answer("an answer")) {
        Outcome::Pass { output } => output,
        other => panic!("{other:?}"),
    }
}

fn reason(outcome: &Outcome) -> Reason {
    match outcome {
        Outcome::Fail { reason, .. } => *reason,
        other => panic!("expected a failure, found {other:?}"),
    }
}

/// A word that no other process of this machine has in its command line.
fn marker(name: &str) -> String {
    static COUNTER: AtomicUsize = AtomicUsize::new(0);
    format!("retune_marker_{name}_{}_{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// The processes with the marker in their command line, besides keepers, which have none.
fn alive(marker: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(marker) && entry.file_name() != *std::process::id().to_string() {
            found.push(format!("{} {line}", entry.file_name().to_string_lossy()));
        }
    }
    found
}

fn wait_until(what: &str, within: Duration, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !is() {
        assert!(Instant::now() < end, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Both ways to hold a command.
const BOTH: [Confinement; 2] = [Confinement::Namespaces, Confinement::Limits];

#[test]
fn exit_0_is_verified_and_another_code_is_not() {
    for confinement in BOTH {
        let mut w = world("echo seen; grep -q right answer.txt");
        w.verifier.confinement = confinement;
        assert_eq!(w.verifier.check(&answer("this is right")), Outcome::Pass { output: "seen\n".into() });
        let fail = Outcome::Fail { reason: Reason::Exit(1), output: "seen\n".into() };
        assert_eq!(w.verifier.check(&answer("this is wrong")), fail);
    }
}

#[test]
fn the_scratch_folder_has_the_row_its_texts_and_the_projects_files() {
    for confinement in BOTH {
        let mut w = world("python3 check.py 2>/dev/null || sh check.sh");
        w.verifier.confinement = confinement;
        let script = "cat answer.txt item.json expected.txt fields/prompt tests/more.txt; ls fields; \
                      cat \"$RETUNE_PROJECT/tests/more.txt\"; pwd > out.txt && test -s out.txt; test -w . && echo writable";
        fs::write(w.project.path().join("check.sh"), script).unwrap();
        fs::create_dir(w.project.path().join("tests")).unwrap();
        fs::write(w.project.path().join("tests/more.txt"), "more\n").unwrap();
        // The item's own file goes first.
        fs::write(w.project.path().join("answer.txt"), "not this one\n").unwrap();
        let row = json!({"prompt": "p\n", "n": 3, "../escape": "x", "entry_point": "f"});
        let item = VerifierItem { answer: "a\n".into(), row, expected: Some("e\n".into()) };
        let Outcome::Pass { output } = w.verifier.check(&item) else { panic!("{:?}", w.verifier.check(&item)) };
        let expected = "a\n{\"prompt\":\"p\\n\",\"n\":3,\"../escape\":\"x\",\"entry_point\":\"f\"}\ne\np\nmore\nentry_point\nprompt\nmore\nwritable\n";
        assert_eq!(output, expected);
        assert_eq!(
            common::files(w.project.path()),
            ["answer.txt", "check.sh", "tests/more.txt"],
            "nothing was left in the project"
        );
    }
}

#[test]
fn a_command_that_cannot_be_run_is_broken_and_no_bad_answer() {
    for (command, part) in [("retune-no-such-command", "127"), ("./script", "127"), ("./text", "126"), ("exit 125", "125")] {
        for confinement in BOTH {
            let mut w = world(command);
            w.verifier.confinement = confinement;
            let script = |name: &str, text: &str, mode| {
                fs::write(w.project.path().join(name), text).unwrap();
                fs::set_permissions(w.project.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
            };
            script("script", "#!/usr/bin/no-such-interpreter\n", 0o755);
            script("text", "hello\n", 0o644);
            let outcome = w.verifier.check(&answer("x"));
            assert!(matches!(&outcome, Outcome::Broken { why, .. } if why.contains(part)), "{command}: {outcome:?}");
        }
    }
}

#[test]
fn a_verifier_that_says_the_same_of_the_right_answers_is_broken() {
    let items = |expected: Option<&str>| -> Vec<VerifierItem> {
        let item =
            |i: usize| VerifierItem { answer: format!("wrong {i}"), row: json!({}), expected: expected.map(str::to_owned) };
        (0..4).map(item).collect()
    };
    let judge = |command: &str, expected: Option<&str>| {
        world(command).verifier.check_all(&items(expected), 2, &|_| {}, &AtomicBool::new(false)).unwrap()
    };
    let is_broken = |outcomes: &[Outcome]| outcomes.iter().all(|o| matches!(o, Outcome::Broken { .. }));
    let is_fail = |outcomes: &[Outcome]| outcomes.iter().all(|o| matches!(o, Outcome::Fail { .. }));
    // Fails for a reason of its own, on the right answers as well.
    assert!(is_broken(&judge("cat no-such-file.txt || exit 2", Some("right"))));
    // An honest one, on a model that knows nothing.
    assert!(is_fail(&judge("echo no; grep -q right answer.txt", Some("right"))));
    // Without right answers only the words of missing things tell.
    assert!(is_broken(&judge("cat no-such-file.txt || exit 2", None)));
    assert!(is_fail(&judge("echo no; exit 1", None)));
    // One that tells the answers apart is alive.
    assert!(is_fail(&judge("cat answer.txt; exit 1", Some("right"))));
}

#[test]
fn a_command_that_sleeps_is_ended_in_time() {
    for confinement in BOTH {
        let marker = marker("sleep");
        let mut w = world(&format!("sleep 1000; : {marker}"));
        w.verifier.confinement = confinement;
        w.verifier.limits.wall_secs = 0.5;
        let start = Instant::now();
        assert_eq!(reason(&w.verifier.check(&answer("x"))), Reason::Time);
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        assert_eq!(alive(&marker), [""; 0]);
    }
}

#[test]
fn a_command_that_computes_without_end_is_ended_by_its_computing_time() {
    for confinement in BOTH {
        let mut w = world("while :; do :; done");
        w.verifier.confinement = confinement;
        w.verifier.limits.cpu_secs = 1;
        assert_eq!(reason(&w.verifier.check(&answer("x"))), Reason::Cpu);
    }
}

/// How many processes with the marker there are at most while `run` goes on.
fn most_alive<T>(marker: &str, run: impl FnOnce() -> T) -> (usize, T) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(alive(marker).len());
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        });
        let result = run();
        done.store(true, Ordering::Relaxed);
        (watcher.join().unwrap(), result)
    })
}

#[test]
fn a_fork_bomb_stays_within_the_limit_of_processes() {
    // A small bomb first: thirty sleepers at most, though the limit of processes might not hold.
    let small = marker("small_bomb");
    let mut w = world(&format!(
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do sleep 2 & done; wait; : {small}"
    ));
    w.verifier.limits.processes = 10;
    let outcome = w.verifier.check(&answer("x"));
    assert!(!outcome.passed(), "{outcome:?}");
    assert!(outcome.output().to_lowercase().contains("fork"), "the shell says that it cannot fork: {outcome:?}");

    let marker = marker("bomb");
    let mut w = world(&format!("bomb() {{ bomb | bomb & }}; bomb; sleep 1000; : {marker}"));
    w.verifier.limits = Limits { wall_secs: 2.0, processes: 32, ..w.verifier.limits };
    let start = Instant::now();
    let (most, outcome) = most_alive(&marker, || w.verifier.check(&answer("x")));
    assert!(!outcome.passed(), "{outcome:?}");
    assert!(most <= 33, "{most} processes");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(alive(&marker), [""; 0]);
    // The host goes on.
    assert!(Command::new("true").status().unwrap().success());
}

#[test]
fn without_namespaces_more_processes_than_allowed_end_the_item() {
    let marker = marker("many");
    let mut w = world(&format!("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 1000 & done; wait; : {marker}"));
    w.verifier.confinement = Confinement::Limits;
    w.verifier.limits.processes = 8;
    let outcome = w.verifier.check(&answer("x"));
    // For root the kernel counts none, so that looking does; for others a fork fails first.
    assert!(matches!(outcome, Outcome::Fail { reason: Reason::Processes | Reason::Exit(2), .. }), "{outcome:?}");
    assert_eq!(alive(&marker), [""; 0]);
}

#[test]
fn a_daemon_does_not_outlive_its_item() {
    for confinement in BOTH {
        let marker = marker("daemon");
        // Twice forked, a session of its own, nothing open, its parents gone.
        let inner = format!("echo up > $UP; sleep 1000; : {marker}");
        let daemon = format!(
            "export UP=$PWD/up; setsid sh -c '(setsid sh -c \"{inner}\" </dev/null >/dev/null 2>&1 &) &' & until [ -e up ]; do sleep 0.05; done"
        );
        let mut w = world(&daemon);
        w.verifier.confinement = confinement;
        let outcome = w.verifier.check(&answer("x"));
        assert!(outcome.passed(), "it lived while the item did: {outcome:?}");
        assert_eq!(alive(&marker), [""; 0]);
        // Also where the time is up.
        let mut w = world(&format!("{daemon}; sleep 1000"));
        w.verifier.confinement = confinement;
        w.verifier.limits.wall_secs = 1.0;
        assert_eq!(reason(&w.verifier.check(&answer("x"))), Reason::Time);
        assert_eq!(alive(&marker), [""; 0]);
    }
}

/// The files of this name in the scratch folders on this machine's disk.
fn on_disk(name: &str) -> Vec<PathBuf> {
    let folders = fs::read_dir(std::env::temp_dir()).unwrap().flatten().map(|entry| entry.path());
    folders
        .flat_map(|folder| ["item", "home", "tmp", ""].map(|part| folder.join(part).join(name)))
        .filter(|path| path.exists())
        .collect()
}

#[test]
fn a_command_that_fills_the_disk_is_stopped_and_leaves_nothing() {
    // Many files, so that the size of a single one is not what stops it.
    let fill = "i=0; while [ $i -lt 40 ]; do head -c 4000000 /dev/zero > $DIR/$i || exit 9; i=$((i+1)); done";
    for folder in [".", "$HOME", "$TMPDIR", "/dev/shm"] {
        let marker = marker("disk");
        let w = world(&format!("echo x > {folder}/{marker}; {}; sleep 20", fill.replace("$DIR", folder)));
        let outcome = std::thread::scope(|scope| {
            let run = scope.spawn(|| w.verifier.check(&answer("x")));
            while !run.is_finished() {
                assert!(on_disk(&marker).is_empty(), "what is written is not on this machine's disk");
                std::thread::sleep(Duration::from_millis(5));
            }
            run.join().unwrap()
        });
        assert_eq!(reason(&outcome), Reason::Exit(9), "{folder}: {outcome:?}");
        assert!(outcome.output().contains("No space left"), "{outcome:?}");
        // A single file.
        assert!(!world(&format!("head -c 100000000 /dev/zero > {folder}/one")).verifier.check(&answer("x")).passed());
    }
}

#[test]
fn without_namespaces_the_scratch_folder_is_watched_and_removed() {
    let marker = marker("scratch");
    let mut w = world(&format!(
        "pwd; mkdir closed; touch closed/{marker}; chmod 0 closed; \
        i=0; while [ $i -lt 60 ]; do head -c 1000000 /dev/zero > $i; sleep 0.02; i=$((i+1)); done; sleep 20"
    ));
    w.verifier.confinement = Confinement::Limits;
    w.verifier.limits.disk_bytes = 8 << 20;
    let outcome = w.verifier.check(&answer("x"));
    assert_eq!(reason(&outcome), Reason::Disk, "{outcome:?}");
    let folder = Path::new(outcome.output().lines().next().unwrap());
    assert!(folder.is_absolute() && !folder.exists() && !folder.parent().unwrap().exists(), "{}", folder.display());
}

#[test]
fn a_command_that_takes_memory_without_end_is_stopped() {
    for confinement in BOTH {
        // Without a newline `tail` keeps all that it reads.
        let mut w = world("tail /dev/zero > /dev/null");
        w.verifier.confinement = confinement;
        w.verifier.limits.memory_bytes = 64 << 20;
        let outcome = w.verifier.check(&answer("x"));
        // Seen by the watch, or first refused by the kernel: `tail` then ends with 1.
        assert!(matches!(outcome, Outcome::Fail { reason: Reason::Memory | Reason::Exit(1), .. }), "{outcome:?}");
        // Many small ones: none of them is beyond the limit, and none ends by itself.
        w.verifier.command = "for i in 1 2 3 4 5 6; do cat /dev/zero | tail -c 20000000 > /dev/null & done; wait".into();
        let outcome = w.verifier.check(&answer("x"));
        assert_eq!(reason(&outcome), Reason::Memory, "{outcome:?}");
    }
}

#[test]
fn a_command_that_prints_without_end_is_stopped_and_its_last_words_are_kept() {
    for confinement in BOTH {
        let mut w = world("yes 0123456789");
        w.verifier.confinement = confinement;
        let outcome = w.verifier.check(&answer("x"));
        assert_eq!(reason(&outcome), Reason::Output);
        assert!(outcome.output().len() <= 4096 && outcome.output().contains("0123456789\n"));
        let mut w = world("seq 1 20000; echo the end; exit 3");
        w.verifier.confinement = confinement;
        let outcome = w.verifier.check(&answer("x"));
        assert_eq!((reason(&outcome), outcome.output().len()), (Reason::Exit(3), 4096));
        assert!(outcome.output().ends_with("20000\nthe end\n"), "{outcome:?}");
    }
}

#[test]
fn the_home_folder_and_the_rest_of_the_files_are_not_there() {
    let mut w = world("");
    let (home, elsewhere) = (w.home.path().to_str().unwrap().to_owned(), tempfile::tempdir().unwrap());
    fs::set_permissions(elsewhere.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(elsewhere.path().join("other"), "another secret\n").unwrap();
    let secrets = [".agent/notes", ".env", ".env.local", ".git/config"];
    for name in secrets {
        let path = w.project.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "a token\n").unwrap();
    }
    fs::write(w.project.path().join("visible"), "visible\n").unwrap();
    let project = w.project.path().to_str().unwrap();
    let mut paths = vec![
        "$HOME/.ssh/id_ed25519".to_owned(),
        format!("{home}/.ssh/id_ed25519"),
        format!("{}/other", elsewhere.path().display()),
        format!("/proc/{}/environ", std::process::id()),
        format!("/proc/{}/cwd/Cargo.toml", std::process::id()),
        "/proc/1/root/old-root/etc/passwd".into(),
        "/old-root/etc/passwd".into(),
        "/etc/shadow".into(),
        "/etc/hostname".into(),
        "/etc/resolv.conf".into(),
        "/var/log/dpkg.log".into(),
        "/root/.bashrc".into(),
        "/sys/kernel/mm".into(),
        "/run/lock".into(),
    ];
    paths.extend(secrets.map(|name| format!("{project}/{name}")));
    let mut script = format!("cat {project}/visible; ls -A {home}; echo \"HOME is $HOME\"; ");
    for path in &paths {
        script.push_str(&format!("if [ -s {path} ] || ls {path}/* >/dev/null 2>&1; then echo \"found {path}\"; fi; "));
    }
    w.verifier.command = script + "true";
    assert_eq!(printed(&w), format!("visible\nHOME is {home}\n"));
}

#[test]
fn toolchains_of_the_home_are_seen_and_nothing_beside_them() {
    let mut w = world(
        "mytool; ls -A $HOME | sort; ls -A $HOME/.local; cat $HOME/.local/lib/data; linked; touch $HOME/new && echo wrote; touch $HOME/.local/bin/x",
    );
    let home = w.home.path().to_owned();
    for folder in
        [".local/bin", ".local/lib", ".local/share/keyrings", ".local/share/tools/one/bin", ".local/share/tools/one/lib"]
    {
        fs::create_dir_all(home.join(folder)).unwrap();
    }
    let tool = |path: &str, text: &str| {
        fs::write(home.join(path), text).unwrap();
        fs::set_permissions(home.join(path), fs::Permissions::from_mode(0o755)).unwrap();
    };
    tool(".local/bin/mytool", "#!/bin/sh\necho my tool\n");
    tool(".local/lib/data", "its data\n");
    tool(".local/share/keyrings/login", "secret\n");
    tool(".local/share/tools/one/lib/text", "a text of its own\n");
    tool(".local/share/tools/one/bin/linked", &format!("#!/bin/sh\ncat {}/.local/share/tools/one/lib/text\n", home.display()));
    std::os::unix::fs::symlink("../share/tools/one/bin/linked", home.join(".local/bin/linked")).unwrap();
    let path = format!("{}/.local/bin:/usr/bin:/bin", home.display());
    set(&mut w.verifier, "PATH", &path);
    let outcome = w.verifier.check(&answer("x"));
    let expected = "my tool\n.local\nbin\nlib\nshare\nits data\na text of its own\nwrote\n";
    assert_eq!(reason(&outcome), Reason::Exit(1), "the toolchain is read-only: {outcome:?}");
    assert!(outcome.output().starts_with(expected) && outcome.output().contains("Read-only"), "{outcome:?}");
    // What is shown of `share` is the tool alone.
    w.verifier.command = "find $HOME/.local/share | sort | sed \"s:$HOME/::\"".into();
    let tools = ".local/share/tools/one";
    let shown =
        format!(".local/share\n.local/share/tools\n{tools}\n{tools}/bin\n{tools}/bin/linked\n{tools}/lib\n{tools}/lib/text\n");
    assert_eq!(printed(&w), shown);
}

#[test]
fn the_network_is_not_there_not_even_this_machines_own() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    // Without namespaces it is reached: the command is one that would.
    let mut w = world(&format!("bash -c 'echo hello > /dev/tcp/127.0.0.1/{port}'"));
    w.verifier.confinement = Confinement::Limits;
    printed(&w);
    let (mut stream, _) = listener.accept().expect("the command of the weaker level came through");
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");

    w.verifier.confinement = Confinement::Namespaces;
    let outcome = w.verifier.check(&answer("x"));
    assert!(outcome.output().contains("Connection refused"), "{outcome:?}");
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    // One interface, no name server, no way out.
    w.verifier.command = "grep -c : /proc/net/dev; getent hosts example.com && echo resolved; bash -c 'echo > /dev/udp/1.1.1.1/53' && echo out; true".into();
    let output = printed(&w);
    assert!(
        output.starts_with("1\n") && output.contains("unreachable") && !output.contains("resolved") && !output.contains("out\n"),
        "{output}"
    );
    // Its own loopback works, as tests of servers need it.
    if Path::new("/usr/bin/python3").exists() {
        w.verifier.command = "/usr/bin/python3 -c 'import socket; s = socket.create_server((\"127.0.0.1\", 0)); socket.create_connection(s.getsockname())'".into();
        printed(&w);
    }
}

#[test]
fn secrets_of_the_environment_are_not_passed_on() {
    for confinement in BOTH {
        let mut w = world("env | sort; cat /proc/1/environ | tr '\\0' '\\n'");
        w.verifier.confinement = confinement;
        for (name, value) in [("OPENAI_API_KEY", "sk-secret"), ("HF_TOKEN", "hf_secret"), ("MY_SETTING", "mine"), ("LC_ALL", "C")]
        {
            set(&mut w.verifier, name, value);
        }
        w.verifier.pass = vec!["MY_SETTING".into()];
        if confinement == Confinement::Limits {
            w.verifier.command = "env | sort".into();
        }
        let output = printed(&w);
        assert!(!output.contains("secret") && !output.contains("TOKEN"), "{output}");
        assert!(output.contains("MY_SETTING=mine\n") && output.contains("LC_ALL=C\n"), "{output}");
        let home = output.lines().find_map(|line| line.strip_prefix("HOME=")).unwrap();
        let is_own = Path::new(home) == w.home.path();
        assert_eq!(is_own, confinement == Confinement::Namespaces, "HOME={home}");
    }
}

#[test]
fn a_command_harms_neither_its_keeper_nor_the_project_nor_other_items() {
    let w = world(
        "trap : TERM; kill -TERM 0; kill -9 $PPID 2>/dev/null; kill -9 1 2>/dev/null; kill -STOP 1 2>/dev/null; \
         echo x > $RETUNE_PROJECT/made; echo x > $RETUNE_PROJECT/kept; rm -f $RETUNE_PROJECT/kept; chmod 777 $RETUNE_PROJECT; \
         mkdir /made; echo x > /usr/made; echo x > /etc/passwd; mount -t tmpfs none /usr; mount -o remount,rw /; \
         unshare -Ur true && echo nested; umount $RETUNE_PROJECT; ls /retune-item | sort | tr '\\n' ' '; \
         grep -E 'CapEff|NoNewPrivs' /proc/self/status; echo still here",
    );
    fs::write(w.project.path().join("kept"), "kept\n").unwrap();
    fs::set_permissions(w.project.path().join("kept"), fs::Permissions::from_mode(0o666)).unwrap();
    let items: Vec<_> = (0..4).map(|i| answer(&i.to_string())).collect();
    for outcome in w.verifier.check_all(&items, 4, &|_| {}, &AtomicBool::new(false)).unwrap() {
        let Outcome::Pass { output } = outcome else { panic!("{outcome:?}") };
        assert!(
            output.ends_with("still here\n") && output.contains("answer.txt fields item.json kept ")
                || output.contains("answer.txt item.json kept "),
            "{output}"
        );
        assert!(output.contains("CapEff:\t0000000000000000\nNoNewPrivs:\t1\n") && !output.contains("nested"), "{output}");
    }
    assert_eq!(common::files(w.project.path()), ["kept"]);
    assert_eq!(fs::read_to_string(w.project.path().join("kept")).unwrap(), "kept\n");
    assert_eq!(fs::metadata(w.project.path()).unwrap().permissions().mode() & 0o777, 0o755);
    // What it sends to its own group reaches no keeper.
    for confinement in BOTH {
        let mut w = world("trap : TERM; kill -TERM 0; echo alive");
        w.verifier.confinement = confinement;
        assert_eq!(printed(&w), "alive\n");
    }
    // All that it may kill, which on this machine would be everything: within, that is what it started itself.
    assert_eq!(printed(&world("sleep 100 & kill -9 -1; echo alone")), "alone\n");
}

#[test]
fn outcomes_are_in_the_order_of_the_items_whatever_the_jobs() {
    let w = world("sleep 0.$(cat answer.txt); cat answer.txt; [ $(($(cat answer.txt) % 2)) -eq 0 ]");
    let items: Vec<_> = (0..8).map(|i| answer(&(7 - i).to_string())).collect();
    let heard = Mutex::new(Vec::new());
    let outcomes = w.verifier.check_all(&items, 0, &|done| heard.lock().unwrap().push(done), &AtomicBool::new(false)).unwrap();
    let said: Vec<_> = outcomes.iter().map(|o| (o.output().to_owned(), o.passed())).collect();
    assert_eq!(said, (0..8).map(|i| ((7 - i).to_string(), (7 - i) % 2 == 0)).collect::<Vec<_>>());
    let mut heard = heard.into_inner().unwrap();
    heard.sort();
    assert_eq!(heard, (1..=8).collect::<Vec<_>>());
}

#[test]
fn ctrl_c_ends_all_at_once() {
    for confinement in BOTH {
        let marker = marker("stop");
        let mut w = world(&format!("setsid sleep 1000 & sleep 1000; : {marker}"));
        w.verifier.confinement = confinement;
        let stop = AtomicBool::new(false);
        let items = vec![answer("x"); 50];
        let start = Instant::now();
        let result = std::thread::scope(|scope| {
            let run = scope.spawn(|| w.verifier.check_all(&items, 3, &|_| {}, &stop));
            wait_until("three items run", Duration::from_secs(10), || alive(&marker).len() >= 3);
            stop.store(true, Ordering::Relaxed);
            run.join().unwrap()
        });
        assert!(matches!(result, Err(retune::Error::Interrupted { .. })), "{result:?}");
        assert!(start.elapsed() < Duration::from_secs(30));
        assert_eq!(alive(&marker), [""; 0]);
    }
}

/// Not a test: the process that the next one kills.
#[test]
#[ignore = "started by a_killed_retune_leaves_nothing_running"]
fn is_killed_while_it_waits() {
    let Ok(marker) = std::env::var("RETUNE_TEST_MARKER") else { return };
    let mut w = world(&format!("setsid sh -c 'sleep 1000; : {marker}' & sleep 1000"));
    if std::env::var_os("RETUNE_TEST_LIMITS").is_some() {
        w.verifier.confinement = Confinement::Limits;
    }
    w.verifier.limits.wall_secs = 60.0;
    w.verifier.check(&answer("x"));
}

#[test]
fn a_killed_retune_leaves_nothing_running() {
    for confinement in BOTH {
        let marker = marker("killed");
        let mut run = Command::new(std::env::current_exe().unwrap());
        run.args(["--exact", "is_killed_while_it_waits", "--ignored"]).env("RETUNE_TEST_MARKER", &marker);
        if confinement == Confinement::Limits {
            run.env("RETUNE_TEST_LIMITS", "1");
        }
        let mut process = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("the command runs", Duration::from_secs(20), || !alive(&marker).is_empty());
        process.kill().unwrap();
        process.wait().unwrap();
        wait_until("all of it is gone", Duration::from_secs(10), || alive(&marker).is_empty());
    }
}

#[test]
fn a_killed_keeper_takes_the_command_with_it() {
    let marker = marker("keeper");
    let w = world(&format!("setsid sh -c 'sleep 1000; : {marker}' & sleep 1000"));
    // Names the keeper of this test among those of others, which run at the same time.
    let wrapper = w.home.path().join("wrapper");
    fs::write(&wrapper, format!("#!/bin/sh\necho $$ > {}/pid\nexec {} \"$@\"\n", w.home.path().display(), retune().display()))
        .unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let verifier = Verifier { retune: wrapper, ..w.verifier.clone() };
    std::thread::scope(|scope| {
        let run = scope.spawn(|| verifier.check(&answer("x")));
        wait_until("the command runs", Duration::from_secs(20), || !alive(&marker).is_empty());
        let pid = fs::read_to_string(w.home.path().join("pid")).unwrap();
        assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
        let outcome = run.join().unwrap();
        assert!(matches!(outcome, Outcome::Broken { .. }), "{outcome:?}");
    });
    wait_until("all of it is gone", Duration::from_secs(10), || alive(&marker).is_empty());
}

#[test]
fn a_project_that_is_the_home_folder_is_refused() {
    let mut w = world("true");
    w.verifier.project = w.home.path().to_owned();
    let error = w.verifier.probe().unwrap_err();
    common::says(&error.to_string(), &["the project folder", "home folder"]);
    common::says(&error.hint().unwrap(), &["a folder of their own"]);
    w.verifier.project = "/".into();
    assert!(matches!(w.verifier.check(&answer("x")), Outcome::Broken { .. }));
    w.verifier.project = w.project.path().join("none");
    assert!(w.verifier.probe().is_err());
    // For root the command is nobody's, and such a one could not read the project.
    w.verifier.project = w.project.path().to_owned();
    fs::set_permissions(w.project.path(), fs::Permissions::from_mode(0o700)).unwrap();
    match w.verifier.probe() {
        Ok(()) => assert!(!is_root()),
        Err(error) => common::says(&format!("{error}; {}", error.hint().unwrap()), &["as root", "chmod o+rx"]),
    }
}

/// A keeper that may not make a user namespace: one that root forbids within a namespace.
#[test]
fn a_system_without_user_namespaces_is_a_clear_refusal() {
    let mut w = world("true");
    let wrapper = w.project.path().join("wrapper");
    let script = format!(
        "#!/bin/sh\nexec unshare -Ur sh -c 'echo 0 > /proc/sys/user/max_user_namespaces; exec {} __confine'\n",
        retune().display()
    );
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    w.verifier.retune = wrapper;
    let error = w.verifier.check_all(&[answer("x")], 1, &|_| {}, &AtomicBool::new(false)).unwrap_err();
    common::says(&error.to_string(), &["namespaces", "a user namespace", "No space left"]);
    common::says(&error.hint().unwrap(), &["--verifier-confinement limits"]);
    assert!(matches!(w.verifier.check(&answer("x")), Outcome::Broken { .. }), "never weaker without being asked");
    w.verifier.confinement = Confinement::Limits;
    printed(&w);
}

fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()) == 0
}

#[test]
fn an_ordinary_user_is_held_as_well() {
    if !is_root() {
        return;
    }
    if !Path::new("/usr/bin/setpriv").exists() {
        return eprintln!("skipped: an_ordinary_user_is_held_as_well needs setpriv (util-linux)");
    }
    // Where the build folder is one that only root may read.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (binary, tests) = (folder.path().join("retune"), folder.path().join("tests"));
    fs::copy(retune(), &binary).unwrap();
    fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
        .arg(&tests)
        .args(["--skip", "humanevalpack", "--skip", "shipped", "--skip", "an_ordinary_user", "--test-threads", "2"])
        .env("RETUNE_TEST_BINARY", &binary)
        .env("HOME", "/nonexistent")
        .current_dir("/")
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let passed = said.split(" passed").next().unwrap().rsplit(' ').next().unwrap().parse::<usize>().unwrap();
    assert!(passed >= 20, "{said}");
}

/// The rows of a pack, the outcome of each given solution: (task, canonical, buggy).
fn judge_pack(verifier: &Verifier, rows: &[serde_json::Value]) -> Vec<(String, Outcome, Outcome)> {
    let text = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap().to_owned();
    let item = |row: &serde_json::Value, name| VerifierItem { answer: text(row, name), row: row.clone(), expected: None };
    let items: Vec<_> = rows.iter().flat_map(|row| [item(row, "canonical_solution"), item(row, "buggy_solution")]).collect();
    let start = Instant::now();
    let outcomes = verifier.check_all(&items, 0, &|_| {}, &AtomicBool::new(false)).unwrap();
    println!(
        "{} items in {:.1} s, {:.2} s each",
        items.len(),
        start.elapsed().as_secs_f64(),
        start.elapsed().as_secs_f64() / items.len() as f64
    );
    let pairs = rows.iter().zip(outcomes.chunks(2));
    pairs.map(|(row, pair)| (text(row, "task_id"), pair[0].clone(), pair[1].clone())).collect()
}

fn rows(data: &Path, file: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(data.join("sft").join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A verifier of `docs/verifiers`, as the page tells to use it.
fn shipped(command: &str) -> World {
    let mut w = world(command);
    // Not from the repository itself: that may lie where only its owner may read.
    for file in fs::read_dir(common::root().join("docs/verifiers")).unwrap() {
        let file = file.unwrap();
        let copy = w.project.path().join(file.file_name());
        fs::copy(file.path(), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    }
    w.verifier.limits = Limits { wall_secs: 30.0, ..Limits::default() };
    w
}

/// What the pack's file says of a solution, and what the shipped script has to say then: tests that need a crate cannot be
/// judged, an answer that needs one does not compile.
fn agrees(task: &str, said: &str, outcome: &Outcome) -> bool {
    let tests_need_a_crate = ["Rust/32", "Rust/38", "Rust/50", "Rust/53"].contains(&task);
    match said {
        "pass" => outcome.passed(),
        // Without a result where a stack overflows (Rust/49): it compiled and ran.
        "test_fail" => matches!(outcome, Outcome::Fail { reason: Reason::Exit(1), .. }) && outcome.output().contains("running "),
        "compile_fail" if tests_need_a_crate => matches!(outcome, Outcome::Broken { .. }) && outcome.output().contains("crate"),
        "compile_fail" => matches!(outcome, Outcome::Fail { reason: Reason::Exit(1), .. }) && outcome.output().contains("error"),
        // A text that grows without end: what is met first depends on the machine.
        "timeout" => matches!(outcome, Outcome::Fail { reason: Reason::Time | Reason::Cpu | Reason::Memory, .. }),
        other => panic!("the file says {other}"),
    }
}

#[test]
fn humanevalpack_rust_solutions_have_the_known_verdicts() {
    let Some(data) = common::data("humanevalpack_rust") else { return };
    if Command::new("rustc").arg("--version").output().is_err() {
        return eprintln!("skipped: humanevalpack_rust needs rustc");
    }
    let known: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(data.join("sft/humanevalpack_rust_verified.json")).unwrap()).unwrap();
    let rows = rows(&data, "humanevalpack_rust.jsonl");
    let mut wrong = Vec::new();
    let judged = judge_pack(&shipped("sh humaneval_rust.sh").verifier, &rows);
    for (task, canonical, buggy) in &judged {
        for (kind, outcome) in [("canonical", canonical), ("buggy", buggy)] {
            let said = known[task][kind].as_str().unwrap();
            if !agrees(task, said, outcome) {
                wrong.push(format!("{task} {kind}: expected {said}, found {outcome:?}"));
            }
        }
    }
    assert!(judged.len() == 164 && wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), 2 * judged.len());
}

#[test]
fn humanevalpack_python_canonical_solutions_pass_and_buggy_ones_fail() {
    let Some(data) = common::data("humanevalpack_python") else { return };
    if Command::new("python3").arg("--version").output().is_err() {
        return eprintln!("skipped: humanevalpack_python needs python3");
    }
    let judged = judge_pack(&shipped("python3 humaneval_python.py").verifier, &rows(&data, "humanevalpack_python.jsonl"));
    let wrong: Vec<_> =
        judged.iter().filter(|(_, canonical, buggy)| !canonical.passed() || !matches!(buggy, Outcome::Fail { .. })).collect();
    assert!(judged.len() == 164 && wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_shipped_scripts_take_whole_functions_fences_and_no_early_exit() {
    let item = |answer: &str| VerifierItem {
        answer: answer.into(),
        row: json!({
            "entry_point": "twice", "declaration": "\nuse rand::Rng;\n\nfn twice(n: i32) -> i32 {\n",
            "test": "\n#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn it() { assert_eq!(twice(4), 8); }\n}\n",
        }),
        expected: None,
    };
    if Command::new("rustc").arg("--version").output().is_ok() {
        let w = shipped("sh humaneval_rust.sh");
        let says = |answer: &str| w.verifier.check(&item(answer));
        for right in [
            "    n * 2\n}\n",
            "fn twice(n: i32) -> i32 { n + n }",
            "Here:\n```rust\nfn twice(n: i32) -> i32 { n + n }\n```\nDone.",
        ] {
            assert!(says(right).passed(), "{right}: {:?}", says(right));
        }
        for wrong in ["    n * 3\n}\n", "    std::process::exit(0)\n}\n", "I cannot.", "    loop {}\n"] {
            assert!(!says(wrong).passed(), "{wrong}");
        }
    }
    if Command::new("python3").arg("--version").output().is_ok() {
        let w = shipped("python3 tool_call.py");
        let call = |answer: &str| VerifierItem {
            answer: answer.into(),
            row: json!({}),
            expected: Some(r#"{"tool": "a", "n": 1}"#.into()),
        };
        assert!(w.verifier.check(&call(r#"{"n":1,"tool":"a"}"#)).passed());
        for wrong in [r#"{"n":2,"tool":"a"}"#, "no JSON"] {
            assert_eq!(reason(&w.verifier.check(&call(wrong))), Reason::Exit(1), "{wrong}");
        }
    }
}
