//! The forward pass: blocks of queries with an online softmax; single queries (decoding) have their own way.

use rayon::prelude::*;

use super::{Heads, KEY_BLOCK, Plan, QueryBlock, Scatter, check, decode};
use crate::matmul::{Mat, gemm_serial};
use crate::scratch;
use crate::vector::{scale, softmax_step};

/// out: as q. `lse`: `[n, heads]`, the log of the sum of exponentials, saved for the backward pass.
/// Rows of q in no segment get 0.
pub fn forward(q: &[f32], k: &[f32], v: &[f32], plan: &Plan, heads: Heads, out: &mut [f32], lse: &mut [f32]) {
    let (n, _) = check(plan, heads, q, k, v);
    assert_eq!(out.len(), q.len(), "out must have the shape of q");
    assert_eq!(lse.len(), n * heads.heads, "lse must be [{n}, {}]", heads.heads);
    if plan.segments.iter().map(|s| s.queries.len()).sum::<usize>() < n {
        out.fill(0.0);
        lse.fill(0.0);
    }
    decode::single_queries(q, k, v, plan, heads, out, lse);
    let size = heads.query_block();
    let mut blocks = Vec::new();
    for (segment, s) in plan.segments.iter().enumerate().filter(|(_, s)| s.queries.len() > 1) {
        // The last block sees the most keys: the largest pieces of work come first.
        for first in (0..s.queries.len()).step_by(size).rev() {
            let count = size.min(s.queries.len() - first);
            blocks.extend((0..heads.kv_heads).map(|kv_head| QueryBlock { segment, first, count, kv_head }));
        }
    }
    let (out, lse) = (Scatter::new(out), Scatter::new(lse));
    blocks.into_par_iter().with_max_len(1).for_each(|block| one_block(q, k, v, plan, heads, block, out, lse));
}

#[allow(clippy::too_many_arguments)]
fn one_block(q: &[f32], k: &[f32], v: &[f32], plan: &Plan, heads: Heads, block: QueryBlock, out: Scatter, lse: Scatter) {
    let (hd, kv_row) = (heads.head_dim, heads.kv_row());
    let rows = heads.group() * block.count;
    let segment = &plan.segments[block.segment];
    scratch::with(rows * (2 * hd + KEY_BLOCK + 2), |buffer| {
        let (scaled, rest) = buffer.split_at_mut(rows * hd);
        let (acc, rest) = rest.split_at_mut(rows * hd);
        let (scores, rest) = rest.split_at_mut(rows * KEY_BLOCK);
        let (most, sums) = rest.split_at_mut(rows);
        block.gather(plan, heads, q, heads.scale, scaled);
        acc.fill(0.0);
        most.fill(f32::NEG_INFINITY);
        sums.fill(0.0);
        for keys in segment.key_blocks(block.first + block.count, KEY_BLOCK) {
            let count = keys.rows.len();
            let at = keys.rows.start * kv_row + block.kv_head * hd;
            let scores = &mut scores[..rows * count];
            let queries = Mat::new(scaled, rows, hd);
            gemm_serial(scores, count, 1.0, queries, Mat::columns(&k[at..], count, hd, kv_row).t(), 0.0); // (rows, keys)
            for (r, scores) in scores.chunks_exact_mut(count).enumerate() {
                let visible = keys.visible(block.first + r % block.count);
                let (seen, hidden) = scores.split_at_mut(visible);
                hidden.fill(0.0);
                if seen.is_empty() {
                    continue;
                }
                let (now, sum) = softmax_step(seen, most[r]);
                if now != most[r] {
                    // e^(old - new): what was added up so far was relative to the old maximum. 0 at first.
                    let shrink = (most[r] - now).exp();
                    sums[r] *= shrink;
                    scale(&mut acc[r * hd..][..hd], shrink);
                    most[r] = now;
                }
                sums[r] += sum;
            }
            let values = Mat::columns(&v[at..], count, hd, kv_row);
            gemm_serial(acc, hd, 1.0, Mat::new(scores, rows, count), values, 1.0);
        }
        for r in 0..rows {
            let row = &mut acc[r * hd..][..hd];
            scale(row, 1.0 / sums[r]);
            // SAFETY: `check` found that segments share no queries, and (query, head) belongs to one block only.
            unsafe {
                out.at(block.q_at(plan, heads, r), hd).copy_from_slice(row);
                lse.at(block.lse_at(plan, heads, r), 1)[0] = most[r] + sums[r].ln();
            }
        }
    });
}
