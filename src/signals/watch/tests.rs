use super::*;
use crate::signals::listen::Hall;
use crate::signals::text::Lines;

const WELL: End = End { exit: 0, signal: None, interrupted: false, unread: false };

fn stream(text: &str) -> Said {
    let (mut lines, mut hall) = (Lines::default(), Hall::default());
    lines.push(text.as_bytes(), &mut |line| hall.line(&line));
    lines.finish(&mut |line| hall.line(&line));
    Said { heard: hall.done("stdout"), announced: hall.announced().to_vec(), notes: Vec::new() }
}

fn judged(text: &str, end: End, meaning: Option<Meaning>) -> Observed {
    verdict(vec![stream(text)], end, meaning, "make check", Observed::default)
}

const PASSED: &str = "==== 2 passed in 0.01s ====\n";

#[test]
fn output_that_is_not_known_claims_nothing_unless_it_is_said_what_the_exit_code_means() {
    let silent = judged("hello\n", WELL, None);
    assert!(silent.is_empty() && silent.notes[0].contains("--as compile|tests|lint|types"), "{:?}", silent.notes);
    let of = |meaning, exit| judged("hello\n", End { exit, ..WELL }, Some(meaning)).result;
    assert_eq!(of(Meaning::Compile, 0).compile_pass, Some(true));
    assert_eq!(of(Meaning::Compile, 2).compile_pass, Some(false));
    assert_eq!((of(Meaning::Tests, 0).tests_passed, of(Meaning::Tests, 0).tests_total), (Some(1), Some(1)));
    assert_eq!((of(Meaning::Tests, 1).tests_passed, of(Meaning::Tests, 1).tests_total), (Some(0), Some(1)));
    assert_eq!((of(Meaning::Lint, 0).lint_errors, of(Meaning::Lint, 1).lint_errors), (Some(0), Some(1)));
    assert_eq!((of(Meaning::Types, 0).type_errors, of(Meaning::Types, 3).type_errors), (Some(0), Some(1)));
    // The command was not there: that is no verdict.
    assert_eq!(of(Meaning::Tests, 127), RunResult::default());
}

#[test]
fn what_was_read_is_not_overruled_by_the_exit_code() {
    let read = judged(PASSED, End { exit: 1, ..WELL }, Some(Meaning::Tests));
    assert_eq!((read.result.tests_passed, read.result.tests_total), (Some(2), Some(2)));
    assert!(
        read.notes.iter().any(|note| note == "it failed (exit code 1), though nothing that was read did"),
        "{:?}",
        read.notes
    );
    let bad = judged("==== 1 failed in 0.01s ====\n", WELL, None);
    assert!(bad.notes.iter().any(|note| note.contains("though something that was read did not")), "{:?}", bad.notes);
}

#[test]
fn a_command_that_did_not_come_to_its_end_claims_nothing() {
    let ends = [
        End { exit: 130, signal: Some(2), ..WELL },
        End { interrupted: true, ..WELL },
        End { unread: true, ..WELL },
        End { exit: 137, signal: Some(9), ..WELL },
    ];
    for end in ends {
        let observed = judged(PASSED, end, Some(Meaning::Tests));
        assert!(observed.is_empty() && observed.notes[0].ends_with("so nothing is claimed"), "{:?}", observed.notes);
    }
    let cut = judged("==== test session starts ====\ncollected 2 items\n", End { exit: 1, ..WELL }, None);
    assert!(cut.is_empty() && cut.notes.iter().any(|note| note.contains("nothing of it is counted")), "{:?}", cut.notes);
}

#[test]
fn both_streams_are_of_one_run() {
    let stderr = "    Finished `test` profile [unoptimized] target(s) in 0.5s\n";
    let stdout = "running 1 test\ntest a ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
    let observed = verdict(vec![stream(stdout), stream(stderr)], WELL, None, "cargo test", Observed::default);
    let RunResult { compile_pass, tests_passed, tests_total, type_errors, .. } = observed.result;
    assert_eq!((compile_pass, tests_passed, tests_total, type_errors), (Some(true), Some(1), Some(1), Some(0)));
    assert_eq!(observed.notes, Vec::<String>::new());
}

#[test]
fn tools_that_say_nothing_where_all_is_well_are_known_by_their_command() {
    assert_eq!(quiet_tools("tsc --noEmit"), [Kind::Tsc]);
    assert_eq!(quiet_tools("npx --yes tsc -p ."), [Kind::Tsc]);
    assert_eq!(quiet_tools("node node_modules/.bin/eslint src"), [Kind::EslintText]);
    assert_eq!(quiet_tools("tsc --noEmit && eslint ."), [Kind::Tsc, Kind::EslintText]);
    for other in ["grep tsc a.txt", "tsc --version", "tsc; true", "tsc || true", "npm run lint", "sh -c 'tsc --noEmit'", ""] {
        assert_eq!(quiet_tools(other), Vec::<Kind>::new(), "{other}");
    }
    let npm = "\n> shop@1.0.0 check\n> tsc --noEmit && eslint .\n\n";
    let observed = judged(npm, WELL, None);
    let RunResult { compile_pass, type_errors, lint_errors, .. } = observed.result;
    assert_eq!((compile_pass, type_errors, lint_errors), (Some(true), Some(0), Some(0)));
    assert_eq!(judged("yarn run v1.22.22\n$ eslint .\nDone in 0.50s.\n", WELL, None).result.lint_errors, Some(0));
    assert_eq!(judged("$ tsc --noEmit\n", WELL, None).result.type_errors, Some(0));
    // Anybody may print a prompt and a command.
    assert!(judged("To check, run\n\n$ tsc --noEmit\n> eslint .\n", WELL, None).is_empty());
    // It failed and said nothing: that is not known.
    assert!(judged(npm, End { exit: 1, ..WELL }, None).is_empty());
    // What it said is not overwritten.
    let said = judged("> shop@1.0.0 types\n> tsc --noEmit\na.ts(1,1): error TS2322: no.\n", WELL, None);
    assert_eq!((said.result.compile_pass, said.result.type_errors), (Some(false), Some(1)));
}

#[test]
fn a_report_is_taken_before_the_text_of_the_same_command() {
    let report = || {
        let result = RunResult { tests_passed: Some(1), tests_total: Some(2), ..RunResult::default() };
        Observed::new(result, "report.xml", Vec::new())
    };
    let failed = End { exit: 1, ..WELL };
    let said = vec![stream("==== 3 passed in 0.01s ====\nAll checks passed!\n")];
    let both = verdict(said, failed, Some(Meaning::Tests), "make check", report);
    assert_eq!((both.result.tests_passed, both.result.tests_total, both.result.lint_errors), (Some(1), Some(2), Some(0)));
    let told: Vec<(&str, f64)> = both.signals.iter().map(|signal| (signal.metric, signal.value)).collect();
    assert_eq!(told, [("tests_passed", 1.0), ("tests_total", 2.0), ("lint_errors", 0.0)]);
    // The report explains the exit code, and is what is known where nothing that was printed is.
    assert!(!both.notes.iter().any(|note| note.contains("though nothing that was read did")), "{:?}", both.notes);
    assert_eq!(verdict(vec![stream("hello\n")], failed, None, "make check", report).notes, Vec::<String>::new());
    // An interrupted command has written that of a part.
    assert!(verdict(Vec::new(), End { interrupted: true, ..failed }, None, "make check", report).is_empty());
}

#[test]
fn the_line_that_sums_it_up_has_what_was_seen() {
    let result = RunResult {
        compile_pass: Some(true),
        tests_passed: Some(12),
        tests_total: Some(13),
        lint_errors: Some(1),
        coverage_pct: Some(87.46),
        ..RunResult::default()
    };
    let line = Observed::new(result, "x", Vec::new()).summary();
    assert_eq!(line, "compiled, 12 of 13 tests passed, 1 lint error, 87.5% of lines covered");
    assert_eq!(Observed::default().summary(), "nothing was seen");
}
