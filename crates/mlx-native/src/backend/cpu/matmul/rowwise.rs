//! Few rows of x as blocks of 256 values need them that are added up weight row by weight row: see [`ByRow`](super::simd::ByRow).
//!
//! A block is 64 bytes that hold some values each, its *digits* or *fields*. Number n of all bytes is multiplied with vector n of x, so that each of the sixteen
//! dwords adds up in integers what its four bytes hold. These values of x have one scale, and they are fewer than 32: 8 bits are at least as exact as elsewhere.

/// Values of a block.
pub(super) const VALUES: usize = 256;

/// How few rows of x are prepared for a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Rowwise {
    /// [`Digits`], for TQ1_0.
    Ternary,
    /// [`Fields`] with [`Sums::TWO_BITS`], for Q2_K.
    TwoBits,
    /// [`Fields`] with [`Sums::THREE_BITS`], for Q3_K.
    ThreeBits,
}

impl Rowwise {
    /// Bytes of x for a block.
    pub(super) const BYTES: usize = {
        assert!(size_of::<Digits>() == size_of::<Fields>());
        size_of::<Digits>()
    };

    /// Whether products of m rows are added up so. This is an order of its own: with `batch_invariant` all products have it or none, all of TQ1_0, where one to
    /// three rows take half the time, none of the others, of which one row alone gains, a tenth.
    pub(super) fn takes(self, m: usize, batch_invariant: bool) -> bool {
        match self {
            Rowwise::Ternary => m <= TERNARY_ROWS || batch_invariant,
            Rowwise::TwoBits | Rowwise::ThreeBits => m == 1 && !batch_invariant,
        }
    }
}

/// Rows of x up to which TQ1_0 is faster by row.
const TERNARY_ROWS: usize = 5;

/// x for a block of TQ1_0.
///
/// Digit n of a byte r₀ is what 3·rₙ carries beyond the rest rₙ₊₁ = 3·rₙ mod 256, dₙ = (3·rₙ − rₙ₊₁) / 256. So with whole *factors* cₙ, n < 6, and
/// yₙ = (cₙ + yₙ₋₁) / 3, y₋₁ = 0, the sum Σ cₙ·rₙ is exactly 256·Σ yₙ·dₙ + (y₄ + c₅)·r₅: rests are multiplied, which two additions make of each other, and no
/// digit is ever needed. cₙ = 3·xₙ − yₙ₋₁, rounded, makes yₙ the value xₙ but for a third of cₙ's rounding error, and c₅ is −y₄, rounded.
#[repr(C)]
pub(crate) struct Digits {
    /// Number n is multiplied with the rests rₙ.
    pub factors: [[i8; 64]; 6],
    /// What sums start with: −256·Σ yₙ, as a weight is a digit − 1, and minus what the mean of r₅ adds.
    pub start: [i32; 16],
    /// x's scale / 256.
    pub scale: [f32; 16],
}

impl Digits {
    /// The mean of r₅.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AVX-512 adds up by row"))]
    pub const REST: f32 = 121.5;
}

/// x for a block of 64 bytes of four two-bit fields: bytes 0 to 31 hold values 0 to 127, 32 of them in each field.
#[repr(C)]
pub(crate) struct Fields {
    /// Number n is multiplied with field n of the bytes.
    pub codes: [[i8; 64]; 4],
    /// x's scale, and what a format's kernel has to be multiplied with.
    pub scale: [f32; 16],
    /// Sums of x for each sixteen values, in the order of their scales: lane i has the i-th eight bits of all.
    pub sums: [i8; 64],
    /// What sums of these sums start with.
    pub sums_start: [i32; 16],
    /// The scales of the sums.
    pub sums_scale: [f32; 16],
}

/// What kernels for fields leave to the scales of x.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AVX-512 adds up by row"))]
pub(crate) struct Sums {
    /// What sums of codes have to be multiplied with.
    pub code_factor: f32,
    /// What sums of sums have to be multiplied with.
    pub factor: f32,
    /// What has to be subtracted from the integers that sums are multiplied with.
    pub offset: f32,
}

impl Sums {
    /// Codes come four times as large, minimums sixteen times; they are subtracted.
    pub const TWO_BITS: Sums = Sums { code_factor: 1.0 / 4.0, factor: -1.0 / 16.0, offset: 0.0 };
    /// Codes come sixteen times as large, and scales 256 times; every code is four too large, and scales are stored with 32 more.
    pub const THREE_BITS: Sums = Sums { code_factor: 1.0 / 4096.0, factor: -4.0, offset: 32.0 };
}
