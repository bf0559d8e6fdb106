//! Both sides as a server serves them: the very models that clients get, with their templates, system texts and rounding; and how
//! fast they answer, and how much memory they hold.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{SideName, Sides};
use crate::deploy::alias_name;
use crate::deploy::llama_server::LlamaServer;
use crate::domain::{ItemResult, Message};
use crate::error::{Error, Result};
use crate::evaluate::items::{Item, Items};
use crate::evaluate::verdict::Served;
use crate::formats::gguf::Gguf;
use crate::runtime::ollama::{Ollama, Options, Probe};
use crate::runtime::{ModelName, Registry, Tag};
use crate::store::Store;

/// Items that one side answers before the other one has its turn: what else the machine does falls on both alike.
const TURN: usize = 8;

/// A server that answers as each of its models.
pub trait Answering: Registry {
    /// Its kind and version, for the record: `ollama 0.34.1`.
    fn version(&self) -> Result<String>;

    /// The architecture of the model of a name, as GGUF calls it; empty where it cannot be told.
    fn architecture(&self, name: &str) -> Result<String>;

    /// What the model of a name says to an item, greedily.
    fn ask(&self, name: &str, item: &Item, max_tokens: usize) -> Result<Said>;

    /// Bytes that the loaded model holds, by the digest that its name has; `None` where that cannot be told of one model.
    fn memory_bytes(&self, digest: &str) -> Option<u64>;
}

/// What a server said.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub text: String,
    /// The model ended it, not the limit.
    pub ended: bool,
    /// Generated tokens, and the seconds that they took.
    pub pace: Option<(usize, f64)>,
}

/// Candidate and champion at one server.
pub struct AtServer<'a> {
    server: &'a dyn Answering,
    players: [Player; 2],
    version: String,
}

struct Player {
    /// Its name at the server.
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

impl<'a> AtServer<'a> {
    /// Finds both models; the store in `root` knows which adapters they are made of.
    pub fn open(server: &'a dyn Answering, root: &Path, sides: &ServedSides) -> Result<Self> {
        let version = server.version()?;
        let alias = alias_name(&sides.prefix, &sides.role)?;
        let deployments = match Store::open_if_there(root)? {
            // As the store calls it, with the user's name where it has one.
            Some(store) => store.deployments(&server.id(), alias.to_string().trim_end_matches(":latest"))?,
            None => Vec::new(),
        };
        let find = |text: &str| -> Result<(Tag, Player)> {
            let name = named(&alias, text)?;
            let tag = server.tag(&name.to_string())?.ok_or_else(|| {
                Error::usage(
                    format!("{} has no {name}", server.title()),
                    format!("give a version such as v7, or a whole name; `{}` shows them", server.look()),
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
        Ok(Self { server, players: [candidate, champion], version })
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

impl Sides for AtServer<'_> {
    fn names(&self) -> [SideName; 2] {
        self.players.each_ref().map(|player| player.name.clone())
    }

    fn base(&self) -> Result<SideName> {
        Ok(SideName { name: self.server.id(), digest: self.version.clone() })
    }

    fn architecture(&self) -> Result<String> {
        self.server.architecture(&self.players[0].served)
    }

    fn is_one_of(&self, digest: &str) -> bool {
        self.players.iter().any(|player| player.manifest == digest)
    }

    fn settings(&self) -> Value {
        json!({ "served": { "server": self.version, "candidate": self.players[0].served, "champion": self.players[1].served } })
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
            return Err(Error::usage("a server tells no losses", "leave --max-tokens 0 away, or compare without --served"));
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
                    let said = self.server.ask(&self.players[side].served, item, max_tokens)?;
                    if let Some((count, took)) = said.pace {
                        tokens += count;
                        seconds += took;
                    }
                    results[side].push(ItemResult {
                        item: item.id.clone(),
                        group: item.group.clone(),
                        loss_sum: 0.0,
                        trained_tokens: 0,
                        answer: Some(item.answered(said.text, said.ended)),
                    });
                }
                let player = &mut self.players[side];
                if tokens > 0 && seconds > 0.0 {
                    player.pace.turns.push(tokens as f64 / seconds);
                }
                let now = self.server.memory_bytes(&player.manifest);
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

impl Answering for Ollama {
    fn version(&self) -> Result<String> {
        Ok(format!("ollama {}", Self::version(self)?))
    }

    fn architecture(&self, name: &str) -> Result<String> {
        Ok(self.show(name)?.and_then(|shown| shown.architecture().map(str::to_owned)).unwrap_or_default())
    }

    fn ask(&self, name: &str, item: &Item, max_tokens: usize) -> Result<Said> {
        let probe = Probe { messages: &item.messages, tools: item.tools.as_ref() };
        let answer = self.chat(name, probe, &Options::greedy(max_tokens), 0)?;
        // A call that Ollama took out of the text is judged as it was meant: as JSON.
        let text = if answer.text.is_empty() && !answer.tool_calls.is_empty() {
            answer.tool_calls.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
        } else {
            answer.text
        };
        Ok(Said { text, ended: answer.done_reason == "stop", pace: answer.eval_tokens.zip(answer.eval_seconds) })
    }

    fn memory_bytes(&self, digest: &str) -> Option<u64> {
        // One that cannot tell only costs the guard.
        Self::memory_bytes(self, digest).ok().flatten()
    }
}

impl Answering for LlamaServer {
    fn version(&self) -> Result<String> {
        Ok(format!("llama-server at {}", self.llama().address()))
    }

    fn architecture(&self, name: &str) -> Result<String> {
        let (manifest, _) = self.running(name)?;
        Ok(Gguf::open(&manifest.base.path)?.get_str("general.architecture")?.unwrap_or_default().to_owned())
    }

    fn ask(&self, name: &str, item: &Item, max_tokens: usize) -> Result<Said> {
        let (manifest, adapter) = self.running(name)?;
        let mut messages = item.messages.clone();
        // It knows no system text of its own: who asks it brings the trained one.
        if let Some(system) = manifest.system.filter(|_| messages.first().is_none_or(|first| first.role != "system")) {
            messages.insert(0, Message::new("system", system));
        }
        let prompt = self.llama().tokenize(&self.llama().apply_template(&messages, item.tools.as_ref())?)?;
        let said = self.llama().answer(&prompt, max_tokens, adapter)?;
        Ok(Said { text: said.text, ended: said.ended, pace: Some((said.tokens, said.seconds)) })
    }

    /// All versions share one process.
    fn memory_bytes(&self, _digest: &str) -> Option<u64> {
        None
    }
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
