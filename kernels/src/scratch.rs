//! Buffers that a thread keeps between calls, so that a training step allocates nothing.

use std::cell::Cell;

thread_local! {
    static KEPT: Cell<Vec<Vec<f32>>> = const { Cell::new(Vec::new()) };
}

/// Buffers above this size are not kept: 8 MiB.
const KEEP_VALUES: usize = 2 << 20;
/// Buffers that a thread keeps at most.
const KEEP_BUFFERS: usize = 4;

/// Calls `f` with `len` values of any content. The buffer is taken out while `f` runs, so that work which
/// rayon steals meanwhile finds another.
pub(crate) fn with<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut kept = KEPT.take();
    let mut buffer = kept.pop().unwrap_or_default();
    KEPT.set(kept);
    if buffer.len() < len {
        // Nothing of the old content is wanted: no copy.
        buffer.clear();
        buffer.resize(len, 0.0);
    }
    let result = f(&mut buffer[..len]);
    let mut kept = KEPT.take();
    if buffer.len() <= KEEP_VALUES && kept.len() < KEEP_BUFFERS {
        kept.push(buffer);
    }
    KEPT.set(kept);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_buffers_do_not_overlap() {
        with(100, |outer| {
            outer.fill(1.0);
            with(200, |inner| inner.fill(2.0));
            assert!(outer.iter().all(|v| *v == 1.0));
        });
        with(50, |again| assert_eq!(again.len(), 50));
    }

    #[test]
    fn a_huge_buffer_is_given_back() {
        with(KEEP_VALUES + 1, |b| b[KEEP_VALUES] = 1.0);
        let kept = KEPT.take();
        assert!(kept.iter().all(|b| b.len() <= KEEP_VALUES));
    }
}
