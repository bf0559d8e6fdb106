//! `retune demo`: a model gets better while you watch.

use std::path::PathBuf;

use super::{print_json, progress};
use crate::demo::make_base::{self, Recipe};
use crate::demo::{self, DemoOptions};
use crate::error::{Error, Result};

/// Watch a small model get better, and stay so: offline, on the CPU, in about a minute.
///
/// The base is part of this binary. It knows eight little skills; it has never seen a tool call. Three candidates are trained and
/// judged: one is better and is promoted, one has a lower loss and broken answers and is rejected, one was taught next to nothing and
/// is inconclusive. Then the rejected one is forced to serve, found out, and rolled back. The exit code is 1 where one of these
/// does not happen.
#[derive(clap::Args)]
pub struct Args {
    /// Where the demo's own project goes: adapters, reports, history; made anew each time
    #[arg(long, value_name = "DIR", default_value = ".agent/demo")]
    out: PathBuf,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// The same in 20 seconds, as a smoke test: one wording of the requests instead of six
    #[arg(long)]
    quick: bool,
    /// The control: the answers are shuffled among the requests, so that nothing can be learnt but their form, and nothing is promoted
    #[arg(long)]
    shuffled: bool,
    /// One line of JSON: before, after (exact matches on held-out items, 0..1), promoted, poisoned_rejected, null_inconclusive,
    /// rolled_back, seconds
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
    let ended = || match args.shuffled || report.is_whole() {
        true => Ok(()),
        false => Err(Error::data(
            "an arm of the demo did not end as it should",
            "run it again with another --seed; if that fails, too, please report it with what is printed above",
        )),
    };
    if args.json {
        print_json(&report)?;
        return ended();
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
    say!("  retune history --root {}", report.project.display())?;
    ended()
}
