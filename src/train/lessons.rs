//! What a training learns from: rows and, for preferences, what is known of them before the first step. Makes losses and the
//! weights of tokens of what the model says of them; every method shares the one backward pass.

use super::method::Method;
use super::metrics::Rewards;
use super::objective::{dpo, kto, odds_ratio};
use crate::domain::Tokens;
use crate::model::batch::groups;
use crate::model::score::{RowLoss, TOKENS_AT_ONCE, mean_loss, row_losses};
use crate::model::{Adapter, Batch, Decoder, Workspace};

/// The examples of a training: rows, or pairs of rows.
pub struct Lessons {
    method: Method,
    /// Of a pair, the chosen row and then the rejected one.
    rows: Vec<Tokens>,
    /// Whether a row is good work; the methods of preferences alone ask.
    good: Vec<bool>,
    /// `log p` of each row's answer under the model that training starts from; 0 for ORPO, which has no reference.
    reference: Vec<f64>,
    /// KTO: each row's prompt with the answer to another, and its `log p` under the same model.
    mismatched: Vec<Tokens>,
    mismatched_reference: Vec<f64>,
}

/// What has to be known of all examples that are divided by together, before the first of them is learnt from.
pub struct Together {
    pub examples: usize,
    /// ORPO: tokens of the chosen rows that are predicted, prompts too.
    chosen_tokens: usize,
    /// KTO: how far the model has moved, in log-probability of answers to other prompts; at least 0.
    kl: f64,
}

/// What a method makes of the losses of some examples.
#[derive(Default)]
pub struct Judgement {
    /// To be divided by the number of examples; for good work, by the trained tokens.
    pub loss_sum: f64,
    /// Of each target's `-log p`, in the same sum; `None`: 1 each.
    pub weights: Option<Vec<f32>>,
    pub rewards: RewardSums,
}

/// A loss with what is told beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    pub loss: f64,
    pub rewards: Rewards,
}

impl Lessons {
    pub fn good_work(rows: Vec<Tokens>) -> Self {
        let good = vec![true; rows.len()];
        Self::new(Method::Sft, rows, good, usize::MAX)
    }

    /// Of a pair, the chosen row and then the rejected one. What is put together of rows is cut at `max_length`.
    pub fn new(method: Method, rows: Vec<Tokens>, good: Vec<bool>, max_length: usize) -> Self {
        let mismatched = if matches!(method, Method::Kto { .. }) { mismatch(&rows, max_length) } else { Vec::new() };
        let reference = if matches!(method, Method::Orpo { .. }) { vec![0.0; rows.len()] } else { Vec::new() };
        Self { method, rows, good, reference, mismatched, mismatched_reference: Vec::new() }
    }

    /// Whether the method compares with the model that training starts from.
    pub fn needs_reference(&self) -> bool {
        matches!(self.method, Method::Dpo { .. } | Method::Kto { .. })
    }

    /// Asks the model that training starts from what it thinks of every answer, where the method needs to know.
    pub fn with_reference(self, decoder: &Decoder, start: &Adapter) -> Self {
        if !self.needs_reference() {
            return self;
        }
        let log_p = |rows: &[Tokens]| row_losses(decoder, rows, Some(start)).iter().map(log_p).collect();
        Self { reference: log_p(&self.rows), mismatched_reference: log_p(&self.mismatched), ..self }
    }

    pub fn method(&self) -> Method {
        self.method
    }

    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.rows.len() / self.method.rows_per_example()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows of examples, one after another, in one stream. ORPO predicts the whole of a chosen row.
    pub fn batch(&self, examples: &[usize]) -> Batch {
        let places = self.places(examples);
        let rows: Vec<&Tokens> = places.iter().map(|&row| &self.rows[row]).collect();
        Batch::with_prompts(&rows, |i| self.is_whole(places[i]))
    }

    /// What a step over these examples must know beforehand.
    pub fn together(&self, examples: &[usize], decoder: &Decoder, adapter: &Adapter) -> Together {
        let whole = self.places(examples).into_iter().filter(|&row| self.is_whole(row));
        let chosen_tokens = whole.map(|row| self.rows[row].ids.len() - 1).sum();
        let mut kl = 0.0;
        if matches!(self.method, Method::Kto { .. }) {
            let rows: Vec<&Tokens> = examples.iter().map(|&i| &self.mismatched[i]).collect();
            let losses = row_losses(decoder, &rows, Some(adapter));
            let moved: f64 = losses.iter().zip(examples).map(|(loss, &i)| log_p(loss) - self.mismatched_reference[i]).sum();
            kl = (moved / examples.len() as f64).max(0.0);
        }
        Together { examples: examples.len(), chosen_tokens, kl }
    }

    /// The loss of examples, and the weight of each target, from the targets' losses (as `batch` orders them).
    pub fn judge(&self, examples: &[usize], batch: &Batch, losses: &[f32], together: &Together) -> Judgement {
        if self.method == Method::Sft {
            return Judgement { loss_sum: losses.iter().map(|&l| f64::from(l)).sum(), ..Judgement::default() };
        }
        let places = self.places(examples);
        let mut answers = Vec::with_capacity(places.len());
        let mut rest = losses;
        for (&row, &targets) in places.iter().zip(&batch.row_targets) {
            let (of_row, after) = rest.split_at(targets);
            answers.push(self.answer(row, of_row));
            rest = after;
        }
        let mut judgement = Judgement::default();
        // The slope of the loss by the sum of log p of each answer, and by each log p of a chosen row.
        let (mut slopes, mut nll_slope) = (Vec::with_capacity(answers.len()), 0.0);
        match self.method {
            Method::Sft => unreachable!("good work has no preference"),
            Method::Dpo { beta, label_smoothing } => {
                for pair in answers.chunks_exact(2) {
                    let found = dpo(pair[0].ratio, pair[1].ratio, beta, label_smoothing);
                    judgement.loss_sum += found.loss;
                    slopes.extend([found.chosen_slope, found.rejected_slope]);
                    judgement.rewards.push_pair(beta * pair[0].ratio, beta * pair[1].ratio);
                }
            }
            Method::Orpo { beta } => {
                // Its first part is a mean over tokens, all others are means over pairs.
                nll_slope = -(together.examples as f64) / together.chosen_tokens as f64;
                for pair in answers.chunks_exact(2) {
                    let [chosen, rejected] = [&pair[0], &pair[1]].map(|answer| answer.log_p / answer.tokens);
                    let found = odds_ratio(chosen, rejected, beta);
                    judgement.loss_sum += found.loss - nll_slope * pair[0].row_loss;
                    slopes.extend([found.chosen_slope / pair[0].tokens, found.rejected_slope / pair[1].tokens]);
                    judgement.rewards.push_pair(beta * chosen, beta * rejected);
                }
            }
            Method::Kto { beta, desirable_weight, undesirable_weight } => {
                for (answer, &row) in answers.iter().zip(&places) {
                    let good = self.good[row];
                    let weight = if good { desirable_weight } else { undesirable_weight };
                    let (loss, slope) = kto(answer.ratio, together.kl, good, beta);
                    judgement.loss_sum += weight * loss;
                    slopes.push(weight * slope);
                    judgement.rewards.push(beta * answer.ratio, beta * together.kl, good);
                }
            }
        }
        let mut weights = Vec::with_capacity(losses.len());
        for (&row, slope) in places.iter().zip(slopes) {
            let whole = self.is_whole(row);
            for i in (1..self.rows[row].ids.len()).filter(|&i| whole || self.rows[row].trained[i]) {
                let of_answer = if self.rows[row].trained[i] { slope } else { 0.0 };
                weights.push(-(of_answer + if whole { nll_slope } else { 0.0 }) as f32);
            }
        }
        judgement.weights = Some(weights);
        judgement
    }

    /// The loss over all examples. Forward only.
    pub fn evaluate(&self, decoder: &Decoder, adapter: &Adapter) -> Evaluation {
        if self.method == Method::Sft {
            let losses = row_losses(decoder, &self.rows, Some(adapter));
            return Evaluation { loss: mean_loss(&losses), rewards: Rewards::default() };
        }
        let all: Vec<usize> = (0..self.len()).collect();
        let together = self.together(&all, decoder, adapter);
        let mut workspace = Workspace::new(0);
        let (mut loss_sum, mut rewards) = (0.0, RewardSums::default());
        for group in groups(self.lengths(), TOKENS_AT_ONCE) {
            let examples = &all[group];
            let batch = self.batch(examples);
            let losses = decoder.losses(&batch.stream, &batch.targets, Some(adapter), &mut workspace);
            let judgement = self.judge(examples, &batch, &losses, &together);
            loss_sum += judgement.loss_sum;
            rewards.add(&judgement.rewards);
        }
        Evaluation { loss: loss_sum / self.len() as f64, rewards: rewards.means() }
    }

    /// Tokens of each example.
    pub fn lengths(&self) -> impl Iterator<Item = usize> {
        self.rows.chunks(self.method.rows_per_example()).map(|rows| rows.iter().map(|row| row.ids.len()).sum())
    }

    /// Tokens that go through the model at most, forward only, while a step's own are kept: KTO's mismatched rows.
    pub fn tokens_scored_beside(&self) -> usize {
        let longest = self.mismatched.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        if longest == 0 { 0 } else { longest.max(TOKENS_AT_ONCE) }
    }

    /// The places of examples' rows.
    fn places(&self, examples: &[usize]) -> Vec<usize> {
        let n = self.method.rows_per_example();
        examples.iter().flat_map(|&i| i * n..(i + 1) * n).collect()
    }

    /// Whether a row's prompt is learnt, too.
    fn is_whole(&self, row: usize) -> bool {
        matches!(self.method, Method::Orpo { .. }) && self.good[row]
    }

    fn answer(&self, row: usize, losses: &[f32]) -> Answer {
        let trained = &self.rows[row].trained;
        let targets = (1..trained.len()).filter(|&i| self.is_whole(row) || trained[i]);
        let (mut log_p, mut tokens) = (0.0, 0);
        for (_, &loss) in targets.zip(losses).filter(|(i, _)| trained[*i]) {
            log_p -= f64::from(loss);
            tokens += 1;
        }
        Answer {
            log_p,
            tokens: f64::from(tokens),
            row_loss: losses.iter().map(|&l| f64::from(l)).sum(),
            ratio: log_p - self.reference[row],
        }
    }
}

/// What the model says of one answer.
struct Answer {
    log_p: f64,
    tokens: f64,
    /// `-log p` of all targets of the row.
    row_loss: f64,
    ratio: f64,
}

fn log_p(loss: &RowLoss) -> f64 {
    -loss.loss_sum
}

/// Each row's prompt with the answer of the row before it (round the whole file) that has another prompt; where all prompts
/// are the same, of the row before it.
fn mismatch(rows: &[Tokens], max_length: usize) -> Vec<Tokens> {
    let prompt = |i: usize| &rows[i].ids[..rows[i].prompt_tokens()];
    let before = |i: usize| (i + rows.len() - 1) % rows.len();
    let other = (0..rows.len()).rev().find(|&j| prompt(j) != prompt(0));
    let mut donors: Vec<usize> = Vec::with_capacity(rows.len());
    for i in 0..rows.len() {
        donors.push(match other {
            None => before(i),
            Some(_) if i > 0 && prompt(i - 1) != prompt(i) => i - 1,
            // The same prompt as the row before: what is another prompt to that one is to this one.
            Some(_) if i > 0 => donors[i - 1],
            Some(other) => other,
        });
    }
    let join = |(row, donor): (&Tokens, usize)| {
        let (own, other) = (row.prompt_tokens(), &rows[donor]);
        let from = other.prompt_tokens();
        let mut joined = Tokens {
            ids: [&row.ids[..own], &other.ids[from..]].concat(),
            trained: [&row.trained[..own], &other.trained[from..]].concat(),
        };
        joined.ids.truncate(max_length);
        joined.trained.truncate(max_length);
        joined
    };
    rows.iter().zip(donors).map(join).collect()
}

/// Rewards to be divided.
#[derive(Clone, Copy, Debug, Default)]
pub struct RewardSums {
    chosen: Mean,
    rejected: Mean,
    right: Mean,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn push(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn add(&mut self, other: &Self) {
        self.sum += other.sum;
        self.count += other.count;
    }

    fn value(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

impl RewardSums {
    fn push_pair(&mut self, chosen: f64, rejected: f64) {
        self.chosen.push(chosen);
        self.rejected.push(rejected);
        self.right.push(right(chosen - rejected));
    }

    /// A good answer is right above the line, a bad one below.
    fn push(&mut self, reward: f64, line: f64, good: bool) {
        let (rewards, side) = if good { (&mut self.chosen, 1.0) } else { (&mut self.rejected, -1.0) };
        rewards.push(reward);
        self.right.push(right(side * (reward - line)));
    }

    pub fn add(&mut self, other: &Self) {
        self.chosen.add(&other.chosen);
        self.rejected.add(&other.rejected);
        self.right.add(&other.right);
    }

    pub fn means(&self) -> Rewards {
        let (chosen, rejected) = (self.chosen.value(), self.rejected.value());
        Rewards {
            rewards_chosen: chosen,
            rewards_rejected: rejected,
            reward_accuracy: self.right.value(),
            margin: chosen.zip(rejected).map(|(c, r)| c - r),
        }
    }
}

/// A tie is half right, so that an untouched model has an accuracy of one half.
fn right(margin: f64) -> f64 {
    match margin.partial_cmp(&0.0) {
        Some(std::cmp::Ordering::Greater) => 1.0,
        Some(std::cmp::Ordering::Equal) => 0.5,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(prompt: &[u32], answer: &[u32]) -> Tokens {
        let trained = (0..prompt.len() + answer.len()).map(|i| i >= prompt.len()).collect();
        Tokens { ids: [prompt, answer].concat(), trained }
    }

    #[test]
    fn a_mismatched_row_is_its_prompt_with_the_answer_to_another() {
        let rows = [row(&[1, 2], &[10]), row(&[1, 2], &[11, 12]), row(&[3], &[13]), row(&[1, 2], &[14])];
        let joined = mismatch(&rows, 3);
        assert_eq!(joined, [row(&[1, 2], &[13]), row(&[1, 2], &[13]), row(&[3], &[11, 12]), row(&[1, 2], &[13])]);
        // One prompt alone has no other: then any other answer has to do.
        assert_eq!(mismatch(&[row(&[1], &[2]), row(&[1], &[3])], 9), [row(&[1], &[3]), row(&[1], &[2])]);
    }

    #[test]
    fn ties_are_half_right_and_what_is_absent_is_not_told() {
        let mut sums = RewardSums::default();
        sums.push_pair(1.0, 1.0);
        sums.push_pair(2.0, 1.0);
        let means = sums.means();
        assert_eq!((means.reward_accuracy, means.margin, means.rewards_chosen), (Some(0.75), Some(0.5), Some(1.5)));
        let mut sums = RewardSums::default();
        sums.push(-1.0, 0.5, true);
        let means = sums.means();
        assert_eq!((means.reward_accuracy, means.rewards_rejected, means.margin), (Some(0.0), None, None));
    }
}
