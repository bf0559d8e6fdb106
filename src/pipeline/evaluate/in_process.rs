//! Both sides in this process: one base, an adapter or none on each side.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use super::{SideName, Sides};
use crate::base::Base;
use crate::domain::ItemResult;
use crate::error::{Error, Result};
use crate::evaluate::items::{Items, Rendering};
use crate::model::{Adapter, adapter_files};
use crate::pipeline::{Reading, adapter_digest};
use crate::text::render::Renderer;
use crate::text::template::Template;

/// One side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// The base as it is.
    Base,
    /// An adapter on it.
    Adapter(PathBuf),
}

/// A side that is open.
struct Player {
    name: SideName,
    adapter: Option<Adapter>,
}

impl Side {
    fn open(&self, base: &Base) -> Result<Player> {
        match self {
            Self::Base => Ok(Player { name: SideName { name: "base".to_owned(), digest: base.digest()? }, adapter: None }),
            Self::Adapter(path) => {
                let adapter = adapter_files::load(path, &base.decoder.config)?;
                let whole = std::path::absolute(path).map_err(Error::io("find", path))?;
                let name = SideName { name: whole.to_string_lossy().into_owned(), digest: adapter_digest(&adapter) };
                Ok(Player { name, adapter: Some(adapter) })
            }
        }
    }
}

/// What sides made of items, kept over several evaluations with one base, one template and one reading: each side answers the same
/// items once.
#[derive(Default)]
pub struct Answered(HashMap<(String, Vec<String>, usize), Vec<ItemResult>>);

/// Candidate and champion on a base of this process.
pub struct InProcess<'a> {
    base: &'a Base,
    template: &'a Template,
    reading: &'a Reading,
    players: [Player; 2],
    answered: &'a mut Answered,
}

impl<'a> InProcess<'a> {
    pub fn open(
        base: &'a Base,
        template: &'a Template,
        reading: &'a Reading,
        [candidate, champion]: [&Side; 2],
        answered: &'a mut Answered,
    ) -> Result<Self> {
        Ok(Self { base, template, reading, players: [candidate.open(base)?, champion.open(base)?], answered })
    }

    fn max_length(&self) -> usize {
        self.reading.max_length.unwrap_or_else(|| self.base.default_max_length())
    }
}

impl Sides for InProcess<'_> {
    fn names(&self) -> [SideName; 2] {
        self.players.each_ref().map(|player| player.name.clone())
    }

    fn base(&self) -> Result<SideName> {
        Ok(SideName { name: self.base.name.clone(), digest: self.base.digest()? })
    }

    fn architecture(&self) -> Result<String> {
        Ok(self.base.decoder.config.architecture.name().to_owned())
    }

    fn settings(&self) -> Value {
        json!({ "maxLength": self.max_length(), "template": self.template.name, "system": self.reading.system })
    }

    fn load(&self, path: &Path, group_by: Option<&str>) -> Result<Items> {
        let (tokenizer, system) = (&self.base.tokenizer, self.reading.system.clone());
        let renderer = Renderer { tokenizer, template: self.template, system };
        Items::load(path, group_by, Some(Rendering { renderer: &renderer, max_length: self.max_length() }))
    }

    fn answer(
        &mut self,
        items: &Items,
        max_tokens: usize,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> Result<[Vec<ItemResult>; 2]> {
        let all = items.items.len();
        let mut answer = |who: &str, player: &Player| {
            let ids = items.items.iter().map(|item| item.id.clone()).collect();
            let known = (player.name.digest.clone(), ids, max_tokens);
            if let Some(results) = self.answered.0.get(&known) {
                return Ok(results.clone());
            }
            let results = items.run(self.base, player.adapter.as_ref(), max_tokens, stop, &mut |done| {
                progress(&format!("the {who} answers: {done} of {all}"));
            })?;
            Ok(self.answered.0.entry(known).or_insert(results).clone())
        };
        let [candidate, champion] = &self.players;
        Ok([answer("candidate", candidate)?, answer("champion", champion)?])
    }
}
