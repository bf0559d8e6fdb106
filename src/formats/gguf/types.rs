//! The types of tensors: their numbers, names, blocks and bytes.

use retune_kernels::weight::GgmlDType;

/// A tensor's type: the number in the file, with what we know of it. Every number is allowed: a tensor of an
/// unknown type passes through untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GgmlType(pub u32);

/// (number, name, values a block, bytes a block), from ggml.h and ggml-common.h of July 2026.
///
/// Number 42, Q2_0, is left out on purpose: llama.cpp packs 64 values a block, the fork that its first files
/// come from 128, so that only the file itself tells the size.
const TABLE: [(u32, &str, usize, usize); 34] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

/// Numbers that ggml once used or that have more than one layout: a name for messages, no size.
const NAMED_ONLY: [(u32, &str); 9] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (42, "Q2_0"),
];

impl GgmlType {
    pub const F32: Self = Self(0);
    pub const F16: Self = Self(1);
    pub const Q4_0: Self = Self(2);
    pub const Q4_1: Self = Self(3);
    pub const Q5_0: Self = Self(6);
    pub const Q5_1: Self = Self(7);
    pub const Q8_0: Self = Self(8);
    pub const Q2_K: Self = Self(10);
    pub const Q3_K: Self = Self(11);
    pub const Q4_K: Self = Self(12);
    pub const Q5_K: Self = Self(13);
    pub const Q6_K: Self = Self(14);
    pub const IQ4_NL: Self = Self(20);
    pub const BF16: Self = Self(30);

    /// `Q4_K`, or `type 77` where we know no name.
    pub fn name(self) -> String {
        let known = TABLE.iter().map(|&(id, name, ..)| (id, name)).chain(NAMED_ONLY);
        known.into_iter().find(|&(id, _)| id == self.0).map_or_else(|| format!("type {}", self.0), |(_, name)| name.to_owned())
    }

    /// The type of a name, in any case: `q4_k`, `F16`.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|entry| entry.1.eq_ignore_ascii_case(name)).map(|entry| Self(entry.0))
    }

    /// Values a block and bytes a block; `None` for a type that we do not know.
    pub fn block(self) -> Option<(usize, usize)> {
        TABLE.iter().find(|entry| entry.0 == self.0).map(|&(_, _, values, bytes)| (values, bytes))
    }

    /// Bytes of a tensor of this row-major shape. `None`: an unknown type, a row that is no whole number of
    /// blocks, or more bytes than can be counted.
    pub fn size_bytes(self, shape: &[usize]) -> Option<usize> {
        let (values, bytes) = self.block()?;
        if !shape.last().copied().unwrap_or(1).is_multiple_of(values) {
            return None;
        }
        let elements = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n))?;
        (elements / values).checked_mul(bytes)
    }

    /// The same type as the kernels name it; `None` where they cannot compute with it.
    pub fn dtype(self) -> Option<retune_kernels::DType> {
        use retune_kernels::DType;
        Some(match self.0 {
            0 => DType::F32,
            1 => DType::F16,
            30 => DType::BF16,
            2 => DType::Quant(GgmlDType::Q4_0),
            3 => DType::Quant(GgmlDType::Q4_1),
            6 => DType::Quant(GgmlDType::Q5_0),
            7 => DType::Quant(GgmlDType::Q5_1),
            8 => DType::Quant(GgmlDType::Q8_0),
            10 => DType::Quant(GgmlDType::Q2K),
            11 => DType::Quant(GgmlDType::Q3K),
            12 => DType::Quant(GgmlDType::Q4K),
            13 => DType::Quant(GgmlDType::Q5K),
            14 => DType::Quant(GgmlDType::Q6K),
            15 => DType::Quant(GgmlDType::Q8K),
            _ => return None,
        })
    }

    /// The inverse of `dtype`; `None` for what only lives in memory.
    pub fn from_dtype(dtype: retune_kernels::DType) -> Option<Self> {
        TABLE.iter().map(|entry| Self(entry.0)).find(|ggml_type| ggml_type.dtype() == Some(dtype))
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_q4_k_row_of_256_takes_144_bytes_and_one_of_255_none() {
        assert_eq!(GgmlType::Q4_K.size_bytes(&[3, 256]), Some(3 * 144));
        assert_eq!(GgmlType::Q4_K.size_bytes(&[3, 255]), None);
        assert_eq!(GgmlType::F16.size_bytes(&[5]), Some(10));
        assert_eq!(GgmlType::F32.size_bytes(&[]), Some(4));
        assert_eq!(GgmlType(42).size_bytes(&[64]), None);
        assert_eq!(GgmlType::F32.size_bytes(&[usize::MAX, 2]), None);
    }

    /// candle knows the sizes of its own types; where both have one, they are the same.
    #[test]
    fn sizes_agree_with_candle() {
        let mut compared = 0;
        for (id, name, values, bytes) in TABLE {
            if let Some(retune_kernels::DType::Quant(theirs)) = GgmlType(id).dtype() {
                assert_eq!((theirs.block_size(), theirs.type_size()), (values, bytes), "{name}");
                compared += 1;
            }
        }
        assert_eq!(compared, 11);
    }

    #[test]
    fn names_and_numbers_go_both_ways() {
        for (id, name, ..) in TABLE {
            assert_eq!(GgmlType::from_name(&name.to_lowercase()), Some(GgmlType(id)));
            assert_eq!(GgmlType(id).to_string(), name);
            if let Some(dtype) = GgmlType(id).dtype() {
                assert_eq!(GgmlType::from_dtype(dtype), Some(GgmlType(id)));
            }
        }
        assert_eq!(GgmlType(77).to_string(), "type 77");
    }
}
