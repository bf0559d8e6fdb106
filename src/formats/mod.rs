//! Files: GGUF, safetensors, PEFT folders, rows of data, and how anything is written so that a kill loses nothing.

pub mod durable;
pub mod gguf;
pub mod peft;
pub mod rows;
pub mod safetensors;
