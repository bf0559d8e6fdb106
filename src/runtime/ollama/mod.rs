//! Ollama: its HTTP API and its local store. Ollama is never trusted to have done what it says: callers look again.

mod blob;
mod client;
mod name;
#[cfg(test)]
pub(crate) mod scripted;
pub mod store;
mod wire;

pub use super::address::Address;
pub use super::http::Patience;
pub use blob::Blob;
pub use client::{Ollama, Probe};
pub use name::ModelName;
pub use wire::{Answer, CreateRequest, Options, ParameterValue, ServedToken, Shown, Tag};
