//! `retune doctor`: what it finds here, without an Ollama, with real ones, and that it changes nothing.

mod common;
#[allow(dead_code, reason = "this file uses its part")]
#[path = "support/hub_server.rs"]
mod hub_server;
#[path = "support/ollama_peer.rs"]
mod ollama_peer;

use std::path::Path;
use std::process::{Command, Output};

use common::{files, says};
use hub_server::{HubServer, Repo};
use ollama_peer::{BOTH, Kind, Peer, data_file, peer_file};
use retune::deploy::{Deployment, ModelSpec, Number, Parameters, Promote, register};
use retune::formats::gguf::{Value, Writer};
use retune::runtime::Registry as _;
use retune::runtime::ollama::Blob;
use serde_json::Value as Json;

/// In a home where nothing is, with no Ollama and no hub; `env` says otherwise.
fn doctor(home: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
    for name in [
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_TOKEN_PATH",
        "RETUNE_ROOT",
    ] {
        command.env_remove(name);
    }
    command.env("HOME", home).env("HF_HOME", home.join("hf")).env("HF_ENDPOINT", "http://127.0.0.1:9");
    command.env("OLLAMA_HOST", "127.0.0.1:9").env("OLLAMA_MODELS", home.join("ollama"));
    command.arg("doctor").args(arguments).envs(env.iter().copied()).current_dir(home).output().unwrap()
}

/// The findings of a section as `level: what; next` lines, and the number of problems, which the exit code must fit.
fn findings(output: &Output, section: &str) -> (String, u64) {
    let found: Json =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let problems = found["problems"].as_u64().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(problems > 0)), "{found:#}");
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let lines = found["findings"].as_array().unwrap().iter().filter(|f| f["section"] == section);
    (lines.map(|f| format!("{}: {}; {}\n", text(&f["level"]), text(&f["what"]), text(&f["next"]))).collect(), problems)
}

#[test]
fn without_an_ollama_nothing_stands_in_the_way_of_the_demo_and_nothing_is_written() {
    let home = tempfile::tempdir().unwrap();
    let output = doctor(home.path(), &["--base", "demo"], &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let sections: Vec<&str> = text.lines().filter(|l| ["machine", "ollama", "hub", "base"].contains(l)).collect();
    assert_eq!(sections, ["machine", "ollama", "hub", "base"]);
    for line in text.lines() {
        let one_word = line.split_whitespace().count() == 1;
        assert!(line.chars().count() <= 80 || one_word, "more than 80 columns: {line}");
    }
    says(
        &text,
        &[
            "  note     no Ollama answers at http://127.0.0.1:9",
            "next: start it with `ollama serve`",
            "Q8_0",
            "nothing stands in the way",
        ],
    );
    assert_eq!(files(home.path()), Vec::<String>::new(), "it only looks");
}

#[test]
fn a_base_is_told_with_its_sizes_and_one_without_a_template_says_how_to_choose() {
    let Some(data) = common::data("a_base_is_told_with_its_sizes_and_one_without_a_template_says_how_to_choose") else { return };
    let home = tempfile::tempdir().unwrap();
    let base = data.join("models/stories260K").display().to_string();
    let (found, problems) = findings(&doctor(home.path(), &["--json", "--base", &base], &[]), "base");
    assert_eq!(problems, 0);
    // 5 blocks of 64 x (64 + 32 + 32 + 64) and 3 x 64 x 172, and the embedding, which is the head.
    assert_eq!(5 * (64 * 192 + 3 * 64 * 172) + 512 * 64, 259_328);
    // Rank 16 over in + out: q, o 128 each, k, v 96 each, and three times 236.
    assert_eq!(16 * 5 * (2 * 128 + 2 * 96 + 3 * 236), 92_480);
    says(
        &found,
        &[
            "llama, 0.26 M weights in F32, 1.0 MB; it sees 512 tokens",
            "rank 16 on all linear layers has 0.09 M parameters",
            "ok: a training on rows of 512 tokens takes 1",
            "note: it has no chat template of its own; say how conversations become text: --template alpaca, chatml, plain",
        ],
    );
    let (found, _) = findings(&doctor(home.path(), &["--json", "--base", &base, "--template", "chatml"], &[]), "base");
    says(&found, &["by the built-in template chatml", "on a trial model; if not, it writes the template's twin as TEMPLATE"]);

    // Where memory is short: shorter rows, else a problem.
    let (found, problems) = findings(&doctor(home.path(), &["--json", "--base", &base, "--memory-budget", "106MB"], &[]), "base");
    assert_eq!(problems, 0, "{found}");
    says(&found, &["note: rows of 512 tokens need more than the 106.0 MB", "train with --max-length "]);
    let (found, problems) = findings(&doctor(home.path(), &["--json", "--base", &base, "--memory-budget", "50MB"], &[]), "base");
    assert_eq!(problems, 1);
    says(&found, &["problem: a step needs at least", "--memory-budget"]);
    let (found, problems) = findings(&doctor(home.path(), &["--json", "--base", "./nothing.gguf"], &[]), "base");
    assert_eq!(problems, 1);
    says(&found, &["problem: ./nothing.gguf: there is no such base; check the path"]);
    let (found, _) = findings(&doctor(home.path(), &["--json"], &[("OLLAMA_HOST", "host:x")]), "ollama");
    says(&found, &["problem: OLLAMA_HOST has the port 'x'"]);
}

#[test]
fn a_model_of_the_store_that_cannot_be_a_base_says_why() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("ollama");
    let put = |name: &str, gguf: &Path, more: &str| {
        let blob = Blob::of(gguf).unwrap();
        let manifests = store.join("manifests/registry.ollama.ai/library").join(name);
        std::fs::create_dir_all(&manifests).unwrap();
        std::fs::create_dir_all(store.join("blobs")).unwrap();
        std::fs::copy(gguf, store.join("blobs").join(blob.digest.replace(':', "-"))).unwrap();
        let kind = "application/vnd.ollama.image";
        let layer = |what: &str| format!("{{\"mediaType\": \"{kind}.{what}\", \"digest\": \"{}\"}}", blob.digest);
        let layers = [layer("model"), more.replace("LAYER", &layer("adapter"))].join("");
        std::fs::write(manifests.join("latest"), format!("{{\"layers\": [{layers}]}}")).unwrap();
    };
    let other = home.path().join("other.gguf");
    let metadata = vec![("general.architecture".to_owned(), Value::String(b"gemma3".to_vec()))];
    Writer { version: 3, alignment: 32, metadata, header_padding: None }.write(&other, Vec::new()).unwrap();
    let demo = common::root().join("models/demo.gguf");
    put("good", &demo, "");
    put("tuned", &demo, ", LAYER");
    put("other", &other, "");
    let (found, problems) = findings(&doctor(home.path(), &["--json"], &[]), "ollama");
    assert_eq!(problems, 0);
    says(
        &found,
        &[
            "ok: good:latest can be a base: llama, Q8_0, 1.8 MB",
            "note: tuned:latest cannot be a base: it carries an adapter already",
            "note: other:latest cannot be a base: the architecture 'gemma3' is not supported",
        ],
    );
}

#[test]
fn a_base_of_the_hub_is_told_with_what_it_would_fetch_and_not_fetched() {
    let Some(data) = common::data("a_base_of_the_hub_is_told_with_what_it_would_fetch_and_not_fetched") else { return };
    let (home, server) = (tempfile::tempdir().unwrap(), HubServer::start());
    let read = |name: &str| (name.to_owned(), std::fs::read(data.join("models/stories260K").join(name)).unwrap());
    server.put("org/stories", Repo::new(["config.json", "tokenizer.json", "model.safetensors"].map(read).to_vec()));
    let env = [("HF_ENDPOINT", server.url.as_str())];
    let arguments = ["--json", "--base", "org/stories"];
    let (found, problems) = findings(&doctor(home.path(), &arguments, &env), "base");
    assert_eq!(problems, 0, "{found}");
    says(&found, &["note: org/stories is not in the cache: 3 files, 1.1 MB to fetch; any command fetches it"]);
    assert_eq!(files(home.path()), Vec::<String>::new(), "it only looks");
    let (found, problems) = findings(&doctor(home.path(), &["--json", "--base", "org/none"], &env), "base");
    assert_eq!(problems, 1);
    says(&found, &["problem: there is no model org/none"]);

    let mut fetch = Command::new(env!("CARGO_BIN_EXE_retune"));
    fetch.args(["tokenize", "--base", "org/stories", "--text", "x"]).env("HF_HOME", home.path().join("hf")).envs(env);
    assert!(fetch.output().unwrap().status.success());
    server.seen();
    let output = doctor(home.path(), &arguments, &env);
    says(&findings(&output, "base").0, &["ok: org/stories@0123456789ab", "0.26 M weights in F32"]);
    says(&findings(&output, "hub").0, &["one model: org/stories", "without a token: public models only"]);
    assert!(server.seen().is_empty(), "what is here is not asked for");
    let (found, _) =
        findings(&doctor(home.path(), &["--json"], &[("HF_TOKEN", "secret"), ("HF_ENDPOINT", "http://mirror.example")]), "hub");
    says(&found, &["note: the token of HF_TOKEN is not sent to http://mirror.example"]);
    assert!(!found.contains("secret"));
}

#[test]
fn what_a_real_ollama_renders_is_compared_with_training_and_the_ollama_stays_as_it_is() {
    let (Some(stories), Some(smollm2)) =
        (data_file("models/stories260K/stories260K-f32.gguf"), peer_file("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    else {
        return;
    };
    for kind in BOTH {
        let Some(peer) = Peer::start(kind) else { continue };
        let make = |role: &str, path: &Path, system: Option<&str>| {
            let parameters = Parameters { num_ctx: Some(512), ..Parameters::default() };
            let spec = ModelSpec { system: system.map(str::to_owned), ..ModelSpec::merged(Blob::of(path).unwrap(), parameters) };
            let deployment = Deployment {
                prefix: "here".to_owned(),
                role: role.to_owned(),
                spec,
                promote: Promote::No,
                number: Number::From(1),
            };
            register(&peer.ollama, &deployment, &mut |_| ()).unwrap().name
        };
        let system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
        let names = [make("stories", &stories, None), make("plain", &smollm2, None), make("settled", &smollm2, Some(system))];
        let (home, models) = (tempfile::tempdir().unwrap(), peer.models().display().to_string());
        let env = [("OLLAMA_HOST", peer.host.as_str()), ("OLLAMA_MODELS", models.as_str())];
        let before = (peer.ollama.tags().unwrap(), files(&peer.models()));
        let look = |name: &str, more: &[&str]| {
            let output = doctor(home.path(), &[&["--json", "--base", name], more].concat(), &env);
            (findings(&output, "ollama").0, findings(&output, "base"))
        };

        let (ollama, (found, problems)) = look(&names[1], &[]);
        println!("{kind:?}\n{ollama}{found}");
        assert_eq!(problems, 0, "{kind:?}: {found}");
        let version = if kind == Kind::Adapter { "ok: Ollama 0.17.4 at" } else { "ok: Ollama 0.34.1 at" };
        says(
            &ollama,
            &[version, "here-plain:v1 can be a base: llama, Q4_1, 96.4 MB", "here-stories:v1 can be a base: llama, F32, 1.2 MB"],
        );
        says(&ollama, &["whether it takes adapters is tried once by deploy"]);
        says(&found, &[&format!("note: Ollama prompts here-plain:v1 otherwise by itself: deploy writes SYSTEM {system:?}")]);

        let (_, (found, problems)) = look(&names[2], &[]);
        assert_eq!(problems, 0, "{kind:?}: {found}");
        says(&found, &["ok: Ollama prompts here-settled:v1 as training does, token for token, in 4 conversations"]);

        let (_, (found, problems)) = look(&names[0], &["--template", "alpaca"]);
        println!("{found}");
        assert_eq!(problems, 0, "{kind:?}: {found}");
        says(&found, &["note: Ollama prompts here-stories:v1 otherwise (the prompt of", "deploy would write TEMPLATE, the twin"]);

        // What depends on more than the roles cannot be written as a template.
        let jinja = home.path().join("strange.jinja");
        std::fs::write(
            &jinja,
            "{{ messages | length }} turns\n{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        )
        .unwrap();
        let (_, (found, problems)) = look(&names[0], &["--template", jinja.to_str().unwrap()]);
        println!("{found}");
        assert_eq!(problems, 1, "{kind:?}: {found}");
        says(
            &found,
            &[
                "problem: Ollama prompts here-stories:v1 otherwise, and deploy could not make it the same",
                "depends on more than the roles",
            ],
        );
        assert_eq!((peer.ollama.tags().unwrap(), files(&peer.models())), before, "{kind:?}: it only looks");
    }
}
