use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::rc::Rc;

use serde_json::json;

use super::*;
use crate::runtime::ollama::scripted::{Say, Scripted, Seen};

const ALIAS: &str = "m-coder";

fn manifest(registry: &LlamaServer, adapter: &str, template: &str) -> Manifest {
    let file = registry.shelf.folder().join(format!("{adapter}.source"));
    make_folder_of(&file).unwrap();
    std::fs::write(&file, adapter).unwrap();
    let base = FileEntry { path: "/models/base.gguf".into(), digest: "sha256:b".into(), size_bytes: 100 };
    let parameters = json!({"temperature": 0.5, "stop": ["</s>"]}).as_object().unwrap().clone();
    let adapter = Some(registry.keep_adapter(&file).unwrap());
    Manifest { base, adapter, system: None, template: Some(template.to_owned()), parameters }
}

/// A registry with v1 as champion and v2 beside it, and what it noted.
fn registry(root: &Path, server: &Scripted) -> (LlamaServer, Rc<RefCell<Vec<String>>>) {
    let notes: Rc<RefCell<Vec<String>>> = Rc::default();
    let heard = notes.clone();
    let llama = Llama::new(server.ollama.address().clone(), None);
    let registry = LlamaServer::new(root, llama, move |text| heard.borrow_mut().push(text.to_owned()));
    let alias = ModelName::parse(ALIAS).unwrap();
    for adapter in ["one", "two"] {
        registry.register(&alias, &manifest(&registry, adapter, "{{ x }}"), 1).unwrap();
    }
    registry.copy("m-coder:v1", ALIAS).unwrap();
    notes.borrow_mut().clear();
    (registry, notes)
}

fn nobody() -> Scripted {
    Scripted::start(|_: &Seen| Say::Text(404, "no such page"))
}

/// The words that a start script gives to the program.
fn words(registry: &LlamaServer, manifest: &Manifest) -> Vec<String> {
    let print = registry.shelf.folder().join("print");
    std::fs::write(&print, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
    std::fs::set_permissions(&print, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("sh");
    command.arg(registry.script_of(manifest)).args(["--port", "1 2"]).env("LLAMA_SERVER_BIN", &print);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_start_script_says_any_path_and_the_champions_settings() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("it's, a $HOME \"x\" `y`");
    let (registry, _) = registry(&root, &nobody());
    let of_two = manifest(&registry, "two", "{{ x }}");
    let folder = registry.shelf.folder().to_str().unwrap().to_owned();
    let adapter = |text: &str, scale: u8| {
        let digest = Blob::of(&registry.shelf.folder().join(format!("{text}.source"))).unwrap().digest;
        format!("\"{}/adapters/{}.gguf\":{scale}", folder.replace('"', "\"\""), short(&digest))
    };
    let said = words(&registry, &of_two);
    assert_eq!(said[..2], ["--model", "/models/base.gguf"]);
    assert_eq!(said[2..4], ["--jinja", "--chat-template-file"]);
    assert_eq!(std::fs::read_to_string(&said[4]).unwrap(), "{{ x }}");
    assert_eq!(said[5..9], ["--lora-scaled", &adapter("one", 1), "--lora-scaled", &adapter("two", 0)]);
    assert_eq!(said[9..], ["--cache-ram", "0", "--temp", "0.5", "--alias", ALIAS, "--port", "1 2"]);
    registry.copy("m-coder:v2", ALIAS).unwrap();
    assert_eq!(words(&registry, &of_two)[5..9], ["--lora-scaled", &adapter("one", 0), "--lora-scaled", &adapter("two", 1)]);
}

#[test]
fn a_script_of_no_version_goes_and_a_colon_in_a_path_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let (registry, _) = registry(scratch.path(), &nobody());
    let other = manifest(&registry, "three", "another");
    registry.register(&ModelName::parse(ALIAS).unwrap(), &other, 7).unwrap();
    assert!(registry.tag("m-coder:v7").unwrap().is_some() && registry.script_of(&other).is_file());
    std::fs::write(registry.shelf.folder().join("start-mine"), "").unwrap();
    assert!(registry.delete("m-coder:v7").unwrap() && !registry.script_of(&other).exists());
    assert!(registry.script_of(&manifest(&registry, "one", "{{ x }}")).is_file());
    assert!(registry.shelf.folder().join("start-mine").is_file(), "a file of the user's went");

    let server = nobody();
    let llama = Llama::new(server.ollama.address().clone(), None);
    let colon = LlamaServer::new(&scratch.path().join("a:b"), llama, |_| ());
    let error = colon.register(&ModelName::parse(ALIAS).unwrap(), &manifest(&colon, "one", ""), 1).unwrap_err();
    assert!(error.to_string().contains("has a ':' in it") && error.exit_code() == 2, "{error}");
}

/// A server with a base and a template, and the adapters of these files.
fn server(base: &'static str, template: &'static str, loaded: Vec<String>) -> Scripted {
    Scripted::start(move |seen: &Seen| match seen.line.as_str() {
        "GET /props" => Say::Json(200, json!({"model_path": base, "total_slots": 1, "chat_template": template})),
        "GET /lora-adapters" => {
            let one = |(id, path): (usize, &String)| json!({"id": id, "path": path, "scale": 1.0});
            Say::Json(200, loaded.iter().enumerate().map(one).collect())
        }
        _ => Say::Json(200, json!({"success": true})),
    })
}

#[test]
fn a_server_that_holds_something_else_is_left_as_it_is_and_told() {
    for (base, template, told) in [
        ("/models/other.gguf", "{{ x }}", "serves another base, /models/other.gguf"),
        ("/models/base.gguf", "another", "has another chat template than was trained"),
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let server = server(base, template, vec!["/adapters/0123456789ab.gguf".to_owned()]);
        let (registry, notes) = registry(scratch.path(), &server);
        registry.copy("m-coder:v2", ALIAS).unwrap();
        assert!(notes.borrow()[..].iter().any(|note| note.contains(told)), "{:?}", notes.borrow());
        assert!(!server.lines().iter().any(|line| line.starts_with("POST")), "{:?}", server.lines());
        assert_eq!(registry.tag("m-coder:v2").unwrap().unwrap().digest, registry.tag(ALIAS).unwrap().unwrap().digest);
    }
}

#[test]
fn an_adapter_of_the_users_keeps_its_scale() {
    let scratch = tempfile::tempdir().unwrap();
    let first = registry(scratch.path(), &nobody()).0;
    let file = |adapter: &str| {
        format!("/elsewhere/{}", manifest(&first, adapter, "").adapter.unwrap().path.file_name().unwrap().display())
    };
    let loaded = vec!["/mine/style.gguf".to_owned(), file("one"), file("two")];
    let server = server("/models/base.gguf", "{{ x }}", loaded);
    let registry = LlamaServer::new(scratch.path(), Llama::new(server.ollama.address().clone(), None), |_| ());
    let error = registry.copy("m-coder:v2", ALIAS).unwrap_err().to_string();
    assert!(error.contains("adapter 1 has 1, adapter 2 has 1, expected 0: 1, 1: 0, 2: 1"), "{error}");
    let asked = server.seen().into_iter().find(|seen| seen.line == "POST /lora-adapters").unwrap().json();
    assert_eq!(asked[0], json!({"id": 0, "scale": 1.0}));
}
