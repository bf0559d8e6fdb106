use std::cell::{Cell, RefCell};

use serde_json::{Value, json};

use super::*;
use crate::store::{MoveKind, NewAdapter, NewDeployment};

/// A digest, and the files that belong to it with their sizes.
type Model = (String, Vec<(&'static str, u64)>);

/// Names and digests, and what each name holds, digest and size; all of it in memory.
#[derive(Default)]
struct Memory {
    models: RefCell<BTreeMap<String, Model>>,
    /// A delete is only said to be made.
    lies: Cell<bool>,
    /// A delete leaves this file.
    leaves: Cell<&'static str>,
    /// It tells the weights only.
    tells_weights: Cell<bool>,
}

impl Memory {
    fn put(&self, name: &str, digest: &str, files: &[(&'static str, u64)]) {
        self.models.borrow_mut().insert(name.to_owned(), (digest.to_owned(), files.to_vec()));
    }

    fn names(&self) -> Vec<String> {
        self.models.borrow().keys().cloned().collect()
    }
}

impl Registry for Memory {
    fn id(&self) -> String {
        "memory".to_owned()
    }

    fn title(&self) -> String {
        "the memory".to_owned()
    }

    fn look(&self) -> &'static str {
        "ls"
    }

    fn tags(&self) -> Result<Vec<Tag>> {
        let size = |files: &[(&str, u64)]| files.iter().map(|(_, size)| size).sum();
        let models = self.models.borrow();
        Ok(models.iter().map(|(name, (d, files))| Tag { name: name.clone(), digest: d.clone(), size: size(files) }).collect())
    }

    fn copy(&self, from: &str, to: &str) -> Result<()> {
        let model = self.models.borrow()[from].clone();
        self.models.borrow_mut().insert(to.to_owned(), model);
        Ok(())
    }

    fn delete(&self, name: &str) -> Result<bool> {
        Ok(self.lies.get() || self.models.borrow_mut().remove(name).is_some())
    }

    fn held(&self, tag: &Tag) -> Result<Option<Held>> {
        let is_whole = !self.tells_weights.get();
        let files = self.models.borrow()[&tag.name].1.clone();
        if files.iter().any(|(digest, _)| *digest == "cannot tell") {
            return Ok(None);
        }
        let text = |digest: &str| digest.starts_with("text");
        let texts_at_most_bytes = if is_whole { 0 } else { files.iter().filter(|f| text(f.0)).map(|f| f.1 + 10).sum() };
        let files = files.into_iter().filter(|(digest, _)| is_whole || !text(digest)).map(|(digest, size)| HeldFile {
            digest: digest.to_owned(),
            size_bytes: is_whole.then_some(size),
            is_weights: !text(digest),
        });
        Ok(Some(Held { own_bytes: u64::from(is_whole), files: files.collect(), is_whole, texts_at_most_bytes }))
    }

    fn has_file(&self, digest: &str) -> Result<bool> {
        let is_held = self.models.borrow().values().any(|(_, files)| files.iter().any(|(there, _)| *there == digest));
        Ok(is_held || self.leaves.get() == digest)
    }
}

fn tag(name: &str, digest: &str) -> Tag {
    Tag { name: name.to_owned(), digest: digest.to_owned(), size: 0 }
}

fn record(version: u64, mode: &str, adapter: &Path, adapter_digest: &str, recipe: Value) -> Deployment {
    Deployment {
        id: version as i64,
        server: "memory".to_owned(),
        model: "m-coder".to_owned(),
        version,
        digest: format!("d{version}"),
        mode: mode.to_owned(),
        size_bytes: 1,
        recipe,
        adapter_path: adapter.to_string_lossy().into_owned(),
        adapter_digest: adapter_digest.to_owned(),
        base_digest: "sha256:0123456789abcdef0123".to_owned(),
        recorded_at: String::new(),
    }
}

fn chosen(now: Option<(&str, &str)>, before: Option<(&str, &str)>, pinned: &[u64], keep: usize) -> Vec<(u64, Vec<Why>)> {
    let named = |(name, digest): (&str, &str)| Named { name: name.to_owned(), digest: digest.to_owned() };
    let (now, before) = (now.map(named), before.map(named));
    let mut recorded: Vec<Deployment> = (1..=12).map(|n| record(n, "merged", Path::new("/a"), "a", json!({}))).collect();
    recorded.retain(|d| d.version != 3);
    let alias = alias_name("m", "coder").unwrap();
    let mut tags: Vec<Tag> = [1, 10, 11, 12, 2, 3, 4, 5].map(|n| tag(&format!("m-coder:v{n}"), &format!("d{n}"))).to_vec();
    // By another hand: the number is recorded, and it is another model.
    tags[6].digest = "theirs".to_owned();
    for (name, digest) in [
        ("m-coder:latest", now.as_ref().map_or("none", |now| &now.digest)),
        ("m-coder:kept-0123456789ab", "d0"),
        ("m-coder:mine", "dm"),
        ("other:v1", "o1"),
        ("you/m-coder:v2", "y2"),
    ] {
        tags.push(tag(name, digest));
    }
    let facts = Facts { alias: &alias, now: now.as_ref(), before: before.as_ref(), pinned, recorded: &recorded };
    choose(&facts, &tags, keep).into_iter().map(|fate| (fate.version, fate.kept)).collect()
}

#[test]
fn what_serves_what_served_before_the_last_the_pinned_and_the_unrecorded_are_kept_and_nothing_else_is_a_version() {
    use Why::{Last, Pinned, ServedBefore, Serves, Unrecorded};
    assert_eq!(
        chosen(Some(("m-coder:v1", "d1")), Some(("m-coder:v2", "d2")), &[5, 12], 3),
        [
            (1, vec![Serves]),
            (2, vec![ServedBefore]),
            (3, vec![Unrecorded]),
            (4, vec![Unrecorded]),
            (5, vec![Pinned]),
            (10, vec![Last(3)]),
            (11, vec![Last(3)]),
            (12, vec![Pinned, Last(3)]),
        ]
    );
    let gone = |fates: Vec<(u64, Vec<Why>)>| -> Vec<u64> {
        fates.into_iter().filter(|(_, kept)| kept.is_empty()).map(|(version, _)| version).collect()
    };
    assert_eq!(gone(chosen(None, None, &[], 0)), [1, 2, 5, 10, 11, 12]);
    assert_eq!(gone(chosen(None, None, &[], 1)), [1, 2, 5, 10, 11]);
    assert_eq!(gone(chosen(None, None, &[], 100)), [] as [u64; 0]);
    // What served before was made again and has another digest now.
    assert_eq!(gone(chosen(Some(("m-coder:v12", "d12")), Some(("m-coder:v5", "older")), &[1, 2], 0)), [10, 11]);
    // A model that served under the alias alone is no version of its own, but what has its digest serves.
    assert_eq!(gone(chosen(Some(("m-coder:latest", "d5")), None, &[], 1)), [1, 2, 10, 11]);
}

/// A store with an alias at v1, and records of `versions`, all of one adapter for the demo's base.
fn begun(root: &Path, registry: &Memory, versions: &[u64]) -> PathBuf {
    let base = crate::base::Base::open("demo").unwrap();
    let folder = root.join("adapter");
    let spec = crate::model::AdapterSpec { rank: 2, alpha: 4.0, ..Default::default() };
    let adapter = crate::model::Adapter::fresh(&base.decoder, spec, &mut retune_kernels::rng::Rng::new(1));
    std::fs::create_dir_all(&folder).unwrap();
    crate::model::adapter_files::save_peft(&folder, &adapter, &base.decoder.config, None, 0.0).unwrap();
    let adapter = crate::model::adapter_files::load(&folder, &base.decoder.config).unwrap();
    let mut store = Store::open(root).unwrap();
    for &version in versions {
        let digest = format!("d{version}");
        let new = NewDeployment {
            server: "memory",
            model: "m-coder",
            version,
            digest: &digest,
            mode: "merged",
            size_bytes: 1,
            recipe: &json!({"base": "demo", "template": "alpaca", "parameters": {}}),
        };
        let digest = crate::pipeline::adapter_digest(&adapter);
        let path = folder.to_string_lossy();
        let base_digest = base.digest().unwrap();
        let adapter =
            NewAdapter { role: "coder", digest: &digest, path: &path, base_name: "demo", base_digest: &base_digest, run: None };
        store.record_deployment(&new, &adapter).unwrap();
    }
    drop(store);
    let mut champion = Champion::open(registry, root, "m", "coder", &mut |_| ()).unwrap();
    champion.promote("v1", "the first").unwrap();
    folder
}

fn request(root: &Path, keep: usize) -> PruneRequest {
    PruneRequest { prefix: "m".to_owned(), role: "coder".to_owned(), root: root.to_owned(), keep, dry_run: false }
}

fn went(pruned: &Pruned) -> Vec<(u64, u64)> {
    pruned.versions.iter().filter(|fate| fate.kept.is_empty()).map(|fate| (fate.version, fate.freed_bytes)).collect()
}

#[test]
fn only_what_no_other_name_holds_is_counted_as_freed() {
    let root = tempfile::tempdir().unwrap();
    let memory = Memory::default();
    memory.put("base:latest", "b", &[("base", 1000), ("text license", 20)]);
    memory.put("m-coder:v1", "d1", &[("base", 1000), ("one", 100), ("text p", 5)]);
    memory.put("m-coder:v2", "d2", &[("base", 1000), ("two", 200), ("text p", 5), ("text q", 7)]);
    memory.put("m-coder:v3", "d3", &[("merged", 3000), ("text p", 5)]);
    memory.put("m-coder:v4", "d4", &[("merged", 3000), ("text p", 5)]);
    memory.put("m-coder:v5", "d5", &[("five", 500), ("text p", 5)]);
    begun(root.path(), &memory, &[1, 2, 3, 4, 5]);
    let dry = prune(&memory, &PruneRequest { dry_run: true, ..request(root.path(), 1) }, &mut |_| ()).unwrap();
    assert_eq!(memory.names().len(), 7, "a dry run removes nothing");
    let pruned = prune(&memory, &request(root.path(), 1), &mut |_| ()).unwrap();
    // Each with its manifest of 1 byte; two that share a file free it with the last of them.
    assert_eq!(went(&pruned), [(2, 208), (3, 1), (4, 3001)]);
    assert_eq!(went(&dry), went(&pruned));
    assert_eq!((pruned.freed_bytes, dry.freed_bytes), (3210, 3210));
    assert_eq!(memory.names(), ["base:latest", "m-coder:latest", "m-coder:v1", "m-coder:v5"]);
    // Base, one, five, the text, and three manifests.
    assert_eq!((pruned.stays.server_bytes, dry.stays.server_bytes), (1608, 1608));
    let again = prune(&memory, &request(root.path(), 1), &mut |_| ()).unwrap();
    assert_eq!((went(&again), again.freed_bytes), (vec![], 0));
    // Numbers are never given twice, and the records stay.
    let store = Store::open(root.path()).unwrap();
    assert_eq!(store.next_version("memory", "m-coder").unwrap(), 6);
    assert_eq!(store.deployments("memory", "m-coder").unwrap().len(), 5);
}

#[test]
fn a_server_that_does_not_tell_sizes_or_keeps_a_file_is_never_said_to_have_freed_more_than_it_did() {
    let root = tempfile::tempdir().unwrap();
    let memory = Memory::default();
    memory.tells_weights.set(true);
    memory.put("m-coder:v1", "d1", &[("one", 1000), ("text p", 5)]);
    memory.put("m-coder:v2", "d2", &[("two", 2000), ("text q", 5)]);
    memory.put("m-coder:v3", "d3", &[("three", 3000), ("text q", 5)]);
    memory.put("m-coder:v4", "d4", &[("four", 4000), ("other four", 10), ("text q", 5)]);
    begun(root.path(), &memory, &[1, 2, 3, 4]);
    memory.leaves.set("three");
    let pruned = prune(&memory, &request(root.path(), 0), &mut |_| ()).unwrap();
    // v2: its tag's size less its texts at most; v3 left its file; v4: which of its two files is how large is not known.
    assert_eq!(went(&pruned), [(2, 1990), (3, 0), (4, 0)]);
    // One that tells nothing may hold anything.
    memory.leaves.set("");
    memory.tells_weights.set(false);
    memory.put("m-coder:v2", "d2", &[("two", 2000)]);
    memory.put("mystery:latest", "?", &[("cannot tell", 1)]);
    let pruned = prune(&memory, &request(root.path(), 0), &mut |_| ()).unwrap();
    assert_eq!(went(&pruned), [(2, 1)]);
}

#[test]
fn a_server_that_only_says_that_it_deleted_is_found_out() {
    let root = tempfile::tempdir().unwrap();
    let memory = Memory::default();
    for version in 1..=3 {
        memory.put(&format!("m-coder:v{version}"), &format!("d{version}"), &[]);
    }
    begun(root.path(), &memory, &[1, 2, 3]);
    memory.lies.set(true);
    let error = prune(&memory, &request(root.path(), 1), &mut |_| ()).unwrap_err();
    assert_eq!(error.to_string(), "the memory said that it deleted m-coder:v2, and lists it still");
    assert!(error.hint().unwrap().contains("`ls`"), "{error:?}");
    memory.lies.set(false);
    assert_eq!(prune(&memory, &request(root.path(), 1), &mut |_| ()).unwrap().versions[1].kept, []);
    assert!(!memory.names().contains(&"m-coder:v2".to_owned()));
}

#[test]
fn what_could_not_be_made_again_is_kept_and_told() {
    let root = tempfile::tempdir().unwrap();
    let memory = Memory::default();
    for version in 1..=3 {
        memory.put(&format!("m-coder:v{version}"), &format!("d{version}"), &[]);
    }
    let folder = begun(root.path(), &memory, &[1, 2, 3]);
    let why = |memory: &Memory| {
        let pruned = prune(memory, &request(root.path(), 0), &mut |_| ()).unwrap();
        assert_eq!(went(&pruned), []);
        pruned.versions[1].kept.iter().map(ToString::to_string).collect::<String>()
    };
    // Another training in the same folder.
    let base = crate::base::Base::open("demo").unwrap();
    let spec = crate::model::AdapterSpec { rank: 2, alpha: 4.0, ..Default::default() };
    let other = crate::model::Adapter::fresh(&base.decoder, spec, &mut retune_kernels::rng::Rng::new(2));
    crate::model::adapter_files::save_peft(&folder, &other, &base.decoder.config, None, 0.0).unwrap();
    let said = why(&memory);
    assert!(said.contains("could not be made again") && said.contains("is another adapter now"), "{said}");
    std::fs::rename(&folder, root.path().join("away")).unwrap();
    let said = why(&memory);
    assert!(said.contains("is not there any more, and m-coder:v2 is made of it"), "{said}");
}

#[test]
fn a_pin_and_the_target_of_a_roll_back_hold_and_a_kill_between_server_and_files_is_made_good() {
    let root = tempfile::tempdir().unwrap();
    let memory = Memory::default();
    for version in 1..=4 {
        memory.put(&format!("m-coder:v{version}"), &format!("d{version}"), &[]);
    }
    let folder = begun(root.path(), &memory, &[1, 2, 3, 4]);
    Champion::open(&memory, root.path(), "m", "coder", &mut |_| ()).unwrap().promote("v4", "better").unwrap();
    let pin = |version: &str, undo: bool| pin(&memory, root.path(), ("m", "coder"), version, undo, &mut |_| ());
    assert!(!pin("v2", false).unwrap().already && pin("2", false).unwrap().already);
    let error = pin("v9", false).unwrap_err();
    assert!(error.to_string().contains("records no m-coder:v9") && error.hint().unwrap().contains("v1, v2, v3, v4"), "{error:?}");
    std::fs::write(folder.join(MERGED_FILE), "merged").unwrap();
    let pruned = prune(&memory, &request(root.path(), 0), &mut |_| ()).unwrap();
    assert_eq!(went(&pruned), [(3, 1)]);
    assert!(pruned.files.is_empty() && folder.join(MERGED_FILE).exists(), "versions that stay are made of the same adapter");
    pin("v2", true).unwrap();
    assert_eq!(went(&prune(&memory, &request(root.path(), 0), &mut |_| ()).unwrap()), [(2, 1)]);
    // All of its versions gone, as a run that was killed before it came to the files leaves it.
    for name in memory.names() {
        memory.delete(&name).unwrap();
    }
    let pruned = prune(&memory, &request(root.path(), 0), &mut |_| ()).unwrap();
    let path = folder.join(MERGED_FILE);
    assert_eq!(pruned.files, [RemovedFile { path: path.clone(), freed_bytes: 6 }]);
    assert!(!path.exists() && folder.join("adapter_config.json").exists(), "the adapter stays");
}

#[test]
fn a_file_goes_only_when_no_version_that_is_left_needs_it() {
    let root = tempfile::tempdir().unwrap();
    let bases = root.path().join("bases");
    let folder = |name: &str| {
        let path = root.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join(MERGED_FILE), "x").unwrap();
        path
    };
    let (one, two, copy) = (folder("one"), folder("two"), folder("copy of one"));
    std::fs::create_dir_all(&bases).unwrap();
    let stored = |kind: &str| bases.join(stored_name("sha256:0123456789abcdef0123", kind));
    for kind in ["f16", "q8_0"] {
        std::fs::write(stored(kind), "x").unwrap();
    }
    let kind = |name: &str| json!({"type": name});
    let all = [
        record(1, "merged", &one, "a", kind("f16")),
        record(2, "merged", &two, "b", json!({"type": null})),
        record(3, "merged", &copy, "a", json!({})),
        record(4, "adapter", &one, "a", kind("f16")),
        record(5, "adapter", &two, "b", kind("q8_0")),
        record(6, "adapter", &two, "b", kind("q8_0")),
        record(7, "adapter", &one, "a", json!({"type": null})),
        // Its folder is gone: what lies beside it is not its own.
        record(8, "merged", &one.join("gone"), "c", json!({})),
    ];
    let unneeded = |left: &[u64]| unneeded(&all, &all, &|d| left.contains(&d.version), &bases);
    assert_eq!(unneeded(&[1, 2, 3, 4, 5, 6]), [] as [PathBuf; 0]);
    assert_eq!(unneeded(&[1, 3, 4, 5]), [two.join(MERGED_FILE)]);
    // The same adapter in another folder.
    assert_eq!(unneeded(&[2, 3, 4, 6]), [] as [PathBuf; 0]);
    assert_eq!(unneeded(&[2, 4, 6]), [copy.join(MERGED_FILE), one.join(MERGED_FILE)]);
    assert_eq!(unneeded(&[1, 2, 3, 7]), [stored("f16"), stored("q8_0")]);
    assert_eq!(unneeded(&[]).len(), 5);
    // A version on another server stays as far as we know.
    let mut elsewhere = all.clone();
    elsewhere[0].server = "elsewhere".to_owned();
    let found = super::unneeded(&all[1..], &elsewhere, &|d| d.server == "elsewhere", &bases);
    assert_eq!(found, [stored("f16"), stored("q8_0"), two.join(MERGED_FILE)]);
}

#[test]
fn a_version_that_was_made_again_with_another_digest_is_gone_back_to() {
    let root = tempfile::tempdir().unwrap();
    let memory = Memory::default();
    for version in 1..=3 {
        memory.put(&format!("m-coder:v{version}"), &format!("d{version}"), &[]);
    }
    begun(root.path(), &memory, &[1, 2, 3]);
    let open = || Champion::open(&memory, root.path(), "m", "coder", &mut |_| ()).unwrap();
    open().promote("v2", "better").unwrap();
    open().promote("v3", "better still").unwrap();
    memory.delete("m-coder:v2").unwrap();
    let error = open().roll_back(None, "").unwrap_err();
    assert!(error.to_string().contains("m-coder:v2 served before"), "{error}");
    assert!(error.hint().unwrap().starts_with("`retune rebuild v2` makes it again"), "{error:?}");
    let refused = [true, false].map(|promote| {
        // The alias is held as long as the champion lives.
        let mut champion = open();
        if promote { champion.promote("v2", "").unwrap_err() } else { champion.roll_back(Some("2"), "").unwrap_err() }
    });
    for error in refused {
        assert!(error.hint().unwrap().starts_with("`retune rebuild v2` makes it again"), "{error:?}");
    }
    assert!(!open().promote("v9", "").unwrap_err().hint().unwrap().contains("rebuild"), "it never was");
    // Somebody else's model under its name is not it.
    memory.put("m-coder:v2", "theirs", &[]);
    assert!(open().roll_back(None, "").unwrap_err().to_string().contains("m-coder:v2 served before"));
    // Made again, it is recorded with the digest that it has now.
    let mut store = Store::open(root.path()).unwrap();
    let old = store.deployments("memory", "m-coder").unwrap().remove(1);
    let again = NewDeployment {
        server: "memory",
        model: "m-coder",
        version: 2,
        digest: "d2 again",
        mode: "merged",
        size_bytes: 1,
        recipe: &old.recipe,
    };
    let adapter = NewAdapter {
        role: "coder",
        digest: &old.adapter_digest,
        path: &old.adapter_path,
        base_name: "demo",
        base_digest: &old.base_digest,
        run: None,
    };
    store.record_deployment(&again, &adapter).unwrap();
    memory.put("m-coder:v2", "d2 again", &[]);
    let back = open().roll_back(None, "worse").unwrap();
    assert_eq!((back.to.name.as_str(), back.to.digest.as_str()), ("m-coder:v2", "d2 again"));
    // The next one goes further back, not forward again.
    assert_eq!(open().roll_back(None, "worse, too").unwrap().to.name, "m-coder:v1");
    // What somebody's hand names is no way back of ours.
    let moves = open().history().unwrap();
    assert!(moves.iter().all(|m| m.kind != MoveKind::Outside), "{moves:?}");
}
