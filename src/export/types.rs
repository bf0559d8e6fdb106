//! How merged and converted weights are stored.

use std::fmt;
use std::str::FromStr;

use retune_kernels::DType;

use crate::error::Error;
use crate::formats::gguf::GgmlType;

/// How the touched tensors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeType {
    /// Each as it was.
    Keep,
    To(DType),
}

/// How the matrices of a converted base are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvertType {
    /// In the folder's own 16 bits, or f16 where it has others.
    Auto,
    To(GgmlType),
}

/// What `--type` takes beside `keep` and `auto`.
const NAMES: [(&str, GgmlType); 13] = [
    ("f32", GgmlType::F32),
    ("f16", GgmlType::F16),
    ("bf16", GgmlType::BF16),
    ("q8_0", GgmlType::Q8_0),
    ("q6_k", GgmlType::Q6_K),
    ("q5_k", GgmlType::Q5_K),
    ("q4_k", GgmlType::Q4_K),
    ("q3_k", GgmlType::Q3_K),
    ("q2_k", GgmlType::Q2_K),
    ("q5_1", GgmlType::Q5_1),
    ("q5_0", GgmlType::Q5_0),
    ("q4_1", GgmlType::Q4_1),
    ("q4_0", GgmlType::Q4_0),
];

impl fmt::Display for MergeType {
    /// As `--type` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::To(dtype) => match NAMES.iter().find(|(_, known)| known.dtype() == Some(*dtype)) {
                Some((name, _)) => f.write_str(name),
                None => write!(f, "{dtype:?}"),
            },
        }
    }
}

impl FromStr for MergeType {
    type Err = Error;

    /// In any case.
    fn from_str(text: &str) -> Result<Self, Error> {
        if text.eq_ignore_ascii_case("keep") {
            return Ok(Self::Keep);
        }
        named(text).and_then(GgmlType::dtype).map(Self::To).ok_or_else(|| unknown(text, "keep"))
    }
}

impl FromStr for ConvertType {
    type Err = Error;

    /// In any case.
    fn from_str(text: &str) -> Result<Self, Error> {
        if text.eq_ignore_ascii_case("auto") {
            return Ok(Self::Auto);
        }
        named(text).map(Self::To).ok_or_else(|| unknown(text, "auto"))
    }
}

fn named(text: &str) -> Option<GgmlType> {
    NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, ggml_type)| *ggml_type)
}

fn unknown(text: &str, first: &str) -> Error {
    let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
    Error::usage(format!("--type {text} is not known"), format!("use {first}, {}", names.join(", ")))
}

impl MergeType {
    /// How a folder is converted that is then merged into: all of it in the type asked for where that is a float, else as the
    /// folder has it.
    pub fn of_base(self) -> ConvertType {
        match self {
            Self::To(dtype @ (DType::F32 | DType::F16 | DType::BF16)) => {
                GgmlType::from_dtype(dtype).map_or(ConvertType::Auto, ConvertType::To)
            }
            _ => ConvertType::Auto,
        }
    }

    /// The type asked for, for a tensor that is stored as `now`.
    pub(super) fn of(self, now: GgmlType) -> Option<GgmlType> {
        match self {
            Self::Keep => Some(now),
            Self::To(dtype) => GgmlType::from_dtype(dtype),
        }
    }
}

/// `asked`, or what llama-quantize takes in its place where a row of `cols` values is no whole number of its blocks
/// (llama.cpp, src/llama-quant.cpp, `tensor_type_fallback`).
pub(super) fn fitting(asked: GgmlType, cols: usize) -> GgmlType {
    let fits = |ggml_type: GgmlType| ggml_type.block().is_some_and(|(values, _)| cols.is_multiple_of(values));
    if fits(asked) {
        return asked;
    }
    let smaller = match asked {
        GgmlType::Q2_K | GgmlType::Q3_K => GgmlType::Q4_0,
        GgmlType::Q4_K => GgmlType::Q5_0,
        GgmlType::Q5_K => GgmlType::Q5_1,
        GgmlType::Q6_K => GgmlType::Q8_0,
        other => other,
    };
    if fits(smaller) { smaller } else { GgmlType::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_do_not_fit_fall_back_as_in_llama_quantize() {
        for (asked, cols, expected) in [
            (GgmlType::Q4_K, 512, GgmlType::Q4_K),
            (GgmlType::Q4_K, 576, GgmlType::Q5_0),
            (GgmlType::Q5_K, 576, GgmlType::Q5_1),
            (GgmlType::Q6_K, 576, GgmlType::Q8_0),
            (GgmlType::Q3_K, 576, GgmlType::Q4_0),
            (GgmlType::Q4_K, 172, GgmlType::F16),
            (GgmlType::Q8_0, 172, GgmlType::F16),
            (GgmlType::F32, 172, GgmlType::F32),
        ] {
            assert_eq!(fitting(asked, cols), expected, "{asked} with {cols}");
        }
    }

    #[test]
    fn a_conversion_has_auto_where_a_merge_has_keep() {
        assert_eq!("AUTO".parse::<ConvertType>().unwrap(), ConvertType::Auto);
        assert_eq!("q8_0".parse::<ConvertType>().unwrap(), ConvertType::To(GgmlType::Q8_0));
        assert!("keep".parse::<ConvertType>().unwrap_err().hint().unwrap().starts_with("use auto, f32"));
        assert!("auto".parse::<MergeType>().is_err());
    }

    #[test]
    fn names_are_read_in_any_case_and_unknown_ones_are_a_wrong_use() {
        assert_eq!("Keep".parse::<MergeType>().unwrap(), MergeType::Keep);
        assert_eq!("bf16".parse::<MergeType>().unwrap(), MergeType::To(DType::BF16));
        for (name, ggml_type) in NAMES {
            let asked = name.to_uppercase().parse::<MergeType>().unwrap();
            assert_eq!((asked.of(GgmlType(99)), asked.to_string().as_str()), (Some(ggml_type), name));
        }
        let error = "q9".parse::<MergeType>().unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit_code()), ("--type q9 is not known", 2));
        assert!(error.hint().unwrap().contains("q4_k"));
    }
}
