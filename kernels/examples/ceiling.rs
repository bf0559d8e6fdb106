//! What this machine reaches: dense products, products with stored weights, and the other ops at the sizes of a
//! SmolLM2-135M training step. `cargo run --release -p retune-kernels --example ceiling`

use std::hint::black_box;
use std::time::Instant;

use retune_kernels::attention::{self, Heads, Plan, Saved, Segment};
use retune_kernels::cross_entropy::{self, Target};
use retune_kernels::dropout::{Dropout, token_key};
use retune_kernels::lora_linear::{LoraGrads, LoraLinear, LoraPair};
use retune_kernels::matmul::{Mat, gemm};
use retune_kernels::rng::Rng;
use retune_kernels::weight::GgmlDType;
use retune_kernels::{DType, Weight, quantize, rms_norm, simd, swiglu};

fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// The best of several runs, in seconds.
fn seconds(mut f: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let (mut best, mut runs) = (f64::INFINITY, 0);
    while runs < 3 || begin.elapsed().as_secs_f64() < 0.5 {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn line(name: &str, operations: usize, bytes: usize, seconds: f64) {
    let per_second = |x: usize| x as f64 / seconds / 1e9;
    println!("{name:<58} {:>9.3} ms {:>8.1} GFLOP/s {:>7.1} GB/s", seconds * 1e3, per_second(operations), per_second(bytes));
}

fn main() {
    println!("{} threads, own code at {:?}", rayon::current_num_threads(), simd::level());
    products();
    weights();
    ops();
}

fn products() {
    for (m, k, n) in [(1264, 576, 1536), (1264, 1536, 576), (341, 576, 49152), (2048, 64, 172), (1264, 576, 16), (16, 1264, 576)]
    {
        let (a, b) = (normal(m * k, 1), normal(k * n, 2));
        let mut out = vec![0.0; m * n];
        let time = seconds(|| gemm(black_box(&mut out), n, 1.0, Mat::new(&a, m, k), Mat::new(&b, n, k).t(), 0.0));
        line(&format!("gemm [{m}, {k}] x [{n}, {k}]^T"), 2 * m * k * n, 4 * (m * k + k * n + m * n), time);
        let time = seconds(|| gemm(black_box(&mut out), n, 1.0, Mat::new(&a, m, k), Mat::new(&b, k, n), 0.0));
        line(&format!("gemm [{m}, {k}] x [{k}, {n}]"), 2 * m * k * n, 4 * (m * k + k * n + m * n), time);
    }
}

fn weights() {
    let (rows, cols) = (1536, 576);
    // A row of Q4_K needs a multiple of 256.
    for (name, dtype, cols) in [
        ("f32", DType::F32, cols),
        ("bf16", DType::BF16, cols),
        ("f16", DType::F16, cols),
        ("q8_0", DType::Quant(GgmlDType::Q8_0), cols),
        ("q4_0", DType::Quant(GgmlDType::Q4_0), cols),
        ("q4_1", DType::Quant(GgmlDType::Q4_1), cols),
        ("q4_K", DType::Quant(GgmlDType::Q4K), 512),
        ("q5_K", DType::Quant(GgmlDType::Q5K), 512),
        ("q6_K", DType::Quant(GgmlDType::Q6K), 512),
    ] {
        let bytes = quantize(dtype, &normal(rows * cols, 1), cols).expect("the shape fits");
        let weight = Weight::from_bytes(dtype, rows, cols, bytes.into()).expect("the bytes fit");
        let time = seconds(|| drop(black_box(weight.to_f32())));
        println!("{name} [{rows}, {cols}] to f32: {:.2} ns a value", time * 1e9 / (rows * cols) as f64);
        for n in [1264, 32, 8, 1] {
            let (x, dy) = (normal(n * cols, 2), normal(n * rows, 3));
            let (mut y, mut dx) = (vec![0.0; n * rows], vec![0.0; n * cols]);
            let time = seconds(|| weight.mul(&x, n, black_box(&mut y), 0.0));
            line(&format!("{name} mul [{n}, {cols}] x [{rows}, {cols}]^T"), 2 * n * rows * cols, weight.size_bytes(), time);
            if n > 1 {
                let time = seconds(|| weight.mul_transposed(&dy, n, black_box(&mut dx), 0.0));
                let name = format!("{name} mul_transposed [{n}, {rows}] x [{rows}, {cols}]");
                line(&name, 2 * n * rows * cols, weight.size_bytes(), time);
            }
        }
    }
}

fn ops() {
    let heads = Heads { heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125 };
    for lengths in [vec![1264], vec![158; 8], vec![2048]] {
        let n: usize = lengths.iter().sum();
        let (q, k, v, dout) = (normal(n * 576, 1), normal(n * 192, 2), normal(n * 192, 3), normal(n * 576, 4));
        let (mut out, mut lse) = (vec![0.0; n * 576], vec![0.0; n * 9]);
        let plan = Plan::packed(&lengths);
        // Two products over the half of the matrix below the diagonal.
        let operations = 2 * 2 * 576 * lengths.iter().map(|n| n * n / 2).sum::<usize>();
        let time = seconds(|| attention::forward(&q, &k, &v, &plan, heads, black_box(&mut out), &mut lse));
        line(&format!("attention forward, {} rows, {n} tokens", lengths.len()), operations, 0, time);
        let saved = Saved { q: &q, k: &k, v: &v, out: &out, lse: &lse };
        let (mut dq, mut dk, mut dv) = (vec![0.0; n * 576], vec![0.0; n * 192], vec![0.0; n * 192]);
        let time = seconds(|| attention::backward(&dout, saved, &plan, heads, black_box(&mut dq), &mut dk, &mut dv));
        line("attention backward", operations * 5 / 2, 0, time);
    }
    let past = 4096;
    let (q, k, v) = (normal(576, 1), normal((past + 1) * 192, 2), normal((past + 1) * 192, 3));
    let plan = Plan { segments: vec![Segment { queries: 0..1, sees: std::iter::once(0..past).collect(), own: past..past + 1 }] };
    let (mut out, mut lse) = (vec![0.0; 576], vec![0.0; 9]);
    let time = seconds(|| attention::forward(&q, &k, &v, &plan, heads, black_box(&mut out), &mut lse));
    line(&format!("attention forward, 1 query, {past} keys"), 4 * 576 * past, 8 * 192 * past, time);

    let n = 1264;
    let (gate, up) = (normal(n * 1536, 1), normal(n * 1536, 2));
    let mut y = vec![0.0; n * 1536];
    let time = seconds(|| swiglu::forward(&gate, &up, black_box(&mut y)));
    line(&format!("swiglu forward [{n}, 1536]"), 0, 12 * n * 1536, time);
    let (mut dgate, mut dup) = (vec![0.0; n * 1536], vec![0.0; n * 1536]);
    let time = seconds(|| swiglu::backward(&y, &gate, &up, black_box(&mut dgate), &mut dup));
    line("swiglu backward", 0, 20 * n * 1536, time);
    let (x, w, mut y, mut inv) = (normal(n * 576, 1), normal(576, 2), vec![0.0; n * 576], vec![0.0; n]);
    let time = seconds(|| rms_norm::forward(&x, &w, 1e-5, black_box(&mut y), &mut inv));
    line(&format!("rms_norm forward [{n}, 576]"), 0, 8 * n * 576, time);

    let tokens: Vec<u64> = (0..n as u64).map(|i| token_key(42, 1, 0, i)).collect();
    let dropout = Dropout { rate: 0.1, tokens: &tokens, place: 0 };
    let time = seconds(|| dropout.forward(&gate, black_box(&mut dup)));
    line("dropout forward [n, 1536]", 0, 8 * n * 1536, time);

    let weight = Weight::from_f32(normal(1536 * 576, 1), 1536, 576);
    let (a, b) = (normal(16 * 576, 2), normal(1536 * 16, 3));
    let pair = LoraPair { a: &a, b: &b, rank: 16, scale: 2.0, dora: None, dropout: None };
    let layer = LoraLinear { weight: &weight, bias: None, lora: Some(pair) };
    let (mut y, mut scratch) = (normal(n * 1536, 4), Vec::new());
    let operations = 2 * n * 576 * 1536;
    let time = seconds(|| layer.forward(&x, n, black_box(&mut y), None, &mut scratch));
    line("lora_linear forward, rank 16 (work of W alone)", operations, 0, time);
    let (mut dx, mut da, mut db) = (vec![0.0; n * 576], vec![0.0; 16 * 576], vec![0.0; 1536 * 16]);
    let time = seconds(|| {
        let grads = LoraGrads { a: &mut da, b: &mut db, magnitude: &mut [], unscaled: &[] };
        layer.backward(&y, &x, n, Some(black_box(&mut dx)), Some(grads), &mut scratch);
    });
    line("lora_linear backward (work of W alone)", operations, 0, time);

    for dtype in [DType::F32, DType::Quant(GgmlDType::Q8_0)] {
        let head = quantize(dtype, &normal(49152 * 576, 1), 576).expect("the shape fits");
        let head = Weight::from_bytes(dtype, 49152, 576, head.into()).expect("the bytes fit");
        let targets: Vec<Target> = (0..682).map(|i| Target { position: i, id: i as u32, weight: 1.0 }).collect();
        let (mut losses, mut dhidden) = (vec![0.0; 682], vec![0.0; n * 576]);
        let time = seconds(|| cross_entropy::forward(&x, &head, &targets, &mut losses, Some(black_box(&mut dhidden))));
        line(&format!("cross_entropy, 682 targets, head {dtype}"), 4 * 682 * 49152 * 576, 0, time);
    }
}
