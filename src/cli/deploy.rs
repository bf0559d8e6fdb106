//! `retune deploy`: an adapter becomes a model that Ollama or llama-server serves.

use std::path::PathBuf;

use serde_json::json;

use super::args::{Runtime, config_in, llama_server, open_base};
use super::{Ended, print_json};
use crate::deploy::{Parameters, Promote, Report, Verdict};
use crate::error::{Error, Result};
use crate::pipeline::deploy::{DeployRequest, Deployed, Mode, Outcome, RunMemory, deploy, llama_server as to_llama_server};

/// Register a trained adapter with Ollama or llama-server, prompted as it was trained, and prove that it is what is served.
///
/// The new model is a version (`my-coder-tuned-coder:v7`) beside what serves. The alias `:latest` moves only when
/// `--promote` says so, or when there is none yet. Without a server the files are made, and the exit code is 3.
///
/// llama-server (`--runtime llama-server`) has one base in memory and every version's adapter beside it; the start script in
/// .agent/llama-server starts it so.
#[derive(clap::Args)]
pub struct Args {
    /// The adapter: the folder that `retune train` wrote, or a GGUF adapter
    #[arg(long, value_name = "DIR|FILE.gguf")]
    adapter: PathBuf,
    /// The base that it was trained on [default: as run.json beside the adapter says]
    #[arg(long)]
    base: Option<String>,
    /// The template that it was trained with [default: as run.json says]
    #[arg(long, value_name = "NAME|FILE")]
    template: Option<String>,
    /// A file with the system text that it was trained with [default: as run.json says]
    #[arg(long, value_name = "FILE")]
    system: Option<PathBuf>,
    /// Rows whose prompts are compared with what the server renders [default: the rows of the training]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// What the model is for; the end of its name
    #[arg(long, default_value = "coder")]
    role: String,
    /// The beginning of its name [default: my-coder-tuned, or what learning-config.json says]
    #[arg(long)]
    name_prefix: Option<String>,
    /// What is to serve it
    #[arg(long, value_enum, default_value = "ollama")]
    runtime: Runtime,
    /// The llama-server that proves a version where none runs that has it [default: LLAMA_SERVER_BIN, or the one on the PATH]
    #[arg(long, value_name = "FILE")]
    server_bin: Option<PathBuf>,
    /// adapter: base and adapter apart; merged: one file; auto: as this Ollama can
    #[arg(long, value_enum, default_value = "auto")]
    mode: ModeArg,
    /// How the matrices are stored, merged or beside an adapter [default: as they were; merged q8_0 where that has fewer bits, f16 for bf16 and for a Hugging Face folder]
    #[arg(long = "type", value_name = "TYPE")]
    merge_type: Option<String>,
    /// The folder that holds .agent
    #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
    root: PathBuf,
    /// Move the alias :latest to the new version: yes, no, or if there is none yet
    #[arg(long, value_enum, default_value = "if-first", num_args = 0..=1, default_missing_value = "yes")]
    promote: PromoteArg,
    /// [default: 0.2, or what learning-config.json says]
    #[arg(long)]
    temperature: Option<f64>,
    /// [default: 0.9, or what learning-config.json says]
    #[arg(long)]
    top_p: Option<f64>,
    /// [default: 40, or what learning-config.json says]
    #[arg(long)]
    top_k: Option<u32>,
    /// Tokens of context [default: the server's]
    #[arg(long)]
    num_ctx: Option<u32>,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ModeArg {
    Auto,
    Merged,
    Adapter,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum PromoteArg {
    Yes,
    No,
    IfFirst,
}

pub fn run(args: &Args) -> Result<Ended> {
    let config = config_in(&args.root)?.auto_deploy;
    let memory = RunMemory::beside(&args.adapter)?;
    let name = args.base.as_deref().or(memory.base()).ok_or_else(|| {
        Error::usage(format!("nothing says which base {} belongs to", args.adapter.display()), "give it with --base")
    })?;
    let base = open_base(name, args.json)?;
    let own_template = base.own_template.as_ref().map(|t| t.name.clone());
    let remembered = memory.template.clone().filter(|t| Some(t) != own_template.as_ref());
    let template = base.template(args.template.as_deref().or(remembered.as_deref()))?;
    let system = match &args.system {
        Some(path) => Some(std::fs::read_to_string(path).map_err(Error::io("read", path))?.trim_end_matches('\n').to_owned()),
        None => memory.system.clone(),
    };
    let request = DeployRequest {
        adapter: args.adapter.clone(),
        system,
        data: args.data.clone().or_else(|| memory.data()),
        prefix: args.name_prefix.clone().unwrap_or_else(|| config.model_name_prefix.clone()),
        role: args.role.clone(),
        mode: match args.mode {
            ModeArg::Auto => Mode::Auto,
            ModeArg::Merged => Mode::Merged,
            ModeArg::Adapter => Mode::Adapter,
        },
        merge_type: args.merge_type.as_deref().map(str::parse).transpose()?,
        root: args.root.clone(),
        promote: match args.promote {
            PromoteArg::Yes => Promote::Yes,
            PromoteArg::No => Promote::No,
            PromoteArg::IfFirst => Promote::IfFirst,
        },
        parameters: Parameters {
            temperature: args.temperature.unwrap_or(config.temperature),
            top_p: args.top_p.unwrap_or(config.top_p),
            top_k: args.top_k.unwrap_or(config.top_k),
            num_ctx: args.num_ctx,
            ..Parameters::default()
        },
        again: None,
    };
    let mut note = |text: &str| eprintln!("note: {text}");
    match args.runtime {
        Runtime::Ollama if args.server_bin.is_some() => Err(Error::usage(
            "--server-bin names a llama-server, and this deploys to Ollama",
            "add --runtime llama-server, or leave --server-bin away",
        )),
        Runtime::Ollama => show(args, &deploy(&base, &template, &request, &mut note)?),
        Runtime::LlamaServer => {
            let registry = llama_server(&args.root)?;
            let program = args.server_bin.as_deref();
            show_beside_base(args, &to_llama_server::deploy(&base, &template, &request, &registry, program, &mut note)?)
        }
    }
}

fn show(args: &Args, deployed: &Deployed) -> Result<Ended> {
    match &deployed.outcome {
        Outcome::Served { registered, settlement, mode, compared } => {
            if args.json {
                print_json(&json!({
                    "name": registered.name, "version": registered.version, "digest": registered.digest, "reused": registered.reused,
                    "promoted": registered.promoted, "mode": mode, "modelfile": deployed.modelfile, "merged": deployed.merged.as_ref().map(|m| &m.0),
                    "prompt_remedy": settlement.remedy, "max_logprob_difference": compared.max_abs_difference, "adapter_effect": compared.adapter_effect,
                    "same": matches!(compared.verdict, Verdict::Same { .. }),
                }))?;
                return Ok(Ended::Done);
            }
            let alias =
                if registered.promoted { ", and :latest names it" } else { "; :latest was not moved (--promote moves it)" };
            say!("{} is served{}{alias}", registered.name, if registered.reused { " already" } else { "" })?;
            say!(
                "its prompts are token for token what was trained{}",
                settlement.remedy.as_ref().map_or_else(String::new, |r| format!(" ({r})"))
            )?;
            say_compared(compared)?;
            say!("try it: ollama run {}", registered.name)?;
            Ok(Ended::Done)
        }
        Outcome::Later { why, commands } => {
            if args.json {
                print_json(
                    &json!({"name": null, "modelfile": deployed.modelfile, "merged": deployed.merged.as_ref().map(|m| &m.0), "why": why, "later": commands}),
                )?;
            } else {
                eprintln!("{why}");
                say!("the files are made; run later:")?;
                for command in commands {
                    say!("  {command}")?;
                }
            }
            Ok(Ended::WithoutServer)
        }
    }
}

fn say_compared(compared: &Report) -> Result<()> {
    match &compared.verdict {
        Verdict::Same { ties } => say!(
            "its answers are those of the trained model: log-probabilities at most {:.3} apart (base and adapter: {:.1}){}",
            compared.max_abs_difference,
            compared.adapter_effect.unwrap_or(f64::NAN),
            if *ties > 0 { format!(", {ties} parted at a tie") } else { String::new() }
        ),
        Verdict::CannotTell(why) | Verdict::Different(why) => say!("whether the adapter is on could not be told: {why}"),
    }
}

/// A version of llama-server.
fn show_beside_base(args: &Args, deployed: &to_llama_server::Deployed) -> Result<Ended> {
    use to_llama_server::Outcome;
    let registered = &deployed.registered;
    let mut line = json!({
        "name": registered.name, "version": registered.version, "digest": registered.digest, "reused": registered.reused,
        "promoted": registered.promoted, "mode": "adapter", "script": deployed.script, "system": deployed.system,
    });
    match &deployed.outcome {
        Outcome::Proven { by, compared } => {
            if args.json {
                line["proven_by"] = json!(by);
                line["max_logprob_difference"] = json!(compared.max_abs_difference);
                line["adapter_effect"] = json!(compared.adapter_effect);
                line["same"] = json!(matches!(compared.verdict, Verdict::Same { .. }));
                print_json(&line)?;
                return Ok(Ended::Done);
            }
            let alias =
                if registered.promoted { ", and :latest names it" } else { "; :latest was not moved (--promote moves it)" };
            say!("{} is registered{}{alias}", registered.name, if registered.reused { " already" } else { "" })?;
            say!("its prompts are token for token what was trained, as {by} has shown")?;
            say_compared(compared)?;
            say_system(deployed)?;
            say!("start it: {}", deployed.script.display())?;
            Ok(Ended::Done)
        }
        Outcome::Later { why, commands } => {
            if args.json {
                line["why"] = json!(why);
                line["later"] = json!(commands);
                print_json(&line)?;
                return Ok(Ended::WithoutServer);
            }
            eprintln!("{why}");
            say_system(deployed)?;
            say!("the files are made; run later:")?;
            for command in commands {
                say!("  {command}")?;
            }
            Ok(Ended::WithoutServer)
        }
    }
}

fn say_system(deployed: &to_llama_server::Deployed) -> Result<()> {
    match &deployed.system {
        Some(system) => say!(
            "llama-server knows no system text of its own: every request has to begin with the one that was trained, {system:?}"
        ),
        None => Ok(()),
    }
}
