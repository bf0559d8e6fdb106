//! Values of the metadata, and the types of tensors.

/// A metadata value. Arrays keep their element type, also when empty.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// Bytes, because files in the wild hold strings that are no UTF-8; `as_str` checks.
    String(Vec<u8>),
    /// Element type id and elements.
    Array(u32, Vec<Value>),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A tensor's type: the number in the file, with what we know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GgmlType(pub u32);
