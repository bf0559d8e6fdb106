//! Text inside of JSON: all strings of a message, of its tools and tool calls. Keys stay.

use serde_json::Value;

use super::Pair;
use crate::error::Result;

impl Pair<'_> {
    /// Redacts every string of a value. A field's name tells what its text is: `{"password": ..}`, `{"phone": ..}`.
    pub fn redact_json(&mut self, value: &Value) -> Result<Value> {
        self.learn_json(value)?;
        self.redact_field(None, value)
    }

    fn learn_json(&mut self, value: &Value) -> Result<()> {
        match value {
            Value::String(text) => self.learn(text),
            Value::Array(items) => items.iter().try_for_each(|item| self.learn_json(item)),
            Value::Object(fields) => fields.values().try_for_each(|field| self.learn_json(field)),
            _ => Ok(()),
        }
    }

    fn redact_field(&mut self, name: Option<&str>, value: &Value) -> Result<Value> {
        Ok(match value {
            Value::String(text) => {
                let redacted = match name {
                    Some(name) => self.redact_between(&format!("\"{name}\": \""), text, "\"")?,
                    None => self.redact(text)?,
                };
                Value::String(redacted.text)
            }
            Value::Array(items) => {
                Value::Array(items.iter().map(|item| self.redact_field(name, item)).collect::<Result<_>>()?)
            }
            Value::Object(fields) => {
                let redacted = fields.iter().map(|(name, field)| Ok((name.clone(), self.redact_field(Some(name), field)?)));
                Value::Object(redacted.collect::<Result<_>>()?)
            }
            other => other.clone(),
        })
    }
}
