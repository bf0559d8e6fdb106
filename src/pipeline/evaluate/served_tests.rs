use serde_json::json;

use super::super::{EvaluateRequest, Evaluated, evaluate};
use super::*;
use crate::domain::{Guard, Reason, Standing, Verdict};
use crate::evaluate::verdict::Rules;
use crate::runtime::ollama::scripted::{Say, Scripted, Seen};
use crate::store::{NewAdapter, NewDeployment};

/// What one scripted model is like.
#[derive(Clone, Copy)]
struct Like {
    /// Of ten answers, so many are right.
    right: usize,
    tokens_per_second: f64,
    memory_bytes: u64,
}

const CHAMPION: Like = Like { right: 2, tokens_per_second: 100.0, memory_bytes: 1000 << 20 };

/// An Ollama whose `m-coder:v2` is `candidate`, and whose `:latest` is `v1`, the champion.
fn server(candidate: Like) -> Scripted {
    Scripted::start(move |seen: &Seen| {
        let like = |name: &str| if name.ends_with("v2") { candidate } else { CHAMPION };
        match seen.line.as_str() {
            "GET /api/version" => Say::Json(200, json!({"version": "9.9"})),
            "GET /api/tags" => {
                let model = |name: &str, digest: &str| json!({"name": name, "digest": digest, "size": 5});
                let models = [model("m-coder:v1", "d1"), model("m-coder:latest", "d1"), model("m-coder:v2", "d2")];
                Say::Json(200, json!({ "models": models }))
            }
            "GET /api/ps" => {
                // Under the name that loaded it.
                let loaded = [("m-coder:trial", "d2", candidate), ("m-coder:v1", "d1", CHAMPION)];
                let entry =
                    |(name, digest, like): (&str, &str, Like)| json!({"name": name, "digest": digest, "size": like.memory_bytes});
                let loaded: Vec<Value> = loaded.into_iter().map(entry).collect();
                Say::Json(200, json!({ "models": loaded }))
            }
            "POST /api/chat" => {
                let (body, like) = (seen.json(), like(&seen.text("model")));
                let asked: usize = body["messages"][0]["content"].as_str().unwrap().parse().unwrap();
                let text = if asked % 10 < like.right { "yes" } else { "no" };
                let nanoseconds = (4.0 / like.tokens_per_second * 1e9) as u64;
                Say::Lines(vec![
                    json!({"message": {"content": text}}),
                    json!({"message": {"content": ""}, "done": true, "done_reason": "stop", "eval_count": 4, "eval_duration": nanoseconds}),
                ])
            }
            line => panic!("{line}"),
        }
    })
}

fn judged(candidate: Like) -> (Evaluated, Scripted) {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("rows.jsonl");
    let rows: String = (0..60).map(|n| json!({"instruction": n.to_string(), "output": "yes"}).to_string() + "\n").collect();
    std::fs::write(&data, rows).unwrap();
    let server = server(candidate);
    let named = ServedSides { prefix: "m".into(), role: "coder".into(), candidate: "2".into(), champion: None };
    let mut sides = AtServer::open(&server.ollama, scratch.path(), &named).unwrap();
    let request = EvaluateRequest {
        role: "coder".into(),
        data,
        guards: Vec::new(),
        group_by: None,
        max_tokens: 16,
        verifier: None,
        judge: None,
        rules: Rules::default(),
        root: scratch.path().to_owned(),
        report: None,
    };
    let found = evaluate(&mut sides, &request, &AtomicBool::new(false), &mut |_| (), &mut |_| ()).unwrap();
    (found, server)
}

fn fallen(found: &Evaluated) -> Vec<String> {
    let fell = |reason: &Reason| match reason {
        Reason::Guard(guarded) => Some(guarded.to_string()),
        _ => None,
    };
    found.judgement.verdict.reasons().iter().filter_map(fell).collect()
}

#[test]
fn a_served_candidate_that_is_better_as_fast_and_as_small_is_promoted() {
    let (found, server) = judged(Like { right: 8, ..CHAMPION });
    assert_eq!(found.judgement.verdict, Verdict::Promote, "{}", found.judgement.explanation);
    assert_eq!((found.judgement.primary.candidate, found.judgement.primary.champion), (0.8, 0.2));
    let held: Vec<_> = found.judgement.guards.iter().filter(|guarded| guarded.standing == Standing::Held).collect();
    assert!(
        held.iter().any(|g| matches!(g.guard, Guard::Speed { candidate, champion, .. } if (candidate - champion).abs() < 1e-3))
    );
    assert!(held.iter().any(|g| matches!(g.guard, Guard::Memory { candidate, champion, .. } if candidate == champion)));
    // Eight of one side, eight of the other twice: what the machine does else falls on both alike.
    let asked: Vec<String> =
        server.seen().iter().filter(|seen| seen.line == "POST /api/chat").map(|seen| seen.text("model")).collect();
    let turns: Vec<&str> = asked.chunks(8).map(|turn| turn[0].rsplit(':').next().unwrap()).take(4).collect();
    assert_eq!(asked.len(), 120);
    assert_eq!(turns, ["v2", "latest", "latest", "v2"]);
}

#[test]
fn a_better_candidate_that_is_served_too_slowly_or_too_large_is_rejected() {
    let better = Like { right: 8, ..CHAMPION };
    let (slow, _) = judged(Like { tokens_per_second: 79.0, ..better });
    assert_eq!(fallen(&slow).len(), 1, "{}", slow.judgement.explanation);
    assert!(fallen(&slow)[0].contains("79.0 tokens/s where the champion has 100.0"), "{:?}", fallen(&slow));
    let (bare, _) = judged(Like { tokens_per_second: 81.0, ..better });
    assert_eq!(bare.judgement.verdict, Verdict::Promote);
    let (large, _) = judged(Like { memory_bytes: 1260 << 20, ..better });
    assert!(fallen(&large)[0].contains("1260 MiB where the champion has 1000"), "{:?}", fallen(&large));
    let (as_large, _) = judged(Like { memory_bytes: 1250 << 20, ..better });
    assert_eq!(as_large.judgement.verdict, Verdict::Promote);
}

#[test]
fn names_are_versions_of_the_role_or_whole_names() {
    let alias = alias_name("m", "coder").unwrap();
    for (text, name) in [
        ("7", "m-coder:v7"),
        ("v7", "m-coder:v7"),
        ("latest", "m-coder:latest"),
        ("m-coder:v7", "m-coder:v7"),
        ("smollm2:135m", "smollm2:135m"),
        ("smollm2", "smollm2:latest"),
    ] {
        assert_eq!(named(&alias, text).unwrap().to_string(), name);
    }
    let server = server(CHAMPION);
    let open = |candidate: &str, champion: Option<&str>| {
        let sides = ServedSides {
            prefix: "m".into(),
            role: "coder".into(),
            candidate: candidate.into(),
            champion: champion.map(str::to_owned),
        };
        AtServer::open(&server.ollama, Path::new("/nowhere"), &sides).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(open("v1", None).contains("one and the same model"), "{}", open("v1", None));
    assert!(open("v9", None).contains("has no m-coder:v9"), "{}", open("v9", None));
    assert_eq!(open("v2", Some("v1")), "");
}

#[test]
fn the_middle_one_counts() {
    assert_eq!(median(&[]), None);
    assert_eq!(median(&[3.0, 100.0, 1.0]), Some(3.0));
    assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), Some(3.0));
}

#[test]
fn the_record_is_of_the_adapter_also_where_the_name_has_a_user_in_it() {
    let scratch = tempfile::tempdir().unwrap();
    let server = Scripted::start(|seen: &Seen| match seen.line.as_str() {
        "GET /api/version" => Say::Json(200, json!({"version": "9.9"})),
        "GET /api/tags" => {
            let model = |name: &str, digest: &str| json!({"name": name, "digest": digest, "size": 5});
            Say::Json(200, json!({ "models": [model("me/m-coder:v1", "d1"), model("me/m-coder:v2", "d2")] }))
        }
        line => panic!("{line}"),
    });
    let mut store = Store::open(scratch.path()).unwrap();
    let (id, recipe) = (server.ollama.id(), json!({}));
    let deployment = NewDeployment {
        server: &id,
        model: "me/m-coder",
        version: 2,
        digest: "d2",
        mode: "merged",
        size_bytes: 1,
        recipe: &recipe,
    };
    let adapter = NewAdapter { role: "coder", digest: "of v2", path: "/a", base_name: "b", base_digest: "b", run: None };
    store.record_deployment(&deployment, &adapter).unwrap();
    let sides = ServedSides { prefix: "me/m".into(), role: "coder".into(), candidate: "v2".into(), champion: Some("v1".into()) };
    let [candidate, champion] = AtServer::open(&server.ollama, scratch.path(), &sides).unwrap().names();
    assert_eq!((candidate.name.as_str(), candidate.digest.as_str()), ("me/m-coder:v2", "of v2"));
    // What the store does not know is told by its manifest.
    assert_eq!((champion.name.as_str(), champion.digest.as_str()), ("me/m-coder:v1", "d1"));
}
