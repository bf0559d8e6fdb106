use serde_json::json;

use super::*;
use crate::config::Config;
use crate::domain::SourceKind;

struct Place {
    scratch: tempfile::TempDir,
    store: Store,
    recorder: Recorder,
}

impl Place {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        Self { scratch, store, recorder: Recorder::new(&Config::default()).unwrap() }
    }

    fn import(&mut self, text: &str, request: &ImportRequest) -> Imported {
        let path = self.scratch.path().join("rows");
        std::fs::write(&path, text).unwrap();
        import(&mut self.store, &self.recorder, &path, request, &mut |_| Ok(())).unwrap()
    }
}

fn named() -> ImportRequest {
    let source = Some(Source { name: "the team".to_owned(), kind: SourceKind::Person, ..Source::default() });
    ImportRequest { role: Some("coder".to_owned()), source, ..ImportRequest::default() }
}

#[test]
fn rows_of_every_shape_are_taken_and_the_others_are_counted_with_their_reason() {
    let mut place = Place::new();
    let rows = [
        json!({"instruction": "a", "input": "b", "output": "c"}).to_string(),
        json!({"prompt": "p", "completion": "q"}).to_string(),
        json!({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}], "tools": [{"name": "t"}]}).to_string(),
        json!({"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}).to_string(),
        json!({"user_input": "make it", "hypotheses": [{"id": "h1", "text": "one"}, {"id": "h2", "text": "two"}], "selected_id": "h2"}).to_string(),
        json!({"role": "fixer", "prompt": "p", "output": "o", "result": {"compile_pass": true}}).to_string(),
        "{\"broken\": nope}".to_owned(),
        json!({"instruction": "a", "input": "b", "output": "c"}).to_string(),
        json!({"nothing": "known"}).to_string(),
        json!({"user_input": "make it", "hypotheses": [], "selected_id": "h9"}).to_string(),
        json!({"role": "fixer", "promt": "p"}).to_string(),
        json!({"prompt": "x", "completion": "y", "label": false}).to_string(),
    ];
    let found = place.import(&rows.join("\n"), &named());
    assert_eq!((found.rows, found.taken, found.duplicate, found.refused), (12, 6, 1, 5), "{found:#?}");
    let lines: Vec<usize> = found.first_refused.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [7, 9, 10, 11, 12]);
    let why = |n: usize| found.first_refused[n].1.as_str();
    assert!(why(0).contains("invalid JSON") && why(2).contains("no hypothesis is called h9"), "{found:#?}");
    assert!(why(3).contains("unknown field `promt`") && why(4).contains("bad work"), "{found:#?}");
    let texts = |run: i64| place.store.texts(run).unwrap().unwrap().messages.last().unwrap().content.clone();
    assert_eq!([1, 2, 3, 4, 5, 6].map(texts), ["c", "q", "v", "g", "two", "o"]);
    // A pair of a named source is a demonstration; a run is what it is.
    let kinds = |role: &str| place.store.candidates(role).unwrap().iter().map(|c| c.demonstration).collect::<Vec<_>>();
    assert_eq!((kinds("coder"), kinds("fixer")), (vec![true; 5], vec![false]));
    // Again, and in an array: all there.
    let array = format!("[{}]", rows[..6].join(","));
    let again = place.import(&array, &named());
    assert_eq!((again.taken, again.duplicate), (0, 6), "{again:?}");
}

#[test]
fn a_pair_without_an_author_is_refused() {
    let mut place = Place::new();
    let nobody = ImportRequest { source: None, ..named() };
    let found = place.import("{\"prompt\": \"p\", \"completion\": \"q\"}", &nobody);
    assert_eq!((found.taken, found.refused), (0, 1));
    assert!(found.first_refused[0].1.contains("give --source"), "{found:?}");
}

#[test]
fn templates_make_pairs_of_any_row_and_a_field_that_is_missing_refuses_it() {
    let mut place = Place::new();
    let request = ImportRequest {
        prompt: Some("Fix this:\n{{ declaration }}{{ buggy_solution }}\n".to_owned()),
        output: Some("{{ canonical_solution }}".to_owned()),
        system: Some("You mend {{ language }}.".to_owned()),
        task: Some("task_id".to_owned()),
        role: Some("fixer".to_owned()),
        ..named()
    };
    let row = |n: usize| json!({"task_id": format!("Rust/{n}"), "language": "Rust", "declaration": "fn f() {\n", "buggy_solution": "  2\n}\n", "canonical_solution": format!("  {n}\n}}\n")});
    let text = format!("{}\n{}\n{}", row(1), row(2), json!({"task_id": "Rust/3"}));
    let found = place.import(&text, &request);
    assert_eq!((found.taken, found.refused), (2, 1));
    assert!(found.first_refused[0].1.contains("--prompt does not fit the row"), "{found:?}");
    let texts = place.store.texts(1).unwrap().unwrap();
    let contents: Vec<&str> = texts.messages.iter().map(|m| m.content.as_str()).collect();
    assert_eq!(contents, ["You mend Rust.", "Fix this:\nfn f() {\n  2\n}\n\n", "  1\n}\n"]);
    let groups: Vec<String> = place.store.candidates("fixer").unwrap().into_iter().map(|c| c.group).collect();
    assert_ne!(groups[0], groups[1]);
    assert_eq!(place.store.run("1").unwrap().unwrap().task.as_deref(), Some("Rust/1"));
}
