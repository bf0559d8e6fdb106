//! Softmax attention by plan, with grouped heads and O(T) memory: no T x T matrix is ever stored.
//!
//! A plan lists segments. A segment's queries see some earlier ranges of keys in full and their own
//! range causally:
//!
//! ```text
//!            keys   p p p p | a a a | b b
//! queries a         x x x x | x     |
//!                   x x x x | x x   |
//!                   x x x x | x x x |          sees = [p], own = a
//! queries b         x x x x |       | x
//!                   x x x x |       | x x      sees = [p], own = b
//! ```
//!
//! Packing without contamination is `sees = []` for each row; a KV cache is `sees = [0..past]`.

use std::ops::Range;

/// One stretch of queries and what it sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Rows of q.
    pub queries: Range<usize>,
    /// Rows of k and v seen in full.
    pub sees: Vec<Range<usize>>,
    /// Rows of k and v of the segment itself, seen causally; as many as `queries`.
    pub own: Range<usize>,
}

/// The attention of one packed batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub segments: Vec<Segment>,
}

impl Plan {
    /// Rows of the given lengths packed one after another; each sees only itself.
    pub fn packed(lengths: &[usize]) -> Self {
        let mut start = 0;
        let segments = lengths
            .iter()
            .map(|&n| {
                let own = start..start + n;
                start += n;
                Segment { queries: own.clone(), sees: Vec::new(), own }
            })
            .collect();
        Self { segments }
    }
}

/// Sizes of the heads. q is `[n, heads * head_dim]`; k and v are `[m, kv_heads * head_dim]`;
/// query head `h` uses kv head `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}

/// out: as q. `lse`: `[n, heads]`, the log of the sum of exponentials, saved for the backward pass.
pub fn forward(q: &[f32], k: &[f32], v: &[f32], plan: &Plan, heads: Heads, out: &mut [f32], lse: &mut [f32]) {
    let _ = (q, k, v, plan, heads, out, lse);
    todo!()
}

/// What `forward` read and wrote.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
}

/// Overwrites dq, dk, dv (shapes of q, k, v).
pub fn backward(dout: &[f32], saved: Saved, plan: &Plan, heads: Heads, dq: &mut [f32], dk: &mut [f32], dv: &mut [f32]) {
    let _ = (dout, saved, plan, heads, dq, dk, dv);
    todo!()
}
