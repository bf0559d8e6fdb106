use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn read_text(text: &str) -> Result<Rows> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, text).unwrap();
    read(&path)
}

/// The turns of the only row, as (role, content).
fn turns(row: Value) -> Vec<(String, String)> {
    let rows = read_text(&row.to_string()).unwrap();
    assert_eq!(rows.examples.len(), 1);
    rows.examples[0].messages.iter().map(|m| (m.role.clone(), m.content.clone())).collect()
}

fn pairs(turns: &[(&str, &str)]) -> Vec<(String, String)> {
    turns.iter().map(|(role, content)| ((*role).to_owned(), (*content).to_owned())).collect()
}

fn complaint(text: &str) -> String {
    let error = read_text(text).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error:?}");
    assert!(error.hint().is_some());
    error.to_string().split_once("rows.jsonl: ").unwrap().1.to_owned()
}

#[test]
fn all_shapes_of_one_question_become_the_same_two_turns() {
    let expected = pairs(&[("user", "Add 1 and 2."), ("assistant", "3")]);
    for row in [
        json!({"instruction": "Add 1 and 2.", "input": "", "output": "3"}),
        json!({"instruction": "Add 1 and 2.", "output": "3", "source": "x"}),
        json!({"prompt": "Add 1 and 2.", "completion": "3"}),
        json!({"prompt": [{"role": "user", "content": "Add 1 and 2."}], "completion": [{"role": "assistant", "content": "3"}]}),
        json!({"question": "Add 1 and 2.", "answer": "3"}),
        json!({"messages": [{"role": "user", "content": "Add 1 and 2."}, {"role": "assistant", "content": "3"}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "Add 1 "}, {"type": "text", "value": "and 2."}]},
                            {"role": "assistant", "content": "3"}], "label": true}),
        json!({"conversations": [{"from": "human", "value": "Add 1 and 2."}, {"from": "gpt", "value": "3"}]}),
    ] {
        assert_eq!(turns(row.clone()), expected, "{row}");
    }
}

#[test]
fn alpaca_with_everything_puts_system_and_history_first_and_input_on_its_own_line() {
    let row = json!({"instruction": "I", "input": "N", "context": "C", "output": "O", "system": "S", "history": [["q", "a"]]});
    let expected = [("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "I\nN\nC"), ("assistant", "O")];
    assert_eq!(turns(row), pairs(&expected));
}

#[test]
fn sharegpt_calls_and_observations_become_tool_calls_and_tool_turns() {
    let row = json!({
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": "{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}"},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "It rains."}
        ],
        "system": "Be brief.",
        "tools": "[{\"name\": \"weather\"}]"
    });
    let rows = read_text(&row.to_string()).unwrap();
    let example = &rows.examples[0];
    let roles: Vec<_> = example.messages.iter().map(|m| m.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool", "assistant"]);
    let call = json!([{"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}]);
    assert_eq!(example.messages[2].extra["tool_calls"], call);
    assert_eq!(example.messages[2].content, "");
    assert_eq!(example.tools, Some(json!([{"name": "weather"}])));
}

#[test]
fn openai_calls_keep_their_ids_and_get_their_arguments_as_objects() {
    let row = json!({"messages": [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "assistant", "content": "two", "loss_weight": 0, "tool_calls": []}
    ], "tools": []});
    let rows = read_text(&row.to_string()).unwrap();
    let messages = &rows.examples[0].messages;
    assert_eq!(
        messages[1].extra["tool_calls"],
        json!([{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}])
    );
    assert_eq!(messages[2].extra["tool_call_id"], "c1");
    assert_eq!(messages[3].extra["loss_weight"], 0);
    assert!(!messages[3].extra.contains_key("tool_calls"));
    assert_eq!(rows.examples[0].tools, None);
}

#[test]
fn an_assistants_turn_in_a_prompt_is_not_learnt() {
    let row = json!({
        "prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        "completion": [{"role": "assistant", "content": "d"}]
    });
    let rows = read_text(&row.to_string()).unwrap();
    let messages = &rows.examples[0].messages;
    assert_eq!(messages[1].extra.get("loss_weight"), Some(&json!(0)));
    assert_eq!(messages[3].extra.get("loss_weight"), None);
}

#[test]
fn a_users_turn_at_the_end_is_dropped_and_counted() {
    let text = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "user", "content": "d"}]}
{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let rows = read_text(text).unwrap();
    assert_eq!(rows.trailing_user_turns, 1);
    assert_eq!(rows.examples.iter().map(|e| e.messages.len()).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(rows.examples.iter().map(|e| e.row).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn lines_and_arrays_read_alike_with_blank_lines_and_a_byte_order_mark() {
    let row = |i: usize| format!("{{\"prompt\": \"p{i}\", \"completion\": \"c{i}\"}}");
    for text in [
        format!("{}\n{}\n", row(1), row(2)),
        format!("\u{feff}{}\r\n\r\n\n{}", row(1), row(2)),
        format!("[{}, {}]", row(1), row(2)),
        format!("\n [\n{}\n,\n{}\n]\n ", row(1), row(2)),
    ] {
        let rows = read_text(&text).unwrap();
        let contents: Vec<_> = rows.examples.iter().map(|e| e.messages[1].content.as_str()).collect();
        assert_eq!(contents, ["c1", "c2"], "{text}");
    }
}

#[test]
fn errors_name_the_line_and_what_was_found() {
    let good = "{\"prompt\": \"p\", \"completion\": \"c\"}\n";
    assert_eq!(complaint(""), "holds no rows");
    assert_eq!(complaint("[]"), "holds no rows");
    assert_eq!(complaint(" \n\n"), "holds no rows");
    let broken = complaint(&format!("{good}\n{{\"prompt\": \"p\"\n{good}"));
    assert_eq!(broken, "line 4: invalid JSON: expected `,` or `}` (column 1, in the row that starts at line 3)");
    assert_eq!(complaint(&format!("{good}hello")), "line 2: expected a JSON object that starts with {, found \"hello\"");
    assert_eq!(complaint("[{\"prompt\": \"p\", \"completion\": \"c\"}"), "line 1: the file ends inside of its array: it is cut");
    assert_eq!(complaint("[{\"question\": \"p\", \"answer\": \"c\"} {}]"), "line 1: expected a comma or ] after row 1");
    assert_eq!(complaint("[{\"question\": \"p\", \"answer\": \"c\"}] x"), "line 1: text after the end of the array");
    assert_eq!(
        complaint(&format!("{good}{{\"prompt\": \"p\", \"canonical_solution\": \"c\"}}")),
        "line 2 (row 2): has the keys [prompt, canonical_solution], which is no shape that is known"
    );
    assert_eq!(
        complaint("{\"messages\": [{\"role\": \"user\", \"content\": \"c\"}]}"),
        "line 1 (row 1): has no assistant's turn to learn, only [] (the user's turn at the end is dropped)"
    );
    assert_eq!(
        complaint("{\"instruction\": \"x\", \"output\": 3}"),
        "line 1 (row 1): has a number as \"output\", expected a string"
    );
    assert!(
        complaint("{\"messages\": [{\"role\": \"bot\"}]}")
            .contains("turn 1 of \"messages\" has the role \"bot\", expected system, user")
    );
    assert!(
        complaint("{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"url\": \"x\"}]}]}")
            .contains("type \"image\"")
    );
    assert!(complaint("{\"question\": \"a\", \"answer\": \"b\", \"tools\": \"[\"}").contains("\"tools\" that is no JSON"));
    assert!(complaint("{\"prompt\": \"\u{0}\"}").contains("invalid JSON"));
    assert!(complaint(&format!("{{\"prompt\": {}", "[".repeat(100_000))).contains("recursion limit"));
}

#[test]
fn every_row_that_does_not_read_is_told_and_the_others_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let good = "{\"prompt\": \"p\", \"completion\": \"c\"}";
    let told = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let (rows, unreadable) = read_what_reads(&path, Wanted::GoodWork).unwrap();
        let read: Vec<usize> = rows.examples.iter().map(|example| example.row).collect();
        (read, unreadable.into_iter().map(|u| (u.line, u.row, u.reason)).collect::<Vec<_>>())
    };
    let text = format!("{good}\n{{\"prompt\": \n{good}\nhello\n\n{{\"question\": \"q\"}}\n{good}\n{{\"prompt\": \"p\", ");
    let (read, unreadable) = told(&text);
    assert_eq!(read, [1, 3, 6]);
    let places: Vec<_> = unreadable.iter().map(|(line, row, _)| (*line, *row)).collect();
    assert_eq!(places, [(4, 2), (4, 4), (6, 5), (8, 7)], "{unreadable:?}");
    assert!(unreadable[0].2.starts_with("invalid JSON"), "{unreadable:?}");
    assert_eq!(unreadable[1].2, "expected a JSON object that starts with {, found \"hello\"");
    assert_eq!(unreadable[2].2, "has the keys [question], which is no shape that is known");
    // An array has no lines to go on at.
    assert_eq!(
        told(&format!("[{good}, {good}")),
        (vec![1, 2], vec![(1, 3, "the file ends inside of its array: it is cut".to_owned())])
    );
    assert_eq!(told(""), (vec![], vec![]));
}

#[test]
fn the_first_row_says_what_a_file_is_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    for (row, expected) in [
        ("{\"prompt\": \"p\", \"completion\": \"c\"}", Wanted::GoodWork),
        ("[{\"prompt\": \"p\", \"chosen\": \"c\", \"rejected\": \"r\"}]", Wanted::Pairs),
        ("{\"prompt\": \"p\", \"completion\": \"c\", \"label\": true}", Wanted::Labelled),
        ("no JSON", Wanted::GoodWork),
    ] {
        std::fs::write(&path, row).unwrap();
        assert_eq!(kind(&path).unwrap(), expected, "{row}");
    }
}

#[test]
fn a_missing_file_says_cannot_open() {
    let error = read(Path::new("/no/such/rows.jsonl")).unwrap_err();
    assert!(error.to_string().starts_with("cannot open /no/such/rows.jsonl"), "{error}");
}

fn data_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("RETUNE_TEST_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    folder.is_dir().then_some(folder)
}

#[test]
fn the_files_of_the_world_have_the_rows_that_were_counted_in_them() {
    let Some(folder) = data_folder() else { return println!("skipped: no test data (set RETUNE_TEST_DATA)") };
    // (file, examples, turns, unwanted rows)
    for (file, examples, turns, unwanted) in [
        ("sft/alpaca_en_demo.json", 999, 1998, 0),
        ("sft/children_stories.jsonl", 1500, 3000, 0),
        ("sft/gsm8k_train.jsonl", 7473, 14946, 0),
        ("sft/messages_demo.jsonl", 500, 1000, 0),
        ("sft/tool_calls_heldout.jsonl", 210, 420, 0),
        ("sft/tool_calls_train.jsonl", 2100, 4200, 0),
        ("sft/tool_use_demo.jsonl", 50, 274, 0),
    ] {
        let rows = read(&folder.join(file)).unwrap();
        let found: usize = rows.examples.iter().map(|e| e.messages.len()).sum();
        assert_eq!(
            (rows.examples.len(), found, rows.unwanted_rows, rows.trailing_user_turns),
            (examples, turns, unwanted, 0),
            "{file}"
        );
    }
    let rows = read(&folder.join("preference/kto_en_demo.json")).unwrap();
    assert_eq!(rows.examples.len() + rows.unwanted_rows, 300);
    assert!(rows.unwanted_rows > 0);
    let rows = read(&folder.join("sft/tool_use_demo.jsonl")).unwrap();
    let calls: usize =
        rows.examples.iter().flat_map(|e| &e.messages).filter_map(|m| m.extra.get("tool_calls")?.as_array()).map(Vec::len).sum();
    assert_eq!(calls, 68);
    // Two rows have an empty list.
    assert_eq!(rows.examples.iter().filter(|e| e.tools.as_ref().is_some_and(Value::is_array)).count(), 48);
    for (file, words) in [
        ("sft/humanevalpack_rust.jsonl", "line 1 (row 1): has the keys [task_id, prompt,"),
        ("sft/humanevalpack_rust_verified.json", "line 1 (row 1): has the keys [Rust/0,"),
        ("preference/dpo_en_demo.json", "line 2 (row 1): holds a preference"),
    ] {
        let error = read(&folder.join(file)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

proptest! {
    /// Whatever stands in a file, the answer is rows or an error.
    #[test]
    fn any_text_gives_rows_or_an_error(text in "[\\[\\]{}\",: a\n\\\\0-9]{0,60}", cut in any::<prop::sample::Index>()) {
        let _ = read_text(&text);
        let row = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "ü"}]}, {"role": "assistant", "content": text}]}).to_string();
        let at = row.floor_char_boundary(cut.index(row.len()));
        prop_assert!(read_text(&row[..at]).is_err());
        prop_assert_eq!(read_text(&row).unwrap().examples.len(), 1);
    }
}

#[test]
fn each_row_is_visited_and_a_bad_line_does_not_end_it() {
    let scratch = tempfile::tempdir().unwrap();
    let visited = |text: &str| {
        let path = scratch.path().join("rows");
        std::fs::write(&path, text).unwrap();
        let mut seen = Vec::new();
        each(&path, &mut |line, row| {
            seen.push((line, row.map(|row| row["a"].to_string()).unwrap_or_else(|problem| problem)));
            Ok(())
        })
        .unwrap();
        seen
    };
    let seen = visited("{\"a\": 1}\n{\"a\": \nnonsense\n\n{\"a\": 2}\n{\"a\": 3");
    assert_eq!(seen[0], (1, "1".to_owned()));
    assert!(seen[1].1.contains("invalid JSON") && seen[1].0 == 3, "{seen:?}");
    assert!(seen[2].1.contains("found \"nonsense\""), "{seen:?}");
    assert_eq!(seen[3], (5, "2".to_owned()));
    assert!(seen[4].1.contains("EOF"), "{seen:?}");
    assert_eq!(seen.len(), 5);
    let cut = visited("[{\"a\": 1}, {\"a\": 2}");
    assert_eq!((cut.len(), &cut[1].1[..]), (3, "2"));
    assert!(cut[2].1.contains("it is cut"), "{cut:?}");
}
