//! Curation on real rows: what is found is what a comparison of all with all finds.

mod common;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use retune::curate::{Part, Repeats, Settings, Shared, contaminated, curate, export, repeats};
use retune::domain::{Candidate, Evidence, Example, Message};
use retune::formats::rows::{self, Wanted};

const NEAR: f64 = 0.8;

fn read(folder: &Path, file: &str) -> Vec<Example> {
    rows::read(&folder.join("sft").join(file)).unwrap().examples
}

/// Declarations and their solutions.
fn humaneval(folder: &Path, language: &str) -> Vec<Example> {
    let values = rows::values(&folder.join(format!("sft/humanevalpack_{language}.jsonl"))).unwrap();
    let turn = |role, row: &serde_json::Value, key: &str| Message::new(role, row[key].as_str().unwrap());
    let example = |row| Example {
        messages: vec![turn("user", row, "prompt"), turn("assistant", row, "canonical_solution")],
        ..Example::default()
    };
    values.iter().map(example).collect()
}

/// Tokens as the page on curation defines them, written again in another way.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut in_word = false;
    for c in text.to_lowercase().chars() {
        let is_word = c.is_alphanumeric() || c == '_';
        match tokens.last_mut() {
            Some(last) if is_word && in_word => last.push(c),
            _ if !c.is_whitespace() => tokens.push(c.to_string()),
            _ => {}
        }
        in_word = is_word;
    }
    tokens
}

fn shingles(turns: &[Message]) -> HashSet<Vec<String>> {
    let texts = turns.iter().map(|turn| tokens(&turn.content));
    texts.flat_map(|words| words.windows(5.min(words.len().max(1))).map(<[String]>::to_vec).collect::<Vec<_>>()).collect()
}

fn jaccard(a: &HashSet<Vec<String>>, b: &HashSet<Vec<String>>) -> f64 {
    let both = a.intersection(b).count();
    if a.is_empty() && b.is_empty() { 1.0 } else { both as f64 / (a.len() + b.len() - both) as f64 }
}

/// All pairs of which request and answer are nearly the same, the same conversations aside.
fn all_with_all(examples: &[Example]) -> Vec<(usize, usize)> {
    let sets: Vec<_> = examples
        .iter()
        .map(|example| {
            let (request, answer) = example.messages.split_at(example.prompt().len());
            let request: Vec<Message> = request.iter().filter(|turn| turn.role != "system").cloned().collect();
            (shingles(&request), shingles(answer))
        })
        .collect();
    let mut found = Vec::new();
    for (i, (request, answer)) in sets.iter().enumerate() {
        for (j, (other_request, other_answer)) in sets[..i].iter().enumerate() {
            if jaccard(request, other_request) >= NEAR && jaccard(answer, other_answer) >= NEAR {
                found.push((i, j));
            }
        }
    }
    found
}

/// A run that is good enough; a higher number is newer.
fn candidate(run: i64, group: &str) -> Candidate {
    Candidate {
        run,
        group: group.to_owned(),
        reward: Some(0.9),
        observed_weight: 0.75,
        evidence: Evidence::Executed,
        vote: None,
        demonstration: false,
        may_train: true,
        review: None,
        at_ms: run,
    }
}

/// (the same, nearly the same, asked again)
fn counts(found: &[Option<Repeats>]) -> (usize, usize, usize) {
    let count = |is: fn(&Repeats) -> bool| found.iter().flatten().filter(|repeats| is(repeats)).count();
    (
        count(|r| matches!(r, Repeats::Exact { .. })),
        count(|r| matches!(r, Repeats::Near { .. })),
        count(|r| matches!(r, Repeats::Request { .. })),
    )
}

#[test]
fn real_files_have_the_duplicates_that_a_comparison_of_all_with_all_finds() {
    let Some(folder) = common::data("curate") else { return };
    // (file, rows compared all with all, the same, nearly the same, asked again)
    for (file, compared, same, near, asked) in [
        ("alpaca_en_demo.json", 999, 14, 0, 0),
        ("gsm8k_train.jsonl", 600, 0, 0, 0),
        ("tool_calls_train.jsonl", 900, 0, 0, 0),
        ("messages_demo.jsonl", 500, 1, 0, 1),
        ("children_stories.jsonl", 120, 0, 0, 0),
        ("tool_use_demo.jsonl", 50, 0, 0, 3),
    ] {
        let examples = read(&folder, file);
        let found = repeats(&examples, NEAR).unwrap();
        assert_eq!(counts(&found), (same, near, asked), "{file}");
        let some = &examples[..compared];
        let pairs = all_with_all(some);
        let expected: HashSet<usize> = pairs.iter().map(|(i, _)| *i).collect();
        let told: HashSet<usize> =
            (0..compared).filter(|&i| matches!(found[i], Some(Repeats::Exact { .. } | Repeats::Near { .. }))).collect();
        assert_eq!(told, expected, "{file}");
    }
}

#[test]
fn planted_near_duplicates_are_found_and_no_others() {
    let Some(folder) = common::data("curate") else { return };
    let mut examples: Vec<Example> = read(&folder, "gsm8k_train.jsonl")[..300].to_vec();
    // One word changed of every 150, 90, 60 and 30: from nearly the same to something else.
    for (i, step) in (0..300).zip([150, 90, 60, 30].into_iter().cycle()) {
        let mut planted = examples[i].clone();
        for turn in &mut planted.messages {
            let change = |(n, word): (usize, &str)| if n % step == step / 2 { "something".to_owned() } else { word.to_owned() };
            turn.content = turn.content.split(' ').enumerate().map(change).collect::<Vec<_>>().join(" ");
        }
        examples.push(planted);
    }
    let expected: HashSet<usize> = all_with_all(&examples).into_iter().map(|(i, _)| i).collect();
    let found = repeats(&examples, NEAR).unwrap();
    let told: HashSet<usize> =
        (0..600).filter(|&i| matches!(found[i], Some(Repeats::Near { .. } | Repeats::Exact { .. }))).collect();
    assert!((60..240).contains(&expected.len()), "{} of 300 are near duplicates", expected.len());
    let missed: Vec<_> = expected.symmetric_difference(&told).collect();
    assert!(missed.is_empty(), "{missed:?}");
}

#[test]
fn the_same_tasks_in_another_language_are_contamination_and_shared_headers_are_not() {
    let Some(folder) = common::data("curate") else { return };
    let [python, js, rust] = ["python", "js", "rust"].map(|language| humaneval(&folder, language));
    let found = |train: &[Example], held_out: &[Example]| contaminated(train, held_out, NEAR);
    let right = |found: &[Option<(usize, Shared)>]| {
        let crossed: Vec<(usize, usize)> = found.iter().enumerate().filter_map(|(i, of)| Some((i, of.as_ref()?.0))).collect();
        (crossed.len(), crossed.iter().filter(|(i, of)| i == of).count())
    };
    // Of 164 tasks; where the words of two tasks are shared, the first one of them is named.
    assert_eq!(right(&found(&python, &js)), (160, 158));
    assert_eq!(right(&found(&python, &rust)), (140, 135));
    // All Rust prompts begin with the same imports; no task of one half is in the other.
    assert_eq!(right(&found(&rust[..82], &rust[82..])), (0, 0));
}

#[test]
fn the_held_out_tool_calls_are_apart_from_the_training_rows() {
    let Some(folder) = common::data("curate") else { return };
    let (train, held_out) = (read(&folder, "tool_calls_train.jsonl"), read(&folder, "tool_calls_heldout.jsonl"));
    let found = contaminated(&train, &held_out, NEAR);
    let crossed: Vec<_> = found.iter().enumerate().filter_map(|(i, of)| Some((i + 1, of.as_ref()?.0 + 1))).collect();
    // Both rate an album with 4 of 6 stars: the answers are the same, and longer than thirteen words.
    assert_eq!(crossed, [(1010, 138)]);
    let leaked = contaminated(&held_out[..5], &held_out, NEAR);
    assert!(leaked.iter().enumerate().all(|(i, of)| *of == Some((i, Shared::Request))), "{leaked:?}");
}

#[test]
fn a_real_set_is_split_once_and_what_grows_stays_apart() {
    let Some(folder) = common::data("curate") else { return };
    let mut examples = read(&folder, "alpaca_en_demo.json");
    examples.extend(read(&folder, "gsm8k_train.jsonl").into_iter().take(1000));
    let runs: Vec<Candidate> = (0..examples.len() as i64).map(|run| candidate(run, &format!("task {run}"))).collect();
    let mut texts = |run: i64| Ok(examples[run as usize].clone());
    let mut parts: HashMap<String, Part> = HashMap::new();
    let mut set = |runs: &[Candidate]| {
        let set = curate(runs, &parts, &mut texts, &Settings::default()).unwrap();
        parts.extend(set.new_parts.iter().cloned());
        let fates: HashSet<&str> = set.left_out.iter().map(|(_, why)| why.name()).collect();
        (set.train.len(), set.held_out.len(), set.left_out.len(), fates.len(), set.held_out)
    };
    let (train, held, left, kinds, early) = set(&runs[..600]);
    // Five that are the same among the first 600; a tenth of 595 items.
    assert_eq!((train, held, left, kinds), (535, 60, 5, 1));
    let (train, held, left, _, late) = set(&runs);
    // 14 the same; a tenth of 1,985 items; the rest is more than the set holds.
    assert_eq!((train, held, left), (1000, 199, 800));
    let late: HashSet<i64> = late.into_iter().collect();
    assert!(early.iter().all(|run| late.contains(run)));
}

#[test]
fn every_real_file_that_is_written_reads_back_as_it_was() {
    let Some(folder) = common::data("curate") else { return };
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("rows.jsonl");
    // (file, rows of alpaca, rows of messages beside)
    for (file, alpaca, messages) in [
        ("alpaca_en_demo.json", 999, 0),
        ("gsm8k_train.jsonl", 7473, 0),
        ("tool_calls_train.jsonl", 2100, 0),
        ("messages_demo.jsonl", 500, 0),
        ("children_stories.jsonl", 1500, 0),
        ("tool_use_demo.jsonl", 0, 50),
    ] {
        let examples = read(&folder, file);
        assert_eq!(export::write_messages(&path, &examples).unwrap(), examples.len());
        assert_eq!(rows::read(&path).unwrap().examples, examples, "{file}");
        let written = export::write_alpaca(&path, &examples).unwrap();
        assert_eq!((written.alpaca, written.messages), (alpaca, messages), "{file}");
        let said = |examples: &[Example]| -> Vec<(String, String)> {
            let turns = examples.iter().flat_map(|example| &example.messages);
            turns.map(|turn| (turn.role.clone(), turn.content.clone())).collect()
        };
        if messages == 0 {
            assert_eq!(said(&rows::read(&path).unwrap().examples), said(&examples), "{file}");
        } else {
            assert_eq!(rows::read(&written.beside.unwrap()).unwrap().examples, examples, "{file}");
        }
    }
    let pairs = rows::read_as(&folder.join("preference/dpo_en_demo.json"), Wanted::Pairs).unwrap().examples;
    let two: Vec<(Example, Example)> = pairs.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
    assert_eq!(export::write_preferences(&path, &two).unwrap(), 300);
    let read: Vec<_> = rows::read_as(&path, Wanted::Pairs).unwrap().examples;
    assert_eq!(read, pairs);
}

/// The numbers of docs/curate.md: `cargo test --release --locked --test curate -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement: 100,000 runs"]
fn a_hundred_thousand_runs_are_curated_in_seconds() {
    let Some(folder) = common::data("curate") else { return };
    let files = ["alpaca_en_demo.json", "gsm8k_train.jsonl", "tool_calls_train.jsonl", "children_stories.jsonl"];
    let real: Vec<Example> = files.iter().flat_map(|file| read(&folder, file)).collect();
    // The real ones, then copies of which every third word is another: as long, and no duplicates.
    let copy = |run: i64| {
        let (mut example, round) = (real[run as usize % real.len()].clone(), run as usize / real.len());
        for turn in example.messages.iter_mut().filter(|_| round > 0) {
            let change = |(i, word): (usize, &str)| if i % 3 == round % 3 { format!("{word}{round}") } else { word.to_owned() };
            turn.content = turn.content.split(' ').enumerate().map(change).collect::<Vec<_>>().join(" ");
        }
        Ok(example)
    };
    for (what, group) in [("a task each", 1), ("eight of a task", 8)] {
        let runs: Vec<Candidate> = (0..100_000).map(|run| candidate(run, &format!("task {}", run / group))).collect();
        let (begun, mut in_texts) = (std::time::Instant::now(), std::time::Duration::ZERO);
        let mut texts = |run| {
            let begun = std::time::Instant::now();
            let example = copy(run);
            in_texts += begun.elapsed();
            example
        };
        let set = curate(&runs, &HashMap::new(), &mut texts, &Settings { max_examples: 100_000, ..Settings::default() }).unwrap();
        let seconds = (begun.elapsed() - in_texts).as_secs_f64();
        println!(
            "{what}: {seconds:.1} s without the texts, {:.0} runs a second; {} to train on, {} held out; {:?}",
            100_000.0 / seconds,
            set.train.len(),
            set.held_out.len(),
            set.notes()
        );
        assert!(set.train.len() > 90_000 && (450..=500).contains(&set.held_out.len()));
    }
}
