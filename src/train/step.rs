//! One optimiser step: micro-batches summed, divided once by the trained tokens (or the examples), clipped, AdamW.

use retune_kernels::adamw::{AdamW, clip_global_norm, global_norm};

use super::lessons::{Lessons, RewardSums};
use super::method::Method;
use super::metrics::Rewards;
use super::settings::TrainSettings;
use crate::error::{Error, Result};
use crate::model::{Adapter, Decoder, Workspace};

/// The state that training moves: with the step's number it decides everything that follows.
pub struct State {
    pub adapter: Adapter,
    /// AdamW's moments, laid out as the adapter's parameters.
    pub m: Vec<f32>,
    pub v: Vec<f32>,
    /// Steps done.
    pub step: u64,
}

/// What a step measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// Mean over the trained tokens (preferences: over the examples), before the update.
    pub loss: f64,
    pub learning_rate: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub trained_tokens: usize,
    pub tokens: usize,
    pub rewards: Rewards,
}

impl State {
    pub fn new(adapter: Adapter) -> Self {
        let n = adapter.params.len();
        Self { adapter, m: vec![0.0; n], v: vec![0.0; n], step: 0 }
    }

    /// Runs step `self.step + 1` on examples of `lessons`, a list of them a micro-batch. Where the loss or the gradient is not finite nothing is changed: the adapter stays the
    /// last good one.
    #[expect(clippy::too_many_arguments, reason = "a step takes what a training has")]
    pub fn advance(
        &mut self,
        decoder: &Decoder,
        lessons: &Lessons,
        micro_batches: &[Vec<usize>],
        settings: &TrainSettings,
        total_steps: u64,
        ws: &mut Workspace,
        grads: &mut Vec<f32>,
    ) -> Result<StepResult> {
        grads.clear();
        grads.resize(self.adapter.params.len(), 0.0);
        let step = self.step + 1;
        let together = lessons.together(&micro_batches.concat(), decoder, &self.adapter);
        let (mut loss_sum, mut trained_tokens, mut tokens, mut rows_before) = (0.0, 0, 0, 0);
        let mut rewards = RewardSums::default();
        for examples in micro_batches {
            let streams: Vec<&[usize]> = if settings.packing { vec![examples] } else { examples.chunks(1).collect() };
            for examples in streams {
                let mut batch = lessons.batch(examples);
                batch.stream.drop_out(settings.dropout, settings.seed, step, rows_before);
                rows_before += batch.row_targets.len();
                let mut weigh = |losses: &[f32]| {
                    let judgement = lessons.judge(examples, &batch, losses, &together);
                    loss_sum += judgement.loss_sum;
                    rewards.add(&judgement.rewards);
                    judgement.weights
                };
                let losses = decoder.losses_and_grads(&batch.stream, &batch.targets, &self.adapter, ws, grads, &mut weigh);
                trained_tokens += losses.len();
                tokens += batch.tokens();
            }
        }
        let count = if lessons.method() == Method::Sft { trained_tokens } else { together.examples };
        let loss = loss_sum / count as f64;
        // One division by all of the step: a mean of means would weigh short rows too much.
        let scale = 1.0 / count as f32;
        grads.iter_mut().for_each(|g| *g *= scale);
        let grad_norm = if settings.clip > 0.0 { clip_global_norm(grads, settings.clip as f32) } else { global_norm(grads) };
        if !loss.is_finite() || !grad_norm.is_finite() {
            let cause = match decoder.weights.find_non_finite() {
                Some(place) => format!("the base holds values that are not finite, first in {place}: fetch it again"),
                None => "lower --learning-rate, lengthen --warmup-steps, or look at the data of this step".to_owned(),
            };
            return Err(Error::training(format!("step {step}: the loss is {loss}, the norm of the gradient {grad_norm}"), cause));
        }
        if step == 1 {
            self.check_every_tensor_learns(grads)?;
        }
        let learning_rate = settings.rate(step, total_steps);
        let optimiser = AdamW { weight_decay: settings.weight_decay as f32, ..AdamW::default() };
        self.update(&optimiser, grads, learning_rate as f32, settings.lora_plus as f32, step);
        self.step = step;
        Ok(StepResult { loss, learning_rate, grad_norm, trained_tokens, tokens, rewards: rewards.means() })
    }

    fn update(&mut self, optimiser: &AdamW, grads: &[f32], rate: f32, lora_plus: f32, step: u64) {
        let (params, m, v) = (&mut self.adapter.params, &mut self.m, &mut self.v);
        if lora_plus == 1.0 {
            optimiser.step(params, grads, m, v, rate, step);
            return;
        }
        for slot in &self.adapter.slots {
            // The magnitude goes with B, as in PEFT (optimizers/loraplus.py).
            for (range, rate) in [(slot.a.clone(), rate), (slot.b.start..slot.magnitude.end, rate * lora_plus)] {
                let r = || range.clone();
                optimiser.step(&mut params[r()], &grads[r()], &mut m[r()], &mut v[r()], rate, step);
            }
        }
    }

    /// Every tensor of the adapter must receive a gradient in the first step. While B is zero, A's gradient is zero by
    /// definition; then B's must not be.
    fn check_every_tensor_learns(&self, grads: &[f32]) -> Result<()> {
        let all_zero = |values: &[f32]| values.iter().all(|&x| x == 0.0);
        for slot in &self.adapter.slots {
            let (a, b, magnitude) = (slot.a.clone(), slot.b.clone(), slot.magnitude.clone());
            let a_must_learn = !all_zero(&self.adapter.params[b.clone()]);
            let magnitude_learns = magnitude.is_empty() || !all_zero(&grads[magnitude]);
            if all_zero(&grads[b]) || (a_must_learn && all_zero(&grads[a])) || !magnitude_learns {
                return Err(Error::training(
                    format!("{} got no gradient in the first step", slot.hf_module()),
                    "leave it out with --targets, or report this: an adapter tensor that nothing reaches cannot learn",
                ));
            }
        }
        Ok(())
    }
}
