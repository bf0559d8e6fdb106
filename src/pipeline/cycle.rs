//! One way from what was recorded to a better model, or to the reason why there is none: export, train, register, evaluate, promote.
//!
//! A cycle is a row in the store; each stage that is done is a row with the digest of what it made. Killed anywhere, the next call carries
//! on from the first stage that is missing, by the plan that the cycle was begun with. One runs at a time.

mod ready;
mod stages;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::ready::{Readiness, is_due, readiness};
use self::stages::{Evaluated, Registered, Trained, Written};
use crate::config::Config;
use crate::deploy::llama_server::LlamaServer;
use crate::error::{Error, Result};
use crate::evaluate::judge_model::JudgeModel;
use crate::evaluate::verifier::Verifier;
use crate::export::merge::MergeType;
use crate::fault;
use crate::runtime::Registry;
use crate::runtime::alert::{self, Alert};
use crate::runtime::ollama::Ollama;
use crate::store::{Cycle, StageDone, Store};
use crate::train::Progress;

/// What decides what a cycle makes: kept with it, so that a restart goes on with just this.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub role: String,
    pub base: String,
    pub template: Option<String>,
    pub max_length: Option<usize>,
    pub train: TrainPlan,
    /// The beginning of the model's name.
    pub prefix: String,
    /// Where it is registered.
    pub server: String,
    pub temperature: f64,
    pub top_p: f64,
    pub top_k: u32,
    pub confidence: f64,
    pub min_items: usize,
    /// Tokens of an answer at most, where candidate and champion are compared.
    pub max_tokens: usize,
    /// The command that judges each answer.
    pub verifier: Option<String>,
    /// The model that judges.
    pub judge: Option<String>,
    /// Work that must not get worse.
    pub guards: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrainPlan {
    pub rank: usize,
    pub alpha: f32,
    pub epochs: f64,
    pub max_steps: Option<u64>,
    pub batch_size: usize,
    pub grad_accum: usize,
    pub learning_rate: f64,
    pub seed: u64,
}

/// Where a cycle registers what it trained.
pub enum Server {
    Ollama(Ollama),
    /// `program`: the llama-server that proves a version where none runs.
    LlamaServer {
        registry: Box<LlamaServer>,
        program: Option<PathBuf>,
    },
}

impl Server {
    pub fn registry(&self) -> &dyn Registry {
        match self {
            Self::Ollama(ollama) => ollama,
            Self::LlamaServer { registry, .. } => &**registry,
        }
    }
}

/// A cycle that is to be made, or carried on.
pub struct CycleRequest {
    pub root: PathBuf,
    pub config: Config,
    pub plan: Plan,
    /// Also where the thresholds are not met, or a stage is switched off.
    pub force: bool,
    /// How merged matrices are stored; not of the plan, as it is what a registration that fails asks to change.
    pub merge_type: Option<MergeType>,
    pub server: Server,
    /// As the plan names them, ready to run.
    pub verifier: Option<Verifier>,
    pub judge: Option<JudgeModel>,
}

/// How a cycle ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// There was too little to begin with.
    Nothing,
    Promoted,
    Rejected,
    Inconclusive,
    /// A later stage is switched off: what was made waits.
    Waits,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Promoted => "promoted",
            Self::Rejected => "rejected",
            Self::Inconclusive => "inconclusive",
            Self::Waits => "waits",
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// In the store; `None`: none was begun.
    pub cycle: Option<i64>,
    pub role: String,
    pub outcome: Outcome,
    pub message: String,
    /// It was begun by an earlier call.
    pub resumed: bool,
    pub stages: Vec<StageDone>,
    pub seconds: f64,
}

/// Who hears of a cycle.
pub struct Listeners<'a> {
    pub stop: &'a AtomicBool,
    pub training: &'a mut dyn Progress,
    /// What a user should know.
    pub note: &'a mut dyn FnMut(&str),
    /// What is being done.
    pub doing: &'a mut dyn FnMut(&str),
}

/// The stages in their order.
pub const STAGES: [&str; 5] = ["export", "train", "register", "evaluate", "promote"];

/// Makes a cycle, or carries on the one that was cut off.
pub fn cycle(request: &CycleRequest, listeners: &mut Listeners) -> Result<Report> {
    let clock = Instant::now();
    let _lock = lock(&request.root)?;
    let mut store = Store::open(&request.root)?;
    let role = &request.plan.role;
    let open = store.open_cycle(role)?;
    let resumed = open.is_some();
    let (id, plan) = match open {
        Some(open) => carried_on(&open, &request.plan, listeners.note)?,
        None => {
            let ready = readiness(&store, &request.config, role)?;
            if let Some(why) = ready.nothing_to_do().filter(|_| !request.force) {
                return Ok(Report {
                    cycle: None,
                    role: role.clone(),
                    outcome: Outcome::Nothing,
                    message: why,
                    resumed: false,
                    stages: Vec::new(),
                    seconds: clock.elapsed().as_secs_f64(),
                });
            }
            let plan = request.plan.clone();
            let id = store.begin_cycle(role, &to_json(&plan)?)?;
            (id, plan)
        }
    };
    let made = Run { id, plan, request, store, listeners }.all();
    let mut store = Store::open(&request.root)?;
    match made {
        Ok((outcome, message)) => {
            store.end_cycle(id, outcome.name(), &message)?;
            let (role, stages) = (role.clone(), store.stages(id)?);
            let seconds = clock.elapsed().as_secs_f64();
            Ok(Report { cycle: Some(id), role, outcome, message, resumed, stages, seconds })
        }
        Err(error) => {
            if !can_be_carried_on(&error) {
                store.end_cycle(id, "failed", &error.to_string())?;
            }
            tell(request, id, &error, listeners.note);
            Err(error)
        }
    }
}

/// Ends the cycle that is under way; what it made stays where it is.
pub fn give_up(root: &Path, role: &str) -> Result<Option<i64>> {
    let _lock = lock(root)?;
    let mut store = Store::open(root)?;
    let Some(open) = store.open_cycle(role)? else { return Ok(None) };
    store.end_cycle(open.id, "given_up", "ended by hand")?;
    Ok(Some(open.id))
}

/// Starts a cycle in a process of its own where the thresholds are met and none runs. `true`: it was started.
pub fn start_if_due(store: &Store, config: &Config, root: &Path, role: &str) -> Result<bool> {
    if !is_due(store, config, role)? || lock(root).is_err() {
        return Ok(false);
    }
    let log = root.join(".agent/cycle.log");
    let output = std::fs::OpenOptions::new().create(true).append(true).open(&log).map_err(Error::io("open", &log))?;
    let errors = output.try_clone().map_err(Error::io("open", &log))?;
    let program = std::env::current_exe().map_err(Error::io("find", "retune itself"))?;
    let root = std::path::absolute(root).map_err(Error::io("find", root))?;
    std::process::Command::new(program)
        .args(["cycle", "--role", role, "--root"])
        .arg(&root)
        .stdin(std::process::Stdio::null())
        .stdout(output)
        .stderr(errors)
        // A group of its own: what ends the one who recorded does not end it.
        .process_group(0)
        .spawn()
        .map_err(Error::io("start", "a cycle"))?;
    Ok(true)
}

/// Held by one cycle at a time.
fn lock(root: &Path) -> Result<std::fs::File> {
    let path = root.join(".agent/cycle.lock");
    let folder = root.join(".agent");
    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    let file = std::fs::File::create(&path).map_err(Error::io("create", &path))?;
    match file.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::usage(
            "another cycle is running in this project",
            "wait for it: `retune status` shows it; two never run at once",
        )),
        // A file system without locks is no reason not to go on.
        _ => Ok(file),
    }
}

fn carried_on(open: &Cycle, wanted: &Plan, note: &mut dyn FnMut(&str)) -> Result<(i64, Plan)> {
    let plan: Plan = serde_json::from_value(open.plan.clone()).map_err(|e| {
        Error::data(
            format!("the plan of cycle {} does not read: {e}", open.id),
            "another retune began it: end it with `retune cycle --give-up`",
        )
    })?;
    note(&format!("carrying on cycle {}, begun {}", open.id, open.begun_at));
    if plan != *wanted {
        note("it goes on with the settings that it was begun with; `retune cycle --give-up` ends it");
    }
    Ok((open.id, plan))
}

/// Errors that pass: the next call may find the server there, the disk free, the user patient.
fn can_be_carried_on(error: &Error) -> bool {
    matches!(error, Error::Server { .. } | Error::Io { .. } | Error::Interrupted { .. })
}

fn tell(request: &CycleRequest, id: i64, error: &Error, note: &mut dyn FnMut(&str)) {
    if matches!(error, Error::Interrupted { .. }) {
        return;
    }
    let role = &request.plan.role;
    let open = if can_be_carried_on(error) { "; the next `retune cycle` carries on" } else { "" };
    let alert = Alert {
        event: "cycle_failed",
        text: format!("cycle {id} of {role} failed: {error}{open}"),
        details: json!({ "cycle": id, "role": role, "error": error.to_string(), "next": error.hint() }),
    };
    alert::send(&request.config.alerts, &alert).iter().for_each(|failure| note(failure));
}

/// A cycle under way.
struct Run<'a, 'l> {
    id: i64,
    plan: Plan,
    request: &'a CycleRequest,
    store: Store,
    listeners: &'a mut Listeners<'l>,
}

impl Run<'_, '_> {
    /// All stages: those that are done are only looked at.
    fn all(mut self) -> Result<(Outcome, String)> {
        let (config, force) = (&self.request.config, self.request.force);
        let written: Written = self.stage("export", Written::check, |run| run.export())?;
        if !config.auto_train.enabled && !force {
            return Ok((Outcome::Waits, "the set is written; autoTrain is switched off".to_owned()));
        }
        let trained: Trained = self.stage("train", |_, _| Ok(()), |run| run.train(&written))?;
        if !config.auto_deploy.enabled && !force {
            return Ok((Outcome::Waits, format!("{} is trained; autoDeploy is switched off", trained.out.display())));
        }
        let registered: Registered = self.stage("register", Registered::check, |run| run.register(&written, &trained))?;
        let evaluated: Evaluated = self.stage("evaluate", |_, _| Ok(()), |run| run.evaluate(&written, &trained))?;
        if evaluated.verdict != "promote" {
            let outcome = if evaluated.verdict == "reject" { Outcome::Rejected } else { Outcome::Inconclusive };
            return Ok((outcome, format!("{} stays beside what serves. {}", registered.name, evaluated.explanation)));
        }
        let promoted: stages::Promoted = self.stage("promote", |_, _| Ok(()), |run| run.promote(&registered, &evaluated))?;
        Ok((promoted.outcome(), promoted.message))
    }

    /// A stage that is done tells what it made; else it is made now, and written down with its digest.
    fn stage<T: Serialize + DeserializeOwned>(
        &mut self,
        name: &str,
        check: impl FnOnce(&T, &Self) -> Result<()>,
        make: impl FnOnce(&mut Self) -> Result<(String, T)>,
    ) -> Result<T> {
        if let Some(done) = self.store.stages(self.id)?.into_iter().find(|done| done.stage == name) {
            let made: T = serde_json::from_value(done.detail).map_err(|e| {
                Error::data(
                    format!("what stage {name} of cycle {} made does not read: {e}", self.id),
                    "another retune wrote it: end the cycle with `retune cycle --give-up`",
                )
            })?;
            check(&made, self)?;
            return Ok(made);
        }
        let clock = Instant::now();
        fault::point(&format!("stage {name}"));
        let (digest, made) = make(self)?;
        let done = StageDone { stage: name.to_owned(), digest, detail: to_json(&made)?, seconds: clock.elapsed().as_secs_f64() };
        self.store.end_stage(self.id, &done)?;
        Ok(made)
    }
}

fn to_json(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::data(format!("a cycle cannot be written as JSON: {e}"), "report this"))
}
