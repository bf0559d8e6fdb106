use super::*;
use crate::domain::{Answer, ItemResult, Preference};

/// One item: right on each side, and the mean loss of its 10 tokens.
#[derive(Clone, Copy)]
struct Item {
    candidate: bool,
    champion: bool,
    losses: (f64, f64),
}

/// `both`, then `won`, then `lost`, the rest right on neither side; losses equal.
fn work(items: usize, both: usize, won: usize, lost: usize) -> Vec<Item> {
    (0..items)
        .map(|i| Item {
            candidate: i < both + won,
            champion: i < both || (both + won..both + won + lost).contains(&i),
            losses: (1.5, 1.5),
        })
        .collect()
}

fn comparison(items: &[Item], text: fn(usize, bool) -> String) -> Comparison {
    let side = |is_candidate: bool| {
        let result = |(i, item): (usize, &Item)| ItemResult {
            item: format!("{i:05}"),
            group: format!("{i:05}"),
            loss_sum: 10.0 * if is_candidate { item.losses.0 } else { item.losses.1 },
            trained_tokens: 10,
            answer: Some(Answer {
                text: text(i, is_candidate),
                exact: if is_candidate { item.candidate } else { item.champion },
                verified: None,
                judged: None,
            }),
        };
        items.iter().enumerate().map(result).collect()
    };
    Comparison::pair(side(true), side(false)).unwrap()
}

fn plain(items: &[Item]) -> Comparison {
    comparison(items, |i, _| format!("answer {i}"))
}

fn judged(work: &Comparison, suites: &[Suite]) -> Judgement {
    let evidence = Evidence { work, suites, candidate: Served::default(), champion: Served::default() };
    judge(&evidence, Primary::of(work), &Rules::default()).unwrap()
}

fn suite(items: &[Item]) -> Suite {
    Suite { name: "general ability".into(), comparison: plain(items) }
}

#[test]
fn a_clear_win_is_promoted() {
    let found = judged(&plain(&work(100, 35, 26, 5)), &[suite(&work(100, 90, 2, 2))]);
    assert_eq!(found.verdict, Verdict::Promote, "{}", found.explanation);
    let start = "Promote: 61 of 100 right where the champion has 40: +21.0 points (95% interval +1";
    assert!(found.explanation.starts_with(start), "{}", found.explanation);
    assert!(found.explanation.contains("Guards that held: general ability: 92 of 100 right"), "{}", found.explanation);
    let interval = found.primary.interval.unwrap();
    assert!((0.10..0.12).contains(&interval.low) && (0.30..0.32).contains(&interval.high), "{interval:?}");
    assert_eq!(found.guards.iter().map(|g| g.standing).collect::<Vec<_>>(), [Standing::Held, Standing::Held]);
}

#[test]
fn a_candidate_that_is_worse_is_rejected() {
    let found = judged(&plain(&work(100, 35, 5, 26)), &[]);
    assert!(matches!(found.verdict.reasons(), [Reason::Worse { .. }]), "{}", found.explanation);
    assert_eq!(found.verdict.name(), "reject");
    assert!(found.explanation.contains("It is worse than the champion, by 1"), "{}", found.explanation);
}

#[test]
fn a_lower_loss_with_broken_answers_is_rejected() {
    let mut items = work(100, 50, 2, 30);
    items.iter_mut().enumerate().for_each(|(i, item)| item.losses = (0.7 + 0.001 * i as f64, 1.5));
    let found = judged(&plain(&items), &[]);
    assert_eq!(found.verdict.name(), "reject", "{}", found.explanation);
    assert!(found.others[0].interval.unwrap().low > 0.7, "the loss is surely lower: {:?}", found.others);
    assert!(found.explanation.contains("; a lower loss alone promotes nothing."), "{}", found.explanation);
}

#[test]
fn a_lower_loss_alone_is_inconclusive_where_answers_are_judged() {
    let mut items = work(100, 50, 10, 9);
    items.iter_mut().enumerate().for_each(|(i, item)| item.losses = (0.7 + 0.001 * i as f64, 1.5));
    let found = judged(&plain(&items), &[]);
    assert!(
        matches!(&found.verdict, Verdict::Inconclusive(r) if matches!(r[..], [Reason::SpansZero { .. }])),
        "{:?}",
        found.verdict
    );
}

#[test]
fn where_nothing_was_generated_the_loss_decides() {
    let of = |losses: fn(usize) -> (f64, f64)| {
        let mut items = work(80, 0, 0, 0);
        items.iter_mut().enumerate().for_each(|(i, item)| item.losses = losses(i));
        let bare = |results: Vec<ItemResult>| results.into_iter().map(|r| ItemResult { answer: None, ..r }).collect();
        let sides = plain(&items);
        let (ours, theirs) = sides.pairs().iter().map(|p| (p.candidate().clone(), p.champion().clone())).unzip();
        judged(&Comparison::pair(bare(ours), bare(theirs)).unwrap(), &[])
    };
    let better = of(|i| (1.0 + 0.01 * (i % 7) as f64, 1.2));
    assert_eq!(better.verdict, Verdict::Promote, "{}", better.explanation);
    assert!(
        better.explanation.starts_with("Promote: loss 1.029 where the champion has 1.200: gain +0.171 nats a token"),
        "{}",
        better.explanation
    );
    assert_eq!(better.primary.measure, Primary::Loss);
    assert_eq!(of(|i| (1.4 + 0.01 * (i % 7) as f64, 1.2)).verdict.name(), "reject");
    let null = of(|_| (1.2, 1.2));
    assert_eq!(null.verdict, Verdict::Inconclusive(vec![Reason::NothingDiffers { measure: Primary::Loss, items: 80 }]));
}

#[test]
fn a_gain_with_a_few_great_losses_is_inconclusive() {
    let of = |sign: f64| {
        let mut items = work(80, 0, 0, 0);
        for (i, item) in items.iter_mut().enumerate() {
            let gain = if i % 40 == 0 { -0.4 } else { 0.2 + 0.001 * i as f64 };
            item.losses = (2.0 - sign * gain, 2.0);
        }
        let comparison = plain(&items);
        let evidence = Evidence { work: &comparison, suites: &[], candidate: Served::default(), champion: Served::default() };
        judge(&evidence, Primary::Loss, &Rules::default()).unwrap()
    };
    for sign in [1.0, -1.0] {
        let found = of(sign);
        let interval = found.primary.interval.unwrap();
        assert!(sign * interval.low > 0.0 && sign * interval.high > 0.0, "the interval alone would decide: {interval:?}");
        assert!(matches!(found.verdict.reasons(), [Reason::Skewed { groups: 80, .. }]), "{:?}", found.verdict);
        assert_eq!(found.verdict.name(), "inconclusive");
    }
}

#[test]
fn a_null_adapter_is_inconclusive() {
    let found = judged(&plain(&work(100, 60, 0, 0)), &[suite(&work(50, 40, 0, 0))]);
    assert_eq!(found.verdict, Verdict::Inconclusive(vec![Reason::NothingDiffers { measure: Primary::Exact, items: 100 }]));
}

#[test]
fn few_items_promote_nothing_but_can_reject() {
    let won = judged(&plain(&work(49, 10, 20, 0)), &[]);
    assert_eq!(won.verdict, Verdict::Inconclusive(vec![Reason::TooFewItems { items: 49, min_items: 50 }]));
    assert_eq!(judged(&plain(&work(50, 10, 20, 0)), &[]).verdict, Verdict::Promote);
    assert_eq!(judged(&plain(&work(49, 10, 0, 20)), &[]).verdict.name(), "reject");
}

#[test]
fn five_items_that_differ_may_be_chance_and_six_are_not() {
    let five = judged(&plain(&work(100, 60, 5, 0)), &[]);
    let interval = five.primary.interval.unwrap();
    assert!(interval.low > 0.0, "the interval alone would promote: {interval:?}");
    assert_eq!(five.verdict, Verdict::Inconclusive(vec![Reason::TooFewDiffer { groups_that_differ: 5, needed: 6 }]));
    assert_eq!(judged(&plain(&work(100, 60, 6, 0)), &[]).verdict, Verdict::Promote);
    let lost = judged(&plain(&work(100, 60, 0, 5)), &[]);
    assert_eq!(lost.verdict.name(), "inconclusive", "{}", lost.explanation);
}

#[test]
fn a_few_groups_decide_nothing() {
    let items = plain(&work(100, 30, 40, 5));
    let grouped = |groups: usize| {
        let side = |pick: fn(&crate::domain::Paired) -> &ItemResult| {
            let regroup = |(i, r): (usize, &ItemResult)| ItemResult { group: format!("{}", i % groups), ..r.clone() };
            items.pairs().iter().map(pick).enumerate().map(regroup).collect()
        };
        judged(&Comparison::pair(side(|p| p.candidate()), side(|p| p.champion())).unwrap(), &[])
    };
    for groups in [1, 7] {
        let reasons = grouped(groups).verdict;
        assert!(matches!(reasons.reasons()[0], Reason::TooFewGroups { min_groups: 8, .. }), "{reasons:?}");
        assert_eq!(reasons.name(), "inconclusive");
    }
    assert_eq!(grouped(10).verdict, Verdict::Promote);
}

#[test]
fn skills_that_are_lost_reject_a_candidate_that_is_better() {
    let better = plain(&work(100, 35, 26, 5));
    let of = |items: &[Item]| judged(&better, &[suite(items)]).verdict;
    let standing = |verdict: Verdict| match verdict.reasons() {
        [Reason::Guard(guarded)] => (verdict.name(), guarded.standing),
        _ => panic!("{verdict:?}"),
    };
    // Surely more than 2 points lost.
    assert_eq!(standing(of(&work(200, 150, 2, 30))), ("reject", Standing::Fell));
    // 6 points measured, surely some, not surely 2.
    assert_eq!(standing(of(&work(100, 90, 1, 7))), ("reject", Standing::Fell));
    // 6 points measured, perhaps by chance.
    assert_eq!(standing(of(&work(100, 60, 12, 18))), ("inconclusive", Standing::InDoubt));
    // 4 points measured, perhaps by chance.
    assert_eq!(of(&work(100, 60, 12, 16)), Verdict::Promote);
    // 1.2 points lost, surely some.
    assert_eq!(of(&work(1_000, 900, 0, 12)), Verdict::Promote);
}

#[test]
fn speed_and_memory_may_not_get_much_worse() {
    let better = plain(&work(100, 35, 26, 5));
    let of = |speed: f64, memory: u64| {
        let served = |tokens_per_second, memory_bytes| Served {
            tokens_per_second: Some(tokens_per_second),
            memory_bytes: Some(memory_bytes),
        };
        let evidence = Evidence { work: &better, suites: &[], candidate: served(speed, memory), champion: served(50.0, 1_000) };
        judge(&evidence, Primary::Exact, &Rules::default()).unwrap().verdict
    };
    assert_eq!(of(40.0, 1_250), Verdict::Promote);
    let slow = of(39.9, 1_250);
    assert!(matches!(slow.reasons(), [Reason::Guard(Guarded { guard: Guard::Speed { .. }, .. })]), "{slow:?}");
    let large = of(40.0, 1_251);
    assert!(matches!(large.reasons(), [Reason::Guard(Guarded { guard: Guard::Memory { .. }, .. })]), "{large:?}");
    assert_eq!(of(f64::NAN, 1_000).name(), "reject");
    assert_eq!(of(1.0, 9_000).reasons().len(), 2, "all reasons are told");
}

#[test]
fn many_more_empty_or_looping_answers_reject() {
    // Better in 26 items, and nothing but loops where both are wrong.
    let items = work(100, 35, 26, 5);
    let looping: fn(usize, bool) -> String =
        |i, candidate| if candidate && i >= 80 { "again ".repeat(20) } else { "fine".into() };
    let found = judged(&comparison(&items, looping), &[]);
    assert!(
        found.explanation.contains("Empty or looping answers: 20 of 100 where the champion has 0; 5 points more are too many."),
        "{}",
        found.explanation
    );
    assert_eq!(found.verdict.name(), "reject");
    // As many on both sides say nothing of the candidate; a right answer may be empty.
    let both: fn(usize, bool) -> String = |i, _| if i >= 80 { String::new() } else { "fine".into() };
    assert_eq!(judged(&comparison(&items, both), &[]).verdict, Verdict::Promote);
    let right: fn(usize, bool) -> String = |i, candidate| if candidate && i < 35 { String::new() } else { "fine".into() };
    assert_eq!(judged(&comparison(&items, right), &[]).verdict, Verdict::Promote);
    let few: fn(usize, bool) -> String = |i, candidate| if candidate && i >= 95 { String::new() } else { "fine".into() };
    assert_eq!(judged(&comparison(&items, few), &[]).verdict, Verdict::Promote, "5 more are allowed");
}

#[test]
fn a_loss_that_is_no_number_is_an_error_that_names_the_item() {
    let mut items = work(100, 35, 26, 5);
    items[7].losses.0 = f64::NAN;
    let comparison = plain(&items);
    let evidence = Evidence { work: &comparison, suites: &[], candidate: Served::default(), champion: Served::default() };
    let error = judge(&evidence, Primary::Exact, &Rules::default()).unwrap_err();
    assert_eq!(error.to_string(), "the candidate's loss of item 00007 is NaN, expected a number");
}

#[test]
fn a_judgement_goes_through_json() {
    let found = judged(&plain(&work(100, 35, 5, 26)), &[suite(&work(50, 40, 0, 0))]);
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["verdict"], "reject");
    assert_eq!(json["reasons"][0]["reason"], "worse");
    assert_eq!(serde_json::from_value::<Judgement>(json).unwrap(), found);
}

/// `work` where a judge says what `said` says of each item, for the candidate.
fn preferred(items: &[Item], said: fn(usize) -> Preference) -> Comparison {
    let sides = plain(items);
    let told = |result: &ItemResult, i: usize, turned: bool| {
        let said = if turned { said(i).turned() } else { said(i) };
        let answer = result.answer.clone().map(|answer| Answer { judged: Some(said), ..answer });
        ItemResult { answer, ..result.clone() }
    };
    let (ours, theirs) =
        sides.pairs().iter().enumerate().map(|(i, p)| (told(p.candidate(), i, false), told(p.champion(), i, true))).unzip();
    Comparison::pair(ours, theirs).unwrap()
}

#[test]
fn where_a_judge_was_asked_its_preference_decides_and_the_text_stands_beside_it() {
    let said = |i: usize| match i {
        0..40 => Preference::Better,
        40..50 => Preference::Worse,
        50..60 => Preference::Unsure,
        _ => Preference::Same,
    };
    let found = judged(&preferred(&work(100, 0, 0, 0), said), &[]);
    assert_eq!(found.verdict, Verdict::Promote, "{}", found.explanation);
    let start = "Promote: 40 of 100 answers preferred by the judge, of the champion's 10: +30.0 points";
    assert!(found.explanation.starts_with(start), "{}", found.explanation);
    assert_eq!(found.others.iter().map(|other| other.measure).collect::<Vec<_>>(), [Primary::Exact, Primary::Loss]);
    let worse = judged(&preferred(&work(100, 0, 0, 0), |i| if i < 40 { Preference::Worse } else { Preference::Same }), &[]);
    assert_eq!(worse.verdict.name(), "reject", "{}", worse.explanation);
}

#[test]
fn a_judge_that_contradicts_itself_decides_nothing() {
    let found = judged(&preferred(&work(100, 0, 0, 0), |_| Preference::Unsure), &[]);
    assert!(matches!(&found.verdict, Verdict::Inconclusive(r) if matches!(r[..], [Reason::NothingDiffers { .. }])));
    assert!(
        found.explanation.contains("The judge prefers neither side's answer on any of the 100 items."),
        "{}",
        found.explanation
    );
}

#[test]
fn a_judges_preference_promotes_nothing_that_says_the_expected_text_more_rarely() {
    let like = |i: usize| if i < 50 { Preference::Better } else { Preference::Same };
    let found = judged(&preferred(&work(100, 20, 0, 30), like), &[]);
    assert!(matches!(found.verdict.reasons(), [Reason::TextSaysWorse { .. }]), "{}", found.explanation);
    assert_eq!(found.verdict.name(), "inconclusive");
    // One that was lost and one that was won is chance.
    assert_eq!(judged(&preferred(&work(100, 20, 1, 1), like), &[]).verdict, Verdict::Promote);
}

#[test]
fn a_verifier_stands_above_a_judge() {
    let mut results = preferred(&work(100, 0, 0, 0), |i| if i < 60 { Preference::Worse } else { Preference::Same });
    let verified = |result: &ItemResult, right: bool| {
        let answer = result.answer.clone().map(|answer| Answer { verified: Some(right), ..answer });
        ItemResult { answer, ..result.clone() }
    };
    let (ours, theirs) = results
        .pairs()
        .iter()
        .enumerate()
        .map(|(i, p)| (verified(p.candidate(), i < 50), verified(p.champion(), i < 20)))
        .unzip();
    results = Comparison::pair(ours, theirs).unwrap();
    let found = judged(&results, &[]);
    assert_eq!((found.primary.measure, found.verdict.name()), (Primary::Verified, "promote"), "{}", found.explanation);
    assert_eq!(found.others[0].measure, Primary::Judged);
}
