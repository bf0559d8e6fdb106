//! What the tests of the ops share: random values, the error measure, the oracle's tensors.

use candle_core::{Device, Tensor, Var, backprop::GradStore};

use crate::rng::Rng;

/// `n` standard normal values.
pub fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// `|a - b| / |b|` in the Euclidean norm; infinite where a value is not finite or the lengths differ.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() || a.iter().chain(b).any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let size: f64 = b.iter().map(|v| f64::from(*v).powi(2)).sum();
    let wrong: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    if wrong == 0.0 { 0.0 } else { (wrong / size).sqrt() }
}

/// Runs `f` in a pool of `count` threads.
pub fn threads<T: Send>(count: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap().install(f)
}

/// A constant of the oracle. It computes in f64, so that what differs is our own rounding.
pub fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    let wide: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
    Tensor::from_vec(wide, shape, &Device::Cpu).unwrap()
}

/// A leaf of the oracle that gets a gradient.
pub fn var(values: &[f32], shape: &[usize]) -> Var {
    Var::from_tensor(&tensor(values, shape)).unwrap()
}

/// The values of a tensor of the oracle.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    let flat: Vec<f64> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    flat.iter().map(|v| *v as f32).collect()
}

/// The gradients of `sum(y * dy)`.
pub fn gradients(y: &Tensor, dy: &[f32]) -> GradStore {
    (y * tensor(dy, y.dims())).unwrap().sum_all().unwrap().backward().unwrap()
}

/// The gradient of one leaf.
pub fn gradient(store: &GradStore, var: &Var) -> Vec<f32> {
    values(store.get(var).expect("the oracle's graph lost a leaf"))
}
