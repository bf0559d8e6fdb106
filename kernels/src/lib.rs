//! The differentiable operations of retune's trainer.
//!
//! Each op is one file: `forward`, `backward`, what is saved between them, and tests against a
//! plain reference made of candle's differentiable ops (the oracle) and finite differences.
//! Everything here works on `f32` slices in row-major order; `[a, b]` in a doc comment is a shape.
//! Sums run in a fixed order, whatever the number of threads: one seed gives one result.

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod dora;
pub mod dropout;
pub mod lora_linear;
pub mod matmul;
pub mod rms_norm;
pub mod rng;
pub mod rope;
pub mod simd;
pub mod swiglu;
pub mod weight;

mod few_rows;
mod quant;
mod scratch;
#[cfg(test)]
mod testing;
mod vector;

pub use quant::quantize;
pub use weight::{DType, Weight};
