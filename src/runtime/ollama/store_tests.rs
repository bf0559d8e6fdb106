use super::*;

/// A store in a temporary folder, written as Ollama writes it.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("blobs")).unwrap();
        Self { folder }
    }

    fn root(&self) -> &Path {
        self.folder.path()
    }

    fn store(&self) -> Store {
        Store::new([self.root().join("nothing-here"), self.root().to_owned()])
    }

    fn layer(&self, kind: &str, content: &str) -> Value {
        let digest = digest_text(&Sha256::digest(content));
        fs::write(self.root().join("blobs").join(digest.replace(':', "-")), content).unwrap();
        serde_json::json!({ "mediaType": format!("{LAYER}{kind}"), "digest": digest, "size": content.len() })
    }

    fn manifest(&self, way: &str, layers: &[Value]) -> PathBuf {
        let path = self.root().join("manifests").join(way);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let config = self.layer("config", r#"{"renderer":"qwen3-coder"}"#);
        fs::write(&path, serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers }).to_string()).unwrap();
        path
    }
}

#[test]
fn a_tag_leads_to_the_blob_and_to_everything_that_is_served_with_it() {
    let fixture = Fixture::new();
    let layers = [
        fixture.layer("model", "GGUF..."),
        fixture.layer("template", "{{ .Prompt }}"),
        fixture.layer("system", "Be brief."),
        fixture.layer("params", r#"{"stop":["<|im_end|>"]}"#),
        fixture.layer("license", "MIT"),
    ];
    let path = fixture.manifest("registry.ollama.ai/library/smollm2/135m", &layers);
    let model = fixture.store().resolve("smollm2:135m").unwrap();
    assert_eq!(model.name, "smollm2:135m");
    assert_eq!(fs::read_to_string(&model.model_blob).unwrap(), "GGUF...");
    assert_eq!(model.model_digest, digest_text(&Sha256::digest("GGUF...")));
    assert_eq!(model.digest, digest_text(&Sha256::digest(fs::read(&path).unwrap())));
    assert_eq!((model.template.as_deref(), model.system.as_deref()), (Some("{{ .Prompt }}"), Some("Be brief.")));
    assert_eq!(model.params.as_ref().unwrap()["stop"][0], "<|im_end|>");
    assert_eq!(model.renderer.as_deref(), Some("qwen3-coder"));
    assert!(!model.has_adapter());
}

#[test]
fn a_tag_is_found_in_any_case_and_under_any_registry() {
    let fixture = Fixture::new();
    let layers = [fixture.layer("model", "GGUF..."), fixture.layer("adapter", "A")];
    fixture.manifest("registry.ollama.ai/library/SmolLM2/Latest", &layers);
    fixture.manifest("hf.co/Bartowski/Model-GGUF/Q4_0", &layers);
    let model = fixture.store().resolve("smollm2").unwrap();
    assert_eq!(model.name, "SmolLM2:Latest");
    assert!(model.has_adapter(), "the flag that says that a new adapter would be stacked");
    assert_eq!(fixture.store().resolve("HF.co/bartowski/model-gguf:q4_0").unwrap().name, "hf.co/Bartowski/Model-GGUF:Q4_0");
}

#[test]
fn a_missing_tag_lists_the_near_names_first() {
    let fixture = Fixture::new();
    let layers = [fixture.layer("model", "GGUF...")];
    for way in ["library/smollm2/135m", "library/smollm2/360m", "library/qwen2.5-coder/7b", "me/other/latest"] {
        fixture.manifest(&format!("registry.ollama.ai/{way}"), &layers);
    }
    let error = fixture.store().resolve("smolm2:135m").unwrap_err();
    assert!(error.to_string().contains("'smolm2:135m'"), "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.starts_with("there are smollm2:135m, smollm2:360m, "), "{hint}");
    assert!(hint.contains("`ollama pull smolm2:135m`"), "{hint}");
    let empty = Store::new([PathBuf::from("/nothing/here")]).resolve("m").unwrap_err();
    assert!(empty.to_string().contains("there is no store at /nothing/here"), "{empty}");
}

#[test]
fn a_hostile_or_broken_manifest_is_an_error_and_reads_nothing_outside_the_store() {
    let fixture = Fixture::new();
    fs::write(fixture.root().join("secret"), "secret").unwrap();
    let layer =
        |digest: &str, size: u64| serde_json::json!({ "mediaType": format!("{LAYER}model"), "digest": digest, "size": size });
    let good = fixture.layer("model", "GGUF...");
    let hex = "0".repeat(64);
    for (tag, layers, part) in [
        ("way", vec![layer("sha256:../../secret", 6)], "'sha256:../../secret'"),
        ("way2", vec![layer(&format!("../../x/sha256:{hex}"), 6)], "expected sha256:"),
        ("gone", vec![layer(&format!("sha256:{hex}"), 6)], "which is not in"),
        ("cut", vec![layer(good["digest"].as_str().unwrap(), 70)], "has 70 bytes, the file has 7"),
        ("none", vec![fixture.layer("license", "MIT")], "no weights on this machine"),
        ("split", vec![good.clone(), good.clone()], "split into 2 files"),
        ("params", vec![good.clone(), fixture.layer("params", "{")], "no JSON"),
    ] {
        fixture.manifest(&format!("registry.ollama.ai/library/m/{tag}"), &layers);
        let error = fixture.store().resolve(&format!("m:{tag}")).unwrap_err();
        assert!(error.to_string().contains(part), "{tag}: {error}");
        assert!(error.hint().is_some());
    }
    let path = fixture.manifest("registry.ollama.ai/library/m/garbage", &[]);
    fs::write(path, b"\xff\xfe").unwrap();
    assert!(fixture.store().resolve("m:garbage").unwrap_err().to_string().contains("is no manifest"));
}

#[test]
fn edits_are_levenshteins() {
    assert_eq!([edits(b"kitten", b"sitting"), edits(b"", b"abc"), edits(b"abc", b""), edits(b"a", b"a")], [3, 3, 3, 0]);
}
