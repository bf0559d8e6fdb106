use std::time::{Duration, Instant};

use super::super::Blob;
use super::super::scripted::{Say, Scripted};
use super::*;

/// Message and hint of the error.
fn said<T: std::fmt::Debug>(result: Result<T>) -> String {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Server { .. }), "{error:?}");
    format!("{error}; {}", error.hint().unwrap_or_default())
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "expected '{part}' in: {said}");
    }
}

fn request(name: &str) -> CreateRequest {
    CreateRequest { model: name.to_owned(), from: Some("base".to_owned()), ..CreateRequest::default() }
}

#[test]
fn a_dead_ollama_is_told_with_its_address_and_how_to_start_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let ollama = Ollama::new(Address::parse(&address).unwrap(), None);
    assert_says(&said(ollama.version()), &[&address, "connection refused", "`ollama serve`", "OLLAMA_HOST"]);
    let nowhere = Ollama::new(Address::parse("no-such-host.invalid:1").unwrap(), None);
    assert_says(&said(nowhere.tags()), &["no-such-host.invalid:1", "`ollama serve`"]);
}

#[test]
fn a_slow_ollama_is_given_up_after_the_patience_and_not_before() {
    for stage in ["quick", "idle"] {
        let server = Scripted::start(|_| Say::Silence(Duration::from_secs(20)));
        let start = Instant::now();
        let said = match stage {
            "quick" => said(server.ollama.version()),
            _ => said(server.ollama.create(&request("m:v1"), &mut |_| ())),
        };
        assert_says(&said, &["too slow", "within 0.7 s", "`ollama ps`"]);
        let waited = start.elapsed().as_secs_f64();
        assert!((0.6..10.0).contains(&waited), "{stage}: waited {waited} s");
    }
}

#[test]
fn an_error_line_in_the_middle_of_a_create_is_a_failure_though_success_follows() {
    let server = Scripted::start(|_| {
        Say::Lines(vec![json!({"status": "parsing GGUF"}), json!({"error": "disk on fire"}), json!({"status": "success"})])
    });
    let mut heard = Vec::new();
    let result = server.ollama.create(&request("m:v1"), &mut |status| heard.push(status.to_owned()));
    assert_says(&said(result), &["did not create m:v1", "disk on fire"]);
    assert_eq!(heard, ["parsing GGUF"]);
}

#[test]
fn a_create_that_ends_without_success_is_a_failure() {
    for (script, parts) in [
        (
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"status\":\"writing manifest\"}\n",
            ["hung up", "'writing manifest', expected 'success'"],
        ),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\n{\"status\":\"a\"}\n\n\r\n", ["hung up", "create m:v1"]),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", ["hung up", "'', expected 'success'"]),
        (
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"status\":\"succ",
            ["answered what no Ollama says", "{\"status\":\"succ"],
        ),
        ("", ["hung up", "create m:v1"]),
    ] {
        let server = Scripted::start(move |_| Say::Raw(script));
        assert_says(&said(server.ollama.create(&request("m:v1"), &mut |_| ())), &parts);
    }
}

#[test]
fn refusals_carry_ollamas_words_and_the_step_that_fits() {
    for (status, body, parts) in [
        (400, "{\"error\":\"LoRA adapters are no longer supported\"}", ["HTTP 400", "LoRA adapters are no longer supported"]),
        (404, "404 page not found", ["HTTP 404", "is that address an Ollama?"]),
        (401, "", ["(no reason given)", "OLLAMA_API_KEY"]),
        (500, "{\"error\":\"write: no space left on device\"}", ["no space left on device", "free some space"]),
    ] {
        let server = Scripted::start(move |_| Say::Text(status, body));
        assert_says(&said(server.ollama.create(&request("m:v1"), &mut |_| ())), &parts);
    }
}

#[test]
fn garbage_is_told_as_something_that_is_no_ollama() {
    for script in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    ] {
        let server = Scripted::start(move |_| Say::Raw(script));
        assert_says(&said(server.ollama.version()), &["answered what no Ollama says", "OLLAMA_HOST"]);
    }
    let server = Scripted::start(|_| Say::Json(200, json!({})));
    assert_says(&said(server.ollama.tags()), &["list its models", "no Ollama"]);
    assert_says(&said(server.ollama.show("m")), &["show m", "no Ollama"]);
}

#[test]
fn a_redirect_is_told_and_not_followed() {
    let server = Scripted::start(|_| Say::Text(307, ""));
    assert_says(&said(server.ollama.version()), &["redirect to http://elsewhere.example/", "not followed"]);
    assert_eq!(server.lines(), ["GET /api/version"]);
}

#[test]
fn the_token_goes_to_loopback_and_not_over_a_network_in_the_clear() {
    let server = Scripted::start(|_| Say::Json(200, json!({"version": "1"})));
    server.ollama.version().unwrap();
    assert!(server.seen()[0].headers.contains(&"authorization: Bearer secret".to_owned()));
    let sent = |address: &str| Ollama::new(Address::parse(address).unwrap(), Some("secret".to_owned())).http.authorization();
    assert_eq!(sent("https://models.example"), Some("Bearer secret".to_owned()));
    assert_eq!(sent("http://192.0.2.1:1"), None);
}

#[test]
fn a_blob_is_streamed_with_its_length_and_only_where_it_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let content: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    let blob = Blob::of(&path).unwrap();
    let server = Scripted::start(|seen| Say::Text(if seen.line.starts_with("HEAD") { 404 } else { 201 }, ""));
    let mut sent = 0;
    assert!(server.ollama.push_blob(&path, &blob.digest, &mut |bytes| sent = bytes).unwrap());
    assert_eq!(sent, 300_000);
    let seen = server.seen();
    assert_eq!(seen[1].line, format!("POST /api/blobs/{}", blob.digest));
    assert!(seen[1].headers.contains(&"content-length: 300000".to_owned()), "{:?}", seen[1].headers);
    assert!(!seen[1].headers.iter().any(|header| header.starts_with("transfer-encoding")), "{:?}", seen[1].headers);
    assert_eq!(seen[1].body, content);

    let server = Scripted::start(|_| Say::Text(200, ""));
    assert!(!server.ollama.push_blob(&path, &blob.digest, &mut |_| panic!("nothing is to be sent")).unwrap());
    let server = Scripted::start(|seen| match seen.line.starts_with("HEAD") {
        true => Say::Text(404, ""),
        false => Say::Json(400, json!({"error": "digest mismatch, expected \"a\", got \"b\""})),
    });
    assert_says(&said(server.ollama.push_blob(&path, &blob.digest, &mut |_| ())), &["digest mismatch", "the file changed"]);
}

#[test]
fn a_prompt_count_that_a_warm_cache_hides_is_asked_for_again_after_an_unload() {
    let mut calls = 0;
    let server = Scripted::start(move |seen| {
        if seen.line == "POST /api/generate" {
            assert_eq!(seen.json()["keep_alive"], 0);
            return Say::Json(200, json!({"done": true, "done_reason": "unload"}));
        }
        calls += 1;
        let mut last = json!({"message": {"content": ""}, "done": true, "done_reason": "length"});
        if calls > 1 {
            last["prompt_eval_count"] = json!(38);
        }
        Say::Lines(vec![last])
    });
    let messages = [Message::new("user", "Hi")];
    assert_eq!(server.ollama.prompt_eval_count("m", Probe { messages: &messages, tools: None }).unwrap(), 38);
    assert_eq!(server.lines(), ["POST /api/chat", "POST /api/generate", "POST /api/chat"]);
    assert_eq!(server.seen()[0].json()["truncate"], false);
}

#[test]
fn an_ollama_that_cannot_render_only_is_none_and_one_that_can_is_the_text() {
    let messages = [Message::new("user", "Hi")];
    let probe = Probe { messages: &messages, tools: None };
    let server = Scripted::start(|_| Say::Lines(vec![json!({"message": {"content": "Hello"}, "done": true})]));
    assert_eq!(server.ollama.render_only("m", probe).unwrap(), None);
    let server =
        Scripted::start(|_| Say::Json(200, json!({"model": "m", "done": false, "_debug_info": {"rendered_template": "<u>Hi"}})));
    assert_eq!(server.ollama.render_only("m", probe).unwrap().as_deref(), Some("<u>Hi"));
}
