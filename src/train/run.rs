//! A training from its first step to the files that it leaves, killed and resumed anywhere.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::checkpoint::{self, Best, Header};
use super::lessons::{Evaluation, Lessons};
use super::metrics::{EvaluationLine, Line, Metrics, StepLine};
use super::order::Order;
use super::plan::MemoryPlan;
use super::settings::TrainSettings;
use super::step::State;
use crate::error::{Error, Result};
use crate::model::{Adapter, Decoder, Workspace};

/// The held-out loss of an adapter.
pub type Evaluator<'a> = dyn Fn(&Adapter) -> Result<Evaluation> + 'a;

/// Who watches a training.
pub trait Progress {
    fn started(&mut self, _total_steps: u64, _resumed_at: u64) {}
    fn stepped(&mut self, _line: &StepLine, _total_steps: u64) {}
    fn evaluated(&mut self, _line: &EvaluationLine, _is_best: bool) {}
    fn saved(&mut self, _step: u64) {}
}

/// Watches nothing.
pub struct Silent;
impl Progress for Silent {}

/// Everything that a training needs.
pub struct Job<'a> {
    pub decoder: &'a Decoder,
    pub lessons: &'a Lessons,
    pub settings: &'a TrainSettings,
    pub plan: MemoryPlan,
    /// The adapter to start from.
    pub start: Adapter,
    pub evaluate: Option<&'a Evaluator<'a>>,
    /// Where checkpoint and metrics live.
    pub folder: &'a Path,
    /// Digest of everything that decides the result.
    pub identity: String,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Set by Ctrl-C: finish the step, save, stop.
    pub stop: &'a AtomicBool,
}

/// How a training ended.
pub struct Outcome {
    /// The adapter to ship: the best on held-out data where there are any, else the last.
    pub adapter: Adapter,
    pub steps: u64,
    pub total_steps: u64,
    pub last_loss: f64,
    pub best: Option<Best>,
    pub stopped_early: bool,
    pub seconds: f64,
    /// Where training ended by itself (NaN): why. The adapter is the last good one.
    pub failure: Option<Error>,
}

impl Job<'_> {
    /// Trains to the end, from the folder's checkpoint where `resume` says so and there is one.
    pub fn run(self, resume: bool, progress: &mut dyn Progress) -> Result<Outcome> {
        let total_steps = self.settings.total_steps(self.lessons.len());
        let params = self.start.params.len();
        let mut header = Header::new(self.identity.clone(), total_steps, self.plan.clone());
        let mut state = State::new(self.start.clone());
        let mut best_params = None;
        if resume && checkpoint::path(self.folder).exists() {
            let saved = checkpoint::load(self.folder, params, &self.identity)?;
            state.adapter.params.copy_from_slice(&saved.params);
            (state.m, state.v, state.step) = (saved.m, saved.v, saved.header.step);
            (header, best_params) = (saved.header, saved.best_params);
        }
        let run = Running {
            metrics: Metrics::open(self.folder, state.step)?,
            order: Order::new(self.settings, self.lessons.len()),
            // The plan of the checkpoint, not of this moment's free memory: packing decides the order of sums.
            workspace: Workspace::new(header.plan.kept_blocks),
            settings: TrainSettings { packing: header.plan.packing, ..self.settings.clone() },
            job: &self,
            header,
            state,
            best_params,
            grads: Vec::new(),
            last_loss: f64::NAN,
            clock: Instant::now(),
        };
        progress.started(total_steps, run.state.step);
        run.train(progress)
    }
}

/// A training in motion.
struct Running<'a> {
    job: &'a Job<'a>,
    settings: TrainSettings,
    header: Header,
    state: State,
    best_params: Option<Vec<f32>>,
    metrics: Metrics,
    order: Order,
    workspace: Workspace,
    grads: Vec<f32>,
    last_loss: f64,
    clock: Instant,
}

impl Running<'_> {
    fn train(mut self, progress: &mut dyn Progress) -> Result<Outcome> {
        let steps_per_epoch = self.settings.steps_per_epoch(self.job.lessons.len());
        let eval_every = self.settings.eval_every.unwrap_or(steps_per_epoch);
        let mut failure = None;
        if self.state.step == 0 {
            self.evaluate(progress)?;
            // The start is a checkpoint, too: a NaN or a kill before the first save has something to go back to.
            self.save(progress)?;
        }
        while self.state.step < self.header.total_steps && !self.is_stale() {
            match self.step(steps_per_epoch, progress) {
                Ok(()) => {}
                Err(error @ Error::Training { .. }) => {
                    failure = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            }
            let step = self.state.step;
            let last = step == self.header.total_steps;
            if step.is_multiple_of(eval_every) || last {
                self.evaluate(progress)?;
            }
            let interrupted = self.job.stop.load(Ordering::SeqCst);
            if step.is_multiple_of(self.job.save_every) || last || interrupted || self.is_stale() {
                self.save(progress)?;
            }
            if interrupted && !last {
                return Err(Error::Interrupted {
                    message: format!(
                        "step {step} of {} is saved: run the same command with --resume to go on",
                        self.header.total_steps
                    ),
                });
            }
        }
        let stopped_early = failure.is_none() && self.state.step < self.header.total_steps;
        let seconds = self.seconds();
        let mut adapter = self.state.adapter;
        if let Some(best) = self.best_params {
            adapter.params.copy_from_slice(&best);
        }
        Ok(Outcome {
            adapter,
            steps: self.state.step,
            total_steps: self.header.total_steps,
            last_loss: self.last_loss,
            best: self.header.best,
            stopped_early,
            seconds,
            failure,
        })
    }

    fn step(&mut self, steps_per_epoch: u64, progress: &mut dyn Progress) -> Result<()> {
        let clock = Instant::now();
        let step = self.state.step + 1;
        let micro_batches = self.order.micro_batches(step);
        let (job, total) = (self.job, self.header.total_steps);
        let (ws, grads) = (&mut self.workspace, &mut self.grads);
        let result = self.state.advance(job.decoder, job.lessons, &micro_batches, &self.settings, total, ws, grads)?;
        self.last_loss = result.loss;
        let line = StepLine {
            step,
            epoch: step as f64 / steps_per_epoch as f64,
            loss: result.loss,
            learning_rate: result.learning_rate,
            grad_norm: result.grad_norm,
            trained_tokens: result.trained_tokens,
            tokens: result.tokens,
            seconds: clock.elapsed().as_secs_f64(),
            rewards: result.rewards,
        };
        self.metrics.push(&Line::Step(line))?;
        progress.stepped(&line, total);
        Ok(())
    }

    fn evaluate(&mut self, progress: &mut dyn Progress) -> Result<()> {
        let Some(evaluate) = self.job.evaluate else { return Ok(()) };
        let Evaluation { loss, rewards } = evaluate(&self.state.adapter)?;
        let line = EvaluationLine { step: self.state.step, eval_loss: loss, rewards };
        let is_best = self.header.best.is_none_or(|best| line.eval_loss < best.eval_loss);
        if is_best {
            self.header.best = Some(Best { step: line.step, eval_loss: line.eval_loss });
            self.best_params = Some(self.state.adapter.params.to_vec());
            self.header.stale_evaluations = 0;
        } else {
            self.header.stale_evaluations += 1;
        }
        self.metrics.push(&Line::Evaluation(line))?;
        progress.evaluated(&line, is_best);
        Ok(())
    }

    fn save(&mut self, progress: &mut dyn Progress) -> Result<()> {
        self.header.step = self.state.step;
        self.header.seconds = self.seconds();
        self.clock = Instant::now();
        checkpoint::save(self.job.folder, &self.header, &self.state, self.best_params.as_deref())?;
        progress.saved(self.state.step);
        Ok(())
    }

    fn is_stale(&self) -> bool {
        self.settings.patience.is_some_and(|patience| self.header.stale_evaluations >= patience)
    }

    fn seconds(&self) -> f64 {
        self.header.seconds + self.clock.elapsed().as_secs_f64()
    }
}
