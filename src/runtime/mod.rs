//! Clients of what serves models, and of the hub that they come from.

mod address;
pub mod alert;
mod http;
pub mod hub;
pub mod llama_server;
pub mod ollama;
mod registry;

pub use address::{Address, LLAMA_SERVER, OLLAMA, ServerKind};
pub use http::Patience;
pub use ollama::{ModelName, Tag};
pub use registry::{Held, HeldFile, Registry};
