//! GGUF (github.com/ggml-org/ggml, docs/gguf.md): a mapped reader and a streaming writer, versions 2 and 3,
//! little endian. Types that we cannot compute with pass through untouched; key order, alignment and tensor
//! order are kept, so that a file read and written back is byte for byte the same.

mod header;
mod reader;
#[cfg(test)]
mod tests;
mod types;
mod value;
mod writer;

pub use reader::{Gguf, TensorInfo};
pub use types::GgmlType;
pub use value::Value;
pub use writer::{TensorSource, Writer};
