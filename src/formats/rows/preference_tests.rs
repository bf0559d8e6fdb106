use serde_json::json;

use super::*;

fn read_text(text: &str, wanted: Wanted) -> Result<Rows> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, text).unwrap();
    read_as(&path, wanted)
}

/// What is said in an example: the role's first letter, a star where it is learnt, the content.
fn told(example: &Example) -> Vec<String> {
    let mark = |message: &crate::domain::Message| if message.is_learnt() { "*" } else { "" };
    example.messages.iter().map(|m| format!("{}{}:{}", &m.role[..1], mark(m), m.content)).collect()
}

fn complaint(row: &Value, wanted: Wanted) -> (String, String) {
    let error = read_text(&row.to_string(), wanted).unwrap_err();
    (error.to_string().split_once("(row 1): ").unwrap().1.to_owned(), error.hint().unwrap())
}

#[test]
fn all_shapes_of_one_pair_become_the_same_two_conversations() {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let (user, good, bad) = (turn("user", "Q"), turn("assistant", "G"), turn("assistant", "B"));
    for row in [
        json!({"prompt": "Q", "chosen": "G", "rejected": "B"}),
        json!({"question": "Q", "chosen": "G", "rejected": "B"}),
        json!({"prompt": [user], "chosen": [good], "rejected": [bad]}),
        json!({"chosen": [user, good], "rejected": [user, bad]}),
        json!({"prompt": "Q", "chosen": [user, good], "rejected": [user, bad]}),
        json!({"messages": [user], "chosen": good, "rejected": bad}),
        json!({"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "G"}, "rejected": {"from": "gpt", "value": "B"}}),
        json!({"instruction": "Q", "input": "", "chosen": "G", "rejected": "B"}),
        json!({"instruction": "Q", "output": ["G", "B"]}),
    ] {
        let rows = read_text(&row.to_string(), Wanted::Pairs).unwrap();
        assert_eq!(rows.good, [true, false], "{row}");
        assert_eq!(told(&rows.examples[0]), ["u:Q", "a*:G"], "{row}");
        assert_eq!(told(&rows.examples[1]), ["u:Q", "a*:B"], "{row}");
        assert_eq!(rows.examples[0].prompt(), rows.examples[1].prompt());
        // For KTO it is a good row and a bad one.
        let rows = read_text(&row.to_string(), Wanted::Labelled).unwrap();
        assert_eq!((rows.good, rows.unpaired, rows.examples.len()), (vec![true, false], 1, 2), "{row}");
    }
}

#[test]
fn what_was_said_before_is_not_learnt_again() {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let before = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")];
    let chosen = [turn("assistant", "d"), turn("tool", "e"), turn("assistant", "f")];
    let sides = [[&before[..], &chosen[..]].concat(), [&before[..], &[turn("assistant", "g")]].concat()];
    let row = json!({
        "system": "S", "tools": [{"name": "t"}],
        "chosen": sides[0], "rejected": sides[1]
    });
    let rows = read_text(&row.to_string(), Wanted::Pairs).unwrap();
    assert_eq!(told(&rows.examples[0]), ["s:S", "u:a", "a:b", "u:c", "a*:d", "t:e", "a*:f"]);
    assert_eq!(told(&rows.examples[1]), ["s:S", "u:a", "a:b", "u:c", "a*:g"]);
    assert!(rows.examples.iter().all(|e| e.tools.is_some() && e.prompt().len() == 4));
}

#[test]
fn a_marked_answer_is_the_last_one_of_its_row() {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    for (key, label) in [("label", true), ("kto_tag", false)] {
        let mut row = json!({"messages": [turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]});
        row[key] = label.into();
        let rows = read_text(&row.to_string(), Wanted::Labelled).unwrap();
        assert_eq!(
            (told(&rows.examples[0]), rows.good),
            (["u:a", "a:b", "u:c", "a*:d"].map(str::to_owned).to_vec(), vec![label])
        );
        assert_eq!(read_text(&row.to_string(), Wanted::GoodWork).is_ok(), label, "{row}");
    }
    let row = json!({"prompt": "p", "completion": "c", "label": true});
    assert_eq!(told(&read_text(&row.to_string(), Wanted::Labelled).unwrap().examples[0]), ["u:p", "a*:c"]);
}

#[test]
fn a_row_of_another_kind_names_the_method_that_it_is_for() {
    let sft = json!({"instruction": "Q", "output": "A"});
    let labelled = json!({"prompt": "Q", "completion": "A", "label": false});
    let pair = json!({"prompt": "Q", "chosen": "G", "rejected": "B"});
    for (row, wanted, found, next) in [
        (&sft, Wanted::Pairs, "holds one answer, expected a pair", "--method sft"),
        (&labelled, Wanted::Pairs, "holds one answer with a label, expected a pair", "--method kto"),
        (&sft, Wanted::Labelled, "has no \"label\"", "--method sft"),
        (&pair, Wanted::GoodWork, "holds a preference", "--method dpo, orpo or kto"),
    ] {
        let (message, hint) = complaint(row, wanted);
        assert!(message.contains(found) && hint.contains(next), "{row}: {message} / {hint}");
    }
}

#[test]
fn a_prompt_is_found_in_a_row_of_any_kind() {
    let rows = [
        json!({"instruction": "Q1", "output": "A"}),
        json!({"prompt": "Q2", "completion": "A", "label": false}),
        json!({"prompt": "Q3", "chosen": "A", "rejected": "B"}),
    ];
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let rows = read_text(&text, Wanted::Prompts).unwrap();
    let told: Vec<_> = rows.examples.iter().map(|example| (example.row, told(example).join(" "))).collect();
    assert_eq!(told, [(1, "u:Q1 a*:A".to_owned()), (2, "u:Q2 a*:A".to_owned()), (3, "u:Q3 a*:A".to_owned())]);
}

#[test]
fn what_is_missing_from_a_pair_is_told() {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    for (row, found) in [
        (json!({"prompt": "Q", "chosen": "G"}), "has \"chosen\" and no \"rejected\""),
        (json!({"prompt": "Q", "rejected": "G"}), "has \"rejected\" and no \"chosen\""),
        (json!({"prompt": "Q", "chosen": " ", "rejected": "B"}), "has an empty \"chosen\""),
        (json!({"prompt": "Q", "chosen": "G", "rejected": []}), "has an empty \"rejected\""),
        (json!({"prompt": "Q", "chosen": "G", "rejected": null}), "has nothing as \"rejected\", expected a string, a turn"),
        (json!({"prompt": "Q", "chosen": 1, "rejected": "B"}), "has a number as \"chosen\", expected a string"),
        (json!({"chosen": "G", "rejected": "B"}), "has no \"prompt\""),
        (json!({"prompt": "Q", "chosen": [turn("user", "G")], "rejected": "B"}), "\"chosen\" that begins with the turn of user"),
        (
            json!({"chosen": [turn("user", "a"), turn("assistant", "b")], "rejected": [turn("user", "c"), turn("assistant", "b")]}),
            "part at turn 1",
        ),
        (json!({"prompt": 3, "chosen": "G", "rejected": "B"}), "has a number as \"prompt\""),
    ] {
        let (message, hint) = complaint(&row, Wanted::Pairs);
        assert!(message.contains(found) && !hint.is_empty(), "{row}: {message}");
    }
    let (message, hint) = complaint(&json!({"prompt": "Q", "completion": "A", "label": "good"}), Wanted::Labelled);
    assert_eq!(message, "has a string as \"label\", expected true or false");
    assert!(hint.contains("known shapes of a pair"));
    assert_eq!(complaint(&json!({"question": "Q", "answer": "", "label": true}), Wanted::Labelled).0, "has an empty \"answer\"");
}

#[test]
fn the_preferences_of_the_world_have_the_rows_that_were_counted_in_them() {
    let folder = std::env::var_os("RETUNE_TEST_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), std::path::PathBuf::from);
    if !folder.is_dir() {
        return println!("skipped: no test data (set RETUNE_TEST_DATA)");
    }
    let pairs = read_as(&folder.join("preference/dpo_en_demo.json"), Wanted::Pairs).unwrap();
    assert_eq!((pairs.examples.len(), pairs.good), (600, [true, false].repeat(300)));
    assert!(pairs.examples.chunks(2).all(|pair| pair[0].prompt() == pair[1].prompt() && pair[0] != pair[1]));
    let marked = read_as(&folder.join("preference/kto_en_demo.json"), Wanted::Labelled).unwrap();
    let good = marked.good.iter().filter(|&&good| good).count();
    let sft = read(&folder.join("preference/kto_en_demo.json")).unwrap();
    assert_eq!((marked.examples.len(), good, sft.unwanted_rows), (300, sft.examples.len(), 300 - good));
    assert!(marked.examples.iter().all(|e| e.messages.iter().filter(|m| m.is_learnt()).count() == 1));
}
