//! Promotion, roll-back and their history on real Ollamas, through the command line: what answers changes with the next
//! request, a kill anywhere is settled by the next command, and two at once move one after the other.

mod common;
#[path = "support/ollama_peer.rs"]
mod ollama_peer;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use common::{refusal, says};
use ollama_peer::{BOTH, Peer};
use retune::store::Store;
use serde_json::{Value, json};

const MODEL: &str = "my-coder-tuned-coder";

#[test]
fn versions_are_promoted_rolled_back_and_told_on_both() {
    for kind in BOTH {
        let Some(peer) = Peer::start(kind) else { continue };
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        let deploy = |answer: &str, more: &[&str]| {
            let adapter = common::adapter_that_answers(scratch.path(), answer);
            let said = peer.retune_ok(&root, &[&["deploy", "--json", "--adapter", adapter.to_str().unwrap()], more].concat());
            serde_json::from_str::<Value>(&said).unwrap()
        };
        refusal(2, &peer.retune(&root, &[], &["history"]), "a history before there is one");
        refusal(2, &peer.retune(&root, &[], &["rollback"]), "a roll-back before there is anything");
        assert!(!root.exists(), "in a wrong folder nothing is begun");
        assert_eq!(deploy("zzzz", &[])["promoted"], true, "the first version serves");
        let second = deploy("wwww", &[]);
        assert_eq!((&second["version"], &second["promoted"]), (&2.into(), &false.into()));
        says(&peer.heard(MODEL), &["zz"]);
        says(&peer.retune_ok(&root, &["promote", "v2", "--reason", "better"]), &["latest names", "v2 now (it was", "v1)"]);
        says(&peer.heard(MODEL), &["ww"]);
        says(&peer.retune_ok(&root, &["promote", "2"]), &["already"]);
        // Whom the settings name is told of a roll-back; one who cannot be told changes nothing about it.
        let told = scratch.path().join("told.json");
        let alerts = json!({"webhook": "http://127.0.0.1:1/secret", "command": format!("cat > '{}'", told.display())});
        fs::write(root.join(".agent/learning-config.json"), json!({ "alerts": alerts }).to_string()).unwrap();
        let back: Value = serde_json::from_str(&peer.retune_ok(&root, &["rollback", "--json", "--reason", "worse"])).unwrap();
        assert_eq!((&back["kind"], &back["to"]["name"]), (&"rollback".into(), &format!("{MODEL}:v1").into()));
        let alert: Value = serde_json::from_str(&fs::read_to_string(&told).unwrap()).unwrap();
        assert_eq!(
            (&alert["event"], &alert["details"]["reason"], &alert["details"]["to"]["name"]),
            (&"rollback".into(), &"worse".into(), &back["to"]["name"])
        );
        fs::remove_file(root.join(".agent/learning-config.json")).unwrap();
        says(&peer.heard(MODEL), &["zz"]);
        says(&refusal(2, &peer.retune(&root, &[], &["rollback"]), "beyond the first"), &["nothing served before", ":v1"]);
        says(&refusal(2, &peer.retune(&root, &[], &["promote", "v9"]), "no such version"), &["has no", ":v9", "v1, v2"]);
        // Somebody else's hand.
        peer.cli(&["cp", &format!("{MODEL}:v2"), &format!("{MODEL}:latest")]);
        says(&peer.retune_ok(&root, &["rollback"]), &["v1 now (it was", "v2)"]);
        let told = peer.retune_ok(&root, &["history"]);
        let lines: Vec<&str> = told.lines().collect();
        let expected = ["first", "promotion", "rollback", "outside", "rollback"];
        assert_eq!(lines.len(), 1 + expected.len(), "{told}");
        says(lines[0], &[MODEL, &peer.host]);
        for (line, kind) in lines[1..].iter().zip(expected) {
            says(line, &[kind]);
            assert!(line.len() <= 80, "{line}");
        }
        says(lines[2], &["v1 -> v2", "better"]);
        says(lines[3], &["v2 -> v1", "worse"]);
        assert_eq!(peer.retune_ok(&root, &["history", "--json", "--role", "coder"]).lines().count(), expected.len());
        assert_eq!(peer.retune_ok(&root, &["history", "--json", "--role", "fixer"]).lines().count(), 0);
        // A number is never given twice, though the version is gone.
        peer.cli(&["rm", &format!("{MODEL}:v2")]);
        assert_eq!(deploy("yyyy", &[])["version"], 3);
        kill_everywhere(&peer, &root);
        two_at_once(&peer, &root);
    }
}

/// v1 serves, v3 is there: promotion and roll-back, killed at every point.
fn kill_everywhere(peer: &Peer, root: &Path) {
    let digests = [peer.digest(&format!("{MODEL}:v1")), peer.digest(&format!("{MODEL}:v3"))];
    let mut killed = 0;
    for (forward, command) in [(true, &["promote", "v3"][..]), (false, &["rollback"])] {
        let (from, to) = if forward { (&digests[0], &digests[1]) } else { (&digests[1], &digests[0]) };
        let log = root.join("points");
        let to_start = || peer.retune_ok(root, &["promote", if forward { "v1" } else { "v3" }]);
        to_start();
        let whole = peer.retune(root, &[("RETUNE_FAULT_LOG", log.to_str().unwrap())], command);
        assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
        let points = common::fault_points(&log);
        fs::remove_file(&log).unwrap();
        let order = [
            "commit begin of a move",
            "committed begin of a move",
            "http copy",
            "commit end of a move",
            "committed end of a move",
        ];
        let found: Vec<&String> = points.iter().filter(|point| order.iter().any(|wanted| point.starts_with(wanted))).collect();
        assert!(
            found.len() == order.len() && found.iter().zip(order).all(|(point, wanted)| point.starts_with(wanted)),
            "{points:?}"
        );
        for (n, point) in points.iter().enumerate() {
            to_start();
            let when = format!("{command:?} killed at {point}");
            let output = peer.retune(root, &[("RETUNE_FAULT_AT", &(n + 1).to_string())], command);
            assert_eq!(output.status.signal(), Some(9), "{when}");
            let now = peer.digest(&format!("{MODEL}:latest"));
            assert!(now == *from || now == *to, "{when}: the alias names {now:?}");
            // What was promoted by a process that died is rolled back as any other; so the command is one that names its end.
            peer.retune_ok(root, &["promote", if forward { "v3" } else { "v1" }]);
            assert_eq!(peer.digest(&format!("{MODEL}:latest")), *to, "{when}, then again");
            let store = Store::open(root).unwrap();
            assert_eq!(store.damage().unwrap(), None, "{when}");
            let moves = store.moves(None).unwrap();
            assert!(moves.iter().all(|m| m.end.is_some()), "{when}: a move is left open");
            let done: Vec<_> = moves.iter().filter(|m| m.is_done()).collect();
            assert_eq!(&done.last().unwrap().to_digest, to, "{when}");
            for pair in done.windows(2) {
                assert_eq!(pair[1].from_digest.as_ref(), Some(&pair[0].to_digest), "{when}: the history has a gap");
            }
            killed += 1;
        }
    }
    println!("{killed} points, each killed and settled");
}

fn two_at_once(peer: &Peer, root: &Path) {
    std::thread::scope(|scope| {
        for version in ["v1", "v3"] {
            scope.spawn(move || (0..5).for_each(|_| drop(peer.retune_ok(root, &["promote", version]))));
        }
    });
    let moves = Store::open(root).unwrap().moves(None).unwrap();
    let done: Vec<_> = moves.iter().filter(|m| m.is_done()).collect();
    for pair in done.windows(2) {
        assert_eq!(pair[1].from_digest.as_ref(), Some(&pair[0].to_digest));
    }
    assert_eq!(done.last().unwrap().to_digest, peer.digest(&format!("{MODEL}:latest")));
}
