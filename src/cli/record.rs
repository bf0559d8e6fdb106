//! `retune record`, `retune feedback` and `retune reward`: what happened, and what people say of it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::config_in;
use super::print_json;
use super::signal_args::SignalArgs;
use crate::config::Config;
use crate::domain::{Difficulty, Evidence, NewRun, RunResult, Source, SourceKind};
use crate::error::{Error, Result};
use crate::pipeline::cycle::start_if_due;
use crate::pipeline::record::{BATCH, Recorded, Recorder, Said};
use crate::store::Store;

/// Record what a model did, and how well it went.
///
/// As flags, or as JSON on standard input: one object, or one a line (`retune record -`). Nothing but the role is required; what was not
/// observed is left out. Texts are redacted before they are stored. The same --id recorded twice counts once.
#[derive(clap::Args)]
pub struct Args {
    /// Runs as JSON: a file, or - for standard input
    #[arg(value_name = "FILE|-")]
    from: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    result: ResultArgs,
    #[command(flatten)]
    reports: SignalArgs,
    /// A line of JSON a run
    #[arg(long)]
    json: bool,
}

/// What is known of a run beside how it went; `retune watch` takes it, too.
#[derive(clap::Args)]
pub struct RunArgs {
    /// coder, fixer, judge, or any other name
    #[arg(long)]
    pub role: Option<String>,
    /// What names the work: runs of one task are trained on, or held out, as one
    #[arg(long)]
    task: Option<String>,
    /// What was asked
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// What was asked, from a file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// The system text before it, from a file
    #[arg(long, value_name = "FILE")]
    system_file: Option<PathBuf>,
    /// The answer
    #[arg(long, value_name = "TEXT")]
    output: Option<String>,
    /// The answer, from a file
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    output_file: Option<PathBuf>,
    /// Which model answered
    #[arg(long)]
    model: Option<String>,
    /// Which wording of the prompt it had
    #[arg(long)]
    prompt_variant: Option<String>,
    /// Makes a repeat harmless
    #[arg(long)]
    id: Option<String>,
    /// When it was, as RFC 3339 [default: now]
    #[arg(long)]
    at: Option<String>,
    /// Who says how well it went: executed, judge, or self-reported (which is never learnt from)
    #[arg(long, value_enum, default_value = "executed")]
    evidence: EvidenceArg,
    #[arg(long, value_name = "N")]
    cost_tokens: Option<u64>,
    #[arg(long, value_name = "MS")]
    pub duration_ms: Option<u64>,
    #[arg(long, value_enum)]
    difficulty: Option<DifficultyArg>,
    /// What kind of work it was, such as refactor or test
    #[arg(long)]
    action_type: Option<String>,
    #[arg(long)]
    session: Option<String>,
    #[arg(long)]
    user: Option<String>,
    /// The choice that picked prompt and model
    #[arg(long)]
    choice_id: Option<String>,
    #[command(flatten)]
    source: SourceArgs,
    /// The folder that holds .agent
    #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
    pub root: PathBuf,
}

/// What was observed, by the names of a run's result.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "What was observed")]
pub struct ResultArgs {
    #[arg(long, value_name = "BOOL")]
    compile_pass: Option<bool>,
    #[arg(long, value_name = "N")]
    lint_errors: Option<u64>,
    #[arg(long, value_name = "N")]
    type_errors: Option<u64>,
    #[arg(long, value_name = "N", requires = "tests_total")]
    tests_passed: Option<u64>,
    #[arg(long, value_name = "N", requires = "tests_passed")]
    tests_total: Option<u64>,
    #[arg(long, value_name = "PERCENT")]
    coverage_pct: Option<f64>,
    #[arg(long, value_name = "N")]
    schema_errors: Option<u64>,
    #[arg(long, value_name = "N")]
    boundary_errors: Option<u64>,
    #[arg(long, value_name = "BOOL")]
    human_accept: Option<bool>,
    #[arg(long, value_name = "SHARE")]
    convention_score: Option<f64>,
    #[arg(long, value_name = "N")]
    iterations: Option<u64>,
}

impl ResultArgs {
    pub fn result(&self) -> RunResult {
        RunResult {
            compile_pass: self.compile_pass,
            lint_errors: self.lint_errors,
            type_errors: self.type_errors,
            tests_passed: self.tests_passed,
            tests_total: self.tests_total,
            coverage_pct: self.coverage_pct,
            schema_errors: self.schema_errors,
            boundary_errors: self.boundary_errors,
            human_accept: self.human_accept,
            convention_score: self.convention_score,
            iterations: self.iterations,
        }
    }

    /// What is said by hand stands above what reports say.
    fn over(&self, observed: &RunResult) -> RunResult {
        let said = self.result();
        RunResult::of_metrics(observed.metrics().into_iter().chain(said.metrics()))
    }
}

/// Who wrote an output, and under which terms.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Who wrote it")]
pub struct SourceArgs {
    /// The model, person or data set that wrote the output
    #[arg(long = "source", value_name = "NAME")]
    name: Option<String>,
    #[arg(long = "source-kind", value_enum, requires = "name")]
    kind: Option<SourceKindArg>,
    /// A licence, or whose terms of use: Apache-2.0
    #[arg(long = "terms", value_name = "TERMS", requires = "name")]
    terms: Option<String>,
    /// Whether its terms allow to train on it [default: not for services that are known to forbid it]
    #[arg(long = "may-train", value_name = "BOOL", requires = "name")]
    may_train: Option<bool>,
}

impl SourceArgs {
    pub fn source(&self, usual: SourceKind) -> Option<Source> {
        let kind = self.kind.map_or(usual, Into::into);
        let (terms, training) = (self.terms.clone(), self.may_train);
        self.name.clone().map(|name| Source { name, kind, terms, training })
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum SourceKindArg {
    Model,
    Person,
    Dataset,
}

impl From<SourceKindArg> for SourceKind {
    fn from(arg: SourceKindArg) -> Self {
        match arg {
            SourceKindArg::Model => Self::Model,
            SourceKindArg::Person => Self::Person,
            SourceKindArg::Dataset => Self::Dataset,
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum EvidenceArg {
    Executed,
    Judge,
    SelfReported,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum DifficultyArg {
    Easy,
    Medium,
    Hard,
}

pub fn run(args: &Args) -> Result<()> {
    let root = &args.run.root;
    let config = config_in(root)?;
    let recorder = Recorder::new(&config)?;
    match &args.from {
        Some(from) if args.run.role.is_some() => Err(Error::usage(
            format!("the role is given beside {}", from.display()),
            "give each run its role in the JSON, or the whole run as flags",
        )),
        Some(from) => record_all(args, &config, &recorder, from),
        None => {
            let observed = args.reports.observe()?;
            observed.notes.iter().for_each(|note| eprintln!("note: {note}"));
            let run = args.run.new_run(args.result.over(&observed.result))?;
            let recorded = record_one(&config, &recorder, root, &run)?;
            show(args, &recorded)
        }
    }
}

/// Records a run, and begins a cycle where there is enough for one now.
pub fn record_one(config: &Config, recorder: &Recorder, root: &Path, run: &NewRun) -> Result<Recorded> {
    let mut store = Store::open(root)?;
    let recorded = recorder.record(&mut store, std::slice::from_ref(run), false)?.pop();
    begin_cycles(&store, config, root, &BTreeSet::from([run.role.clone()]));
    recorded.ok_or_else(|| Error::data("nothing was recorded", "report this"))
}

impl RunArgs {
    /// The run that these say, with its result.
    pub fn new_run(&self, result: RunResult) -> Result<NewRun> {
        let role = self.role.clone().ok_or_else(|| {
            Error::usage(
                "nothing says which role the run is of",
                "give --role coder and what is known, or JSON with `retune record -`",
            )
        })?;
        Ok(NewRun {
            id: self.id.clone(),
            at: self.at.clone(),
            role,
            task: self.task.clone(),
            model: self.model.clone(),
            prompt_variant: self.prompt_variant.clone(),
            prompt: text_of(&self.prompt, &self.prompt_file)?,
            system: text_of(&None, &self.system_file)?,
            messages: None,
            tools: None,
            output: text_of(&self.output, &self.output_file)?,
            result,
            evidence: match self.evidence {
                EvidenceArg::Executed => Evidence::Executed,
                EvidenceArg::Judge => Evidence::Judge,
                EvidenceArg::SelfReported => Evidence::SelfReported,
            },
            cost_tokens: self.cost_tokens,
            duration_ms: self.duration_ms,
            difficulty: self.difficulty.map(|difficulty| match difficulty {
                DifficultyArg::Easy => Difficulty::Easy,
                DifficultyArg::Medium => Difficulty::Medium,
                DifficultyArg::Hard => Difficulty::Hard,
            }),
            action_type: self.action_type.clone(),
            session: self.session.clone(),
            user: self.user.clone(),
            choice_id: self.choice_id.clone(),
            source: self.source.source(SourceKind::Model),
        })
    }
}

fn text_of(text: &Option<String>, file: &Option<PathBuf>) -> Result<Option<String>> {
    match file {
        Some(path) => std::fs::read_to_string(path).map(Some).map_err(Error::io("read", path)),
        None => Ok(text.clone()),
    }
}

/// Runs from JSON, a batch a commit; what was read before a line that is wrong is recorded.
fn record_all(args: &Args, config: &Config, recorder: &Recorder, from: &Path) -> Result<()> {
    let reader: Box<dyn BufRead> = if from == Path::new("-") {
        if std::io::stdin().is_terminal() {
            eprintln!("note: reading runs as JSON from the terminal; end with Ctrl-D");
        }
        Box::new(BufReader::new(std::io::stdin().lock()))
    } else {
        Box::new(BufReader::new(std::fs::File::open(from).map_err(Error::io("open", from))?))
    };
    let mut store = Store::open(&args.run.root)?;
    let (mut batch, mut recorded, mut roles) = (Vec::new(), 0, BTreeSet::new());
    let mut take = |batch: &mut Vec<NewRun>| -> Result<()> {
        for one in recorder.record(&mut store, batch, false)? {
            recorded += 1;
            show(args, &one)?;
        }
        batch.clear();
        Ok(())
    };
    let mut wrong = None;
    for run in serde_json::Deserializer::from_reader(skip_bom(reader)?).into_iter::<Value>() {
        let run = run.map_err(|e| e.to_string()).and_then(|value| {
            serde_json::from_value::<NewRun>(value)
                .map_err(|e| format!("{e}; fields are those of `retune record --help`, as in docs/record.md"))
        });
        match run.and_then(|run| recorder.row(&run, false).map(|_| run).map_err(|e| e.to_string())) {
            Ok(run) => {
                roles.insert(run.role.clone());
                batch.push(run);
            }
            Err(problem) => {
                wrong = Some(problem);
                break;
            }
        }
        if batch.len() == BATCH {
            take(&mut batch)?;
        }
    }
    take(&mut batch)?;
    begin_cycles(&store, config, &args.run.root, &roles);
    match wrong {
        None if recorded == 0 => Err(Error::file(from, "holds no run", "give one JSON object a run")),
        None => Ok(()),
        Some(problem) => Err(Error::file(
            from,
            format!("run {}: {problem}", recorded + 1),
            format!(
                "mend it and record it again; the {recorded} before it are recorded (with an id each, recording all again is harmless)"
            ),
        )),
    }
}

/// What was recorded is recorded, whether or not a cycle can be begun.
fn begin_cycles(store: &Store, config: &Config, root: &Path, roles: &BTreeSet<String>) {
    for role in roles {
        match start_if_due(store, config, root, role) {
            Ok(true) => eprintln!("note: there is enough for {role}: a cycle has begun, .agent/cycle.log tells of it"),
            Ok(false) => (),
            Err(error) => eprintln!("note: a cycle of {role} could not be begun: {error}"),
        }
    }
}

fn skip_bom(mut reader: Box<dyn BufRead>) -> Result<impl std::io::Read> {
    let start = reader.fill_buf().map_err(Error::io("read", "standard input"))?;
    let skip = if start.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    reader.consume(skip);
    Ok(reader.take(u64::MAX))
}

fn show(args: &Args, recorded: &Recorded) -> Result<()> {
    if let Some(why) = &recorded.withheld {
        eprintln!("note: the texts of run {} were not stored: {why}", recorded.id);
    }
    if args.json {
        return print_json(recorded);
    }
    let again = if recorded.repeated { "was recorded already" } else { "is recorded" };
    match recorded.reward {
        _ if recorded.repeated => say!("run {} ({}) {again}; nothing was changed", recorded.number, recorded.id),
        Some(reward) => say!(
            "run {} ({}) {again}: reward {reward:.2}, from {:.0}% of what counts",
            recorded.number,
            recorded.id,
            100.0 * recorded.observed_weight
        ),
        None => say!("run {} ({}) {again}, with no reward: nothing of what counts was observed", recorded.number, recorded.id),
    }
}

/// Say what you think of a run: a thumb, a score, a comment, or the answer as it should have been.
///
/// The last vote of a user on a run counts, and the run's reward follows. An edited answer is a vote against the original and an example to
/// learn from.
#[derive(clap::Args)]
pub struct FeedbackArgs {
    /// The run's id, or its number
    run: String,
    #[arg(long, conflicts_with = "down")]
    up: bool,
    #[arg(long)]
    down: bool,
    /// 0 (bad) to 1 (good)
    #[arg(long)]
    score: Option<f64>,
    #[arg(long)]
    comment: Option<String>,
    /// A file with the answer as it should have been
    #[arg(long, value_name = "FILE")]
    edited: Option<PathBuf>,
    /// Who says it [default: the one who is logged in]
    #[arg(long)]
    user: Option<String>,
    /// Makes saying it twice harmless
    #[arg(long)]
    id: Option<String>,
    /// The folder that holds .agent
    #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
    root: PathBuf,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

pub fn run_feedback(args: &FeedbackArgs) -> Result<()> {
    let recorder = Recorder::new(&config_in(&args.root)?)?;
    let mut store = begun(&args.root)?;
    let user = args.user.clone().or_else(|| std::env::var("USER").ok()).unwrap_or_else(|| "somebody".to_owned());
    let said = Said {
        id: args.id.clone(),
        user,
        thumb: args.up.then_some(true).or(args.down.then_some(false)),
        score: args.score,
        comment: args.comment.clone(),
        edited: text_of(&None, &args.edited)?,
    };
    let voted = recorder.feedback(&mut store, &args.run, &said)?;
    if args.json {
        return print_json(&json!({ "vote": voted.vote, "reward": voted.reward, "repeated": voted.repeated }));
    }
    let share = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |value| format!("{value:.2}"));
    say!("votes say {}, the reward is {}", share(voted.vote), share(voted.reward))
}

/// Rewards, as the settings weigh them.
#[derive(clap::Args)]
pub struct RewardArgs {
    #[command(subcommand)]
    command: RewardCommand,
}

#[derive(clap::Subcommand)]
enum RewardCommand {
    /// Give every run the reward that it has with the weights of learning-config.json
    Recompute {
        /// The folder that holds .agent
        #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
        root: PathBuf,
        /// One line of JSON
        #[arg(long)]
        json: bool,
    },
}

pub fn run_reward(args: &RewardArgs) -> Result<()> {
    let RewardCommand::Recompute { root, json } = &args.command;
    let recorder = Recorder::new(&config_in(root)?)?;
    let mut store = begun(root)?;
    let mut changed = 0;
    // A batch a commit: others can record meanwhile, and a kill loses a batch.
    loop {
        match store.recompute_rewards(recorder.weights(), 10_000)? {
            0 => break,
            some => changed += some,
        }
    }
    if *json {
        return print_json(&json!({ "recomputed": changed, "version": recorder.weights().version() }));
    }
    match changed {
        0 => say!("every reward is up to date"),
        n => say!("{n} rewards were computed anew"),
    }
}

/// The store of a project that has one.
pub fn begun(root: &Path) -> Result<Store> {
    Store::open_if_there(root)?.ok_or_else(|| {
        Error::usage(
            format!("there is no {}", Store::path_in(root).display()),
            "`retune record` or `retune import` begins it; --root names the folder that holds .agent",
        )
    })
}
