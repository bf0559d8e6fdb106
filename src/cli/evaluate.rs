//! `retune evaluate`: is a new adapter better than what serves?

use std::path::PathBuf;

use serde_json::json;

use super::args::{BaseArgs, LengthArgs, Runtime, prefix_in};
use super::print_json;
use crate::domain::Verdict;
use crate::error::{Error, Result};
use crate::evaluate::judge_model::JudgeModel;
use crate::evaluate::statistics::Bootstrap;
use crate::evaluate::verdict::Rules;
use crate::evaluate::verifier::{Confinement, Verifier};
use crate::pipeline::evaluate::{Answered, AtServer, EvaluateRequest, InProcess, ServedSides, Side, Sides, evaluate};
use crate::runtime::ollama::Ollama;

/// Judge a new adapter against the old one, or against the base, on work that neither was trained on.
///
/// Both answer the same items greedily. What counts is your verifier's word where you give one, else that of a judge model where you
/// name one, else whether the answer is the expected one. The verdict is promote, reject or inconclusive, with its reasons; a report shows what was won and lost.
///
/// With --served, both are versions that Ollama or llama-server serves, and answer as clients hear them; their speed and memory are measured, too.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    base: Option<BaseArgs>,
    /// Compare versions that a server serves, instead of adapters in this process
    #[arg(long, conflicts_with = "base")]
    served: bool,
    /// What serves them, with --served
    #[arg(long, value_enum, default_value = "ollama")]
    runtime: Runtime,
    /// The new adapter: a folder or a GGUF adapter; with --served a version such as v7
    #[arg(long, value_name = "DIR|FILE.gguf|VERSION")]
    candidate: PathBuf,
    /// The adapter that serves [default: the base without one; with --served what :latest names]
    #[arg(long, value_name = "DIR|FILE.gguf|VERSION")]
    champion: Option<PathBuf>,
    /// Held-out rows; the last answer of each is what is expected
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Rows of other work that must not get worse; may be given more than once
    #[arg(long = "guard", value_name = "FILE")]
    guards: Vec<PathBuf>,
    /// A command that judges each answer: exit code 0 is right. It runs confined in a folder of its own (docs/verifier.md)
    #[arg(long, value_name = "COMMAND")]
    verifier: Option<String>,
    /// How the verifier is held; `limits` promises nothing about files and network
    #[arg(long, value_enum, default_value = "namespaces")]
    verifier_confinement: ConfinementArg,
    /// A folder or file beside the project that the verifier may read; may be given more than once
    #[arg(long, value_name = "PATH")]
    verifier_see: Vec<PathBuf>,
    /// Seconds that the verifier may take for an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    verifier_timeout: f64,
    /// A model at Ollama that says which answer is the better one, asked in both orders; of another family than the candidate's
    #[arg(long, value_name = "MODEL")]
    judge: Option<String>,
    /// The judge shares the candidate's architecture, and you know that it is no kin (Mistral and SmolLM2 are both 'llama')
    #[arg(long, requires = "judge")]
    judge_same_family: bool,
    /// The field of the rows that names their group; items of one group go well or badly together
    /// [default: group, task_id or task where a row has it, else the same request is the same group]
    #[arg(long, value_name = "FIELD")]
    group_by: Option<String>,
    /// Tokens of an answer at most; 0 compares losses only
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    max_tokens: usize,
    #[command(flatten)]
    length: LengthArgs,
    /// How sure a promotion must be
    #[arg(long, value_name = "SHARE", default_value_t = 0.95)]
    confidence: f64,
    /// Fewer items promote nothing
    #[arg(long, value_name = "N", default_value_t = 50)]
    min_items: usize,
    /// The same seed draws the same resamples
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// What the model is for
    #[arg(long, default_value = "coder")]
    role: String,
    /// The beginning of the model's name, with --served [default: my-coder-tuned, or what learning-config.json says]
    #[arg(long)]
    name_prefix: Option<String>,
    /// The folder that holds .agent
    #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
    root: PathBuf,
    /// Where the report goes [default: .agent/reports/evaluation-N.html]
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ConfinementArg {
    Namespaces,
    Limits,
}

pub fn run(args: &Args) -> Result<()> {
    let verifier = args.verifier.as_ref().map(|command| {
        let mut verifier = Verifier::new(command.clone())?;
        verifier.limits.wall_secs = args.verifier_timeout;
        verifier.see.clone_from(&args.verifier_see);
        verifier.confinement = match args.verifier_confinement {
            ConfinementArg::Namespaces => Confinement::Namespaces,
            ConfinementArg::Limits => Confinement::Limits,
        };
        Ok(verifier)
    });
    let judge = args.judge.as_ref().map(|name| -> Result<JudgeModel> {
        let mut judge = JudgeModel::open(Ollama::from_env()?, name)?;
        judge.same_family = args.judge_same_family;
        Ok(judge)
    });
    let request = EvaluateRequest {
        role: args.role.clone(),
        data: args.data.clone(),
        guards: args.guards.clone(),
        group_by: args.group_by.clone(),
        max_tokens: args.max_tokens,
        verifier: verifier.transpose()?,
        judge: judge.transpose()?,
        rules: Rules {
            bootstrap: Bootstrap { confidence: args.confidence, seed: args.seed, ..Bootstrap::default() },
            min_items: args.min_items,
            ..Rules::default()
        },
        root: args.root.clone(),
        report: args.report.clone(),
    };
    let stop = super::stop_on_interrupt();
    let bar = super::progress::Line::new(args.json);
    let run =
        |sides: &mut dyn Sides| evaluate(sides, &request, stop, &mut |text| eprintln!("note: {text}"), &mut |text| bar.say(text));
    let evaluated = match &args.base {
        _ if args.served => {
            let text = |path: &PathBuf| path.to_string_lossy().into_owned();
            let sides = ServedSides {
                prefix: prefix_in(&args.root, args.name_prefix.as_deref())?,
                role: args.role.clone(),
                candidate: text(&args.candidate),
                champion: args.champion.as_ref().map(text),
            };
            run(&mut AtServer::open(&*args.runtime.answering(&args.root)?, &args.root, &sides)?)?
        }
        Some(given) => {
            let base = given.open(args.json)?;
            let (template, reading) = (given.template(&base)?, given.reading(&args.length)?);
            let sides = [side(&args.candidate), args.champion.as_ref().map_or(Side::Base, |path| side(path))];
            let mut answered = Answered::default();
            run(&mut InProcess::open(&base, &template, &reading, sides.each_ref(), &mut answered)?)?
        }
        None => {
            return Err(Error::usage(
                "nothing says which base the adapters belong to",
                "give it with --base; or compare versions that are served with --served",
            ));
        }
    };
    bar.clear();
    let judgement = &evaluated.judgement;
    if args.json {
        return print_json(&json!({
            "id": evaluated.id, "verdict": judgement.verdict.name(), "judgement": judgement, "report": evaluated.report,
            "seconds": evaluated.seconds,
        }));
    }
    say!("{}", judgement.explanation)?;
    for guarded in &judgement.guards {
        say!("  {guarded}")?;
    }
    if let Verdict::Promote = judgement.verdict {
        match args.served {
            true => say!("let it serve with `retune promote {}`", args.candidate.display())?,
            false => say!("let it serve with `retune deploy --promote`, or `retune promote` where it is registered")?,
        }
    }
    say!("look at {}", evaluated.report.display())
}

/// `base` is the base itself, where no file is called so.
fn side(path: &std::path::Path) -> Side {
    if path == std::path::Path::new("base") && !path.exists() { Side::Base } else { Side::Adapter(path.to_owned()) }
}
