//! What leaves the trainer as a file that others serve.

pub mod convert;
pub mod merge;
mod types;
