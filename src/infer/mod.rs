//! What a model says: losses of given rows, and new text.

pub mod generate;
pub mod score;
