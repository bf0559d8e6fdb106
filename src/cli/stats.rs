//! `retune stats`: how the last runs went.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::print_json;
use super::record::begun;
use crate::error::Result;
use crate::store::Means;

/// Show how the last runs went: reward, tokens and time, by model, prompt variant and role.
#[derive(clap::Args)]
pub struct Args {
    /// Only this role
    #[arg(long)]
    role: Option<String>,
    /// How many of the newest runs
    #[arg(long, value_name = "N", default_value_t = 100)]
    last: usize,
    /// The folder that holds .agent
    #[arg(long, env = "RETUNE_ROOT", default_value = ".")]
    root: PathBuf,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let stats = begun(&args.root)?.stats(args.role.as_deref(), args.last)?;
    if args.json {
        return print_json(&stats);
    }
    if stats.all.runs == 0 {
        return say!("no runs are recorded yet: `retune record --help` shows how");
    }
    say!("{:26} {:>6} {:>8} {:>8} {:>9} {:>9} {:>7}", "", "runs", "reward", "tokens", "ms", "compiles", "tests")?;
    line(&format!("the last {}", stats.all.runs), &stats.all)?;
    for (title, groups) in [("model", &stats.by_model), ("prompt variant", &stats.by_prompt_variant), ("role", &stats.by_role)] {
        group(title, groups)?;
    }
    say!("{} runs were recorded in all", stats.recorded)
}

fn group(title: &str, groups: &BTreeMap<String, Means>) -> Result<()> {
    say!("by {title}")?;
    groups.iter().try_for_each(|(name, means)| line(&format!("  {name}"), means))
}

fn line(name: &str, means: &Means) -> Result<()> {
    let number = |value: Option<f64>, digits: usize| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"));
    let percent = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{:.0}%", 100.0 * value));
    let short: String =
        if name.chars().count() > 26 { name.chars().take(25).chain(['\u{2026}']).collect() } else { name.to_owned() };
    say!(
        "{short:26} {:>6} {:>8} {:>8} {:>9} {:>9} {:>7}",
        means.runs,
        number(means.reward, 3),
        number(means.tokens, 0),
        number(means.ms, 0),
        percent(means.compile_rate),
        percent(means.tests_passed)
    )
}
