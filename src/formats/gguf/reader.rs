//! The mapped reader.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::types::{GgmlType, Value};
use crate::error::Result;

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    /// Row-major order, as PyTorch says it: `[rows, cols]` (GGUF stores the reverse).
    pub shape: Vec<usize>,
    pub ggml_type: GgmlType,
    /// From the start of the data section.
    pub offset: u64,
    pub size_bytes: usize,
}

/// An open file. Hostile headers (lengths that overflow, counts of 2^60, overlapping or cut tensors) are errors.
pub struct Gguf {
    pub path: PathBuf,
    pub version: u32,
    pub alignment: u64,
    /// In file order.
    pub metadata: Vec<(String, Value)>,
    /// In file order.
    pub tensors: Vec<TensorInfo>,
    // plus: the map, an index by name
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self> {
        let _ = path;
        todo!()
    }

    /// From bytes in memory (the demo's base is part of the binary); `name` stands in errors.
    pub fn from_bytes(name: &str, bytes: Bytes) -> Result<Self> {
        let _ = (name, bytes);
        todo!()
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        let _ = key;
        todo!()
    }

    /// Typed look-ups: `None` where the key is missing; an error where it has another type.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>> {
        let _ = key;
        todo!()
    }

    pub fn get_f32(&self, key: &str) -> Result<Option<f32>> {
        let _ = key;
        todo!()
    }

    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        let _ = key;
        todo!()
    }

    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        let _ = key;
        todo!()
    }

    /// An array of strings (bytes may be no UTF-8: lossy is wrong for vocabularies, so these are bytes).
    pub fn get_strings(&self, key: &str) -> Result<Option<Vec<&[u8]>>> {
        let _ = key;
        todo!()
    }

    /// An array of numbers of any type, as f64 (scores, token types).
    pub fn get_numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let _ = key;
        todo!()
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let _ = name;
        todo!()
    }

    /// The tensor's bytes: a slice of the map, no copy.
    pub fn data(&self, tensor: &TensorInfo) -> Bytes {
        let _ = tensor;
        todo!()
    }
}
