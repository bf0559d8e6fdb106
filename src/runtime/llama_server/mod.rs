//! llama.cpp's llama-server: its HTTP API, and a process of it for as long as it is needed. It is never trusted to have done what
//! it says: callers look again.

mod client;
mod process;

pub use client::{Completion, Heard, Llama, LoadedAdapter, Props, Token};
pub use process::{Process, find_program};
