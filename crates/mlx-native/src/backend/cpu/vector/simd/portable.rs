//! Arrays, which the compiler puts into whatever vectors the architecture's baseline has.

use std::array::from_fn;

use super::Simd;

/// Needs nothing.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type F8 = [f32; 8];

/// An f16's value. Its exponent and fraction read as an f32's are 2¹¹² times too small, subnormal ones included.
#[inline(always)]
fn widen(half: u16) -> f32 {
    let half = u32::from(half);
    let scaled = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    let special = if half & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | (half & 0x8000) << 16)
}

impl Simd for Portable {
    const LANES: usize = 8;
    const REGISTERS: usize = 8;
    type F = F8;

    #[inline(always)]
    fn splat(self, v: f32) -> F8 {
        [v; 8]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> F8 {
        // SAFETY: the caller's 8 values.
        unsafe { p.cast::<F8>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: F8) {
        // SAFETY: the caller's 8 values.
        unsafe { p.cast::<F8>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> F8 {
        // SAFETY: the caller's 8 values.
        unsafe { p.cast::<[u16; 8]>().read_unaligned() }.map(widen)
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: F8) {
        let halves = v.map(|v| half::f16::from_f32(v).to_bits());
        // SAFETY: the caller's 8 values.
        unsafe { p.cast::<[u16; 8]>().write_unaligned(halves) }
    }
    #[inline(always)]
    fn add(self, a: F8, b: F8) -> F8 {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: F8, b: F8) -> F8 {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: F8, b: F8) -> F8 {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: F8, b: F8) -> F8 {
        from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: F8, b: F8, c: F8) -> F8 {
        // Not fused: without the instruction that is a call of a library function.
        from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: F8, b: F8) -> F8 {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: F8, b: F8) -> F8 {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn round(self, a: F8) -> F8 {
        // Adding 1.5 · 2²³ pushes the fraction out of an f32, rounded to even; larger values are integers.
        const MAGIC: f32 = 12_582_912.0;
        from_fn(|i| if a[i].abs() < 4_194_304.0 { (a[i] + MAGIC) - MAGIC } else { a[i] })
    }
    #[inline(always)]
    fn pow2(self, n: F8) -> F8 {
        from_fn(|i| f32::from_bits(((n[i] as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    fn select_ge(self, a: F8, b: F8, yes: F8, no: F8) -> F8 {
        from_fn(|i| if a[i] >= b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn sum(self, a: F8) -> f32 {
        let quad: [f32; 4] = from_fn(|i| a[i] + a[i + 4]);
        (quad[0] + quad[2]) + (quad[1] + quad[3])
    }
}
