//! Losses of given rows, batched without padding.

use std::borrow::Borrow;

use super::batch::{Batch, groups};
use super::{Adapter, Decoder, Workspace};
use crate::domain::Tokens;

/// Tokens that go through the model at once when nothing is saved for a backward pass.
pub const TOKENS_AT_ONCE: usize = 2048;

/// The loss of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowLoss {
    /// Sum of `-log p` over the trained tokens.
    pub loss_sum: f64,
    pub trained_tokens: usize,
}

/// The loss of each row, in order.
pub fn row_losses<R: Borrow<Tokens>>(decoder: &Decoder, rows: &[R], adapter: Option<&Adapter>) -> Vec<RowLoss> {
    let mut workspace = Workspace::new(0);
    let mut losses = Vec::with_capacity(rows.len());
    for group in groups(rows.iter().map(|r| r.borrow().ids.len()), TOKENS_AT_ONCE) {
        let batch = Batch::new(&rows[group].iter().map(Borrow::borrow).collect::<Vec<_>>());
        let each = decoder.losses(&batch.stream, &batch.targets, adapter, &mut workspace);
        let mut rest = each.as_slice();
        for &n in &batch.row_targets {
            let (row, after) = rest.split_at(n);
            losses.push(RowLoss { loss_sum: row.iter().map(|&l| f64::from(l)).sum(), trained_tokens: n });
            rest = after;
        }
    }
    losses
}

/// The mean over all trained tokens of all rows; NaN where there is none.
pub fn mean_loss(losses: &[RowLoss]) -> f64 {
    let (sum, tokens) = losses.iter().fold((0.0, 0), |(s, n), l| (s + l.loss_sum, n + l.trained_tokens));
    sum / tokens as f64
}
