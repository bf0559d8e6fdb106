//! Rows that say which of two answers is better, or whether one is good, as TRL and LLaMA-Factory write them.

use serde_json::Value;

use super::shapes::{self, Problem, Row, Shaped, kind};
use crate::domain::Message;

/// What we know, for errors.
pub(super) const KNOWN: &str = "known shapes of a pair: {\"prompt\", \"chosen\", \"rejected\"} with strings or lists of messages, \
or without the prompt where both lists begin with it; {\"conversations\" or \"messages\", \"chosen\", \"rejected\"}; \
{\"instruction\", \"input\", \"chosen\", \"rejected\"}, or \"output\": [chosen, rejected]; of a marked answer: \
any shape of --method sft with \"label\": true or false";

/// The names of what says whether an answer is good: TRL's, LLaMA-Factory's.
pub(super) const LABELS: [&str; 2] = ["label", "kto_tag"];

/// A good answer and a bad one, marked as such.
type Answers = [(Shaped, bool); 2];

pub(super) fn is_pair(row: &Row) -> bool {
    let two_outputs = || row.get("output").and_then(Value::as_array).is_some_and(|list| list.len() == 2);
    (row.contains_key("chosen") && row.contains_key("rejected")) || two_outputs()
}

/// The two conversations of a row, the chosen one first. Only the answers are learnt.
pub(super) fn pair(row: Value) -> Result<Answers, Problem> {
    let mut row = object(row)?;
    if !is_pair(&row) {
        return Err(no_pair(&row));
    }
    let [chosen, rejected] = match row.remove("output") {
        Some(Value::Array(two)) => <[Value; 2]>::try_from(two).unwrap_or_default(),
        _ => ["chosen", "rejected"].map(|key| row.remove(key).unwrap_or_default()),
    };
    let given = prompt(&mut row)?;
    let sides = [answer(chosen, "chosen")?, answer(rejected, "rejected")?];
    // Lists that begin with the user are whole conversations; a prompt beside them only says their beginning again.
    let whole = sides.iter().all(|side| side.first().is_some_and(|turn| turn.role != "assistant"));
    let (mut prompt, [chosen, rejected]) = if whole { split(sides)? } else { (given, sides) };
    if prompt.is_empty() {
        return Err("has no \"prompt\" that \"chosen\" and \"rejected\" answer".to_owned().into());
    }
    shapes::leave_out(&mut prompt);
    let shaped = |answer: Vec<Message>, name: &str| {
        check(&answer, name)?;
        shapes::shaped([prompt.clone(), answer].concat(), &mut row.clone())
    };
    Ok([(shaped(chosen, "chosen")?, true), (shaped(rejected, "rejected")?, false)])
}

/// A conversation that is marked good or bad, of which the last answer is learnt; or both of a pair.
pub(super) fn labelled(row: Value) -> Result<Vec<(Shaped, bool)>, Problem> {
    let mut row = object(row)?;
    if is_pair(&row) {
        return pair(Value::Object(row)).map(Vec::from);
    }
    let Some((key, label)) = LABELS.iter().find_map(|key| Some((*key, row.remove(*key)?))) else {
        return Err(Problem {
            message: "has no \"label\" that says whether the answer is good".to_owned(),
            hint: format!("add \"label\": true or false to every row; for rows of good work alone use --method sft; {KNOWN}"),
        });
    };
    let Value::Bool(good) = label else {
        return Err(format!("has {} as \"{key}\", expected true or false", kind(&label)).into());
    };
    let messages = shapes::conversation(&mut row)?;
    let mut shaped = shapes::shaped(messages, &mut row)?;
    let turns = &mut shaped.example.messages;
    let asked = turns.iter().rposition(|turn| turn.role == "user").unwrap_or(0);
    shapes::leave_out(&mut turns[..asked]);
    check(&turns[asked..], "answer")?;
    Ok(vec![(shaped, good)])
}

/// One conversation of a row of any kind, whatever is thought of its answer.
pub(super) fn asked(row: Value) -> Result<Vec<(Shaped, bool)>, Problem> {
    let mut row = object(row)?;
    if is_pair(&row) {
        return pair(Value::Object(row)).map(|[chosen, _]| vec![chosen]);
    }
    row.retain(|key, _| !LABELS.contains(&key.as_str()));
    shapes::example(Value::Object(row)).map(|shaped| Vec::from_iter(shaped.map(|shaped| (shaped, true))))
}

fn object(row: Value) -> Result<Row, Problem> {
    match row {
        Value::Object(row) => Ok(row),
        other => Err(format!("expected a JSON object, found {}", kind(&other)).into()),
    }
}

fn no_pair(row: &Row) -> Problem {
    let (message, hint) = match (row.contains_key("chosen"), row.contains_key("rejected")) {
        (true, _) => ("has \"chosen\" and no \"rejected\"", "give both answers"),
        (_, true) => ("has \"rejected\" and no \"chosen\"", "give both answers"),
        _ if LABELS.iter().any(|key| row.contains_key(*key)) => {
            ("holds one answer with a label, expected a pair (\"chosen\" and \"rejected\")", "train on it with --method kto")
        }
        _ => (
            "holds one answer, expected a pair (\"chosen\" and \"rejected\")",
            "train on rows of good work with --method sft, or give pairs",
        ),
    };
    Problem { message: message.to_owned(), hint: format!("{hint}; {KNOWN}") }
}

/// What both answers answer; empty where the row does not say it by itself.
fn prompt(row: &mut Row) -> Result<Vec<Message>, Problem> {
    let key = ["messages", "conversations", "prompt", "question"].into_iter().find(|key| row.contains_key(*key));
    match key {
        None if row.contains_key("instruction") => shapes::instruction(row),
        None => Ok(Vec::new()),
        Some(key) if row[key].is_string() => Ok(vec![Message::new("user", shapes::text(row, key)?)]),
        Some(key) => shapes::messages(row, key),
    }
}

/// A text, a turn, or a list of turns.
fn answer(value: Value, name: &str) -> Result<Vec<Message>, Problem> {
    match value {
        Value::String(text) => Ok(vec![Message::new("assistant", text)]),
        turn @ Value::Object(_) => {
            let turn = shapes::message(turn).map_err(|problem| format!("has a \"{name}\" that {problem}"))?;
            Ok(vec![turn])
        }
        turns @ Value::Array(_) => shapes::messages(&mut Row::from_iter([(name.to_owned(), turns)]), name),
        other => Err(format!("has {} as \"{name}\", expected a string, a turn or a list of turns", kind(&other)).into()),
    }
}

/// An answer begins with the assistant and says something.
fn check(answer: &[Message], name: &str) -> Result<(), Problem> {
    let mut said = answer.iter().filter(|turn| turn.role == "assistant");
    let says = |turn: &Message| !turn.content.trim().is_empty() || turn.extra.contains_key("tool_calls");
    match answer.first() {
        Some(first) if first.role != "assistant" && name != "answer" => {
            Err(format!("has a \"{name}\" that begins with the turn of {}, expected the assistant's", first.role).into())
        }
        _ if !said.any(says) => Err(Problem {
            message: format!("has an empty \"{name}\""),
            hint: "leave the row out: there is nothing in it to prefer or to avoid".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Two conversations become what they share and how each goes on.
fn split(mut sides: [Vec<Message>; 2]) -> Result<(Vec<Message>, [Vec<Message>; 2]), Problem> {
    let [chosen, rejected] = &sides;
    let last = chosen.len().min(rejected.len()) - 1;
    let shared = (0..last).find(|&i| chosen[i] != rejected[i]).unwrap_or(last);
    if sides.iter().any(|side| side[shared].role != "assistant") {
        return Err(
            format!("has \"chosen\" and \"rejected\" that part at turn {}, which is not the assistant's", shared + 1).into()
        );
    }
    let answers = sides.each_mut().map(|side| side.split_off(shared));
    let [prompt, _] = sides;
    Ok((prompt, answers))
}
