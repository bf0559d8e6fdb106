//! `retune evaluate --served` on real Ollamas: the versions that clients get are judged, with their speed and memory, and promotion
//! heeds the verdict.

mod common;
#[path = "support/ollama_peer.rs"]
mod ollama_peer;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::{refusal, says};
use ollama_peer::{BOTH, Peer};
use retune::demo::task::{self, Split};
use retune::store::Store;
use retune_kernels::rng::Rng;
use serde_json::{Value, json};

struct Place<'a> {
    peer: &'a Peer,
    scratch: &'a Path,
}

impl Place<'_> {
    fn text(&self, name: &str) -> String {
        self.scratch.join(name).to_str().unwrap().to_owned()
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args(args).args(["--root", &self.text("root")]);
        command.env("OLLAMA_HOST", &self.peer.host).env("OLLAMA_MODELS", self.peer.models()).output().expect("the binary runs")
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn judged(&self, args: &[&str]) -> Value {
        let more = ["--max-tokens", "6", "--json"];
        serde_json::from_str(&self.ok(&[&["evaluate", "--served"], args, &more].concat())).unwrap()
    }

    fn rows(&self, name: &str, requests: &[String], answer: &str) -> String {
        let row = |request: &String| json!({"instruction": request, "output": answer}).to_string() + "\n";
        fs::write(self.scratch.join(name), requests.iter().map(row).collect::<String>()).unwrap();
        self.text(name)
    }

    /// A version that says `answer` to everything.
    fn deploy(&self, answer: &str, requests: &[String]) {
        let (data, out) = (self.rows(&format!("{answer}.jsonl"), requests, answer), self.text(answer));
        let settings = ["--rank", "8", "--max-steps", "40", "--batch-size", "8", "--grad-accum", "1", "--learning-rate", "5e-3"];
        let what = ["train", "--json", "--base", "demo", "--data", &data, "--out", &out];
        common::retune_ok(&[&what[..], &settings].concat());
        self.ok(&["deploy", "--json", "--adapter", &out]);
    }
}

fn requests(n: usize, split: Split, seed: u64) -> Vec<String> {
    let mut rng = Rng::new(seed);
    task::items(n, || task::skill("say", &mut rng, split)).into_iter().map(|item| item.request).collect()
}

#[test]
fn what_clients_get_is_judged_and_promotion_heeds_it_on_both() {
    for kind in BOTH {
        let Some(peer) = Peer::start(kind) else { continue };
        let scratch = tempfile::tempdir().unwrap();
        let place = Place { peer: &peer, scratch: scratch.path() };
        let taught = requests(64, Split::Train, 1);
        place.deploy("zzzz", &taught);
        place.deploy("wwww", &taught);
        let wanted = place.rows("held_out.jsonl", &requests(52, Split::HeldOut, 2), "wwww");

        let better = place.judged(&["--candidate", "v2", "--data", &wanted]);
        let judgement = &better["judgement"];
        assert_eq!(
            (&judgement["primary"]["candidate"], &judgement["primary"]["champion"]),
            (&json!(1.0), &json!(0.0)),
            "{better}"
        );
        // Speed and memory of both were measured; on a busy machine the guards may say what they will.
        for guard in ["speed", "memory"] {
            let all = judgement["guards"].as_array().unwrap();
            let found = all.iter().find(|g| g["guard"]["guard"] == guard).unwrap_or_else(|| panic!("no {guard}: {better}"));
            assert!(found["guard"]["candidate"].as_f64().unwrap() > 0.0 && found["guard"]["champion"].as_f64().unwrap() > 0.0);
        }
        let worse = place.judged(&["--candidate", "v1", "--champion", "v2", "--data", &wanted]);
        assert_eq!(worse["verdict"], "reject", "{worse}");

        // The record is of the adapters, so that promotion finds it.
        let store = Store::open(&scratch.path().join("root")).unwrap();
        assert_eq!(store.evaluation_items(better["id"].as_i64().unwrap()).unwrap(), 52);
        drop(store);
        if better["verdict"] == "promote" {
            place.ok(&["promote", "v2"]);
            says(&place.ok(&["history"]), &["v1 -> v2", "evaluation 1: promote"]);
        } else {
            place.ok(&["promote", "v2", "--force"]);
        }
        says(&refusal(2, &place.run(&["promote", "v1"]), "what was rejected"), &["evaluation 2 rejected", ":v1", "--force"]);

        let data = ["--data", wanted.as_str()];
        let run = |args: &[&str]| place.run(&[&["evaluate", "--served"], args, &data[..]].concat());
        says(&refusal(2, &run(&["--candidate", "v2"]), "the champion against itself"), &["one and the same model"]);
        says(&refusal(2, &run(&["--candidate", "v7"]), "no such version"), &["has no my-coder-tuned-coder:v7"]);
        says(&refusal(2, &run(&["--candidate", "v1", "--max-tokens", "0"]), "losses"), &["a server tells no losses", "--served"]);
    }
}

#[test]
fn nothing_is_recorded_where_no_ollama_answers() {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("rows.jsonl");
    fs::write(&data, "{\"instruction\":\"a\",\"output\":\"b\"}\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
    command.args(["evaluate", "--served", "--candidate", "v2", "--data"]).arg(&data).current_dir(scratch.path());
    let output = command.env("OLLAMA_HOST", "127.0.0.1:1").output().unwrap();
    says(&refusal(1, &output, "no Ollama"), &["127.0.0.1:1"]);
    assert!(!scratch.path().join(".agent").exists());
    let output = common::retune(&["evaluate", "--candidate", "a", "--data", data.to_str().unwrap()]);
    says(&refusal(2, &output, "neither a base nor a server"), &["--base"]);
}

#[test]
fn a_real_judge_model_is_asked_in_both_orders_and_may_not_be_kin() {
    let Some(file) = ollama_peer::peer_file("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    for kind in BOTH {
        let Some(peer) = Peer::start(kind) else { continue };
        let scratch = tempfile::tempdir().unwrap();
        let place = Place { peer: &peer, scratch: scratch.path() };
        let modelfile = scratch.path().join("Modelfile.judge");
        fs::write(&modelfile, format!("FROM {}\n", file.display())).unwrap();
        peer.cli(&["create", "smollm2", "-f", modelfile.to_str().unwrap()]);

        let adapter = common::adapter_that_answers(scratch.path(), "wwww");
        let candidate = adapter.to_str().unwrap();
        let wanted = place.rows("held_out.jsonl", &requests(4, Split::HeldOut, 2), "wwww");
        let args = ["evaluate", "--base", "demo", "--candidate", candidate, "--data", &wanted, "--max-tokens", "6", "--json"];
        let run = |more: &[&str]| place.run(&[&args, more].concat());
        says(&refusal(2, &run(&["--judge", "smollm2"]), "kin"), &["own family (llama)", "--judge-same-family"]);
        says(&refusal(2, &run(&["--judge", "other"]), "no such judge"), &["has no other", "ollama pull other"]);

        let output = run(&["--judge", "smollm2", "--judge-same-family"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let primary = &found["judgement"]["primary"];
        assert_eq!((&primary["measure"], &primary["items"]), (&json!("judged"), &json!(4)), "{found}");
        // Each side's share is what the judge said twice; what it contradicted is told and counts for neither.
        let preferred = (primary["candidate"].as_f64().unwrap() + primary["champion"].as_f64().unwrap()) * 4.0;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let unsure = told.split_once("note: on ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok()).unwrap_or(0);
        assert!(preferred.round() as usize + unsure <= 4, "{preferred} {told}");
        let store = Store::open(&scratch.path().join("root")).unwrap();
        assert_eq!(store.evaluation_items(found["id"].as_i64().unwrap()).unwrap(), 4);
        eprintln!("{kind:?}: {}", found["judgement"]["explanation"]);
    }
}
