//! Round trips, hostile files, and the files of the world.

use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use proptest::prelude::*;

use super::writer::encode_header;
use super::*;
use crate::Error;

fn data_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("RETUNE_TEST_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    folder.is_dir().then_some(folder)
}

fn gguf_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = data_folder().into_iter().collect();
    folders.extend(std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/retune/peers/smollm2")));
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "gguf") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn copy_bytes(gguf: &Gguf) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.gguf");
    let (writer, sources) = gguf.copy();
    writer.write(&path, sources).unwrap();
    std::fs::read(path).unwrap()
}

fn open_bytes(bytes: Vec<u8>) -> crate::Result<Gguf> {
    Gguf::from_bytes("test.gguf", Bytes::from(bytes))
}

/// The sentence of the error that `bytes` must give, path and hint checked.
fn problem(bytes: Vec<u8>) -> String {
    match open_bytes(bytes) {
        Err(Error::File { path, message, hint }) => {
            assert_eq!(path, Path::new("test.gguf"));
            assert!(!hint.is_empty());
            message
        }
        other => panic!("expected Error::File, found {other:?}"),
    }
}

fn info(name: &str, shape: &[usize], ggml_type: GgmlType, offset: u64) -> TensorInfo {
    TensorInfo { name: name.to_owned(), shape: shape.to_vec(), ggml_type, offset, size_bytes: 0 }
}

/// A file of a header made as asked for, padded, with `data_len` bytes behind it.
fn file(metadata: &[(&str, Value)], tensors: &[TensorInfo], data_len: usize) -> Vec<u8> {
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let mut bytes = encode_header(3, &metadata, tensors).unwrap();
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend((0..data_len).map(|i| i as u8));
    bytes
}

fn small_file() -> Vec<u8> {
    let metadata = [
        ("general.architecture", Value::string("llama")),
        ("llama.block_count", Value::U32(2)),
        ("tokenizer.ggml.tokens", Value::strings(["a", "bc", ""])),
        ("tokenizer.ggml.scores", Value::Array(6, vec![Value::F32(0.5), Value::F32(-1.0)])),
        ("nested", Value::Array(9, vec![Value::Array(0, vec![Value::U8(7)]), Value::Array(12, vec![])])),
        ("flag", Value::Bool(true)),
    ];
    let tensors = [
        info("a", &[3, 32], GgmlType::Q4_0, 0),
        info("b", &[5], GgmlType::F32, 64),
        info("c", &[2, 2], GgmlType(77), 96),
        info("d", &[3], GgmlType::F16, 160),
    ];
    file(&metadata, &tensors, 160 + 6)
}

#[test]
fn every_file_of_the_world_is_written_back_byte_for_byte() {
    let files = gguf_files();
    if files.is_empty() {
        println!("skipped: no GGUF files (set RETUNE_TEST_DATA)");
        return;
    }
    for path in files {
        let original = std::fs::read(&path).unwrap();
        assert!(copy_bytes(&Gguf::open(&path).unwrap()) == original, "{} changed", path.display());
    }
}

#[test]
fn stories260k_holds_what_is_known_of_it() {
    let Some(folder) = data_folder() else { return println!("skipped: no test data (set RETUNE_TEST_DATA)") };
    let gguf = Gguf::open(&folder.join("models/stories260K/stories260K-f32.gguf")).unwrap();
    assert_eq!(gguf.get_str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(gguf.get_u64("llama.block_count").unwrap(), Some(5));
    assert_eq!(gguf.get_u64("llama.embedding_length").unwrap(), Some(64));
    assert_eq!(gguf.get_strings("tokenizer.ggml.tokens").unwrap().unwrap().len(), 512);
    assert_eq!(gguf.get_numbers("tokenizer.ggml.scores").unwrap().unwrap().len(), 512);
    let k = gguf.tensor("blk.0.attn_k.weight").unwrap();
    assert_eq!((k.shape.as_slice(), k.ggml_type, k.size_bytes), ([32, 64].as_slice(), GgmlType::F32, 32 * 64 * 4));
    assert_eq!(gguf.data(k).len(), 32 * 64 * 4);
    assert!(gguf.tensor("blk.5.attn_k.weight").is_none());
}

#[test]
fn a_vocabulary_of_150_thousand_strings_opens_in_tens_of_milliseconds() {
    let tokens = (0..150_000).map(|i| format!("token number {i}"));
    let bytes = file(&[("tokenizer.ggml.tokens", Value::strings(tokens))], &[], 0);
    let start = Instant::now();
    let gguf = open_bytes(bytes).unwrap();
    let strings = gguf.get_strings("tokenizer.ggml.tokens").unwrap().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(strings[149_999], b"token number 149999");
    // Measured 10 ms; ten times the bound of the name, because tests share the machine.
    assert!(seconds < 0.5, "{seconds} s");
}

#[test]
fn a_small_file_reads_as_it_was_written_and_back() {
    let bytes = small_file();
    let gguf = open_bytes(bytes.clone()).unwrap();
    assert_eq!((gguf.version, gguf.alignment), (3, 32));
    assert_eq!(gguf.get_strings("tokenizer.ggml.tokens").unwrap(), Some(vec![b"a".as_slice(), b"bc", b""]));
    assert_eq!(gguf.get_numbers("tokenizer.ggml.scores").unwrap(), Some(vec![0.5, -1.0]));
    assert_eq!(gguf.get_bool("flag").unwrap(), Some(true));
    assert_eq!(gguf.get_u64("missing").unwrap(), None);
    let sizes: Vec<usize> = gguf.tensors.iter().map(|t| t.size_bytes).collect();
    // The unknown type takes all up to its neighbour.
    assert_eq!(sizes, [54, 20, 64, 6]);
    assert_eq!(&gguf.data(gguf.tensor("d").unwrap())[..], [160, 161, 162, 163, 164, 165]);
    assert_eq!(copy_bytes(&gguf), bytes);
}

#[test]
fn padding_that_is_not_zero_and_bytes_behind_the_end_are_kept() {
    let mut bytes = small_file();
    bytes.extend_from_slice(b"trailing");
    let header_len = bytes.len() - 8 - 166;
    bytes[header_len - 1] = 9;
    assert_eq!(copy_bytes(&open_bytes(bytes.clone()).unwrap()), bytes);
}

#[test]
fn a_wrong_type_says_what_was_found_and_expected() {
    let gguf = open_bytes(small_file()).unwrap();
    let error = gguf.get_u64("tokenizer.ggml.tokens").unwrap_err().to_string();
    assert_eq!(
        error,
        "test.gguf: tokenizer.ggml.tokens is array of string (3 elements), expected an integer that is not negative"
    );
    let error = gguf.get_str("llama.block_count").unwrap_err().to_string();
    assert!(error.ends_with("llama.block_count is U32(2), expected a string (UTF-8)"), "{error}");
}

#[test]
fn no_gguf_and_other_versions_are_told_apart() {
    assert!(problem(vec![]).contains("is cut: the magic number needs 4 bytes"));
    assert!(problem(b"PK\x03\x04aaaa".to_vec()).contains("is no GGUF file"));
    let with_version = |v: u32| [b"GGUF".as_slice(), &v.to_le_bytes(), &[0; 16]].concat();
    assert!(problem(with_version(1)).contains("version 1"));
    assert!(problem(with_version(4)).contains("version 4"));
    assert!(problem(with_version(3u32.swap_bytes())).contains("big endian"));
    assert!(open_bytes(with_version(2)).is_ok());
}

#[test]
fn counts_and_lengths_that_no_file_holds_are_refused_before_anything_is_allocated() {
    let head =
        |tensors: u64, keys: u64| [b"GGUF".as_slice(), &3u32.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat();
    assert!(problem(head(1 << 60, 0)).contains("1152921504606846976 tensors"));
    assert!(problem(head(0, 1 << 60)).contains("1152921504606846976 metadata keys"));
    let mut key = head(0, 1);
    key.extend_from_slice(&u64::MAX.to_le_bytes());
    key.extend_from_slice(&[0; 16]);
    assert!(problem(key).contains("a string of 18446744073709551615 bytes"));
    let array = |element: u32, n: u64| {
        let mut bytes = head(0, 1);
        bytes.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, b'k', 9, 0, 0, 0]);
        bytes.extend_from_slice(&element.to_le_bytes());
        bytes.extend_from_slice(&n.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes
    };
    assert!(problem(array(6, 1 << 62)).contains("elements of k"));
    assert!(problem(array(13, 0)).contains("element type 13"));
    let deep = (0..1000).fold(Value::Array(0, vec![]), |inner, _| Value::Array(9, vec![inner]));
    assert!(problem(file(&[("deep", deep)], &[], 0)).contains("more than 8 deep"));
}

#[test]
fn tensors_that_overlap_or_lie_outside_are_named() {
    let f32s = |name, n, offset| info(name, &[n], GgmlType::F32, offset);
    let say = |tensors: &[TensorInfo], data| problem(file(&[], tensors, data));
    assert!(
        say(&[f32s("a", 16, 0), f32s("b", 8, 32)], 64)
            .contains("overlapping tensors: a (F32 [16]) takes 64 bytes at offset 0, b starts at 32")
    );
    assert!(say(&[f32s("b", 8, 32), f32s("a", 16, 0)], 64).contains("overlapping"));
    assert!(say(&[f32s("a", 17, 0)], 64).contains("is cut: tensor a (F32 [17]) needs 68 bytes at offset 0, 64 are left"));
    assert!(say(&[f32s("a", 1, 4)], 64).contains("no multiple of the alignment 32"));
    assert!(say(&[f32s("a", 1, 1 << 63)], 64).contains("behind the end"));
    assert!(say(&[f32s("a", 1, 0), f32s("a", 1, 32)], 64).contains("the tensor a twice"));
    assert!(say(&[info("a", &[1 << 40, 1 << 40], GgmlType::F32, 0)], 64).contains("overflows"));
    assert!(say(&[info("a", &[1 << 62], GgmlType::F32, 0)], 64).contains("as F32"));
    assert!(say(&[info("a", &[2, 33], GgmlType::Q8_0, 0)], 640).contains("as Q8_0, which takes multiples of 32"));
    assert!(say(&[info("a", &[1; 5], GgmlType::F32, 0)], 64).contains("5 dimensions"));
}

#[test]
fn alignment_is_read_and_checked() {
    let with = |value: Value| file(&[("general.alignment", value)], &[info("a", &[1], GgmlType::F32, 0)], 64);
    assert_eq!(open_bytes(with(Value::U32(8))).unwrap().alignment, 8);
    for wrong in [Value::U32(0), Value::U32(24), Value::U64(32), Value::string("32")] {
        assert!(problem(with(wrong)).contains("expected a power of two as u32"));
    }
    assert!(problem(with(Value::U32(1 << 31))).contains("is cut: its data would start at byte 2147483648"));
    assert!(problem(file(&[("k", Value::Bool(true)), ("k", Value::U8(1))], &[], 0)).contains("the metadata key k twice"));
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let bytes = small_file();
    for n in 0..bytes.len() {
        assert!(matches!(open_bytes(bytes[..n].to_vec()), Err(Error::File { .. })), "cut to {n} bytes");
    }
}

#[test]
fn the_writer_refuses_what_a_reader_would_refuse() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let source =
        |name: &str, n: usize, given: usize| TensorSource::new(name, [n], GgmlType::F32, move || Ok(Bytes::from(vec![0; given])));
    let say = |writer: &Writer, sources| writer.write(&path, sources).unwrap_err().to_string();
    let plain = Writer::new(vec![]);
    assert!(say(&plain, vec![source("a", 2, 7)]).contains("tensor a was to have 8 bytes, its source gave 7"));
    assert!(say(&plain, vec![source("a", 2, 8), source("a", 2, 8)]).contains("tensor a twice"));
    assert!(say(&plain, vec![TensorSource::new("q", [33], GgmlType::Q8_0, || Ok(Bytes::new()))]).contains("no known size"));
    assert!(
        say(&Writer::new(vec![("k".into(), Value::Array(4, vec![Value::U8(1)]))]), vec![]).contains("array of type 4 holds a u8")
    );
    assert!(say(&Writer { alignment: 64, ..Writer::new(vec![]) }, vec![]).contains("alignment 64"));
    assert!(say(&Writer { version: 1, ..Writer::new(vec![]) }, vec![]).contains("version 1"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "an error leaves nothing");
}

fn any_value() -> impl Strategy<Value = Value> {
    let scalar = |type_id: u32| match type_id {
        0 => any::<u8>().prop_map(Value::U8).boxed(),
        1 => any::<i8>().prop_map(Value::I8).boxed(),
        2 => any::<u16>().prop_map(Value::U16).boxed(),
        3 => any::<i16>().prop_map(Value::I16).boxed(),
        4 => any::<u32>().prop_map(Value::U32).boxed(),
        5 => any::<i32>().prop_map(Value::I32).boxed(),
        6 => any::<f32>().prop_map(Value::F32).boxed(),
        7 => any::<bool>().prop_map(Value::Bool).boxed(),
        8 => any::<Vec<u8>>().prop_map(Value::String).boxed(),
        10 => any::<u64>().prop_map(Value::U64).boxed(),
        11 => any::<i64>().prop_map(Value::I64).boxed(),
        _ => any::<f64>().prop_map(Value::F64).boxed(),
    };
    let type_id = prop_oneof![0u32..=8, 10u32..=12];
    let array = move |t: u32| prop::collection::vec(scalar(t), 0..5).prop_map(move |items| Value::Array(t, items));
    let flat = type_id.clone().prop_flat_map(array);
    let nested = prop::collection::vec(type_id.clone().prop_flat_map(array), 0..4).prop_map(|items| Value::Array(9, items));
    prop_oneof![4 => type_id.prop_flat_map(scalar), 2 => flat, 1 => nested]
}

prop_compose! {
    fn any_file()(
        values in prop::collection::vec(any_value(), 0..8),
        version in 2u32..=3,
        alignment in 0u32..=7,
        tensors in prop::collection::vec((0usize..4, 1usize..4, prop::sample::select(vec![0u32, 1, 2, 8, 14, 24, 30, 39])), 0..6),
        seed in any::<u8>(),
    ) -> Vec<u8> {
        let mut metadata: Vec<_> = values.into_iter().enumerate().map(|(i, value)| (format!("key.{i}"), value)).collect();
        metadata.push(("general.alignment".to_owned(), Value::U32(1 << alignment)));
        let writer = Writer { version, alignment: 1 << alignment, metadata, header_padding: None };
        let sources = tensors.into_iter().enumerate().map(|(i, (rows, blocks, t))| {
            let ggml_type = GgmlType(t);
            let (values, bytes) = ggml_type.block().unwrap();
            let data = (0..rows * blocks * bytes).map(|k| (k as u8).wrapping_mul(seed)).collect::<Vec<u8>>();
            TensorSource::new(format!("t.{i}"), [rows, blocks * values], ggml_type, move || Ok(Bytes::from(data)))
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("generated.gguf");
        writer.write(&path, sources.collect()).unwrap();
        std::fs::read(path).unwrap()
    }
}

proptest! {
    #[test]
    fn any_file_is_written_back_byte_for_byte(bytes in any_file()) {
        prop_assert_eq!(copy_bytes(&open_bytes(bytes.clone()).unwrap()), bytes);
    }

    /// Whatever is changed, the reader answers with a file or an error, and all of the file's tensors can be read.
    #[test]
    fn a_mutated_file_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(9)]), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = small_file();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            let n = cut.index(bytes.len());
            bytes.truncate(n);
        }
        if let Ok(gguf) = open_bytes(bytes) {
            for tensor in &gguf.tensors {
                prop_assert_eq!(gguf.data(tensor).len(), tensor.size_bytes);
            }
            copy_bytes(&gguf);
        }
    }
}
