// A segment often sees one range, and a list of one range is what is meant.
#![allow(clippy::single_range_in_vec_init)]

use super::*;
use crate::testing::{gradient, gradients, normal, relative_error, tensor, threads, values, var};
use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;

/// Inputs of one case.
struct Case {
    n: usize,
    m: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dout: Vec<f32>,
}

impl Case {
    fn new(n: usize, m: usize, heads: Heads, seed: u64) -> Self {
        let q = normal(n * heads.q_row(), seed);
        let k = normal(m * heads.kv_row(), seed + 1);
        let v = normal(m * heads.kv_row(), seed + 2);
        let dout = normal(n * heads.q_row(), seed + 3);
        Self { n, m, q, k, v, dout }
    }

    /// out, lse, dq, dk, dv of our own code.
    fn run(&self, plan: &Plan, heads: Heads) -> [Vec<f32>; 5] {
        let (mut out, mut lse) = (vec![f32::NAN; self.q.len()], vec![f32::NAN; self.n * heads.heads]);
        forward(&self.q, &self.k, &self.v, plan, heads, &mut out, &mut lse);
        let (mut dq, mut dk, mut dv) = (vec![f32::NAN; self.q.len()], vec![f32::NAN; self.k.len()], vec![f32::NAN; self.v.len()]);
        let saved = Saved { q: &self.q, k: &self.k, v: &self.v, out: &out, lse: &lse };
        backward(&self.dout, saved, plan, heads, &mut dq, &mut dk, &mut dv);
        [out, lse, dq, dk, dv]
    }

    /// The same by candle, with the whole matrix of scores and a mask.
    fn oracle(&self, plan: &Plan, heads: Heads) -> [Vec<f32>; 5] {
        let Heads { heads: count, kv_heads, head_dim, scale } = heads;
        let mut mask = vec![f32::NEG_INFINITY; self.n * self.m];
        for segment in &plan.segments {
            for (i, query) in segment.queries.clone().enumerate() {
                let own = segment.own.start..segment.own.start + i + 1;
                for range in segment.sees.iter().chain([&own]) {
                    mask[query * self.m + range.start..query * self.m + range.end].fill(0.0);
                }
            }
        }
        let mask = tensor(&mask, &[self.n, self.m]);
        let (q, k, v) = (
            var(&self.q, &[self.n, count, head_dim]),
            var(&self.k, &[self.m, kv_heads, head_dim]),
            var(&self.v, &[self.m, kv_heads, head_dim]),
        );
        let group: Vec<u32> = (0..count).map(|h| (h / (count / kv_heads)) as u32).collect();
        let group = Tensor::new(group, &Device::Cpu).unwrap();
        let per_head = |x: &Tensor| x.index_select(&group, 1).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
        let qh = q.transpose(0, 1).unwrap().contiguous().unwrap();
        let scores = qh.matmul(&per_head(&k).transpose(1, 2).unwrap().contiguous().unwrap()).unwrap();
        let scores = (scores * f64::from(scale)).unwrap().broadcast_add(&mask).unwrap();
        let most = scores.detach().max_keepdim(2).unwrap();
        let e = scores.broadcast_sub(&most).unwrap().exp().unwrap();
        let sum = e.sum_keepdim(2).unwrap();
        let p = e.broadcast_div(&sum).unwrap();
        let out = p.matmul(&per_head(&v)).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
        let lse = (sum.log().unwrap() + most).unwrap().squeeze(2).unwrap().t().unwrap().contiguous().unwrap();
        assert_eq!(out.dtype(), DType::F64);
        let store = gradients(&out.reshape((self.n, count * head_dim)).unwrap(), &self.dout);
        [values(&out), values(&lse), gradient(&store, &q), gradient(&store, &k), gradient(&store, &v)]
    }
}

fn heads(heads: usize, kv_heads: usize, head_dim: usize) -> Heads {
    Heads { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() }
}

fn assert_agrees(plan: &Plan, n: usize, m: usize, heads: Heads) {
    let case = Case::new(n, m, heads, 3);
    let (ours, right) = (case.run(plan, heads), case.oracle(plan, heads));
    for (name, (ours, right)) in ["out", "lse", "dq", "dk", "dv"].iter().zip(ours.iter().zip(&right)) {
        if right.iter().all(|v| *v == 0.0) {
            // One key alone: its weight is 1 whatever the query is.
            assert!(ours.iter().all(|v| v.abs() < 1e-5), "{name} of {heads:?}, {plan:?} should be 0");
            continue;
        }
        let error = relative_error(ours, right);
        // With two keys dq and dk are differences of nearly equal numbers.
        assert!(error < 1e-5, "{name} of {heads:?}, {plan:?}: relative error {error:e}");
    }
}

#[test]
fn causal_rows_agree_with_autograd() {
    for (count, kv_heads, head_dim) in [(1, 1, 8), (4, 2, 16), (9, 3, 64), (8, 1, 24), (2, 2, 256)] {
        for n in [1, 2, 17, 64, 65, 130, 200] {
            assert_agrees(&Plan::packed(&[n]), n, n, heads(count, kv_heads, head_dim));
        }
    }
}

#[test]
fn packed_rows_agree_with_autograd() {
    for lengths in [vec![1, 1, 1], vec![5, 70, 1, 129, 3], vec![0, 4, 0, 9, 0], vec![3; 40]] {
        let n = lengths.iter().sum();
        assert_agrees(&Plan::packed(&lengths), n, n, heads(6, 2, 16));
    }
}

fn segment(queries: Range<usize>, sees: &[Range<usize>], own: Range<usize>) -> Segment {
    Segment { queries, sees: sees.to_vec(), own }
}

#[test]
fn shared_prefixes_agree_with_autograd() {
    // A prefix, two continuations of it and a continuation of the second; another row beside them.
    let plan = Plan {
        segments: vec![
            segment(0..140, &[], 0..140),
            segment(140..147, &[0..140], 140..147),
            segment(147..220, &[0..140], 147..220),
            segment(220..221, &[0..140, 147..220], 220..221),
            segment(221..260, &[], 221..260),
        ],
    };
    assert_agrees(&plan, 260, 260, heads(6, 3, 16));
    // The keys of the prefix come from elsewhere: queries and keys differ in number and place.
    let plan = Plan { segments: vec![segment(30..90, &[0..33, 40..190], 200..260), segment(0..30, &[0..33], 260..290)] };
    assert_agrees(&plan, 90, 290, heads(4, 2, 32));
}

#[test]
fn one_query_against_a_cache_agrees_with_autograd() {
    for past in [0, 1, 255, 256, 257, 2000] {
        let plan = Plan { segments: vec![segment(0..1, &[0..past], past..past + 1)] };
        if past > 0 {
            assert_agrees(&plan, 1, past + 1, heads(9, 3, 64));
        }
        assert_agrees(&plan, 1, past + 1, heads(4, 4, 8));
    }
}

#[test]
fn one_query_of_many_segments_agrees_with_autograd() {
    let plan = Plan {
        segments: vec![
            segment(2..3, &[0..300], 300..301),
            segment(0..1, &[301..310, 0..40], 310..311),
            segment(1..2, &[], 311..312),
        ],
    };
    assert_agrees(&plan, 3, 312, heads(6, 2, 16));
}

#[test]
fn rows_in_no_segment_get_zeros() {
    let heads = heads(2, 1, 4);
    let case = Case::new(9, 12, heads, 1);
    let plan = Plan { segments: vec![segment(2..5, &[1..3], 6..9)] };
    let [out, lse, dq, dk, dv] = case.run(&plan, heads);
    assert!(out[..16].iter().chain(&out[40..]).chain(&dq[..16]).chain(&dq[40..]).all(|v| *v == 0.0));
    assert!(lse[..4].iter().chain(&lse[10..]).all(|v| *v == 0.0));
    for (d, name) in [(&dk, "dk"), (&dv, "dv")] {
        for key in 0..12 {
            let seen = (1..3).contains(&key) || (6..9).contains(&key);
            assert_eq!(d[key * 4..][..4].iter().any(|v| *v != 0.0), seen, "{name} of key {key}");
        }
    }
    assert!(out[16..40].iter().all(|v| *v != 0.0));
}

#[test]
fn an_empty_plan_is_nothing() {
    let heads = heads(2, 1, 4);
    let case = Case::new(0, 0, heads, 1);
    assert!(case.run(&Plan::packed(&[]), heads).iter().all(Vec::is_empty));
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    let heads = Heads { scale: 100.0, ..heads(2, 1, 8) };
    let case = Case::new(150, 150, heads, 4);
    let results = case.run(&Plan::packed(&[150]), heads);
    let right = case.oracle(&Plan::packed(&[150]), heads);
    for (ours, right) in results.iter().zip(&right) {
        // Scores of several hundred carry an absolute error of some 1e-5 into the exponent.
        assert!(relative_error(ours, right) < 2e-4);
    }
}

#[test]
fn a_nan_in_a_key_reaches_every_query_that_sees_it() {
    let heads = heads(1, 1, 8);
    for n in [1, 100] {
        let mut case = Case::new(n, n, heads, 4);
        case.k[0] = f32::NAN;
        let (mut out, mut lse) = (vec![0.0; n * 8], vec![0.0; n]);
        forward(&case.q, &case.k, &case.v, &Plan::packed(&[n]), heads, &mut out, &mut lse);
        assert!(lse.iter().all(|v| v.is_nan()) && out.iter().all(|v| v.is_nan()));
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let plan = Plan {
        segments: vec![
            segment(0..300, &[], 0..300),
            segment(300..420, &[0..300], 300..420),
            segment(420..421, &[0..300], 420..421),
        ],
    };
    let heads = heads(6, 2, 32);
    let case = Case::new(421, 421, heads, 5);
    let run = |count| threads(count, || case.run(&plan, heads));
    let one = run(1);
    assert!(one == run(2) && one == run(3));
}

/// Row by row through a growing cache, as generation does.
#[test]
fn decoding_step_by_step_is_the_whole_row() {
    let heads = heads(6, 2, 16);
    let n = 300;
    let case = Case::new(n, n, heads, 6);
    let [out, lse, ..] = case.run(&Plan::packed(&[n]), heads);
    for i in [0, 1, 100, 255, 256, 299] {
        let plan = Plan { segments: vec![segment(0..1, &[0..i], i..i + 1)] };
        let (mut o, mut l) = (vec![0.0; heads.q_row()], vec![0.0; heads.heads]);
        let kv = (i + 1) * heads.kv_row();
        let q = &case.q[i * heads.q_row()..][..heads.q_row()];
        forward(q, &case.k[..kv], &case.v[..kv], &plan, heads, &mut o, &mut l);
        assert!(relative_error(&o, &out[i * heads.q_row()..][..heads.q_row()]) < 2e-6);
        assert!(relative_error(&l, &lse[i * heads.heads..][..heads.heads]) < 2e-6);
    }
}

/// The rows `rows` of x, `row` values each.
fn select(x: &[f32], row: usize, rows: impl IntoIterator<Item = usize>) -> Vec<f32> {
    rows.into_iter().flat_map(|i| x[i * row..(i + 1) * row].to_vec()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_packed_row_is_its_rows_alone(lengths in prop::collection::vec(1usize..90, 1..6), seed in 0u64..1000, kv in 1usize..3) {
        let heads = heads(2 * kv, kv, 8);
        let n: usize = lengths.iter().sum();
        let case = Case::new(n, n, heads, seed);
        let packed = case.run(&Plan::packed(&lengths), heads);
        let mut start = 0;
        for length in lengths {
            let rows = start..start + length;
            let alone = Case {
                n: length,
                m: length,
                q: select(&case.q, heads.q_row(), rows.clone()),
                k: select(&case.k, heads.kv_row(), rows.clone()),
                v: select(&case.v, heads.kv_row(), rows.clone()),
                dout: select(&case.dout, heads.q_row(), rows.clone()),
            };
            let alone = alone.run(&Plan::packed(&[length]), heads);
            let sizes = [heads.q_row(), heads.heads, heads.q_row(), heads.kv_row(), heads.kv_row()];
            for ((packed, alone), row) in packed.iter().zip(&alone).zip(sizes) {
                prop_assert!(relative_error(&select(packed, row, rows.clone()), alone) < 1e-6);
            }
            start += length;
        }
    }

    #[test]
    fn a_shared_prefix_is_the_same_as_full_rows(
        prefix in 1usize..150, tails in prop::collection::vec(1usize..60, 1..5), seed in 0u64..1000,
    ) {
        let heads = heads(4, 2, 8);
        let n = prefix + tails.iter().sum::<usize>();
        let mut segments = vec![segment(0..prefix, &[], 0..prefix)];
        let mut start = prefix;
        for tail in &tails {
            segments.push(segment(start..start + tail, &[0..prefix], start..start + tail));
            start += tail;
        }
        // The prefix's own queries carry no gradient here: in separate rows they would stand once a row.
        let mut case = Case::new(n, n, heads, seed);
        case.dout[..prefix * heads.q_row()].fill(0.0);
        let [out, _, dq, dk, dv] = case.run(&Plan { segments }, heads);
        let mut dk_prefix = vec![0.0f32; prefix * heads.kv_row()];
        let mut dv_prefix = dk_prefix.clone();
        let mut start = prefix;
        for tail in tails {
            let rows = || (0..prefix).chain(start..start + tail);
            let full = Case {
                n: prefix + tail,
                m: prefix + tail,
                q: select(&case.q, heads.q_row(), rows()),
                k: select(&case.k, heads.kv_row(), rows()),
                v: select(&case.v, heads.kv_row(), rows()),
                dout: select(&case.dout, heads.q_row(), rows()),
            };
            let [f_out, _, f_dq, f_dk, f_dv] = full.run(&Plan::packed(&[prefix + tail]), heads);
            let own = |x: &[f32], row| select(x, row, start..start + tail);
            let after = |x: &[f32], row: usize| x[prefix * row..].to_vec();
            let (q_row, kv_row) = (heads.q_row(), heads.kv_row());
            prop_assert!(relative_error(&own(&out, q_row), &after(&f_out, q_row)) < 1e-6);
            prop_assert!(relative_error(&own(&dq, q_row), &after(&f_dq, q_row)) < 2e-6);
            prop_assert!(relative_error(&own(&dk, kv_row), &after(&f_dk, kv_row)) < 2e-6);
            prop_assert!(relative_error(&own(&dv, kv_row), &after(&f_dv, kv_row)) < 2e-6);
            for (sum, part) in [(&mut dk_prefix, f_dk), (&mut dv_prefix, f_dv)] {
                for (sum, part) in sum.iter_mut().zip(part) {
                    *sum += part;
                }
            }
            start += tail;
        }
        prop_assert!(relative_error(&dk[..prefix * heads.kv_row()], &dk_prefix) < 3e-6);
        prop_assert!(relative_error(&dv[..prefix * heads.kv_row()], &dv_prefix) < 3e-6);
    }
}

#[test]
#[should_panic(expected = "see some of the keys")]
fn a_key_seen_twice_is_refused() {
    let heads = heads(1, 1, 4);
    let plan = Plan { segments: vec![segment(0..2, &[0..3], 2..4)] };
    Case::new(2, 4, heads, 1).run(&plan, heads);
}

#[test]
#[should_panic(expected = "segments share queries")]
fn shared_queries_are_refused() {
    let heads = heads(1, 1, 4);
    let plan = Plan { segments: vec![segment(0..2, &[], 0..2), segment(1..3, &[], 2..4)] };
    Case::new(3, 4, heads, 1).run(&plan, heads);
}
