use proptest::prelude::*;

use super::*;

/// A file of this header and so many bytes of data.
fn file(header: &str, data_len: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..data_len).map(|i| i as u8));
    bytes
}

fn complaint(bytes: &[u8]) -> String {
    header::parse(bytes).expect_err("an error")
}

fn write_bytes(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn what_is_written_is_read_back_by_us_and_by_the_reference_crate() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let (x, y) = ([1.5f32, -2.0, 3.25, 0.0, 5.0, -0.0], [7.0f32]);
    let tensors = vec![
        ("x".to_owned(), vec![2, 3], &x[..]),
        ("a.scalar".to_owned(), vec![], &y[..]),
        ("empty".to_owned(), vec![0, 4], &[][..]),
    ];
    write_f32(&path, &tensors, &[("format", "pt".to_owned())]).unwrap();
    let read = Tensors::open(&path).unwrap();
    assert_eq!(read.f32("x", &[2, 3]).unwrap(), x);
    assert_eq!(read.f32("a.scalar", &[]).unwrap(), y);
    assert!(read.f32("empty", &[0, 4]).unwrap().is_empty());
    assert_eq!(read.metadata("format"), Some("pt"));
    assert_eq!(read.names()[0], "x");

    let bytes = std::fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = theirs.tensor("x").unwrap();
    assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, [2, 3].as_slice()));
    assert_eq!(tensor.data(), bytemuck::cast_slice::<f32, u8>(&x));
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(header_len % 8, 0);
}

#[test]
fn all_float_types_give_the_same_values() {
    let values = [0.5f32, -3.0, 65504.0, 0.0];
    let bytes_of = |dtype: &str| -> Vec<u8> {
        values
            .iter()
            .flat_map(|v| match dtype {
                "F16" => half::f16::from_f32(*v).to_le_bytes().to_vec(),
                "BF16" => half::bf16::from_f32(*v).to_le_bytes().to_vec(),
                "F64" => f64::from(*v).to_le_bytes().to_vec(),
                _ => v.to_le_bytes().to_vec(),
            })
            .collect()
    };
    let folder = tempfile::tempdir().unwrap();
    for dtype in ["F32", "F16", "BF16", "F64"] {
        let data = bytes_of(dtype);
        let mut bytes = file(&format!(r#"{{"w":{{"dtype":"{dtype}","shape":[4],"data_offsets":[0,{}]}}}}"#, data.len()), 0);
        bytes.extend(data);
        let read = Tensors::open(&write_bytes(folder.path(), dtype, &bytes)).unwrap().f32("w", &[4]).unwrap();
        // bf16 has 8 bits of mantissa: 65504 becomes 65536.
        let expected = if dtype == "BF16" { [0.5, -3.0, 65536.0, 0.0] } else { values };
        assert_eq!(read, expected, "{dtype}");
    }
}

#[test]
fn hostile_headers_are_told() {
    assert!(complaint(b"").contains("it has 0 bytes"));
    assert!(complaint(&(1u64 << 60).to_le_bytes()).contains("header has 1152921504606846976 bytes, at most 0"));
    assert!(complaint(&file("[]", 0)).contains("no JSON object"));
    assert!(
        complaint(&file("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4))
            .contains("describes tensor a wrongly")
    );
    let one = |dtype: &str, shape: &str, at: &str, data| {
        complaint(&file(&format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{at}}}}}"#), data))
    };
    assert_eq!(one("F33", "[1]", "[0,4]", 4), "tensor a has the unknown type \"F33\"");
    assert_eq!(one("F32", "[2]", "[0,4]", 4), "tensor a (F32 [2]) needs 8 bytes, its place 0..4 has 4");
    assert_eq!(one("F32", "[2]", "[0,8]", 4), "tensor a lies at 0..8, outside of the 4 bytes of data: the file is cut");
    assert_eq!(one("F32", "[1]", "[8,4]", 16), "tensor a lies at 8..4, outside of the 16 bytes of data: the file is cut");
    assert_eq!(one("F32", "[1]", "[4,8]", 8), "tensor a leaves a hole before it: it starts at 4, expected 0");
    assert_eq!(one("F32", "[1]", "[0,4]", 5), "has 5 bytes of data, its tensors take 4");
    assert!(one("F32", "[4294967296,4294967296,4]", "[0,4]", 4).contains("overflows"));
    let two = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert_eq!(complaint(&file(two, 8)), "tensor b overlaps the tensor before it: it starts at 4, expected 8");
}

#[test]
fn a_wrong_request_names_the_tensor_and_both_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    write_f32(&path, &[("w".to_owned(), vec![2], &[1.0, f32::NAN])], &[]).unwrap();
    let read = Tensors::open(&path).unwrap();
    let say = |name: &str, shape: &[usize]| {
        read.f32(name, shape).unwrap_err().to_string().split_once("safetensors: ").unwrap().1.to_owned()
    };
    assert_eq!(say("v", &[2]), "has no tensor v; it holds 1 tensors: w");
    assert_eq!(say("w", &[1, 2]), "tensor w has shape [2], expected [1, 2]");
    assert_eq!(say("w", &[2]), "tensor w holds NaN at position 1");
    let bytes = file(r#"{"i":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#, 4);
    let ints = Tensors::open(&write_bytes(folder.path(), "i.safetensors", &bytes)).unwrap();
    assert!(ints.f32("i", &[1]).unwrap_err().to_string().ends_with("tensor i is I32, expected F32, F16, BF16 or F64"));
}

#[test]
fn the_writer_refuses_values_that_do_not_fill_the_shape_and_names_given_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let tensor = |n: usize| ("w".to_owned(), vec![n], &[1.0f32][..]);
    assert!(write_f32(&path, &[tensor(2)], &[]).unwrap_err().to_string().contains("with 1 values"));
    assert!(write_f32(&path, &[tensor(1), tensor(1)], &[]).unwrap_err().to_string().contains("twice"));
    assert!(!path.exists());
}

#[test]
fn shards_are_one_model_and_everything_missing_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let shard = |name: &str, tensors: &[&str]| {
        let tensors: Vec<_> = tensors.iter().map(|t| ((*t).to_owned(), vec![1], &[1.0f32][..])).collect();
        write_f32(&folder.path().join(name), &tensors, &[]).unwrap();
    };
    let index = |map: Value| write_bytes(folder.path(), INDEX, json!({"weight_map": map}).to_string().as_bytes());
    shard("m-1.safetensors", &["a", "b"]);
    shard("m-2.safetensors", &["c", "stray"]);
    index(json!({"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}));
    let read = Tensors::open_folder(folder.path()).unwrap();
    assert_eq!(read.names(), ["a", "b", "c"]);

    index(json!({"a": "m-1.safetensors", "x": "m-1.safetensors", "y": "m-2.safetensors", "z": "m-3.safetensors"}));
    let error = Tensors::open_folder(folder.path()).err().unwrap().to_string();
    for part in ["m-1.safetensors lacks x", "m-2.safetensors lacks y", "the shard m-3.safetensors is missing (1 tensors: z)"] {
        assert!(error.contains(part), "{error}");
    }
    index(json!({"a": "../m-1.safetensors"}));
    assert!(Tensors::open_folder(folder.path()).err().unwrap().to_string().contains("outside of the folder"));
    index(json!({"a": 3}));
    assert!(Tensors::open_folder(folder.path()).err().unwrap().to_string().contains("maps a to 3"));
}

#[test]
fn a_folder_without_weights_says_what_it_has_instead() {
    let folder = tempfile::tempdir().unwrap();
    let say = || Tensors::open_folder(folder.path()).err().unwrap().to_string();
    assert!(say().contains("holds neither model.safetensors nor"));
    write_bytes(folder.path(), "pytorch_model.bin", b"x");
    assert!(say().contains("only pytorch_model.bin"));
    assert!(Tensors::open_folder(Path::new("/no/such")).err().unwrap().to_string().contains("is no folder"));
}

#[test]
fn stories260k_has_its_embedding() {
    let folder = std::env::var_os("RETUNE_TEST_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    if !folder.is_dir() {
        return println!("skipped: no test data (set RETUNE_TEST_DATA)");
    }
    let read = Tensors::open_folder(&folder.join("models/stories260K")).unwrap();
    let embedding = read.f32("model.embed_tokens.weight", &[512, 64]).unwrap();
    // The GGUF beside it holds the same numbers.
    let gguf = crate::formats::gguf::Gguf::open(&folder.join("models/stories260K/stories260K-f32.gguf")).unwrap();
    let data = gguf.data(gguf.tensor("token_embd.weight").unwrap());
    let expected: Vec<f32> = data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(embedding, expected);
}

proptest! {
    #[test]
    fn a_mutated_file_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), (b'0'..=b'9')]), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = file(r#"{"__metadata__":{"k":"v"},"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]}}"#, 16);
        prop_assert!(header::parse(&bytes).is_ok());
        prop_assert!(header::parse(&bytes[..cut.index(bytes.len())]).is_err());
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(header) = header::parse(&bytes) {
            for (_, entry) in header.entries {
                prop_assert!(entry.range.end <= bytes.len());
            }
        }
    }
}
