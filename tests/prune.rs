//! Old versions go from real Ollamas and come again, through the command line: what is kept, what becomes free on the disk, a
//! kill at every point, and a version that is made again as it was.

mod common;
#[path = "support/ollama_peer.rs"]
mod ollama_peer;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use common::{refusal, says};
use ollama_peer::{BOTH, Kind, Peer};
use retune::runtime::Registry as _;
use retune::store::{Deployment, NewAdapter, NewDeployment, Store};
use serde_json::Value;

const MODEL: &str = "my-coder-tuned-coder";
const ADAPTER: &str = "adapter_model.safetensors";

/// The files of a server's store and their sizes; not Ollama 0.34's own notes on models that it was asked about (`metadata`, some
/// kilobytes each), which come and go by themselves.
fn sizes(folder: &Path) -> BTreeMap<String, u64> {
    let files = common::files(folder).into_iter().filter(|name| !name.starts_with("metadata/"));
    files.map(|name| (name.clone(), fs::metadata(folder.join(&name)).unwrap().len())).collect()
}

fn total(sizes: &BTreeMap<String, u64>) -> u64 {
    sizes.values().sum()
}

/// A server with v1 to v6, of three adapters: two pairs of versions share all of their weights.
struct Project {
    peer: Peer,
    kind: Kind,
    /// The adapters, by what they answer.
    folder: PathBuf,
    root: PathBuf,
}

impl Project {
    fn begin(kind: Kind, adapters: &Path) -> Option<(Self, tempfile::TempDir)> {
        let peer = Peer::start(kind)?;
        let scratch = tempfile::tempdir().unwrap();
        let project = Self { peer, kind, folder: adapters.to_owned(), root: scratch.path().join("root") };
        for (version, answer, more) in [
            (1, "zzzz", &[][..]),
            (2, "wwww", &["--mode", "merged"]),
            (3, "wwww", &["--mode", "merged", "--temperature", "0.3"]),
            (4, "yyyy", &["--type", "f16"]),
            (5, "yyyy", &["--temperature", "0.3"]),
            (6, "zzzz", &["--temperature", "0.3"]),
        ] {
            let adapter = project.adapter(answer);
            let deployed = project.json(&[&["deploy", "--json", "--adapter", adapter.to_str().unwrap()], more].concat());
            assert_eq!((&deployed["version"], &deployed["promoted"]), (&version.into(), &(version == 1).into()));
        }
        project.ok(&["promote", "v3", "--reason", "better"]);
        Some((project, scratch))
    }

    fn adapter(&self, answer: &str) -> PathBuf {
        self.folder.join(answer)
    }

    fn ok(&self, args: &[&str]) -> String {
        self.peer.retune_ok(&self.root, args)
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    fn refused(&self, code: i32, args: &[&str]) -> String {
        refusal(code, &self.peer.retune(&self.root, &[], args), &format!("{args:?}"))
    }

    /// The tags of the model that are there.
    fn tags(&self) -> Vec<String> {
        let tags = self.peer.ollama.tags().unwrap();
        tags.into_iter().filter_map(|tag| Some(tag.name.strip_prefix(MODEL)?.strip_prefix(':')?.to_owned())).collect()
    }

    fn record(&self, version: u64) -> Deployment {
        let store = Store::open(&self.root).unwrap();
        store.every_deployment().unwrap().into_iter().rfind(|d| d.version == version).unwrap()
    }

    /// Files of versions that can be made again: merged models, and bases that were stored in another type.
    fn files(&self) -> Vec<PathBuf> {
        let merged = ["zzzz", "wwww", "yyyy"].map(|answer| self.adapter(answer).join("merged.gguf"));
        let bases = self.root.join(".agent/bases");
        let stored = common::files(&bases).into_iter().map(|name| bases.join(name));
        merged.into_iter().filter(|path| path.exists()).chain(stored).collect()
    }
}

fn went(pruned: &Value) -> Vec<u64> {
    let fates = pruned["versions"].as_array().unwrap().iter();
    fates.filter(|fate| fate["kept"] == Value::Array(vec![])).map(|fate| fate["version"].as_u64().unwrap()).collect()
}

#[test]
fn old_versions_go_and_come_again_on_both() {
    let adapters = tempfile::tempdir().unwrap();
    for kind in BOTH {
        if common::peer("prune", if kind == Kind::Current { "current" } else { "adapter" }).is_none() {
            continue;
        }
        for answer in ["zzzz", "wwww", "yyyy"] {
            let _ = fs::remove_dir_all(adapters.path().join(answer));
            common::adapter_that_answers(adapters.path(), answer);
        }
        let Some((project, _scratch)) = Project::begin(kind, adapters.path()) else { continue };
        what_is_kept_and_what_becomes_free(&project);
        made_again(&project);
        kill_everywhere(&project);
        from_another_machine(&project);
    }
}

fn what_is_kept_and_what_becomes_free(project: &Project) {
    let Project { peer, kind, .. } = project;
    says(&project.ok(&["pin", "v5"]), &["v5 is pinned"]);
    says(&project.ok(&["pin", "5"]), &["pinned already"]);
    says(&project.refused(2, &["pin", "v9"]), &["records no", ":v9", "v1, v2, v3, v4, v5, v6"]);
    let before = (sizes(&peer.models()), project.files(), project.tags());
    let dry = project.json(&["prune", "--keep", "1", "--dry-run", "--json"]);
    assert_eq!((sizes(&peer.models()), project.files(), project.tags()), before, "a dry run changes nothing");
    let said = project.ok(&["prune", "--keep", "1"]);
    println!("{kind:?}: {said}");
    says(
        &said,
        &[
            "v1  kept: it served before",
            "v2  pruned, freed",
            "v3  kept: it serves",
            "v5  kept: it is pinned",
            "v6  kept: it is the last",
            "what stays",
        ],
    );
    assert_eq!((went(&dry), project.tags()), (vec![2, 4], ["latest", "v1", "v3", "v5", "v6"].map(str::to_owned).to_vec()));
    // What was told is what the folder lost: v2 shares its weights with v3, v4 some of its with v5.
    let (left, lost) = (sizes(&peer.models()), |left: &BTreeMap<String, u64>| total(&before.0) - total(left));
    assert_eq!(dry["freed_bytes"].as_u64(), Some(lost(&left)), "{dry}");
    assert!(left.iter().all(|(name, size)| before.0.get(name) == Some(size)), "nothing was added");
    let freed = |at: usize| dry["versions"][at]["freed_bytes"].as_u64().unwrap();
    assert!(freed(1) < 10_000 && freed(3) > 100_000, "{dry}");
    // The base that v4 alone was put on; merged models that v3 and v5 are made of stay.
    let gone: Vec<&PathBuf> = before.1.iter().filter(|path| !path.exists()).collect();
    match kind {
        Kind::Adapter => assert!(gone.len() == 1 && gone[0].to_string_lossy().contains("stored-f16"), "{gone:?}"),
        Kind::Current => assert!(gone.is_empty(), "{gone:?}"),
    }
    for answer in ["zzzz", "wwww", "yyyy"] {
        assert!(project.adapter(answer).join(ADAPTER).exists(), "the adapter stays");
    }
    let again = project.json(&["prune", "--keep", "1", "--json"]);
    assert_eq!((went(&again), &again["freed_bytes"]), (vec![], &0.into()));
    assert_eq!(again["stays"], dry["stays"]);
    says(&peer.heard(MODEL), &["ww"]);
    // A number is never given twice.
    assert_eq!(Store::open(&project.root).unwrap().next_version(&project.record(1).server, MODEL).unwrap(), 7);
}

fn made_again(project: &Project) {
    let Project { peer, root, .. } = project;
    says(&project.refused(2, &["promote", "v2"]), &["has no", ":v2", "`retune rebuild v2` makes it again"]);
    says(&project.refused(2, &["rollback", "--to", "4"]), &["`retune rebuild v4` makes it again"]);
    says(&project.refused(2, &["rebuild", "v9"]), &["records no", ":v9"]);
    // Another adapter in the same folder is not what v2 was made of.
    let (adapter, saved) = (project.adapter("wwww").join(ADAPTER), root.join("saved"));
    fs::rename(&adapter, &saved).unwrap();
    fs::copy(project.adapter("zzzz").join(ADAPTER), &adapter).unwrap();
    says(&project.refused(1, &["rebuild", "v2"]), &["is another adapter now", "`retune deploy --adapter"]);
    fs::rename(&saved, &adapter).unwrap();

    let rebuilt = project.json(&["rebuild", "v2", "--json"]);
    let recorded = project.record(2);
    println!("{:?}: {rebuilt}", project.kind);
    assert_eq!((&rebuilt["already"], &rebuilt["promoted"]), (&false.into(), &false.into()));
    assert_eq!((&rebuilt["digest"], &rebuilt["recorded_digest"]), (&recorded.digest.clone().into(), &recorded.digest.into()));
    assert_eq!(peer.digest(&format!("{MODEL}:v2")), rebuilt["digest"].as_str().unwrap());
    says(&peer.heard(&format!("{MODEL}:v2")), &["ww"]);
    says(&project.ok(&["rebuild", "2"]), &["v2 is there still"]);

    // A record of before the texts were written down: told, and made all the same.
    let record = project.record(4);
    let mut recipe = record.recipe.clone();
    for later in ["settled", "template_source", "base_at"] {
        recipe.as_object_mut().unwrap().remove(later).unwrap_or_else(|| panic!("no {later} in {}", record.recipe));
    }
    let mut store = Store::open(root).unwrap();
    let deployment = NewDeployment {
        server: &record.server,
        model: MODEL,
        version: 4,
        digest: &record.digest,
        mode: &record.mode,
        size_bytes: record.size_bytes,
        recipe: &recipe,
    };
    let adapter = NewAdapter {
        role: "coder",
        digest: &record.adapter_digest,
        path: &record.adapter_path,
        base_name: "demo",
        base_digest: &record.base_digest,
        run: None,
    };
    store.record_deployment(&deployment, &adapter).unwrap();
    drop(store);
    let output = peer.retune(root, &[], &["rebuild", "v4"]);
    assert!(output.status.success(), "{output:?}");
    says(&String::from_utf8_lossy(&output.stderr), &["note: ", "recorded before the texts"]);
    says(&String::from_utf8_lossy(&output.stdout), &["v4 is served again, the same as it was"]);
    assert_eq!(peer.digest(&format!("{MODEL}:v4")), record.digest);
    assert!(project.record(4).recipe["settled"].is_object(), "now it is written down");
}

/// v2, v4 and v5 go, and a file of ours; killed at every point.
fn kill_everywhere(project: &Project) {
    let Project { peer, root, kind, .. } = project;
    says(&project.ok(&["pin", "v5", "--undo"]), &["not pinned any more"]);
    let command = ["prune", "--keep", "1", "--json"];
    let all = ["v2", "v4", "v5"];
    let copies: Vec<(PathBuf, Vec<u8>)> =
        project.files().into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    for tag in all {
        peer.ollama.copy(&format!("{MODEL}:{tag}"), &format!("backup:{tag}")).unwrap();
    }
    let reset = || {
        for tag in all {
            peer.ollama.copy(&format!("backup:{tag}"), &format!("{MODEL}:{tag}")).unwrap();
        }
        copies.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    };
    let log = root.join("points");
    let whole = peer.retune(root, &[("RETUNE_FAULT_LOG", log.to_str().unwrap())], &command);
    assert!(whole.status.success(), "{whole:?}");
    let (expected, points) = ((project.tags(), project.files()), common::fault_points(&log));
    let file = if *kind == Kind::Current { "yyyy/merged.gguf" } else { "stored-f16" };
    let gone: Vec<&PathBuf> = copies.iter().map(|(path, _)| path).filter(|path| !path.exists()).collect();
    assert!(gone.len() == 1 && gone[0].to_string_lossy().contains(file), "{gone:?}");
    for wanted in ["http delete my-coder-tuned-coder:v2", "http delete my-coder-tuned-coder:v5", "remove ", "sync folder of "] {
        assert!(points.iter().any(|point| point.starts_with(wanted)), "{kind:?}: no point {wanted}: {points:?}");
    }
    let (records, moves) = {
        let store = Store::open(root).unwrap();
        (store.every_deployment().unwrap(), store.moves(None).unwrap())
    };
    for (n, point) in points.iter().enumerate() {
        reset();
        let when = format!("{kind:?}: killed at {point}");
        let killed = peer.retune(root, &[("RETUNE_FAULT_AT", &(n + 1).to_string())], &command);
        assert_eq!(killed.status.signal(), Some(9), "{when}: {killed:?}");
        for tag in ["latest", "v1", "v3", "v6"] {
            assert!(project.tags().contains(&tag.to_owned()), "{when}: {tag} is gone");
        }
        project.ok(&command);
        assert_eq!((project.tags(), project.files()), expected, "{when}, then again");
        let store = Store::open(root).unwrap();
        assert_eq!(store.damage().unwrap(), None, "{when}");
        assert_eq!((store.every_deployment().unwrap(), store.moves(None).unwrap()), (records.clone(), moves.clone()), "{when}");
    }
    assert_eq!(expected.0, ["latest", "v1", "v3", "v6"]);
    says(&peer.heard(MODEL), &["ww"]);
    println!("{kind:?}: {} points, each killed and done again", points.len());
    reset();
    all.iter().for_each(|tag| assert!(peer.ollama.delete(&format!("backup:{tag}")).unwrap()));
}

/// Where the store of the server cannot be read, never more is told than became free.
fn from_another_machine(project: &Project) {
    let Project { peer, root, kind, .. } = project;
    let elsewhere = tempfile::tempdir().unwrap();
    let home = elsewhere.path().to_str().unwrap();
    let before = total(&sizes(&peer.models()));
    let output = peer.retune(root, &[("OLLAMA_MODELS", home), ("HOME", home)], &["prune", "--keep", "1", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let pruned: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (freed, lost) = (pruned["freed_bytes"].as_u64().unwrap(), before - total(&sizes(&peer.models())));
    println!("{kind:?}: told {freed} of {lost}");
    assert_eq!(went(&pruned), [2, 4, 5]);
    assert!(freed <= lost && freed > lost / 10 * 9, "told {freed}, the folder lost {lost}: {pruned}");
    // What served before was taken away: a plain roll-back says how it comes again, and then goes back to it.
    peer.cli(&["rm", &format!("{MODEL}:v1")]);
    says(&project.refused(2, &["rollback"]), &["v1 served before", "`retune rebuild v1` makes it again"]);
    says(&project.ok(&["rebuild", "v1", "--promote"]), &["v1 is served again, the same as it was, and :latest names it"]);
    says(&peer.heard(MODEL), &["zz"]);
}
