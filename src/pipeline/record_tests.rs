use super::*;
use crate::domain::{Evidence, RunResult, SourceKind};

fn recorder() -> Recorder {
    Recorder::new(&Config::default()).unwrap()
}

fn run(id: &str) -> NewRun {
    NewRun {
        id: Some(id.to_owned()),
        role: "coder".to_owned(),
        prompt: Some("Write a function".to_owned()),
        output: Some("fn f() {}".to_owned()),
        result: RunResult { compile_pass: Some(true), tests_passed: Some(1), tests_total: Some(2), ..RunResult::default() },
        ..NewRun::default()
    }
}

#[test]
fn a_run_is_stored_with_its_signals_reward_and_texts_and_a_repeat_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut store = Store::open(root.path()).unwrap();
    let recorder = recorder();
    let first = recorder.record(&mut store, &[run("a")], false).unwrap().remove(0);
    assert_eq!((first.number, first.repeated, first.reward, first.observed_weight), (1, false, Some(0.75), 0.5));
    let other = NewRun { output: Some("changed".to_owned()), ..run("a") };
    let again = recorder.record(&mut store, &[other], false).unwrap().remove(0);
    assert_eq!((again.number, again.repeated), (1, true));
    assert_eq!(store.result(1).unwrap(), run("a").result);
    let texts = store.texts(1).unwrap().unwrap();
    assert_eq!(texts.messages, [Message::new("user", "Write a function"), Message::new("assistant", "fn f() {}")]);
    assert_eq!(store.stats(None, 100).unwrap().all.runs, 1);
    assert_eq!(store.damage().unwrap(), None);
}

#[test]
fn nothing_private_gets_into_any_table() {
    let root = tempfile::tempdir().unwrap();
    let mut store = Store::open(root.path()).unwrap();
    let secret = "wirtz.anna@northgate-tools.com";
    let texts = |text: &str| Some(format!("about {text}"));
    let new = NewRun {
        id: Some(secret.to_owned()),
        user: Some(secret.to_owned()),
        session: Some(format!("s {secret}")),
        task: texts(secret),
        model: texts("/home/annawirtz/model.gguf"),
        prompt: texts("/home/annawirtz/src, written by annawirtz"),
        system: texts(secret),
        output: texts(secret),
        tools: Some(json!([{"name": secret}])),
        choice_id: Some(secret.to_owned()),
        action_type: texts(secret),
        prompt_variant: texts(secret),
        source: Some(Source { name: secret.to_owned(), kind: SourceKind::Person, terms: texts(secret), training: None }),
        ..run("x")
    };
    let recorder = recorder();
    let recorded = recorder.record(&mut store, &[new], false).unwrap().remove(0);
    let said = Said { user: secret.to_owned(), comment: texts(secret), edited: texts(secret), ..Said::default() };
    recorder.feedback(&mut store, secret, &said).unwrap();
    // The client's own name still finds it.
    assert_eq!(recorded.id, recorder.identifier(secret));
    let texts = store.texts(1).unwrap().unwrap();
    assert_eq!(texts.messages[0].content, texts.messages[2].content, "the same value is the same placeholder");
    assert!(texts.messages[1].content.contains("/home/<USER_1>/src, written by <USER_1>"), "{texts:?}");
    drop(store);
    for file in ["experience.db", "experience.db-wal"] {
        let bytes = std::fs::read(root.path().join(".agent").join(file)).unwrap_or_default();
        let found = |needle: &str| bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
        assert!(!found(secret) && !found("annawirtz"), "{file}");
    }
}

#[test]
fn runs_of_one_task_or_of_one_request_are_one_group() {
    let recorder = recorder();
    let group = |new: NewRun| recorder.row(&new, false).unwrap().task_group.unwrap();
    let asked = |text: &str| NewRun { prompt: Some(text.to_owned()), ..run("a") };
    assert_eq!(group(asked("Write  a\nFunction")), group(run("b")));
    assert_ne!(group(asked("Write another function")), group(run("b")));
    let of_task = |task: &str, prompt: &str| NewRun { task: Some(task.to_owned()), ..asked(prompt) };
    assert_eq!(group(of_task("t1", "one way to ask")), group(of_task("T1 ", "another")));
    assert_ne!(group(of_task("t1", "one way to ask")), group(of_task("t2", "one way to ask")));
    // Another role does the same work: the line is drawn by the work.
    assert_eq!(group(NewRun { role: "fixer".to_owned(), ..run("a") }), group(run("b")));
}

#[test]
fn what_cannot_be_is_refused_with_its_name() {
    let recorder = recorder();
    let refusal = |new: NewRun| recorder.row(&new, false).unwrap_err().to_string();
    let result = |text: &str| NewRun { result: serde_json::from_str(text).unwrap(), ..run("a") };
    assert!(refusal(result(r#"{"tests_passed": 3, "tests_total": 2}"#)).contains("tests_passed is 3, more than tests_total (2)"));
    assert!(refusal(result(r#"{"coverage_pct": 101}"#)).contains("coverage_pct is 101"));
    assert!(refusal(NewRun { role: "Coder!".to_owned(), ..run("a") }).contains("the role is 'Coder!'"));
    assert!(refusal(NewRun { at: Some("yesterday".to_owned()), ..run("a") }).contains("at is 'yesterday'"));
    assert!(refusal(NewRun { messages: Some(vec![]), ..run("a") }).contains("messages and a prompt"));
    assert!(refusal(NewRun { id: Some(String::new()), ..run("a") }).contains("id is"));
    let ended = vec![Message::new("user", "a"), Message::new("assistant", "b")];
    assert!(refusal(NewRun { prompt: None, messages: Some(ended), ..run("a") }).contains("there is an output"));
}

#[test]
fn a_run_without_texts_keeps_its_numbers() {
    let recorder = recorder();
    for new in [NewRun { prompt: None, ..run("a") }, NewRun { output: None, ..run("a") }] {
        let row = recorder.row(&new, false).unwrap();
        assert_eq!((row.texts, row.withheld, row.reward.reward), (None, None, Some(0.75)));
    }
}

#[test]
fn the_last_vote_of_a_user_counts_and_the_reward_follows_it() {
    let root = tempfile::tempdir().unwrap();
    let mut store = Store::open(root.path()).unwrap();
    let recorder = recorder();
    recorder.record(&mut store, &[run("a")], false).unwrap();
    let mut say = |user: &str, said: Said| {
        let voted = recorder.feedback(&mut store, "a", &Said { user: user.to_owned(), ..said }).unwrap();
        (voted.vote, voted.reward.map(|reward| (reward * 1e6).round() / 1e6))
    };
    let thumb = |up: bool| Said { thumb: Some(up), ..Said::default() };
    // compile 1, tests .5, then the vote.
    assert_eq!(say("anna", thumb(true)), (Some(1.0), Some(0.833_333)));
    assert_eq!(say("anna", thumb(false)), (Some(0.0), Some(0.5)));
    assert_eq!(say("ben", Said { score: Some(0.8), ..Said::default() }), (Some(0.4), Some(0.633_333)));
    assert_eq!(say("ben", Said { comment: Some("hm".to_owned()), ..Said::default() }), (Some(0.4), Some(0.633_333)));
    // Said twice under one id it counts once.
    let once = Said { id: Some("v1".to_owned()), ..thumb(true) };
    assert_eq!(say("cleo", once.clone()).0, say("cleo", once).0);
    assert_eq!(store.run("a").unwrap().unwrap().vote, Some(0.6));
}

#[test]
fn an_edited_answer_is_a_vote_against_the_first_one_and_an_example() {
    let root = tempfile::tempdir().unwrap();
    let mut store = Store::open(root.path()).unwrap();
    let recorder = recorder();
    recorder.record(&mut store, &[run("a")], false).unwrap();
    let said = Said { user: "anna".to_owned(), edited: Some("fn f() -> u32 { 1 }".to_owned()), ..Said::default() };
    assert_eq!(recorder.feedback(&mut store, "a", &said).unwrap().vote, Some(0.0));
    let candidates = store.candidates("coder").unwrap();
    assert_eq!(
        candidates.iter().map(|c| (c.run, c.vote, c.demonstration)).collect::<Vec<_>>(),
        [(1, Some(0.0), false), (2, None, true)]
    );
    assert_eq!(candidates[0].group, candidates[1].group);
    assert_eq!(store.texts(2).unwrap().unwrap().messages[1].content, "fn f() -> u32 { 1 }");
}

#[test]
fn weights_that_change_change_every_reward_once() {
    let root = tempfile::tempdir().unwrap();
    let mut store = Store::open(root.path()).unwrap();
    let recorder = recorder();
    let runs: Vec<NewRun> = (0..25).map(|n| run(&n.to_string())).collect();
    recorder.record(&mut store, &runs, false).unwrap();
    let said = Said { user: "anna".to_owned(), thumb: Some(true), ..Said::default() };
    recorder.feedback(&mut store, "3", &said).unwrap();
    let weights = Weights { compile: 0.0, tests: 1.0, errors: 0.0, human: 1.0, half_errors: 5.0 };
    let batches: Vec<usize> = std::iter::repeat_with(|| store.recompute_rewards(&weights, 10).unwrap()).take(4).collect();
    assert_eq!(batches, [10, 10, 5, 0]);
    let reward = |id: &str| store.run(id).unwrap().unwrap();
    assert_eq!((reward("0").reward, reward("0").observed_weight), (Some(0.5), 0.5));
    assert_eq!((reward("3").reward, reward("3").observed_weight), (Some(0.75), 1.0));
    // And back: a version that sorts before the other one.
    assert_eq!(std::iter::repeat_with(|| store.recompute_rewards(recorder.weights(), 100).unwrap()).take(2).sum::<usize>(), 25);
    assert_eq!(store.run("0").unwrap().unwrap().reward, Some(0.75));
}

#[test]
fn the_sources_terms_decide_what_may_be_learnt() {
    let root = tempfile::tempdir().unwrap();
    let mut store = Store::open(root.path()).unwrap();
    let of = |id: &str, name: &str, training: Option<bool>| NewRun {
        source: Some(Source { name: name.to_owned(), training, ..Source::default() }),
        ..run(id)
    };
    let runs = [
        of("a", "qwen2.5-coder:7b", None),
        of("b", "gpt-4o", None),
        of("c", "gpt-oss:20b", None),
        of("d", "gpt-4o", Some(true)),
        of("e", "mistral", Some(false)),
        of("f", "claude-sonnet", None),
        NewRun { evidence: Evidence::SelfReported, ..run("g") },
    ];
    recorder().record(&mut store, &runs, false).unwrap();
    let found: Vec<bool> = store.candidates("coder").unwrap().iter().map(|c| c.may_train).collect();
    assert_eq!(found, [true, false, true, true, false, false, true]);
    assert_eq!(store.candidates("coder").unwrap()[6].evidence, Evidence::SelfReported);
}
