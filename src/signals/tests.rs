use super::*;

fn said(kind: Kind, text: &str) -> Observed {
    read(kind, text.as_bytes(), "file").unwrap()
}

fn refused(kind: Kind, text: impl AsRef<[u8]>) -> String {
    let error = read(kind, text.as_ref(), "file").unwrap_err();
    format!("{error}; {}", error.hint().unwrap_or_default())
}

fn tests_of(observed: &Observed) -> (Option<u64>, Option<u64>) {
    (observed.result.tests_passed, observed.result.tests_total)
}

fn lcov(file: &str, lines: &[(u32, i32)]) -> String {
    let lines: String = lines.iter().map(|(line, count)| format!("DA:{line},{count}\n")).collect();
    format!("TN:\nSF:{file}\n{lines}end_of_record\n")
}

#[test]
fn a_signal_is_named_as_the_field_of_the_result() {
    let result = RunResult {
        compile_pass: Some(true),
        lint_errors: Some(1),
        type_errors: Some(2),
        tests_passed: Some(3),
        tests_total: Some(4),
        coverage_pct: Some(5.0),
        schema_errors: Some(6),
        boundary_errors: Some(7),
        human_accept: Some(false),
        convention_score: Some(0.5),
        iterations: Some(9),
    };
    let observed = Observed::new(result.clone(), "here", Vec::new());
    let json = serde_json::to_value(&result).unwrap();
    let fields = json.as_object().unwrap();
    assert_eq!(observed.signals.len(), fields.len());
    for signal in &observed.signals {
        let field = &fields[signal.metric];
        assert_eq!(
            field.as_f64().unwrap_or_else(|| f64::from(u8::from(field.as_bool().unwrap()))),
            signal.value,
            "{}",
            signal.metric
        );
    }
}

#[test]
fn sources_add_up_and_it_compiled_where_all_say_so() {
    let part = |compiled, passed, total, lint| {
        let result = RunResult {
            compile_pass: compiled,
            tests_passed: passed,
            tests_total: total,
            lint_errors: lint,
            ..RunResult::default()
        };
        Observed::new(result, "x", vec!["note".into()])
    };
    let whole = combine(vec![
        part(Some(true), Some(3), Some(4), None),
        part(None, None, None, Some(2)),
        part(Some(false), Some(5), Some(5), Some(1)),
        part(Some(true), None, None, None),
    ]);
    let expected = RunResult {
        compile_pass: Some(false),
        tests_passed: Some(8),
        tests_total: Some(9),
        lint_errors: Some(3),
        ..RunResult::default()
    };
    assert_eq!((whole.result, whole.signals.len(), whole.notes.len()), (expected, 9, 4));
    assert_eq!(combine(Vec::new()), Observed::default());
}

#[test]
fn coverage_is_that_of_all_lines_and_a_line_counts_once() {
    // Means of percentages would be 75; lines are 1 of 10 and 1 of 1.
    let large = lcov("large", &[(1, 1), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0), (9, 0), (10, 0)]);
    let small = lcov("small", &[(1, 7)]);
    let whole = combine(vec![said(Kind::Lcov, &large), said(Kind::Lcov, &small)]);
    assert_eq!(whole.result.coverage_pct, Some(200.0 / 11.0));
    // Two runs over one file: 1, 2 by the first, 2, 3 by the second, 4 by none.
    let one = lcov("a", &[(1, 1), (2, 1), (3, 0), (4, 0)]);
    let two = lcov("a", &[(1, 0), (2, 3), (3, 1), (4, 0)]);
    for whole in [combine(vec![said(Kind::Lcov, &one), said(Kind::Lcov, &two)]), said(Kind::Lcov, &(one + &two))] {
        assert_eq!(whole.result.coverage_pct, Some(75.0));
    }
}

#[test]
fn lcov_without_lines_says_nothing_of_coverage() {
    let none = said(Kind::Lcov, "TN:\nSF:types.d.ts\nFNF:0\nFNH:0\nLF:0\nLH:0\nend_of_record\n");
    assert_eq!((none.result.coverage_pct, none.is_empty(), none.notes.len()), (None, true, 1));
    // Only the sums of a file, as some tools write it; counts of gcc that are no natural numbers.
    assert_eq!(said(Kind::Lcov, "SF:a\nLF:8\nLH:2\nend_of_record\n").result.coverage_pct, Some(25.0));
    assert_eq!(
        said(Kind::Lcov, "SF:a\nDA:1,-1\nDA:2,1e9\nDA:3,=====\nend_of_record\n".replace("DA:3,=====\n", "").as_str())
            .result
            .coverage_pct,
        Some(50.0)
    );
}

#[test]
fn broken_lcov_is_refused_with_its_line() {
    let whole = lcov("a", &[(1, 1)]);
    assert!(refused(Kind::Lcov, whole.trim_end_matches("end_of_record\n")).contains("ends within a record"));
    assert!(refused(Kind::Lcov, "TN:\nDA:1,1\n").contains("line 2 stands outside of a record"));
    assert!(refused(Kind::Lcov, "SF:a\nDA:1\nend_of_record\n").contains("line 2 has no line and count"));
    assert!(refused(Kind::Lcov, "SF:a\nSF:b\n").contains("line 2 begins a record within that of a"));
    assert!(refused(Kind::Lcov, "SF:a\nthis is text\n").contains("line 2 is no line of lcov"));
    assert!(refused(Kind::Lcov, "").contains("has no record"));
}

const SUITES: &str = r#"<?xml version="1.0"?>
<testsuites tests="99" failures="0"><testsuite name="outer" tests="7"><properties><property name="a"/></properties>
  <testsuite name="inner" tests="3"><testcase name="a"/><testcase name="b"><failure/><failure/></testcase>
    <testcase name="c"><skipped/><failure message="x"/></testcase></testsuite>
  <testcase name="d"><system-out><![CDATA[<failure/>]]></system-out></testcase>
  <testcase name="e"><error/></testcase><testcase name="f"><skipped/></testcase>
</testsuite><testsuite name="unloaded" tests="0"><error message="no such file"/></testsuite></testsuites>"#;

#[test]
fn junit_counts_elements_in_whatever_suites_they_stand() {
    let observed = said(Kind::Junit, SUITES);
    // Passed: a, d. Failed: b, c, e and the suite that could not be loaded. f is skipped.
    assert_eq!(tests_of(&observed), (Some(2), Some(6)));
    assert_eq!(observed.notes.len(), 2, "{:?}", observed.notes);
    let suite = said(Kind::Junit, r#"<testsuite tests="5"><testcase name="a"/></testsuite>"#);
    assert_eq!((tests_of(&suite), suite.notes.len()), ((Some(1), Some(1)), 1));
    // Rows of data have one name, and each is a test.
    let row = r#"<testcase classname="c" name="row"><failure/></testcase>"#;
    assert_eq!(tests_of(&said(Kind::Junit, &format!("<testsuite>{row}{row}{row}</testsuite>"))), (Some(0), Some(3)));
}

#[test]
fn junit_without_tests_claims_nothing() {
    let none = said(Kind::Junit, r#"<testsuites><testsuite name="a" tests="0"></testsuite></testsuites>"#);
    assert_eq!((none.is_empty(), none.result), (true, RunResult::default()));
    let skipped = said(Kind::Junit, r#"<testsuite tests="1"><testcase name="a" status="notrun"/></testsuite>"#);
    assert_eq!((skipped.is_empty(), skipped.notes.len()), (true, 2));
}

#[test]
fn junit_that_was_cut_is_refused_wherever_it_was() {
    for end in 1..SUITES.len() {
        let error = refused(Kind::Junit, &SUITES[..end]);
        assert!(error.starts_with("file: "), "{end}: {error}");
    }
    assert!(refused(Kind::Junit, &SUITES[..SUITES.len() - 13]).contains("<testsuites> has no end"));
    assert!(refused(Kind::Junit, "<testsuites><testsuite></testsuites>").contains("is broken XML"));
}

#[test]
fn document_types_and_depth_are_refused() {
    let bomb = r#"<!DOCTYPE a [<!ENTITY b "&c;&c;"><!ENTITY c "&d;&d;">]><testsuite name="&b;"/>"#;
    assert!(refused(Kind::Junit, bomb).contains("has a document type (DTD)"));
    let deep = "<testsuite>".repeat(1000);
    assert!(refused(Kind::Junit, deep).contains("is nested deeper than 64"));
    let nested = "[".repeat(100_000);
    assert!(
        refused(Kind::EslintJson, &nested).contains("is no valid ESLint's JSON")
            || refused(Kind::EslintJson, &nested).contains("recursion")
    );
    assert!(refused(Kind::Junit, "<coverage/>").contains("begins with <coverage>"));
}

#[test]
fn junit_with_bytes_that_are_no_text_is_read() {
    let text = b"<testsuite name=\"caf\xe9\" tests=\"9\"><testcase name=\"a\"><system-out>\xff\xfe\x00</system-out></testcase></testsuite>";
    let observed = read(Kind::Junit, &text[..], "file").unwrap();
    assert_eq!(tests_of(&observed), (Some(1), Some(1)));
    assert!(observed.notes[0].contains("caf\u{fffd}"), "{:?}", observed.notes);
}

fn sarif(rules: &str, results: &str) -> String {
    format!(r#"{{"version":"2.1.0","runs":[{{"results":[{results}],"tool":{{"driver":{{"name":"tool","rules":[{rules}]}}}}}}]}}"#)
}

#[test]
fn a_result_of_sarif_counts_by_its_level_or_that_of_its_rule() {
    let rules = r#"{"id":"strict","defaultConfiguration":{"level":"error"}},{"id":"mild"}"#;
    let results = [
        r#"{"ruleId":"x","level":"error"}"#,
        r#"{"ruleId":"strict"}"#,
        r#"{"ruleId":"strict/deeper"}"#,
        r#"{"ruleIndex":0}"#,
        r#"{"rule":{"id":"strict"}}"#,
        r#"{"ruleId":"strict","level":"warning"}"#,
        r#"{"ruleId":"mild"}"#,
        r#"{"ruleId":"unknown"}"#,
        r#"{"level":"note"}"#,
        r#"{"level":"none"}"#,
    ];
    let observed = said(Kind::Sarif, &sarif(rules, &results.join(",")));
    assert_eq!(observed.result.lint_errors, Some(5));
    assert_eq!(observed.notes, ["file (SARIF): 2 left out: notes", "file (SARIF): 3 warnings, not counted: only errors are"]);
}

#[test]
fn a_result_of_sarif_that_is_settled_does_not_count() {
    let results = [
        r#"{"level":"error","suppressions":[]}"#,
        r#"{"level":"error","suppressions":[{"kind":"inSource"}]}"#,
        r#"{"level":"error","suppressions":[{"kind":"external","status":"accepted"}]}"#,
        r#"{"level":"error","suppressions":[{"kind":"external","status":"rejected"}]}"#,
        r#"{"level":"error","suppressions":[{"kind":"inSource"},{"kind":"external","status":"underReview"}]}"#,
        r#"{"level":"error","baselineState":"new"}"#,
        r#"{"level":"error","baselineState":"updated"}"#,
        r#"{"level":"error","baselineState":"unchanged"}"#,
        r#"{"level":"error","baselineState":"absent"}"#,
        r#"{"level":"error","kind":"fail"}"#,
        r#"{"level":"error","kind":"pass"}"#,
        r#"{"level":"error","kind":"open"}"#,
    ];
    // Stand: 1, 4, 5, 6, 7, 10.
    assert_eq!(said(Kind::Sarif, &sarif("", &results.join(","))).result.lint_errors, Some(6));
}

#[test]
fn errors_of_boundaries_and_schemas_are_told_by_their_rule() {
    let results = [
        "boundaries/element-types",
        "import/no-restricted-paths",
        "import-x/no-cycle",
        "TID251",
        "ajv/required",
        "TID2",
        "import/order",
    ];
    let results: Vec<String> = results.iter().map(|rule| format!(r#"{{"ruleId":"{rule}","level":"error"}}"#)).collect();
    let RunResult { lint_errors, boundary_errors, schema_errors, .. } = said(Kind::Sarif, &sarif("", &results.join(","))).result;
    assert_eq!((lint_errors, boundary_errors, schema_errors), (Some(2), Some(4), Some(1)));
    // A rule that was looked at and found nothing.
    let clean = said(Kind::Sarif, &sarif(r#"{"id":"no-restricted-imports"}"#, "")).result;
    assert_eq!((clean.lint_errors, clean.boundary_errors, clean.schema_errors), (Some(0), Some(0), None));
}

#[test]
fn sarif_of_a_type_checker_or_a_compiler_has_type_errors() {
    let of = |tool: &str, rule: &str| {
        let text = sarif("", &format!(r#"{{"ruleId":"{rule}","level":"error"}}"#)).replace("\"tool\",", &format!("\"{tool}\","));
        let RunResult { lint_errors, type_errors, .. } = said(Kind::Sarif, &text).result;
        (lint_errors, type_errors)
    };
    assert_eq!(of("mypy", "arg-type"), (None, Some(1)));
    assert_eq!(of("clippy", "E0308"), (Some(0), Some(1)));
    assert_eq!(of("clippy", "E0382"), (Some(0), None));
    assert_eq!(of("clippy", "clippy::len_zero"), (Some(1), None));
}

#[test]
fn sarif_of_another_version_or_a_run_without_results_is_told() {
    assert!(refused(Kind::Sarif, r#"{"version":"2.0.0","runs":[]}"#).contains("is SARIF 2.0.0, and 2.1.0 is read"));
    let none = said(Kind::Sarif, r#"{"version":"2.1.0","runs":[{"tool":{"driver":{"name":"t"}}}]}"#);
    assert!(none.is_empty() && none.notes[0].contains("t has no results"));
    assert!(refused(Kind::Sarif, r#"{"version":"2.1.0","runs":[{"to"#).contains("it was cut"));
}

#[test]
fn cargos_messages_count_once_and_need_their_end() {
    let message = |level: &str, code: &str, line: u32| {
        let span = format!(r#"{{"file_name":"a.rs","line_start":{line},"column_start":1,"is_primary":true}}"#);
        format!(
            r#"{{"reason":"compiler-message","package_id":"p","message":{{"message":"m","level":"{level}","code":{code},"spans":[{span}]}}}}"#
        )
    };
    let coded = |code: &str| format!(r#"{{"code":"{code}"}}"#);
    let end = |success: bool| format!(r#"{{"reason":"build-finished","success":{success}}}"#);
    let lines = [
        message("error", &coded("E0308"), 1),
        message("error", &coded("E0308"), 1),
        message("error", &coded("E0308"), 2),
        message("error", &coded("E0499"), 3),
        message("error", &coded("clippy::all"), 4),
        message("warning", &coded("dead_code"), 5),
        message("error", "null", 6),
    ];
    let text = |end: &str| format!("{}\n{end}\n", lines.join("\n"));
    let observed = said(Kind::CargoJson, &text(&end(false)));
    let RunResult { compile_pass, type_errors, lint_errors, .. } = observed.result;
    assert_eq!((compile_pass, type_errors, lint_errors), (Some(false), Some(2), Some(1)));
    assert!(observed.notes[0].contains("2 errors neither of types nor a lint (E0499, no code)"), "{:?}", observed.notes);
    assert!(refused(Kind::CargoJson, text("")).contains("ends before cargo's last message"));
    assert!(refused(Kind::CargoJson, text(&end(false)[..20])).contains("is no JSON"));
    // Two builds in one file: both must be well.
    assert_eq!(said(Kind::CargoJson, &(end(true) + "\n" + &end(true))).result.compile_pass, Some(true));
    assert_eq!(said(Kind::CargoJson, &(end(false) + "\n" + &end(true))).result.compile_pass, Some(false));
}

#[test]
fn a_test_program_that_crashes_has_not_passed_the_rest() {
    let text = "\nrunning 4 tests\ntest a ... ok\ntest b ... ignored\n\nrunning 1 test\ntest c ... ok\n\n\
        test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
    let observed = said(Kind::CargoTestText, text);
    assert_eq!((tests_of(&observed), observed.notes.len()), ((Some(2), Some(4)), 2));
}

#[test]
fn what_a_failed_test_printed_is_no_result() {
    let inner = "running 4 tests\ntest result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
        Tests:       3 passed, 3 total\nfailures:\nsrc/a.ts(1,2): error TS2322: no.\n";
    let text = format!(
        "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\n{inner}\n\nfailures:\n    b\n\n\
        test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.00s\n"
    );
    let observed = said(Kind::Log, &text);
    assert_eq!((tests_of(&observed), observed.result.type_errors), ((Some(1), Some(2)), None));
}

#[test]
fn several_tools_in_one_output_add_up() {
    let text = "==== 2 passed in 0.01s ====\nAll checks passed!\nFound 1 error in 1 file (checked 3 source files)\n\
        src/a.ts(1,2): error TS2322: no.\n3 passed, 1 failed in 0.10s\n";
    let observed = said(Kind::Log, text);
    assert_eq!(tests_of(&observed), (Some(5), Some(6)));
    assert_eq!((observed.result.type_errors, observed.result.lint_errors), (Some(2), Some(0)));
}

#[test]
fn lines_that_only_look_like_a_summary_are_none() {
    for text in [
        "it said 3 passed in 0.01s\n",
        "3 passed in total\n",
        "3 apples, 4 passed in 2\n",
        "Tests: 3 of them\n",
        "Tests run: 5\n",
        "we Found 3 errors.\n",
        "Found 3 errors in the text.\n",
        "test result: ok. 5 passed; 0 failed\n",
        "error: no such file\n",
        "warning: `a` generated 3 warnings\n",
        "a.c:1:2: error: no  [syntax]\n",
        "5 passing thoughts\n",
    ] {
        assert!(refused(Kind::Log, text).contains("holds nothing of"), "{text}");
    }
}

#[test]
fn tsc_that_says_nothing_found_nothing() {
    for text in ["", "\n", "\n> shop@1.0.0 types\n> tsc --noEmit\n\n", "yarn run v1.22.22\n$ tsc\nDone in 1.20s.\n"] {
        let observed = said(Kind::Tsc, text);
        assert_eq!((observed.result.compile_pass, observed.result.type_errors), (Some(true), Some(0)), "{text:?}");
    }
    assert!(refused(Kind::Tsc, "sh: 1: tsc: not found\n").contains("holds nothing of tsc's text"));
}

#[test]
fn tsc_tells_types_from_syntax() {
    let errors = |codes: &[u32]| -> String { codes.iter().map(|code| format!("a.ts(1,1): error TS{code}: no.\n")).collect() };
    let of = |codes: &[u32]| {
        let observed = said(Kind::Tsc, &errors(codes));
        (observed.result.compile_pass, observed.result.type_errors)
    };
    assert_eq!(of(&[2322, 7006, 18047, 1360, 4023]), (Some(false), Some(5)));
    assert_eq!(of(&[1005, 17008]), (Some(false), None));
    assert_eq!(of(&[1005, 2304]), (Some(false), Some(1)));
}

#[test]
fn what_is_given_to_the_wrong_option_names_the_right_one() {
    let error = refused(Kind::Junit, sarif("", ""));
    assert_eq!(error, "file: this is SARIF, and it was given as JUnit XML; use --sarif file");
    assert!(
        refused(Kind::Tsc, "==== 2 passed in 0.01s ====\n")
            .contains("this is pytest's text, and it was given as tsc's text; use --log")
    );
    assert!(refused(Kind::PytestText, SUITES).contains("use --junit"));
}

#[test]
fn utf16_is_refused_with_what_to_do() {
    let text: Vec<u8> = "\u{feff}<testsuite/>".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(refused(Kind::Junit, text).contains("this is UTF-16; save it as UTF-8"));
}

#[test]
fn a_line_of_a_hundred_megabytes_is_read_past() {
    let mut text = vec![b'x'; 100 << 20];
    text.extend_from_slice(b"\n==== 2 passed in 0.01s ====\n");
    let observed = read(Kind::PytestText, &text[..], "file").unwrap();
    assert_eq!((tests_of(&observed), observed.notes.len()), ((Some(2), Some(2)), 1));
    // As one line of JSON it is refused or read in part, and never held twice over.
    text[0] = b'{';
    assert!(refused(Kind::CargoJson, &text).contains("given as cargo's JSON messages"));
}
