//! Clients of what serves models, and of the hub that they come from.

pub mod hub;
pub mod ollama;
mod registry;

pub use ollama::{ModelName, Tag};
pub use registry::{Held, HeldFile, Registry};
