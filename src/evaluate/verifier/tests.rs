use super::*;

fn outcome(ended: Ended) -> Outcome {
    Outcome::of(ended, "said".into())
}

#[test]
fn only_exit_0_passes_and_what_says_nothing_of_the_answer_is_broken() {
    assert!(outcome(Ended::Exit(0)).passed());
    for code in [1, 2, 101, 124, 128, 193, 255] {
        assert_eq!(outcome(Ended::Exit(code)), Outcome::Fail { reason: Reason::Exit(code), output: "said".into() });
    }
    let refused = Ended::Refused { step: "a step".into(), error: "its error".into() };
    for ended in [Ended::Exit(125), Ended::Exit(126), Ended::Exit(127), Ended::Stopped, refused] {
        assert!(matches!(outcome(ended.clone()), Outcome::Broken { .. }), "{ended:?}");
    }
}

#[test]
fn signals_of_limits_are_told_as_limits_also_through_a_shell() {
    let reason = |ended| match outcome(ended) {
        Outcome::Fail { reason, .. } => reason,
        other => panic!("{other:?}"),
    };
    for (signal, expected) in
        [(libc::SIGXCPU, Reason::Cpu), (libc::SIGXFSZ, Reason::Disk), (libc::SIGSEGV, Reason::Signal(libc::SIGSEGV))]
    {
        assert_eq!(reason(Ended::Signal(signal)), expected);
        assert_eq!(reason(Ended::Exit(128 + signal)), expected);
    }
    assert_eq!(reason(Ended::Limit(Reason::Memory)), Reason::Memory);
}

#[test]
fn a_time_that_is_none_is_a_long_one() {
    for wall_secs in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
        assert_eq!(Limits { wall_secs, ..Limits::default() }.wall(), LONG);
    }
    assert_eq!(Limits { wall_secs: 0.5, ..Limits::default() }.wall(), Duration::from_millis(500));
}

#[test]
fn a_view_shows_each_path_once_and_nothing_through_the_home() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let make = |name: &str| {
        std::fs::create_dir_all(root.join(name)).unwrap();
        root.join(name)
    };
    let (home, project, inner) = (make("all/home"), make("all/project"), make("all/project/inner"));
    let tools = make("all/home/.rustup");
    make("all/home/.ssh");
    std::fs::write(project.join(".env.local"), "a token").unwrap();
    std::os::unix::fs::symlink(&project, root.join("link")).unwrap();
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let mut verifier = Verifier::new("true").unwrap();
    verifier.project = root.join("link");
    verifier.see = vec![inner];
    verifier.environment = vec![
        ("HOME".into(), text(&home)),
        ("PATH".into(), format!("{}:{}:{}:.", text(&home), text(&home.join(".ssh")), text(&root.join("none")))),
        ("AWS_SECRET_ACCESS_KEY".into(), "secret".into()),
    ];
    let view = view::of(&verifier).unwrap();
    let ours: Vec<_> = view.visible.iter().filter(|path| path.starts_with(&root)).collect();
    assert_eq!(ours, [&tools, &project], "not the home by PATH, not what is in it, not what another shows already");
    assert!(view.links.contains(&(root.join("link"), project.clone())), "{:?}", view.links);
    assert_eq!(view.covered, [project.join(".env.local")]);
    assert_eq!(view.project_entries, ["inner"]);
    let names: Vec<_> = view.environment.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["PATH", "RUSTUP_HOME", "RETUNE_PROJECT"]);
    // A folder that holds the home is too much.
    verifier.project = root.join("all");
    assert!(view::of(&verifier).is_err());
    verifier.confinement = Confinement::Limits;
    assert!(view::of(&verifier).is_ok(), "there nothing is hidden anyway");
}
