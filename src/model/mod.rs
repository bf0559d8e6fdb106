//! The model: what its files say of it, its frozen weights, the trained adapter, and the decoder with its
//! forward and backward passes side by side.

pub mod adapter;
pub mod adapter_files;
pub mod batch;
pub mod config;
pub mod decoder;
pub mod score;
pub mod weights;

pub use adapter::{Adapter, AdapterSpec, Module};
pub use batch::Batch;
pub use config::{Architecture, ModelConfig, RopeScaling};
pub use decoder::{Decoder, KvCache, Stream, Workspace};
