//! Losses of given rows: the model's own, for whoever asks what it says.

pub use crate::model::score::{RowLoss, mean_loss, row_losses};
