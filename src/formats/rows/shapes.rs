//! The shapes of rows, told apart by their keys, and what becomes of each: a conversation.

use serde_json::{Map, Value, json};

use super::preferences;
use crate::domain::{Example, Message};

/// What we know, for errors.
pub(super) const KNOWN: &str = "known shapes: {\"instruction\", \"output\"} with \"input\", \"system\", \"history\" where there are any; \
{\"prompt\", \"completion\"}; {\"question\", \"answer\"}; {\"messages\": [{\"role\", \"content\"}]}; \
{\"conversations\": [{\"from\", \"value\"}]}; with \"tools\" where there are any";

/// What is wrong with a row, and the next step.
#[derive(Debug)]
pub(super) struct Problem {
    pub message: String,
    pub hint: String,
}

impl From<String> for Problem {
    fn from(message: String) -> Self {
        Self { message, hint: KNOWN.to_owned() }
    }
}

pub(super) struct Shaped {
    pub example: Example,
    pub dropped_user_turn: bool,
}

pub(super) type Row = Map<String, Value>;

/// The conversation of a row. `None`: the row is marked as bad work.
pub(super) fn example(row: Value) -> Result<Option<Shaped>, Problem> {
    let Value::Object(mut row) = row else { return Err(format!("expected a JSON object, found {}", kind(&row)).into()) };
    if preferences::is_pair(&row) {
        return Err(Problem {
            message: "holds a preference (\"chosen\" and \"rejected\"), expected an example of good work".to_owned(),
            hint: "train on preferences with --method dpo, orpo or kto".to_owned(),
        });
    }
    if preferences::LABELS.iter().any(|key| row.get(*key) == Some(&Value::Bool(false))) {
        return Ok(None);
    }
    let messages = conversation(&mut row)?;
    shaped(messages, &mut row).map(Some)
}

/// The example of a conversation, with the system text and the tools of its row.
pub(super) fn shaped(mut messages: Vec<Message>, row: &mut Row) -> Result<Shaped, Problem> {
    let system = text(row, "system")?;
    if !system.is_empty() && messages.first().is_none_or(|m| m.role != "system") {
        messages.insert(0, Message::new("system", system));
    }
    let turns = messages.len();
    while messages.last().is_some_and(|m| m.role == "user") {
        messages.pop();
    }
    let dropped_user_turn = messages.len() < turns;
    if !messages.iter().any(|m| m.role == "assistant") {
        let roles: Vec<_> = messages.iter().map(|m| m.role.as_str()).collect();
        let rest = if dropped_user_turn { " (the user's turn at the end is dropped)" } else { "" };
        return Err(format!("has no assistant's turn to learn, only [{}]{rest}", roles.join(", ")).into());
    }
    let tools = tools(row)?;
    Ok(Shaped { example: Example { messages, tools, row: 0 }, dropped_user_turn })
}

pub(super) fn conversation(row: &mut Row) -> Result<Vec<Message>, Problem> {
    let has = |key: &str| row.contains_key(key);
    if has("messages") {
        messages(row, "messages")
    } else if has("conversations") {
        messages(row, "conversations")
    } else if has("instruction") && has("output") {
        alpaca(row)
    } else if has("prompt") && has("completion") {
        prompt_completion(row)
    } else if has("question") && has("answer") {
        Ok(vec![Message::new("user", text(row, "question")?), Message::new("assistant", text(row, "answer")?)])
    } else {
        let keys: Vec<_> = row.keys().map(String::as_str).collect();
        Err(format!("has the keys [{}], which is no shape that is known", keys.join(", ")).into())
    }
}

fn alpaca(row: &mut Row) -> Result<Vec<Message>, Problem> {
    let mut messages = instruction(row)?;
    messages.push(Message::new("assistant", text(row, "output")?));
    Ok(messages)
}

/// The turns before the answer. The last user's turn is `instruction`, then `input` and `context` (remembered solutions) on
/// lines of their own.
pub(super) fn instruction(row: &mut Row) -> Result<Vec<Message>, Problem> {
    let mut messages = Vec::new();
    match row.remove("history").unwrap_or_default() {
        Value::Null => {}
        Value::Array(turns) => {
            for turn in turns {
                let [Value::String(asked), Value::String(answered)] = turn.as_array().map_or(&[][..], Vec::as_slice) else {
                    return Err(format!("has {turn} in \"history\", expected pairs of strings").into());
                };
                messages.push(Message::new("user", asked.as_str()));
                messages.push(Message::new("assistant", answered.as_str()));
            }
        }
        other => return Err(format!("has {} as \"history\", expected a list of pairs", kind(&other)).into()),
    }
    let mut asked = Vec::new();
    for key in ["instruction", "input", "context"] {
        asked.push(text(row, key)?);
    }
    asked.retain(|part| !part.is_empty());
    messages.push(Message::new("user", asked.join("\n")));
    Ok(messages)
}

/// Strings, or lists of messages; only the completion is learnt.
fn prompt_completion(row: &mut Row) -> Result<Vec<Message>, Problem> {
    let mut all = Vec::new();
    for (key, role) in [("prompt", "user"), ("completion", "assistant")] {
        if row[key].is_string() {
            all.push(Message::new(role, text(row, key)?));
            continue;
        }
        let mut part = messages(row, key)?;
        if key == "prompt" {
            leave_out(&mut part);
        }
        all.extend(part);
    }
    Ok(all)
}

/// Nothing of these turns is learnt.
pub(super) fn leave_out(messages: &mut [Message]) {
    for message in messages.iter_mut().filter(|m| m.role == "assistant") {
        message.extra.insert("loss_weight".to_owned(), json!(0));
    }
}

pub(super) fn messages(row: &mut Row, key: &str) -> Result<Vec<Message>, Problem> {
    let turns = match row.remove(key) {
        Some(Value::Array(turns)) => turns,
        other => return Err(format!("has {} as \"{key}\", expected a list of turns", kind(&other.unwrap_or_default())).into()),
    };
    let numbered = turns.into_iter().enumerate();
    numbered.map(|(i, turn)| message(turn).map_err(|problem| format!("turn {} of \"{key}\" {problem}", i + 1).into())).collect()
}

/// One turn: `role` and `content`, or sharegpt's `from` and `value`.
pub(super) fn message(turn: Value) -> Result<Message, String> {
    let Value::Object(mut turn) = turn else { return Err(format!("is {}, expected an object", kind(&turn))) };
    let said = ["role", "from"].iter().find_map(|key| turn.remove(*key));
    let Some(Value::String(said)) = said else { return Err("has no \"role\" (or \"from\")".to_owned()) };
    let role = match said.as_str() {
        "system" | "developer" => "system",
        "user" | "human" => "user",
        "assistant" | "gpt" | "model" | "function_call" => "assistant",
        "tool" | "observation" | "function" | "ipython" => "tool",
        _ => {
            return Err(format!(
                "has the role {said:?}, expected system, user (human), assistant (gpt, function_call) or tool (observation)"
            ));
        }
    };
    let content = ["content", "value"].iter().find_map(|key| turn.remove(*key)).unwrap_or_default();
    let mut message = Message { role: role.to_owned(), content: String::new(), extra: turn };
    if said == "function_call" {
        let Value::String(calls) = content else {
            return Err(format!("is a call given as {}, expected a string", kind(&content)));
        };
        match serde_json::from_str(&calls) {
            Ok(Value::Array(calls)) => calls.into_iter().for_each(|call| push_call(&mut message.extra, call)),
            Ok(call @ Value::Object(_)) => push_call(&mut message.extra, call),
            // Some sets write calls in words of their own: then they are text to learn.
            _ => message.content = calls,
        }
    } else {
        fill_content(&mut message, content)?;
    }
    if let Some(calls) = message.extra.get_mut("tool_calls").and_then(Value::as_array_mut) {
        calls.iter_mut().for_each(parse_arguments);
    }
    // An absent list and an empty one are not the same to every template.
    if message.extra.get("tool_calls").is_some_and(|calls| calls.is_null() || calls.as_array().is_some_and(Vec::is_empty)) {
        message.extra.remove("tool_calls");
    }
    Ok(message)
}

/// A string, null, or a list of parts: text is joined, thoughts and calls go where templates look for them.
fn fill_content(message: &mut Message, content: Value) -> Result<(), String> {
    let parts = match content {
        Value::Null => return Ok(()),
        Value::String(text) => {
            message.content = text;
            return Ok(());
        }
        Value::Array(parts) => parts,
        other => return Err(format!("has {} as its content, expected a string, null or a list of parts", kind(&other))),
    };
    for part in parts {
        let part_kind = part.get("type").and_then(Value::as_str).unwrap_or("text").to_owned();
        let value = match part {
            Value::String(text) => Some(Value::String(text)),
            Value::Object(mut part) => ["text", "value"].iter().find_map(|key| part.remove(*key)),
            _ => None,
        };
        match (part_kind.as_str(), value) {
            ("text", Some(Value::String(text))) => message.content.push_str(&text),
            ("reasoning" | "thinking", Some(Value::String(text))) => {
                let thoughts = message.extra.entry("reasoning_content").or_insert_with(|| json!(""));
                let before = thoughts.as_str().unwrap_or_default();
                *thoughts = Value::String(format!("{before}{text}"));
            }
            ("tool_call", Some(call)) => {
                let call = match call {
                    Value::String(text) => {
                        serde_json::from_str(&text).map_err(|e| format!("has a tool call that is no JSON ({e}): {text}"))?
                    }
                    other => other,
                };
                push_call(&mut message.extra, call);
            }
            (other, _) => {
                return Err(format!(
                    "has a part of type {other:?} with no text that we can use; text, reasoning and tool_call are known"
                ));
            }
        }
    }
    Ok(())
}

/// As OpenAI's API and the templates have calls: `{"type": "function", "function": {"name", "arguments"}}`.
fn push_call(extra: &mut Row, call: Value) {
    let call = if call.get("function").is_some() { call } else { json!({"type": "function", "function": call}) };
    if let Value::Array(calls) = extra.entry("tool_calls").or_insert_with(|| json!([])) {
        calls.push(call);
    }
}

/// OpenAI's API gives arguments as a string of JSON; templates write `arguments | tojson` and want the object.
fn parse_arguments(call: &mut Value) {
    let holder = if call.get("function").is_some() { &mut call["function"] } else { call };
    let parsed = holder.get("arguments").and_then(Value::as_str).and_then(|text| serde_json::from_str::<Row>(text).ok());
    if let Some(object) = parsed {
        holder["arguments"] = Value::Object(object);
    }
}

/// JSON or a string of JSON: a list of tools, as the template wants them.
fn tools(row: &mut Row) -> Result<Option<Value>, Problem> {
    let value = match row.remove("tools").unwrap_or_default() {
        Value::String(text) if text.trim().is_empty() => Value::Null,
        Value::String(text) => {
            serde_json::from_str(&text).map_err(|e| format!("has a string as \"tools\" that is no JSON ({e})"))?
        }
        other => other,
    };
    match value {
        Value::Null => Ok(None),
        Value::Array(tools) if tools.is_empty() => Ok(None),
        tools @ Value::Array(_) => Ok(Some(tools)),
        tool @ Value::Object(_) => Ok(Some(json!([tool]))),
        other => Err(format!("has {} as \"tools\", expected a list", kind(&other)).into()),
    }
}

/// A field that is a string; empty where it is absent or null.
pub(super) fn text(row: &mut Row, key: &str) -> Result<String, Problem> {
    match row.remove(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("has {} as \"{key}\", expected a string", kind(&other)).into()),
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
