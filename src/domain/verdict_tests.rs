use super::*;

fn result(item: &str, group: &str) -> ItemResult {
    ItemResult { item: item.into(), group: group.into(), loss_sum: 1.0, trained_tokens: 2, answer: None }
}

fn estimate(measure: Primary, point: f64, low: f64, high: f64) -> Estimate {
    Estimate {
        measure,
        candidate: 0.61,
        champion: 0.4,
        point,
        interval: Some(Interval { low, high, confidence: 0.95 }),
        standard_error: Some(0.05),
        share_not_better: Some(0.0),
        skewness: None,
        smallest_effect: Some(0.14),
        items: 100,
        items_that_differ: 31,
        groups: 100,
        groups_that_differ: 31,
        effective_groups: 100.0,
    }
}

#[test]
fn results_are_paired_by_item_whatever_their_order() {
    let comparison =
        Comparison::pair(vec![result("b", "g"), result("a", "h")], vec![result("a", "h"), result("b", "g")]).unwrap();
    let items: Vec<&str> = comparison.pairs().iter().map(Paired::item).collect();
    assert_eq!(items, ["a", "b"]);
    assert_eq!(comparison.pairs()[0].champion().group, "h");
}

#[test]
fn what_cannot_be_paired_is_named() {
    let pair = |candidate: &[(&str, &str)], champion: &[(&str, &str)]| {
        let list = |list: &[(&str, &str)]| list.iter().map(|(item, group)| result(item, group)).collect();
        Comparison::pair(list(candidate), list(champion)).unwrap_err().to_string()
    };
    assert_eq!(pair(&[("a", "g")], &[("a", "g"), ("b", "g")]), "the candidate has no result for item b");
    assert_eq!(pair(&[("a", "g"), ("b", "g")], &[("a", "g")]), "the champion has no result for item b");
    assert_eq!(pair(&[("a", "g"), ("a", "g")], &[("a", "g")]), "the candidate has two results for item a");
    assert_eq!(pair(&[("a", "g")], &[("a", "h")]), "item a is of group \"g\" for the candidate and \"h\" for the champion");
}

#[test]
fn the_strongest_measure_there_is_decides() {
    let with = |answer: Option<Answer>| {
        let one = ItemResult { answer, ..result("a", "g") };
        Primary::of(&Comparison::pair(vec![one.clone()], vec![one]).unwrap())
    };
    let answer = |verified| Some(Answer { text: "x".into(), exact: false, verified, judged: None });
    assert_eq!([with(None), with(answer(None)), with(answer(Some(false)))], [Primary::Loss, Primary::Exact, Primary::Verified]);
}

#[test]
fn numbers_have_their_unit_and_no_minus_zero() {
    assert_eq!(Primary::Exact.with_unit(0.21), "+21.0 points");
    assert_eq!(Primary::Exact.with_unit(-0.0004), "0.0 points");
    assert_eq!(Primary::Loss.with_unit(-0.12), "-0.120 nats a token");
    assert_eq!(
        estimate(Primary::Exact, 0.21, 0.102, 0.315).to_string(),
        "61 of 100 right where the champion has 40: +21.0 points (95% interval +10.2 to +31.5)"
    );
    assert_eq!(
        estimate(Primary::Loss, -0.21, -0.3, 0.0).to_string(),
        "loss 0.610 where the champion has 0.400: gain -0.210 nats a token (95% interval -0.300 to 0.000)"
    );
    let bare = Estimate { interval: None, groups: 1, ..estimate(Primary::Exact, 0.21, 0.0, 0.0) };
    assert_eq!(bare.to_string(), "61 of 100 right where the champion has 40: +21.0 points (no interval from 1 group)");
}

#[test]
fn reasons_read_as_a_friend_writes_them() {
    let interval = Interval { low: -0.14, high: -0.02, confidence: 0.95 };
    let measure = Primary::Verified;
    assert_eq!(Reason::Worse { measure, interval }.to_string(), "it is worse than the champion, by 2.0 to 14.0 points");
    assert_eq!(
        Reason::SpansZero { measure, interval: Interval { high: 0.05, ..interval }, smallest_effect: Some(0.12) }.to_string(),
        "the true difference may be anything from -14.0 to +5.0 points: so many items show a difference of 12.0 points or more in 8 of 10 evaluations"
    );
    assert_eq!(
        Reason::TooFewItems { items: 12, min_items: 50 }.to_string(),
        "12 items are too few to promote on; gather 38 more (50 are the least)"
    );
    let guard = Guard::Speed { candidate: 30.0, champion: 60.0, least: 0.8 };
    assert_eq!(
        Reason::Guard(Guarded { guard, standing: Standing::Fell }).to_string(),
        "speed: 30.0 tokens/s where the champion has 60.0 (50%); at least 80% are wanted"
    );
    assert_eq!(
        Reason::Skewed { skewness: -4.2, groups: 80 }.to_string(),
        "a few of the 80 groups of tasks lose far more than the others (skewness -4.2), and more such may not have been seen; gather more items"
    );
    let guard = Guard::Memory { candidate: 3 << 20, champion: 2 << 20, most: 1.25 };
    assert_eq!(
        Guarded { guard, standing: Standing::Fell }.to_string(),
        "memory: 3 MiB where the champion has 2 (150%); at most 125% are wanted"
    );
    let guard = Guard::Suite {
        name: "general ability".into(),
        estimate: estimate(Primary::Exact, -0.08, -0.14, -0.03),
        tolerance: 0.02,
        limit: 0.05,
    };
    let text = Guarded { guard: guard.clone(), standing: Standing::Fell }.to_string();
    assert!(text.ends_with("; a sure fall of 2.0 points or a measured one of 5.0 points is too much"), "{text}");
    assert!(Guarded { guard, standing: Standing::InDoubt }.to_string().ends_with("too little to be sure"));
}

#[test]
fn verdicts_go_through_json() {
    let guarded = Guarded {
        guard: Guard::Collapse { estimate: estimate(Primary::Exact, -0.1, -0.2, -0.05), limit: 0.05 },
        standing: Standing::Fell,
    };
    for verdict in [
        Verdict::Promote,
        Verdict::Reject(vec![Reason::Guard(guarded)]),
        Verdict::Inconclusive(vec![Reason::TooFewItems { items: 1, min_items: 50 }]),
    ] {
        let json = serde_json::to_string(&verdict).unwrap();
        assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), verdict, "{json}");
        assert!(json.starts_with(&format!("{{\"verdict\":\"{}\"", verdict.name())), "{json}");
    }
    let json = serde_json::to_value(Verdict::Inconclusive(vec![Reason::TooFewItems { items: 1, min_items: 50 }])).unwrap();
    assert_eq!(
        json,
        serde_json::json!({"verdict": "inconclusive", "reasons": [{"reason": "tooFewItems", "items": 1, "minItems": 50}]})
    );
}
