use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::domain::{Evidence, Message};

/// A run that is good enough; a higher number is newer.
pub fn candidate(run: i64, group: &str) -> Candidate {
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
        at_ms: run * 1000,
    }
}

/// Runs and their texts.
#[derive(Clone, Default)]
struct Recorded {
    runs: Vec<Candidate>,
    texts: HashMap<i64, Example>,
}

impl Recorded {
    fn add(&mut self, group: &str, request: &str, answer: &str) -> i64 {
        let run = self.runs.len() as i64 + 1;
        self.runs.push(candidate(run, group));
        let messages =
            vec![Message::new("system", "You write Rust."), Message::new("user", request), Message::new("assistant", answer)];
        self.texts.insert(run, Example { messages, ..Example::default() });
        run
    }

    /// `n` tasks of one run each, whose texts have no five words in common.
    fn tasks(n: usize) -> Self {
        let mut all = Self::default();
        for i in 0..n as u64 {
            all.add(&format!("task {i}"), &text(i * 2, 30), &text(i * 2 + 1, 40));
        }
        all
    }

    fn curate_with(&self, parts: &HashMap<String, Part>, settings: &Settings) -> Curated {
        curate(&self.runs, parts, &mut |run| Ok(self.texts[&run].clone()), settings).unwrap()
    }

    fn curate(&self) -> Curated {
        self.curate_with(&HashMap::new(), &Settings::default())
    }
}

/// So many words of a stream of its own.
fn text(seed: u64, words: usize) -> String {
    (0..words as u64).map(|i| format!("w{}", words::mixed(words::mixed(seed) ^ i) % 5000)).collect::<Vec<_>>().join(" ")
}

/// The text with every `step`-th word changed.
fn changed(text: &str, step: usize) -> String {
    let change = |(i, word): (usize, &str)| if i % step == step - 1 { format!("{word}q") } else { word.to_owned() };
    text.split(' ').enumerate().map(change).collect::<Vec<_>>().join(" ")
}

fn fate(curated: &Curated, run: i64) -> String {
    let fates = [
        curated.train.contains(&run).then(|| "train".to_owned()),
        curated.held_out.contains(&run).then(|| "held out".to_owned()),
        curated.left_out.iter().find(|(left, _)| *left == run).map(|(_, why)| why.to_string()),
    ];
    let fates: Vec<String> = fates.into_iter().flatten().collect();
    assert_eq!(fates.len(), 1, "run {run}: {fates:?}");
    fates.into_iter().next().unwrap()
}

fn parts(of: &[(&str, Part)]) -> HashMap<String, Part> {
    of.iter().map(|(group, part)| ((*group).to_owned(), *part)).collect()
}

#[test]
fn every_run_has_exactly_one_fate() {
    let mut all = Recorded::tasks(130);
    all.runs[0].may_train = false;
    all.runs[1].review = Some(false);
    all.runs[2].evidence = Evidence::SelfReported;
    all.runs[3].reward = Some(0.1);
    all.add("task 10", &text(20, 30), &text(21, 40));
    all.add("task 11", "an empty answer", " ");
    let curated = all.curate();
    for (run, expected) in [
        (1, "the terms of its source forbid training"),
        (2, "a person refused it"),
        (3, "only the model that wrote it says that it is good"),
        (4, "its reward is 0.10, less than 0.70"),
        (11, "the same as run 131"),
        (132, "its answer is empty"),
    ] {
        assert_eq!(fate(&curated, run), expected);
    }
    (1..=132).for_each(|run| drop(fate(&curated, run)));
    // Of 126 items 50 are held out.
    assert_eq!((curated.train.len(), curated.held_out.len(), curated.left_out.len()), (76, 50, 6));
    assert_eq!(curated.notes()[0], "2 of 132 runs are not good enough, or nothing says that they are");
    assert_eq!(curated.new_parts.len(), 126);
}

#[test]
fn of_equals_the_better_one_stays_and_another_answer_is_no_duplicate() {
    let mut all = Recorded::default();
    let (request, answer) = (text(1, 30), text(2, 60));
    let runs = [
        all.add("a", &request, &answer),
        all.add("a", &format!("{request} \n"), &answer.replace(' ', "  ")),
        // One word of 60 in the middle: 51 shingles of 61 are in both.
        all.add("a", &request, &changed(&answer, 31)),
        all.add("a", &request, &text(3, 60)),
        all.add("a", &request, &changed(&answer, 5)),
    ];
    all.runs[0].reward = Some(0.95);
    let curated = all.curate_with(&parts(&[("a", Part::Train)]), &Settings::default());
    let told = runs.map(|run| fate(&curated, run));
    assert_eq!(told, ["train", "the same as run 1", "nearly the same as run 1", "train", "train"]);
    // A reviewed one stands before all others.
    all.runs[2].review = Some(true);
    let curated = all.curate_with(&parts(&[("a", Part::Train)]), &Settings::default());
    let told = runs.map(|run| fate(&curated, run));
    assert_eq!(told, ["nearly the same as run 3", "the same as run 1", "train", "train", "train"]);
}

#[test]
fn one_shared_form_makes_no_near_duplicates() {
    let form = "Read the code below.\nSay whether it is correct, and give one reason in a sentence of at most twenty words.\n\
                Answer in JSON, with the keys verdict and reason, and nothing else besides.\n";
    let mut all = Recorded::default();
    for i in 0..40 {
        all.add(&format!("task {i}"), &format!("{form}f{i}({})", text(i, 3)), "{\"verdict\": \"correct\"}");
    }
    let curated = all.curate();
    assert_eq!(curated.left_out, []);
    assert_eq!((curated.train.len(), curated.held_out.len()), (20, 20));
    let mut one = Recorded::default();
    for i in 0..40 {
        one.add(&format!("task {i}"), form, &format!("{{\"reason\": \"{}\"}}", text(i, 30)));
    }
    assert_eq!(one.curate().left_out, [], "tasks whose request says nothing of its own are told apart by their answers");
}

#[test]
fn a_task_gives_eight_at_most_and_three_where_it_is_held_out() {
    let mut all = Recorded::default();
    for (group, seed) in [("a", 100), ("b", 200)] {
        for i in 1..=20 {
            all.add(group, &text(seed, 30), &text(seed + i, 40));
        }
    }
    let frozen = parts(&[("a", Part::Train), ("b", Part::HeldOut)]);
    let curated = all.curate_with(&frozen, &Settings::default());
    assert_eq!(curated.train, (13..=20).collect::<Vec<_>>(), "the newest of equals");
    assert_eq!(curated.held_out, [38, 39, 40]);
    assert!(curated.left_out.iter().all(|(_, why)| *why == LeftOut::OverTheCap));
    assert_eq!(curated.new_parts, []);
    let few = Settings { max_examples: 5, ..Settings::default() };
    let curated = all.curate_with(&frozen, &few);
    assert_eq!((curated.train, curated.held_out.len()), ((16..=20).collect(), 3));
}

#[test]
fn the_line_is_held_whichever_side_comes_later() {
    let mut all = Recorded::default();
    let (request, answer) = (text(1, 60), text(2, 80));
    let mut words: Vec<String> = text(9, 60).split(' ').map(str::to_owned).collect();
    let long: Vec<&str> = answer.split(' ').skip(20).take(13).collect();
    words.splice(10..12, long.iter().map(|&word| word.to_owned()));
    let held = all.add("held", &request, &answer);
    let train = [
        all.add("same", &request, &answer),
        all.add("near", &changed(&request, 59), &changed(&answer, 70)),
        all.add("asks", &changed(&request, 59), &text(3, 80)),
        all.add("gram", &text(4, 60), &words.join(" ")),
        all.add("other", &text(5, 60), &text(6, 80)),
    ];
    let mut frozen = parts(&[("held", Part::HeldOut)]);
    frozen.extend(parts(&["same", "near", "asks", "gram", "other"].map(|group| (group, Part::Train))));
    let expected = [
        "the same as run 1".to_owned(),
        "nearly the same as run 1".to_owned(),
        "it shares nearly the same request with the held-out run 1".to_owned(),
        format!("it shares the words \"{}\" with the held-out run 1", long.join(" ")),
        "train".to_owned(),
    ];
    // The held-out one stays, even where those that are trained on are better.
    for better in [false, true] {
        all.runs[1..].iter_mut().for_each(|run| run.review = better.then_some(true));
        let curated = all.curate_with(&frozen, &Settings::default());
        assert_eq!(curated.held_out, [held]);
        assert_eq!(train.map(|run| fate(&curated, run)), expected);
    }
}

#[test]
fn a_group_that_asks_what_was_trained_on_is_never_held_out() {
    let mut all = Recorded::tasks(200);
    let first = all.curate();
    let mut decided: HashMap<String, Part> = first.new_parts.iter().cloned().collect();
    // Each task is asked again under another name, one word changed and answered otherwise.
    for i in 0..200_u64 {
        all.add(&format!("again {i}"), &changed(&text(i * 2, 30), 30), &text(10_000 + i, 40));
    }
    let second = all.curate_with(&decided, &Settings::default());
    decided.extend(second.new_parts.iter().cloned());
    assert_eq!(second.new_parts.len(), 200);
    for i in 0..200 {
        assert_eq!(decided[&format!("again {i}")], decided[&format!("task {i}")], "task {i}");
    }
}

#[test]
fn a_pair_is_a_good_and_a_bad_answer_to_one_request() {
    let mut all = Recorded::default();
    let ask = |i: u64| text(1000 + i, 30);
    let answer = |i: u64| text(2000 + i, 30);
    // Group a: two good, three bad ones, of which one is disliked whatever its reward.
    let a = [0.9, 0.8, 0.1, 0.3, 0.9].map(|reward| {
        let run = all.add("a", &ask(0), &answer(all.runs.len() as u64));
        all.runs.last_mut().unwrap().reward = Some(reward);
        run
    });
    all.runs[a[4] as usize - 1].vote = Some(0.4);
    let bad = |all: &mut Recorded, group: &str, asked: &str, answered: &str| {
        let run = all.add(group, asked, answered);
        all.runs.last_mut().unwrap().reward = Some(0.0);
        run
    };
    // b: another request in the same group. c: the same answer was good and bad. d: bad by its own word, by terms, by a refusal, or hardly.
    all.add("b", &ask(1), &answer(100));
    bad(&mut all, "b", &ask(2), &answer(101));
    all.add("c", &ask(3), &answer(102));
    bad(&mut all, "c", &ask(3), &answer(102));
    all.add("d", &ask(4), &answer(103));
    for i in 0..4 {
        bad(&mut all, "d", &ask(4), &answer(104 + i));
        let run = all.runs.last_mut().unwrap();
        match i {
            0 => run.evidence = Evidence::SelfReported,
            1 => run.may_train = false,
            2 => run.review = Some(false),
            _ => run.reward = Some(0.31),
        }
    }
    // e is held out; f asks the same.
    for group in ["e", "f"] {
        all.add(group, &ask(5), &answer(110));
        bad(&mut all, group, &ask(5), &answer(111));
    }
    // g has more than enough.
    let g = all.add("g", &ask(6), &answer(112));
    let rejected: Vec<i64> = (0..6).map(|i| bad(&mut all, "g", &ask(6), &answer(113 + i))).collect();
    let parts = parts(&[("e", Part::HeldOut), ("f", Part::Train)]);
    let pairs =
        |all: &Recorded| preferences(&all.runs, &parts, &mut |run| Ok(all.texts[&run].clone()), &Settings::default()).unwrap();
    // The worst of a (0.1) with its best; of g the first four of equals, which are the oldest.
    let mut expected = vec![(a[0], a[2]), (a[1], a[3]), (a[0], a[4])];
    expected.extend(rejected[..4].iter().map(|&run| (g, run)));
    expected.sort_unstable();
    assert_eq!(pairs(&all), expected);
    all.runs.reverse();
    assert_eq!(pairs(&all), expected);
}

#[test]
fn the_digest_is_of_the_texts_and_their_parts_alone() {
    let all = Recorded::tasks(120);
    let first = all.curate();
    // The same work recorded in another order, under other numbers.
    let mut again = Recorded::default();
    for run in all.runs.iter().rev() {
        let turns = &all.texts[&run.run].messages;
        again.add(&run.group, &turns[1].content, &turns[2].content);
    }
    let second = again.curate();
    assert_eq!(first.digest, second.digest);
    assert_ne!(first.train, second.train);
    assert!(first.digest.starts_with("sha256:") && first.digest.len() == 71);
    let mut other = all.clone();
    other.texts.get_mut(&1).unwrap().messages[2].content.push('x');
    assert_ne!(first.digest, other.curate().digest);
    let trained = all.runs.iter().map(|run| (run.group.clone(), Part::Train)).collect();
    assert_ne!(first.digest, all.curate_with(&trained, &Settings::default()).digest);
}

#[test]
fn an_error_of_the_texts_is_handed_on() {
    let all = Recorded::tasks(3);
    let error = curate(&all.runs, &HashMap::new(), &mut |_| Err(crate::Error::data("gone", "look")), &Settings::default());
    assert_eq!(error.unwrap_err().to_string(), "gone");
}

/// Some tasks with re-runs, copies, paraphrases and bad runs, from a list of small numbers.
fn recorded(script: &[(u8, u8, u8)]) -> Recorded {
    let mut all = Recorded::default();
    for &(task, kind, extra) in script {
        let (request, answer) = (text(u64::from(task) * 100, 40), text(u64::from(task) * 100 + 1, 60));
        let group = format!("task {task}");
        let run = match kind {
            0 => all.add(&group, &request, &answer),
            1 => all.add(&group, &request, &text(u64::from(task) * 100 + 10 + u64::from(extra), 60)),
            2 => all.add(&format!("copy {task} {extra}"), &request, &answer),
            3 => {
                all.add(&format!("paraphrase {task} {extra}"), &changed(&request, 38), &changed(&answer, 50 + usize::from(extra)))
            }
            4 => all.add(&format!("other {task} {extra}"), &changed(&request, 38), &text(7_000 + u64::from(extra), 60)),
            _ => {
                // The held-out answer's words in other work.
                let words: Vec<&str> = answer.split(' ').skip(usize::from(extra)).take(15).collect();
                all.add(
                    &format!("quote {task} {extra}"),
                    &text(9_000 + u64::from(extra), 30),
                    &format!("{} {}", words.join(" "), text(8_000 + u64::from(extra), 30)),
                )
            }
        };
        let last = all.runs.last_mut().unwrap();
        last.reward = Some(0.6 + f64::from(extra % 5) / 10.0);
        last.at_ms = i64::from(extra) * 1000 + run % 3;
    }
    all
}

fn script(n: usize) -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
    prop::collection::vec((0..20_u8, 0..6_u8, 0..12_u8), 1..n)
}

/// Nothing of the training part repeats a held-out item: by brute force, over whole texts.
fn assert_apart(all: &Recorded, curated: &Curated, parts: &HashMap<String, Part>) {
    let group = |run: i64| &all.runs[run as usize - 1].group;
    let said = |run: &i64| Said::of(&all.texts[run]);
    for run in &curated.train {
        assert_eq!(parts[group(*run)], Part::Train);
    }
    let mut of_group: HashMap<&str, usize> = HashMap::new();
    for held in &curated.held_out {
        assert_eq!(parts[group(*held)], Part::HeldOut);
        *of_group.entry(group(*held)).or_default() += 1;
        let held = said(held);
        let grams = |said: &Said| -> HashSet<Vec<String>> {
            let texts = said.request.iter().chain(&said.answer);
            texts.flat_map(|text| words::bare_texts(text).windows(13).map(<[String]>::to_vec).collect::<Vec<_>>()).collect()
        };
        let held_grams = grams(&held);
        for run in &curated.train {
            let train = said(run);
            let likeness = words::jaccard(&words::shingles(&held.request), &words::shingles(&train.request));
            assert!(likeness < 0.8, "run {run} asks what is held out: {likeness}");
            // In this data no gram is boilerplate: no text is in more than ten groups.
            assert!(held_grams.is_disjoint(&grams(&train)), "run {run} shares words with a held-out run");
        }
    }
    assert!(of_group.values().all(|&n| n <= 3));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_same_runs_give_the_same_set_in_any_order(script in script(60), seed in any::<u64>()) {
        let all = recorded(&script);
        let mut shuffled = all.clone();
        shuffled.runs.sort_by_key(|run| words::mixed(seed ^ run.run as u64));
        let settings = Settings { max_examples: 15, min_held_out: 4, ..Settings::default() };
        prop_assert_eq!(all.curate_with(&HashMap::new(), &settings), shuffled.curate_with(&HashMap::new(), &settings));
    }

    #[test]
    fn growing_data_never_moves_a_group_and_nothing_held_out_is_trained_on(script in script(90), cut in 0..90_usize) {
        let whole = recorded(&script);
        let settings = Settings { min_held_out: 5, ..Settings::default() };
        let early = Recorded { runs: whole.runs[..cut.min(whole.runs.len())].to_vec(), texts: whole.texts.clone() };
        let first = early.curate_with(&HashMap::new(), &settings);
        let frozen: HashMap<String, Part> = first.new_parts.iter().cloned().collect();
        assert_apart(&whole, &first, &frozen);
        let second = whole.curate_with(&frozen, &settings);
        prop_assert!(second.new_parts.iter().all(|(group, _)| !frozen.contains_key(group)));
        let mut all_parts = frozen.clone();
        all_parts.extend(second.new_parts.iter().cloned());
        assert_apart(&whole, &second, &all_parts);
        // What was held out still is, or it is what another held-out group has in a better run by now.
        for run in &first.held_out {
            let group = &whole.runs[*run as usize - 1].group;
            prop_assert!(!second.train.contains(run));
            let of = second.left_out.iter().find_map(|(left, why)| match why {
                LeftOut::Exact { of } | LeftOut::Near { of } if left == run => Some(*of),
                _ => None,
            });
            let stays = second.held_out.iter().any(|held| whole.runs[*held as usize - 1].group == *group);
            let elsewhere = of.is_some_and(|of| all_parts.get(&whole.runs[of as usize - 1].group) == Some(&Part::HeldOut));
            prop_assert!(stays || elsewhere, "run {} of {}", run, group);
        }
        let runs = second.train.len() + second.held_out.len() + second.left_out.len();
        prop_assert_eq!(runs, whole.runs.len());
    }
}
