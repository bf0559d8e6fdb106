//! An adapter added into its base's GGUF file: W + scale * B A for the tensors that it touches (with DoRA each row brought
//! to its magnitude), all else as it was.

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use rayon::prelude::*;
use retune_kernels::{DType, Weight};
use serde::Serialize;

use super::types;
pub use super::types::MergeType;

use crate::error::{Error, Result};
use crate::formats::gguf::{GgmlType, Gguf, TensorInfo};
use crate::formats::gguf_adapter::GgufPair;

/// What became of one touched tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MergedTensor {
    pub tensor: String,
    /// `Q4_1`
    pub before: String,
    pub after: String,
    /// The type asked for, where rows do not fit its blocks and `after` stands in for it.
    pub instead_of: Option<String>,
    /// `|merged - W| / |W|`: how much the adapter changes.
    pub change: f64,
    /// `|stored - merged| / |merged|`: what storing lost. Where it is not well below `change`, much of the adapter is lost.
    pub error: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MergeReport {
    /// In file order.
    pub tensors: Vec<MergedTensor>,
}

impl MergeReport {
    /// What a user should know, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut fallbacks: Vec<(&str, &str, usize)> = Vec::new();
        for tensor in &self.tensors {
            let Some(asked) = &tensor.instead_of else { continue };
            match fallbacks.iter_mut().find(|(from, to, _)| from == asked && *to == tensor.after) {
                Some(known) => known.2 += 1,
                None => fallbacks.push((asked, &tensor.after, 1)),
            }
        }
        for (asked, after, n) in fallbacks {
            notes.push(format!("{n} tensors are stored as {after}: their rows do not fit the blocks of {asked}"));
        }
        let mean =
            |value: fn(&MergedTensor) -> f64| self.tensors.iter().map(value).sum::<f64>() / self.tensors.len().max(1) as f64;
        let (change, error) = (mean(|t| t.change), mean(|t| t.error));
        if error > change / 4.0 && change > 0.0 {
            notes.push(format!(
                "the adapter changes its weights by {:.2}% and storing them lost {:.2}%: a wider --type (q8_0, f16) keeps more of it",
                100.0 * change,
                100.0 * error
            ));
        }
        notes
    }
}

/// Writes `base` with all pairs added, each as `V = W + scale * B A`, of DoRA `magnitude * V / |V|` row by row, durably to `out`.
///
/// Tensors that no pair touches are the same to the byte and in their places; the metadata is kept as it is, also
/// `general.file_type`, which tells what most of the file was made as and which nothing computes with.
/// With `Keep`, a pair that is all zeros and has no magnitude touches nothing. Errors: a pair that names no tensor of the base, or one of
/// another shape, or twice the same; a type that we cannot compute with; values that are NaN or infinite.
pub fn merge(base: &Gguf, pairs: &[GgufPair], scale: f32, merge_type: MergeType, out: &Path) -> Result<MergeReport> {
    let wrong = |message: String| Error::file(&base.path, message, "merge the adapter into the base that it was trained on");
    if !scale.is_finite() {
        return Err(wrong(format!("cannot take an adapter with the scale {scale}")));
    }
    let problems: Vec<String> = pairs.iter().filter_map(|pair| mismatch(base, pair)).collect();
    if !problems.is_empty() {
        return Err(wrong(format!("does not fit the adapter: {}", problems.join("; "))));
    }
    let mut touching: HashMap<&str, &GgufPair> = HashMap::new();
    for pair in pairs {
        if touching.insert(&pair.tensor, pair).is_some() {
            return Err(wrong(format!("cannot take an adapter with two pairs for {}", pair.tensor)));
        }
    }
    let report = RefCell::new(MergeReport::default());
    let (writer, mut sources) = base.copy();
    for (source, info) in sources.iter_mut().zip(&base.tensors) {
        let Some(&pair) = touching.get(info.name.as_str()) else { continue };
        let zero = |values: &[f32]| values.iter().all(|v| *v == 0.0);
        let unchanged = pair.magnitude.is_none() && (zero(&pair.a) || zero(&pair.b));
        if unchanged && merge_type == MergeType::Keep {
            continue;
        }
        let plan = plan(info, merge_type).map_err(|problem| wrong(format!("cannot be merged: {}: {problem}", info.name)))?;
        source.ggml_type = plan.after;
        source.size_bytes = None;
        source.padding = None;
        let (report, wrong) = (&report, &wrong);
        source.bytes = Box::new(move || {
            let (bytes, merged) =
                merge_tensor(base, info, pair, scale, &plan).map_err(|problem| wrong(format!("{}: {problem}", info.name)))?;
            report.borrow_mut().tensors.push(merged);
            Ok(bytes)
        });
    }
    writer.write(out, sources)?;
    Ok(report.into_inner())
}

/// Writes `base` with every matrix of its blocks stored as `merge_type`, and nothing added: what an adapter can be put on where the
/// base's own type makes its server round activations to 8 bits. All else is the same to the byte, as for [`merge`].
pub fn store_as(base: &Gguf, merge_type: MergeType, out: &Path) -> Result<MergeReport> {
    let nothing = |info: &TensorInfo| match *info.shape.as_slice() {
        [rows, cols] if info.name.starts_with("blk.") => {
            let (tensor, a, b) = (info.name.clone(), vec![0.0; cols], vec![0.0; rows]);
            Some(GgufPair { tensor, rank: 1, a, b, magnitude: None })
        }
        _ => None,
    };
    let pairs: Vec<GgufPair> = base.tensors.iter().filter_map(nothing).collect();
    merge(base, &pairs, 1.0, merge_type, out)
}

/// What does not fit between a pair and the base.
fn mismatch(base: &Gguf, pair: &GgufPair) -> Option<String> {
    let GgufPair { tensor, rank, a, b, magnitude } = pair;
    let magnitude = magnitude.as_deref();
    let Some(info) = base.tensor(tensor) else { return Some(format!("there is no tensor {tensor}")) };
    let &[rows, cols] = info.shape.as_slice() else {
        return Some(format!("{tensor} has shape {:?}, expected a matrix", info.shape));
    };
    if *rank == 0 || a.len() != rank * cols || b.len() != rows * rank {
        let per_rank = |n: usize| n / (*rank).max(1);
        return Some(format!(
            "{tensor} is [{rows}, {cols}], the adapter's pair (rank {rank}) is for [{}, {}]",
            per_rank(b.len()),
            per_rank(a.len())
        ));
    }
    if let Some(magnitude) = magnitude
        && magnitude.len() != rows
    {
        return Some(format!("{tensor} has {rows} rows, DoRA's magnitude is for {}", magnitude.len()));
    }
    let broken = a.iter().chain(b).chain(magnitude.unwrap_or_default()).any(|v| !v.is_finite());
    broken.then(|| format!("the pair of {tensor} holds NaN or infinity"))
}

/// How a tensor is read and stored.
struct Plan {
    before: DType,
    after: GgmlType,
    after_dtype: DType,
    instead_of: Option<GgmlType>,
}

fn plan(info: &TensorInfo, merge_type: MergeType) -> Result<Plan, String> {
    let unsupported = |ggml_type: GgmlType| format!("retune cannot compute with {ggml_type}; take the base in another type");
    let before = info.ggml_type.dtype().ok_or_else(|| unsupported(info.ggml_type))?;
    let asked = merge_type.of(info.ggml_type).ok_or_else(|| format!("{merge_type:?} is no type that GGUF has"))?;
    let cols = info.shape.last().copied().unwrap_or(1);
    let after = types::fitting(asked, cols);
    let after_dtype = after.dtype().ok_or_else(|| unsupported(after))?;
    Ok(Plan { before, after, after_dtype, instead_of: (after != asked).then_some(asked) })
}

fn merge_tensor(
    base: &Gguf,
    info: &TensorInfo,
    pair: &GgufPair,
    scale: f32,
    plan: &Plan,
) -> Result<(Bytes, MergedTensor), String> {
    let (rows, cols) = (info.shape[0], info.shape[1]);
    let mut values = Weight::from_bytes(plan.before, rows, cols, base.data(info))?.to_f32(); // [rows, cols]
    let (weight_squares, change_squares) = add_product(&mut values, pair, scale, cols);
    if let Some(at) = values.par_iter().position_first(|v| !v.is_finite()) {
        return Err(format!("the sum of base and adapter is {} in row {}", values[at], at / cols));
    }
    let bytes = Bytes::from(retune_kernels::quantize(plan.after_dtype, &values, cols)?);
    let stored = Weight::from_bytes(plan.after_dtype, rows, cols, bytes.clone())?.to_f32();
    let ratio = |part: f64, whole: f64| if whole > 0.0 { (part / whole).sqrt() } else { 0.0 };
    let merged = MergedTensor {
        tensor: info.name.clone(),
        before: info.ggml_type.name(),
        after: plan.after.name(),
        instead_of: plan.instead_of.map(GgmlType::name),
        change: ratio(change_squares, weight_squares),
        error: ratio(squares(values.par_iter().zip(&stored).map(|(v, s)| v - s)), squares(values.par_iter().copied())),
    };
    Ok((bytes, merged))
}

/// `values += scale * B A`, row by row, of DoRA then brought to their magnitude; the squared norms of what was there and of
/// what became different. A row's sum runs over the rank in its order, so that the number of threads changes nothing.
fn add_product(values: &mut [f32], pair: &GgufPair, scale: f32, cols: usize) -> (f64, f64) {
    let rows = values.par_chunks_mut(cols).zip(pair.b.par_chunks(pair.rank)).enumerate();
    let norms: Vec<(f64, f64)> = rows
        .map_init(
            || vec![0.0f32; cols],
            |delta, (row_number, (row, b))| {
                delta.fill(0.0);
                for (b, a) in b.iter().zip(pair.a.chunks_exact(cols)) {
                    delta.iter_mut().zip(a).for_each(|(d, a)| *d += b * a);
                }
                delta.iter_mut().for_each(|d| *d *= scale);
                if let Some(magnitude) = &pair.magnitude {
                    // What is added then: f (W + D) - W = f D + (f - 1) W.
                    let length = row.iter().zip(delta.iter()).map(|(v, d)| f64::from(v + d).powi(2)).sum::<f64>().sqrt();
                    let f = if length > 0.0 { (f64::from(magnitude[row_number]) / length) as f32 } else { 1.0 };
                    delta.iter_mut().zip(row.iter()).for_each(|(d, v)| *d = f * *d + (f - 1.0) * v);
                }
                let mut norms = (0.0, 0.0);
                for (v, change) in row.iter_mut().zip(delta.iter()) {
                    norms.0 += f64::from(*v) * f64::from(*v);
                    norms.1 += f64::from(*change) * f64::from(*change);
                    *v += change;
                }
                norms
            },
        )
        .collect();
    norms.iter().fold((0.0, 0.0), |sum, n| (sum.0 + n.0, sum.1 + n.1))
}

fn squares(values: impl ParallelIterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v) * f64::from(v)).sum()
}
