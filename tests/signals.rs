//! What real tools wrote (tests/fixtures/signals), read to the numbers that the tools themselves said.

mod common;

use std::fs;
use std::path::PathBuf;

use retune::domain::RunResult;
use retune::signals::{Kind, Observed, combine, read, recognise};

/// The metrics of a fixture in the order of `row`: compile, passed, total, types, lint, boundary.
type Row = (Option<bool>, Option<u64>, Option<u64>, Option<u64>, Option<u64>, Option<u64>);

fn row(result: &RunResult) -> Row {
    let RunResult { compile_pass, tests_passed, tests_total, type_errors, lint_errors, boundary_errors, .. } = *result;
    (compile_pass, tests_passed, tests_total, type_errors, lint_errors, boundary_errors)
}

fn tests(passed: u64, total: u64) -> Row {
    (None, Some(passed), Some(total), None, None, None)
}

fn compiled(passed: u64, total: u64) -> Row {
    (Some(true), Some(passed), Some(total), None, None, None)
}

fn lint(errors: u64) -> Row {
    (None, None, None, None, Some(errors), None)
}

fn types(errors: u64) -> Row {
    (None, None, None, Some(errors), None, None)
}

const NOT_COMPILED: Row = (Some(false), None, None, None, None, None);

/// Fixture, its format, and what is to be read of it. The projects are in scripts/parity/signal_goldens.
#[rustfmt::skip]
fn table() -> Vec<(&'static str, Kind, Row)> {
    use Kind::*;
    vec![
        // 3 of 4 unit tests, 2 of 2 in tests/, 1 of 2 doc tests; one of each kind but the second is ignored.
        ("cargo_test.txt", CargoTestText, (Some(true), Some(6), Some(8), Some(0), Some(0), None)),
        ("cargo_test_color.txt", CargoTestText, (Some(true), Some(6), Some(8), Some(0), Some(0), None)),
        ("cargo_test_stdout.txt", CargoTestText, compiled(6, 8)),
        ("cargo_test_messages.jsonl", CargoJson, (Some(true), Some(6), Some(8), Some(0), Some(0), None)),
        ("libtest.jsonl", CargoTestText, compiled(5, 6)),
        // E0308, E0277, E0599, each told for the library and its tests; E0425 is no type error.
        ("cargo_types.jsonl", CargoJson, (Some(false), None, None, Some(3), None, None)),
        ("cargo_types.txt", CargoTestText, (Some(false), None, None, Some(3), None, None)),
        ("cargo_test_types.txt", CargoTestText, (Some(false), None, None, Some(3), None, None)),
        ("cargo_borrow.jsonl", CargoJson, (Some(false), None, None, Some(0), None, None)),
        ("cargo_syntax.jsonl", CargoJson, NOT_COMPILED),
        ("clippy.jsonl", CargoJson, (Some(false), None, None, Some(0), Some(1), None)),
        ("clippy.txt", CargoTestText, (Some(false), None, None, Some(0), Some(1), None)),
        ("clippy_denied.jsonl", CargoJson, (Some(false), None, None, Some(0), Some(4), None)),
        ("clippy_denied.txt", CargoTestText, (Some(false), None, None, Some(0), Some(4), None)),
        ("clippy.sarif", Sarif, lint(1)),
        // "1 failed, 3 passed, 1 skipped, 1 xfailed, 1 xpassed, 2 errors": one of the passed fails in its teardown.
        ("pytest.txt", PytestText, tests(3, 6)),
        ("pytest_quiet.txt", PytestText, tests(3, 6)),
        ("pytest_color.txt", PytestText, tests(3, 6)),
        ("pytest_no_summary.txt", PytestText, tests(3, 6)),
        ("pytest.xml", Junit, tests(3, 6)),
        ("pytest_teardown.txt", PytestText, tests(1, 2)),
        ("pytest_teardown.xml", Junit, tests(1, 2)),
        ("pytest_broken.txt", PytestText, tests(0, 1)),
        ("pytest_broken.xml", Junit, tests(0, 1)),
        ("pytest_none.txt", PytestText, Row::default()),
        ("unittest.txt", Unittest, tests(2, 4)),
        ("mypy.txt", Mypy, types(3)),
        ("mypy_syntax.txt", Mypy, NOT_COMPILED),
        ("mypy_fine.txt", Mypy, types(0)),
        ("pyright.txt", PyrightText, types(3)),
        ("pyright.json", PyrightJson, types(3)),
        ("ruff.txt", Ruff, lint(2)),
        ("ruff_fine.txt", Ruff, lint(0)),
        ("ruff.sarif", Sarif, lint(2)),
        ("ruff_syntax.sarif", Sarif, lint(2)),
        ("semgrep.sarif", Sarif, lint(1)),
        ("tsc.txt", Tsc, (Some(false), None, None, Some(4), None, None)),
        ("tsc_pretty.txt", Tsc, (Some(false), None, None, Some(4), None, None)),
        ("tsc_syntax.txt", Tsc, NOT_COMPILED),
        ("tsc_none.txt", Tsc, NOT_COMPILED),
        ("tsc_fine.txt", Tsc, (Some(true), None, None, Some(0), None, None)),
        // ESLint says 5 errors: 2 of boundaries, 2 of lint, a file that cannot be parsed; its SARIF has the last as its own trouble.
        ("eslint.json", EslintJson, (None, None, None, None, Some(3), Some(2))),
        ("eslint.txt", EslintText, (None, None, None, None, Some(3), Some(2))),
        ("eslint.sarif", Sarif, (None, None, None, None, Some(2), Some(2))),
        ("eslint_fine.json", EslintJson, lint(0)),
        ("depcruise.txt", DependencyCruiser, (None, None, None, None, None, Some(1))),
        // jest-junit writes the one that is still to be written (`test.todo`) as passed; the text knows it.
        ("jest.txt", Jest, tests(3, 4)),
        ("jest.xml", Junit, tests(4, 5)),
        ("jest_broken.txt", Jest, tests(1, 2)),
        ("jest_broken.xml", Junit, tests(1, 2)),
        ("mocha.txt", Mocha, tests(2, 3)),
        ("mocha.xml", Junit, tests(2, 3)),
        ("vitest.txt", Vitest, tests(2, 3)),
        ("vitest.xml", Junit, tests(2, 3)),
        ("vitest_broken.txt", Vitest, tests(1, 2)),
        ("node_test.txt", NodeTest, tests(2, 3)),
        ("node_test.tap", NodeTest, tests(2, 3)),
        ("go_test.jsonl", GoTest, compiled(3, 6)),
        ("go_test_verbose.txt", GoTest, compiled(3, 6)),
        ("go_test.txt", GoTest, (Some(true), None, None, None, None, None)),
        ("go_broken.jsonl", GoTest, NOT_COMPILED),
        ("gotestsum.xml", Junit, tests(3, 6)),
        ("go_junit_report.xml", Junit, tests(3, 6)),
        ("go_junit_report_broken.xml", Junit, tests(0, 1)),
        // "Tests run: 5, Failures: 1, Errors: 1, Skipped: 1, Flakes: 1"; the report says 3 tests and lists 5.
        ("surefire.xml", Junit, tests(2, 4)),
        ("maven.txt", Maven, compiled(2, 4)),
        // "2 tests failed out of 5": a program that is not there is one of them, and the skipped one is in the 5.
        ("ctest.xml", Junit, tests(2, 4)),
        ("ctest.txt", Ctest, tests(2, 4)),
        ("coverage.lcov", Lcov, Row::default()),
        ("jest.lcov", Lcov, Row::default()),
        ("c8.lcov", Lcov, Row::default()),
    ]
}

fn folder() -> PathBuf {
    common::root().join("tests/fixtures/signals")
}

fn bytes(name: &str) -> Vec<u8> {
    fs::read(folder().join(name)).unwrap()
}

fn said(kind: Kind, bytes: &[u8], name: &str) -> Observed {
    read(kind, bytes, name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

const DOCUMENTS: [Kind; 5] = [Kind::Junit, Kind::Sarif, Kind::EslintJson, Kind::PyrightJson, Kind::Lcov];

#[test]
fn every_tools_words_are_read_to_its_own_numbers() {
    for (name, kind, expected) in table() {
        assert_eq!(row(&said(kind, &bytes(name), name).result), expected, "{name}");
        // By itself, too, without being told what it is.
        if name != "tsc_fine.txt" {
            assert_eq!(row(&said(Kind::Log, &bytes(name), name).result), expected, "{name}, unnamed");
        }
    }
}

#[test]
fn every_fixture_is_in_the_table() {
    let mut files: Vec<String> = fs::read_dir(folder()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    files.retain(|name| name != "README.md");
    files.sort();
    let mut known: Vec<String> = table().into_iter().map(|(name, ..)| name.to_owned()).collect();
    known.sort();
    assert_eq!(files, known);
}

#[test]
fn coverage_is_that_of_the_tools() {
    // The sums of LH and LF, which each tool counted itself.
    for (name, hit, found) in [("coverage.lcov", 31, 34), ("jest.lcov", 3, 4), ("c8.lcov", 4, 6)] {
        let observed = said(Kind::Lcov, &bytes(name), name);
        assert_eq!(observed.result.coverage_pct, Some(f64::from(hit) * 100.0 / f64::from(found)), "{name}");
        let sums = String::from_utf8(bytes(name)).unwrap();
        let sum = |key: &str| -> i32 {
            sums.lines().filter_map(|line| line.strip_prefix(key)).map(|n| n.parse::<i32>().unwrap()).sum()
        };
        assert_eq!((sum("LH:"), sum("LF:")), (hit, found), "{name}");
    }
    // price.js, once by jest (lines 1, 2, 3, 5) and once by c8 (1 to 6): 1, 2, 5 and 6 ran.
    let both = combine(vec![said(Kind::Lcov, &bytes("jest.lcov"), "jest"), said(Kind::Lcov, &bytes("c8.lcov"), "c8")]);
    assert_eq!(both.result.coverage_pct, Some(400.0 / 6.0));
}

#[test]
fn byte_order_marks_and_carriage_returns_change_nothing() {
    for (name, kind, _) in table() {
        let (plain, mut changed) = (bytes(name), b"\xef\xbb\xbf".to_vec());
        changed.extend(String::from_utf8(plain.clone()).unwrap().replace('\n', "\r\n").into_bytes());
        assert_eq!(said(kind, &changed, name).result, said(kind, &plain, name).result, "{name}");
    }
}

#[test]
fn a_document_is_known_by_how_it_begins() {
    for (name, kind, _) in table() {
        let expected = match kind {
            Kind::CargoJson | Kind::Junit | Kind::Sarif | Kind::EslintJson | Kind::PyrightJson | Kind::Lcov => Some(kind),
            _ if name.ends_with(".jsonl") => Some(kind),
            _ => None,
        };
        assert_eq!(recognise(&bytes(name)), expected, "{name}");
    }
}

#[test]
fn what_is_given_to_the_wrong_option_is_refused_by_the_name_of_the_right_one() {
    for (name, kind, _) in table().into_iter().filter(|(_, kind, _)| DOCUMENTS.contains(kind)) {
        for asked in [Kind::Junit, Kind::Sarif, Kind::EslintJson, Kind::Lcov, Kind::CargoJson, Kind::Tsc] {
            if asked != kind {
                let error = read(asked, &bytes(name)[..], name).unwrap_err();
                let expected = format!("{name}: this is {}, and it was given as {}", kind.what(), asked.what());
                assert_eq!(error.to_string(), expected);
                assert_eq!(error.hint().unwrap(), format!("use {} {name}", kind.flag()));
            }
        }
    }
}

#[test]
fn an_empty_file_is_refused_by_all_but_tsc() {
    for (_, kind, _) in table().into_iter().filter(|(_, kind, _)| *kind != Kind::Tsc) {
        let error = read(kind, &b""[..], "empty").unwrap_err();
        assert!(error.to_string().starts_with("empty: ") && error.hint().is_some(), "{kind:?}: {error}");
    }
}

#[test]
fn a_document_that_was_cut_is_refused_and_text_that_was_cut_is_never_more() {
    for (name, kind, _) in table() {
        let whole = bytes(name);
        let all = said(kind, &whole, name).result;
        let end = whole.trim_ascii_end().len();
        for at in (0..end).step_by(1 + end / 300) {
            match read(kind, &whole[..at], name) {
                Ok(part) if DOCUMENTS.contains(&kind) => {
                    // Between two records of lcov is an end as good as any.
                    assert_eq!(kind, Kind::Lcov, "{name} cut at {at} was read: {:?}", part.result);
                    assert!(whole[..at].trim_ascii_end().ends_with(b"end_of_record"), "{name} cut at {at}");
                }
                Ok(part) => {
                    let passed = |result: &RunResult| result.tests_passed.unwrap_or(0);
                    assert!(passed(&part.result) <= passed(&all), "{name} cut at {at}: {:?}", part.result);
                }
                Err(error) => assert!(error.hint().is_some(), "{name} cut at {at}: {error}"),
            }
        }
    }
}

#[test]
fn bytes_that_are_changed_never_make_it_panic() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        // xorshift64: the same bytes in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for (name, kind, _) in table() {
        let whole = bytes(name);
        for _ in 0..if whole.is_empty() { 0 } else { 60 } {
            let mut changed = whole.clone();
            for _ in 0..4 {
                let at = next() as usize % changed.len();
                changed[at] = [b'"', b'{', b'<', b'>', b'\n', 0, 0xff, b'9', 0x1b][next() as usize % 9];
            }
            let _ = read(kind, &changed[..], name);
            let _ = read(Kind::Log, &changed[..], name);
        }
    }
}
