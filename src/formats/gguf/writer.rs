//! The streaming writer: metadata first, then tensor after tensor, nothing held whole.

use std::path::Path;

use super::types::{GgmlType, Value};
use crate::error::Result;

/// One tensor to write: its bytes are made when its turn comes.
pub struct TensorSource<'a> {
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    pub ggml_type: GgmlType,
    pub bytes: Box<dyn FnOnce() -> Result<bytes::Bytes> + 'a>,
}

/// What a file says before its tensors.
pub struct Writer {
    pub version: u32,
    pub alignment: u64,
    pub metadata: Vec<(String, Value)>,
}

impl Writer {
    /// Writes the whole file durably. The tensors' sizes follow from their shapes and types; a source that gives
    /// another number of bytes is an error.
    pub fn write(&self, path: &Path, tensors: Vec<TensorSource>) -> Result<()> {
        let _ = (path, tensors);
        todo!()
    }
}
