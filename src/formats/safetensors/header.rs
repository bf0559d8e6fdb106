//! The header: 8 bytes of length, JSON, then the data. Checked before anything is sliced.

use std::collections::HashMap;
use std::ops::Range;

use safetensors::Dtype;
use serde::Deserialize;
use serde_json::Value;

pub(super) const METADATA: &str = "__metadata__";
/// The reference implementation's limit (safetensors, tensor.rs, MAX_HEADER_SIZE).
const MAX_HEADER_BYTES: usize = 100_000_000;

/// A tensor as the header describes it.
#[derive(Debug)]
pub(super) struct Entry {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// In the whole file.
    pub range: Range<usize>,
}

#[derive(Debug)]
pub(super) struct Header {
    pub metadata: HashMap<String, String>,
    /// In the order of the data.
    pub entries: Vec<(String, Entry)>,
}

#[derive(Deserialize)]
struct Described {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// Reads the header of a whole file's bytes; an error is a sentence that the caller puts the path before.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("is no safetensors file: it has {} bytes, expected a header's length in 8", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    let length = match usize::try_from(length) {
        Ok(n) if n <= rest.len() && n <= MAX_HEADER_BYTES => n,
        _ => {
            let limit = MAX_HEADER_BYTES.min(rest.len());
            return Err(format!("is cut or no safetensors file: its header has {length} bytes, at most {limit} are possible"));
        }
    };
    let (text, data) = rest.split_at(length);
    let parsed: serde_json::Map<String, Value> =
        serde_json::from_slice(text).map_err(|e| format!("has a header that is no JSON object: {e}"))?;

    let mut metadata = HashMap::new();
    let mut entries = Vec::new();
    for (name, value) in parsed {
        if name == METADATA {
            metadata = serde_json::from_value(value).map_err(|e| format!("has a {METADATA} that is no map of strings: {e}"))?;
            continue;
        }
        let described: Described = serde_json::from_value(value).map_err(|e| format!("describes tensor {name} wrongly: {e}"))?;
        let entry = check(&described, data.len()).map_err(|problem| format!("tensor {name} {problem}"))?;
        entries.push((name, entry));
    }
    entries.sort_by_key(|(_, entry)| (entry.range.start, entry.range.end));
    // The format allows no holes: every byte of the data belongs to one tensor.
    let mut end = 0;
    for (name, entry) in &entries {
        if entry.range.start != end {
            let what = if entry.range.start < end { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(format!("tensor {name} {what}: it starts at {}, expected {end}", entry.range.start));
        }
        end = entry.range.end;
    }
    if end != data.len() {
        return Err(format!("has {} bytes of data, its tensors take {end}", data.len()));
    }
    let data_start = bytes.len() - data.len();
    for (_, entry) in &mut entries {
        entry.range = entry.range.start + data_start..entry.range.end + data_start;
    }
    Ok(Header { metadata, entries })
}

/// Type, shape and place of one tensor; offsets count from the start of the data here.
fn check(described: &Described, data_len: usize) -> Result<Entry, String> {
    let Described { dtype, shape, data_offsets: [start, end] } = described;
    let dtype: Dtype =
        serde_json::from_value(Value::String(dtype.clone())).map_err(|_| format!("has the unknown type {dtype:?}"))?;
    if start > end || *end > data_len {
        return Err(format!("lies at {start}..{end}, outside of the {data_len} bytes of data: the file is cut"));
    }
    let elements = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    let bits = elements
        .and_then(|n| n.checked_mul(dtype.bitsize()))
        .ok_or_else(|| format!("has the shape {shape:?}, which overflows"))?;
    if bits != (end - start) * 8 {
        return Err(format!(
            "({dtype:?} {shape:?}) needs {} bytes, its place {start}..{end} has {}",
            bits.div_ceil(8),
            end - start
        ));
    }
    Ok(Entry { dtype, shape: shape.clone(), range: *start..*end })
}
