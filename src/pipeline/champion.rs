//! Which version serves: the alias of a role moves by promotion and roll-back. Each move is written down before it is made
//! and looked at after; killed anywhere, the next command that looks settles what was under way.

use std::path::Path;

use serde::Serialize;
use serde_json::json;

use crate::config::Alerts;
use crate::deploy;
use crate::error::{Error, Result};
use crate::runtime::alert::{self, Alert};
use crate::runtime::{ModelName, Registry};
use crate::store::{AliasMove, End, Evaluation, MoveKind, NewMove, Store};

/// The alias of a role on one server, held by one process at a time.
pub struct Champion<'a> {
    registry: &'a dyn Registry,
    store: Store,
    alias: ModelName,
    role: String,
    server: String,
    _lock: std::fs::File,
}

/// What a name stands for: the version, and the digest of its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    pub name: String,
    pub digest: String,
}

/// A move that was asked for, and is so now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moved {
    pub alias: String,
    pub kind: MoveKind,
    /// `None`: there was no such alias.
    pub from: Option<Named>,
    pub to: Named,
    /// It was so before.
    pub already: bool,
}

impl Moved {
    /// Tells whom `alerts` names of a roll-back. Gives what could not be told; the roll-back stands all the same.
    pub fn alert(&self, alerts: &Alerts, reason: &str) -> Vec<String> {
        let Some(from) = self.from.as_ref().filter(|_| self.kind == MoveKind::Rollback && !self.already) else {
            return Vec::new();
        };
        let text = format!("{}: {} was rolled back, {} serves again ({reason})", self.alias, from.name, self.to.name);
        let details = json!({ "alias": self.alias, "from": from, "to": self.to, "reason": reason });
        alert::send(alerts, &Alert { event: "rollback", text, details })
    }
}

impl<'a> Champion<'a> {
    /// Takes the alias, waiting for another retune that moves it; `note` is told then, and of what a killed one left.
    pub fn open(registry: &'a dyn Registry, root: &Path, prefix: &str, role: &str, note: &mut dyn FnMut(&str)) -> Result<Self> {
        let alias = deploy::alias_name(prefix, role)?;
        let store = Store::open(root)?;
        let lock = hold(&root.join(".agent/alias.lock"), "another retune is moving an alias: waiting for it", note)?;
        let mut champion = Self { registry, store, alias, role: role.to_owned(), server: registry.id(), _lock: lock };
        champion.settle(note)?;
        Ok(champion)
    }

    /// What the alias names now.
    pub fn now(&self) -> Result<Option<Named>> {
        let Some(alias) = self.registry.tag(&self.alias())? else { return Ok(None) };
        Ok(Some(Named { name: self.version_of(&alias.digest)?.unwrap_or_else(|| self.alias()), digest: alias.digest }))
    }

    /// What a plain roll-back goes back to, whether or not it is there still; where nothing serves, what served last. `None`: nothing
    /// that this store knows of.
    pub fn before(&self) -> Result<Option<Named>> {
        let now = self.now()?;
        let line = line(&self.history()?);
        Ok(line.into_iter().rev().find(|named| now.as_ref().is_none_or(|now| named.digest != now.digest)))
    }

    /// `promote` with a look at what the judge said of the version's adapter: a rejected one needs `force`, and what was not judged, or
    /// not shown to be better, is noted. Where no reason is given, the judge's is told.
    pub fn promote_judged(
        &mut self,
        version: &str,
        reason: Option<&str>,
        force: bool,
        note: &mut dyn FnMut(&str),
    ) -> Result<Moved> {
        let name = self.named(version)?.name;
        let judged = self.evaluation_of(&name)?;
        let verdict =
            judged.as_ref().map(|e| (e.id, e.verdict.as_str(), e.judgement["explanation"].as_str().unwrap_or_default()));
        let told = match verdict {
            Some((id, "reject", why)) if !force => {
                return Err(Error::usage(
                    format!("evaluation {id} rejected {name}: {why}"),
                    "train another, or promote it all the same with `retune promote --force`; what served before still serves",
                ));
            }
            Some((id, "reject", _)) => format!("forced, though evaluation {id} rejected it"),
            Some((id, verdict, _)) => format!("evaluation {id}: {verdict}"),
            None => "not judged".to_owned(),
        };
        match verdict {
            None => note(&format!("no evaluation of {name} is recorded: `retune evaluate` tells whether it is better")),
            Some((id, "inconclusive", _)) => note(&format!("evaluation {id} did not show that {name} is better")),
            _ => (),
        }
        self.promote(&name, reason.unwrap_or(&told))
    }

    /// The newest evaluation of the adapter that a version is made of.
    fn evaluation_of(&self, name: &str) -> Result<Option<Evaluation>> {
        let deployments = self.store.deployments(&self.server, &self.model())?;
        let Some(found) = deployments.iter().find(|d| d.name().eq_ignore_ascii_case(name)) else { return Ok(None) };
        self.store.last_evaluation(&self.role, &found.adapter_digest)
    }

    /// Moves the alias to a version that is there.
    pub fn promote(&mut self, version: &str, reason: &str) -> Result<Moved> {
        let to = self.named(version)?;
        let from = self.now()?;
        let kind = if from.is_some() { MoveKind::Promotion } else { MoveKind::First };
        self.make(kind, from, to, reason)
    }

    /// Moves the alias back to what served before it, or to the version that is named.
    pub fn roll_back(&mut self, to: Option<&str>, reason: &str) -> Result<Moved> {
        let alias = self.alias();
        let now = self.now()?.ok_or_else(|| {
            Error::usage(
                format!("there is no {alias} at {} to roll back", self.registry.title()),
                "`retune deploy` makes a first version",
            )
        })?;
        let to = match to {
            Some(version) => self.named(version)?,
            None => {
                let before = self.before()?.ok_or_else(|| {
                    Error::usage(
                        format!("nothing served before {}, as far as this store knows", now.name),
                        format!("name a version with --to; `retune history` and `{}` show them", self.registry.look()),
                    )
                })?;
                self.still(before)?
            }
        };
        self.make(MoveKind::Rollback, Some(now), to, reason)
    }

    /// The history of this alias, oldest first.
    pub fn history(&self) -> Result<Vec<AliasMove>> {
        self.store.moves(Some((&self.server, &self.alias())))
    }

    pub fn store(&mut self) -> &mut Store {
        &mut self.store
    }

    fn alias(&self) -> String {
        self.alias.to_string()
    }

    /// `my-coder-tuned-coder`, as the store calls it.
    fn model(&self) -> String {
        self.alias().trim_end_matches(":latest").to_owned()
    }

    fn make(&mut self, kind: MoveKind, from: Option<Named>, to: Named, reason: &str) -> Result<Moved> {
        let alias = self.alias();
        if from.as_ref().is_some_and(|from| from.digest == to.digest) {
            return Ok(Moved { alias, kind, from, to, already: true });
        }
        let from = from.map(|from| self.keep(from)).transpose()?;
        let id = self.store.begin_move(&NewMove {
            server: &self.server,
            alias: &alias,
            kind,
            from: from.as_ref().map(|from| (from.name.as_str(), from.digest.as_str())),
            to: (&to.name, &to.digest),
            reason,
        })?;
        let moved = deploy::move_alias(self.registry, &alias, &to.name);
        let end = match &moved {
            Ok(()) => End { done: true, message: String::new() },
            // The copy may have been made although its answer was lost.
            Err(error) => match self.registry.tag(&alias) {
                Ok(Some(tag)) if tag.digest == to.digest => End { done: true, message: format!("made, though: {error}") },
                _ => End { done: false, message: error.to_string() },
            },
        };
        self.store.end_move(id, &end)?;
        match moved {
            Err(error) if !end.done => Err(error),
            _ => Ok(Moved { alias, kind, from, to, already: false }),
        }
    }

    /// What the alias alone names would be lost when it moves: it gets a name to go back to.
    fn keep(&self, from: Named) -> Result<Named> {
        let alias = self.alias();
        if from.name != alias {
            return Ok(from);
        }
        let short: String = from.digest.trim_start_matches("sha256:").chars().take(12).collect();
        let name = self.alias.with_tag(format!("kept-{short}")).to_string();
        self.registry.copy(&alias, &name)?;
        match self.registry.tag(&name)? {
            Some(tag) if tag.digest == from.digest => Ok(Named { name, digest: from.digest }),
            _ => Err(Error::server(
                format!("{} said that it copied {alias} to {name}, and does not have it there", self.registry.title()),
                format!("the alias was not moved, what served before still serves; look with `{}`", self.registry.look()),
            )),
        }
    }

    /// What a killed process left under way, and what others did to the alias, gets into the history.
    fn settle(&mut self, note: &mut dyn FnMut(&str)) -> Result<()> {
        let alias = self.alias();
        let moves = self.store.moves(Some((&self.server, &alias)))?;
        let open: Vec<&AliasMove> = moves.iter().filter(|m| m.end.is_none()).collect();
        let now = self.registry.tag(&alias)?.map(|tag| tag.digest);
        // Before the moves are ended: killed here, the next one does it again.
        self.registry.settle(!open.is_empty())?;
        for m in &open {
            let done = now.as_ref() == Some(&m.to_digest);
            let message = if done { "its process died after it was made" } else { "its process died before it was made" };
            note(&format!("a {} of {} to {} was cut off: {message}", m.kind.name(), m.alias, m.to_name));
            self.store.end_move(m.id, &End { done, message: message.to_owned() })?;
        }
        let moves = if open.is_empty() { moves } else { self.store.moves(Some((&self.server, &alias)))? };
        let Some(now) = now else { return Ok(()) };
        let last = moves.iter().rev().find(|m| m.is_done());
        if last.is_some_and(|m| m.to_digest == now) {
            return Ok(());
        }
        let name = self.version_of(&now)?.unwrap_or_else(|| alias.clone());
        self.store.record_outside_move(&NewMove {
            server: &self.server,
            alias: &alias,
            kind: MoveKind::Outside,
            from: last.map(|m| (m.to_name.as_str(), m.to_digest.as_str())),
            to: (&name, &now),
            reason: "found so, moved by another hand",
        })
    }

    /// The best name of a digest: the lowest version, else another tag of the same model, else none.
    fn version_of(&self, digest: &str) -> Result<Option<String>> {
        let names = self.registry.tags()?.into_iter().filter(|tag| tag.digest == digest);
        let mut names: Vec<ModelName> = names.filter_map(|tag| ModelName::parse(&tag.name).ok()).collect();
        names.retain(|name| name.same_model(&self.alias) && !name.same(&self.alias));
        names.sort_by_key(|name| (name.version().is_none(), name.version(), name.tag.clone()));
        Ok(names.first().map(ToString::to_string))
    }

    /// `v7`, `7`, another tag or a whole name, as it is there now.
    fn named(&self, version: &str) -> Result<Named> {
        let tag = if version.bytes().all(|b| b.is_ascii_digit()) { format!("v{version}") } else { version.to_owned() };
        let name = if tag.contains(':') { ModelName::parse(&tag)? } else { self.alias.with_tag(tag) };
        if name.same(&self.alias) || !name.same_model(&self.alias) {
            return Err(Error::usage(
                format!("{name} is no version of {}", self.alias.with_tag("vN")),
                format!("give a version such as v7; `retune history` and `{}` show them", self.registry.look()),
            ));
        }
        match self.registry.tag(&name.to_string())? {
            Some(found) => Ok(Named { name: found.name, digest: found.digest }),
            None => Err(Error::usage(
                format!("{} has no {name}", self.registry.title()),
                format!("{}it has {}", self.way_back(&name.to_string())?, self.versions()?),
            )),
        }
    }

    /// That what served is there still, under its name or another.
    fn still(&self, named: Named) -> Result<Named> {
        let there = self.registry.tag(&named.name)?.is_some_and(|tag| tag.digest == named.digest);
        if there && named.name != self.alias() {
            return Ok(named);
        }
        if let Some(name) = self.version_of(&named.digest)? {
            return Ok(Named { name, digest: named.digest });
        }
        if let Some(again) = self.made_again(&named)? {
            return Ok(again);
        }
        Err(Error::usage(
            format!("{} served before, and {} does not have it any more", named.name, self.registry.title()),
            format!("{}name another with --to; it has {}", self.way_back(&named.name)?, self.versions()?),
        ))
    }

    /// A version that was pruned and made again of the same adapter by another Ollama, which wrote another manifest: what is there
    /// now in its place.
    fn made_again(&self, named: &Named) -> Result<Option<Named>> {
        let Some(tag) = self.registry.tag(&named.name)? else { return Ok(None) };
        let model = self.model();
        let every = self.store.every_deployment()?;
        let adapter_of = |digest: &str| {
            let mut records = every.iter().rev().filter(|d| d.server == self.server && d.model == model && d.digest == digest);
            records.find(|d| d.name().eq_ignore_ascii_case(&named.name)).map(|d| &d.adapter_digest)
        };
        let is_same = adapter_of(&named.digest).is_some_and(|adapter| adapter_of(&tag.digest) == Some(adapter));
        Ok(is_same.then_some(Named { name: tag.name, digest: tag.digest }))
    }

    /// How a version that is not there can be had again, for the beginning of a hint; empty for one that was never deployed.
    fn way_back(&self, name: &str) -> Result<String> {
        let records = self.store.deployments(&self.server, &self.model())?;
        let known = records.iter().find(|d| d.name().eq_ignore_ascii_case(name));
        Ok(known.map_or_else(String::new, |d| format!("`retune rebuild v{}` makes it again from its adapter; ", d.version)))
    }

    fn versions(&self) -> Result<String> {
        let names = self.registry.tags()?.into_iter().filter_map(|tag| ModelName::parse(&tag.name).ok());
        let names: Vec<String> =
            names.filter(|name| name.same_model(&self.alias) && !name.same(&self.alias)).map(|name| name.tag).collect();
        Ok(if names.is_empty() { format!("no version of {} at all", self.alias.model) } else { names.join(", ") })
    }
}

/// What served, from the first to the last, as if what was rolled back had never been: the way back from here.
fn line(moves: &[AliasMove]) -> Vec<Named> {
    let mut line: Vec<Named> = Vec::new();
    for m in moves.iter().filter(|m| m.is_done()) {
        let to = Named { name: m.to_name.clone(), digest: m.to_digest.clone() };
        if let (true, Some(name), Some(digest)) = (line.is_empty(), &m.from_name, &m.from_digest) {
            line.push(Named { name: name.clone(), digest: digest.clone() });
        }
        // A version that was made again may have got another digest; its number was given once.
        let is_back = m.kind == MoveKind::Rollback;
        match line.iter().rposition(|known| known.digest == to.digest || is_back && known.name == to.name) {
            Some(at) if is_back || at + 1 == line.len() => {
                line.truncate(at + 1);
                if line[at].digest != to.digest {
                    line[at] = to;
                }
            }
            _ => line.push(to),
        }
    }
    line
}

/// Takes a lock file until it is closed. Where another process has it, `note` is told `busy`, and it is waited for.
pub(super) fn hold(path: &Path, busy: &str, note: &mut dyn FnMut(&str)) -> Result<std::fs::File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let file = std::fs::File::create(path).map_err(Error::io("create", path))?;
    if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
        note(busy);
        // A file system without locks is no reason not to go on.
        let _ = file.lock();
    }
    Ok(file)
}

#[cfg(test)]
#[path = "champion_tests.rs"]
mod tests;
