use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;

fn config() -> PeftConfig {
    PeftConfig {
        rank: 2,
        alpha: 5.0,
        rslora: true,
        dora: false,
        dropout: 0.05,
        target_modules: vec!["q_proj".into(), "v_proj".into()],
        base_model: Some("some/base".into()),
    }
}

fn pair(module: &str, start: f32) -> PeftPair {
    let values = |n: usize, start: f32| (0..n).map(|i| start + i as f32).collect::<Vec<_>>();
    let (a, b) = (values(6, start), values(8, start + 100.0));
    PeftPair { module: module.into(), rank: 2, in_features: 3, out_features: 4, a, b, magnitude: None }
}

fn dora() -> (PeftConfig, Vec<PeftPair>) {
    let config = PeftConfig { dora: true, ..config() };
    (config, pairs().into_iter().map(|p| PeftPair { magnitude: Some(vec![1.0, 2.5, 0.5, 3.0]), ..p }).collect())
}

fn pairs() -> Vec<PeftPair> {
    vec![pair("model.layers.0.self_attn.q_proj", 0.0), pair("model.layers.10.self_attn.v_proj", 50.0)]
}

/// A folder as we write it, with keys of its configuration replaced.
fn folder_with(changes: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &config(), &pairs()).unwrap();
    let path = folder.path().join(CONFIG);
    let mut fields: serde_json::Map<String, Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value) in changes {
        fields.insert((*key).to_owned(), value.clone());
    }
    std::fs::write(&path, Value::Object(fields).to_string()).unwrap();
    folder
}

/// A folder whose tensors (all `[2, 3]` for A, `[4, 2]` for B, as their names say) have other names.
fn folder_of(names: &[(&str, [usize; 2])]) -> tempfile::TempDir {
    let folder = folder_with(&[]);
    let zeros = [0.0f32; 64];
    let tensors: Vec<_> =
        names.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec(), &zeros[..shape[0] * shape[1]])).collect();
    safetensors::write_f32(&folder.path().join(TENSORS), &tensors, &[]).unwrap();
    folder
}

fn complaint(folder: &tempfile::TempDir) -> String {
    read(folder.path()).unwrap_err().to_string()
}

#[test]
fn a_folder_reads_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("new/folder");
    write(&inner, &config(), &pairs()).unwrap();
    assert_eq!(read(&inner).unwrap(), (config(), pairs()));
}

#[test]
fn the_configuration_is_written_as_peft_writes_its_own() {
    let fields: Value = serde_json::from_str(&config::render(&config())).unwrap();
    assert_eq!(fields["r"], json!(2));
    assert_eq!(fields["lora_alpha"], json!(5));
    assert_eq!(fields["lora_dropout"], json!(0.05));
    assert_eq!(fields["use_rslora"], json!(true));
    assert_eq!(fields["peft_type"], json!("LORA"));
    assert_eq!(fields["task_type"], json!("CAUSAL_LM"));
    assert_eq!(fields["inference_mode"], json!(true));
    assert_eq!(fields["target_modules"], json!(["q_proj", "v_proj"]));
    let keys: Vec<_> = fields.as_object().unwrap().keys().cloned().collect();
    assert!(keys.is_sorted());
    let half = PeftConfig { alpha: 0.5, ..config() };
    assert!(config::render(&half).contains("\"lora_alpha\": 0.5,\n  \"lora_dropout\": 0.05,"));
}

#[test]
fn names_of_all_ages_are_understood() {
    for (a, b) in [
        (
            "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
            "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight",
        ),
        (
            "base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight",
            "base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight",
        ),
        ("model.layers.0.mlp.up_proj.lora_A.weight", "model.layers.0.mlp.up_proj.lora_B.weight"),
    ] {
        let (_, pairs) = read(folder_of(&[(b, [4, 2]), (a, [2, 3])]).path()).unwrap();
        assert_eq!(pairs.len(), 1);
        assert_eq!(pairs[0].module, "model.layers.0.mlp.up_proj");
        assert_eq!((pairs[0].rank, pairs[0].in_features, pairs[0].out_features), (2, 3, 4));
    }
}

#[test]
fn everything_wrong_with_the_tensors_is_told_at_once() {
    let error = complaint(&folder_of(&[
        ("base_model.model.x.lora_A.weight", [2, 3]),
        ("base_model.model.y.lora_B.weight", [4, 2]),
        ("base_model.model.z.lora_A.weight", [3, 3]),
        ("base_model.model.z.lora_B.weight", [4, 3]),
        ("base_model.model.lm_head.weight", [4, 4]),
        ("base_model.model.e.lora_embedding_A", [2, 3]),
        ("base_model.model.m.lora_magnitude_vector", [1, 4]),
    ]));
    for part in [
        "x has no lora_B",
        "y has no lora_A",
        "z has lora_A [3, 3] and lora_B [4, 3], expected [2, in] and [out, 2]",
        "base_model.model.lm_head.weight [4, 4] is neither",
        "e.lora_embedding_A [2, 3] is neither",
        "m.lora_magnitude_vector [1, 4] is neither",
    ] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    assert!(complaint(&folder_of(&[])).contains("holds no tensors"));
    let twice = [("m.lora_A.weight", [2, 3]), ("base_model.model.m.lora_A.weight", [2, 3]), ("m.lora_B.weight", [4, 2])];
    assert!(complaint(&folder_of(&twice)).contains("the same part of m"));
}

#[test]
fn settings_that_change_the_result_are_named() {
    for (key, value, words) in [
        ("peft_type", json!("IA3"), "has the peft_type IA3, expected LORA"),
        ("bias", json!("all"), "has bias \"all\", expected \"none\""),
        ("rank_pattern", json!({"q_proj": 4}), "sets rank_pattern to {\"q_proj\":4}"),
        ("modules_to_save", json!(["lm_head"]), "sets modules_to_save"),
        ("fan_in_fan_out", json!(true), "sets fan_in_fan_out"),
        ("init_lora_weights", json!("pissa_niter_16"), "init_lora_weights \"pissa_niter_16\", which changes the base"),
        ("r", json!(0), "has r 0"),
        ("r", json!("x"), "has r \"x\", expected a number"),
        ("use_rslora", json!(1), "has use_rslora 1, expected true or false"),
        ("target_modules", json!([1]), "expected names"),
    ] {
        let error = complaint(&folder_with(&[(key, value)]));
        assert!(error.contains(words), "{error}");
    }
    // A key that is there and says nothing, as PEFT writes them.
    let harmless =
        folder_with(&[("modules_to_save", json!([])), ("loftq_config", json!({})), ("megatron_core", json!("megatron.core"))]);
    assert!(read(harmless.path()).is_ok());
}

#[test]
fn a_pattern_of_targets_becomes_the_names_of_the_pairs() {
    let (config, _) = read(folder_with(&[("target_modules", json!("all-linear"))]).path()).unwrap();
    assert_eq!(config.target_modules, ["q_proj", "v_proj"]);
}

#[test]
fn missing_files_and_nan_are_told() {
    let folder = folder_with(&[]);
    std::fs::remove_file(folder.path().join(TENSORS)).unwrap();
    assert!(complaint(&folder).contains("cannot open"));
    std::fs::write(folder.path().join("adapter_model.bin"), "x").unwrap();
    assert!(complaint(&folder).contains("holds adapter_model.bin"));
    assert!(
        read(Path::new("/no/such/adapter"))
            .unwrap_err()
            .to_string()
            .starts_with("cannot read /no/such/adapter/adapter_config.json")
    );
    let folder = folder_with(&[]);
    let mut broken = pairs();
    broken[1].b[3] = f32::NAN;
    write(folder.path(), &config(), &broken).unwrap();
    assert!(complaint(&folder).contains("v_proj.lora_B.weight holds NaN at position 3"));
}

#[test]
fn dora_has_a_magnitude_for_every_pair_and_nobody_else_has_one() {
    let folder = tempfile::tempdir().unwrap();
    let (dora_config, dora_pairs) = dora();
    write(folder.path(), &dora_config, &dora_pairs).unwrap();
    assert_eq!(read(folder.path()).unwrap(), dora());
    let tensors = safetensors::Tensors::open(&folder.path().join(TENSORS)).unwrap();
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector";
    assert_eq!(tensors.f32(name, &[4]).unwrap(), [1.0, 2.5, 0.5, 3.0]);

    assert!(write(folder.path(), &dora_config, &pairs()).is_err());
    assert!(write(folder.path(), &config(), &dora_pairs).is_err());
    let missing = folder_with(&[("use_dora", json!(true))]);
    assert!(complaint(&missing).contains("q_proj has no lora_magnitude_vector, and this is DoRA"), "{}", complaint(&missing));
    // A plain adapter's config beside DoRA's tensors.
    std::fs::write(folder.path().join(CONFIG), config::render(&config())).unwrap();
    assert!(complaint(&folder).contains("lora_magnitude_vector [4] is neither lora_A nor lora_B"));
    let wide = [("M.lora_A.weight", [2, 3]), ("M.lora_B.weight", [4, 2]), ("M.lora_magnitude_vector", [4, 1])];
    let folder = folder_of(&wide);
    std::fs::write(folder.path().join(CONFIG), config::render(&dora_config)).unwrap();
    assert!(complaint(&folder).contains("M.lora_magnitude_vector is [4, 1], expected [4]"), "{}", complaint(&folder));
}

fn python() -> Option<PathBuf> {
    if std::env::var_os("RETUNE_PEERS").is_some_and(|v| v == "off") {
        println!("skipped: RETUNE_PEERS is off");
        return None;
    }
    let env = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = || env("XDG_CACHE_HOME").unwrap_or_else(|| env("HOME").unwrap_or_default().join(".cache"));
    let path = env("RETUNE_PEERS_DIR").unwrap_or_else(|| cache().join("retune/peers")).join("venv/bin/python");
    if path.is_file() {
        return Some(path);
    }
    println!("skipped: {} is not there (run scripts/peers)", path.display());
    None
}

/// PEFT loads our folder into a model, and computes with it what B A x times alpha / sqrt(rank) is, with DoRA's rows at
/// their magnitudes; then it saves the adapter in its own way, and we read that.
#[test]
fn peft_loads_what_we_write_and_we_read_what_it_saves() {
    const SCRIPT: &str = r#"
import sys, math, warnings, torch
warnings.filterwarnings("error", module="peft")
from transformers import LlamaConfig, LlamaForCausalLM
from peft import PeftModel
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
                                     num_key_value_heads=1, vocab_size=16))
frozen = model.model.layers[0].mlp.down_proj.weight.detach().clone()
model = PeftModel.from_pretrained(model, sys.argv[1])
layer = model.base_model.model.model.layers[0].mlp.down_proj
a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
assert a.flatten().tolist() == [i / 7 for i in range(24)] or torch.allclose(a.flatten(), torch.arange(24.0) / 7), a
assert torch.allclose(b.flatten(), torch.arange(16.0) / 11 - 1), b
assert layer.scaling["default"] == 5 / math.sqrt(2), layer.scaling
x = torch.randn(3, 12)
with torch.no_grad():
    whole = frozen + (b @ a) * 5 / math.sqrt(2)
    if model.peft_config["default"].use_dora:
        magnitude = torch.arange(1.0, 9.0)
        assert torch.equal(layer.lora_magnitude_vector["default"].weight, magnitude)
        whole = whole * (magnitude / whole.norm(dim=1))[:, None]
    expected = x @ whole.T
    assert torch.allclose(layer(x), expected, atol=1e-4)
assert not any("lora" in n for n, p in model.named_parameters() if p.requires_grad)
model.save_pretrained(sys.argv[2])
print("loaded and saved")
"#;
    let Some(python) = python() else { return };
    let plain = PeftPair {
        module: "model.layers.0.mlp.down_proj".into(),
        rank: 2,
        in_features: 12,
        out_features: 8,
        a: (0..24).map(|i| i as f32 / 7.0).collect(),
        b: (0..16).map(|i| i as f32 / 11.0 - 1.0).collect(),
        magnitude: None,
    };
    let dora = PeftPair { magnitude: Some((1..9).map(|i| i as f32).collect()), ..plain.clone() };
    for down in [plain, dora] {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dora = down.magnitude.is_some();
        let config = PeftConfig { dora, target_modules: vec!["down_proj".into()], base_model: None, ..config() };
        write(ours.path(), &config, std::slice::from_ref(&down)).unwrap();
        let output =
            std::process::Command::new(&python).args(["-c", SCRIPT]).args([ours.path(), theirs.path()]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("loaded and saved"), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(read(theirs.path()).unwrap(), (config, vec![down]));
    }
}
