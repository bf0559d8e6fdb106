//! Segments of one query: the keys are split into chunks of a fixed size, whose partial softmaxes are put together
//! in order, so that one query against a long cache uses all threads and gives the same bits with one.

use std::ops::Range;

use rayon::prelude::*;

use super::{Heads, Plan};
use crate::few_rows::{Rows, few_rows, weighted_sum};
use crate::scratch;
use crate::vector::{add_scaled, softmax_step};

/// Keys of one chunk.
const CHUNK: usize = 256;
/// Products of a query's and a key's values below which threads cost more than they bring.
const PARALLEL_PRODUCTS: usize = 1 << 17;

/// One chunk of keys of one kv head of one single query.
struct Task {
    query: usize,
    kv_head: usize,
    keys: Range<usize>,
}

/// What a chunk knows of each query head of its group: maximum and sum of the softmax, and the weighted values.
struct Partial {
    most: Vec<f32>,
    sums: Vec<f32>,
    acc: Vec<f32>,
}

/// Writes out `[n, heads * head_dim]` and lse `[n, heads]` for the plan's segments of one query.
pub(super) fn single_queries(q: &[f32], k: &[f32], v: &[f32], plan: &Plan, heads: Heads, out: &mut [f32], lse: &mut [f32]) {
    let mut tasks = Vec::new();
    for segment in plan.segments.iter().filter(|s| s.queries.len() == 1) {
        for kv_head in 0..heads.kv_heads {
            let chunks = segment.key_blocks(1, CHUNK);
            tasks.extend(chunks.map(|keys| Task { query: segment.queries.start, kv_head, keys: keys.rows }));
        }
    }
    let products: usize = tasks.iter().map(|t| t.keys.len() * heads.group() * heads.head_dim).sum();
    let partials: Vec<Partial> = if products < PARALLEL_PRODUCTS {
        tasks.iter().map(|task| chunk(q, k, v, heads, task)).collect()
    } else {
        tasks.par_iter().map(|task| chunk(q, k, v, heads, task)).collect()
    };
    let mut start = 0;
    while start < tasks.len() {
        let Task { query, kv_head, .. } = tasks[start];
        let end = start + tasks[start..].iter().take_while(|t| t.query == query && t.kv_head == kv_head).count();
        for g in 0..heads.group() {
            let head = kv_head * heads.group() + g;
            let out = &mut out[query * heads.q_row() + head * heads.head_dim..][..heads.head_dim];
            lse[query * heads.heads + head] = merge(&partials[start..end], g, out);
        }
        start = end;
    }
}

fn chunk(q: &[f32], k: &[f32], v: &[f32], heads: Heads, task: &Task) -> Partial {
    let (group, hd, kv_row) = (heads.group(), heads.head_dim, heads.kv_row());
    let count = task.keys.len();
    let mut partial = Partial { most: vec![0.0; group], sums: vec![0.0; group], acc: vec![0.0; group * hd] };
    let at = task.keys.start * kv_row + task.kv_head * hd;
    let (keys, values) = (Rows { data: &k[at..], stride: kv_row }, Rows { data: &v[at..], stride: kv_row });
    let queries = &q[task.query * heads.q_row() + task.kv_head * group * hd..][..group * hd];
    scratch::with((group + 1) * count, |buffer| {
        let (products, scores) = buffer.split_at_mut(group * count);
        few_rows(keys, count, Rows { data: queries, stride: hd }, group, hd, products); // (keys, group)
        for (g, acc) in partial.acc.chunks_exact_mut(hd).enumerate() {
            for (score, products) in scores.iter_mut().zip(products.chunks_exact(group)) {
                *score = heads.scale * products[g];
            }
            (partial.most[g], partial.sums[g]) = softmax_step(scores, f32::NEG_INFINITY);
            weighted_sum(scores, values, acc);
        }
    });
    partial
}

/// The softmax over all chunks for head `g` of the group, into `out`; returns the log of the sum.
fn merge(partials: &[Partial], g: usize, out: &mut [f32]) -> f32 {
    let most = partials.iter().map(|p| p.most[g]).fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    let weights = |p: &Partial| (p.most[g] - most).exp();
    let sum: f32 = partials.iter().map(|p| weights(p) * p.sums[g]).sum();
    out.fill(0.0);
    for p in partials {
        add_scaled(out, weights(p) / sum, &p.acc[g * out.len()..][..out.len()]);
    }
    most + sum.ln()
}
