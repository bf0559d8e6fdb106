use serde_json::json;

use super::migrations::{MIGRATIONS, apply_all};
use super::*;

const SERVER: &str = "http://127.0.0.1:11434";
const ALIAS: &str = "m-coder:latest";

fn adapter() -> NewAdapter<'static> {
    NewAdapter { role: "coder", digest: "sha256:a", path: "/runs/1", base_name: "base", base_digest: "sha256:b", run: None }
}

fn deployment<'a>(version: u64, digest: &'a str, recipe: &'a serde_json::Value) -> NewDeployment<'a> {
    NewDeployment { server: SERVER, model: "m-coder", version, digest, mode: "merged", size_bytes: 5, recipe }
}

fn a_move<'a>(kind: MoveKind, from: Option<(&'a str, &'a str)>, to: (&'a str, &'a str)) -> NewMove<'a> {
    NewMove { server: SERVER, alias: ALIAS, kind, from, to, reason: "because" }
}

fn refused(result: Result<Store>) -> String {
    let error = result.map(|_| ()).expect_err("it must be refused");
    format!("{error}\n{}", error.hint().unwrap_or_default())
}

#[test]
fn a_new_store_is_sound_private_and_synced() {
    let root = tempfile::tempdir().unwrap();
    assert!(Store::open_if_there(root.path()).unwrap().is_none());
    let store = Store::open(root.path()).unwrap();
    assert_eq!(store.damage().unwrap(), None);
    let pragma = |name: &str| store.db.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0)).unwrap();
    assert_eq!(pragma("journal_mode"), "wal".to_owned().into());
    assert_eq!((pragma("synchronous"), pragma("foreign_keys")), (2.into(), 1.into()));
    let mode = std::fs::metadata(&store.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let loose: Vec<String> = store
        .read(|db| {
            db.prepare("SELECT name FROM pragma_table_list WHERE type = 'table' AND NOT strict AND name NOT LIKE 'sqlite_%'")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
        .unwrap();
    assert!(loose.is_empty(), "not STRICT: {loose:?}");
    drop(store);
    assert!(Store::open_if_there(root.path()).unwrap().is_some());
    assert!(!root.path().join(".agent/backups").exists(), "a new store needs no backup");
}

#[test]
fn a_version_is_recorded_once_and_numbers_are_never_given_twice() {
    let root = tempfile::tempdir().unwrap();
    let mut store = Store::open(root.path()).unwrap();
    assert_eq!(store.next_version(SERVER, "m-coder").unwrap(), 1);
    let recipe = json!({"type": "f16"});
    let first = store.record_deployment(&deployment(1, "d1", &recipe), &adapter()).unwrap();
    assert_eq!(store.record_deployment(&deployment(1, "d1", &recipe), &adapter()).unwrap(), first);
    store.record_deployment(&deployment(7, "d7", &recipe), &adapter()).unwrap();
    assert_eq!(store.next_version(SERVER, "m-coder").unwrap(), 8);
    assert_eq!(store.next_version("http://elsewhere:11434", "m-coder").unwrap(), 1);
    // An Ollama that began anew gave 7 again.
    let again = store.record_deployment(&deployment(7, "d7-new", &recipe), &adapter()).unwrap();
    let found = store.deployments(SERVER, "m-coder").unwrap();
    assert_eq!(
        found.iter().map(|d| (d.version, d.digest.as_str(), d.id)).collect::<Vec<_>>(),
        [(1, "d1", first), (7, "d7-new", again)]
    );
    assert_eq!((found[0].name().as_str(), &found[0].recipe, found[0].adapter_path.as_str()), ("m-coder:v1", &recipe, "/runs/1"));
    assert!(found[0].recorded_at.starts_with("20") && found[0].recorded_at.ends_with('Z'), "{}", found[0].recorded_at);
}

#[test]
fn a_pin_holds_one_version_of_one_model_on_one_server_until_it_is_taken_away() {
    let root = tempfile::tempdir().unwrap();
    let mut store = Store::open(root.path()).unwrap();
    assert!(store.pin(SERVER, "m-coder", 7).unwrap());
    assert!(!store.pin(SERVER, "m-coder", 7).unwrap(), "it was pinned before");
    assert!(store.pin(SERVER, "m-coder", 2).unwrap());
    assert!(store.pin(SERVER, "m-fixer", 1).unwrap() && store.pin("http://elsewhere:11434", "m-coder", 3).unwrap());
    assert!(store.pin(SERVER, "m-coder", 0).is_err(), "versions count from 1");
    drop(store);
    let mut store = Store::open(root.path()).unwrap();
    assert_eq!(store.pins(SERVER, "m-coder").unwrap(), [2, 7]);
    assert!(store.unpin(SERVER, "m-coder", 7).unwrap() && !store.unpin(SERVER, "m-coder", 7).unwrap());
    assert_eq!(store.pins(SERVER, "m-coder").unwrap(), [2]);
    assert_eq!(store.pins(SERVER, "m-fixer").unwrap(), [1]);
}

#[test]
fn a_version_that_was_made_again_with_another_digest_keeps_its_older_record() {
    let root = tempfile::tempdir().unwrap();
    let mut store = Store::open(root.path()).unwrap();
    let recipe = json!({});
    for (version, digest) in [(1, "d1"), (2, "d2"), (1, "d1-again")] {
        store.record_deployment(&deployment(version, digest, &recipe), &adapter()).unwrap();
    }
    let every = store.every_deployment().unwrap();
    assert_eq!(every.iter().map(|d| d.digest.as_str()).collect::<Vec<_>>(), ["d1", "d2", "d1-again"]);
    assert!(every.iter().all(|d| d.server == SERVER && d.base_digest == "sha256:b"), "{every:?}");
    let newest = store.deployments(SERVER, "m-coder").unwrap();
    assert_eq!(newest.iter().map(|d| d.digest.as_str()).collect::<Vec<_>>(), ["d1-again", "d2"]);
}

#[test]
fn the_history_of_an_alias_is_only_added_to() {
    let root = tempfile::tempdir().unwrap();
    let mut store = Store::open(root.path()).unwrap();
    let first = store.begin_move(&a_move(MoveKind::First, None, ("m-coder:v1", "d1"))).unwrap();
    assert_eq!(store.moves(Some((SERVER, ALIAS))).unwrap()[0].end, None, "it is under way");
    let end = End { done: true, message: String::new() };
    store.end_move(first, &end).unwrap();
    assert!(store.end_move(first, &end).is_err(), "a move ends once");
    store.record_outside_move(&a_move(MoveKind::Outside, Some(("m-coder:v1", "d1")), ("m-coder:v2", "d2"))).unwrap();
    let moves = store.moves(Some((SERVER, ALIAS))).unwrap();
    assert_eq!(
        moves.iter().map(|m| (m.kind, m.is_done())).collect::<Vec<_>>(),
        [(MoveKind::First, true), (MoveKind::Outside, true)]
    );
    assert_eq!(moves[1].from_name.as_deref(), Some("m-coder:v1"));
    assert_eq!(store.moves(None).unwrap(), moves);
    assert!(store.moves(Some((SERVER, "other:latest"))).unwrap().is_empty());
    for change in [
        "UPDATE aliases SET reason = 'none'",
        "DELETE FROM aliases",
        "UPDATE alias_ends SET done = 0",
        "DELETE FROM alias_ends",
        "INSERT INTO aliases (server, alias, kind, to_name, to_digest, reason) VALUES ('s', 'a', 'whim', 'n', 'd', '')",
        "INSERT INTO alias_ends (move_id, done, message) VALUES (99, 1, '')",
    ] {
        assert!(store.db.execute_batch(change).is_err(), "{change}");
    }
    assert_eq!(store.moves(None).unwrap(), moves);
}

#[test]
fn an_older_store_is_brought_up_with_a_backup_and_a_migration_that_fails_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut store = Store::open(root.path()).unwrap();
    let recipe = json!({});
    store.record_deployment(&deployment(1, "d1", &recipe), &adapter()).unwrap();
    let now = MIGRATIONS.len();
    let backup = root.path().join(format!(".agent/backups/experience-v{now}.db"));

    let broken = [MIGRATIONS, &["CREATE TABLE new (x) STRICT; SELECT nonsense;"]].concat();
    assert!(apply_all(&mut store, &broken).is_err());
    assert_eq!(
        store
            .read(|db| db.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'new'", [], |r| r.get::<_, i64>(0)))
            .unwrap(),
        0
    );
    assert_eq!(store.deployments(SERVER, "m-coder").unwrap().len(), 1);

    let longer =
        [MIGRATIONS, &["ALTER TABLE adapters ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0; DELETE FROM deployments;"]].concat();
    apply_all(&mut store, &longer).unwrap();
    assert!(store.deployments(SERVER, "m-coder").unwrap().is_empty());
    drop(store);
    let before = Connection::open(&backup).unwrap();
    assert_eq!(before.query_row("SELECT count(*) FROM deployments", [], |r| r.get::<_, i64>(0)).unwrap(), 1);
    assert_eq!(before.pragma_query_value(None, "user_version", |r| r.get::<_, i64>(0)).unwrap(), now as i64);

    let said = refused(Store::open(root.path()));
    assert!(said.contains(&format!("version {}, this retune knows {now}", now + 1)) && said.contains("newer retune"), "{said}");
}

#[test]
fn many_that_bring_an_older_store_up_at_once_do_it_once_and_the_backup_is_of_the_old_one() {
    for _ in 0..10 {
        let root = tempfile::tempdir().unwrap();
        let path = Store::path_in(root.path());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let old = Connection::open(&path).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.execute_batch("PRAGMA application_id = 0x7274756E; PRAGMA user_version = 1").unwrap();
        drop(old);
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| Store::open(root.path()).map(drop).unwrap()))));
        let store = Store::open(root.path()).unwrap();
        assert_eq!(store.damage().unwrap(), None);
        let folder = root.path().join(".agent/backups");
        let names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["experience-v1.db"]);
        let backup = Connection::open(folder.join("experience-v1.db")).unwrap();
        assert_eq!(backup.pragma_query_value(None, "user_version", |r| r.get::<_, i64>(0)).unwrap(), 1);
    }
}

#[test]
fn what_is_no_store_of_ours_is_refused_and_left_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let path = Store::path_in(root.path());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "no database at all, but longer than the header of one would be: ".repeat(20)).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let said = refused(Store::open(root.path()));
    assert!(said.contains("not a database") && said.contains("backups"), "{said}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    std::fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let said = refused(Store::open(root.path()));
    assert!(said.contains("another program"), "{said}");
}

#[test]
fn two_that_write_at_once_lose_nothing() {
    let root = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let root = root.path();
            scope.spawn(move || {
                // Both may find no tables, and make them.
                let mut store = Store::open(root).unwrap();
                for n in 0..50 {
                    let name = format!("m-coder:v{writer}{n}");
                    store.record_outside_move(&a_move(MoveKind::Outside, None, (&name, "d"))).unwrap();
                }
            });
        }
    });
    let store = Store::open(root.path()).unwrap();
    assert_eq!(store.moves(None).unwrap().len(), 100);
    assert_eq!(store.damage().unwrap(), None);
}

thread_local! {
    static ASKED: std::cell::RefCell<std::collections::BTreeSet<String>> = const { std::cell::RefCell::new(std::collections::BTreeSet::new()) };
}

#[test]
fn no_question_about_runs_walks_through_all_of_them() {
    use rusqlite::trace::{TraceEvent, TraceEventCodes};
    let root = tempfile::tempdir().unwrap();
    let mut store = Store::open(root.path()).unwrap();
    let note = |event: TraceEvent| {
        if let TraceEvent::Stmt(_, sql) = event {
            ASKED.with_borrow_mut(|asked| asked.insert(sql.to_owned()));
        }
    };
    store.db.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(note)).unwrap();
    let eligible = Eligible { min_reward: 0.7, min_observed: 0.5 };
    let weights = crate::domain::Weights { compile: 1.0, tests: 1.0, errors: 1.0, human: 1.0, half_errors: 5.0 };
    store.stats(None, 100).unwrap();
    store.stats(Some("coder"), 100).unwrap();
    store.count_eligible("coder", eligible, 7, 100).unwrap();
    store.candidates("coder").unwrap();
    store.newest_run("coder").unwrap();
    store.roles().unwrap();
    store.run("a").unwrap();
    store.run("7").unwrap();
    store.texts(7).unwrap();
    store.result(7).unwrap();
    store.recompute_rewards(&weights, 10).unwrap();
    store.last_snapshot("coder").unwrap();
    store.snapshot_runs(1).unwrap();
    store.last_training("coder").unwrap();
    store.open_cycle("coder").unwrap();
    store.db.trace_v2(TraceEventCodes::empty(), None::<fn(TraceEvent)>).unwrap();
    let asked: Vec<String> = ASKED.take().into_iter().filter(|sql| sql.trim_start().starts_with("SELECT")).collect();
    assert!(asked.len() >= 14, "{asked:#?}");
    for sql in &asked {
        let plan: Vec<String> = store
            .read(|db| {
                let mut plan = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
                let mut rows = plan.raw_query();
                let mut lines = Vec::new();
                while let Some(row) = rows.next()? {
                    lines.push(row.get::<_, String>(3)?);
                }
                Ok(lines)
            })
            .unwrap();
        // The newest runs of all roles are the end of the table itself.
        let newest = sql.contains("ORDER BY id DESC LIMIT") && !sql.contains("WHERE role");
        let is_bounded = |line: &str| line.contains("USING") || line.contains("(subquery") || line.ends_with(" r") || newest;
        let walks = |line: &&String| line.starts_with("SCAN ") && !is_bounded(line);
        assert_eq!(plan.iter().filter(walks).collect::<Vec<_>>(), [""; 0], "{sql}\n{plan:#?}");
        assert!(!plan.iter().any(|line| line.contains("USE TEMP B-TREE FOR ORDER BY")), "{sql}\n{plan:#?}");
    }
}
