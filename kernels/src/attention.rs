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
//!
//! Both passes work on blocks as FlashAttention does (Dao, 2023): a block of queries, with all heads that share
//! a kv head stacked as rows, against a block of keys at a time. Saved between the passes: q, k, v, out and
//! the log of each softmax's sum.

mod backward;
mod decode;
mod forward;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use backward::backward;
pub use forward::forward;

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

/// What `forward` read and wrote.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
}

/// Keys of one block.
const KEY_BLOCK: usize = 128;
/// Rows (queries times heads of a group) of one block.
const ROW_BLOCK: usize = 192;

impl Heads {
    /// Query heads that share one kv head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Values of one row of q.
    fn q_row(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Values of one row of k or v.
    fn kv_row(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Queries of one block.
    fn query_block(&self) -> usize {
        (ROW_BLOCK / self.group()).clamp(16, 64)
    }
}

/// Some keys of a block of queries: rows `rows` of k; `diagonal` is `None` where all are seen, else the position of
/// the first of them in the segment's own range, of which query `i` sees the positions up to `i`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyBlock {
    rows: Range<usize>,
    diagonal: Option<usize>,
}

impl KeyBlock {
    /// How many of the block's keys query `i` of the segment sees; a prefix of them.
    fn visible(&self, i: usize) -> usize {
        match self.diagonal {
            None => self.rows.len(),
            Some(first) => (i + 1).saturating_sub(first).min(self.rows.len()),
        }
    }
}

impl Segment {
    /// The keys that queries `..end` of the segment see, in order, in blocks of at most `size`.
    fn key_blocks(&self, end: usize, size: usize) -> impl Iterator<Item = KeyBlock> + '_ {
        let full = self.sees.iter().flat_map(move |range| {
            range.clone().step_by(size).map(move |start| KeyBlock { rows: start..(start + size).min(range.end), diagonal: None })
        });
        let own = (0..end).step_by(size).map(move |first| KeyBlock {
            rows: self.own.start + first..self.own.start + (first + size).min(end),
            diagonal: Some(first),
        });
        full.chain(own)
    }
}

/// Panics where the plan does not fit: a wrong plan is a mistake of the program, not of its user. The unsafe
/// code of both passes relies on what is found here.
fn check(plan: &Plan, heads: Heads, q: &[f32], k: &[f32], v: &[f32]) -> (usize, usize) {
    let Heads { heads: count, kv_heads, head_dim, .. } = heads;
    assert!(
        kv_heads > 0 && head_dim > 0 && count > 0 && count.is_multiple_of(kv_heads),
        "{count} heads cannot share {kv_heads} kv heads of {head_dim}"
    );
    let (n, m) = (q.len() / heads.q_row(), k.len() / heads.kv_row());
    assert_eq!(q.len(), n * heads.q_row(), "q must be [n, {}]", heads.q_row());
    assert_eq!(k.len(), m * heads.kv_row(), "k must be [m, {}]", heads.kv_row());
    assert_eq!(v.len(), k.len(), "v must have the shape of k");
    let mut starts: Vec<&Range<usize>> = Vec::with_capacity(plan.segments.len());
    for segment in &plan.segments {
        let Segment { queries, sees, own } = segment;
        assert!(queries.start <= queries.end && queries.end <= n, "queries {queries:?} of {n}");
        assert_eq!(own.len(), queries.len(), "own keys {own:?} of queries {queries:?}");
        let mut seen: Vec<&Range<usize>> = sees.iter().chain([own]).filter(|r| !r.is_empty()).collect();
        seen.sort_by_key(|r| r.start);
        assert!(seen.last().is_none_or(|r| r.end <= m), "queries {queries:?} see keys {seen:?}, there are {m}");
        assert!(seen.windows(2).all(|w| w[0].end <= w[1].start), "queries {queries:?} see some of the keys {seen:?} twice");
        if !queries.is_empty() {
            starts.push(queries);
        }
    }
    starts.sort_by_key(|r| r.start);
    assert!(starts.windows(2).all(|w| w[0].end <= w[1].start), "segments share queries");
    (n, m)
}

/// A slice that tasks write in disjoint places.
#[derive(Clone, Copy)]
struct Scatter<'a> {
    start: *mut f32,
    len: usize,
    owner: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for a `&mut [f32]`, which is Send; `at` asks its callers for disjoint places.
unsafe impl Send for Scatter<'_> {}
// SAFETY: as above.
unsafe impl Sync for Scatter<'_> {}

impl<'a> Scatter<'a> {
    fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), owner: std::marker::PhantomData }
    }

    /// The `len` values from `start`.
    ///
    /// # Safety
    /// No other living slice of it overlaps them.
    #[allow(clippy::mut_from_ref)]
    unsafe fn at(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start + len <= self.len, "{len} values from {start} of {}", self.len);
        // SAFETY: inside the slice, which is borrowed mutably for 'a; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// One block of queries of one kv head.
#[derive(Clone, Copy)]
struct QueryBlock {
    /// Index of the segment.
    segment: usize,
    /// First query, counted in the segment, and their number.
    first: usize,
    count: usize,
    kv_head: usize,
}

impl QueryBlock {
    /// Where row `r` of the block (head of the group major, query minor) starts in q.
    fn q_at(&self, plan: &Plan, heads: Heads, r: usize) -> usize {
        let query = plan.segments[self.segment].queries.start + self.first + r % self.count;
        query * heads.q_row() + self.head(heads, r) * heads.head_dim
    }

    /// Where its value stands in lse `[n, heads]`.
    fn lse_at(&self, plan: &Plan, heads: Heads, r: usize) -> usize {
        let query = plan.segments[self.segment].queries.start + self.first + r % self.count;
        query * heads.heads + self.head(heads, r)
    }

    fn head(&self, heads: Heads, r: usize) -> usize {
        self.kv_head * heads.group() + r / self.count
    }

    /// Copies the block's rows of x (shape of q) to `out` `[rows, head_dim]`, times `factor`.
    fn gather(&self, plan: &Plan, heads: Heads, x: &[f32], factor: f32, out: &mut [f32]) {
        for (r, out) in out.chunks_exact_mut(heads.head_dim).enumerate() {
            let at = self.q_at(plan, heads, r);
            for (out, x) in out.iter_mut().zip(&x[at..at + heads.head_dim]) {
                *out = factor * x;
            }
        }
    }
}
