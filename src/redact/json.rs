//! Text inside of JSON: all strings of a message, of its tools and tool calls. Keys stay.

use serde_json::Value;

use super::{Pair, Redacted};
use crate::error::Result;

/// Told of each text: the way to it (`messages.0.content`), and what it became.
type Telling<'t> = dyn FnMut(&str, &Redacted) + 't;

impl Pair<'_> {
    /// Redacts every string of a value. A field's name tells what its text is: `{"password": ..}`, `{"phone": ..}`.
    pub fn redact_json(&mut self, value: &Value) -> Result<Value> {
        self.redact_json_with(value, &mut |_, _| {})
    }

    /// `redact_json`, and tells `on_text` of each text.
    pub fn redact_json_with(&mut self, value: &Value, on_text: &mut Telling) -> Result<Value> {
        self.learn_json(value)?;
        self.redact_field(&mut Vec::new(), value, on_text)
    }

    fn learn_json(&mut self, value: &Value) -> Result<()> {
        match value {
            Value::String(text) => self.learn(text),
            Value::Array(items) => items.iter().try_for_each(|item| self.learn_json(item)),
            Value::Object(fields) => fields.values().try_for_each(|field| self.learn_json(field)),
            _ => Ok(()),
        }
    }

    /// `path`: the fields and places of arrays that lead here.
    fn redact_field(&mut self, path: &mut Vec<String>, value: &Value, on_text: &mut Telling) -> Result<Value> {
        Ok(match value {
            Value::String(text) => {
                let name = path.iter().rev().find(|part| !part.bytes().all(|b| b.is_ascii_digit()));
                let redacted = match name {
                    Some(name) => self.redact_between(&format!("\"{name}\": \""), text, "\"")?,
                    None => self.redact(text)?,
                };
                on_text(&path.join("."), &redacted);
                Value::String(redacted.text)
            }
            Value::Array(items) => {
                let items = items.iter().enumerate().map(|(i, item)| self.redact_in(path, i.to_string(), item, on_text));
                Value::Array(items.collect::<Result<_>>()?)
            }
            Value::Object(fields) => {
                let fields =
                    fields.iter().map(|(name, field)| Ok((name.clone(), self.redact_in(path, name.clone(), field, on_text)?)));
                Value::Object(fields.collect::<Result<_>>()?)
            }
            other => other.clone(),
        })
    }

    fn redact_in(&mut self, path: &mut Vec<String>, part: String, value: &Value, on_text: &mut Telling) -> Result<Value> {
        path.push(part);
        let redacted = self.redact_field(path, value, on_text);
        path.pop();
        redacted
    }
}
