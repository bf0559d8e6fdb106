//! Both sides as an Ollama serves them: the very models that clients get, with their templates, system texts and rounding; and how
//! fast they answer, and how much memory they hold.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{SideName, Sides};
use crate::deploy::alias_name;
use crate::domain::{Answer, ItemResult};
use crate::error::{Error, Result};
use crate::evaluate::items::{Item, Items};
use crate::evaluate::verdict::Served;
use crate::runtime::ollama::{Ollama, Options, Probe};
use crate::runtime::{ModelName, Registry as _, Tag};
use crate::store::Store;

/// Items that one side answers before the other one has its turn: what else the machine does falls on both alike.
const TURN: usize = 8;

/// Candidate and champion at one Ollama.
pub struct AtOllama<'a> {
    ollama: &'a Ollama,
    players: [Player; 2],
    version: String,
}

struct Player {
    /// Its name at the Ollama.
    served: String,
    /// The digest of its manifest.
    manifest: String,
    /// As it is told: the digest is the adapter's where the store knows it, else the manifest's.
    name: SideName,
    pace: Pace,
}

/// What was measured of one side.
#[derive(Default)]
struct Pace {
    /// Tokens a second of each turn.
    turns: Vec<f64>,
    memory_bytes: Option<u64>,
}

/// Which models of a role are compared, as a user says it.
#[derive(Clone, Debug)]
pub struct ServedSides {
    pub prefix: String,
    pub role: String,
    /// `v7`, `7`, or a whole name.
    pub candidate: String,
    /// `None`: what the alias names.
    pub champion: Option<String>,
}

impl<'a> AtOllama<'a> {
    /// Finds both models; the store in `root` knows which adapters they are made of.
    pub fn open(ollama: &'a Ollama, root: &Path, sides: &ServedSides) -> Result<Self> {
        let version = ollama.version()?;
        let alias = alias_name(&sides.prefix, &sides.role)?;
        let deployments = match Store::open_if_there(root)? {
            Some(store) => store.deployments(&ollama.id(), &alias.model)?,
            None => Vec::new(),
        };
        let find = |text: &str| -> Result<(Tag, Player)> {
            let name = named(&alias, text)?;
            let tag = ollama.tag(&name.to_string())?.ok_or_else(|| {
                Error::usage(
                    format!("{} has no {name}", ollama.title()),
                    format!("give a version such as v7, or a whole name; `{}` shows them", ollama.look()),
                )
            })?;
            let known = deployments.iter().find(|deployment| deployment.digest == tag.digest);
            let digest = known.map_or_else(|| tag.digest.clone(), |deployment| deployment.adapter_digest.clone());
            let name = known.map_or_else(|| tag.name.clone(), |deployment| deployment.name());
            Ok((
                tag.clone(),
                Player { served: tag.name, manifest: tag.digest, name: SideName { name, digest }, pace: Pace::default() },
            ))
        };
        let (one, candidate) = find(&sides.candidate)?;
        let (other, champion) = find(sides.champion.as_deref().unwrap_or(&alias.tag))?;
        if one.digest == other.digest {
            return Err(Error::usage(
                format!("{} and {} are one and the same model", one.name, other.name),
                "name another champion with --champion, such as v1",
            ));
        }
        Ok(Self { ollama, players: [candidate, champion], version })
    }
}

/// A version of the alias's model, another tag of it, or any model that is there.
fn named(alias: &ModelName, text: &str) -> Result<ModelName> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(alias.with_tag(format!("v{text}")));
    }
    let tag = alias.with_tag(text);
    if tag.version().is_some() || text == alias.tag { Ok(tag) } else { ModelName::parse(text) }
}

impl Sides for AtOllama<'_> {
    fn names(&self) -> [SideName; 2] {
        self.players.each_ref().map(|player| player.name.clone())
    }

    fn base(&self) -> Result<SideName> {
        Ok(SideName { name: self.ollama.address().to_string(), digest: format!("ollama {}", self.version) })
    }

    fn settings(&self) -> Value {
        json!({ "served": { "ollama": self.version, "candidate": self.players[0].served, "champion": self.players[1].served } })
    }

    fn load(&self, path: &Path, group_by: Option<&str>) -> Result<Items> {
        Items::load(path, group_by, None)
    }

    fn answer(
        &mut self,
        items: &Items,
        max_tokens: usize,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> Result<[Vec<ItemResult>; 2]> {
        if max_tokens == 0 {
            return Err(Error::usage("an Ollama tells no losses", "leave --max-tokens 0 away, or compare without --served"));
        }
        let all = items.items.len();
        let mut results = [Vec::with_capacity(all), Vec::with_capacity(all)];
        for (turn, some) in items.items.chunks(TURN).enumerate() {
            // Whoever begins a turn has the cooler machine: they take it by turns.
            for side in if turn % 2 == 0 { [0, 1] } else { [1, 0] } {
                let who = ["candidate", "champion"][side];
                let (mut tokens, mut seconds) = (0, 0.0);
                for item in some {
                    if stop.load(Ordering::Relaxed) {
                        return Err(Error::Interrupted { message: "nothing was recorded".to_owned() });
                    }
                    progress(&format!("the {who} answers: {} of {all}", results[side].len()));
                    let answered = ask(self.ollama, &self.players[side].served, item, max_tokens)?;
                    if let (Some(count), Some(took)) = (answered.eval_tokens, answered.eval_seconds) {
                        tokens += count;
                        seconds += took;
                    }
                    results[side].push(ItemResult {
                        item: item.id.clone(),
                        group: item.group.clone(),
                        loss_sum: 0.0,
                        trained_tokens: 0,
                        answer: Some(answered.answer),
                    });
                }
                let player = &mut self.players[side];
                if tokens > 0 && seconds > 0.0 {
                    player.pace.turns.push(tokens as f64 / seconds);
                }
                // An Ollama that cannot tell only costs the guard.
                let now = self.ollama.memory_bytes(&player.manifest).ok().flatten();
                player.pace.memory_bytes = player.pace.memory_bytes.max(now);
            }
        }
        Ok(results)
    }

    fn served(&self) -> [Served; 2] {
        self.players
            .each_ref()
            .map(|player| Served { tokens_per_second: median(&player.pace.turns), memory_bytes: player.pace.memory_bytes })
    }
}

struct ServedAnswer {
    answer: Answer,
    eval_tokens: Option<usize>,
    eval_seconds: Option<f64>,
}

fn ask(ollama: &Ollama, model: &str, item: &Item, max_tokens: usize) -> Result<ServedAnswer> {
    let probe = Probe { messages: &item.messages, tools: item.tools.as_ref() };
    let answer = ollama.chat(model, probe, &Options::greedy(max_tokens), 0)?;
    // A call that Ollama took out of the text is judged as it was meant: as JSON.
    let text = if answer.text.is_empty() && !answer.tool_calls.is_empty() {
        answer.tool_calls.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
    } else {
        answer.text
    };
    Ok(ServedAnswer {
        answer: item.answered(text, answer.done_reason == "stop"),
        eval_tokens: answer.eval_tokens,
        eval_seconds: answer.eval_seconds,
    })
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
#[path = "served_tests.rs"]
mod tests;
