//! `retune doctor`: is everything here to train and to serve?

use std::path::PathBuf;

use serde_json::json;

use super::{Ended, print_json};
use crate::error::Result;
use crate::pipeline::doctor::{DoctorRequest, Finding, Level, examine};
use crate::train::plan::parse_bytes;

/// Look whether everything is here to train and to serve, and say what to do where it is not.
///
/// Nothing is changed, neither on this machine nor on the Ollama. The exit code is 1 where something is a problem.
#[derive(clap::Args)]
pub struct Args {
    /// A base to look at, too: does it fit into memory, and does Ollama prompt it as training does?
    #[arg(long, value_name = "BASE")]
    base: Option<String>,
    /// The template that you would train with [default: the base's own]
    #[arg(long, value_name = "NAME|FILE")]
    template: Option<String>,
    /// Where a training would write
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// The folder that holds .agent
    #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
    root: PathBuf,
    /// Memory that a training may take, like 8GB [default: four fifths of what is free]
    #[arg(long, value_name = "BYTES")]
    memory_budget: Option<String>,
    /// One line of JSON: findings (section, level, what, next) and the number of problems
    #[arg(long)]
    json: bool,
}

/// Columns of a line.
const WIDTH: usize = 80;

pub fn run(args: &Args) -> Result<Ended> {
    let request = DoctorRequest {
        base: args.base.clone(),
        template: args.template.clone(),
        out: args.out.clone(),
        root: args.root.clone(),
        memory_budget: args.memory_budget.as_deref().map(parse_bytes).transpose()?,
    };
    let mut findings: Vec<Finding> = Vec::new();
    let mut printed = Ok(());
    examine(&request, &mut |finding| {
        let section = findings.last().map(|f| f.section);
        if !args.json && printed.is_ok() {
            printed = show(&finding, section != Some(finding.section));
        }
        findings.push(finding);
    });
    printed?;
    let problems = findings.iter().filter(|f| f.level == Level::Problem).count();
    if args.json {
        print_json(&json!({ "findings": findings, "problems": problems }))?;
    } else {
        match problems {
            0 => say!("\nnothing stands in the way")?,
            1 => say!("\none problem")?,
            n => say!("\n{n} problems")?,
        }
    }
    Ok(if problems == 0 { Ended::Done } else { Ended::WithProblems })
}

fn show(finding: &Finding, new_section: bool) -> Result<()> {
    if new_section {
        say!("{}", finding.section)?;
    }
    let level = match finding.level {
        Level::Ok => "ok",
        Level::Note => "note",
        Level::Problem => "problem",
    };
    say!("{}", wrapped(&format!("  {level:<8} "), &finding.what))?;
    match &finding.next {
        Some(next) => say!("{}", wrapped(&format!("  {:<8} next: ", ""), next)),
        None => Ok(()),
    }
}

/// `text` behind `first`, in lines of at most `WIDTH` characters as far as its words allow, each below the text's begin.
fn wrapped(first: &str, text: &str) -> String {
    let indent = " ".repeat(first.chars().count());
    let (mut out, mut line) = (String::new(), first.to_owned());
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            out.push_str(&line);
            out.push('\n');
            line.clone_from(&indent);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    out + &line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_findings_are_wrapped_below_their_begin() {
        let text = wrapped("  note     ", &"word ".repeat(40));
        assert!(text.lines().count() == 3 && text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("           word")), "{text}");
        let path = "x".repeat(100);
        assert_eq!(wrapped("  ok       ", &format!("in {path} b")), format!("  ok       in\n           {path}\n           b"));
    }
}
