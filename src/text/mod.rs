//! From conversations to ids: tokenizers, chat templates, rendering with the trained mask in one pass.

pub mod render;
pub mod template;
pub mod tokenizer;
