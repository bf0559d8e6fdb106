use super::*;

/// One item of each group, with an answer that is right or not on each side, and a loss of 1 token.
pub(super) fn items(differences: &[(bool, bool)], group_of: impl Fn(usize) -> usize) -> Comparison {
    let side = |pick: fn(&(bool, bool)) -> bool| {
        differences
            .iter()
            .enumerate()
            .map(|(i, both)| ItemResult {
                item: format!("{i:05}"),
                group: format!("{:05}", group_of(i)),
                loss_sum: 1.0,
                trained_tokens: 1,
                answer: Some(Answer { text: String::new(), exact: pick(both), verified: None, judged: None }),
            })
            .collect()
    };
    Comparison::pair(side(|b| b.0), side(|b| b.1)).unwrap()
}

/// `won` items that only the candidate has right, `lost` that only the champion has, `both`, and the rest none.
fn counts(n: usize, won: usize, lost: usize, both: usize) -> Vec<(bool, bool)> {
    let mut all = vec![(true, false); won];
    all.extend(vec![(false, true); lost]);
    all.extend(vec![(true, true); both]);
    all.resize(n, (false, false));
    all
}

/// Items of the given losses, (group, candidate's sum, champion's sum, tokens).
fn loss_items(rows: &[(usize, f64, f64, usize)]) -> Comparison {
    let side = |pick: fn(&(usize, f64, f64, usize)) -> f64| {
        rows.iter()
            .enumerate()
            .map(|(i, row)| ItemResult {
                item: format!("{i:05}"),
                group: format!("{:05}", row.0),
                loss_sum: pick(row),
                trained_tokens: row.3,
                answer: None,
            })
            .collect()
    };
    Comparison::pair(side(|r| r.1), side(|r| r.2)).unwrap()
}

fn near(found: f64, expected: f64, allowed: f64) {
    assert!((found - expected).abs() <= allowed, "{found}, expected {expected} within {allowed}");
}

fn golden(key: &str) -> (Vec<f64>, f64, [f64; 2]) {
    let all: serde_json::Value = serde_json::from_str(include_str!("../../tests/parity/statistics.json")).unwrap();
    let get = |name: &str| all[key][name].clone();
    (
        serde_json::from_value(get("differences")).unwrap(),
        get("standard_error").as_f64().unwrap(),
        serde_json::from_value(get("interval")).unwrap(),
    )
}

const MANY: Bootstrap = Bootstrap { confidence: 0.95, resamples: 100_000, seed: 1 };

#[test]
fn right_and_wrong_have_the_interval_of_scipy() {
    let (differences, error, interval) = golden("right");
    let both: Vec<(bool, bool)> = differences.iter().map(|d| (*d > 0.0, *d < 0.0)).collect();
    let found = estimate(&items(&both, |i| i), Primary::Exact, &MANY).unwrap();
    near(found.point, 0.18, 1e-12);
    near(found.standard_error.unwrap(), error, 1e-12);
    let own = found.interval.unwrap();
    // Bootstrap means are steps of about .005; an end may fall on either side of one.
    near(own.low, interval[0], 0.005);
    near(own.high, interval[1], 0.005);
    assert_eq!((found.items_that_differ, found.groups, found.effective_groups), (34, 100, 100.0));
}

#[test]
fn losses_have_the_symmetric_t_interval_of_numpy() {
    let (differences, error, interval) = golden("loss");
    let rows: Vec<_> = differences.iter().enumerate().map(|(i, d)| (i, 1.0, 1.0 + d, 1)).collect();
    let found = estimate(&loss_items(&rows), Primary::Loss, &MANY).unwrap();
    near(found.standard_error.unwrap(), error, 1e-12);
    let third = differences.iter().map(|d| (d - found.point).powi(3)).sum::<f64>() / 60.0;
    let second = differences.iter().map(|d| (d - found.point).powi(2)).sum::<f64>() / 60.0;
    near(found.skewness.unwrap(), third / second.powf(1.5), 1e-9);
    let own = found.interval.unwrap();
    near(own.low, interval[0], 0.003);
    near(own.high, interval[1], 0.003);
}

#[test]
fn a_mean_loss_is_over_tokens_and_lower_is_better() {
    // Candidate: 40 nats in 100 tokens; champion: 70 nats.
    let rows = [(0, 10.0, 10.0, 10), (1, 10.0, 40.0, 60), (2, 20.0, 20.0, 30)];
    let found = estimate(&loss_items(&rows), Primary::Loss, &Bootstrap::default()).unwrap();
    near(found.candidate, 0.4, 1e-12);
    near(found.champion, 0.7, 1e-12);
    near(found.point, 0.3, 1e-12);
    // sqrt(3/2 * (3^2 + (30 - 18)^2 + 9^2)) / 100
    near(found.standard_error.unwrap(), 351f64.sqrt() / 100.0, 1e-12);
    near(found.effective_groups, 10_000.0 / 4_600.0, 1e-12);
    let unscored = [rows.as_slice(), &[(3, 0.0, 0.0, 0)]].concat();
    assert_eq!(estimate(&loss_items(&unscored), Primary::Loss, &Bootstrap::default()).unwrap(), found);
}

#[test]
fn groups_that_move_as_one_count_as_one() {
    // 20 groups of 5: 8 groups won, 2 lost. As 20 items: error sqrt(20/19 * (10 - 20 * .3^2)) / 20.
    let mut all = counts(100, 40, 10, 0);
    let clustered = estimate(&items(&all, |i| i / 5), Primary::Exact, &Bootstrap::default()).unwrap();
    let single = estimate(&items(&all, |i| i), Primary::Exact, &Bootstrap::default()).unwrap();
    near(clustered.standard_error.unwrap(), (20.0 / 19.0 * 8.2f64).sqrt() / 20.0, 1e-12);
    near(single.standard_error.unwrap(), (100.0 / 99.0 * 41f64).sqrt() / 100.0, 1e-12);
    let width = |e: &Estimate| e.interval.map(|i| i.high - i.low).unwrap();
    assert!(width(&clustered) > 2.0 * width(&single), "{} {}", width(&clustered), width(&single));
    assert_eq!((clustered.groups, clustered.groups_that_differ, clustered.items_that_differ), (20, 10, 50));
    // Whatever order the items come in.
    all.rotate_left(35);
    let rotated = estimate(&items(&all, |i| (i + 35) % 100 / 5), Primary::Exact, &Bootstrap::default()).unwrap();
    assert_eq!(rotated, clustered);
}

#[test]
fn where_nothing_differs_the_interval_still_has_a_width() {
    let same = items(&counts(100, 0, 0, 60), |i| i);
    let found = estimate(&same, Primary::Exact, &Bootstrap::default()).unwrap();
    let interval = found.interval.unwrap();
    assert_eq!((found.point, found.standard_error, found.items_that_differ), (0.0, Some(0.0), 0));
    assert!(interval.low < -0.009 && interval.high > 0.009 && interval.high < 0.03, "{interval:?}");
    // c = t(.975, 99) + t(.8, 99) = 1.9842 + .8453; c^2 / (100 + c^2)
    near(found.smallest_effect.unwrap(), 0.07413, 2e-5);
    // Equal losses are one model: no spread, and no effect that it could show.
    let rows: Vec<_> = (0..60).map(|i| (i, 2.0, 2.0, 4)).collect();
    let found = estimate(&loss_items(&rows), Primary::Loss, &Bootstrap::default()).unwrap();
    let interval = found.interval.unwrap();
    assert_eq!((interval.low, interval.high, found.smallest_effect), (0.0, 0.0, None));
    assert_eq!(found.share_not_better, Some(1.0));
}

#[test]
fn one_group_has_no_interval_and_two_have_one_for_answers_only() {
    let found = estimate(&items(&counts(10, 5, 0, 0), |_| 0), Primary::Exact, &Bootstrap::default()).unwrap();
    assert_eq!((found.point, found.interval, found.standard_error, found.smallest_effect), (0.5, None, None, None));
    let two = estimate(&items(&counts(10, 5, 1, 0), |i| i % 2), Primary::Exact, &Bootstrap::default()).unwrap();
    assert!(two.interval.is_some());
    let losses = estimate(&loss_items(&[(0, 1.0, 2.0, 3), (1, 1.0, 3.0, 3)]), Primary::Loss, &Bootstrap::default()).unwrap();
    assert_eq!(losses.interval, None, "half of all draws from two groups have no error");
}

#[test]
fn a_point_at_the_end_of_the_scale_stays_inside() {
    let found = estimate(&items(&counts(40, 40, 0, 0), |i| i), Primary::Exact, &Bootstrap::default()).unwrap();
    let interval = found.interval.unwrap();
    assert_eq!((found.point, interval.high), (1.0, 1.0));
    assert!(interval.low > 0.9 && interval.low < 1.0, "{interval:?}");
}

#[test]
fn the_seed_decides_the_draws() {
    let all = items(&counts(80, 20, 9, 30), |i| i / 2);
    let of = |seed| estimate(&all, Primary::Exact, &Bootstrap { seed, resamples: 999, ..Bootstrap::default() }).unwrap();
    assert_eq!(of(1), of(1));
    let low = |seed| (of(seed).share_not_better, of(seed).interval);
    assert!((2..9).any(|seed| low(seed) != low(1)));
}

#[test]
fn a_verifier_goes_before_the_text_where_it_ran() {
    let mut side: Vec<ItemResult> = items(&counts(3, 3, 0, 0), |i| i).pairs().iter().map(|p| p.candidate().clone()).collect();
    side[0].answer.as_mut().unwrap().verified = Some(false);
    side[1].answer.as_mut().unwrap().verified = Some(true);
    let both = Comparison::pair(side.clone(), side.clone()).unwrap();
    near(estimate(&both, Primary::Verified, &Bootstrap::default()).unwrap().candidate, 2.0 / 3.0, 1e-12);
    near(estimate(&both, Primary::Exact, &Bootstrap::default()).unwrap().candidate, 1.0, 1e-12);
    let mut other = side.clone();
    other[1].answer.as_mut().unwrap().verified = None;
    let error = estimate(&Comparison::pair(side, other).unwrap(), Primary::Verified, &Bootstrap::default()).unwrap_err();
    assert_eq!(error.to_string(), "the verifier judged one side of item 00001 only");
}

#[test]
fn what_cannot_be_compared_is_an_error_that_names_the_item() {
    let of = |comparison: &Comparison, measure| estimate(comparison, measure, &Bootstrap::default()).unwrap_err().to_string();
    assert_eq!(of(&items(&[], |i| i), Primary::Exact), "there are no items to compare");
    let nan = loss_items(&[(0, 1.0, 1.0, 1), (1, f64::NAN, 1.0, 1)]);
    assert_eq!(of(&nan, Primary::Loss), "the candidate's loss of item 00001 is NaN, expected a number");
    let infinite = loss_items(&[(0, 1.0, f64::INFINITY, 1)]);
    assert_eq!(of(&infinite, Primary::Loss), "the champion's loss of item 00000 is inf, expected a number");
    assert_eq!(of(&loss_items(&[(0, 1.0, 1.0, 1)]), Primary::Exact), "item 00000 has no answer to judge");
    let mut pair: Vec<ItemResult> = loss_items(&[(0, 1.0, 1.0, 4)]).pairs().iter().map(|p| p.candidate().clone()).collect();
    let other = pair.clone();
    pair[0].trained_tokens = 5;
    let text = of(&Comparison::pair(pair, other).unwrap(), Primary::Loss);
    assert!(text.starts_with("item 00000 has 5 trained tokens for the candidate and 4 for the champion"), "{text}");
    let some = items(&counts(3, 1, 0, 0), |i| i);
    let usage = |bootstrap| estimate(&some, Primary::Exact, &bootstrap).unwrap_err().exit_code();
    assert_eq!(usage(Bootstrap { confidence: 95.0, ..Bootstrap::default() }), 2);
    assert_eq!(usage(Bootstrap { confidence: f64::NAN, ..Bootstrap::default() }), 2);
    assert_eq!(usage(Bootstrap { resamples: 1, ..Bootstrap::default() }), 2);
}
