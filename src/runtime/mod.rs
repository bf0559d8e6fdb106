//! Clients of what serves models.

pub mod ollama;
