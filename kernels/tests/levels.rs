//! The code of every instruction set that this machine has gives the same results. In a process of its own, since
//! the level holds for the whole process.

use retune_kernels::attention::{self, Heads, Plan, Saved, Segment};
use retune_kernels::dropout::{Dropout, token_key};
use retune_kernels::rng::Rng;
use retune_kernels::simd::{Level, level, limit};
use retune_kernels::weight::GgmlDType;
use retune_kernels::{DType, Weight, quantize, rms_norm, swiglu};

fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// Results of the ops that have code for each level; the products of the gemm crate choose for themselves.
fn results() -> Vec<(String, Vec<f32>)> {
    let mut all = Vec::new();
    for dtype in [GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q5_1, GgmlDType::Q8_0, GgmlDType::Q2K, GgmlDType::Q3K]
        .into_iter()
        .chain([GgmlDType::Q4K, GgmlDType::Q5K, GgmlDType::Q6K])
        .map(DType::Quant)
        .chain([DType::F32, DType::F16, DType::BF16])
    {
        let bytes = quantize(dtype, &normal(11 * 512, 1), 512).unwrap();
        let weight = Weight::from_bytes(dtype, 11, 512, bytes.into()).unwrap();
        all.push((format!("{dtype}"), weight.to_f32()));
        for n in [1, 6] {
            let mut y = vec![0.0; n * 11];
            weight.mul(&normal(n * 512, 2), n, &mut y, 0.0);
            all.push((format!("{dtype} times {n} rows"), y));
        }
    }
    let (gate, up) = (normal(1000, 3), normal(1000, 4));
    let mut y = vec![0.0; 1000];
    swiglu::forward(&gate, &up, &mut y);
    all.push(("swiglu".into(), y));
    let tokens: Vec<u64> = (0..8).map(|i| token_key(42, 1, 0, i)).collect();
    let (mut dropped, mut dx) = (vec![0.0; 1000], normal(1000, 10));
    let dropout = Dropout { rate: 0.3, tokens: &tokens, place: 2 };
    dropout.forward(&gate, &mut dropped);
    dropout.backward(&up, &mut dx);
    all.extend([("dropout".into(), dropped), ("dropout back".into(), dx)]);
    let (mut y, mut inv) = (vec![0.0; 1000], vec![0.0; 10]);
    rms_norm::forward(&gate, &normal(100, 5), 1e-5, &mut y, &mut inv);
    all.push(("rms_norm".into(), y));
    let heads = Heads { heads: 4, kv_heads: 2, head_dim: 24, scale: 0.2 };
    let (q, k, v) = (normal(71 * 96, 6), normal(371 * 48, 7), normal(371 * 48, 8));
    let segment = |queries, own| Segment { queries, sees: std::iter::once(0..300).collect(), own };
    let plan = Plan { segments: vec![segment(0..70, 300..370), segment(70..71, 370..371)] };
    let (mut out, mut lse) = (vec![0.0; 71 * 96], vec![0.0; 71 * 4]);
    attention::forward(&q, &k, &v, &plan, heads, &mut out, &mut lse);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let saved = Saved { q: &q, k: &k, v: &v, out: &out, lse: &lse };
    attention::backward(&normal(q.len(), 9), saved, &plan, heads, &mut dq, &mut dk, &mut dv);
    all.extend([("out".into(), out), ("lse".into(), lse), ("dq".into(), dq), ("dk".into(), dk), ("dv".into(), dv)]);
    all
}

#[test]
fn every_level_gives_the_same_bits() {
    let best = level();
    let right = results();
    for lower in [Level::Avx2, Level::Plain] {
        if limit(lower) == best {
            continue;
        }
        assert_eq!(level(), lower);
        for ((name, ours), (_, right)) in results().iter().zip(&right) {
            assert!(
                ours.iter().zip(right).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{name} differs between {lower:?} and {best:?}"
            );
        }
    }
}
