//! The head and its cross entropy, fused: works in chunks over the trained tokens only, and leaves
//! the gradient of the hidden states behind in the forward pass.
//!
//! For one target with logits z = W h: `loss = log(sum(e^z)) - z[id]`, `dz = weight * (softmax(z) - onehot(id))`,
//! `dh = dz W`. dz overwrites the logits in place.

use rayon::prelude::*;

use crate::vector::{add_scaled, exp_shifted, max, scale};
use crate::weight::Weight;

/// Logits that are in memory at once: 64 MB.
const CHUNK_LOGITS: usize = 16 << 20;

/// A token to predict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Row of the hidden states that predicts it.
    pub position: usize,
    /// The token's id.
    pub id: u32,
    /// Its weight in the loss: `loss = sum(weight * -log p(id))`.
    pub weight: f32,
}

/// hidden `[n, d]` (after the final norm), head `[vocab, d]`. Writes `-log p` of each target to `losses`
/// (unweighted). Where `dhidden` `[n, d]` is given it is overwritten with the gradient of the weighted sum:
/// rows with no target become 0. Memory: one chunk of logits (at most about 64 MB), whatever n is.
pub fn forward(hidden: &[f32], head: &Weight, targets: &[Target], losses: &mut [f32], dhidden: Option<&mut [f32]>) {
    forward_chunked(hidden, head, targets, losses, dhidden, CHUNK_LOGITS);
}

/// Gives targets their weights after the fact, where these depend on the losses: scales the gradient `[n, d]` that `forward`
/// left behind. No two targets may share a position. Positions without a target stay as they are.
pub fn weigh(dhidden: &mut [f32], d: usize, targets: &[Target], weights: &[f32]) {
    assert_eq!(weights.len(), targets.len(), "a weight for each target");
    for (target, &weight) in targets.iter().zip(weights) {
        scale(&mut dhidden[target.position * d..][..d], weight);
    }
}

fn forward_chunked(
    hidden: &[f32],
    head: &Weight,
    targets: &[Target],
    losses: &mut [f32],
    mut dhidden: Option<&mut [f32]>,
    chunk_logits: usize,
) {
    let (vocab, d) = (head.rows(), head.cols());
    assert_eq!(losses.len(), targets.len(), "a loss for each target");
    assert!(d > 0 && hidden.len().is_multiple_of(d), "hidden states must be [n, {d}]");
    for target in targets {
        assert!((target.id as usize) < vocab, "token {} of a vocabulary of {vocab}", target.id);
        assert!((target.position + 1) * d <= hidden.len(), "position {} of {} hidden states", target.position, hidden.len() / d);
    }
    if let Some(dhidden) = &mut dhidden {
        assert_eq!(dhidden.len(), hidden.len(), "dhidden has the shape of hidden");
        dhidden.fill(0.0);
    }
    if targets.is_empty() {
        return;
    }
    // Chunks of equal size rather than a small last one: a quantised head is dequantised for each.
    let most = (chunk_logits / vocab).max(1);
    let rows = targets.len().div_ceil(targets.len().div_ceil(most));
    let mut chunk = vec![0.0; rows * d];
    let mut logits = vec![0.0; rows * vocab];
    for (targets, losses) in targets.chunks(rows).zip(losses.chunks_mut(rows)) {
        let n = targets.len();
        let (chunk, logits) = (&mut chunk[..n * d], &mut logits[..n * vocab]);
        for (row, target) in chunk.chunks_exact_mut(d).zip(targets) {
            row.copy_from_slice(&hidden[target.position * d..][..d]);
        }
        head.mul(chunk, n, logits, 0.0); // (targets, vocab)
        let with_gradient = dhidden.is_some();
        logits
            .par_chunks_mut(vocab)
            .zip(targets)
            .zip(losses)
            .for_each(|((logits, target), loss)| *loss = row(logits, target, with_gradient));
        if let Some(dhidden) = &mut dhidden {
            head.mul_transposed(logits, n, chunk, 0.0); // (targets, d)
            for (row, target) in chunk.chunks_exact(d).zip(targets) {
                add_scaled(&mut dhidden[target.position * d..][..d], 1.0, row);
            }
        }
    }
}

/// The loss of one target; its logits become their gradient where that is wanted.
fn row(logits: &mut [f32], target: &Target, with_gradient: bool) -> f32 {
    let id = target.id as usize;
    let most = max(logits);
    // Differences to the largest logit: exact where it matters, and the same for huge logits.
    let own = logits[id] - most;
    let sum = exp_shifted(logits, most);
    if with_gradient {
        scale(logits, target.weight / sum);
        logits[id] -= target.weight;
    }
    sum.ln() - own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::quantize;
    use crate::testing::{gradient, gradients, normal, relative_error, tensor, threads, values, var};
    use crate::weight::{DType, GgmlDType};
    use candle_core::{Device, Tensor};

    /// Losses and the gradient of hidden, by candle.
    fn oracle(hidden: &[f32], n: usize, head: &Weight, targets: &[Target]) -> (Vec<f32>, Vec<f32>) {
        let (vocab, d) = (head.rows(), head.cols());
        let leaf = var(hidden, &[n, d]);
        let rows: Vec<u32> = targets.iter().map(|t| t.position as u32).collect();
        let ids: Vec<u32> = targets.iter().map(|t| t.id).collect();
        let weights: Vec<f32> = targets.iter().map(|t| t.weight).collect();
        let rows = Tensor::new(rows, &Device::Cpu).unwrap();
        let z = leaf.index_select(&rows, 0).unwrap().matmul(&tensor(&head.to_f32(), &[vocab, d]).t().unwrap()).unwrap();
        let most = z.detach().max_keepdim(1).unwrap();
        let shifted = z.broadcast_sub(&most).unwrap();
        let lse = shifted.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
        let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
        let loss = (lse - shifted.gather(&ids, 1).unwrap()).unwrap().squeeze(1).unwrap();
        let store = gradients(&loss, &weights);
        (values(&loss), gradient(&store, &leaf))
    }

    fn some_targets(n: usize, vocab: usize, count: usize) -> Vec<Target> {
        let mut rng = crate::rng::Rng::new(7);
        (0..count)
            .map(|i| Target {
                position: (i * 5 + 2) % n,
                id: rng.below(vocab as u64) as u32,
                weight: [1.0, 0.25, -0.5, 0.0][i % 4],
            })
            .collect()
    }

    #[test]
    fn losses_and_gradient_agree_with_autograd_for_every_chunk_size() {
        for (n, d, vocab, count) in [(1, 4, 3, 1), (23, 17, 101, 9), (60, 64, 512, 31), (11, 8, 40, 33)] {
            // Logits with a standard deviation of 2.
            let hidden: Vec<f32> = normal(n * d, 1).iter().map(|v| 2.0 * v / (d as f32).sqrt()).collect();
            let head = Weight::from_f32(normal(vocab * d, 2), vocab, d);
            let targets = some_targets(n, vocab, count);
            let (right, right_gradient) = oracle(&hidden, n, &head, &targets);
            for chunk in [1, vocab * 4, CHUNK_LOGITS] {
                let (mut losses, mut dhidden) = (vec![f32::NAN; count], vec![f32::NAN; n * d]);
                forward_chunked(&hidden, &head, &targets, &mut losses, Some(&mut dhidden), chunk);
                assert!(relative_error(&losses, &right) < 1e-6);
                assert!(relative_error(&dhidden, &right_gradient) < 2e-6, "chunk {chunk}");
                let mut alone = vec![f32::NAN; count];
                forward_chunked(&hidden, &head, &targets, &mut alone, None, chunk);
                assert_eq!(alone, losses);
            }
        }
    }

    #[test]
    fn weights_given_afterwards_are_weights_given_before() {
        let (n, d, vocab) = (23, 17, 101);
        let (hidden, head) = (normal(n * d, 1), Weight::from_f32(normal(vocab * d, 2), vocab, d));
        let targets = some_targets(n, vocab, 9);
        let run = |targets: &[Target]| {
            let (mut losses, mut dhidden) = (vec![0.0; 9], vec![f32::NAN; n * d]);
            forward(&hidden, &head, targets, &mut losses, Some(&mut dhidden));
            dhidden
        };
        let plain: Vec<Target> = targets.iter().map(|t| Target { weight: 1.0, ..*t }).collect();
        let mut found = run(&plain);
        weigh(&mut found, d, &targets, &targets.iter().map(|t| t.weight).collect::<Vec<_>>());
        assert!(relative_error(&found, &run(&targets)) < 1e-6);
    }

    #[test]
    fn a_quantised_head_agrees_with_autograd_on_its_values() {
        let (n, d, vocab) = (40, 64, 1000);
        let bytes = quantize(DType::Quant(GgmlDType::Q8_0), &normal(vocab * d, 1), d).unwrap();
        let head = Weight::from_bytes(DType::Quant(GgmlDType::Q8_0), vocab, d, bytes.into()).unwrap();
        let hidden: Vec<f32> = normal(n * d, 2).iter().map(|v| 0.3 * v).collect();
        let targets = some_targets(n, vocab, 25);
        let (right, right_gradient) = oracle(&hidden, n, &head, &targets);
        let (mut losses, mut dhidden) = (vec![0.0; 25], vec![0.0; n * d]);
        forward(&hidden, &head, &targets, &mut losses, Some(&mut dhidden));
        assert!(relative_error(&losses, &right) < 1e-6);
        assert!(relative_error(&dhidden, &right_gradient) < 2e-6);
    }

    #[test]
    fn huge_logits_neither_overflow_nor_vanish() {
        let head = Weight::from_f32(vec![1e4, -1e4, 9999.0], 3, 1);
        let target = |id| Target { position: 0, id, weight: 1.0 };
        let (mut losses, mut dhidden) = ([0.0; 2], [0.0]);
        forward(&[1.0], &head, &[target(2), target(1)], &mut losses, Some(&mut dhidden));
        assert!((losses[0] - (1.0 + 1f32.exp()).ln()).abs() < 1e-3 && losses[1] > 19_999.0 && losses[1].is_finite());
        assert!(dhidden[0].is_finite());
    }

    #[test]
    fn a_sure_prediction_costs_almost_nothing() {
        let head = Weight::from_f32(vec![30.0, 0.0], 2, 1);
        let mut losses = [f32::NAN];
        forward(&[1.0], &head, &[Target { position: 0, id: 0, weight: 1.0 }], &mut losses, None);
        assert!(losses[0] >= 0.0 && losses[0] < 1e-6, "{losses:?}");
    }

    #[test]
    fn rows_without_a_target_get_no_gradient() {
        let head = Weight::from_f32(normal(5 * 3, 1), 5, 3);
        let mut dhidden = vec![f32::NAN; 12];
        forward(&normal(12, 2), &head, &[Target { position: 2, id: 4, weight: 1.0 }], &mut [0.0], Some(&mut dhidden));
        assert_eq!(dhidden[..6], [0.0; 6]);
        assert!(dhidden[6..9].iter().all(|v| *v != 0.0));
        assert_eq!(dhidden[9..], [0.0; 3]);
        forward(&normal(12, 2), &head, &[], &mut [], Some(&mut dhidden));
        assert_eq!(dhidden, [0.0; 12]);
    }

    #[test]
    fn a_nan_in_the_hidden_states_reaches_the_loss() {
        let head = Weight::from_f32(normal(40 * 3, 1), 40, 3);
        let mut losses = [0.0];
        forward(&[1.0, f32::NAN, 0.0], &head, &[Target { position: 0, id: 4, weight: 1.0 }], &mut losses, None);
        assert!(losses[0].is_nan());
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (n, d, vocab) = (64, 96, 3000);
        let head = Weight::from_f32(normal(vocab * d, 1), vocab, d);
        let hidden = normal(n * d, 2);
        let targets = some_targets(n, vocab, 50);
        let run = |count| {
            let (mut losses, mut dhidden) = (vec![0.0; 50], vec![0.0; n * d]);
            threads(count, || forward_chunked(&hidden, &head, &targets, &mut losses, Some(&mut dhidden), 17 * vocab));
            (losses, dhidden)
        };
        let one = run(1);
        assert!(one == run(2) && one == run(3));
    }

    #[test]
    #[should_panic(expected = "token 5 of a vocabulary of 5")]
    fn a_token_outside_the_vocabulary_is_refused() {
        let head = Weight::from_f32(normal(5 * 3, 1), 5, 3);
        forward(&normal(3, 2), &head, &[Target { position: 0, id: 5, weight: 1.0 }], &mut [0.0], None);
    }
}
