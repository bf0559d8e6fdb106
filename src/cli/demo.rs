//! `retune demo`: a model gets better while you watch.

use std::path::PathBuf;

use super::{print_json, progress};
use crate::demo::make_base::{self, Recipe};
use crate::demo::{self, DemoOptions};
use crate::error::Result;

/// Watch a small model learn a task that it fails: offline, on the CPU, in about a minute.
///
/// The base is part of this binary. It knows eight little skills; it has never seen a tool call. The demo measures it on
/// held-out requests, trains an adapter, and measures again.
#[derive(clap::Args)]
pub struct Args {
    /// Where the adapter and its report go
    #[arg(long, value_name = "DIR", default_value = ".agent/demo")]
    out: PathBuf,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// A shorter training, as a smoke test
    #[arg(long)]
    quick: bool,
    /// The control: the answers are shuffled among the requests, so that nothing can be learnt but their form
    #[arg(long)]
    shuffled: bool,
    /// One line of JSON: before, after (exact matches on held-out items, 0..1), seconds
    #[arg(long)]
    json: bool,
    /// Make the demo's base anew and write it to FILE (scripts/make-demo-base)
    #[arg(long, value_name = "FILE", hide = true)]
    make_base: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let mut progress = progress::for_training(args.json);
    if let Some(out) = &args.make_base {
        for (skill, share) in make_base::make(out, &Recipe::default(), progress.as_mut())? {
            say!("{skill:>8} {share:.2}")?;
        }
        return Ok(());
    }
    let quiet = args.json;
    let options = DemoOptions { seed: args.seed, shuffled: args.shuffled, quick: args.quick };
    let report = demo::run(&args.out, &options, progress.as_mut(), &mut |text| {
        if !quiet {
            eprintln!("{text}");
        }
    })?;
    if args.json {
        return print_json(&report);
    }
    say!("")?;
    for example in report.examples.iter().take(3) {
        say!("request  {}", example.request)?;
        say!("before   {}", example.before)?;
        say!("after    {}", example.after)?;
        say!("right    {}\n", example.right)?;
    }
    say!("exact answers on held-out requests: {:.0}% before, {:.0}% after", 100.0 * report.before, 100.0 * report.after)?;
    say!("its own skills: {:.0}% before, {:.0}% after", 100.0 * report.skills_before, 100.0 * report.skills_after)?;
    for (what, so) in [
        ("better: promoted", Some(report.promoted)),
        ("lower loss, broken answers: rejected", report.poisoned_rejected),
        ("nothing new: inconclusive", report.null_inconclusive),
        ("forced and worse: rolled back", report.rolled_back),
    ] {
        let so = match so {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "not tried",
        };
        say!("{what:38} {so}")?;
    }
    say!("{:.0} s in all; look at", report.seconds)?;
    for page in &report.pages {
        say!("  {}", page.display())?;
    }
    say!("  retune history --root {}", report.project.display())
}
