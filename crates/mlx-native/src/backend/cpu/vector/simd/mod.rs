//! Vectors of f32, once for each instruction set.
//!
//! A value of a [`Simd`] type is the proof that the machine has the set: it is made in one place, the dispatch of [`vector`](super), inside
//! functions that are compiled for the set, and everything here is inlined into them. So arithmetic is safe to call; loads and
//! stores ask for valid pointers.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(super) use neon::Neon;
pub(super) use portable::Portable;

/// Places of the widest vector.
pub(super) const MAX_LANES: usize = 16;

/// An instruction set's vectors of f32.
pub(super) trait Simd: Copy + Send + Sync + 'static {
    /// Places of a vector: 4, 8 or 16.
    const LANES: usize;
    /// Vectors that stay in registers at once.
    const REGISTERS: usize;

    /// A vector.
    type F: Copy;

    /// Asks for the cache line of an address that will be read soon; any address may be named.
    #[inline(always)]
    fn prefetch(self, _p: *const u8) {}
    /// `v` in every place.
    fn splat(self, v: f32) -> Self::F;
    /// The vector at `p`.
    ///
    /// # Safety
    /// `p` is valid for reads of LANES f32; it need not be aligned.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// Puts the vector to `p`.
    ///
    /// # Safety
    /// `p` is valid for writes of LANES f32; it need not be aligned.
    unsafe fn store(self, p: *mut f32, v: Self::F);
    /// LANES f16 at `p`, widened.
    ///
    /// # Safety
    /// `p` is valid for reads of LANES u16; it need not be aligned.
    unsafe fn load_f16(self, p: *const u16) -> Self::F;
    /// Puts the vector to `p` as f16, rounded to nearest, ties to even.
    ///
    /// # Safety
    /// `p` is valid for writes of LANES u16; it need not be aligned.
    unsafe fn store_f16(self, p: *mut u16, v: Self::F);

    /// a + b
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a − b
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c, fused where the set has it.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; b where one is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; b where one is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// 2ⁿ for integral n in −126 ..= 127; any value for other n.
    fn pow2(self, n: Self::F) -> Self::F;
    /// `yes` where a ≥ b, else `no`.
    fn select_ge(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
    /// The sum of all places, always in the same order.
    fn sum(self, a: Self::F) -> f32;
    /// The sum of all places of each of four vectors, always in the same order.
    #[inline(always)]
    fn sum4(self, a: [Self::F; 4]) -> [f32; 4] {
        a.map(|a| self.sum(a))
    }

    /// The vector as an array; places from LANES on are 0.
    #[inline(always)]
    fn to_array(self, a: Self::F) -> [f32; MAX_LANES] {
        let mut array = [0.0; MAX_LANES];
        // SAFETY: LANES ≤ MAX_LANES.
        unsafe { self.store(array.as_mut_ptr(), a) };
        array
    }
    /// The largest place that is not NaN; −∞ where all are.
    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        self.to_array(a)[..Self::LANES].iter().fold(f32::NEG_INFINITY, |best, &v| if v > best { v } else { best })
    }
    /// The first `n` < LANES f32 at `p`, then zeros.
    ///
    /// # Safety
    /// `p` is valid for reads of `n` f32; it need not be aligned.
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> Self::F {
        let mut array = [0.0f32; MAX_LANES];
        // SAFETY: the caller's n < LANES values; the array has MAX_LANES ≥ LANES of them.
        unsafe {
            p.cast::<u8>().copy_to_nonoverlapping(array.as_mut_ptr().cast(), n * 4);
            self.load(array.as_ptr())
        }
    }
    /// Puts the first `n` < LANES places to `p`.
    ///
    /// # Safety
    /// `p` is valid for writes of `n` f32; it need not be aligned.
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: Self::F, n: usize) {
        let array = self.to_array(v);
        // SAFETY: as in `load_n`.
        unsafe { p.cast::<u8>().copy_from_nonoverlapping(array.as_ptr().cast(), n * 4) };
    }
    /// The first `n` < LANES f16 at `p`, widened, then zeros.
    ///
    /// # Safety
    /// `p` is valid for reads of `n` u16; it need not be aligned.
    #[inline(always)]
    unsafe fn load_f16_n(self, p: *const u16, n: usize) -> Self::F {
        let mut array = [0u16; MAX_LANES];
        // SAFETY: as in `load_n`.
        unsafe {
            p.cast::<u8>().copy_to_nonoverlapping(array.as_mut_ptr().cast(), n * 2);
            self.load_f16(array.as_ptr())
        }
    }
    /// Puts the first `n` < LANES places to `p` as f16.
    ///
    /// # Safety
    /// `p` is valid for writes of `n` u16; it need not be aligned.
    #[inline(always)]
    unsafe fn store_f16_n(self, p: *mut u16, v: Self::F, n: usize) {
        let mut array = [0u16; MAX_LANES];
        // SAFETY: as in `load_n`.
        unsafe {
            self.store_f16(array.as_mut_ptr(), v);
            p.cast::<u8>().copy_from_nonoverlapping(array.as_ptr().cast(), n * 2);
        }
    }
}
