//! retune: trains LoRA adapters on the models that you serve, exports them, registers them, and tells
//! whether they are better. `ARCHITECTURE.md` has the map of these rooms.

pub mod base;
pub mod cli;
pub mod config;
pub mod curate;
pub mod demo;
pub mod deploy;
pub mod domain;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod fault;
pub mod formats;
pub mod infer;
pub mod machine;
pub mod model;
pub mod pipeline;
pub mod redact;
pub mod runtime;
pub mod signals;
pub mod store;
pub mod text;
pub mod train;

pub use error::{Error, Result};
