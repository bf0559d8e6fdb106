//! `retune data check`: a look at a file of rows before any time is spent on it.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use super::args::{MethodArg, open_base};
use super::render::marked;
use super::{Ended, print_json};
use crate::curate::Settings;
use crate::error::{Error, Result};
use crate::pipeline::check::{CheckRequest, Checked, Lengths, Rendering, Twin, check};
use crate::text::render::Renderer;

/// Look at data before it is trained on
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Check(Box<CheckArgs>),
}

/// Tell what is wrong with a file of rows, and what is in it.
///
/// Every row that does not read, lengths, rows that are cut, exact and near duplicates, empty and looping answers, and rows that repeat
/// a held-out file. With --base lengths are tokens, and rows are shown as the model will see them, what is trained in green (elsewhere than on a
/// terminal between ⟦ and ⟧). Exit code 1: rows that do not read or render, the same answer marked good and bad, or a
/// held-out row that is also trained on.
#[derive(clap::Args)]
struct CheckArgs {
    /// The rows: alpaca, prompt/completion, messages, sharegpt or preferences, as JSON lines or a JSON array
    #[arg(value_name = "FILE")]
    data: PathBuf,
    /// What they are for [default: as the first row says]
    #[arg(long, value_enum)]
    method: Option<MethodArg>,
    /// Held-out rows, of which nothing may be in FILE
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// The model to train: a folder, a GGUF file, the tag of a model that your Ollama holds, an id on the hub, or `demo`
    #[arg(long, value_name = "BASE")]
    base: Option<String>,
    /// How conversations become text: alpaca, chatml, plain, or a file with a Jinja template [default: the base's own]
    #[arg(long, value_name = "NAME|FILE", requires = "base")]
    template: Option<String>,
    /// A file whose text stands as the system message before every row
    #[arg(long, value_name = "FILE", requires = "base")]
    system: Option<PathBuf>,
    /// Tokens of a row at most [default: 2048, or the model's context where that is less]
    #[arg(long, value_name = "TOKENS", requires = "base")]
    max_length: Option<usize>,
    /// Rows to show as the model will see them
    #[arg(long, value_name = "ROWS", default_value_t = 1)]
    samples: usize,
    /// Show every finding, not the first ones only
    #[arg(long)]
    all: bool,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<Ended> {
    let Command::Check(args) = &args.command;
    let request = CheckRequest {
        data: args.data.clone(),
        wanted: args.method.map(MethodArg::wanted),
        against: args.against.clone(),
        near_duplicate: Settings::default().near_duplicate,
        samples: if args.json { 0 } else { args.samples },
    };
    let checked = match &args.base {
        None => check(&request, None)?,
        Some(base) => {
            let base = open_base(base, args.json)?;
            let template = base.template(args.template.as_deref())?;
            let system = super::args::system_text(args.system.as_deref())?;
            let renderer = Renderer { tokenizer: &base.tokenizer, template: &template, system };
            let context = base.decoder.config.context_length;
            let max_length = args.max_length.unwrap_or_else(|| base.default_max_length());
            if max_length > context {
                return Err(Error::usage(
                    format!("--max-length {max_length} is more than the {context} tokens that {} can see", base.name),
                    format!("use at most {context}"),
                ));
            }
            check(&request, Some(Rendering { renderer: &renderer, max_length }))?
        }
    };
    if args.json {
        print_json(&checked)?;
    } else {
        Shown { most: if args.all { usize::MAX } else { 5 } }.show(&checked)?;
    }
    Ok(if checked.has_problems() { Ended::WithProblems } else { Ended::Done })
}

/// Characters of a reason at most, where not all is shown.
const REASON: usize = 240;

/// How a report is printed.
struct Shown {
    /// Findings of a kind at most.
    most: usize,
}

impl Shown {
    fn show(&self, checked: &Checked) -> Result<()> {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        for (row, rendered) in &checked.samples {
            let tokens = &rendered.tokens;
            say!(
                "row {row}: {} tokens, {} of them trained\n{}\n",
                tokens.ids.len(),
                tokens.trained_tokens(),
                marked(rendered, colour)
            )?;
        }
        let rows = if checked.rows == 1 { "row" } else { "rows" };
        say!("{}: {} {rows}, {}", checked.file.display(), checked.rows, checked.kind)?;
        let has: Vec<String> = [
            (checked.with_system, "with a system text"),
            (checked.with_tools, "with tools"),
            (checked.many_turns, "with several answers"),
            (checked.unwanted, "marked as bad work (trained on by --method kto only)"),
            (checked.trailing_user_turns, "ending on a user's turn, which is left out"),
        ]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!("{n} {what}"))
        .collect();
        if !has.is_empty() {
            say!("  {:<12} {}", "rows", has.join(", "))?;
        }
        self.lengths(checked)?;
        self.findings(checked)?;
        match checked.has_problems() {
            true => say!("not fit to train on as it is"),
            false => say!("nothing stands in the way"),
        }
    }

    fn lengths(&self, checked: &Checked) -> Result<()> {
        let told = |name: &str, lengths: &Option<Lengths>| match lengths {
            None => Ok(()),
            Some(Lengths { min, median, p95, max, longest_row, sum }) => {
                say!("  {name:<12} min {min}, median {median}, 95% up to {p95}, max {max} (row {longest_row}); {sum} in all")
            }
        };
        told(checked.unit, &checked.length)?;
        told("learnt", &checked.learnt)
    }

    fn findings(&self, checked: &Checked) -> Result<()> {
        let twin = |sign: &str, twin: &Twin| format!("{} {sign} {}", twin.row, twin.of);
        let row = |row: &usize| row.to_string();
        self.list("same", "that an earlier row has already", &checked.exact, |t| twin("=", t))?;
        self.list("near", "nearly the same as an earlier row", &checked.near, |t| {
            format!("{} ({:.2})", twin("~", t), t.likeness)
        })?;
        self.list("asked again", "with another answer to an earlier row's request", &checked.same_request, |t| {
            twin("asks as", t)
        })?;
        self.list("empty", "with an empty answer", &checked.empty, row)?;
        self.list("looping", "with an answer that ends in a loop", &checked.looping, row)?;
        if let Some(max_length) = checked.max_length {
            let what = format!("longer than {max_length} tokens, to be cut");
            self.list("cut", &what, &checked.cut, row)?;
            let what = format!("with nothing to train in the first {max_length} tokens, to be left out");
            self.list("no target", &what, &checked.without_target, row)?;
        }
        self.list("PROBLEM", "marked otherwise than an earlier row that is the same", &checked.contradictions, |t| twin("=", t))?;
        self.reasons("unreadable", checked.unreadable.iter().map(|u| (u.reason.as_str(), format!("line {}", u.line))))?;
        self.reasons(
            "refused by the template",
            checked.unrendered.iter().map(|u| (u.reason.as_str(), format!("row {}", u.row))),
        )?;
        if let Some(against) = &checked.against {
            let shown = against.display();
            if checked.contaminated.is_empty() {
                say!("  {:<12} no row repeats one of {shown}", "held out")?;
            }
            self.list("PROBLEM", &format!("repeating a row of {shown}"), &checked.contaminated, |c| {
                format!("row {} shares {} with its row {}", c.row, c.shared, c.held_out_row)
            })?;
        }
        if checked.length.is_none() {
            say!("  {:<12} there is no row to train on", "PROBLEM")?;
        }
        Ok(())
    }

    /// A count, what it counts, and the first ones.
    fn list<T>(&self, name: &str, what: &str, found: &[T], told: impl Fn(&T) -> String) -> Result<()> {
        if found.is_empty() {
            return Ok(());
        }
        say!("  {name:<12} {} {what}: {}", found.len(), self.first(found.iter().map(told)))
    }

    /// Rows that have one reason are told together, the most first.
    fn reasons<'a>(&self, what: &str, found: impl Iterator<Item = (&'a str, String)>) -> Result<()> {
        let mut by_reason: Vec<(&str, Vec<String>)> = Vec::new();
        for (reason, place) in found {
            match by_reason.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, places)) => places.push(place),
                None => by_reason.push((reason, vec![place])),
            }
        }
        by_reason.sort_by_key(|(_, places)| std::cmp::Reverse(places.len()));
        let more = by_reason.len().saturating_sub(self.most);
        for (reason, places) in by_reason.iter().take(self.most) {
            let reason = if reason.chars().count() > REASON && self.most < usize::MAX {
                reason.chars().take(REASON).chain("...".chars()).collect()
            } else {
                (*reason).to_owned()
            };
            say!("  {:<12} {} {what}: {reason} ({})", "PROBLEM", places.len(), self.first(places.iter().cloned()))?;
        }
        if more > 0 {
            say!("  {:<12} ... and {more} other reasons (--all shows them)", "")?
        }
        Ok(())
    }

    fn first(&self, all: impl Iterator<Item = String>) -> String {
        let mut all: Vec<String> = all.collect();
        let more = all.len().saturating_sub(self.most);
        all.truncate(self.most);
        let list = all.join(", ");
        if more > 0 { format!("{list} and {more} more") } else { list }
    }
}
