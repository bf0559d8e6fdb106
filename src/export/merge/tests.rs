use std::path::PathBuf;

use super::*;
use crate::formats::gguf::{TensorSource, Value, Writer};

/// Numbers between -1 and 1 that look random and are the same everywhere.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(next).collect()
}

const ROWS: usize = 8;
const COLS: usize = 512;

/// A base with one matrix in many types, a narrow one, and a vector, in an order that is not sorted.
fn base(folder: &Path) -> Gguf {
    let path = folder.join("base.gguf");
    let matrix = |name: &str, cols: usize, ggml_type: GgmlType| {
        let bytes = retune_kernels::quantize(ggml_type.dtype().unwrap(), &noise(ROWS * cols, 7), cols).unwrap();
        TensorSource::new(name, [ROWS, cols], ggml_type, move || Ok(Bytes::from(bytes)))
    };
    let sources = vec![
        matrix("f32", COLS, GgmlType::F32),
        TensorSource::new("strange", [4], GgmlType(24), || Ok(Bytes::from_static(&[1, 2, 3, 4]))),
        matrix("q4_k", COLS, GgmlType::Q4_K),
        matrix("f16", COLS, GgmlType::F16),
        matrix("narrow", 172, GgmlType::F32),
        matrix("q8_0", COLS, GgmlType::Q8_0),
        matrix("q4_1", COLS, GgmlType::Q4_1),
        matrix("bf16", COLS, GgmlType::BF16),
    ];
    let metadata = vec![("general.architecture".into(), Value::string("llama")), ("general.file_type".into(), Value::U32(3))];
    Writer::new(metadata).write(&path, sources).unwrap();
    Gguf::open(&path).unwrap()
}

fn pair(tensor: &str, cols: usize) -> GgufPair {
    GgufPair { tensor: tensor.into(), rank: 3, a: noise(3 * cols, 1), b: noise(ROWS * 3, 2), magnitude: None }
}

fn values(gguf: &Gguf, name: &str) -> Vec<f32> {
    let info = gguf.tensor(name).unwrap();
    Weight::from_bytes(info.ggml_type.dtype().unwrap(), info.shape[0], info.shape[1], gguf.data(info)).unwrap().to_f32()
}

/// W + scale B A in f64, the plain way.
fn expected(gguf: &Gguf, pair: &GgufPair, scale: f64) -> Vec<f64> {
    let cols = pair.a.len() / pair.rank;
    let weight = values(gguf, &pair.tensor);
    let at = |i: usize| {
        let (row, col) = (i / cols, i % cols);
        (0..pair.rank).map(|r| f64::from(pair.b[row * pair.rank + r]) * f64::from(pair.a[r * cols + col])).sum::<f64>()
    };
    weight.iter().enumerate().map(|(i, w)| f64::from(*w) + scale * at(i)).collect()
}

fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
    let difference: f64 = found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).powi(2)).sum();
    (difference / expected.iter().map(|e| e * e).sum::<f64>()).sqrt()
}

#[test]
fn every_type_holds_the_sum_within_what_its_bits_allow_and_the_report_says_the_same_error() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    // Measured errors, times 1.5.
    for (name, bound) in [("f32", 1e-7), ("f16", 4e-4), ("bf16", 3e-3), ("q8_0", 0.009), ("q4_1", 0.09), ("q4_k", 0.12)] {
        let pair = pair(name, COLS);
        let out = folder.path().join("merged.gguf");
        let report = merge(&base, std::slice::from_ref(&pair), 0.5, MergeType::Keep, &out).unwrap();
        let merged = Gguf::open(&out).unwrap();
        let expected = expected(&base, &pair, 0.5);
        let error = relative_error(&values(&merged, name), &expected);
        assert!(error < bound, "{name}: {error}");
        assert_eq!(report.tensors.len(), 1);
        let told = &report.tensors[0];
        assert!((told.error - error).abs() <= 0.01 * error + 1e-7, "{name}: told {}, found {error}", told.error);
        assert_eq!(
            (told.before.as_str(), &told.before, &told.instead_of),
            (base.tensor(name).unwrap().ggml_type.name().as_str(), &told.after, &None)
        );
        let zeros = GgufPair { b: vec![0.0; ROWS * 3], ..pair.clone() };
        let delta: f64 = {
            let changed = self::expected(&base, &pair, 0.5);
            let before = self::expected(&base, &zeros, 0.5);
            let squares = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
            squares(&mut changed.iter().zip(&before).map(|(a, b)| a - b)) / squares(&mut before.iter().copied())
        };
        assert!((told.change / delta - 1.0).abs() < 1e-4, "{name}: told {}, found {delta}", told.change);
    }
}

#[test]
fn a_dora_pair_brings_each_row_to_its_magnitude() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let out = folder.path().join("merged.gguf");
    let magnitude: Vec<f32> = (0..ROWS).map(|row| 3.0 + row as f32).collect();
    let pair = GgufPair { magnitude: Some(magnitude.clone()), ..pair("f32", COLS) };
    let report = merge(&base, std::slice::from_ref(&pair), 0.5, MergeType::Keep, &out).unwrap();
    let mut right = expected(&base, &pair, 0.5);
    for (row, magnitude) in right.chunks_mut(COLS).zip(&magnitude) {
        let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter_mut().for_each(|v| *v *= f64::from(*magnitude) / length);
    }
    assert!(relative_error(&values(&Gguf::open(&out).unwrap(), "f32"), &right) < 2e-7);
    let before = values(&base, "f32");
    let squares = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let change = squares(&mut right.iter().zip(&before).map(|(a, b)| a - f64::from(*b)))
        / squares(&mut before.iter().map(|v| f64::from(*v)));
    assert!((report.tensors[0].change / change - 1.0).abs() < 1e-5, "told {}, found {change}", report.tensors[0].change);

    // B of zeros with a magnitude of its own is a change, too; a magnitude of another length is none that fits.
    let lengths = GgufPair { b: vec![0.0; ROWS * 3], ..pair.clone() };
    assert_eq!(merge(&base, &[lengths], 0.5, MergeType::Keep, &out).unwrap().tensors.len(), 1);
    let short = GgufPair { magnitude: Some(vec![1.0; ROWS - 1]), ..pair };
    let said = merge(&base, &[short], 0.5, MergeType::Keep, &out).unwrap_err().to_string();
    assert!(said.contains("f32 has 8 rows, DoRA's magnitude is for 7"), "{said}");
}

#[test]
fn what_no_pair_touches_is_the_same_to_the_byte_and_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let out = folder.path().join("merged.gguf");
    merge(&base, &[pair("f32", COLS), pair("q8_0", COLS)], 2.0, MergeType::To(DType::F16), &out).unwrap();
    let merged = Gguf::open(&out).unwrap();
    assert_eq!(merged.metadata, base.metadata);
    for (before, after) in base.tensors.iter().zip(&merged.tensors) {
        assert_eq!((&before.name, &before.shape), (&after.name, &after.shape));
        let touched = before.name == "f32" || before.name == "q8_0";
        assert_eq!(after.ggml_type, if touched { GgmlType::F16 } else { before.ggml_type });
        assert_eq!(base.data(before) == merged.data(after), !touched, "{}", before.name);
    }
}

#[test]
fn an_adapter_of_zeros_leaves_the_file_as_it_is_with_keep() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let out = folder.path().join("merged.gguf");
    let zeros = GgufPair { b: vec![0.0; ROWS * 3], ..pair("q4_k", COLS) };
    let report = merge(&base, &[zeros], 2.0, MergeType::Keep, &out).unwrap();
    assert_eq!(report.tensors, []);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&base.path).unwrap());
}

#[test]
fn a_base_can_be_merged_over_itself() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let pair = pair("f32", COLS);
    let expected = expected(&base, &pair, 1.0);
    merge(&base, &[pair], 1.0, MergeType::Keep, &base.path).unwrap();
    assert!(relative_error(&values(&Gguf::open(&base.path).unwrap(), "f32"), &expected) < 1e-7);
}

#[test]
fn rows_that_do_not_fit_the_type_fall_back_and_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let out = folder.path().join("merged.gguf");
    let report = merge(&base, &[pair("narrow", 172), pair("f32", COLS)], 1.0, "q4_k".parse().unwrap(), &out).unwrap();
    let types: Vec<_> = report.tensors.iter().map(|t| (t.tensor.as_str(), t.after.as_str(), t.instead_of.as_deref())).collect();
    assert_eq!(types, [("f32", "Q4_K", None), ("narrow", "F16", Some("Q4_K"))]);
    assert_eq!(report.notes()[0], "1 tensors are stored as F16: their rows do not fit the blocks of Q4_K");
}

#[test]
fn a_loss_that_drowns_the_adapter_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let out = folder.path().join("merged.gguf");
    let faint = |merge_type| merge(&base, &[pair("f32", COLS)], 0.01, merge_type, &out).unwrap().notes();
    let notes = faint("q4_0".parse().unwrap());
    assert!(notes[0].contains("a wider --type (q8_0, f16) keeps more of it"), "{notes:?}");
    assert_eq!(faint(MergeType::Keep), Vec::<String>::new());
}

#[test]
fn pairs_that_do_not_fit_are_told_all_at_once_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let out = folder.path().join("merged.gguf");
    let nan = GgufPair { a: vec![f32::NAN; 3 * COLS], ..pair("q8_0", COLS) };
    let say = |pairs: &[GgufPair], scale| merge(&base, pairs, scale, MergeType::Keep, &out).unwrap_err().to_string();
    let error = say(&[pair("output.weight", 4), pair("f32", 256), pair("strange", 4), nan], 1.0);
    for part in [
        "there is no tensor output.weight",
        "f32 is [8, 512], the adapter's pair (rank 3) is for [8, 256]",
        "strange has shape [4], expected a matrix",
        "the pair of q8_0 holds NaN or infinity",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(say(&[pair("f32", COLS), pair("f32", COLS)], 1.0).contains("two pairs for f32"));
    assert!(say(&[], f32::NAN).contains("the scale NaN"));
    let large = GgufPair { a: vec![1e30; 3 * COLS], b: vec![1e30; 3 * ROWS], ..pair("f32", COLS) };
    assert!(say(&[large], 1.0).contains("f32: the sum of base and adapter is inf in row 0"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the base is there");
}

/// A file of the peers (scripts/peers), or `None` after saying so.
fn peer(file: &str) -> Option<PathBuf> {
    if std::env::var_os("RETUNE_PEERS").is_some_and(|v| v == "off") {
        println!("skipped: RETUNE_PEERS is off");
        return None;
    }
    let env = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = || env("XDG_CACHE_HOME").unwrap_or_else(|| env("HOME").unwrap_or_default().join(".cache"));
    let path = env("RETUNE_PEERS_DIR").unwrap_or_else(|| cache().join("retune/peers")).join(file);
    if path.is_file() {
        return Some(path);
    }
    println!("skipped: {} is not there (run scripts/peers)", path.display());
    None
}

/// llama.cpp's perplexity of a text: with the adapter as a file, and of the merged file. Both must differ from the
/// base's by far more than from each other.
#[test]
fn llama_cpp_sees_the_same_model_in_the_adapter_and_in_the_merged_file() {
    let data = std::env::var_os("RETUNE_TEST_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    let model = data.join("models/stories260K/stories260K-f32.gguf");
    if !model.is_file() {
        return println!("skipped: no test data (set RETUNE_TEST_DATA)");
    }
    let Some(perplexity) = peer("llama/bin/llama-perplexity") else { return };
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    let story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. ";
    std::fs::write(&text, story.repeat(30)).unwrap();

    let base = Gguf::open(&model).unwrap();
    let pairs: Vec<GgufPair> = base
        .tensors
        .iter()
        .filter(|t| t.name.starts_with("blk.") && t.shape.len() == 2)
        .enumerate()
        .map(|(i, t)| {
            let small = |n: usize, seed| noise(n, seed).iter().map(|v| v * 0.05).collect();
            GgufPair {
                tensor: t.name.clone(),
                rank: 4,
                a: small(4 * t.shape[1], i as u64),
                b: small(t.shape[0] * 4, 100 + i as u64),
                magnitude: None,
            }
        })
        .collect();
    assert_eq!(pairs.len(), 5 * 7);
    let (adapter, merged) = (folder.path().join("adapter.gguf"), folder.path().join("merged.gguf"));
    crate::formats::gguf_adapter::write(&adapter, "llama", 28.0, &pairs).unwrap();
    merge(&base, &pairs, 28.0 / 4.0, MergeType::Keep, &merged).unwrap();

    let run = |arguments: &[&Path]| -> f64 {
        let output = std::process::Command::new(&perplexity)
            .env("LD_LIBRARY_PATH", perplexity.parent().unwrap())
            .args(["-c", "128", "-b", "128", "-t", "2", "-f"])
            .arg(&text)
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        // Over the first three of seven chunks ("[3]1.5101,"), one after another (-b): the lines at the end, the final
        // estimate among them, are lost now and then, because the process does not wait for its log.
        let third = said.split("[3]").nth(1).unwrap_or_else(|| panic!("{said}{}", String::from_utf8_lossy(&output.stderr)));
        third.split(',').next().unwrap().parse().unwrap()
    };
    let flag = Path::new;
    let plain = run(&[flag("-m"), &model]);
    let beside = run(&[flag("-m"), &model, flag("--lora"), &adapter]);
    let inside = run(&[flag("-m"), &merged]);
    println!("base {plain}, adapter beside {beside}, merged {inside}");
    assert!((beside / inside - 1.0).abs() < 1e-3, "{beside} and {inside}");
    assert!((plain / beside - 1.0).abs() > 0.05, "the adapter does nothing: {plain} and {beside}");
}

/// The real chat model: the seven matrices of one layer, kept in Q4_1.
#[test]
fn smollm2_merges_in_its_own_type() {
    let Some(model) = peer("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("merged.gguf");
    let base = Gguf::open(&model).unwrap();
    let pairs: Vec<GgufPair> = base
        .tensors
        .iter()
        .filter(|t| t.name.starts_with("blk.3.") && t.shape.len() == 2)
        .map(|t| GgufPair {
            tensor: t.name.clone(),
            rank: 2,
            a: noise(2 * t.shape[1], 5),
            b: noise(t.shape[0] * 2, 6),
            magnitude: None,
        })
        .collect();
    assert_eq!(pairs.len(), 7);
    let report = merge(&base, &pairs, 0.02, MergeType::Keep, &out).unwrap();
    assert_eq!(report.tensors.len(), 7);
    let merged = Gguf::open(&out).unwrap();
    assert_eq!(std::fs::metadata(&out).unwrap().len(), std::fs::metadata(&model).unwrap().len());
    for pair in &pairs {
        assert_eq!(merged.tensor(&pair.tensor).unwrap().ggml_type, base.tensor(&pair.tensor).unwrap().ggml_type);
        let error = relative_error(&values(&merged, &pair.tensor), &expected(&base, pair, 0.02));
        assert!(error < 0.1, "{}: {error}", pair.tensor);
    }
    let untouched = base.tensors.iter().filter(|t| !t.name.starts_with("blk.3.") || t.shape.len() != 2);
    assert!(untouched.clone().count() > 200);
    for info in untouched {
        assert!(base.data(info) == merged.data(merged.tensor(&info.name).unwrap()), "{}", info.name);
    }
}
