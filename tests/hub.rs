//! Bases of the hub, through the binary, from a hub on this machine that speaks as huggingface.co does and fails as
//! networks do.

mod common;
#[path = "support/hub_server.rs"]
mod hub_server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{files, refusal, says};
use hub_server::{COMMIT, Fault, HubServer, Repo, etag};

const WEIGHTS: &str = "model.safetensors";

/// A hub, a home without anything in it, and the files of stories260K.
struct Place {
    server: HubServer,
    folder: tempfile::TempDir,
    repo: Repo,
}

impl Place {
    /// `None` after saying that the test is skipped.
    fn new(test: &str) -> Option<Self> {
        let source = common::data(test)?.join("models/stories260K");
        let small =
            ["config.json", "generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"];
        let mut all: Vec<(String, Vec<u8>)> =
            small.iter().chain(&[WEIGHTS]).map(|name| ((*name).to_owned(), fs::read(source.join(name)).unwrap())).collect();
        // What nobody needs must not be fetched.
        for name in ["README.md", "pytorch_model.bin", "model.onnx", "consolidated.safetensors", "flax_model.msgpack"] {
            all.push((name.to_owned(), b"not needed".to_vec()));
        }
        let place = Self { server: HubServer::start(), folder: tempfile::tempdir().unwrap(), repo: Repo::new(all) };
        place.server.put("org/stories", place.repo.clone());
        Some(place)
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("huggingface")
    }

    fn model(&self) -> PathBuf {
        self.home().join("hub/models--org--stories")
    }

    fn blob(&self, name: &str) -> PathBuf {
        self.model().join("blobs").join(etag(name, self.repo.file(name)))
    }

    fn command(&self, arguments: &[&str], env: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
        for name in
            ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH"]
        {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.server.url).env("HF_HOME", self.home());
        command.env("HOME", self.folder.path()).env("OLLAMA_MODELS", self.folder.path().join("ollama"));
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1").env("HF_HUB_ETAG_TIMEOUT", "2");
        command.args(arguments).envs(env.iter().copied());
        command
    }

    /// Opens a base, which is all that is asked here.
    fn open(&self, base: &str, env: &[(&str, &str)]) -> Output {
        self.command(&["tokenize", "--json", "--base", base, "--text", "Once upon a time"], env).output().unwrap()
    }

    fn opens(&self, base: &str, env: &[(&str, &str)]) {
        let output = self.open(base, env);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "{\"ids\":[1,403,407,261,378]}");
    }

    fn refuses(&self, code: i32, base: &str, env: &[(&str, &str)]) -> String {
        refusal(code, &self.open(base, env), base)
    }

    /// Every file that is needed lies there, whole, and nothing else but locks.
    fn is_whole(&self) {
        let needed = |name: &str| name.ends_with(".json") || name == WEIGHTS;
        for (name, bytes) in self.repo.files.iter().filter(|(name, _)| needed(name)) {
            assert!(&fs::read(self.blob(name)).unwrap() == bytes, "{name}");
            let link = self.model().join("snapshots").join(COMMIT).join(name);
            assert_eq!(fs::read_link(&link).unwrap(), Path::new("../../blobs").join(etag(name, bytes)), "{name}");
        }
        assert_eq!(fs::read_to_string(self.model().join("refs/main")).unwrap(), COMMIT);
        assert_eq!(files(&self.model()).len(), 2 * 6 + 1, "{:?}", files(&self.model()));
    }
}

#[test]
fn an_id_is_trained_from_an_empty_home_and_then_without_a_hub() {
    let Some(place) = Place::new("an_id_is_trained_from_an_empty_home_and_then_without_a_hub") else { return };
    let rows = place.folder.path().join("rows.jsonl");
    fs::write(&rows, "{\"instruction\":\"Tell\",\"output\":\"Once upon a time\"}\n".repeat(4)).unwrap();
    let out = place.folder.path().join("out");
    let train = |base: &str, out: &Path, env: &[(&str, &str)]| {
        let paths = [rows.to_str().unwrap(), out.to_str().unwrap()];
        let arguments = [
            "train",
            "--base",
            base,
            "--data",
            paths[0],
            "--out",
            paths[1],
            "--template",
            "plain",
            "--max-steps",
            "3",
            "--rank",
            "2",
        ];
        let output = place.command(&arguments, env).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    let said = train("org/stories", &out, &[]);
    says(&said, &["fetching org/stories from http://127.0.0.1", "6 files", "MB"]);
    place.is_whole();
    let fetched = place.server.seen();
    assert!(fetched.iter().all(|seen| !seen.path.contains("README") && !seen.path.contains(".bin")), "{fetched:?}");
    let run: serde_json::Value = serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(run["base"]["name"], format!("org/stories@{COMMIT}"), "a name that stays what it is");
    assert_eq!(run["base"]["hub_id"], "org/stories");
    let config: serde_json::Value = serde_json::from_slice(&fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["base_model_name_or_path"], "org/stories");

    // The same weights: the same adapter as from the folder.
    let folder = common::data("").unwrap().join("models/stories260K");
    let (from_folder, offline) = (place.folder.path().join("from-folder"), place.folder.path().join("offline"));
    train(folder.to_str().unwrap(), &from_folder, &[]);
    train("org/stories", &offline, &[("HF_HUB_OFFLINE", "1")]);
    assert!(place.server.seen().is_empty(), "HF_HUB_OFFLINE asks nobody");
    for other in [from_folder, offline] {
        let read = |out: &Path| fs::read(out.join("adapter_model.safetensors")).unwrap();
        assert!(read(&other) == read(&out), "{}", other.display());
    }
}

#[test]
fn what_is_cached_is_used_when_the_hub_is_away_and_a_commit_is_not_asked_for() {
    let Some(place) = Place::new("what_is_cached_is_used_when_the_hub_is_away_and_a_commit_is_not_asked_for") else { return };
    place.opens("org/stories", &[]);
    place.server.seen();
    place.opens("org/stories", &[]);
    assert_eq!(place.server.seen().len(), 1, "one question: whether there is something new");
    place.opens(&format!("org/stories@{COMMIT}"), &[]);
    assert!(place.server.seen().is_empty());

    let away = [("HF_ENDPOINT", "http://127.0.0.1:9")];
    let arguments = ["tokenize", "--base", "org/stories", "--text", "Once upon a time"];
    let output = place.command(&arguments, &away).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    says(&said, &["org/stories is taken from the cache (0123456789ab), as the hub does not answer: http://127.0.0.1:9: "]);
    assert_eq!(said.lines().count(), 1, "{said}");
    place.server.answer_all(Some(503));
    place.opens("org/stories", &[]);
    says(
        &place.refuses(1, "org/other", &[]),
        &["cannot fetch org/other", "HTTP 503", "HF_ENDPOINT", "what is fetched so far is kept"],
    );
    assert_eq!(place.server.seen().len(), 1 + 4, "a busy hub is asked again, a few times");
    says(&place.refuses(2, "org/other", &[("HF_HUB_OFFLINE", "1")]), &["HF_HUB_OFFLINE", "org/other", "is not in"]);
    fs::remove_file(place.model().join("snapshots").join(COMMIT).join(WEIGHTS)).unwrap();
    says(&place.refuses(2, "org/stories", &[("HF_HUB_OFFLINE", "yes")]), &["lacks model.safetensors"]);
    place.server.answer_all(None);
    place.opens("org/stories", &[]);
    let seen = place.server.seen();
    assert!(HubServer::ranges(&seen, WEIGHTS).is_empty(), "the blob was still there");
}

#[test]
fn a_revision_is_fetched_beside_another_and_shares_its_blobs() {
    let Some(mut place) = Place::new("a_revision_is_fetched_beside_another_and_shares_its_blobs") else { return };
    let dev = "f".repeat(40);
    place.repo.refs.push(("refs/pr/1".to_owned(), dev.clone()));
    place.server.put("org/stories", place.repo.clone());
    place.opens("org/stories", &[]);
    place.server.seen();
    place.opens("org/stories@refs/pr/1", &[]);
    assert!(HubServer::ranges(&place.server.seen(), WEIGHTS).is_empty());
    assert_eq!(fs::read_to_string(place.model().join("refs/refs/pr/1")).unwrap(), dev);
    place.opens("org/stories@refs/pr/1", &[("HF_HUB_OFFLINE", "1")]);
    says(&place.refuses(2, "org/stories@nowhere", &[]), &["org/stories has no revision 'nowhere'", "/org/stories/tree/main"]);

    // The branch moves: the next opening has what is new.
    let moved = "e".repeat(40);
    place.repo.refs[0].1 = moved.clone();
    place.server.put("org/stories", place.repo.clone());
    place.opens("org/stories", &[]);
    assert_eq!(fs::read_to_string(place.model().join("refs/main")).unwrap(), moved);
}

#[test]
fn shards_are_fetched_by_their_index() {
    let Some(mut place) = Place::new("shards_are_fetched_by_their_index") else { return };
    let whole = place.repo.file(WEIGHTS).to_vec();
    let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let (mut map, mut shards) = (serde_json::Map::new(), [Vec::new(), Vec::new()]);
    for (i, (name, view)) in tensors.tensors().into_iter().enumerate() {
        map.insert(name.clone(), format!("model-0000{}-of-00002.safetensors", i % 2 + 1).into());
        shards[i % 2].push((name, view));
    }
    place.repo.files.retain(|(name, _)| name != WEIGHTS);
    for (i, shard) in shards.into_iter().enumerate() {
        let bytes = safetensors::serialize(shard, None).unwrap();
        place.repo.files.push((format!("model-0000{}-of-00002.safetensors", i + 1), bytes));
    }
    let index = serde_json::json!({ "weight_map": map }).to_string().into_bytes();
    place.repo.files.push(("model.safetensors.index.json".to_owned(), index));
    place.server.put("org/stories", place.repo.clone());
    place.opens("org/stories", &[]);
    place.opens("org/stories", &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(files(&place.model().join("snapshots")).len(), 5 + 1 + 2);

    // An index that leads elsewhere, or to what is not there, is refused.
    for wrong in ["../../secret.safetensors", "model-00009.safetensors"] {
        place.repo.files.pop();
        let index = serde_json::json!({ "weight_map": {"a": wrong} }).to_string().into_bytes();
        place.repo.files.push(("model.safetensors.index.json".to_owned(), index));
        place.server.put("org/wrong", place.repo.clone());
        says(&place.refuses(1, "org/wrong", &[]), &["names shards that the model does not have"]);
        fs::remove_dir_all(place.home().join("hub/models--org--wrong")).unwrap();
    }
}

#[test]
fn the_token_goes_to_the_hub_and_never_to_the_store_behind_it() {
    let Some(mut place) = Place::new("the_token_goes_to_the_hub_and_never_to_the_store_behind_it") else { return };
    place.repo.token = Some("hf_right".to_owned());
    place.server.put("org/stories", place.repo.clone());
    let page = format!("log in at {}/org/stories and accept it", place.server.url);
    says(
        &place.refuses(1, "org/stories", &[]),
        &["accepted the model's licence", &page, "set HF_TOKEN to a token of your account"],
    );
    says(&place.refuses(1, "org/stories", &[("HF_TOKEN", "hf_other")]), &[&page, "the token of HF_TOKEN was sent"]);
    let said = place.refuses(1, "org/stories", &[("HF_TOKEN", "hf_wrong")]);
    says(&said, &["does not accept the token of HF_TOKEN", "make a new one"]);
    assert!(!said.contains("hf_wrong"), "a token is shown to nobody: {said}");
    place.server.seen();
    place.opens("org/stories", &[("HF_TOKEN", " hf_right\n")]);
    place.is_whole();
    let seen = place.server.seen();
    assert!(seen.iter().any(|s| s.at_store));
    for request in &seen {
        let sent = request.headers.get("authorization").map(String::as_str);
        assert_eq!(sent, (!request.at_store).then_some("Bearer hf_right"), "{request:?}");
    }
    // The file that `hf auth login` writes.
    fs::remove_dir_all(place.home()).unwrap();
    fs::create_dir_all(place.home()).unwrap();
    fs::write(place.home().join("token"), "hf_right\n").unwrap();
    place.opens("org/stories", &[]);
    fs::remove_dir_all(place.home().join("hub")).unwrap();
    says(&place.refuses(1, "org/stories", &[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), &["then set HF_TOKEN"]);
}

#[test]
fn what_is_not_there_or_is_no_base_is_told() {
    let Some(place) = Place::new("what_is_not_there_or_is_no_base_is_told") else { return };
    let said = place.refuses(2, "org/none", &[]);
    says(&said, &["there is no model org/none on http://127.0.0.1", "check its spelling", "`ollama pull org/none`"]);
    let small = |names: &[&str]| Repo::new(names.iter().map(|name| ((*name).to_owned(), b"{}".to_vec())).collect());
    place.server.put("org/pickled", small(&["config.json", "tokenizer.json", "pytorch_model.bin"]));
    says(&place.refuses(1, "org/pickled", &[]), &["org/pickled has only pickled weights, no model.safetensors", "@refs/pr/1"]);
    place.server.put("org/gguf", small(&["README.md", "m.Q4_0.gguf"]));
    says(&place.refuses(1, "org/gguf", &[]), &["holds GGUF files", "--base hf.co/org/gguf"]);
    assert!(!place.home().join("hub/models--org--pickled").exists(), "nothing is made for what is refused");
    says(&place.refuses(2, "org/none", &[("HF_ENDPOINT", "hub.example")]), &["HF_ENDPOINT is 'hub.example'"]);
}

#[test]
fn a_cut_download_goes_on_where_it_was_cut() {
    let Some(place) = Place::new("a_cut_download_goes_on_where_it_was_cut") else { return };
    let faults = [Fault::Cut(100_000), Fault::Status(502), Fault::Cut(0), Fault::Stall(300_000), Fault::Shorter(50_000)];
    place.server.fail(WEIGHTS, faults);
    place.server.fail("tokenizer.json", [Fault::Cut(10), Fault::Status(500)]);
    let begin = std::time::Instant::now();
    place.opens("org/stories", &[]);
    assert!(begin.elapsed().as_secs() < 40, "silence is not waited for until the server has had enough, after 60 s");
    place.is_whole();
    let ranges = HubServer::ranges(&place.server.seen(), WEIGHTS);
    let from = |n: usize| Some(format!("bytes={n}-"));
    assert_eq!(ranges, [None, from(100_000), from(100_000), from(100_000), from(400_000), from(450_000)]);

    // A store without parts sends all of it again, and that is no harm.
    fs::remove_dir_all(place.home()).unwrap();
    place.server.fail(WEIGHTS, [Fault::Cut(100_000), Fault::NoParts]);
    place.opens("org/stories", &[]);
    place.is_whole();
}

#[test]
fn another_process_goes_on_and_a_part_that_is_wrong_is_fetched_again() {
    let Some(place) = Place::new("another_process_goes_on_and_a_part_that_is_wrong_is_fetched_again") else { return };
    place.server.fail(WEIGHTS, [Fault::Cut(200_000), Fault::Status(500), Fault::Status(500), Fault::Status(500)]);
    says(&place.refuses(1, "org/stories", &[]), &["model.safetensors", "200.0 kB of 1.0 MB are here", "HTTP 500"]);
    assert_eq!(place.blob(WEIGHTS).with_extension("incomplete").metadata().unwrap().len(), 200_000);
    place.server.seen();
    place.opens("org/stories", &[]);
    place.is_whole();
    assert_eq!(HubServer::ranges(&place.server.seen(), WEIGHTS), [Some("bytes=200000-".to_owned())]);

    // Of another version, or longer than the file: what is verified decides.
    let size = place.repo.file(WEIGHTS).len();
    for wrong in [vec![7; 1000], vec![7; size], vec![7; size + 1]] {
        fs::remove_file(place.blob(WEIGHTS)).unwrap();
        fs::remove_file(place.model().join("snapshots").join(COMMIT).join(WEIGHTS)).unwrap();
        fs::write(place.blob(WEIGHTS).with_extension("incomplete"), wrong).unwrap();
        place.opens("org/stories", &[]);
        place.is_whole();
    }
}

#[test]
fn bytes_that_are_not_the_models_are_never_used() {
    let Some(mut place) = Place::new("bytes_that_are_not_the_models_are_never_used") else { return };
    for (fault, part) in [(Fault::Flip(500_000), "its SHA-256 is"), (Fault::Longer, "goes on after the")] {
        place.server.fail(WEIGHTS, [fault]);
        says(&place.refuses(1, "org/stories", &[]), &["model.safetensors of org/stories", part, "HF_ENDPOINT"]);
        assert!(!files(&place.model()).iter().any(|name| name.contains(&etag(WEIGHTS, place.repo.file(WEIGHTS)))));
    }
    place.server.fail(WEIGHTS, vec![Fault::Shorter(0); 4]);
    says(&place.refuses(1, "org/stories", &[]), &["the answer ended after 0 of"]);
    assert!(!place.model().join("refs").exists(), "no revision names what is not whole");
    place.repo.sizes.insert(WEIGHTS.to_owned(), 1 << 60);
    place.server.put("org/stories", place.repo.clone());
    says(&place.refuses(1, "org/stories", &[]), &["org/stories needs 1152921504.6", "free", "HF_HOME"]);
    place.repo.sizes.clear();
    place.server.put("org/stories", place.repo.clone());
    place.opens("org/stories", &[]);
    place.is_whole();
}

#[test]
fn a_disk_that_takes_no_more_is_told_and_the_next_run_goes_on() {
    let Some(place) = Place::new("a_disk_that_takes_no_more_is_told_and_the_next_run_goes_on") else { return };
    let binary = env!("CARGO_BIN_EXE_retune");
    let limited = place.command(&[], &[]);
    let script = format!("ulimit -f 300; exec {binary} tokenize --base org/stories --text x");
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]);
    for (name, value) in limited.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let message = refusal(1, &shell.output().unwrap(), "ulimit -f 300");
    says(&message, &["cannot write", ".incomplete", "File too large", "ulimit -f"]);
    place.server.seen();
    place.opens("org/stories", &[]);
    place.is_whole();
    assert_eq!(HubServer::ranges(&place.server.seen(), WEIGHTS), [Some(format!("bytes={}-", 300 * 1024))]);
}

#[test]
fn a_kill_at_every_moment_leaves_a_cache_that_the_next_run_completes() {
    let Some(place) = Place::new("a_kill_at_every_moment_leaves_a_cache_that_the_next_run_completes") else { return };
    let mut n = 0;
    loop {
        n += 1;
        let _ = fs::remove_dir_all(place.home());
        let output = place.open("org/stories", &[("RETUNE_FAULT_AT", &n.to_string())]);
        if output.status.success() {
            break;
        }
        assert_eq!(output.status.code(), None, "killed: {}", String::from_utf8_lossy(&output.stderr));
        let offline = place.open("org/stories", &[("HF_HUB_OFFLINE", "1")]);
        assert!(offline.status.code() == Some(2), "point {n}: what a revision names is whole, and it comes last");
        place.opens("org/stories", &[]);
        let leftovers = files(&place.model()).into_iter().filter(|name| name.contains(".incomplete"));
        assert_eq!(leftovers.count(), 0, "point {n}");
        assert_eq!(fs::read_to_string(place.model().join("refs/main")).unwrap(), COMMIT);
    }
    println!("killed at {} points", n - 1);
    assert!(n > 6 * 3, "a write, a rename and a link a file: {n}");
    place.is_whole();
}

#[test]
fn two_processes_at_once_fetch_a_file_once() {
    let Some(place) = Place::new("two_processes_at_once_fetch_a_file_once") else { return };
    // While the first waits, the second comes.
    place.server.fail(WEIGHTS, [Fault::Stall(1000)]);
    std::thread::scope(|scope| {
        let runs = [(); 3].map(|()| scope.spawn(|| place.opens("org/stories", &[])));
        runs.into_iter().for_each(|run| run.join().unwrap());
    });
    place.is_whole();
    let ranges = HubServer::ranges(&place.server.seen(), WEIGHTS);
    assert_eq!(ranges, [None, Some("bytes=1000-".to_owned())]);
}

/// huggingface_hub itself, on the same hub: the server speaks its protocol, and the caches are the same.
#[test]
fn huggingface_hub_makes_the_same_cache_and_reads_ours() {
    let test = "huggingface_hub_makes_the_same_cache_and_reads_ours";
    let (Some(place), Some(python)) = (Place::new(test), common::peer(test, "venv/bin/python")) else { return };
    place.opens("org/stories", &[]);
    place.is_whole();
    let theirs = place.folder.path().join("theirs");
    let run = |script: &str, home: &Path, offline: &str| {
        let output = Command::new(&python)
            .args(["-c", script])
            .env("HF_HOME", home)
            .env("HF_ENDPOINT", &place.server.url)
            .env("HF_HUB_OFFLINE", offline)
            .env("HF_HUB_DISABLE_TELEMETRY", "1")
            .env_remove("HF_HUB_CACHE")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let names: Vec<&str> =
        place.repo.files.iter().map(|f| f.0.as_str()).filter(|n| n.ends_with(".json") || *n == WEIGHTS).collect();
    let fetch = format!("import huggingface_hub as h\nfor f in {names:?}: h.hf_hub_download('org/stories', f)");
    run(&fetch, &theirs, "0");
    let tree = |home: &Path| -> Vec<(String, Vec<u8>)> {
        let model = home.join("hub/models--org--stories");
        files(&model).into_iter().map(|name| (name.clone(), fs::read(model.join(&name)).unwrap())).collect()
    };
    assert_eq!(tree(&theirs).len(), 13);
    assert!(tree(&theirs) == tree(&place.home()), "{:?}\n{:?}", files(&theirs), files(&place.home()));

    let read = "import huggingface_hub as h, transformers as t\np = h.snapshot_download('org/stories', local_files_only=True)\nm = t.AutoModelForCausalLM.from_pretrained('org/stories')\nprint(p, m.num_parameters(), t.AutoTokenizer.from_pretrained('org/stories')('Once upon a time').input_ids)";
    let said = run(read, &place.home(), "1");
    println!("{said}");
    says(&said, &[&format!("models--org--stories/snapshots/{COMMIT}"), "[1, 403, 407, 261, 378]"]);
    // And theirs is ours.
    place.opens("org/stories", &[("HF_HUB_OFFLINE", "1"), ("HF_HOME", theirs.to_str().unwrap())]);
}
