//! The mapped reader. A file that someone changes while it is open is out of scope, as for every mapped file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::header::{self, ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Entry, Problem};
use super::types::GgmlType;
use super::value::Value;
use crate::error::{Error, Result};

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    /// Row-major order, as PyTorch says it: `[rows, cols]` (GGUF stores the reverse).
    pub shape: Vec<usize>,
    pub ggml_type: GgmlType,
    /// From the start of the data section.
    pub offset: u64,
    /// By shape and type; for an unknown type all bytes up to the next tensor or the end of the file.
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
    bytes: Bytes,
    header_end: usize,
    data_start: usize,
    key_index: HashMap<String, usize>,
    tensor_index: HashMap<String, usize>,
}

impl Gguf {
    /// Maps the file and reads its header; no tensor is touched.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = super::super::map_file(path)?;
        Self::parse(path.to_owned(), bytes)
    }

    /// From bytes in memory (the demo's base is part of the binary); `name` stands in errors.
    pub fn from_bytes(name: &str, bytes: Bytes) -> Result<Self> {
        Self::parse(PathBuf::from(name), bytes)
    }

    fn parse(path: PathBuf, bytes: Bytes) -> Result<Self> {
        match Layout::parse(&bytes) {
            Ok(layout) => Ok(Self {
                path,
                version: layout.version,
                alignment: layout.alignment,
                metadata: layout.metadata,
                tensors: layout.tensors,
                bytes,
                header_end: layout.header_end,
                data_start: layout.data_start,
                key_index: layout.key_index,
                tensor_index: layout.tensor_index,
            }),
            Err(problem) => Err(Error::file(
                path,
                problem,
                "the file is damaged, incomplete or of another kind: download or convert it again",
            )),
        }
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.key_index.get(key).map(|&i| &self.metadata[i].1)
    }

    /// Typed look-ups: `None` where the key is missing; an error where it has another type.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an integer that is not negative", Value::as_u64)
    }

    pub fn get_f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a float", Value::as_f32)
    }

    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", Value::as_bool)
    }

    /// An error also where the string is no UTF-8.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string (UTF-8)", Value::as_str)
    }

    /// An array of strings (bytes may be no UTF-8: lossy is wrong for vocabularies, so these are bytes).
    pub fn get_strings(&self, key: &str) -> Result<Option<Vec<&[u8]>>> {
        self.typed(key, "an array of strings", |value| value.as_array()?.iter().map(Value::as_bytes).collect())
    }

    /// An array of numbers of any type, as f64 (scores, token types).
    pub fn get_numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.typed(key, "an array of numbers", |value| value.as_array()?.iter().map(Value::as_number).collect())
    }

    fn typed<'a, T>(&'a self, key: &str, expected: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| {
            let shown = match value {
                Value::Array(_, items) => format!("{} ({} elements)", value.type_name(), items.len()),
                Value::String(bytes) => format!("string \"{}\"", bytes[..bytes.len().min(80)].escape_ascii()),
                other => format!("{other:?}"),
            };
            Error::file(
                &self.path,
                format!("{key} is {shown}, expected {expected}"),
                "convert the model again with a current converter",
            )
        })
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_index.get(name).map(|&i| &self.tensors[i])
    }

    /// The whole file.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The tensor's bytes: a slice of the map, no copy. `tensor` is one of this file's own.
    pub fn data(&self, tensor: &TensorInfo) -> Bytes {
        let start = self.data_start + tensor.offset as usize;
        self.bytes.slice(start..start + tensor.size_bytes)
    }

    /// The bytes between the header and the data (to the end of the file where there is no tensor): zeros in
    /// all files that we know, kept so that a copy is the same to the byte.
    pub(super) fn header_padding(&self) -> Bytes {
        let end = if self.tensors.is_empty() { self.bytes.len() } else { self.data_start };
        self.bytes.slice(self.header_end..end)
    }

    /// The bytes after each tensor, in the order of `tensors`: up to the next tensor in the file, or to its end.
    pub(super) fn paddings(&self) -> Vec<Bytes> {
        let mut paddings = vec![Bytes::new(); self.tensors.len()];
        let order = by_offset(&self.tensors);
        for (k, &i) in order.iter().enumerate() {
            let end = self.data_start + self.tensors[i].offset as usize + self.tensors[i].size_bytes;
            let next = order.get(k + 1).map_or(self.bytes.len(), |&j| self.data_start + self.tensors[j].offset as usize);
            paddings[i] = self.bytes.slice(end..next);
        }
        paddings
    }
}

/// What parsing yields; apart from `Gguf` so that errors are sentences without a path.
struct Layout {
    version: u32,
    alignment: u64,
    metadata: Vec<(String, Value)>,
    tensors: Vec<TensorInfo>,
    header_end: usize,
    data_start: usize,
    key_index: HashMap<String, usize>,
    tensor_index: HashMap<String, usize>,
}

impl Layout {
    fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let header = header::parse(bytes)?;
        let key_index = index(header.metadata.iter().map(|(key, _)| key), "metadata key")?;
        let tensor_index = index(header.entries.iter().map(|entry| &entry.name), "tensor")?;
        let alignment = match key_index.get(ALIGNMENT_KEY).map(|&i| &header.metadata[i].1) {
            None => DEFAULT_ALIGNMENT,
            Some(Value::U32(n)) if n.is_power_of_two() => u64::from(*n),
            Some(other) => return Err(format!("has {ALIGNMENT_KEY} {other:?}, expected a power of two as u32")),
        };
        // usize has 64 bits on every target that we build for; the checks hold on 32, too.
        let data_start = (header.end as u64).checked_next_multiple_of(alignment).and_then(|n| usize::try_from(n).ok());
        let data_start = data_start.ok_or_else(|| format!("has an alignment of {alignment} that no file can have"))?;
        if !header.entries.is_empty() && data_start > bytes.len() {
            return Err(format!("is cut: its data would start at byte {data_start}, the file has {}", bytes.len()));
        }
        let tensors = place(header.entries, alignment, bytes.len().saturating_sub(data_start))?;
        Ok(Self {
            version: header.version,
            alignment,
            metadata: header.metadata,
            tensors,
            header_end: header.end,
            data_start,
            key_index,
            tensor_index,
        })
    }
}

/// Sizes all tensors and holds that they lie apart within `data_len` bytes.
fn place(entries: Vec<Entry>, alignment: u64, data_len: usize) -> Result<Vec<TensorInfo>, Problem> {
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in entries {
        let Entry { name, shape, ggml_type, offset } = entry;
        if offset % alignment != 0 {
            return Err(format!("places tensor {name} at offset {offset}, which is no multiple of the alignment {alignment}"));
        }
        if offset > data_len as u64 {
            return Err(format!("places tensor {name} at offset {offset}, behind the end of its {data_len} bytes of data"));
        }
        let elements = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
        let elements = elements.ok_or_else(|| format!("gives tensor {name} the shape {shape:?}, which overflows"))?;
        let size_bytes = match ggml_type.block() {
            // Filled in below, when the next tensor is known.
            None => 0,
            Some((values, _)) => ggml_type.size_bytes(&shape).ok_or_else(|| {
                let cols = shape.last().copied().unwrap_or(1);
                format!("gives tensor {name} rows of {cols} values ({elements} in all) as {ggml_type}, which takes multiples of {values}")
            })?,
        };
        tensors.push(TensorInfo { name, shape, ggml_type, offset, size_bytes });
    }
    let order = by_offset(&tensors);
    for (k, &i) in order.iter().enumerate() {
        let next = order.get(k + 1).copied();
        let room = next.map_or(data_len as u64, |j| tensors[j].offset) - tensors[i].offset;
        if tensors[i].ggml_type.block().is_none() {
            tensors[i].size_bytes = room as usize;
        }
        let next = next.map(|j| &tensors[j]);
        let TensorInfo { name, offset, size_bytes, ggml_type, shape } = &tensors[i];
        if *size_bytes as u64 > room {
            return Err(match next {
                Some(next) => format!(
                    "has overlapping tensors: {name} ({ggml_type} {shape:?}) takes {size_bytes} bytes at offset {offset}, {} starts at {}",
                    next.name, next.offset
                ),
                None => {
                    format!(
                        "is cut: tensor {name} ({ggml_type} {shape:?}) needs {size_bytes} bytes at offset {offset}, {room} are left"
                    )
                }
            });
        }
    }
    Ok(tensors)
}

/// Indices of the tensors in the order of their offsets. Empty tensors come before what lies at the same place.
fn by_offset(tensors: &[TensorInfo]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (tensors[i].offset, tensors[i].size_bytes));
    order
}

fn index<'a>(names: impl Iterator<Item = &'a String>, what: &str) -> Result<HashMap<String, usize>, Problem> {
    let mut index = HashMap::new();
    for (i, name) in names.enumerate() {
        if index.insert(name.clone(), i).is_some() {
            return Err(format!("has the {what} {name} twice"));
        }
    }
    Ok(index)
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gguf({}, {} keys, {} tensors)", self.path.display(), self.metadata.len(), self.tensors.len())
    }
}
