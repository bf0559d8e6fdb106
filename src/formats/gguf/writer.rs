//! The streaming writer: metadata first, then tensor after tensor, nothing held whole.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;

use super::header::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, Problem};
use super::reader::{Gguf, TensorInfo};
use super::types::GgmlType;
use super::value::Value;
use crate::error::{Error, Result};
use crate::formats::durable;

/// One tensor to write: its bytes are made when its turn comes.
pub struct TensorSource<'a> {
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    pub ggml_type: GgmlType,
    /// `None`: as shape and type say, which holds for every type that we know.
    pub size_bytes: Option<usize>,
    /// What follows the tensor; `None`: zeros up to the alignment.
    pub padding: Option<Bytes>,
    pub bytes: Box<dyn FnOnce() -> Result<Bytes> + 'a>,
}

impl<'a> TensorSource<'a> {
    pub fn new(
        name: impl Into<String>,
        shape: impl Into<Vec<usize>>,
        ggml_type: GgmlType,
        bytes: impl FnOnce() -> Result<Bytes> + 'a,
    ) -> Self {
        Self { name: name.into(), shape: shape.into(), ggml_type, size_bytes: None, padding: None, bytes: Box::new(bytes) }
    }
}

/// What a file says before its tensors.
pub struct Writer {
    pub version: u32,
    pub alignment: u64,
    pub metadata: Vec<(String, Value)>,
    /// The bytes between the header and the first tensor; `None`, or of another length than is needed: zeros.
    pub header_padding: Option<Bytes>,
}

impl Gguf {
    /// A writer of this file's header, and sources of its tensors: together they write the same file, to the byte
    /// (where its tensors lie in the order of their descriptions with no gaps, as llama.cpp demands).
    pub fn copy(&self) -> (Writer, Vec<TensorSource<'_>>) {
        let writer = Writer {
            version: self.version,
            alignment: self.alignment,
            metadata: self.metadata.clone(),
            header_padding: Some(self.header_padding()),
        };
        let sources = self.tensors.iter().zip(self.paddings()).map(|(tensor, padding)| TensorSource {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            ggml_type: tensor.ggml_type,
            size_bytes: Some(tensor.size_bytes),
            padding: Some(padding),
            bytes: Box::new(move || Ok(self.data(tensor))),
        });
        let sources = sources.collect();
        (writer, sources)
    }
}

impl Writer {
    /// Version 3 with the default alignment.
    pub fn new(metadata: Vec<(String, Value)>) -> Self {
        Self { version: 3, alignment: DEFAULT_ALIGNMENT, metadata, header_padding: None }
    }

    /// The bytes of a file with this header and no tensors: what a reader makes of metadata can be asked before a file is there.
    pub fn header(&self) -> Result<Bytes> {
        let header = encode_header(self.version, &self.metadata, &[]);
        header.map(Bytes::from).map_err(|problem| Error::data(problem, "this is a fault of retune: please report it"))
    }

    /// Writes the whole file durably. The tensors' sizes follow from their shapes and types; a source that gives
    /// another number of bytes is an error.
    pub fn write(&self, path: &Path, tensors: Vec<TensorSource>) -> Result<()> {
        let wrong = |problem: Problem| Error::file(path, problem, "this is a fault of retune: please report it");
        self.check(&tensors).map_err(wrong)?;
        let infos = self.place(&tensors).map_err(wrong)?;
        let header = encode_header(self.version, &self.metadata, &infos).map_err(wrong)?;
        durable::write_with(path, |out| {
            let write_error = |e| Error::io("write", path)(e);
            out.write_all(&header).map_err(write_error)?;
            let zeros = (header.len() as u64).next_multiple_of(self.alignment) as usize - header.len();
            match &self.header_padding {
                Some(padding) if padding.len() == zeros || infos.is_empty() => out.write_all(padding).map_err(write_error)?,
                _ => write_zeros(out, zeros).map_err(write_error)?,
            }
            let count = infos.len();
            for (i, (tensor, info)) in tensors.into_iter().zip(&infos).enumerate() {
                let bytes = (tensor.bytes)()?;
                if bytes.len() != info.size_bytes {
                    let problem =
                        format!("tensor {} was to have {} bytes, its source gave {}", info.name, info.size_bytes, bytes.len());
                    return Err(wrong(problem));
                }
                out.write_all(&bytes).map_err(write_error)?;
                let mut end = info.offset + info.size_bytes as u64;
                if let Some(padding) = &tensor.padding {
                    out.write_all(padding).map_err(write_error)?;
                    end += padding.len() as u64;
                }
                if tensor.padding.is_none() || i + 1 < count {
                    write_zeros(out, (end.next_multiple_of(self.alignment) - end) as usize).map_err(write_error)?;
                }
            }
            Ok(())
        })
    }

    /// What a reader would refuse must not be written.
    fn check(&self, tensors: &[TensorSource]) -> Result<(), Problem> {
        if !matches!(self.version, 2 | 3) {
            return Err(format!("cannot be written with version {}, expected 2 or 3", self.version));
        }
        let said = self.metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY).map(|(_, value)| value);
        let said = match said {
            None => DEFAULT_ALIGNMENT,
            Some(Value::U32(n)) => u64::from(*n),
            Some(other) => return Err(format!("cannot be written with {ALIGNMENT_KEY} {other:?}, expected a u32")),
        };
        if said != self.alignment || !said.is_power_of_two() {
            return Err(format!("cannot be written with alignment {}: its metadata says {said}", self.alignment));
        }
        let mut seen = HashSet::new();
        for (key, _) in &self.metadata {
            if !seen.insert(key) {
                return Err(format!("cannot be written with the metadata key {key} twice"));
            }
        }
        let mut seen = HashSet::new();
        match tensors.iter().find(|tensor| !seen.insert(&tensor.name)) {
            Some(twice) => Err(format!("cannot be written with the tensor {} twice", twice.name)),
            None => Ok(()),
        }
    }

    /// Offsets one after the other, each a multiple of the alignment.
    fn place(&self, tensors: &[TensorSource]) -> Result<Vec<TensorInfo>, Problem> {
        let mut offset = 0u64;
        let mut infos = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let by_type = tensor.ggml_type.size_bytes(&tensor.shape);
            let size_bytes = match (tensor.size_bytes, by_type) {
                (Some(said), Some(is)) if said != is => {
                    return Err(format!(
                        "tensor {} is said to have {said} bytes, {} {:?} has {is}",
                        tensor.name, tensor.ggml_type, tensor.shape
                    ));
                }
                (Some(size), _) | (None, Some(size)) => size,
                (None, None) => {
                    return Err(format!("tensor {} has no known size as {} {:?}", tensor.name, tensor.ggml_type, tensor.shape));
                }
            };
            let info = TensorInfo {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                ggml_type: tensor.ggml_type,
                offset,
                size_bytes,
            };
            infos.push(info);
            offset += (size_bytes + tensor.padding.as_ref().map_or(0, Bytes::len)) as u64;
            offset = offset.next_multiple_of(self.alignment);
        }
        Ok(infos)
    }
}

/// Magic, version, counts, metadata, tensor descriptions: all up to the padding before the data.
pub(super) fn encode_header(version: u32, metadata: &[(String, Value)], tensors: &[TensorInfo]) -> Result<Vec<u8>, Problem> {
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    out.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        encode_string(&mut out, key.as_bytes());
        out.extend_from_slice(&value.type_id().to_le_bytes());
        encode_value(&mut out, value).map_err(|problem| format!("metadata key {key}: {problem}"))?;
    }
    for tensor in tensors {
        encode_string(&mut out, tensor.name.as_bytes());
        out.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        // The file has the fastest dimension first.
        for &n in tensor.shape.iter().rev() {
            out.extend_from_slice(&(n as u64).to_le_bytes());
        }
        out.extend_from_slice(&tensor.ggml_type.0.to_le_bytes());
        out.extend_from_slice(&tensor.offset.to_le_bytes());
    }
    Ok(out)
}

fn encode_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn encode_value(out: &mut Vec<u8>, value: &Value) -> Result<(), Problem> {
    match value {
        Value::U8(n) => out.push(*n),
        Value::I8(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::U16(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::I16(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::U32(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::I32(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::F32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::Bool(b) => out.push(u8::from(*b)),
        Value::String(bytes) => encode_string(out, bytes),
        Value::U64(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::I64(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::F64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::Array(element, items) => {
            out.extend_from_slice(&element.to_le_bytes());
            out.extend_from_slice(&(items.len() as u64).to_le_bytes());
            for item in items {
                if item.type_id() != *element {
                    return Err(format!("an array of type {element} holds a {}", item.type_name()));
                }
                encode_value(out, item)?;
            }
        }
    }
    Ok(())
}

/// Padding is short as a rule; an alignment of gigabytes must not become an allocation.
fn write_zeros(out: &mut dyn Write, mut n: usize) -> std::io::Result<()> {
    let zeros = [0u8; 4096];
    while n > 0 {
        let chunk = n.min(zeros.len());
        out.write_all(&zeros[..chunk])?;
        n -= chunk;
    }
    Ok(())
}
