//! Live progress of a training and of a download: a bar on a terminal, a line now and then elsewhere, nothing for machines.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::runtime::hub::Event;
use crate::train::Progress;
use crate::train::metrics::{EvaluationLine, Rewards, StepLine};
use crate::train::run::Silent;

/// The progress that fits where stderr goes.
pub fn for_training(quiet: bool) -> Box<dyn Progress> {
    if quiet {
        Box::new(Silent)
    } else if std::io::stderr().is_terminal() {
        Box::new(Bar::new())
    } else {
        Box::new(Lines { pace: Pace::default(), last: Instant::now() })
    }
}

/// Tokens a second and the time that is left, over the last steps.
#[derive(Default)]
struct Pace {
    recent: std::collections::VecDeque<(usize, f64)>,
}

impl Pace {
    const STEPS: usize = 20;

    fn push(&mut self, line: &StepLine) {
        self.recent.push_back((line.tokens, line.seconds));
        if self.recent.len() > Self::STEPS {
            self.recent.pop_front();
        }
    }

    fn seconds(&self) -> f64 {
        self.recent.iter().map(|r| r.1).sum::<f64>()
    }

    fn tokens_per_second(&self) -> f64 {
        self.recent.iter().map(|r| r.0 as f64).sum::<f64>() / self.seconds().max(1e-9)
    }

    fn left(&self, steps: u64) -> String {
        let seconds = (self.seconds() / self.recent.len().max(1) as f64 * steps as f64).round() as u64;
        match seconds {
            0..100 => format!("{seconds} s"),
            100..6000 => format!("{} min", seconds / 60),
            _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
        }
    }
}

/// The share of preferences that the model shares; nothing for other methods.
fn accuracy(rewards: &Rewards) -> String {
    rewards.reward_accuracy.map_or_else(String::new, |share| format!(", accuracy {share:.2}"))
}

struct Bar {
    bar: ProgressBar,
    pace: Pace,
    held_out: String,
}

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:20.cyan/dim} {pos}/{len} {msg}") {
            bar.set_style(style.progress_chars("━━─"));
        }
        Self { bar, pace: Pace::default(), held_out: String::new() }
    }
}

impl Progress for Bar {
    fn started(&mut self, total_steps: u64, resumed_at: u64) {
        self.bar.set_length(total_steps);
        self.bar.set_position(resumed_at);
        if resumed_at > 0 {
            self.bar.println(format!("resumed after step {resumed_at}"));
        }
    }

    fn stepped(&mut self, line: &StepLine, total_steps: u64) {
        self.pace.push(line);
        self.bar.set_position(line.step);
        let left = self.pace.left(total_steps - line.step);
        self.bar.set_message(format!(
            "loss {:.4}{}{} {:.0} tok/s, {left} left",
            line.loss,
            accuracy(&line.rewards),
            self.held_out,
            self.pace.tokens_per_second()
        ));
        if line.step == total_steps {
            self.bar.finish();
        }
    }

    fn evaluated(&mut self, line: &EvaluationLine, _is_best: bool) {
        self.held_out = format!(", held out {:.4}{}", line.eval_loss, accuracy(&line.rewards));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.abandon();
    }
}

struct Lines {
    pace: Pace,
    last: Instant,
}

impl Progress for Lines {
    fn started(&mut self, total_steps: u64, resumed_at: u64) {
        if resumed_at > 0 {
            eprintln!("resumed after step {resumed_at} of {total_steps}");
        }
    }

    fn stepped(&mut self, line: &StepLine, total_steps: u64) {
        self.pace.push(line);
        if line.step == 1 || line.step == total_steps || self.last.elapsed() > Duration::from_secs(5) {
            self.last = Instant::now();
            let left = self.pace.left(total_steps - line.step);
            eprintln!(
                "step {}/{total_steps}: loss {:.4}{}, {:.0} tokens/s, {left} left",
                line.step,
                line.loss,
                accuracy(&line.rewards),
                self.pace.tokens_per_second()
            );
        }
    }

    fn evaluated(&mut self, line: &EvaluationLine, is_best: bool) {
        eprintln!(
            "held-out loss after step {}: {:.4}{}{}",
            line.step,
            line.eval_loss,
            accuracy(&line.rewards),
            if is_best { "" } else { " (not the best)" }
        );
    }
}

/// Progress of a download: one line with speed and time left on a terminal; elsewhere only what is told in sentences.
pub struct Fetching {
    quiet: bool,
    bar: Option<ProgressBar>,
}

impl Fetching {
    pub fn new(quiet: bool) -> Self {
        Self { quiet, bar: None }
    }

    pub fn on_event(&mut self, event: Event) {
        if self.quiet {
            return;
        }
        match (event, &self.bar) {
            (Event::Note(text), None) => eprintln!("{text}"),
            (Event::Note(text), Some(bar)) => bar.suspend(|| eprintln!("{text}")),
            (Event::Bytes { file, done, total }, _) if std::io::stderr().is_terminal() => {
                let bar = self.bar.get_or_insert_with(|| Self::bar(done, total));
                bar.set_message(file.to_owned());
                bar.set_position(done);
            }
            (Event::Bytes { .. }, _) => {}
        }
    }

    /// What was here before (a download that goes on) says nothing of the speed.
    fn bar(done: u64, total: u64) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_position(done);
        let line = "{bar:20.cyan/dim} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}, {eta} left  {msg}";
        if let Ok(style) = ProgressStyle::with_template(line) {
            bar.set_style(style.progress_chars("━━─"));
        }
        bar.reset_eta();
        bar
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// One line on a terminal that is written over; nothing elsewhere.
pub struct Line(Option<ProgressBar>);

impl Line {
    pub fn new(quiet: bool) -> Self {
        let seen = !quiet && std::io::stderr().is_terminal();
        Self(seen.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            bar
        }))
    }

    pub fn say(&self, text: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(text.to_owned());
        }
    }

    pub fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
