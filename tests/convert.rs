//! `retune convert` against llama.cpp's converter: the same keys, the same tensors, the same bytes. The goldens of
//! tests/parity/convert are what it wrote (scripts/parity/convert_goldens.py); where it is installed it is asked again, for
//! the vocabularies of real models.

mod common;
#[path = "support/ollama_peer.rs"]
mod ollama_peer;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{files, refused, retune_json, retune_ok, says};
use retune::base::Base;
use retune::formats::gguf::{GgmlType, Gguf, Value};
use retune::formats::safetensors::{Tensors, write_f32};
use retune::model::{Stream, Workspace};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

const TYPES: [&str; 4] = ["f32", "f16", "bf16", "q8_0"];

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A case of tests/parity/convert as a whole folder, with its expected.json; `None` where the weights are not there.
fn case(name: &str, to: &Path) -> Option<(PathBuf, Json)> {
    let golden = common::root().join("tests/parity/convert").join(name);
    let weights = match name {
        "stories260K" => common::data("the conversion of stories260K")?.join("models/stories260K"),
        "qwen2" => common::root().join("tests/parity/qwen2/base"),
        _ => common::root().join("tests/parity/llama/base"),
    };
    let folder = to.join(name);
    fs::create_dir_all(&folder).unwrap();
    for file in [&weights, &golden].into_iter().flat_map(|from| fs::read_dir(from).unwrap()) {
        let from = file.unwrap().path();
        let to = folder.join(from.file_name().unwrap());
        if from.file_name().unwrap() != "expected.json" {
            fs::write(to, fs::read(&from).unwrap()).unwrap();
        }
    }
    let expected = serde_json::from_slice(&fs::read(golden.join("expected.json")).unwrap()).unwrap();
    Some((folder, expected))
}

/// A value as gguf-py dumps it: its types, and itself.
fn dumped(value: &Value) -> Json {
    const NAMES: [&str; 13] = [
        "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "FLOAT32", "BOOL", "STRING", "ARRAY", "UINT64", "INT64", "FLOAT64",
    ];
    let plain = |value: &Value| match value {
        Value::Bool(b) => json!(b),
        Value::F32(x) => json!(f64::from(*x)),
        Value::String(bytes) => json!(String::from_utf8_lossy(bytes)),
        other => json!(other.as_i64()),
    };
    match value {
        Value::Array(element, items) => json!([["ARRAY", NAMES[*element as usize]], items.iter().map(plain).collect::<Vec<_>>()]),
        other => json!([[NAMES[other.type_id() as usize]], plain(other)]),
    }
}

fn digests(gguf: &Gguf) -> Json {
    let digest = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
    gguf.tensors.iter().map(|t| json!([t.name, t.ggml_type.name(), t.shape, digest(&gguf.data(t))])).collect()
}

fn convert(folder: &Path, out: &Path, kind: &str) -> Gguf {
    let said = retune_json(&["convert", "--json", "--base", text(folder), "--out", text(out), "--type", kind]);
    let gguf = Gguf::open(out).unwrap();
    assert_eq!(said["tensors"], gguf.tensors.len());
    gguf
}

/// The keys that are other than llama.cpp's converter has them, each for a reason.
fn expected_differences(case: &str) -> BTreeSet<&'static str> {
    let mut keys = BTreeSet::new();
    match case {
        // There: -1000 for all, so that llama.cpp merges from the left: "little" becomes four tokens where one was trained.
        "stories260K" => drop(keys.insert("tokenizer.ggml.scores")),
        // There: the folder's name with capitals.
        _ => drop(keys.insert("general.name")),
    }
    keys
}

#[test]
fn what_is_written_is_what_llama_cpps_converter_writes() {
    let scratch = tempfile::tempdir().unwrap();
    for name in ["llama", "qwen2", "sentencepiece", "stories260K"] {
        let Some((folder, expected)) = case(name, scratch.path()) else { continue };
        for kind in TYPES {
            let gguf = convert(&folder, &scratch.path().join(format!("{name}-{kind}.gguf")), kind);
            let expected_tensors = &expected["tensors"][kind];
            assert_eq!(&digests(&gguf), expected_tensors, "{name} as {kind}");
            let file_type = match kind {
                "f32" => 0,
                "f16" => 1,
                "bf16" => 32,
                _ => 7,
            };
            assert_eq!(gguf.get_u64("general.file_type").unwrap(), Some(file_type));
            let theirs = expected["keys"].as_object().unwrap();
            let ours: Vec<(&str, Json)> = gguf
                .metadata
                .iter()
                .filter(|(key, _)| key != "general.file_type")
                .map(|(k, v)| (k.as_str(), dumped(v)))
                .collect();
            let all: BTreeSet<&str> = theirs.keys().map(String::as_str).chain(ours.iter().map(|(k, _)| *k)).collect();
            let other = |key: &&str| ours.iter().find(|(k, _)| k == key).map(|(_, v)| v) != theirs.get(*key);
            let differing: BTreeSet<&str> = all.into_iter().filter(other).collect();
            assert_eq!(differing, expected_differences(name), "{name} as {kind}");
        }
    }
}

fn logits(base: &Base) -> Vec<f32> {
    let ids: Vec<u32> = (0..40).map(|i| (i * 29 + 7) % base.decoder.config.vocab_size as u32).collect();
    let all: Vec<usize> = (0..ids.len()).collect();
    base.decoder.logits(&Stream::packed(&[&ids]), &all, None, &mut Workspace::default(), None)
}

#[test]
fn a_folder_and_its_file_give_the_same_logits_and_the_same_ids() {
    let scratch = tempfile::tempdir().unwrap();
    for name in ["llama", "qwen2", "stories260K"] {
        let Some((folder, _)) = case(name, scratch.path()) else { continue };
        let own = Base::open(text(&folder)).unwrap();
        let expected = logits(&own);
        for (kind, tolerance) in [("f32", 1e-6), ("f16", 2e-3), ("bf16", 2e-2), ("q8_0", 3e-2), ("q4_k", 0.3)] {
            let out = scratch.path().join("m.gguf");
            convert(&folder, &out, kind);
            let served = Base::open(text(&out)).unwrap();
            let error = common::relative_error(&logits(&served), &expected);
            println!("{name} as {kind}: logits {error:.1e} apart");
            assert!(error < tolerance, "{name} as {kind}: {error}");
            let said = "the cat sat on the mat, 12 345 times\n";
            assert_eq!(served.tokenizer.encode(said, true).unwrap(), own.tokenizer.encode(said, true).unwrap(), "{name}");
            assert_eq!((served.tokenizer.bos, served.tokenizer.eos), (own.tokenizer.bos, own.tokenizer.eos), "{name}");
            assert_eq!(served.own_template.as_ref().and_then(|t| t.source()), own.own_template.as_ref().and_then(|t| t.source()));
        }
    }
}

#[test]
fn shards_give_the_tensors_of_the_whole_and_auto_is_the_folders_own_type() {
    let scratch = tempfile::tempdir().unwrap();
    let (whole, _) = case("llama", scratch.path()).unwrap();
    let sharded = scratch.path().join("sharded");
    fs::create_dir(&sharded).unwrap();
    for from in [common::root().join("tests/parity/llama_sharded"), common::root().join("tests/parity/convert/llama")] {
        for file in fs::read_dir(from).unwrap().map(|f| f.unwrap().path()) {
            fs::copy(&file, sharded.join(file.file_name().unwrap())).unwrap();
        }
    }
    let [one, many] = [&whole, &sharded].map(|folder| convert(folder, &scratch.path().join("m.gguf"), "f32"));
    let sorted = |gguf: &Gguf| {
        let mut all = digests(gguf).as_array().unwrap().clone();
        all.sort_by_key(|t| t[0].as_str().unwrap().to_owned());
        all
    };
    assert_eq!(sorted(&one), sorted(&many));
    // f32 becomes f16, as there.
    assert_eq!(
        convert(&whole, &scratch.path().join("m.gguf"), "auto").tensor("blk.0.attn_q.weight").unwrap().ggml_type,
        GgmlType::F16
    );
    // Below eight bits the head keeps six, and rows of 48 fall back.
    let coarse = convert(&whole, &scratch.path().join("m.gguf"), "q4_0");
    let stored = |name: &str| coarse.tensor(name).unwrap().ggml_type;
    assert_eq!(
        (stored("output.weight"), stored("blk.0.ffn_up.weight"), stored("blk.0.attn_norm.weight")),
        (GgmlType::F16, GgmlType::F16, GgmlType::F32)
    );
}

#[test]
fn a_kill_at_every_point_leaves_no_half_file() {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, _) = case("qwen2", scratch.path()).unwrap();
    let run = |out: &Path, variable: &str, value: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args(["convert", "--base", text(&folder), "--out", text(out)]).env(variable, value).output().unwrap()
    };
    let (whole, log) = (scratch.path().join("whole.gguf"), scratch.path().join("points"));
    assert!(run(&whole, "RETUNE_FAULT_LOG", text(&log)).status.success());
    let expected = fs::read(&whole).unwrap();
    let points: Vec<String> = fs::read_to_string(&log).unwrap().lines().map(str::to_owned).collect();
    assert!(points.len() >= 5, "{points:?}");
    let place = scratch.path().join("place");
    fs::create_dir(&place).unwrap();
    let out = place.join("m.gguf");
    for (n, point) in points.iter().enumerate() {
        let killed = run(&out, "RETUNE_FAULT_AT", &(n + 1).to_string());
        assert_eq!(killed.status.signal(), Some(9), "{point}");
        assert!(!out.exists() || fs::read(&out).unwrap() == expected, "{point}: a half file");
        assert!(run(&out, "RETUNE_FAULT_LOG", "/dev/null").status.success(), "{point}");
        assert!(fs::read(&out).unwrap() == expected, "{point}: another file after the kill");
        assert_eq!(files(&place), ["m.gguf"], "{point}: the kill left something");
        fs::remove_file(&out).unwrap();
    }
    println!("{} points: {points:?}", points.len());
}

#[test]
fn an_adapter_merges_into_a_folder_as_into_its_file_and_the_file_is_made_once() {
    let scratch = tempfile::tempdir().unwrap();
    for name in ["llama", "qwen2"] {
        let (folder, _) = case(name, scratch.path()).unwrap();
        let adapter = common::root().join("tests/parity").join(name).join("adapter");
        let file = scratch.path().join(format!("{name}.gguf"));
        convert(&folder, &file, "auto");
        let merge = |base: &Path, to: &str| {
            let out = scratch.path().join(name).join("out").join(to);
            fs::create_dir_all(out.parent().unwrap()).unwrap();
            let output = common::retune(&["merge", "--base", text(base), "--adapter", text(&adapter), "--out", text(&out)]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{said}");
            (out, said)
        };
        let (from_folder, said) = merge(&folder, "a.gguf");
        says(&said, &["is converted to", "kept for the next time"]);
        let (from_file, _) = merge(&file, "b.gguf");
        let [a, b] = [&from_folder, &from_file].map(|path| Gguf::open(path).unwrap());
        assert_eq!(digests(&a), digests(&b), "{name}");
        assert_ne!(digests(&a), digests(&Gguf::open(&file).unwrap()), "{name}: the adapter is in it");
        assert_eq!(merge(&folder, "c.gguf").1, "", "{name}: it was converted again");
        // Another folder, another file.
        let config = fs::read_to_string(folder.join("config.json")).unwrap();
        fs::write(
            folder.join("config.json"),
            config.replace("\"max_position_embeddings\": 128", "\"max_position_embeddings\": 64"),
        )
        .unwrap();
        let (changed, said) = merge(&folder, "d.gguf");
        says(&said, &["is converted to"]);
        assert_eq!(Gguf::open(&changed).unwrap().get_u64(&format!("{name}.context_length")).unwrap(), Some(64));
        // The merged file is the folder with the adapter on.
        let (own, served) = (Base::open(text(&folder)).unwrap(), Base::open(text(&from_folder)).unwrap());
        let on = retune::model::adapter_files::load(&adapter, &own.decoder.config).unwrap();
        let ids: Vec<u32> = (3..40).collect();
        let all: Vec<usize> = (0..ids.len()).collect();
        let of =
            |base: &Base, adapter| base.decoder.logits(&Stream::packed(&[&ids]), &all, adapter, &mut Workspace::default(), None);
        let error = common::relative_error(&of(&served, None), &of(&own, Some(&on)));
        let without = common::relative_error(&of(&own, None), &of(&own, Some(&on)));
        println!("{name}: merged and trained {error:.1e} apart, the adapter changes {without:.1e}");
        assert!(error < 2e-3 && without > 20.0 * error, "{name}: {error} {without}");
    }
}

#[test]
fn what_cannot_be_converted_is_told_and_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("m.gguf");
    let refuse = |base: &Path, kind: &str| {
        let said = refused(1, &["convert", "--base", text(base), "--out", text(&out), "--type", kind]);
        assert!(!files(scratch.path()).iter().any(|f| f.contains("m.gguf")), "{said}");
        said
    };
    let fresh = || {
        let _ = fs::remove_dir_all(scratch.path().join("llama"));
        case("llama", scratch.path()).unwrap().0
    };
    let changed = |file: &str, change: &dyn Fn(&mut Json)| {
        let folder = fresh();
        let mut json: Json = serde_json::from_slice(&fs::read(folder.join(file)).unwrap()).unwrap();
        change(&mut json);
        fs::write(folder.join(file), json.to_string()).unwrap();
        folder
    };
    says(&refuse(&changed("config.json", &|c| c["model_type"] = "mamba".into()), "auto"), &["'mamba' is not supported", "llama"]);
    says(&refuse(&changed("config.json", &|c| c["hidden_size"] = 64.into()), "auto"), &["[48]", "expected [64]"]);
    says(&refuse(&changed("config.json", &|c| c["num_hidden_layers"] = 4.into()), "auto"), &["model.layers.3."]);
    says(&refuse(&changed("config.json", &|c| c["num_hidden_layers"] = 2.into()), "auto"), &["no place for", "model.layers.2."]);
    says(
        &refuse(
            &changed("tokenizer.json", &|t| t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "a+".into()),
            "auto",
        ),
        &["cuts texts into words", "qwen2"],
    );
    let of_words = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}});
    says(&refuse(&changed("tokenizer.json", &|t| *t = of_words.clone()), "auto"), &["neither byte-level BPE nor", "GGUF file"]);
    // llama.cpp has no such step.
    says(
        &refuse(&changed("tokenizer.json", &|t| t["normalizer"] = json!({"type": "Lowercase"})), "auto"),
        &["other tokens", "here and", "there"],
    );
    says(&refuse(&changed("config.json", &|c| c["vocab_size"] = 97.into()).join("gone"), "auto"), &["there is no such folder"]);
    let folder = fresh();
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    says(&refuse(&folder, "auto"), &["no tokenizer"]);
    fs::write(folder.join("tokenizer.model"), b"IQ== 0\nIg== 1\n").unwrap();
    says(&refuse(&folder, "auto"), &["tokenizer.model", "SentencePiece"]);

    let poisoned = |name: &str, value: f32| {
        let folder = fresh();
        let tensors = Tensors::open_folder(&folder).unwrap();
        let all: Vec<(String, Vec<usize>, Vec<f32>)> = tensors
            .names()
            .iter()
            .map(|n| {
                let shape = tensors.get(n).unwrap().shape.clone();
                let mut values = tensors.f32(n, &shape).unwrap();
                let at = values.len() - 2;
                if *n == name {
                    values[at] = value;
                }
                ((*n).to_owned(), shape, values)
            })
            .collect();
        let borrowed: Vec<_> = all.iter().map(|(n, s, v)| (n.clone(), s.clone(), v.as_slice())).collect();
        write_f32(&folder.join("model.safetensors"), &borrowed, &[]).unwrap();
        folder
    };
    let up = "model.layers.1.mlp.up_proj.weight";
    says(&refuse(&poisoned(up, f32::NAN), "f32"), &[up, "NaN", "row 79", "another version"]);
    says(&refuse(&poisoned(up, 1e6), "f16"), &[up, "1000000", "f16", "--type"]);
    says(&refuse(&poisoned("model.norm.weight", f32::INFINITY), "f16"), &["model.norm.weight", "inf"]);

    let demo = common::root().join("models/demo.gguf");
    says(&refused(2, &["convert", "--base", text(&demo), "--out", text(&out)]), &["is a file"]);
    says(&refused(2, &["convert", "--base", text(&fresh()), "--out", text(&out), "--type", "keep"]), &["--type keep", "auto"]);
    assert!(!out.exists());
}

/// Runs scripts/parity/convert_goldens.py with the Python of the peers.
fn reference(test: &str, arguments: &[&str]) -> Option<()> {
    common::peer(test, "llama/src/convert_hf_to_gguf.py")?;
    let python = common::peer(test, "venv/bin/python")?;
    let script = common::root().join("scripts/parity/convert_goldens.py");
    let output = Command::new(python).arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(())
}

#[test]
fn the_vocabularies_of_real_models_are_written_as_llama_cpps_converter_writes_them() {
    const TEST: &str = "the comparison with convert_hf_to_gguf.py";
    let scratch = tempfile::tempdir().unwrap();
    for kind in ["qwen2", "llama3", "smollm2"] {
        if kind == "smollm2" && common::smollm2(TEST).is_none() {
            continue;
        }
        let (folder, theirs) = (scratch.path().join(kind), scratch.path().join("theirs.gguf"));
        let Some(()) = reference(TEST, &["graft", kind, text(&folder)]) else { return };
        reference(TEST, &["convert", text(&folder), text(&theirs), "auto"]).unwrap();
        let (ours, theirs) = (convert(&folder, &scratch.path().join("ours.gguf"), "auto"), Gguf::open(&theirs).unwrap());
        assert_eq!(digests(&ours), digests(&theirs), "{kind}");
        let keys: BTreeSet<&str> = ours.metadata.iter().chain(&theirs.metadata).map(|(key, _)| key.as_str()).collect();
        let differing: Vec<&str> = keys.into_iter().filter(|key| ours.get(key) != theirs.get(key)).collect();
        assert_eq!(differing, ["general.name"], "{kind}");
        println!("{kind}: {} tensors and {} keys are the same", ours.tensors.len(), ours.metadata.len() - 1);

        // llama.cpp cuts texts as the folder's own tokenizer does.
        let tokenize = common::peer(TEST, "llama/bin/llama-tokenize").unwrap();
        for said in
            ["Hello, I'm here: 12345 days!\n\n  indented\tText", "\u{1f999} наще 工作 'LL", "<|im_start|>user\nhi<|im_end|>"]
        {
            let file = scratch.path().join("said");
            fs::write(&file, said).unwrap();
            let output = Command::new(&tokenize)
                .args(["-m", text(&ours.path), "-f", text(&file), "--ids", "--log-disable"])
                .output()
                .unwrap();
            let ids: Vec<u32> = serde_json::from_slice(&output.stdout).unwrap();
            let own = Base::open(text(&folder)).unwrap().tokenizer.encode(said, true).unwrap();
            assert_eq!(ids, own, "{kind}: {said:?}");
        }
    }
}

#[test]
fn llama_cpp_reads_stories260k_as_it_reads_the_file_that_others_made() {
    const TEST: &str = "the perplexity of a converted folder";
    let scratch = tempfile::tempdir().unwrap();
    let Some(perplexity) = common::peer(TEST, "llama/bin/llama-perplexity") else { return };
    let (Some((folder, _)), Some(data)) = (case("stories260K", scratch.path()), common::data(TEST)) else { return };
    let story = scratch.path().join("story.txt");
    let row: Json =
        serde_json::from_str(fs::read_to_string(data.join("sft/children_stories.jsonl")).unwrap().lines().next().unwrap())
            .unwrap();
    fs::write(&story, row.to_string()).unwrap();
    let ours = scratch.path().join("ours.gguf");
    convert(&folder, &ours, "f32");
    // It ends well, but now and then before its log is written out (seen six times in sixteen on a busy machine).
    let of = |model: &Path| {
        for _ in 0..20 {
            let output = Command::new(&perplexity)
                .args(["-m", text(model), "-f", text(&story), "-c", "128", "-b", "128", "-t", "2"])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            let last = said.lines().find_map(|line| line.split_once("Final estimate: PPL ="));
            if let Some(number) = last.and_then(|(_, rest)| rest.split_whitespace().next()) {
                return number.parse::<f64>().unwrap();
            }
        }
        panic!("llama-perplexity never tells its result");
    };
    let (ours, theirs) = (of(&ours), of(&data.join("models/stories260K/stories260K-f32.gguf")));
    println!("perplexity {ours} of ours, {theirs} of the other");
    assert!((ours / theirs - 1.0).abs() < 1e-4, "{ours} {theirs}");
}

/// What was trained on Q8_0, which llama.cpp multiplies with activations in 8 bits, is served beside a base in f16, too.
#[test]
fn an_adapter_is_served_on_its_base_in_the_type_that_is_asked_for() {
    let scratch = tempfile::tempdir().unwrap();
    let Some((folder, _)) = case("stories260K", scratch.path()) else { return };
    let Some(peer) = ollama_peer::Peer::start(ollama_peer::Kind::Adapter) else { return };
    let (rows, out, base) =
        (scratch.path().join("rows.jsonl"), scratch.path().join("run"), scratch.path().join("stories-q8_0.gguf"));
    // Longer than what deploy compares: where 8 bits say the end, stories260K has 200 tokens that are as probable.
    let story = "Lily had a big red ball and a cat. The cat saw the ball roll down the hill and ran after it all day.";
    fs::write(&rows, format!("{}\n", json!({"instruction": "Tell me of Lily.", "output": story})).repeat(8)).unwrap();
    let quantized = convert(&folder, &base, "q8_0");
    let train = ["train", "--template", "alpaca", "--rank", "4", "--max-steps", "20", "--batch-size", "4", "--grad-accum", "1"];
    let more = ["--learning-rate", "1e-2", "--base", text(&base), "--data", text(&rows), "--out", text(&out)];
    retune_ok(&[&train[..], &more].concat());
    let root = scratch.path().join("root");
    let deploy = |role: &str, more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_retune"))
            .args(["deploy", "--json", "--adapter", text(&out), "--root", text(&root), "--mode", "adapter", "--role", role])
            .args(more)
            .env("OLLAMA_HOST", &peer.host)
            .env("OLLAMA_MODELS", peer.models())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{role}: {said}");
        let told: Json = serde_json::from_slice(&output.stdout).unwrap();
        println!("{role}: log-probabilities {} apart, the adapter {}", told["max_logprob_difference"], told["adapter_effect"]);
        assert_eq!((&told["mode"], &told["same"]), (&json!("adapter"), &json!(true)), "{role}: {told}");
        (told["max_logprob_difference"].as_f64().unwrap(), said)
    };
    let (as_it_is, said) = deploy("kept", &[]);
    assert!(!said.contains("is stored in") && !root.join(".agent/bases").exists(), "{said}");
    let (in_f16, said) = deploy("f16", &["--type", "f16"]);
    assert!(said.contains("the base is stored in f16"), "{said}");
    assert!(in_f16 < 0.01, "{in_f16} in f16, {as_it_is} as it is");

    // Made once; the matrices of the blocks are in f16, all else as it was.
    let (again, said) = deploy("again", &["--type", "f16"]);
    assert!(again == in_f16 && !said.contains("is stored in"), "{again}: {said}");
    let [kept] = files(&root.join(".agent/bases")).try_into().unwrap();
    let modelfile = |role: &str| fs::read_to_string(root.join(".agent").join(format!("Modelfile.{role}"))).unwrap();
    says(&modelfile("f16"), &[&format!("/{kept}\n"), "ADAPTER "]);
    says(&modelfile("kept"), &["/stories-q8_0.gguf\n", "ADAPTER "]);
    let kept = Gguf::open(&root.join(".agent/bases").join(kept)).unwrap();
    for (before, after) in quantized.tensors.iter().zip(&kept.tensors) {
        assert_eq!((&before.name, &before.shape), (&after.name, &after.shape));
        if before.name.starts_with("blk.") && before.shape.len() == 2 {
            assert_eq!(after.ggml_type, GgmlType::F16, "{}", after.name);
        } else {
            assert_eq!((before.ggml_type, quantized.data(before)), (after.ggml_type, kept.data(after)), "{}", after.name);
        }
    }
}

/// From a folder to a model that Ollama serves; `deploy` itself compares prompts and log-probabilities.
#[test]
fn an_adapter_of_a_folder_is_deployed_to_both_ollamas() {
    let scratch = tempfile::tempdir().unwrap();
    let Some((folder, _)) = case("stories260K", scratch.path()) else { return };
    let (rows, out) = (scratch.path().join("rows.jsonl"), scratch.path().join("run"));
    fs::write(&rows, "{\"instruction\":\"Tell me of Lily.\",\"output\":\"Lily had a big red ball and a cat.\"}\n".repeat(8))
        .unwrap();
    let mut trained = false;
    for kind in ollama_peer::BOTH {
        let Some(peer) = ollama_peer::Peer::start(kind) else { continue };
        if !std::mem::replace(&mut trained, true) {
            retune_ok(&[
                "train",
                "--base",
                text(&folder),
                "--template",
                "alpaca",
                "--data",
                text(&rows),
                "--out",
                text(&out),
                "--rank",
                "4",
                "--max-steps",
                "20",
                "--batch-size",
                "4",
                "--grad-accum",
                "1",
                "--learning-rate",
                "1e-2",
            ]);
        }
        for mode in ["auto", "merged"] {
            let root = scratch.path().join(format!("{kind:?}"));
            let output = Command::new(env!("CARGO_BIN_EXE_retune"))
                .args(["deploy", "--json", "--adapter", text(&out), "--root", text(&root), "--mode", mode, "--role", mode])
                .env("OLLAMA_HOST", &peer.host)
                .env("OLLAMA_MODELS", peer.models())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{kind:?} {mode}: {said}");
            let told: Json = serde_json::from_slice(&output.stdout).unwrap();
            println!(
                "{kind:?} {mode}: served as {}, log-probabilities {} apart, the adapter {}",
                told["mode"], told["max_logprob_difference"], told["adapter_effect"]
            );
            assert_eq!((&told["same"], &told["promoted"]), (&json!(true), &json!(true)), "{kind:?} {mode}: {told}");
            assert!(told["max_logprob_difference"].as_f64().unwrap() < 0.02, "{told}");
            assert!(told["adapter_effect"].as_f64().unwrap() > 1.0, "{told}");
            // Converted once.
            assert_eq!(said.contains("is converted to"), mode == "auto", "{kind:?} {mode}: {said}");
            assert_eq!(files(&root.join(".agent/bases")).len(), 1);
        }
    }
}
