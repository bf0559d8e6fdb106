//! The two orders of the rows of q and k in the llama architecture.
//!
//! Rotary embedding turns pairs of rows. Hugging Face's llama pairs row i of a head with row i + size/2, llama.cpp
//! pairs neighbours; its converter reorders the rows so (conversion/llama.py, `LlamaModel.permute`). In a LoRA pair
//! only B has these rows. Qwen2, Qwen3, Gemma and Phi-3 have the first order in both worlds.

/// Rows `[heads, 2, half]` become `[heads, half, 2]`. `values` is row-major with `cols` values a row (a weight: its
/// in features; B of a LoRA pair: the rank); its rows are a multiple of `2 * heads`. For k, `heads` are the kv heads.
pub fn hf_to_gguf(values: &mut [f32], cols: usize, heads: usize) {
    reorder(values, cols, heads, |half, position| {
        let (second, i) = (position / half, position % half);
        2 * i + second
    });
}

/// The inverse of [`hf_to_gguf`].
pub fn gguf_to_hf(values: &mut [f32], cols: usize, heads: usize) {
    reorder(values, cols, heads, |half, position| {
        let (i, second) = (position / 2, position % 2);
        second * half + i
    });
}

/// Moves row `position` of each head to `target(half, position)`.
fn reorder(values: &mut [f32], cols: usize, heads: usize, target: impl Fn(usize, usize) -> usize) {
    if values.is_empty() {
        return;
    }
    let head_values = values.len() / heads;
    assert!(
        head_values * heads == values.len() && head_values.is_multiple_of(2 * cols),
        "{} values are no {heads} heads of an even number of rows of {cols}",
        values.len()
    );
    let half = head_values / cols / 2;
    let mut moved = vec![0.0; head_values];
    for head in values.chunks_exact_mut(head_values) {
        for (position, row) in head.chunks_exact(cols).enumerate() {
            let to = target(half, position) * cols;
            moved[to..to + cols].copy_from_slice(row);
        }
        head.copy_from_slice(&moved);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// numpy's `w.reshape(heads, 2, half, cols).swapaxes(1, 2).reshape(w.shape)`, element by element.
    fn permute(w: &[f32], cols: usize, heads: usize) -> Vec<f32> {
        let half = w.len() / cols / heads / 2;
        let mut out = Vec::new();
        for head in 0..heads {
            for i in 0..half {
                for second in 0..2 {
                    for col in 0..cols {
                        out.push(w[((head * 2 + second) * half + i) * cols + col]);
                    }
                }
            }
        }
        out
    }

    #[test]
    fn two_heads_of_six_rows_interleave_as_written_down_by_hand() {
        let mut rows: Vec<f32> = (0..12).map(|i| i as f32).collect();
        hf_to_gguf(&mut rows, 1, 2);
        assert_eq!(rows, [0., 3., 1., 4., 2., 5., 6., 9., 7., 10., 8., 11.]);
    }

    #[test]
    #[should_panic(expected = "10 values are no 2 heads of an even number of rows of 1")]
    fn an_odd_head_is_a_fault_of_the_caller() {
        hf_to_gguf(&mut [0.0; 10], 1, 2);
    }

    proptest! {
        #[test]
        fn it_is_llama_cpps_permute_and_the_inverse_takes_it_back(cols in 1usize..5, heads in 1usize..5, half in 1usize..5) {
            let original: Vec<f32> = (0..heads * 2 * half * cols).map(|i| i as f32).collect();
            let mut values = original.clone();
            hf_to_gguf(&mut values, cols, heads);
            prop_assert_eq!(&values, &permute(&original, cols, heads));
            gguf_to_hf(&mut values, cols, heads);
            prop_assert_eq!(values, original);
        }
    }
}
