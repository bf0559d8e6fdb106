//! safetensors: one file or several with an index, mapped into memory; and a durable writer.
//! The format: github.com/huggingface/safetensors, README, "Format".

mod header;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::{durable, map_file};
use crate::error::{Error, Result};

/// A tensor as it lies in its file.
#[derive(Clone, Debug)]
pub struct RawTensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// A slice of the memory map.
    pub data: Bytes,
}

/// All tensors of a model folder or of one file.
pub struct Tensors {
    /// The file, or the folder.
    path: PathBuf,
    tensors: HashMap<String, RawTensor>,
    /// In file order, shard after shard.
    names: Vec<String>,
    /// How many of the names each shard has.
    shards: Vec<usize>,
    metadata: HashMap<String, String>,
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const DAMAGED: &str = "the file is damaged or incomplete: fetch or write it again";

impl Tensors {
    /// One `.safetensors` file. Cut files, overlapping or out-of-range tensors and hostile headers are errors.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = map_file(path)?;
        let header = header::parse(&bytes).map_err(|problem| Error::file(path, problem, DAMAGED))?;
        let mut all = Self {
            path: path.to_owned(),
            tensors: HashMap::new(),
            names: Vec::new(),
            shards: vec![header.entries.len()],
            metadata: header.metadata,
        };
        for (name, entry) in header.entries {
            all.names.push(name.clone());
            all.tensors.insert(name, RawTensor { dtype: entry.dtype, shape: entry.shape, data: bytes.slice(entry.range) });
        }
        Ok(all)
    }

    /// A folder with `model.safetensors`, or with `model.safetensors.index.json` and its shards.
    /// One error tells everything that the index promises and the shards do not hold.
    pub fn open_folder(folder: &Path) -> Result<Self> {
        let index = folder.join(INDEX);
        if index.is_file() {
            return Self::open_shards(folder, &index);
        }
        let single = folder.join(SINGLE);
        if single.is_file() {
            return Self::open(&single);
        }
        let pickled = folder.join("pytorch_model.bin").exists() || folder.join("pytorch_model.bin.index.json").exists();
        let (message, hint) = match (folder.is_dir(), pickled) {
            (false, _) => ("is no folder".to_owned(), "give the folder of a model in Hugging Face's layout"),
            (true, true) => (
                format!("holds {SINGLE} neither whole nor sharded, only pytorch_model.bin"),
                "pickled weights can run code and are not read: save the model with safe_serialization=True",
            ),
            (true, false) => {
                (format!("holds neither {SINGLE} nor {INDEX}"), "give the folder of a model in Hugging Face's layout")
            }
        };
        Err(Error::file(folder, message, hint))
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Self> {
        let wrong = |message: String| Error::file(index, message, "the download is incomplete or mixed: fetch the folder again");
        let text = std::fs::read(index).map_err(Error::io("read", index))?;
        let parsed: Value = serde_json::from_slice(&text).map_err(|e| wrong(format!("is no valid JSON: {e}")))?;
        let map = parsed["weight_map"].as_object().ok_or_else(|| wrong("has no \"weight_map\"".to_owned()))?;
        // Shard -> the tensors that it is to hold.
        let mut shards: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (name, file) in map {
            let file = file.as_str().ok_or_else(|| wrong(format!("maps {name} to {file}, expected a file's name")))?;
            if file.contains('/') || file.contains('\\') || file == ".." {
                return Err(wrong(format!("maps {name} to {file:?}, which is outside of the folder")));
            }
            shards.entry(file).or_default().insert(name);
        }
        let mut all = Self {
            path: folder.to_owned(),
            tensors: HashMap::new(),
            names: Vec::new(),
            shards: Vec::new(),
            metadata: HashMap::new(),
        };
        let mut problems = Vec::new();
        for (file, mut expected) in shards {
            let path = folder.join(file);
            if !path.is_file() {
                problems.push(format!(
                    "the shard {file} is missing ({} tensors: {})",
                    expected.len(),
                    some(expected.iter().copied())
                ));
                continue;
            }
            let shard = match Self::open(&path) {
                Ok(shard) => shard,
                Err(Error::File { message, .. }) => {
                    problems.push(format!("{file}: {message}"));
                    continue;
                }
                Err(other) => return Err(other),
            };
            let Self { mut tensors, names, .. } = shard;
            let before = all.names.len();
            for name in names {
                // What the index does not place in this shard is not part of the model.
                if expected.remove(name.as_str())
                    && let Some(tensor) = tensors.remove(&name)
                {
                    all.names.push(name.clone());
                    all.tensors.insert(name, tensor);
                }
            }
            all.shards.push(all.names.len() - before);
            if !expected.is_empty() {
                problems.push(format!("{file} lacks {}", expected.into_iter().collect::<Vec<_>>().join(", ")));
            }
        }
        if problems.is_empty() { Ok(all) } else { Err(wrong(format!("does not fit its shards: {}", problems.join("; ")))) }
    }

    /// In file order.
    pub fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    /// Shard after shard, by name in each: the order in which the reference implementation gives them.
    pub fn names_by_shard(&self) -> Vec<&str> {
        let mut names = self.names();
        let mut rest = names.as_mut_slice();
        for &count in &self.shards {
            let (shard, others) = rest.split_at_mut(count);
            shard.sort_unstable();
            rest = others;
        }
        names
    }

    pub fn get(&self, name: &str) -> Option<&RawTensor> {
        self.tensors.get(name)
    }

    /// An entry of the header's `__metadata__` (of a single file).
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The tensor's values as f32, whatever float type it has. An error names the tensor where it is missing,
    /// of another shape than `shape`, of a type that is no float, or holds NaN or infinity.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let wrong = |message: String| {
            Error::file(&self.path, message, "the file does not fit what is read from it: fetch or convert it again")
        };
        let tensor = self.get(name).ok_or_else(|| {
            wrong(format!(
                "has no tensor {name}; it holds {} tensors: {}",
                self.names.len(),
                some(self.names.iter().map(String::as_str))
            ))
        })?;
        if tensor.shape != shape {
            return Err(wrong(format!("tensor {name} has shape {:?}, expected {shape:?}", tensor.shape)));
        }
        let values = tensor
            .to_f32()
            .ok_or_else(|| wrong(format!("tensor {name} is {:?}, expected F32, F16, BF16 or F64", tensor.dtype)))?;
        match values.par_iter().position_first(|v| !v.is_finite()) {
            Some(at) => Err(Error::file(
                &self.path,
                format!("tensor {name} holds {} at position {at}", values[at]),
                "the weights are broken (a training that diverged?): take another version of them",
            )),
            None => Ok(values),
        }
    }
}

impl RawTensor {
    /// The values as f32, row-major; `None` where the type is no float of 16 bits or more.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        /// Converts `N` bytes a value, on all cores; slices of a map need not be aligned.
        fn convert<const N: usize>(data: &[u8], one: impl Fn([u8; N]) -> f32 + Sync) -> Vec<f32> {
            const CHUNK: usize = 1 << 14;
            let mut out = vec![0.0; data.len() / N];
            out.par_chunks_mut(CHUNK).zip(data.par_chunks(CHUNK * N)).for_each(|(out, data)| {
                for (out, bytes) in out.iter_mut().zip(data.as_chunks::<N>().0) {
                    *out = one(*bytes);
                }
            });
            out
        }
        match self.dtype {
            Dtype::F32 => Some(convert(&self.data, f32::from_le_bytes)),
            Dtype::F16 => Some(convert(&self.data, |b| half::f16::from_le_bytes(b).to_f32())),
            Dtype::BF16 => Some(convert(&self.data, |b| half::bf16::from_le_bytes(b).to_f32())),
            Dtype::F64 => Some(convert(&self.data, |b| f64::from_le_bytes(b) as f32)),
            _ => None,
        }
    }
}

/// The first few of many names.
fn some<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 5;
    let mut names: Vec<&str> = names.take(SHOWN + 1).collect();
    if names.len() > SHOWN {
        names[SHOWN] = "...";
    }
    names.join(", ")
}

/// Writes f32 tensors (name, shape, values) durably, in the given order, with `metadata` in the header.
pub fn write_f32(path: &Path, tensors: &[(String, Vec<usize>, &[f32])], metadata: &[(&str, String)]) -> Result<()> {
    let wrong = |message: String| Error::file(path, message, "this is a fault of retune: please report it");
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let entries = metadata.iter().map(|(key, value)| ((*key).to_owned(), Value::String(value.clone())));
        header.insert(header::METADATA.to_owned(), Value::Object(entries.collect()));
    }
    let mut offset = 0;
    for (name, shape, values) in tensors {
        if shape.iter().product::<usize>() != values.len() {
            return Err(wrong(format!("tensor {name} of shape {shape:?} was to be written with {} values", values.len())));
        }
        let end = offset + size_of_val(*values);
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [offset, end]});
        if header.insert(name.clone(), entry).is_some() {
            return Err(wrong(format!("tensor {name} was to be written twice")));
        }
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // Spaces, so that the data is aligned to 8 bytes, as the reference writer does.
    header.resize(header.len().next_multiple_of(8), b' ');
    let write_error = |e| Error::io("write", path)(e);
    durable::write_with(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes()).map_err(write_error)?;
        out.write_all(&header).map_err(write_error)?;
        for (_, _, values) in tensors {
            // Little endian is what the format wants and what every target of ours has.
            out.write_all(bytemuck::cast_slice(values)).map_err(write_error)?;
        }
        Ok(())
    })
}

#[cfg(target_endian = "big")]
compile_error!("formats write values as they lie in memory, which must be little endian");
