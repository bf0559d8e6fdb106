//! How often an interval of `evaluate::statistics` holds the truth, measured on results that are made up with a known one. The quick
//! tests run always; the table of docs/evaluate.md is made by
//! `cargo test --workspace --locked --test coverage -- --ignored --nocapture` (9 minutes on two cores).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use retune::domain::{Answer, Comparison, Interval, ItemResult, Primary};
use retune::evaluate::quantiles::{normal_cdf, normal_quantile, t_quantile};
use retune::evaluate::statistics::{Bootstrap, estimate};
use retune::evaluate::verdict::{Evidence, Rules, Served, judge};
use retune_kernels::rng::Rng;

/// How the differences come about.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Truth {
    /// The champion is right with probability `base`, the candidate with `base + effect`.
    Right { base: f64, effect: f64 },
    /// Lognormal gains of losses, less their mean; the larger the shape, the more skewed; below 0 the long tail is of harm.
    Lognormal(f64),
    /// Student's t with 3 degrees of freedom: no skew, heavy tails.
    HeavyTails,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sizes {
    All(usize),
    /// 1 (half of the groups), 2, 4 or 8.
    Unequal,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Cell {
    items: usize,
    sizes: Sizes,
    truth: Truth,
}

impl Cell {
    fn measure(&self) -> Primary {
        if matches!(self.truth, Truth::Right { .. }) { Primary::Exact } else { Primary::Loss }
    }

    /// The true difference.
    fn effect(&self) -> f64 {
        if let Truth::Right { effect, .. } = self.truth { effect } else { 0.0 }
    }

    fn group_sizes(&self, rng: &mut Rng) -> Vec<usize> {
        let (mut sizes, mut left) = (Vec::new(), self.items);
        while left > 0 {
            let size = match self.sizes {
                Sizes::All(size) => size,
                Sizes::Unequal => [1, 1, 1, 1, 1, 2, 2, 4, 4, 8][rng.below(10) as usize],
            };
            sizes.push(size.min(left));
            left -= size.min(left);
        }
        sizes
    }

    /// Results of both sides. A latent ability decides: a part is the group's difficulty (both sides), a part the item's (both), a part how a side takes to
    /// the group, a part chance. So differences are correlated within a group.
    fn draw(&self, rng: &mut Rng) -> Comparison {
        let (mut candidate, mut champion) = (Vec::new(), Vec::new());
        for (group, size) in self.group_sizes(rng).into_iter().enumerate() {
            let (difficulty, takes_to) = (rng.normal(), [rng.normal(), rng.normal()]);
            for _ in 0..size {
                let result = |loss_sum, trained_tokens, answer| ItemResult {
                    item: format!("{:04}", candidate.len()),
                    group: format!("{group:04}"),
                    loss_sum,
                    trained_tokens,
                    answer,
                };
                let (one, other) = if let Truth::Right { base, effect } = self.truth {
                    let item = rng.normal();
                    let mut side = |takes_to: f64, p: f64| {
                        let z = 0.2f64.sqrt() * (difficulty + rng.normal()) + 0.3f64.sqrt() * (item + takes_to);
                        // A latent z below the quantile of p: right with probability p.
                        let exact = p >= 1.0 || z < normal_quantile(p);
                        result(0.0, 0, Some(Answer { text: String::new(), exact, verified: None, judged: None }))
                    };
                    (side(takes_to[0], base + effect), side(takes_to[1], base))
                } else {
                    let tokens = (20.0 * (0.7 * rng.normal()).exp()).ceil();
                    let z = 0.5f64.sqrt() * (takes_to[0] + rng.normal());
                    let lower = match self.truth {
                        Truth::Lognormal(shape) => shape.signum() * ((shape * z).exp() - (0.5 * shape * shape).exp()),
                        _ => z / ((0..3).map(|_| rng.normal().powi(2)).sum::<f64>() / 3.0).sqrt(),
                    };
                    let at = |loss: f64| result(tokens * loss, tokens as usize, None);
                    (at(5.0 - 0.3 * lower), at(5.0))
                };
                candidate.push(one);
                champion.push(other);
            }
        }
        Comparison::pair(candidate, champion).unwrap()
    }
}

/// Where the truth was: inside, below the interval, above it.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    held: usize,
    below: usize,
    all: usize,
}

impl Count {
    fn add(&mut self, interval: Option<Interval>, truth: f64) {
        self.all += 1;
        match interval {
            Some(i) if truth < i.low - 1e-9 => self.below += 1,
            Some(i) if truth > i.high + 1e-9 => {}
            _ => self.held += 1,
        }
    }

    fn coverage(&self) -> f64 {
        self.held as f64 / self.all as f64
    }

    fn below(&self) -> f64 {
        self.below as f64 / self.all as f64
    }
}

/// Measures the interval of `estimate` over `times` drawn results.
fn measure(cell: Cell, times: u64, resamples: usize, regroup: fn(&ItemResult) -> String) -> Count {
    let mut count = Count::default();
    for seed in 0..times {
        let drawn = cell.draw(&mut Rng::new(1_000_000 + seed));
        let side = |pick: fn(&retune::domain::Paired) -> &ItemResult| {
            drawn.pairs().iter().map(pick).map(|r| ItemResult { group: regroup(r), ..r.clone() }).collect()
        };
        let comparison = Comparison::pair(side(|p| p.candidate()), side(|p| p.champion())).unwrap();
        let bootstrap = Bootstrap { confidence: 0.95, resamples, seed };
        count.add(estimate(&comparison, cell.measure(), &bootstrap).unwrap().interval, cell.effect());
    }
    count
}

const RIGHT: fn(f64, f64) -> Truth = |base, effect| Truth::Right { base, effect };

#[test]
fn intervals_hold_the_truth_as_often_as_they_say() {
    for (items, sizes, truth) in [
        (50, Sizes::All(1), RIGHT(0.5, 0.05)),
        (60, Sizes::All(3), RIGHT(0.5, 0.0)),
        (100, Sizes::Unequal, RIGHT(0.9, 0.02)),
        (100, Sizes::All(10), RIGHT(0.5, 0.0)),
        (100, Sizes::All(3), Truth::Lognormal(0.3)),
        (60, Sizes::All(1), Truth::HeavyTails),
    ] {
        let cell = Cell { items, sizes, truth };
        let count = measure(cell, 800, 400, |r| r.group.clone());
        println!("{cell:?}: {:.4}, truth below {:.4}", count.coverage(), count.below());
        assert!((0.93..=0.975).contains(&count.coverage()), "{cell:?}: {count:?}");
        assert!(count.below() <= 0.035, "{cell:?} says better too often: {count:?}");
    }
}

#[test]
fn an_interval_that_ignores_groups_holds_the_truth_too_rarely() {
    let cell = Cell { items: 100, sizes: Sizes::All(10), truth: RIGHT(0.5, 0.0) };
    let ignoring = measure(cell, 400, 400, |r| r.item.clone());
    println!("ignoring groups: {:.4}", ignoring.coverage());
    assert!(ignoring.coverage() < 0.80, "{ignoring:?}");
}

/// The interval of losses with a long tail of harm says better three times too often; the verdict does so half as often.
#[test]
fn skewed_losses_are_not_promoted_by_chance() {
    let cell = Cell { items: 100, sizes: Sizes::All(1), truth: Truth::Lognormal(-1.0) };
    let (mut above, mut promoted) = (0, 0);
    for seed in 0..600 {
        let comparison = cell.draw(&mut Rng::new(1_000_000 + seed));
        let rules = Rules { bootstrap: Bootstrap { resamples: 400, seed, ..Bootstrap::default() }, ..Rules::default() };
        let evidence = Evidence { work: &comparison, suites: &[], candidate: Served::default(), champion: Served::default() };
        let found = judge(&evidence, Primary::Loss, &rules).unwrap();
        above += usize::from(found.primary.interval.unwrap().low > 0.0);
        promoted += usize::from(found.verdict.name() == "promote");
    }
    println!("truth 0, 600 evaluations: the interval is above 0 in {above}, {promoted} are promoted");
    assert!(above >= 40, "the interval alone errs in 8 of 100, not 2.5: {above}");
    assert!(promoted <= 26, "{promoted} of 600 are promoted, expected about 2.5 to 4 of 100");
}

#[test]
fn the_smallest_effect_is_shown_in_8_of_10_evaluations() {
    for (items, sizes, base) in [(100, Sizes::All(1), 0.5), (150, Sizes::All(3), 0.4)] {
        let null = Cell { items, sizes, truth: RIGHT(base, 0.0) };
        let smallest = |cell: Cell, seed| {
            estimate(&cell.draw(&mut Rng::new(seed)), Primary::Exact, &Bootstrap { resamples: 400, ..Bootstrap::default() })
                .unwrap()
        };
        let mean = (0..100).map(|seed| smallest(null, seed).smallest_effect.unwrap()).sum::<f64>() / 100.0;
        let real = Cell { truth: RIGHT(base, mean), ..null };
        let shown = (0..400).filter(|seed| smallest(real, 9_000 + seed).interval.unwrap().low > 0.0).count();
        println!("{items} items, {sizes:?}: {mean:.3} is shown {shown} times of 400");
        assert!((292..=348).contains(&shown), "{items} items show {mean:.3} in {shown} of 400 evaluations, expected 320");
    }
}

/// The intervals that were not chosen, beside the two that were, all from the same draws of `(sum, size)` of each group.
mod others {
    use super::*;

    pub const NAMES: [&str; 7] =
        ["percentile", "basic", "BCa", "bootstrap-t", "symmetric bootstrap-t", "expanded percentile", "t, no bootstrap"];

    pub fn groups(comparison: &Comparison, measure: Primary) -> Vec<(f64, f64)> {
        let mut groups: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for pair in comparison.pairs() {
            let group = groups.entry(pair.group()).or_default();
            let right = |r: &ItemResult| f64::from(u8::from(r.answer.as_ref().unwrap().exact));
            let (sum, size) = match measure {
                Primary::Loss => (pair.champion().loss_sum - pair.candidate().loss_sum, pair.champion().trained_tokens as f64),
                _ => (right(pair.candidate()) - right(pair.champion()), 1.0),
            };
            group.0 += sum;
            group.1 += size;
        }
        groups.into_values().collect()
    }

    fn mean_and_error(sums: [f64; 5], count: f64) -> (f64, f64) {
        let [sum, size, ss, sn, nn] = sums;
        let mean = sum / size;
        (mean, ((ss - 2.0 * mean * sn + mean * mean * nn).max(0.0) * count / (count - 1.0)).sqrt() / size)
    }

    fn sums<'a>(groups: impl Iterator<Item = &'a (f64, f64)>) -> [f64; 5] {
        groups.fold([0.0; 5], |a, &(s, n)| [a[0] + s, a[1] + n, a[2] + s * s, a[3] + s * n, a[4] + n * n])
    }

    fn quantile(sorted: &[f64], p: f64) -> f64 {
        let at = p.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
        let (a, b) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        if a == b { a } else { a + at.fract() * (b - a) }
    }

    pub fn intervals(groups: &[(f64, f64)], resamples: usize, rng: &mut Rng) -> [Interval; 7] {
        let count = groups.len() as f64;
        let all = sums(groups.iter());
        let (mean, error) = mean_and_error(all, count);
        let (mut means, mut ts) = (Vec::new(), Vec::new());
        for _ in 0..resamples {
            let (m, e) = mean_and_error(sums((0..groups.len()).map(|_| &groups[rng.below(groups.len() as u64) as usize])), count);
            means.push(m);
            // Draws without an error are common where few items differ.
            ts.push(if e > 1e-9 {
                (m - mean) / e
            } else if (m - mean).abs() < 1e-9 {
                0.0
            } else {
                1e3 * (m - mean).signum()
            });
        }
        let mut sizes: Vec<f64> = ts.iter().map(|t| t.abs()).collect();
        for list in [&mut means, &mut ts, &mut sizes] {
            list.sort_by(f64::total_cmp);
        }
        let percentile = |tail| (quantile(&means, tail), quantile(&means, 1.0 - tail));
        let (low, high) = percentile(0.025);
        // Efron and Tibshirani (1993), 14.3; ties count half.
        let below = means.iter().filter(|m| **m < mean - 1e-9).count() as f64
            + 0.5 * means.iter().filter(|m| (**m - mean).abs() <= 1e-9).count() as f64;
        let z0 = normal_quantile((below / resamples as f64).clamp(1e-6, 1.0 - 1e-6));
        let left_out: Vec<f64> = groups.iter().map(|(s, n)| (all[0] - s) / (all[1] - n)).collect();
        let center = left_out.iter().sum::<f64>() / count;
        let power = |k| left_out.iter().map(|x| (center - x).powi(k)).sum::<f64>();
        let acceleration = if power(2) > 0.0 { power(3) / (6.0 * power(2).powf(1.5)) } else { 0.0 };
        let bca = |z: f64| quantile(&means, normal_cdf(z0 + (z0 + z) / (1.0 - acceleration * (z0 + z))));
        let t = t_quantile(0.05, all[1] * all[1] / all[4] - 1.0);
        let (expanded_low, expanded_high) = percentile(normal_cdf(-t * (count / (count - 1.0)).sqrt()));
        let reach = quantile(&sizes, 0.95) * error;
        [
            (low, high),
            (2.0 * mean - high, 2.0 * mean - low),
            (bca(-1.959964), bca(1.959964)),
            (mean - quantile(&ts, 0.975) * error, mean - quantile(&ts, 0.025) * error),
            (mean - reach, mean + reach),
            (expanded_low, expanded_high),
            (mean - t * error, mean + t * error),
        ]
        .map(|(low, high)| Interval { low, high, confidence: 0.95 })
    }
}

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for items in [30, 50, 100, 500] {
        for sizes in [Sizes::All(1), Sizes::All(3), Sizes::Unequal, Sizes::All(10)] {
            if (items, sizes) == (30, Sizes::All(10)) {
                continue;
            }
            for base in [0.1, 0.5, 0.9] {
                cells.extend([0.0, 0.02, 0.05, 0.1].map(|effect| Cell { items, sizes, truth: RIGHT(base, effect) }));
            }
            let losses = [Truth::Lognormal(0.3), Truth::Lognormal(0.6), Truth::Lognormal(1.0), Truth::HeavyTails];
            cells.extend(losses.map(|truth| Cell { items, sizes, truth }));
        }
    }
    cells
}

#[test]
#[ignore = "the table of docs/evaluate.md: 9 minutes"]
fn table() {
    const RESAMPLES: usize = 800;
    let times = |cell: &Cell| if cell.items >= 500 { 1_000 } else { 2_000 };
    let cells = cells();
    let next = AtomicUsize::new(0);
    // Two at a time; each cell has its own seeds, so that the order changes nothing.
    let work = || {
        let mut found = Vec::new();
        while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut others = [Count::default(); 7];
            for seed in 0..times(cell) {
                let groups = others::groups(&cell.draw(&mut Rng::new(1_000_000 + seed)), cell.measure());
                let intervals = others::intervals(&groups, RESAMPLES, &mut Rng::new(seed));
                others.iter_mut().zip(intervals).for_each(|(count, i)| count.add(Some(i), cell.effect()));
            }
            found.push((*cell, measure(*cell, times(cell), RESAMPLES, |r| r.group.clone()), others));
        }
        found
    };
    let mut found = std::thread::scope(|scope| {
        let both = [scope.spawn(work), scope.spawn(work)];
        both.map(|one| one.join().unwrap()).concat()
    });
    found.sort_by_key(|(cell, ..)| cells.iter().position(|c| c == cell));
    for measure in [Primary::Exact, Primary::Loss] {
        println!(
            "\n{measure:?}\n\n| interval | mean | least | most | within 1.5 points | truth below, mean | most |\n|---|---|---|---|---|---|---|"
        );
        for method in 0..=others::NAMES.len() {
            let of: Vec<Count> = found
                .iter()
                .filter(|(cell, ..)| cell.measure() == measure)
                .map(|(_, own, others)| if method == 0 { *own } else { others[method - 1] })
                .collect();
            let name = if method == 0 { "**ours**" } else { others::NAMES[method - 1] };
            let mean = |value: fn(&Count) -> f64| of.iter().map(value).sum::<f64>() / of.len() as f64;
            let most = |value: fn(&Count) -> f64| of.iter().map(value).fold(0.0, f64::max);
            let within = of.iter().filter(|c| (0.935..=0.965).contains(&c.coverage())).count();
            println!(
                "| {name} | {:.1} | {:.1} | {:.1} | {within} of {count} | {:.1} | {:.1} |",
                100.0 * mean(Count::coverage),
                100.0 * of.iter().map(Count::coverage).fold(1.0, f64::min),
                100.0 * most(Count::coverage),
                100.0 * mean(Count::below),
                100.0 * most(Count::below),
                count = of.len()
            );
        }
    }
    println!("\nours, each cell: coverage (truth below)\n");
    for row in found.chunks(4) {
        let (cell, base) = match row[0].0 {
            Cell { truth: Truth::Right { base, .. }, .. } => (row[0].0, format!("{base}")),
            cell => (cell, "losses".to_owned()),
        };
        let sizes = match cell.sizes {
            Sizes::All(size) => size.to_string(),
            Sizes::Unequal => "1 to 8".to_owned(),
        };
        let of = |(_, own, _): &(Cell, Count, [Count; 7])| format!("{:.1} ({:.1})", 100.0 * own.coverage(), 100.0 * own.below());
        println!("| {} | {sizes} | {base} | {} |", cell.items, row.iter().map(of).collect::<Vec<_>>().join(" | "));
    }
}
