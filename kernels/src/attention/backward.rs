//! The backward pass. With P the softmax, D = rowsum(dO * O) and S = scale Q K^T:
//!
//! ```text
//! dV = P^T dO     dP = dO V^T     dS = P * (dP - D)     dQ = scale dS K     dK = scale dS^T Q
//! ```
//!
//! P is computed again from the saved log-sum. A query belongs to one block, so that dq needs no care; a
//! key is seen by many blocks. Segments that share keys form a component; the blocks of a component and a kv
//! head are dealt to at most `STRIPES` stripes, each with its own dk and dv, which are added up in the order of
//! the stripes. Their number depends on the plan only, never on the threads: the same bits, and O(T) memory.

use std::ops::Range;

use rayon::prelude::*;

use super::{Heads, KEY_BLOCK, KeyBlock, Plan, QueryBlock, Saved, Scatter, check};
use crate::matmul::{Mat, gemm_serial};
use crate::scratch;
use crate::simd::simd;
use crate::vector::{LANES, add_scaled, dot, exp};

/// Stripes of one component and kv head at most.
const STRIPES: usize = 4;
/// Components times kv heads from which there is work enough for every thread without stripes.
const ENOUGH_TASKS: usize = 32;

/// Segments whose keys lie in one stretch that no other segment's keys touch.
struct Component {
    keys: Range<usize>,
    segments: Vec<usize>,
}

/// Overwrites dq, dk, dv (shapes of q, k, v); rows in no segment get 0.
pub fn backward(dout: &[f32], saved: Saved, plan: &Plan, heads: Heads, dq: &mut [f32], dk: &mut [f32], dv: &mut [f32]) {
    let (n, _) = check(plan, heads, saved.q, saved.k, saved.v);
    assert!([dout.len(), saved.out.len(), dq.len()] == [saved.q.len(); 3], "out, dout and dq must have the shape of q");
    assert!([dk.len(), dv.len()] == [saved.k.len(); 2], "dk and dv must have the shape of k");
    assert_eq!(saved.lse.len(), n * heads.heads, "lse must be [{n}, {}]", heads.heads);
    if plan.segments.iter().map(|s| s.queries.len()).sum::<usize>() < n {
        dq.fill(0.0);
    }
    let components = components(plan);
    let stripes = stripes(plan, heads, &components);
    let dq = Scatter::new(dq);
    let parts: Vec<Vec<f32>> =
        stripes.par_iter().with_max_len(1).map(|stripe| one_stripe(dout, saved, plan, heads, stripe, dq)).collect();
    add_up(&components, &stripes, &parts, heads, dk, dv);
}

/// The plan's segments, grouped by the stretch of keys from the first to the last that each sees.
fn components(plan: &Plan) -> Vec<Component> {
    let mut spans: Vec<(Range<usize>, usize)> = Vec::new();
    for (i, segment) in plan.segments.iter().enumerate().filter(|(_, s)| !s.queries.is_empty()) {
        let seen = segment.sees.iter().chain([&segment.own]).filter(|r| !r.is_empty());
        let (start, end) = seen.fold((usize::MAX, 0), |(start, end), r| (start.min(r.start), end.max(r.end)));
        spans.push((start..end, i));
    }
    spans.sort_by_key(|(keys, _)| keys.start);
    let mut components: Vec<Component> = Vec::new();
    for (keys, segment) in spans {
        match components.last_mut() {
            Some(last) if keys.start < last.keys.end => {
                last.keys.end = last.keys.end.max(keys.end);
                last.segments.push(segment);
            }
            _ => components.push(Component { keys, segments: vec![segment] }),
        }
    }
    components
}

/// The share of one task: some blocks of one component and one kv head.
struct Stripe {
    component: usize,
    kv_head: usize,
    /// The component's.
    keys: Range<usize>,
    blocks: Vec<QueryBlock>,
}

fn stripes(plan: &Plan, heads: Heads, components: &[Component]) -> Vec<Stripe> {
    let size = heads.query_block();
    let mut stripes = Vec::new();
    for (c, component) in components.iter().enumerate() {
        for kv_head in 0..heads.kv_heads {
            let mut blocks = Vec::new();
            for &segment in &component.segments {
                let n = plan.segments[segment].queries.len();
                let block = |first| QueryBlock { segment, first, count: size.min(n - first), kv_head };
                blocks.extend((0..n).step_by(size).map(block));
            }
            let enough = components.len() * heads.kv_heads >= ENOUGH_TASKS;
            let count = if enough { 1 } else { (blocks.len() / 2).clamp(1, STRIPES) };
            // Dealt in turn: later blocks see more keys.
            stripes.extend((0..count).map(|s| {
                let blocks = blocks.iter().skip(s).step_by(count).copied().collect();
                Stripe { component: c, kv_head, keys: component.keys.clone(), blocks }
            }));
        }
    }
    stripes
}

/// Writes the dq of its queries and returns its part of dk, then of dv, `[keys, head_dim]` each.
fn one_stripe(dout: &[f32], saved: Saved, plan: &Plan, heads: Heads, stripe: &Stripe, dq: Scatter) -> Vec<f32> {
    let hd = heads.head_dim;
    let mut parts = vec![0.0; 2 * stripe.keys.len() * hd];
    let (dk, dv) = parts.split_at_mut(stripe.keys.len() * hd);
    for block in &stripe.blocks {
        one_block(dout, saved, plan, heads, block, stripe.keys.start, dk, dv, dq);
    }
    parts
}

#[allow(clippy::too_many_arguments)]
fn one_block(
    dout: &[f32],
    saved: Saved,
    plan: &Plan,
    heads: Heads,
    block: &QueryBlock,
    first_key: usize,
    dk: &mut [f32],
    dv: &mut [f32],
    dq: Scatter,
) {
    let (hd, kv_row) = (heads.head_dim, heads.kv_row());
    let rows = heads.group() * block.count;
    scratch::with(rows * (3 * hd + 2 * KEY_BLOCK + 2), |buffer| {
        let (scaled, rest) = buffer.split_at_mut(rows * hd);
        let (d_out, rest) = rest.split_at_mut(rows * hd);
        let (d_query, rest) = rest.split_at_mut(rows * hd);
        let (p, rest) = rest.split_at_mut(rows * KEY_BLOCK);
        let (dp, rest) = rest.split_at_mut(rows * KEY_BLOCK);
        let (lse, delta) = rest.split_at_mut(rows);
        block.gather(plan, heads, saved.q, heads.scale, scaled);
        block.gather(plan, heads, dout, 1.0, d_out);
        d_query.fill(0.0);
        for r in 0..rows {
            lse[r] = saved.lse[block.lse_at(plan, heads, r)];
            delta[r] = dot(&d_out[r * hd..][..hd], &saved.out[block.q_at(plan, heads, r)..][..hd]);
        }
        let (queries, d_outs) = (Mat::new(scaled, rows, hd), Mat::new(d_out, rows, hd));
        for keys in plan.segments[block.segment].key_blocks(block.first + block.count, KEY_BLOCK) {
            let count = keys.rows.len();
            let at = keys.rows.start * kv_row + block.kv_head * hd;
            let (p, dp) = (&mut p[..rows * count], &mut dp[..rows * count]);
            let k = Mat::columns(&saved.k[at..], count, hd, kv_row);
            let v = Mat::columns(&saved.v[at..], count, hd, kv_row);
            gemm_serial(p, count, 1.0, queries, k.t(), 0.0); // (rows, keys)
            gemm_serial(dp, count, 1.0, d_outs, v.t(), 0.0); // (rows, keys)
            softmax_gradient(p, dp, lse, delta, block, &keys);
            let own = (keys.rows.start - first_key) * hd..(keys.rows.end - first_key) * hd;
            let (p, ds) = (Mat::new(p, rows, count), Mat::new(dp, rows, count));
            gemm_serial(&mut dv[own.clone()], hd, 1.0, p.t(), d_outs, 1.0);
            // The queries carry the scale already.
            gemm_serial(&mut dk[own], hd, 1.0, ds.t(), queries, 1.0);
            gemm_serial(d_query, hd, heads.scale, ds, k, 1.0);
        }
        for (r, row) in d_query.chunks_exact(hd).enumerate() {
            // SAFETY: `check` found that segments share no queries, and (query, head) belongs to one block only.
            unsafe { dq.at(block.q_at(plan, heads, r), hd) }.copy_from_slice(row);
        }
    });
}

simd! {
    /// Scores to P, and dP to dS, in place; what a row does not see becomes 0.
    fn softmax_gradient(p: &mut [f32], dp: &mut [f32], lse: &[f32], delta: &[f32], block: &QueryBlock, keys: &KeyBlock) {
        let count = keys.rows.len();
        for (r, (p, dp)) in p.chunks_exact_mut(count).zip(dp.chunks_exact_mut(count)).enumerate() {
            let visible = keys.visible(block.first + r % block.count);
            let (lse, delta) = (lse[r], delta[r]);
            p[visible..].fill(0.0);
            dp[visible..].fill(0.0);
            let (p, p_tail) = p[..visible].as_chunks_mut::<LANES>();
            let (dp, dp_tail) = dp[..visible].as_chunks_mut::<LANES>();
            for (p, dp) in p.iter_mut().zip(dp) {
                for l in 0..LANES {
                    p[l] = exp(p[l] - lse);
                    dp[l] = p[l] * (dp[l] - delta);
                }
            }
            for (p, dp) in p_tail.iter_mut().zip(dp_tail) {
                *p = exp(*p - lse);
                *dp = *p * (*dp - delta);
            }
        }
    }
}

/// dk and dv from the parts of the stripes, in their order.
fn add_up(components: &[Component], stripes: &[Stripe], parts: &[Vec<f32>], heads: Heads, dk: &mut [f32], dv: &mut [f32]) {
    let (hd, kv_row) = (heads.head_dim, heads.kv_row());
    let mut of_component: Vec<Vec<usize>> = vec![Vec::new(); components.len()];
    for (i, stripe) in stripes.iter().enumerate() {
        of_component[stripe.component].push(i);
    }
    let rows = (1usize << 14).div_ceil(kv_row);
    dk.par_chunks_mut(rows * kv_row).zip(dv.par_chunks_mut(rows * kv_row)).enumerate().for_each(|(piece, (dk, dv))| {
        dk.fill(0.0);
        dv.fill(0.0);
        let here = piece * rows..piece * rows + dk.len() / kv_row;
        // Components are in the order of their keys and do not overlap.
        let first = components.partition_point(|c| c.keys.end <= here.start);
        for (c, component) in components.iter().enumerate().skip(first).take_while(|(_, c)| c.keys.start < here.end) {
            let keys = component.keys.start.max(here.start)..component.keys.end.min(here.end);
            for &i in &of_component[c] {
                let (part_k, part_v) = parts[i].split_at(component.keys.len() * hd);
                for key in keys.clone() {
                    let from = (key - component.keys.start) * hd;
                    let to = (key - here.start) * kv_row + stripes[i].kv_head * hd;
                    add_scaled(&mut dk[to..to + hd], 1.0, &part_k[from..from + hd]);
                    add_scaled(&mut dv[to..to + hd], 1.0, &part_v[from..from + hd]);
                }
            }
        }
    });
}
