use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::*;
use crate::domain::{Comparison, ItemResult, Verdict};
use crate::runtime::ollama::scripted::{Say, Scripted, Seen};
use crate::store::{NewAdapter, NewDeployment, NewEvaluation};

const ALIAS: &str = "m-coder:latest";

type Models = Arc<Mutex<BTreeMap<String, String>>>;

/// Names and digests, and whether a copy is only said to be made.
fn server(models: &[(&str, &str)], lies: Arc<Mutex<bool>>) -> (Scripted, Models) {
    let models: Models = Arc::new(Mutex::new(models.iter().map(|(name, digest)| ((*name).into(), (*digest).into())).collect()));
    let state = models.clone();
    let server = Scripted::start(move |seen: &Seen| {
        let mut models = state.lock().unwrap();
        match seen.line.as_str() {
            "GET /api/tags" => {
                Say::Json(200, json!({"models": models.iter().map(|(n, d)| json!({"name": n, "digest": d})).collect::<Vec<_>>()}))
            }
            "POST /api/copy" => {
                if !*lies.lock().unwrap() {
                    let digest = models[&seen.text("source")].clone();
                    models.insert(seen.text("destination"), digest);
                }
                Say::Text(200, "")
            }
            line => panic!("{line}"),
        }
    });
    (server, models)
}

fn open<'a>(server: &'a Scripted, root: &Path) -> Champion<'a> {
    Champion::open(&server.ollama, root, "m", "coder", &mut |_| ()).unwrap()
}

fn told(history: &[AliasMove]) -> Vec<(&'static str, &str, bool)> {
    history.iter().map(|m| (m.kind.name(), m.to_name.as_str(), m.is_done())).collect()
}

#[test]
fn a_promotion_is_undone_by_one_roll_back_and_the_next_goes_further_back() {
    let root = tempfile::tempdir().unwrap();
    let (server, models) = server(&[("m-coder:v1", "d1"), ("m-coder:v2", "d2"), ("m-coder:v3", "d3")], Arc::default());
    let latest = || models.lock().unwrap()[ALIAS].clone();
    let mut champion = open(&server, root.path());
    assert!(champion.roll_back(None, "").unwrap_err().to_string().contains("there is no m-coder:latest"));
    let first = champion.promote("v1", "the first").unwrap();
    assert_eq!((first.kind, first.from, first.already), (MoveKind::First, None, false));
    champion.promote("2", "better").unwrap();
    champion.promote("m-coder:v3", "better still").unwrap();
    assert!(champion.promote("v3", "again").unwrap().already);
    assert_eq!(latest(), "d3");
    assert_eq!(champion.roll_back(None, "worse").unwrap().to.name, "m-coder:v2");
    drop(champion);
    // Another process goes on with the same history.
    let mut champion = open(&server, root.path());
    assert_eq!(champion.roll_back(None, "worse, too").unwrap().to.name, "m-coder:v1");
    assert_eq!(latest(), "d1");
    let error = champion.roll_back(None, "").unwrap_err();
    assert!(error.to_string().contains("nothing served before m-coder:v1"), "{error}");
    assert_eq!(champion.roll_back(Some("v3"), "after all").unwrap().to.digest, "d3");
    assert_eq!(champion.roll_back(None, "no").unwrap().to.name, "m-coder:v1");
    assert_eq!(
        told(&champion.history().unwrap()),
        [
            ("first", "m-coder:v1", true),
            ("promotion", "m-coder:v2", true),
            ("promotion", "m-coder:v3", true),
            ("rollback", "m-coder:v2", true),
            ("rollback", "m-coder:v1", true),
            ("rollback", "m-coder:v3", true),
            ("rollback", "m-coder:v1", true),
        ]
    );
}

#[test]
fn what_served_without_a_version_gets_a_name_before_the_alias_moves() {
    let root = tempfile::tempdir().unwrap();
    let (server, models) = server(&[(ALIAS, "sha256:0123456789abcdef"), ("m-coder:v1", "d1")], Arc::default());
    let mut champion = open(&server, root.path());
    let moved = champion.promote("v1", "better").unwrap();
    assert_eq!(moved.from.unwrap().name, "m-coder:kept-0123456789ab");
    assert_eq!(models.lock().unwrap()[ALIAS], "d1");
    let back = champion.roll_back(None, "worse").unwrap();
    assert_eq!(back.to.name, "m-coder:kept-0123456789ab");
    assert_eq!(models.lock().unwrap()[ALIAS], "sha256:0123456789abcdef");
}

#[test]
fn an_ollama_that_only_says_it_copied_is_found_out_and_told_in_the_history() {
    let root = tempfile::tempdir().unwrap();
    let lies = Arc::new(Mutex::new(false));
    let (server, models) = server(&[("m-coder:v1", "d1"), ("m-coder:v2", "d2")], lies.clone());
    let mut champion = open(&server, root.path());
    champion.promote("v1", "the first").unwrap();
    *lies.lock().unwrap() = true;
    let error = champion.promote("v2", "better").unwrap_err();
    assert!(error.to_string().contains("said that it copied m-coder:v2 to m-coder:latest"), "{error}");
    *lies.lock().unwrap() = false;
    let history = champion.history().unwrap();
    assert_eq!(told(&history), [("first", "m-coder:v1", true), ("promotion", "m-coder:v2", false)]);
    assert!(history[1].end.as_ref().unwrap().message.contains("said that it copied"));
    assert_eq!(models.lock().unwrap()[ALIAS], "d1");
    // What was not made is no step of the way back.
    let error = champion.roll_back(None, "").unwrap_err();
    assert!(error.to_string().contains("nothing served before"), "{error}");
}

#[test]
fn what_a_killed_process_left_is_settled_by_what_the_ollama_serves() {
    for (served, done) in [("d2", true), ("d1", false)] {
        let root = tempfile::tempdir().unwrap();
        let (server, models) = server(&[("m-coder:v1", "d1"), ("m-coder:v2", "d2")], Arc::default());
        let mut champion = open(&server, root.path());
        champion.promote("v1", "the first").unwrap();
        let address = server.ollama.address().to_string();
        let cut_off = NewMove {
            server: &address,
            alias: ALIAS,
            kind: MoveKind::Promotion,
            from: Some(("m-coder:v1", "d1")),
            to: ("m-coder:v2", "d2"),
            reason: "better",
        };
        champion.store().begin_move(&cut_off).unwrap();
        drop(champion);
        models.lock().unwrap().insert(ALIAS.into(), served.into());
        let mut notes = Vec::new();
        let champion = Champion::open(&server.ollama, root.path(), "m", "coder", &mut |n| notes.push(n.to_owned())).unwrap();
        assert!(notes[0].contains("promotion of m-coder:latest to m-coder:v2 was cut off"), "{notes:?}");
        let history = champion.history().unwrap();
        assert_eq!(told(&history), [("first", "m-coder:v1", true), ("promotion", "m-coder:v2", done)]);
    }
}

#[test]
fn what_others_do_to_the_alias_is_in_the_history_and_can_be_undone() {
    let root = tempfile::tempdir().unwrap();
    let (server, models) = server(&[("m-coder:v1", "d1"), ("m-coder:v2", "d2")], Arc::default());
    open(&server, root.path()).promote("v1", "the first").unwrap();
    models.lock().unwrap().insert(ALIAS.into(), "d2".into());
    let mut champion = open(&server, root.path());
    assert_eq!(told(&champion.history().unwrap()), [("first", "m-coder:v1", true), ("outside", "m-coder:v2", true)]);
    assert_eq!(champion.roll_back(None, "not asked for").unwrap().to.name, "m-coder:v1");
    // A version that is gone cannot be gone back to.
    champion.promote("v2", "").unwrap();
    models.lock().unwrap().remove("m-coder:v1");
    let error = champion.roll_back(None, "").unwrap_err();
    assert!(error.to_string().contains("m-coder:v1 served before") && error.hint().unwrap().contains("it has v2"), "{error}");
    for (wrong, says) in
        [("v9", "has no m-coder:v9"), ("other:v1", "no version of"), ("latest", "no version of"), ("a b", "not allowed")]
    {
        let error = champion.promote(wrong, "").unwrap_err();
        assert!(error.to_string().contains(says), "{wrong}: {error}");
    }
}

#[test]
fn what_the_judge_rejected_needs_force_and_the_history_says_so() {
    let root = tempfile::tempdir().unwrap();
    let (server, _) = server(&[("m-coder:v1", "d1"), ("m-coder:v2", "d2"), ("m-coder:v3", "d3")], Arc::default());
    let address = server.ollama.address().to_string();
    let mut champion = open(&server, root.path());
    for (version, digest) in [(1, "d1"), (2, "d2"), (3, "d3")] {
        let recipe = json!({});
        let deployment =
            NewDeployment { server: &address, model: "m-coder", version, digest, mode: "merged", size_bytes: 1, recipe: &recipe };
        let adapter = format!("adapter of {digest}");
        let adapter = NewAdapter { role: "coder", digest: &adapter, path: "/a", base_name: "b", base_digest: "b", run: None };
        champion.store().record_deployment(&deployment, &adapter).unwrap();
    }
    let judged = |champion: &mut Champion, digest: &str, verdict: Verdict| {
        let judgement = json!({"explanation": "12 points worse"});
        let evaluation = NewEvaluation {
            role: "coder",
            base_name: "b",
            base_digest: "b",
            candidate: "/a",
            candidate_digest: &format!("adapter of {digest}"),
            champion: "base",
            champion_digest: "b",
            data: "held.jsonl",
            items_digest: "i",
            verdict: &verdict,
            judgement: &judgement,
            settings: &json!({}),
            seconds: 1.0,
            comparisons: &[("", &comparison())],
        };
        champion.store().record_evaluation(&evaluation).unwrap();
    };
    // An older word of the judge does not count.
    judged(&mut champion, "d2", Verdict::Promote);
    judged(&mut champion, "d2", Verdict::Reject(Vec::new()));
    judged(&mut champion, "d3", Verdict::Promote);
    let mut notes = Vec::new();
    let mut promote = |champion: &mut Champion, version: &str, force: bool| {
        champion.promote_judged(version, None, force, &mut |note| notes.push(note.to_owned()))
    };
    promote(&mut champion, "v1", false).unwrap();
    let error = promote(&mut champion, "v2", false).unwrap_err();
    assert_eq!(error.to_string(), "evaluation 2 rejected m-coder:v2: 12 points worse");
    assert!(error.hint().unwrap().contains("--force"));
    promote(&mut champion, "v2", true).unwrap();
    promote(&mut champion, "v3", false).unwrap();
    let reasons: Vec<String> = champion.history().unwrap().into_iter().map(|m| m.reason).collect();
    assert_eq!(reasons, ["not judged", "forced, though evaluation 2 rejected it", "evaluation 3: promote"]);
    assert_eq!(notes, ["no evaluation of m-coder:v1 is recorded: `retune evaluate` tells whether it is better"]);
}

fn comparison() -> Comparison {
    let side = || vec![ItemResult { item: "i".into(), group: "g".into(), loss_sum: 1.0, trained_tokens: 1, answer: None }];
    Comparison::pair(side(), side()).unwrap()
}

#[test]
fn two_at_once_move_one_after_the_other() {
    let root = tempfile::tempdir().unwrap();
    let (server, models) = server(&[("m-coder:v1", "d1"), ("m-coder:v2", "d2")], Arc::default());
    std::thread::scope(|scope| {
        for version in ["v1", "v2"] {
            let (server, root) = (&server, root.path());
            scope.spawn(move || {
                for _ in 0..10 {
                    open(server, root).promote(version, "mine").unwrap();
                }
            });
        }
    });
    let champion = open(&server, root.path());
    let history = champion.history().unwrap();
    assert!(history.iter().all(AliasMove::is_done), "{history:?}");
    assert!(history.iter().all(|m| m.kind != MoveKind::Outside), "{history:?}");
    // Each knew what it moved from.
    for pair in history.windows(2) {
        assert_eq!(pair[1].from_digest.as_deref(), Some(pair[0].to_digest.as_str()));
    }
    assert_eq!(history.last().unwrap().to_digest, models.lock().unwrap()[ALIAS]);
}
