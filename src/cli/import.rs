//! `retune import`: pairs and runs from files.

use std::path::PathBuf;

use super::args::config_in;
use super::record::{ResultArgs, SourceArgs};
use super::{Ended, print_json};
use crate::domain::SourceKind;
use crate::error::{Error, Result};
use crate::pipeline::import::{ImportRequest, import};
use crate::pipeline::record::{Recorder, check_role};
use crate::store::Store;

/// Take pairs and runs from a file: alpaca, prompt/completion, messages with tools, sharegpt, runs as `retune record` takes them,
/// or hypotheses_data.jsonl; JSON lines or an array.
///
/// A pair whose author is named (--source) is an example to learn from, with no reward needed. Rows of other shapes become pairs by
/// --prompt and --output, with {{ field }} for the fields of the row. Importing a file twice changes nothing.
#[derive(clap::Args)]
pub struct Args {
    file: PathBuf,
    /// What the pairs are for: coder, fixer, judge, or any other name
    #[arg(long)]
    role: Option<String>,
    #[command(flatten)]
    source: SourceArgs,
    /// What was asked, with {{ field }} for fields of the row
    #[arg(long, value_name = "TEMPLATE", requires = "output")]
    prompt: Option<String>,
    /// The answer, with {{ field }} for fields of the row
    #[arg(long, value_name = "TEMPLATE", requires = "prompt")]
    output: Option<String>,
    /// A file with the system text that stands before each pair; it may hold {{ field }}, too
    #[arg(long, value_name = "FILE")]
    system: Option<PathBuf>,
    /// The field that names the task, or a text with {{ field }}: rows of one task are trained on, or held out, as one
    #[arg(long, value_name = "FIELD|TEMPLATE")]
    task: Option<String>,
    #[command(flatten)]
    result: ResultArgs,
    /// The folder that holds .agent
    #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
    root: PathBuf,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<Ended> {
    if let Some(role) = &args.role {
        check_role(role)?;
    }
    let recorder = Recorder::new(&config_in(&args.root)?)?;
    let system = args.system.as_ref().map(|path| std::fs::read_to_string(path).map_err(Error::io("read", path))).transpose()?;
    let request = ImportRequest {
        role: args.role.clone(),
        source: args.source.source(SourceKind::Dataset),
        prompt: args.prompt.clone(),
        output: args.output.clone(),
        system: system.map(|text| text.trim_end_matches('\n').to_owned()),
        task: args.task.clone(),
        result: args.result.result(),
    };
    if !args.file.is_file() {
        std::fs::File::open(&args.file).map_err(Error::io("open", &args.file))?;
    }
    let mut store = Store::open(&args.root)?;
    let bar = super::progress::Line::new(args.json);
    let imported = import(&mut store, &recorder, &args.file, &request, &mut |so_far| {
        bar.say(&format!("{} rows", so_far.rows));
        Ok(())
    })?;
    bar.clear();
    if args.json {
        print_json(&imported)?;
    } else {
        say!(
            "{} rows: {} taken, {} there already, {} refused",
            imported.rows,
            imported.taken,
            imported.duplicate,
            imported.refused
        )?;
        for (why, count) in &imported.reasons {
            say!("  {count} refused: {why}")?;
        }
        for (line, why) in &imported.first_refused {
            say!("  line {line}: {why}")?;
        }
        if imported.withheld > 0 {
            say!("  the texts of {} could not be redacted and were not stored", imported.withheld)?;
        }
    }
    match imported.rows {
        0 => Err(Error::file(&args.file, "holds no rows", "give JSON lines or a JSON array")),
        n if n == imported.refused => Ok(Ended::WithProblems),
        _ => Ok(Ended::Done),
    }
}
