//! Parsing what stands before the tensors' bytes. Nothing in the file is believed: every count and length is
//! held against the bytes that are left before anything is allocated.

use super::types::GgmlType;
use super::value::{ARRAY, STRING, Value, min_bytes};

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// `general.alignment` where the file does not say.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// GGML_MAX_DIMS of ggml.h.
const MAX_DIMS: u32 = 4;
/// Deep enough for any file seen (none nests at all), shallow enough for the stack.
const MAX_ARRAY_DEPTH: usize = 8;
/// A value takes more memory than its bytes in the file; the largest vocabularies have some 10^6 elements.
const MAX_ARRAY_ELEMENTS: usize = 1 << 24;

/// A tensor as the header describes it.
pub(super) struct Entry {
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    pub ggml_type: GgmlType,
    pub offset: u64,
}

pub(super) struct Header {
    pub version: u32,
    pub metadata: Vec<(String, Value)>,
    pub entries: Vec<Entry>,
    /// Where the header ends; padding and data follow.
    pub end: usize,
}

/// What is wrong, as a sentence that the reader puts the path before.
pub(super) type Problem = String;

pub(super) fn parse(bytes: &[u8]) -> Result<Header, Problem> {
    let mut cursor = Cursor { bytes, at: 0, elements_left: MAX_ARRAY_ELEMENTS };
    let magic = cursor.take(4, "the magic number")?;
    if magic != MAGIC {
        return Err(format!("is no GGUF file: it starts with {:?}, expected \"GGUF\"", String::from_utf8_lossy(magic)));
    }
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => {}
        1 => return Err("has GGUF version 1, which ended in 2023; versions 2 and 3 are read".to_owned()),
        v if v.swap_bytes() <= 0xffff => {
            return Err(format!("is a big endian file (version {}); only little endian ones are read", v.swap_bytes()));
        }
        v => return Err(format!("has GGUF version {v}; versions 2 and 3 are read")),
    }
    // A tensor takes at least its name's length, dimensions, type and offset; a key its length, type and one byte.
    let tensor_count = cursor.count(24, "tensors")?;
    let key_count = cursor.count(13, "metadata keys")?;

    let mut metadata: Vec<(String, Value)> = Vec::new();
    for i in 0..key_count {
        let key = cursor.text(|| format!("the name of metadata key {i}"))?;
        let type_id = cursor.u32(&key)?;
        let value = cursor.value(type_id, &key, 0)?;
        metadata.push((key, value));
    }
    let mut entries = Vec::new();
    for i in 0..tensor_count {
        entries.push(cursor.entry(i)?);
    }
    Ok(Header { version, metadata, entries, end: cursor.at })
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    elements_left: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], Problem> {
        let left = self.bytes.len() - self.at;
        if n > left {
            return Err(format!("is cut: {what} needs {n} bytes at byte {}, {left} are left", self.at));
        }
        let slice = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Problem> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32, Problem> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, Problem> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things of at least `min` bytes each, that must fit into what is left.
    fn count(&mut self, min: usize, what: &str) -> Result<usize, Problem> {
        let n = self.u64(what)?;
        let left = self.bytes.len() - self.at;
        match usize::try_from(n) {
            Ok(n) if n <= left / min => Ok(n),
            _ => Err(format!("says {n} {what}, which cannot fit into the {left} bytes left at byte {}", self.at)),
        }
    }

    fn string(&mut self, what: &str) -> Result<&'a [u8], Problem> {
        let n = self.u64(what)?;
        let left = self.bytes.len() - self.at;
        match usize::try_from(n) {
            Ok(n) if n <= left => self.take(n, what),
            _ => Err(format!("says {what} is a string of {n} bytes at byte {}, {left} are left", self.at)),
        }
    }

    fn text(&mut self, what: impl Fn() -> String) -> Result<String, Problem> {
        let bytes = self.string(&what())?;
        String::from_utf8(bytes.to_vec())
            .map_err(|_| format!("has {} that is no UTF-8: {:?}", what(), bytes.escape_ascii().to_string()))
    }

    fn value(&mut self, type_id: u32, key: &str, depth: usize) -> Result<Value, Problem> {
        Ok(match type_id {
            0 => Value::U8(u8::from_le_bytes(self.array(key)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(key)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(key)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(key)?)),
            4 => Value::U32(u32::from_le_bytes(self.array(key)?)),
            5 => Value::I32(i32::from_le_bytes(self.array(key)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(key)?)),
            7 => match self.array::<1>(key)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(format!("has {other} as the bool of {key}, expected 0 or 1")),
            },
            STRING => Value::String(self.string(key)?.to_vec()),
            ARRAY => self.array_value(key, depth)?,
            10 => Value::U64(u64::from_le_bytes(self.array(key)?)),
            11 => Value::I64(i64::from_le_bytes(self.array(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(key)?)),
            other => return Err(format!("has value type {other} at {key}; types 0 to 12 are known")),
        })
    }

    fn array_value(&mut self, key: &str, depth: usize) -> Result<Value, Problem> {
        if depth == MAX_ARRAY_DEPTH {
            return Err(format!("nests the arrays of {key} more than {MAX_ARRAY_DEPTH} deep"));
        }
        let element = self.u32(key)?;
        let min = min_bytes(element).ok_or_else(|| format!("has element type {element} at {key}; types 0 to 12 are known"))?;
        let n = self.count(min, &format!("elements of {key}"))?;
        self.elements_left = self
            .elements_left
            .checked_sub(n)
            .ok_or_else(|| format!("has more than {MAX_ARRAY_ELEMENTS} array elements in its metadata (the last at {key})"))?;
        let mut items = Vec::with_capacity(n);
        for _ in 0..n {
            items.push(self.value(element, key, depth + 1)?);
        }
        Ok(Value::Array(element, items))
    }

    fn entry(&mut self, i: usize) -> Result<Entry, Problem> {
        let name = self.text(|| format!("the name of tensor {i}"))?;
        let dims = self.u32(&name)?;
        if dims > MAX_DIMS {
            return Err(format!("gives tensor {name} {dims} dimensions, at most {MAX_DIMS} are allowed"));
        }
        let mut shape = Vec::with_capacity(dims as usize);
        for _ in 0..dims {
            let n = self.u64(&name)?;
            shape.push(usize::try_from(n).map_err(|_| format!("gives tensor {name} a dimension of {n}"))?);
        }
        // The file has the fastest dimension first.
        shape.reverse();
        let ggml_type = GgmlType(self.u32(&name)?);
        let offset = self.u64(&name)?;
        Ok(Entry { name, shape, ggml_type, offset })
    }
}
