//! LoRA adapters in GGUF, as llama.cpp reads them (src/llama-adapter.cpp, convert_lora_to_gguf.py).
//! Tensors have the base's names and GGUF's row order.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;

use super::gguf::{GgmlType, Gguf, TensorInfo, TensorSource, Value, Writer};
use crate::error::{Error, Result};

const ALPHA: &str = "adapter.lora.alpha";
/// GGML_MAX_NAME of ggml.h: llama.cpp reads no name of as many bytes.
const MAX_NAME_BYTES: usize = 64;

/// One LoRA pair for a tensor of the base.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufPair {
    /// `blk.0.attn_q.weight`
    pub tensor: String,
    pub rank: usize,
    /// `[rank, in]`
    pub a: Vec<f32>,
    /// `[out, rank]`, rows as in the base's file.
    pub b: Vec<f32>,
    /// DoRA's, `[out]`: can be merged into a base, but not be said in this format.
    pub magnitude: Option<Vec<f32>>,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufAdapter {
    /// `llama`, `qwen2`: the base's.
    pub architecture: String,
    /// The scale of B A is alpha / rank; alpha 0 means a scale of 1.
    pub alpha: f32,
    /// In file order of the A halves.
    pub pairs: Vec<GgufPair>,
}

/// Writes the file durably. The format knows no rsLoRA: its alpha is `scale * rank`.
pub fn write(path: &Path, architecture: &str, alpha: f32, pairs: &[GgufPair]) -> Result<()> {
    let wrong = |message: String| Error::file(path, message, "this is a fault of retune: please report it");
    let metadata = [
        ("general.architecture", Value::string(architecture)),
        ("general.type", Value::string("adapter")),
        ("adapter.type", Value::string("lora")),
        (ALPHA, Value::F32(alpha)),
    ];
    let mut tensors = Vec::with_capacity(2 * pairs.len());
    for pair in pairs {
        let GgufPair { tensor, rank, a, b, magnitude } = pair;
        if magnitude.is_some() {
            return Err(Error::unsupported(
                "a GGUF adapter cannot say DoRA's magnitudes",
                "merge the adapter into its base: `retune deploy` or `retune merge`",
            ));
        }
        if *rank == 0 || !a.len().is_multiple_of(*rank) || !b.len().is_multiple_of(*rank) {
            return Err(wrong(format!("the pair of {tensor} has rank {rank} with {} and {} values", a.len(), b.len())));
        }
        for (suffix, shape, values) in [(".lora_a", [*rank, a.len() / rank], a), (".lora_b", [b.len() / rank, *rank], b)] {
            let name = format!("{tensor}{suffix}");
            if name.len() >= MAX_NAME_BYTES {
                return Err(wrong(format!("the name {name} has {} bytes, llama.cpp reads {}", name.len(), MAX_NAME_BYTES - 1)));
            }
            let bytes = || Ok(Bytes::copy_from_slice(bytemuck::cast_slice(values)));
            tensors.push(TensorSource::new(name, shape, GgmlType::F32, bytes));
        }
    }
    Writer::new(metadata.map(|(key, value)| (key.to_owned(), value)).to_vec()).write(path, tensors)
}

/// Reads an open file: pairs complete, shapes consistent, finite values. One error tells all tensors that are wrong.
pub fn read(gguf: &Gguf) -> Result<GgufAdapter> {
    let wrong = |message: String| {
        Error::file(&gguf.path, message, "give a LoRA adapter as llama.cpp's convert_lora_to_gguf.py or retune writes it")
    };
    for (key, expected) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        let found = gguf.get_str(key)?;
        if found != Some(expected) {
            return Err(wrong(format!("is no LoRA adapter: {key} is {}, expected {expected}", found.unwrap_or("missing"))));
        }
    }
    let architecture =
        gguf.get_str("general.architecture")?.ok_or_else(|| wrong("has no general.architecture".to_owned()))?.to_owned();
    // llama.cpp takes a missing alpha for 0, too.
    let alpha = gguf.get_f32(ALPHA)?.unwrap_or(0.0);
    if !alpha.is_finite() {
        return Err(wrong(format!("has {ALPHA} {alpha}, expected a finite number")));
    }
    let halves = find_halves(gguf).map_err(|problems| wrong(problems.join("; ")))?;
    let mut pairs = Vec::with_capacity(halves.len());
    for (tensor, a, b) in halves {
        let (a_values, b_values) = (values(gguf, a)?, values(gguf, b)?);
        pairs.push(GgufPair { tensor: tensor.to_owned(), rank: a.shape[0], a: a_values, b: b_values, magnitude: None });
    }
    Ok(GgufAdapter { architecture, alpha, pairs })
}

type Halves<'a> = (&'a str, &'a TensorInfo, &'a TensorInfo);

fn find_halves(gguf: &Gguf) -> Result<Vec<Halves<'_>>, Vec<String>> {
    let mut problems = Vec::new();
    let mut others: HashMap<&str, &TensorInfo> = HashMap::new();
    let mut firsts = Vec::new();
    for info in &gguf.tensors {
        if let Some(tensor) = info.name.strip_suffix(".lora_a") {
            firsts.push((tensor, info));
        } else if let Some(tensor) = info.name.strip_suffix(".lora_b") {
            others.insert(tensor, info);
        } else {
            problems.push(format!("{} {:?} is neither lora_a nor lora_b", info.name, info.shape));
        }
    }
    let mut halves = Vec::with_capacity(firsts.len());
    for (tensor, a) in firsts {
        match others.remove(tensor) {
            None => problems.push(format!("{tensor} has no lora_b")),
            Some(b) => match (a.shape.as_slice(), b.shape.as_slice()) {
                // llama.cpp has A of the embedding transposed; nobody here trains one.
                _ if tensor == "token_embd.weight" => {
                    problems.push("token_embd.weight is an embedding, expected linear layers".to_owned())
                }
                ([rank, _], [_, other]) if rank == other && *rank > 0 => halves.push((tensor, a, b)),
                (a, b) => {
                    problems.push(format!("{tensor} has lora_a {a:?} and lora_b {b:?}, expected [rank, in] and [out, rank]"))
                }
            },
        }
    }
    let mut lonely: Vec<_> = others.into_keys().map(|tensor| format!("{tensor} has no lora_a")).collect();
    lonely.sort();
    problems.extend(lonely);
    if halves.is_empty() && problems.is_empty() {
        problems.push("holds no tensors".to_owned());
    }
    if problems.is_empty() { Ok(halves) } else { Err(problems) }
}

/// The converter writes F32 as a rule, F16, BF16 and Q8_0 where it is told to.
fn values(gguf: &Gguf, info: &TensorInfo) -> Result<Vec<f32>> {
    let wrong = |message: String| Error::file(&gguf.path, message, "convert the adapter again, with --outtype f32");
    let (cols, data) = (info.shape[1], gguf.data(info));
    let values: Vec<f32> = match info.ggml_type {
        GgmlType::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        GgmlType::F16 => data.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        GgmlType::BF16 => data.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        other => {
            let dtype = other
                .dtype()
                .ok_or_else(|| wrong(format!("stores {} as {other}, which retune cannot compute with", info.name)))?;
            retune_kernels::Weight::from_bytes(dtype, info.shape[0], cols, data)
                .map_err(|problem| wrong(format!("{}: {problem}", info.name)))?
                .to_f32()
        }
    };
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(wrong(format!("{} holds {} at position {at}", info.name, values[at]))),
        None => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(tensor: &str) -> GgufPair {
        let values = |n: usize| (0..n).map(|i| i as f32 - 2.5).collect();
        GgufPair { tensor: tensor.into(), rank: 2, a: values(2 * 3), b: values(5 * 2), magnitude: None }
    }

    fn open(metadata: &[(&str, Value)], tensors: &[(&str, [usize; 2])]) -> Gguf {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let sources = tensors.iter().map(|(name, shape)| {
            let bytes = vec![0; 4 * shape[0] * shape[1]];
            TensorSource::new(*name, *shape, GgmlType::F32, move || Ok(Bytes::from(bytes)))
        });
        Writer::new(metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
            .write(&path, sources.collect())
            .unwrap();
        Gguf::open(&path).unwrap()
    }

    fn lora() -> Vec<(&'static str, Value)> {
        vec![
            ("general.type", Value::string("adapter")),
            ("adapter.type", Value::string("lora")),
            ("general.architecture", Value::string("llama")),
        ]
    }

    #[test]
    fn an_adapter_reads_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter.gguf");
        let pairs = [pair("blk.0.attn_q.weight"), pair("blk.11.ffn_down.weight")];
        write(&path, "qwen2", 22.5, &pairs).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        let shape = |name: &str| gguf.tensor(name).unwrap().shape.clone();
        assert_eq!(shape("blk.0.attn_q.weight.lora_a"), [2, 3]);
        assert_eq!(shape("blk.0.attn_q.weight.lora_b"), [5, 2]);
        let adapter = read(&gguf).unwrap();
        assert_eq!(adapter, GgufAdapter { architecture: "qwen2".into(), alpha: 22.5, pairs: pairs.to_vec() });
    }

    #[test]
    fn what_is_no_adapter_and_what_is_broken_is_told_at_once() {
        let say = |gguf: &Gguf| read(gguf).unwrap_err().to_string();
        assert!(say(&open(&[("general.type", Value::string("model"))], &[])).contains("general.type is model, expected adapter"));
        assert!(say(&open(&[], &[])).contains("general.type is missing, expected adapter"));
        assert!(say(&open(&lora(), &[])).contains("holds no tensors"));
        let mut infinite = lora();
        infinite.push((ALPHA, Value::F32(f32::INFINITY)));
        assert!(say(&open(&infinite, &[])).contains("adapter.lora.alpha inf"));
        let error = say(&open(
            &lora(),
            &[("x.lora_a", [2, 3]), ("y.lora_b", [5, 2]), ("z.lora_a", [2, 3]), ("z.lora_b", [5, 3]), ("norm.weight", [1, 1])],
        ));
        for part in
            ["x has no lora_b", "y has no lora_a", "z has lora_a [2, 3] and lora_b [5, 3]", "norm.weight [1, 1] is neither"]
        {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_missing_alpha_reads_as_0() {
        let gguf = open(&lora(), &[("x.lora_a", [2, 3]), ("x.lora_b", [5, 2])]);
        assert_eq!(read(&gguf).unwrap().alpha, 0.0);
    }

    #[test]
    fn what_llama_cpp_could_not_read_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter.gguf");
        let error = write(&path, "llama", 1.0, &[pair(&"x".repeat(57))]).unwrap_err().to_string();
        assert!(error.contains("has 64 bytes, llama.cpp reads 63"), "{error}");
        let uneven = GgufPair { rank: 4, ..pair("x") };
        assert!(write(&path, "llama", 1.0, &[uneven]).unwrap_err().to_string().contains("rank 4 with 6 and 10 values"));
        assert!(!path.exists());
    }
}
