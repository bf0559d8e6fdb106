use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::super::modelfile::Parameters;
use super::*;
use crate::runtime::ollama::Blob;
use crate::runtime::ollama::scripted::{Say, Scripted, Seen};

/// Name to (digest of its manifest, its Modelfile as shown, its parameters as shown).
type Models = Arc<Mutex<BTreeMap<String, (String, String, String)>>>;

/// What the server does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Lie {
    None,
    /// An error line in the middle, and a half model under the name.
    CreateFails,
    /// Success, and nothing made.
    NothingMade,
    /// Success, and the model has another file.
    OldFile,
    /// Success, and a parameter is missing.
    LostStop,
    /// Copies nothing.
    NoCopy,
}

/// Just enough of Ollama to lie about.
fn server(lie: Lie) -> (Scripted, Models) {
    let models = Models::default();
    let state = models.clone();
    let server = Scripted::start(move |seen| answer(lie, &mut state.lock().unwrap(), seen));
    (server, models)
}

fn answer(lie: Lie, models: &mut BTreeMap<String, (String, String, String)>, seen: &Seen) -> Say {
    match seen.line.as_str() {
        "GET /api/tags" => {
            let list: Vec<Value> = models.iter().map(|(name, model)| json!({"name": name, "digest": model.0})).collect();
            Say::Json(200, json!({ "models": list }))
        }
        "POST /api/show" => match models.get(&seen.text("model")) {
            Some((_, modelfile, parameters)) => Say::Json(200, json!({"modelfile": modelfile, "parameters": parameters})),
            None => Say::Json(404, json!({"error": "model not found"})),
        },
        "POST /api/create" => {
            let request = seen.json();
            let name = seen.text("model");
            let digest = request["files"]["model.gguf"].as_str().unwrap_or_default().replace(':', "-");
            let digest = if lie == Lie::OldFile { format!("sha256-{}", "0".repeat(64)) } else { digest };
            let mut parameters: Vec<String> = Vec::new();
            for (name, value) in request["parameters"].as_object().unwrap() {
                let list = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                parameters.extend(list.iter().map(|value| format!("{name}    {value}")));
            }
            if lie == Lie::LostStop {
                parameters.retain(|line| !line.starts_with("stop"));
            }
            if lie != Lie::NothingMade {
                let number = models.len();
                models.insert(name, (format!("manifest{number}"), format!("FROM /m/blobs/{digest}\n"), parameters.join("\n")));
            }
            match lie {
                Lie::CreateFails => {
                    Say::Lines(vec![json!({"status": "a"}), json!({"error": "disk on fire"}), json!({"status": "success"})])
                }
                _ => Say::Lines(vec![json!({"status": "success"})]),
            }
        }
        "POST /api/copy" => {
            if lie != Lie::NoCopy {
                let model = models[&seen.text("source")].clone();
                models.insert(seen.text("destination"), model);
            }
            Say::Text(200, "")
        }
        "DELETE /api/delete" => {
            models.remove(&seen.text("model"));
            Say::Text(200, "")
        }
        _ => Say::Text(200, ""),
    }
}

fn deployment(digit: char, promote: Promote) -> Deployment {
    let blob = Blob { path: "/nowhere.gguf".into(), digest: format!("sha256:{}", digit.to_string().repeat(64)), size_bytes: 1 };
    let mut parameters = Parameters::default();
    parameters.add_stop("<|im_end|>");
    Deployment {
        prefix: "my-coder-tuned".to_owned(),
        role: "coder".to_owned(),
        spec: ModelSpec::merged(blob, parameters),
        promote,
        number: Number::From(1),
    }
}

fn go(server: &Scripted, deployment: &Deployment) -> Result<Registered> {
    register(&server.ollama, deployment, &mut |_| ())
}

#[test]
fn versions_count_up_the_same_files_are_used_again_and_the_alias_moves_only_when_told() {
    let (server, models) = server(Lie::None);
    let digest_of = |name: &str| models.lock().unwrap().get(name).map(|model| model.0.clone());
    let first = go(&server, &deployment('a', Promote::IfFirst)).unwrap();
    assert_eq!((first.name.as_str(), first.version, first.reused, first.promoted), ("my-coder-tuned-coder:v1", 1, false, true));
    assert_eq!(digest_of("my-coder-tuned-coder:latest"), Some(first.digest.clone()));

    let second = go(&server, &deployment('b', Promote::IfFirst)).unwrap();
    assert_eq!((second.name.as_str(), second.promoted), ("my-coder-tuned-coder:v2", false));
    assert_eq!(digest_of("my-coder-tuned-coder:latest"), Some(first.digest.clone()), "the champion stays");

    let again = go(&server, &deployment('a', Promote::No)).unwrap();
    assert_eq!((again.version, again.reused, again.promoted, again.digest.clone()), (1, true, true, first.digest));

    let promoted = go(&server, &deployment('b', Promote::Yes)).unwrap();
    assert_eq!((promoted.version, promoted.reused, promoted.promoted), (2, true, true));
    assert_eq!(digest_of("my-coder-tuned-coder:latest"), Some(second.digest));

    let mut changed = deployment('b', Promote::No);
    changed.spec.parameters.temperature = 0.7;
    changed.number = Number::From(9);
    assert_eq!(go(&server, &changed).unwrap().name, "my-coder-tuned-coder:v9", "other parameters are another version");
    let creates = server.lines().iter().filter(|line| *line == "POST /api/create").count();
    assert_eq!(creates, 3);
}

#[test]
fn a_version_is_made_again_under_its_own_number_and_never_over_another_model() {
    let (server, models) = server(Lie::None);
    let again = |digit: char, version: u64| {
        go(&server, &Deployment { number: Number::Exactly(version), ..deployment(digit, Promote::No) })
    };
    for digit in ['a', 'b', 'c'] {
        go(&server, &deployment(digit, Promote::No)).unwrap();
    }
    models.lock().unwrap().remove("my-coder-tuned-coder:v2");
    let second = again('b', 2).unwrap();
    assert_eq!((second.name.as_str(), second.version, second.reused), ("my-coder-tuned-coder:v2", 2, false));
    assert!(again('b', 2).unwrap().reused, "one that a killed run made is taken");
    assert_eq!(again('b', 1).unwrap_err().to_string(), "my-coder-tuned-coder:v1 is there already, and it is another model");
    // The same model under another number is no reason not to make it.
    assert_eq!(again('c', 7).unwrap().name, "my-coder-tuned-coder:v7");
}

#[test]
fn whatever_fails_what_served_before_still_serves_and_the_error_says_what_is_wrong() {
    for (lie, parts) in [
        (Lie::CreateFails, vec!["did not create my-coder-tuned-coder:v1", "disk on fire"]),
        (Lie::NothingMade, vec!["said that it made my-coder-tuned-coder:v1", "there is no such model"]),
        (Lie::OldFile, vec!["it serves the file sha256:000", "expected sha256:aaa", "the alias was not moved"]),
        (Lie::LostStop, vec!["its parameter stop is []", "<|im_end|>"]),
        (Lie::NoCopy, vec!["said that it copied", "names old, expected manifest1", "ollama list"]),
    ] {
        let (server, models) = server(lie);
        let old = ("old".to_owned(), format!("FROM /m/blobs/sha256-{}\n", "f".repeat(64)), String::new());
        models.lock().unwrap().insert("my-coder-tuned-coder:latest".to_owned(), old.clone());
        let error = go(&server, &deployment('a', Promote::Yes)).unwrap_err();
        let said = format!("{error}; {}", error.hint().unwrap());
        for part in parts {
            assert!(said.contains(part), "expected '{part}' in: {said}");
        }
        let models = models.lock().unwrap();
        assert_eq!(models["my-coder-tuned-coder:latest"], old);
        assert_eq!(
            models.contains_key("my-coder-tuned-coder:v1"),
            lie != Lie::CreateFails && lie != Lie::NothingMade,
            "no half version stays"
        );
    }
}

#[test]
fn an_adapter_is_not_stacked_on_another() {
    let (server, models) = server(Lie::None);
    let modelfile = format!("FROM /m/blobs/sha256-{}\nADAPTER /m/blobs/sha256-{}\n", "a".repeat(64), "b".repeat(64));
    models.lock().unwrap().insert("base:latest".to_owned(), ("d".to_owned(), modelfile, String::new()));
    let mut deployment = deployment('c', Promote::No);
    deployment.spec.from = From::Model("base:latest".to_owned());
    let error = go(&server, &deployment).unwrap_err();
    assert!(error.to_string().contains("already carries an adapter"), "{error}");
    deployment.spec.from = From::Model("gone:latest".to_owned());
    assert!(go(&server, &deployment).unwrap_err().hint().unwrap().contains("`ollama pull gone:latest`"));
    assert!(!server.lines().contains(&"POST /api/create".to_owned()));
}

#[test]
fn a_role_or_prefix_that_makes_no_name_is_refused() {
    assert_eq!(alias_name("my-coder-tuned", "coder").unwrap().to_string(), "my-coder-tuned-coder:latest");
    for (prefix, role) in [("my coder", "coder"), ("m:v1", "coder"), ("m", "co:der"), ("../m", "coder"), ("m", ""), ("", "coder")]
    {
        assert_eq!(alias_name(prefix, role).unwrap_err().exit_code(), 2, "{prefix} {role}");
    }
}
