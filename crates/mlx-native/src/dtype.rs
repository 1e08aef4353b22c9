//! Element types of buffers.

use std::fmt;

/// The element type of a buffer.
///
/// Quantized weights lie in buffers as raw bytes ([`DType::U8`], or [`DType::U32`] for MLX packed words); what
/// the bytes mean is said by the operation's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Unsigned byte; also raw quantized blocks.
    U8,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 32-bit integer; also MLX packed words and expert ids.
    U32,
    /// Signed 32-bit integer.
    I32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size_of(self) -> usize {
        match self {
            DType::F32 | DType::U32 | DType::I32 => 4,
            DType::F16 | DType::BF16 | DType::U16 => 2,
            DType::U8 => 1,
        }
    }

    /// The lower-case name: `"f32"`, `"bf16"`, …
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U8 => "u8",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::I32 => "i32",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
