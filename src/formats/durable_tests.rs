use std::sync::Barrier;

use super::*;

/// What the child writes: three full buffers and a rest.
const NEW_BYTES: usize = 3 * BUFFER_BYTES + 1;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_error_in_the_middle_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, b"old").unwrap();
    let failed = write_with(&path, |out| {
        out.write_all(&vec![7; 3 * BUFFER_BYTES]).map_err(Error::io("write", &path))?;
        Err(Error::data("stop", ""))
    });
    assert_eq!(failed.unwrap_err().to_string(), "stop");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(folder.path()), ["model.gguf"]);
}

#[test]
fn a_leftover_of_a_killed_run_is_swept_and_a_living_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    // One of a process that is gone, one with our own number (containers hand out the same numbers again),
    // a file of another target, and a writer at work.
    fs::write(folder.path().join(".a.4194304999-0.partial"), "half").unwrap();
    fs::write(folder.path().join(format!(".a.{}-999999.partial", std::process::id())), "half").unwrap();
    fs::write(folder.path().join(".a.b.1-0.partial"), "other").unwrap();
    let alive = Partial::create(folder.path(), OsStr::new("a")).unwrap();
    write(&path, b"new").unwrap();
    let alive_name = alive.path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut expected = vec![alive_name, ".a.b.1-0.partial".to_owned(), "a".to_owned()];
    expected.sort();
    assert_eq!(names(folder.path()), expected);
    drop(alive);
    assert_eq!(names(folder.path()), [".a.b.1-0.partial", "a"]);
}

#[test]
fn many_writers_of_one_target_leave_one_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shared.json");
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for writer in 0..8u8 {
            let (path, start) = (&path, &start);
            scope.spawn(move || {
                start.wait();
                for _ in 0..20 {
                    write(path, &vec![writer; 100_000]).unwrap();
                }
            });
        }
    });
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 100_000);
    assert!(bytes.iter().all(|b| *b == bytes[0]));
    assert_eq!(names(folder.path()), ["shared.json"]);
}

#[test]
fn a_link_is_written_through_and_permissions_stay() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let real = folder.path().join("real");
    write(&real, b"1").unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o600)).unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("real", &link).unwrap();
    write(&link, b"2").unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&real).unwrap(), b"2");
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_name_of_255_bytes_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("n".repeat(255));
    write(&path, b"x").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"x");
}

#[test]
fn a_folder_as_target_and_a_missing_folder_are_told() {
    let folder = tempfile::tempdir().unwrap();
    assert!(write(folder.path(), b"x").unwrap_err().to_string().contains("is a folder"));
    let missing = folder.path().join("no/such/file");
    let error = write(&missing, b"x").unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot create {}", missing.display())), "{error}");
    assert_eq!(error.hint().unwrap(), "check the path");
}

#[test]
fn a_full_disk_says_what_to_do() {
    if !Path::new("/dev/full").exists() {
        return println!("skipped: this system has no /dev/full");
    }
    let error = write(Path::new("/dev/full"), b"x").unwrap_err();
    assert!(error.to_string().starts_with("cannot write /dev/full: No space left"), "{error}");
    assert!(error.hint().unwrap().contains("free some space"));
}

/// The child of the two tests below: this test binary again, with a plan in its environment.
fn child(folder: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "formats::durable::tests::child_writes", "--nocapture"]).env("DURABLE_CHILD_FOLDER", folder);
    command
}

#[test]
fn child_writes() {
    let Some(folder) = std::env::var_os("DURABLE_CHILD_FOLDER") else { return };
    if std::env::var_os("DURABLE_CHILD_LIMIT").is_some() {
        let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
        // SAFETY: both calls take plain numbers and a pointer to a local that outlives them.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
        }
    }
    let path = Path::new(&folder).join("target");
    let outcome = write_with(&path, |out| {
        vec![2; NEW_BYTES].chunks(1000).try_for_each(|chunk| out.write_all(chunk)).map_err(Error::io("write", &path))
    });
    match outcome {
        Ok(()) => println!("written"),
        Err(error) => println!("error: {error}"),
    }
}

#[test]
fn running_out_of_room_in_the_middle_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("target"), b"old").unwrap();
    let output = child(folder.path()).env("DURABLE_CHILD_LIMIT", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("error: cannot write") && said.contains("File too large"), "{said}");
    assert_eq!(names(folder.path()), ["target"]);
    assert_eq!(fs::read(folder.path().join("target")).unwrap(), b"old");
}

#[test]
fn a_kill_at_every_point_leaves_the_old_or_the_new_file_and_the_next_write_cleans_up() {
    let logs = tempfile::tempdir().unwrap();
    let log = logs.path().join("points");
    let folder = tempfile::tempdir().unwrap();
    assert!(child(folder.path()).env("RETUNE_FAULT_LOG", &log).output().unwrap().status.success());
    let points: Vec<String> = fs::read_to_string(&log).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(points[0], "1 create target");
    assert_eq!(
        points[points.len() - 3..].iter().map(|p| p.split_once(' ').unwrap().1).collect::<Vec<_>>(),
        ["sync target", "rename target", "sync folder of target"]
    );
    assert_eq!(points.len(), 1 + 4 + 3, "{points:?}");

    let new = vec![2; NEW_BYTES];
    for n in 1..=points.len() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        write(&target, b"old").unwrap();
        let status = child(folder.path()).env("RETUNE_FAULT_AT", n.to_string()).output().unwrap().status;
        assert!(!status.success(), "point {n} did not kill");
        let found = fs::read(&target).unwrap();
        let renamed = n == points.len();
        assert_eq!(found == new, renamed, "after a kill at {}", points[n - 1]);
        assert_eq!(found == b"old", !renamed, "after a kill at {}", points[n - 1]);
        write(&target, b"next").unwrap();
        assert_eq!(names(folder.path()), ["target"], "after a kill at {}", points[n - 1]);
    }
}
