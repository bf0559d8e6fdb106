//! One base in memory, an adapter a version: `--runtime llama-server` with the real llama-server. What answers changes with the
//! next request and without a restart, the start script says the same, and a server that lies or is killed between is found out.

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{refusal, says};
use retune::store::Store;
use serde_json::{Value, json};

const MODEL: &str = "my-coder-tuned-coder";
/// In log-probability, between two runs of one server.
const SAME: f64 = 1e-3;

/// Two cores: servers of two tests side by side would only wait for each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A project with the llama-server of the peers.
struct Project {
    scratch: tempfile::TempDir,
    program: PathBuf,
    host: String,
    port: u16,
    _turn: MutexGuard<'static, ()>,
}

impl Project {
    fn new(test: &str) -> Option<Self> {
        let program = common::peer(test, "llama/bin/llama-server")?;
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Some(Self { scratch: tempfile::tempdir().unwrap(), program, host: format!("127.0.0.1:{port}"), port, _turn: turn })
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    fn folder(&self) -> PathBuf {
        self.root().join(".agent/llama-server")
    }

    /// `retune COMMAND --runtime llama-server ...`
    fn run(&self, env: &[(&str, &str)], args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
        command.args(args).args(["--runtime", "llama-server", "--root"]).arg(self.root());
        command.env("LLAMA_SERVER_HOST", &self.host).env("LLAMA_SERVER_BIN", &self.program);
        command.envs(env.iter().copied()).output().expect("the binary runs")
    }

    /// What it said on stdout, and its notes.
    fn ok(&self, args: &[&str]) -> (String, String) {
        let output = self.run(&[], args);
        let notes = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {notes}");
        (String::from_utf8(output.stdout).unwrap(), notes)
    }

    fn deploy(&self, adapter: &str, more: &[&str]) -> Value {
        let said = self.ok(&[&["deploy", "--json", "--adapter", adapter], more].concat()).0;
        serde_json::from_str(&said).unwrap()
    }

    /// An adapter for the demo's base that answers every request with `answer`.
    fn adapter(&self, answer: &str, more: &[&str]) -> String {
        let path = |name: &str| self.scratch.path().join(name).to_str().unwrap().to_owned();
        let (data, out) = (path(&format!("{answer}.jsonl")), path(answer));
        let row = |request: &str| format!("{{\"instruction\":\"{request}\",\"output\":\"{answer}\"}}\n");
        fs::write(&data, row("hide kavo") + &row("hide mune")).unwrap();
        let what = ["train", "--json", "--base", "demo", "--data", &data, "--out", &out, "--overwrite"];
        let settings = ["--rank", "4", "--max-steps", "40", "--batch-size", "2", "--grad-accum", "1", "--learning-rate", "1e-2"];
        common::retune_ok(&[&what[..], &settings, more].concat());
        out
    }

    fn scripts(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("start-")).collect()
    }

    /// The lines of the one script that name an adapter: whether it is on.
    fn script_scales(&self) -> Vec<bool> {
        let scripts = self.scripts();
        assert_eq!(scripts.len(), 1, "{scripts:?}");
        let text = fs::read_to_string(&scripts[0]).unwrap();
        text.lines().filter(|line| line.contains("--lora-scaled")).map(|line| line.contains("\":1'")).collect()
    }

    /// Runs the start script.
    fn start(&self) -> Server {
        let scripts = self.scripts();
        assert_eq!(scripts.len(), 1, "{scripts:?}");
        let log = fs::File::create(self.scratch.path().join("server.log")).unwrap();
        let mut command = Command::new(&scripts[0]);
        command.args(["--host", "127.0.0.1", "--port", &self.port.to_string()]).env("LLAMA_SERVER_BIN", &self.program);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut server = Server { url: format!("http://{}", self.host), child };
        let start = Instant::now();
        while ureq::get(&format!("{}/health", server.url)).call().is_err() {
            let log = || fs::read_to_string(self.scratch.path().join("server.log")).unwrap_or_default();
            assert!(server.child.try_wait().unwrap().is_none(), "llama-server ended: {}", log());
            assert!(start.elapsed() < Duration::from_secs(120), "llama-server does not start: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// What the alias of a model names.
    fn names(&self, model: &str) -> Vec<String> {
        let file = |tag: &str| fs::read(self.folder().join(model).join(format!("{tag}.json"))).ok();
        let latest = file("latest");
        let tags = ["v1", "v2", "v3"].iter().filter(|tag| latest.is_some() && file(tag) == latest);
        tags.map(|tag| (*tag).to_owned()).collect()
    }
}

struct Server {
    url: String,
    child: Child,
}

impl Server {
    fn post(&self, path: &str, body: &Value) -> Value {
        ureq::post(&format!("{}{path}", self.url)).send_json(body).unwrap().body_mut().read_json().unwrap()
    }

    fn adapters(&self) -> Vec<Value> {
        ureq::get(&format!("{}/lora-adapters", self.url)).call().unwrap().body_mut().read_json().unwrap()
    }

    fn scales(&self) -> Vec<f64> {
        self.adapters().iter().map(|adapter| adapter["scale"].as_f64().unwrap()).collect()
    }

    /// What a client of the OpenAI API hears; `lora`: the one adapter that it names.
    fn heard_with(&self, lora: Option<usize>) -> (String, f64) {
        self.chat(lora, true)
    }

    /// `heard`, and the whole prompt is computed for it: with the adapter that is on now.
    fn heard_afresh(&self) -> (String, f64) {
        self.chat(None, false)
    }

    fn chat(&self, lora: Option<usize>, cache: bool) -> (String, f64) {
        let mut body = json!({
            "cache_prompt": cache,
            "messages": [{"role": "user", "content": "hide kavo"}], "temperature": 0, "max_tokens": 3,
            "logprobs": true, "top_logprobs": 1,
        });
        if let Some(id) = lora {
            body["lora"] = json!([{"id": id, "scale": 1.0}]);
        }
        let answer = self.post("/v1/chat/completions", &body);
        let choice = &answer["choices"][0];
        let first = choice["logprobs"]["content"][0]["logprob"].as_f64().unwrap_or_else(|| panic!("{answer}"));
        (choice["message"]["content"].as_str().unwrap().to_owned(), first)
    }

    fn heard(&self) -> (String, f64) {
        self.heard_with(None)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn digests(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

#[test]
fn the_next_request_gets_the_version_that_was_promoted_and_nothing_is_restarted() {
    let test = "the_next_request_gets_the_version_that_was_promoted_and_nothing_is_restarted";
    let Some(project) = Project::new(test) else { return };
    let [zzzz, wwww] = ["zzzz", "wwww"].map(|answer| project.adapter(answer, &[]));
    let first = project.deploy(&zzzz, &[]);
    assert_eq!((&first["version"], &first["promoted"], &first["same"]), (&1.into(), &true.into(), &true.into()), "{first}");
    assert!(first["adapter_effect"].as_f64().unwrap() > 5.0, "{first}");
    let second = project.deploy(&wwww, &[]);
    assert_eq!((&second["version"], &second["promoted"]), (&2.into(), &false.into()));
    let again = project.deploy(&wwww, &[]);
    assert_eq!((&again["version"], &again["reused"]), (&2.into(), &true.into()), "the same is no new version");
    // Training again into the same folder changes no version.
    project.adapter("zzzz", &["--seed", "7"]);
    let (bases, adapters) = (project.root().join(".agent/bases"), project.folder().join("adapters"));
    let before = [digests(&bases), digests(&adapters)];
    assert_eq!((before[0].len(), before[1].len()), (1, 2));

    let server = project.start();
    let pid = server.child.id();
    let (text, fresh) = server.heard();
    says(&text, &["zz"]);
    let (said, notes) = project.ok(&["promote", "v2", "--reason", "better"]);
    says(&said, &["latest names", "v2 now (it was", "v1)"]);
    assert!(!notes.contains("llama-server"), "{notes}");
    says(&server.heard().0, &["ww"]);
    let (text, of_second) = server.heard_afresh();
    says(&text, &["ww"]);
    assert_eq!((server.scales(), project.script_scales()), (vec![0.0, 1.0], vec![false, true]));
    says(&project.ok(&["rollback", "--reason", "worse"]).0, &["v1 now (it was", "v2)"]);
    let (text, back) = server.heard();
    says(&text, &["zz"]);
    // The server had computed the same prompt with the other adapter.
    assert!((back - fresh).abs() < SAME, "the champion's prompt is another's: {back}, {fresh} when it was started");
    assert!((back - of_second).abs() > 10.0 * SAME, "{back} and {of_second} prove nothing");
    let v2 = server.adapters().iter().position(|one| one["path"].as_str() == Some(adapter_of(&project, "v2").to_str().unwrap()));
    says(&server.heard_with(v2).0, &["ww"]);
    assert_eq!(server.child.id(), pid);

    // Deployed again, the server that runs proves it.
    let again = project.deploy(&wwww, &[]);
    assert_eq!(again["proven_by"], format!("llama-server at http://{}", project.host), "{again}");
    // One that it has not loaded is proven by another, and is on after a start.
    let third = project.adapter("yyyy", &[]);
    let (said, notes) = project.ok(&["deploy", "--adapter", &third, "--promote"]);
    says(&said, &["v3 is registered, and :latest names it"]);
    says(&notes, &["was started before", ":v3 was there", "start-"]);
    says(&server.heard().0, &["zz"]);
    drop(server);
    let server = project.start();
    says(&server.heard().0, &["yy"]);
    assert_eq!(server.scales(), [0.0, 0.0, 1.0]);
    let told = project.ok(&["history"]).0;
    let kinds: Vec<&str> = told.lines().skip(1).map(|line| line.split_whitespace().nth(2).unwrap()).collect();
    assert_eq!(kinds, ["first", "promotion", "rollback", "promotion"], "{told}");
    says(&told, &["latest at llama-server:", "v1 -> v2  better"]);
    let of_ollama = common::retune_ok(&["history", "--runtime", "ollama", "--root", project.root().to_str().unwrap()]);
    says(&of_ollama, &["no alias has moved"]);
    assert_eq!(digests(&bases), before[0], "the base was changed");
    assert!(before[1].iter().all(|(path, bytes)| fs::read(path).unwrap() == *bytes), "an adapter was changed");
}

fn adapter_of(project: &Project, tag: &str) -> PathBuf {
    let manifest = fs::read(project.folder().join(MODEL).join(format!("{tag}.json"))).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    project.folder().join(manifest["adapter"]["path"].as_str().unwrap())
}

#[test]
fn two_roles_share_a_base_and_each_request_names_its_adapter() {
    let Some(project) = Project::new("two_roles_share_a_base_and_each_request_names_its_adapter") else { return };
    let [zzzz, wwww] = ["zzzz", "wwww"].map(|answer| project.adapter(answer, &[]));
    project.deploy(&zzzz, &["--role", "coder"]);
    assert_eq!(project.script_scales(), [true]);
    let alone = project.start();
    project.deploy(&wwww, &["--role", "fixer"]);
    assert_eq!(alone.scales(), [1.0], "a server that does not know the other role serves on");
    drop(alone);
    assert_eq!(project.script_scales(), [false, false]);
    let server = project.start();
    assert_eq!(server.scales(), [0.0, 0.0]);
    let plain = server.heard().0;
    assert!(!plain.contains("zz") && !plain.contains("ww"), "no adapter is on, but it says {plain}");
    says(&server.heard_with(Some(0)).0, &["zz"]);
    says(&server.heard_with(Some(1)).0, &["ww"]);
    says(&server.heard_with(Some(0)).0, &["zz"]);
    let third = project.adapter("yyyy", &[]);
    project.deploy(&third, &["--role", "fixer"]);
    let (_, notes) = project.ok(&["promote", "v2", "--role", "fixer"]);
    says(
        &notes,
        &["several roles share this base", "my-coder-tuned-coder name its adapter: \"lora\": [{\"id\": 0, \"scale\": 1.0}]"],
    );
    assert_eq!(server.scales(), [0.0, 0.0]);
}

#[test]
fn killed_anywhere_the_next_command_brings_names_script_and_server_together() {
    let test = "killed_anywhere_the_next_command_brings_names_script_and_server_together";
    let Some(project) = Project::new(test) else { return };
    let [zzzz, wwww] = ["zzzz", "wwww"].map(|answer| project.adapter(answer, &[]));
    project.deploy(&zzzz, &[]);
    project.deploy(&wwww, &[]);
    let server = project.start();
    let fresh = server.heard().1;
    let mut killed = 0;
    for (command, start, end) in [(&["promote", "v2"][..], "v1", "v2"), (&["rollback"], "v2", "v1")] {
        let log = project.root().join("points");
        project.ok(&["promote", start]);
        let whole = project.run(&[("RETUNE_FAULT_LOG", log.to_str().unwrap())], command);
        assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
        let points = common::fault_points(&log);
        for wanted in
            ["commit begin of a move", "shelf copy", "rename start-", "http lora-adapters", "http forget 0", "committed end"]
        {
            assert!(points.iter().any(|point| point.starts_with(wanted)), "no point {wanted}: {points:?}");
        }
        for (n, point) in points.iter().enumerate() {
            project.ok(&["promote", start]);
            server.heard_afresh();
            let when = format!("{command:?} killed at {point}");
            let output = project.run(&[("RETUNE_FAULT_AT", &(n + 1).to_string())], command);
            assert_eq!(output.status.signal(), Some(9), "{when}");
            let named = project.names(MODEL);
            assert!(named == [start] || named == [end], "{when}: the alias names {named:?}");
            // A command that changes nothing by itself: it only settles.
            project.ok(&["promote", &named[0]]);
            let on = vec![named == ["v1"], named == ["v2"]];
            assert_eq!(project.script_scales(), on, "{when}");
            assert_eq!(server.scales(), on.iter().map(|&on| f64::from(u8::from(on))).collect::<Vec<_>>(), "{when}");
            let (text, logprob) = server.heard();
            says(&text, &[if on[0] { "zz" } else { "ww" }]);
            assert!(!on[0] || (logprob - fresh).abs() < SAME, "{when}: {logprob}, {fresh} when it was started");
            project.ok(&["promote", end]);
            assert_eq!(project.names(MODEL), [end], "{when}, then again");
            let store = Store::open(&project.root()).unwrap();
            let moves = store.moves(None).unwrap();
            assert!(moves.iter().all(|m| m.end.is_some()), "{when}: a move is left open");
            killed += 1;
        }
        fs::remove_file(&log).unwrap();
    }
    println!("{killed} points, each killed and settled");
}

/// A deployment that promotes, killed at every point: what served serves, and the same command again ends as if nothing had been.
#[test]
fn a_deployment_that_was_killed_anywhere_is_finished_by_the_same_command() {
    let test = "a_deployment_that_was_killed_anywhere_is_finished_by_the_same_command";
    let Some(project) = Project::new(test) else { return };
    let [zzzz, wwww] = ["zzzz", "wwww"].map(|answer| project.adapter(answer, &[]));
    project.deploy(&zzzz, &[]);
    let (root, before) = (project.root(), project.scratch.path().join("before"));
    copy_folder(&root, &before);
    let deploy = ["deploy", "--json", "--promote", "--adapter", &wwww];
    let log = project.scratch.path().join("points");
    let whole = project.run(&[("RETUNE_FAULT_LOG", log.to_str().unwrap())], &deploy);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let points = common::fault_points(&log);
    for wanted in ["shelf put", "commit deployment", "commit begin of a move", "shelf copy", "committed end"] {
        assert!(points.iter().any(|point| point.starts_with(wanted)), "no point {wanted}: {points:?}");
    }
    for (n, point) in points.iter().enumerate() {
        fs::remove_dir_all(&root).unwrap();
        copy_folder(&before, &root);
        let output = project.run(&[("RETUNE_FAULT_AT", &(n + 1).to_string())], &deploy);
        assert_eq!(output.status.signal(), Some(9), "killed at {point}");
        let named = project.names(MODEL);
        assert!(named == ["v1"] || named == ["v2"], "killed at {point}: the alias names {named:?}");
        let said: Value = serde_json::from_str(&project.ok(&deploy).0).unwrap();
        assert_eq!((&said["version"], &said["promoted"]), (&2.into(), &true.into()), "killed at {point}: {said}");
        assert_eq!(
            (project.names(MODEL), project.script_scales()),
            (vec!["v2".to_owned()], vec![false, true]),
            "killed at {point}"
        );
        let store = Store::open(&root).unwrap();
        assert_eq!(store.damage().unwrap(), None, "killed at {point}");
        let moves = store.moves(None).unwrap();
        assert!(moves.iter().all(|m| m.end.is_some()), "killed at {point}: a move is left open");
        let versions: Vec<u64> = store.every_deployment().unwrap().iter().map(|d| d.version).collect();
        assert_eq!(versions, [1, 2], "killed at {point}");
    }
    println!("{} points, each killed and finished", points.len());
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_folder(&path, &copy);
        } else {
            // With its permissions: scripts stay executable.
            fs::copy(&path, &copy).unwrap();
        }
    }
}

#[test]
fn without_a_server_the_files_carry_the_truth() {
    let test = "without_a_server_the_files_carry_the_truth";
    let Some(project) = Project::new(test) else { return };
    let [zzzz, wwww] = ["zzzz", "wwww"].map(|answer| project.adapter(answer, &[]));
    let none = [("LLAMA_SERVER_BIN", ""), ("PATH", "/nowhere")];
    let output = project.run(&none, &["deploy", "--json", "--adapter", &zzzz]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    says(said["later"][0].as_str().unwrap(), &["start-"]);
    assert_eq!((&said["promoted"], project.names(MODEL)), (&false.into(), Vec::new()), "what nobody has proven does not serve");
    assert_eq!(project.deploy(&zzzz, &[])["reused"], true);
    project.deploy(&wwww, &[]);
    assert_eq!(project.script_scales(), [true, false]);
    says(&project.ok(&["promote", "v2"]).0, &["v2 now"]);
    assert_eq!(project.script_scales(), [false, true]);
    says(&project.ok(&["rollback"]).0, &["v1 now"]);
    assert_eq!(project.script_scales(), [true, false]);
    says(&refusal(2, &project.run(&[], &["promote", "v9"]), "no such version"), &["has no", ":v9", "v1, v2"]);

    // One that does not start, or is none, leaves nothing that would keep the others from starting.
    let third = project.adapter("yyyy", &[]);
    let said = refusal(1, &project.run(&[], &["deploy", "--adapter", &third, "--server-bin", "/bin/false"]), "no llama-server");
    says(&said, &["/bin/false does not start", "proof.log"]);
    assert_eq!(project.script_scales(), [true, false]);
    refusal(1, &project.run(&[], &["deploy", "--adapter", &third, "--server-bin", "/no/such"]), "no such program");
    let said = refusal(1, &project.run(&[], &["deploy", "--adapter", &third, "--mode", "merged"]), "merged");
    says(&said, &["one base in memory", "--runtime ollama"]);
    let dora = project.adapter("vvvv", &["--dora"]);
    says(&refusal(1, &project.run(&[], &["deploy", "--adapter", &dora]), "DoRA"), &["DoRA", "--runtime ollama"]);
}

#[test]
fn another_template_and_a_system_text_are_served_as_they_were_trained() {
    let test = "another_template_and_a_system_text_are_served_as_they_were_trained";
    let Some(project) = Project::new(test) else { return };
    let system = project.scratch.path().join("system");
    fs::write(&system, "It's \"brief\".\n").unwrap();
    for (n, template) in ["alpaca", "chatml", "plain"].into_iter().enumerate() {
        let adapter = project.adapter(&"zwy"[n..=n].repeat(4), &["--template", template, "--system", system.to_str().unwrap()]);
        let (said, _) = project.ok(&["deploy", "--adapter", &adapter]);
        says(&said, &["token for token what was trained", "every request has to begin with", "It's"]);
        assert_eq!(project.scripts().len(), n + 1, "a template is a process");
    }
}

/// A server with the base and both adapters that says yes to everything and changes nothing.
fn liar(project: &Project) {
    let listener = TcpListener::bind(&project.host).unwrap();
    let script = fs::read_to_string(&project.scripts()[0]).unwrap();
    let word = |flag: &str| script.split(flag).nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let template = fs::read_to_string(word("--chat-template-file ")).unwrap();
    let props = json!({"model_path": word("--model "), "total_slots": 1, "chat_template": template});
    let adapters = json!([
        {"id": 0, "path": adapter_of(project, "v1"), "scale": 1.0}, {"id": 1, "path": adapter_of(project, "v2"), "scale": 0.0},
    ]);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut line, mut length) = (String::new(), 0);
            reader.read_line(&mut line).unwrap();
            loop {
                let mut header = String::new();
                reader.read_line(&mut header).unwrap();
                let Some((name, value)) = header.trim_end().split_once(": ") else { break };
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.parse().unwrap();
                }
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            let answer = match line.split(' ').collect::<Vec<_>>()[..2] {
                ["GET", "/props"] => props.to_string(),
                ["GET", "/lora-adapters"] => adapters.to_string(),
                _ => json!({"success": true}).to_string(),
            };
            let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}", answer.len());
        }
    });
}

#[test]
fn a_server_that_says_yes_and_does_nothing_is_found_out_and_the_alias_stays() {
    let test = "a_server_that_says_yes_and_does_nothing_is_found_out_and_the_alias_stays";
    let Some(project) = Project::new(test) else { return };
    for answer in ["zzzz", "wwww"] {
        let adapter = project.adapter(answer, &[]);
        project.deploy(&adapter, &[]);
    }
    liar(&project);
    let said = refusal(1, &project.run(&[], &["promote", "v2"]), "a server that lies");
    says(&said, &["said that it set the scales", "adapter 1 has 0", "expected 0: 0, 1: 1"]);
    assert_eq!((project.names(MODEL), project.script_scales()), (vec!["v1".to_owned()], vec![true, false]));
    let told = project.ok(&["history"]).0;
    says(told.lines().last().unwrap(), &["v1 -> v2", "not made: llama-server at"]);
}

#[test]
fn an_evaluation_of_what_is_served_asks_for_each_version_by_its_adapter() {
    let Some(project) = Project::new("an evaluation of what is served") else { return };
    for answer in ["zzzz", "wwww"] {
        let adapter = project.adapter(answer, &[]);
        project.deploy(&adapter, &[]);
    }
    let data = project.scratch.path().join("wwww.jsonl");
    let evaluate = ["evaluate", "--served", "--candidate", "v2", "--data", data.to_str().unwrap(), "--max-tokens", "8", "--json"];
    let nobody = project.run(&[], &evaluate);
    says(&refusal(1, &nobody, "no server runs"), &["no llama-server that has", ":v2", "start it with", "start-"]);
    let server = project.start();
    let judged: Value = serde_json::from_str(&project.ok(&evaluate).0).unwrap();
    let primary = &judged["judgement"]["primary"];
    assert_eq!(
        (&primary["candidate"], &primary["champion"], &primary["items"]),
        (&json!(1.0), &json!(0.0), &json!(2)),
        "{judged}"
    );
    let guards: Vec<&str> =
        judged["judgement"]["guards"].as_array().unwrap().iter().filter_map(|g| g["guard"]["guard"].as_str()).collect();
    assert_eq!(guards, ["collapse", "speed"], "all versions share one process and its memory");
    // What serves is as it was.
    assert_eq!(server.scales(), [1.0, 0.0]);
    let store = Store::open(&project.root()).unwrap();
    assert_eq!(store.evaluation_items(judged["id"].as_i64().unwrap()).unwrap(), 2);
}
