//! Curated examples as files that `retune train`, PEFT's and Unsloth's scripts and LLaMA-Factory read: JSON lines.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::domain::{Example, Message};
use crate::error::{Error, Result};
use crate::formats::durable;

/// What an export wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Rows `{"instruction", "input", "output"}`.
    pub alpaca: usize,
    /// Of them, so many have their system text as the instruction and the request as the input.
    pub with_system: usize,
    /// Rows of several turns, of calls or thoughts, which alpaca cannot say, in the file beside.
    pub messages: usize,
    /// The file of those rows, where there are any.
    pub beside: Option<PathBuf>,
}

/// Writes `{"instruction", "input", "output"}`. A request is the instruction; where there is a system text, that is the instruction and
/// the request is the input. What these rows cannot say goes to `NAME.messages.jsonl` beside, as a file of two shapes is read by nobody
/// else; a file of that name from an earlier export is removed where there is nothing to put into it.
///
/// # Errors
/// A file that cannot be written.
pub fn write_alpaca<'a>(path: &Path, examples: impl IntoIterator<Item = &'a Example>) -> Result<Written> {
    let mut written = Written::default();
    let mut others = Vec::new();
    durable::write_with(path, |out| {
        for example in examples {
            match alpaca(example) {
                Some((row, with_system)) => {
                    written.alpaca += 1;
                    written.with_system += usize::from(with_system);
                    put(out, path, &row)?;
                }
                None => others.push(example),
            }
        }
        Ok(())
    })?;
    let beside = path.with_extension("messages.jsonl");
    written.messages = others.len();
    if others.is_empty() {
        durable::remove(&beside)?;
    } else {
        write_messages(&beside, others)?;
        written.beside = Some(beside);
    }
    Ok(written)
}

/// Writes `{"messages": [..], "tools"?}`: what `retune train` reads back as the very same conversations. Tools and the arguments of calls are
/// strings of JSON, as each has keys of its own, which tables with one type a column cannot hold.
///
/// # Errors
/// The file cannot be written.
pub fn write_messages<'a>(path: &Path, examples: impl IntoIterator<Item = &'a Example>) -> Result<usize> {
    let mut rows = 0;
    durable::write_with(path, |out| {
        for example in examples {
            rows += 1;
            let mut row = Map::new();
            row.insert("messages".to_owned(), turns(&example.messages));
            put_tools(&mut row, example);
            put(out, path, &Value::Object(row))?;
        }
        Ok(())
    })?;
    Ok(rows)
}

/// Writes pairs (chosen, rejected) that answer the same request: `{"instruction", "input", "chosen", "rejected"}` where all can be said so,
/// else all as `{"messages": [..], "chosen": [..], "rejected": [..], "tools"?}`, so that a file has one shape.
///
/// # Errors
/// Two of a pair that do not answer the same; the file cannot be written.
pub fn write_preferences(path: &Path, pairs: &[(Example, Example)]) -> Result<usize> {
    if let Some(index) = pairs.iter().position(|(chosen, rejected)| asked(chosen) != asked(rejected)) {
        return Err(Error::data(
            format!("the answers of pair {} are to different requests", index + 1),
            "pair answers to one request only",
        ));
    }
    let rows: Option<Vec<Value>> = pairs.iter().map(|(chosen, rejected)| plain_pair(chosen, rejected)).collect();
    let rows = rows.unwrap_or_else(|| pairs.iter().map(|(chosen, rejected)| told_pair(chosen, rejected)).collect());
    durable::write_with(path, |out| rows.iter().try_for_each(|row| put(out, path, row)))?;
    Ok(rows.len())
}

fn put(out: &mut dyn Write, path: &Path, row: &Value) -> Result<()> {
    writeln!(out, "{row}").map_err(Error::io("write", path))
}

/// The row of a conversation of one request and one answer, and whether it has a system text.
fn alpaca(example: &Example) -> Option<(Value, bool)> {
    let (before, [user, assistant]) = example.messages.split_last_chunk::<2>()?;
    let system = match before {
        [] => None,
        [system] if system.role == "system" && !system.content.is_empty() => Some(system),
        _ => return None,
    };
    let is_plain = example.messages.iter().all(|turn| turn.extra.keys().all(|key| key == "loss_weight"))
        && example.tools.is_none()
        && (user.role.as_str(), assistant.role.as_str()) == ("user", "assistant")
        && assistant.is_learnt()
        && !user.content.is_empty();
    let (instruction, input) = system.map_or((&user.content, ""), |system| (&system.content, user.content.as_str()));
    is_plain.then(|| (json!({"instruction": instruction, "input": input, "output": assistant.content}), system.is_some()))
}

fn plain_pair(chosen: &Example, rejected: &Example) -> Option<Value> {
    let (Some((good, false)), Some((bad, false))) = (alpaca(chosen), alpaca(rejected)) else { return None };
    let [instruction, input] = ["instruction", "input"].map(|key| good[key].clone());
    Some(json!({"instruction": instruction, "input": input, "chosen": good["output"], "rejected": bad["output"]}))
}

fn told_pair(chosen: &Example, rejected: &Example) -> Value {
    let (before, good) = chosen.messages.split_at(chosen.prompt().len());
    let bad = &rejected.messages[rejected.prompt().len()..];
    let mut row = Map::new();
    for (key, messages) in [("messages", before), ("chosen", good), ("rejected", bad)] {
        row.insert(key.to_owned(), turns(messages));
    }
    put_tools(&mut row, chosen);
    Value::Object(row)
}

fn asked(example: &Example) -> (Vec<(&str, &str)>, Option<&Value>) {
    let turns = example.prompt().iter().map(|turn| (turn.role.as_str(), turn.content.as_str()));
    (turns.collect(), example.tools.as_ref())
}

fn put_tools(row: &mut Map<String, Value>, example: &Example) {
    if let Some(tools) = &example.tools {
        row.insert("tools".to_owned(), tools.to_string().into());
    }
}

fn turns(messages: &[Message]) -> Value {
    let turn = |message: &Message| {
        let mut turn = Map::new();
        turn.insert("role".to_owned(), message.role.as_str().into());
        turn.insert("content".to_owned(), message.content.as_str().into());
        for (key, value) in &message.extra {
            let mut value = value.clone();
            if key == "tool_calls" {
                value.as_array_mut().into_iter().flatten().for_each(arguments_as_text);
            }
            turn.insert(key.clone(), value);
        }
        Value::Object(turn)
    };
    messages.iter().map(turn).collect()
}

/// As OpenAI's API has them; the readers of rows take them as objects again.
fn arguments_as_text(call: &mut Value) {
    let holder = if call.get("function").is_some() { &mut call["function"] } else { call };
    if let Some(arguments) = holder.get_mut("arguments").filter(|arguments| arguments.is_object()) {
        *arguments = Value::String(arguments.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::rows::{self, Wanted};

    fn example(turns: &[(&str, &str)]) -> Example {
        Example { messages: turns.iter().map(|(role, text)| Message::new(*role, *text)).collect(), ..Example::default() }
    }

    fn turns_of(example: &Example) -> Vec<(&str, &str)> {
        example.messages.iter().map(|turn| (turn.role.as_str(), turn.content.as_str())).collect()
    }

    fn with_call() -> Example {
        let mut called = example(&[("user", "u"), ("assistant", ""), ("tool", "2"), ("assistant", "two")]);
        let call = json!([{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
        called.messages[1].extra.insert("tool_calls".to_owned(), call);
        called.tools = Some(json!([{"type": "function", "function": {"name": "f"}}]));
        called
    }

    #[test]
    fn alpaca_rows_have_three_keys_in_their_order_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("coder_sft.jsonl");
        let mut weighted = example(&[("user", "a\n\"b\""), ("assistant", "c")]);
        weighted.messages[0].extra.insert("loss_weight".to_owned(), 0.0.into());
        let examples = [weighted, example(&[("system", "S"), ("user", "d"), ("assistant", "e")]), with_call()];
        let written = write_alpaca(&path, &examples).unwrap();
        let beside = folder.path().join("coder_sft.messages.jsonl");
        assert_eq!(written, Written { alpaca: 2, with_system: 1, messages: 1, beside: Some(beside.clone()) });
        let expected = "{\"instruction\":\"a\\n\\\"b\\\"\",\"input\":\"\",\"output\":\"c\"}\n\
                        {\"instruction\":\"S\",\"input\":\"d\",\"output\":\"e\"}\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        let read = rows::read(&path).unwrap().examples;
        assert_eq!(turns_of(&read[0]), [("user", "a\n\"b\""), ("assistant", "c")]);
        assert_eq!(
            turns_of(&read[1]),
            [("user", "S\nd"), ("assistant", "e")],
            "the words stay, the role of the system text does not"
        );
        assert_eq!(rows::read(&beside).unwrap().examples[0], Example { row: 1, ..with_call() });
        // The next export has nothing for the file beside.
        assert_eq!(write_alpaca(&path, &examples[..1]).unwrap().beside, None);
        assert!(!beside.exists());
    }

    #[test]
    fn what_alpaca_cannot_say_is_a_row_of_messages() {
        let thought = {
            let mut thought = example(&[("user", "u"), ("assistant", "a")]);
            thought.messages[1].extra.insert("reasoning_content".to_owned(), "hm".into());
            thought
        };
        let unlearnt = {
            let mut unlearnt = example(&[("user", "u"), ("assistant", "a")]);
            unlearnt.messages[1].extra.insert("loss_weight".to_owned(), 0.into());
            unlearnt
        };
        for other in [
            thought,
            unlearnt,
            with_call(),
            Example { tools: Some(json!([{"name": "f"}])), ..example(&[("user", "u"), ("assistant", "a")]) },
            example(&[("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b")]),
            example(&[("system", ""), ("user", "u"), ("assistant", "a")]),
            example(&[("user", ""), ("assistant", "a")]),
            example(&[("assistant", "a")]),
        ] {
            assert_eq!(alpaca(&other), None, "{other:?}");
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("rows.jsonl");
            assert_eq!(write_messages(&path, [&other]).unwrap(), 1);
            assert_eq!(rows::read(&path).unwrap().examples, [Example { row: 1, ..other }]);
        }
    }

    #[test]
    fn tools_and_arguments_are_written_as_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        write_messages(&path, [&with_call()]).unwrap();
        let row = &rows::values(&path).unwrap()[0];
        assert_eq!(row["messages"][1]["tool_calls"][0]["function"]["arguments"], "{\"x\":1}");
        assert_eq!(row["tools"], "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]");
    }

    #[test]
    fn pairs_have_one_shape_and_read_back_as_pairs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.jsonl");
        let plain = (example(&[("user", "q"), ("assistant", "good")]), example(&[("user", "q"), ("assistant", "bad")]));
        let system = |answer| example(&[("system", "S"), ("user", "q"), ("assistant", answer)]);
        assert_eq!(write_preferences(&path, std::slice::from_ref(&plain)).unwrap(), 1);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"instruction\":\"q\",\"input\":\"\",\"chosen\":\"good\",\"rejected\":\"bad\"}\n");
        let called = (with_call(), Example { tools: with_call().tools, ..example(&[("user", "u"), ("assistant", "no")]) });
        let pairs = [plain, (system("yes"), system("no")), called];
        assert_eq!(write_preferences(&path, &pairs).unwrap(), 3);
        assert!(rows::values(&path).unwrap().iter().all(|row| row["messages"].is_array() && row["chosen"].is_array()));
        let read = rows::read_as(&path, Wanted::Pairs).unwrap();
        assert_eq!(read.good, [true, false].repeat(3));
        let expected: Vec<&Example> = pairs.iter().flat_map(|(chosen, rejected)| [chosen, rejected]).collect();
        for (read, expected) in read.examples.iter().zip(expected) {
            assert_eq!((&read.messages, &read.tools), (&expected.messages, &expected.tools));
        }
        let wrong = [(system("a"), example(&[("user", "q"), ("assistant", "b")]))];
        assert!(write_preferences(&path, &wrong).unwrap_err().to_string().contains("pair 1 are to different requests"));
    }
}
