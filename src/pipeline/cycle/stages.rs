//! What each stage makes, and what the next one needs to know of it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Outcome, Run, Server};
use crate::base::Base;
use crate::deploy::{Parameters, Promote, Verdict as Proof, alias_name};
use crate::error::{Error, Result};
use crate::evaluate::statistics::Bootstrap;
use crate::evaluate::verdict::Rules;
use crate::formats::durable;
use crate::model::{AdapterSpec, adapter_files};
use crate::pipeline::champion::Champion;
use crate::pipeline::deploy::{self, DeployRequest, Mode, llama_server};
use crate::pipeline::evaluate::{Answered, AtServer, EvaluateRequest, InProcess, ServedSides, Side, Sides, evaluate};
use crate::pipeline::export::{Frozen, RoleSet, Shape};
use crate::pipeline::{Reading, TrainRequest, adapter_digest, train};
use crate::train::TrainSettings;

/// The set, frozen in the cycle's folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    pub snapshot: i64,
    /// The newest run that was looked at.
    pub newest_run: i64,
    pub train: usize,
    pub held_out: usize,
    pub train_file: Frozen,
    pub held_out_file: Frozen,
}

/// The adapter.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trained {
    pub out: PathBuf,
    pub base_digest: String,
    pub steps: u64,
    pub last_loss: f64,
    pub seconds: f64,
}

/// The version that is served beside the champion.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    pub name: String,
    pub version: u64,
    pub digest: String,
}

/// The verdict.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evaluated {
    pub evaluation: i64,
    /// `promote`, `reject` or `inconclusive`.
    pub verdict: String,
    pub explanation: String,
    pub report: PathBuf,
    /// Digest of what served meanwhile; `None`: nothing, the base was the champion.
    pub champion: Option<String>,
}

/// What became of the alias.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Promoted {
    pub promoted: bool,
    pub message: String,
}

/// Fewer rows are all trained on; of more, this share shows when to stop.
const ROWS_TO_WATCH: usize = 400;
const WATCHED_SHARE: f64 = 0.05;

impl Written {
    pub fn check(&self, _run: &Run) -> Result<()> {
        self.train_file.check()?;
        self.held_out_file.check()
    }
}

impl Registered {
    /// That the server still has what was registered.
    pub fn check(&self, run: &Run) -> Result<()> {
        match run.request.server.registry().tag(&self.name)? {
            Some(tag) if tag.digest == self.digest => Ok(()),
            _ => Err(Error::data(
                format!("{} is not what this cycle registered", self.name),
                "end the cycle with `retune cycle --give-up` and begin another; the adapter is kept",
            )),
        }
    }
}

impl Promoted {
    pub fn outcome(&self) -> Outcome {
        if self.promoted { Outcome::Promoted } else { Outcome::Inconclusive }
    }
}

impl Run<'_, '_> {
    fn folder(&self) -> PathBuf {
        self.request.root.join(format!(".agent/cycles/{}", self.id))
    }

    pub fn export(&mut self) -> Result<(String, Written)> {
        (self.listeners.doing)("choosing what to learn from");
        let (request, role) = (self.request, self.plan.role.clone());
        let set = RoleSet::of(&self.store, &request.config, &role)?;
        set.curated.notes().iter().for_each(|note| (self.listeners.note)(note));
        if set.curated.train.is_empty() {
            return Err(Error::data(
                format!("nothing of {role} may be learnt from"),
                "record runs with their results, or import pairs with --source; `retune status` says what is missing",
            ));
        }
        if set.curated.held_out.is_empty() {
            return Err(Error::data(
                format!("the {} examples of {role} are of too few tasks to hold any out", set.curated.train.len()),
                "record more tasks: without held-out work no candidate can be judged",
            ));
        }
        let [train_file, held_out_file] = set.freeze(&self.store, &self.folder())?;
        set.write(&self.store, &request.root, Shape::Alpaca, None)?;
        let snapshot = set.record(&mut self.store)?;
        let written = Written {
            snapshot,
            newest_run: set.newest_run,
            train: set.curated.train.len(),
            held_out: set.curated.held_out.len(),
            train_file,
            held_out_file,
        };
        Ok((set.curated.digest, written))
    }

    pub fn train(&mut self, written: &Written) -> Result<(String, Trained)> {
        (self.listeners.doing)("training");
        let (base, plan) = (Base::open(&self.plan.base)?, self.plan.train.clone());
        let out = self.adapter_folder()?;
        let request = TrainRequest {
            data: written.train_file.path.clone(),
            eval_data: None,
            eval_share: if written.train < ROWS_TO_WATCH { 0.0 } else { WATCHED_SHARE },
            out: out.clone(),
            reading: self.reading(),
            adapter: AdapterSpec { rank: plan.rank, alpha: plan.alpha, ..AdapterSpec::default() },
            init_adapter: None,
            settings: TrainSettings {
                epochs: plan.epochs,
                max_steps: plan.max_steps,
                batch_size: plan.batch_size,
                grad_accum: plan.grad_accum,
                learning_rate: plan.learning_rate,
                seed: plan.seed,
                ..TrainSettings::default()
            },
            memory_budget: None,
            save_every: 50,
            // What a killed call left is gone on with.
            resume: out.join(crate::pipeline::RUN_FILE).exists(),
            overwrite: false,
        };
        let listeners = &mut *self.listeners;
        let report = train(&base, &request, listeners.training, listeners.stop, listeners.note)?;
        let digest = adapter_digest(&adapter_files::load(&out, &base.decoder.config)?);
        let (steps, last_loss, seconds) = (report.steps, report.last_loss, report.seconds);
        Ok((digest, Trained { out, base_digest: base.digest()?, steps, last_loss, seconds }))
    }

    /// `.agent/lora/<role>/v<N>`, N the version that it is likely to become; a folder that another training has is passed over.
    fn adapter_folder(&mut self) -> Result<PathBuf> {
        // Decided once: a restart must find its training again.
        let decided = self.folder().join("adapter-folder");
        if let Ok(path) = std::fs::read_to_string(&decided) {
            return Ok(path.trim_end().into());
        }
        let parent = self.request.root.join(".agent/lora").join(&self.plan.role);
        let model = alias_name(&self.plan.prefix, &self.plan.role)?.to_string();
        let next = self.store.next_version(&self.plan.server, model.trim_end_matches(":latest"))?;
        let taken = |n: &u64| parent.join(format!("v{n}")).exists();
        let folder = parent.join(format!("v{}", (next..).find(|n| !taken(n)).unwrap_or(next)));
        durable::write(&decided, format!("{}\n", folder.display()).as_bytes())?;
        Ok(folder)
    }

    pub fn register(&mut self, written: &Written, trained: &Trained) -> Result<(String, Registered)> {
        (self.listeners.doing)("registering the candidate");
        let base = self.base_of(trained)?;
        let template = base.template(self.plan.template.as_deref())?;
        let plan = &self.plan;
        let request = DeployRequest {
            adapter: trained.out.clone(),
            system: None,
            data: Some(written.train_file.path.clone()),
            prefix: plan.prefix.clone(),
            role: plan.role.clone(),
            mode: Mode::Auto,
            merge_type: self.request.merge_type,
            root: self.request.root.clone(),
            promote: Promote::No,
            parameters: Parameters {
                temperature: plan.temperature,
                top_p: plan.top_p,
                top_k: plan.top_k,
                ..Parameters::default()
            },
            again: None,
        };
        let note = &mut *self.listeners.note;
        let (registered, proof) = match &self.request.server {
            Server::Ollama(_) => match deploy::deploy(&base, &template, &request, note)?.outcome {
                deploy::Outcome::Served { registered, compared, .. } => (registered, compared.verdict),
                deploy::Outcome::Later { why, .. } => return Err(later(&why)),
            },
            Server::LlamaServer { registry, program } => {
                let made = llama_server::deploy(&base, &template, &request, registry, program.as_deref(), note)?;
                match made.outcome {
                    llama_server::Outcome::Proven { compared, .. } => (made.registered, compared.verdict),
                    llama_server::Outcome::Later { why, .. } => return Err(later(&why)),
                }
            }
        };
        if let Proof::CannotTell(why) | Proof::Different(why) = proof {
            note(&format!("whether {} is what was trained could not be told: {why}", registered.name));
        }
        let made = Registered { name: registered.name, version: registered.version, digest: registered.digest };
        Ok((made.digest.clone(), made))
    }

    pub fn evaluate(&mut self, written: &Written, trained: &Trained) -> Result<(String, Evaluated)> {
        (self.listeners.doing)("judging the candidate");
        let base = self.base_of(trained)?;
        let template = base.template(self.plan.template.as_deref())?;
        let (plan, root) = (self.plan.clone(), self.request.root.clone());
        let request = EvaluateRequest {
            role: plan.role.clone(),
            data: written.held_out_file.path.clone(),
            guards: plan.guards.clone(),
            group_by: None,
            max_tokens: plan.max_tokens,
            verifier: self.request.verifier.clone(),
            judge: self.request.judge.clone(),
            rules: Rules {
                bootstrap: Bootstrap { confidence: plan.confidence, seed: plan.train.seed, ..Bootstrap::default() },
                min_items: plan.min_items,
                ..Rules::default()
            },
            root: root.clone(),
            // One name, so that a second try replaces what a killed one left.
            report: Some(root.join(format!(".agent/reports/cycle-{}.html", self.id))),
        };
        let registry = self.request.server.registry();
        let champion = Champion::open(registry, &root, &plan.prefix, &plan.role, self.listeners.note)?.now()?;
        let reading = self.reading();
        // On this base, where that is what the champion stands on; of another base, or of another hand, only the server can speak for it.
        let here = match &champion {
            None => Some(Side::Base),
            Some(champion) => {
                let alias = alias_name(&plan.prefix, &plan.role)?.to_string();
                let known = self.store.deployments(&plan.server, alias.trim_end_matches(":latest"))?;
                let known = known.into_iter().find(|d| d.digest == champion.digest && d.base_digest == trained.base_digest);
                known.map(|known| Side::Adapter(known.adapter_path.into()))
            }
        };
        let evaluated = match here {
            Some(other) => {
                let (candidate, mut answered) = (Side::Adapter(trained.out.clone()), Answered::default());
                self.judge(&mut InProcess::open(&base, &template, &reading, [&candidate, &other], &mut answered)?, &request)?
            }
            None => self.judge_served(&request, trained)?,
        };
        let judgement = &evaluated.judgement;
        let made = Evaluated {
            evaluation: evaluated.id,
            verdict: judgement.verdict.name().to_owned(),
            explanation: judgement.explanation.clone(),
            report: evaluated.report.clone(),
            champion: champion.map(|champion| champion.digest),
        };
        Ok((format!("evaluation {}: {}", made.evaluation, made.verdict), made))
    }

    fn judge(&mut self, sides: &mut dyn Sides, request: &EvaluateRequest) -> Result<crate::pipeline::evaluate::Evaluated> {
        let listeners = &mut *self.listeners;
        evaluate(sides, request, listeners.stop, listeners.note, listeners.doing)
    }

    fn judge_served(&mut self, request: &EvaluateRequest, trained: &Trained) -> Result<crate::pipeline::evaluate::Evaluated> {
        let registered = self.store.stages(self.id)?.into_iter().find(|done| done.stage == "register");
        let name = registered.and_then(|done| done.detail["name"].as_str().map(str::to_owned)).ok_or_else(|| {
            Error::data(format!("{} is not registered", trained.out.display()), "end the cycle with `retune cycle --give-up`")
        })?;
        let sides =
            ServedSides { prefix: self.plan.prefix.clone(), role: self.plan.role.clone(), candidate: name, champion: None };
        let request_server = &self.request.server;
        let mut sides = match request_server {
            Server::Ollama(ollama) => AtServer::open(ollama, &self.request.root, &sides)?,
            Server::LlamaServer { registry, .. } => AtServer::open(&**registry, &self.request.root, &sides)?,
        };
        self.judge(&mut sides, request)
    }

    pub fn promote(&mut self, registered: &Registered, evaluated: &Evaluated) -> Result<(String, Promoted)> {
        (self.listeners.doing)("promoting");
        let registry = self.request.server.registry();
        let (root, plan) = (&self.request.root, &self.plan);
        let mut champion = Champion::open(registry, root, &plan.prefix, &plan.role, self.listeners.note)?;
        let now = champion.now()?;
        let is_there = now.as_ref().is_some_and(|now| now.digest == registered.digest);
        if !is_there && now.as_ref().map(|now| &now.digest) != evaluated.champion.as_ref() {
            let serves = now.map_or_else(|| "nothing".to_owned(), |now| now.name);
            let message = format!(
                "{} was better than what served when it was judged, but {serves} serves now: judge it again with `retune evaluate`",
                registered.name
            );
            return Ok((format!("not {}", registered.digest), Promoted { promoted: false, message }));
        }
        let reason = format!("cycle {}, evaluation {}", self.id, evaluated.evaluation);
        champion.promote_judged(&format!("v{}", registered.version), Some(&reason), false, self.listeners.note)?;
        let message = format!("{} serves. {}", registered.name, evaluated.explanation);
        Ok((registered.digest.clone(), Promoted { promoted: true, message }))
    }

    /// The base, the very one that was trained on.
    fn base_of(&self, trained: &Trained) -> Result<Base> {
        let base = Base::open(&self.plan.base)?;
        if base.digest()? == trained.base_digest {
            return Ok(base);
        }
        Err(Error::data(
            format!("{} is another model than when this cycle trained on it", self.plan.base),
            "end the cycle with `retune cycle --give-up`; the next one trains on what it is now",
        ))
    }

    fn reading(&self) -> Reading {
        Reading { template: self.plan.template.clone(), max_length: self.plan.max_length, ..Reading::default() }
    }
}

fn later(why: &str) -> Error {
    Error::server(why, "start it and run `retune cycle` again: it carries on from here")
}
