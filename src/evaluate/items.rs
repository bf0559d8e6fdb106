//! The frozen items: what is asked, what is expected, and the row as the user's file has it; and what one side makes of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::base::{Base, hex};
use crate::domain::{Answer, Example, ItemResult, Message, Tokens};
use crate::error::{Error, Result};
use crate::formats::rows;
use crate::infer::generate::{Request, generate};
use crate::infer::score;
use crate::model::Adapter;
use crate::text::render::Renderer;

/// Fields of a row that name its group where the user names none.
const GROUP_FIELDS: [&str; 3] = ["group", "task_id", "task"];

/// Items that are answered side by side, and then counted.
const AT_ONCE: usize = 32;

/// One item.
#[derive(Clone, Debug)]
pub struct Item {
    /// SHA-256 over conversation and tools: the same item has the same one in every file and with every model.
    pub id: String,
    /// Items of one group are not independent: the row's own field, else a digest of what is asked.
    pub group: String,
    /// From 1.
    pub row: usize,
    /// The text that an exact answer is.
    pub expected: String,
    /// The whole row as the file has it.
    pub source: Value,
    /// What is asked last, for people.
    pub asked: String,
    /// The conversation before the answer.
    pub messages: Vec<Message>,
    /// Tools as the row has them.
    pub tools: Option<Value>,
}

/// An item as the model of this process gets it.
#[derive(Clone, Debug)]
struct Rendered {
    /// Of the conversation before the answer.
    prompt: Vec<u32>,
    /// The whole conversation, for the loss.
    tokens: Tokens,
}

/// How items are rendered for a model of this process.
#[derive(Clone, Copy)]
pub struct Rendering<'a> {
    pub renderer: &'a Renderer<'a>,
    /// Tokens; longer items are left out.
    pub max_length: usize,
}

/// The items of a file.
#[derive(Clone, Debug)]
pub struct Items {
    pub items: Vec<Item>,
    /// Over the items' own digests, sorted.
    pub digest: String,
    /// Rows that are longer than the model may see.
    pub too_long: usize,
    /// Rows that ask what an earlier row asks, with the same answer.
    pub twice: usize,
    max_length: usize,
    /// One for each item; none where a server renders.
    rendered: Vec<Rendered>,
}

impl Items {
    /// Reads the rows of a file, and renders them unless a server does that. The last answer of a conversation is the one that is
    /// judged.
    ///
    /// # Errors
    /// A row that does not read or render; `group_by` is no field of a row; no row is short enough.
    pub fn load(path: &Path, group_by: Option<&str>, rendering: Option<Rendering>) -> Result<Self> {
        let file = rows::read(path)?;
        let sources = rows::values(path)?;
        let (mut too_long, mut twice) = (0, 0);
        let max_length = rendering.map_or(usize::MAX, |rendering| rendering.max_length);
        let mut found: BTreeMap<String, (Item, Option<Rendered>)> = BTreeMap::new();
        for example in &file.examples {
            let source = sources.get(example.row - 1).cloned().unwrap_or_default();
            let item = item(example, source, group_by, path)?;
            let rendered = rendering.map(|rendering| render(rendering.renderer, example, &item)).transpose()?;
            if rendered.as_ref().is_some_and(|rendered| rendered.tokens.ids.len() > max_length) {
                too_long += 1;
            } else if let Some(before) = found.insert(item.id.clone(), (item, rendered)) {
                twice += 1;
                // The first one stays, with its row.
                found.insert(before.0.id.clone(), before);
            }
        }
        if found.is_empty() {
            return Err(Error::file(
                path,
                format!("each of its {} rows is longer than {max_length} tokens", file.examples.len()),
                "raise --max-length, or give shorter rows",
            ));
        }
        let digest = digest(found.keys().cloned().collect::<Vec<_>>().join("\n").as_bytes());
        let mut found: Vec<(Item, Option<Rendered>)> = found.into_values().collect();
        found.sort_by_key(|(item, _)| item.row);
        let (items, rendered): (Vec<Item>, Vec<Option<Rendered>>) = found.into_iter().unzip();
        Ok(Self { items, digest, too_long, twice, max_length, rendered: rendered.into_iter().flatten().collect() })
    }

    /// What a user should know of the rows, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let all = self.items.len() + self.too_long + self.twice;
        let told = |n: usize, what: String| (n > 0).then(|| format!("{n} of {all} items {what}"));
        [
            told(self.too_long, format!("are longer than {} tokens and were left out", self.max_length)),
            told(self.twice, "ask and expect what an earlier one does, and count once".to_owned()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// What a side makes of every item, in process (rendered items only): the loss of the expected answer, and (where `max_tokens` is not 0) its own greedy
    /// answer. `Answer::verified` is for others to fill. `note` hears how many are answered.
    pub fn run(
        &self,
        base: &Base,
        adapter: Option<&Adapter>,
        max_tokens: usize,
        stop: &AtomicBool,
        note: &mut dyn FnMut(usize),
    ) -> Result<Vec<ItemResult>> {
        let tokens: Vec<Tokens> = self.rendered.iter().map(|item| item.tokens.clone()).collect();
        let losses = score::row_losses(&base.decoder, &tokens, adapter);
        let answers = if max_tokens == 0 { Vec::new() } else { self.answers(base, adapter, max_tokens, stop, note)? };
        let mut answers = answers.into_iter();
        let results = self.items.iter().zip(&losses).map(|(item, loss)| ItemResult {
            item: item.id.clone(),
            group: item.group.clone(),
            loss_sum: loss.loss_sum,
            trained_tokens: loss.trained_tokens,
            answer: answers.next(),
        });
        Ok(results.collect())
    }

    fn answers(
        &self,
        base: &Base,
        adapter: Option<&Adapter>,
        max_tokens: usize,
        stop: &AtomicBool,
        note: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>> {
        let prompts: Vec<Vec<u32>> = self.rendered.iter().map(|item| item.prompt.clone()).collect();
        let request = Request { max_tokens, end_ids: base.tokenizer.end_ids(), ..Request::default() };
        let mut answers = Vec::with_capacity(prompts.len());
        for some in prompts.chunks(AT_ONCE) {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted { message: "nothing was recorded".to_owned() });
            }
            note(answers.len());
            answers.append(&mut generate(&base.decoder, some, adapter, &request, |_, _| ()));
        }
        let judged = self.items.iter().zip(&answers).map(|(item, answer)| {
            let text = base.tokenizer.decode(&answer.ids(), true)?;
            Ok(item.answered(text, answer.ended))
        });
        judged.collect()
    }
}

impl Item {
    /// An answer, as it is judged by its text. One without an end is not the expected one: it goes on where it is served.
    pub fn answered(&self, text: String, ended: bool) -> Answer {
        let exact = ended && text.trim() == self.expected.trim();
        Answer { text, exact, verified: None, judged: None }
    }
}

fn render(renderer: &Renderer, example: &Example, item: &Item) -> Result<Rendered> {
    let (_, prompt) = renderer.prompt(&item.messages, item.tools.as_ref())?;
    let whole = Example { messages: example.messages[..=item.messages.len()].to_vec(), ..example.clone() };
    Ok(Rendered { prompt, tokens: renderer.render(&whole)?.tokens })
}

fn item(example: &Example, source: Value, group_by: Option<&str>, path: &Path) -> Result<Item> {
    let last = example.messages.iter().rposition(Message::is_learnt).ok_or_else(|| {
        Error::file(path, format!("row {} has no answer to judge by", example.row), "give each row an assistant's turn")
    })?;
    let (before, answer) = (&example.messages[..last], &example.messages[last]);
    let asked = before.iter().rfind(|m| m.role == "user").map(|m| m.content.clone()).unwrap_or_default();
    let group = match group_by {
        Some(field) => named_group(&source, field).ok_or_else(|| {
            Error::file(
                path,
                format!("row {} has no text or number \"{field}\"", example.row),
                "give --group-by a field that every row has",
            )
        })?,
        None => GROUP_FIELDS
            .iter()
            .find_map(|field| named_group(&source, field))
            .unwrap_or_else(|| digest(json!({"messages": before, "tools": example.tools}).to_string().as_bytes())),
    };
    let id = digest(json!({"messages": &example.messages[..=last], "tools": example.tools}).to_string().as_bytes());
    let (messages, tools) = (before.to_vec(), example.tools.clone());
    Ok(Item { id, group, row: example.row, expected: answer.content.clone(), source, asked, messages, tools })
}

fn named_group(source: &Value, field: &str) -> Option<String> {
    match source.get(field)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}
