//! Types of [`Simd`](super::Simd) as plain bytes, for sets whose vectors have nothing better: macros that an implementation expands.

/// [`Simd::HalfBytes`] as words of bytes: one word for each row and half.
macro_rules! half_bytes_as_words {
    () => {
        type HalfBytes = [[u64; 2]; 4];

        #[inline(always)]
        unsafe fn half_bytes(rows: [[u64; 2]; 4]) -> [[u64; 2]; 4] {
            let even = |word: u64| {
                let word = word & 0x00FF_00FF_00FF_00FF;
                let word = (word | (word >> 8)) & 0x0000_FFFF_0000_FFFF;
                (word | (word >> 16)) & 0xFFFF_FFFF
            };
            rows.map(|[low, high]| [even(low) | (even(high) << 32), even(low >> 8) | (even(high >> 8) << 32)])
        }
        #[inline(always)]
        unsafe fn half_nibbles(v: [[u64; 2]; 4]) -> ([[u64; 2]; 4], [[u64; 2]; 4]) {
            const LOW: u64 = 0x0F0F_0F0F_0F0F_0F0F;
            (v.map(|halves| halves.map(|word| word & LOW)), v.map(|halves| halves.map(|word| (word >> 4) & LOW)))
        }
        #[inline(always)]
        unsafe fn half_u8(v: [[u64; 2]; 4], s: usize, half: usize) -> Self::Floats {
            Self::u8_rows(v.map(|halves| (halves[half] >> (8 * Self::LANES * s)) as u32))
        }
        #[inline(always)]
        unsafe fn half_i8(v: [[u64; 2]; 4], s: usize, half: usize) -> Self::Floats {
            Self::i8_rows(v.map(|halves| (halves[half] >> (8 * Self::LANES * s)) as u32))
        }
        #[inline(always)]
        unsafe fn half_e4m3(v: [[u64; 2]; 4], s: usize, half: usize) -> Self::Floats {
            let mut bytes = [0; 4 * super::MAX_LANES];
            for i in 0..Self::LANES {
                for r in 0..4 {
                    bytes[4 * i + r] = (v[r][half] >> (8 * (Self::LANES * s + i))) as u8;
                }
            }
            Self::load_e4m3(bytes.as_ptr())
        }
    };
}

/// [`Simd::Levels`] as a byte a value.
macro_rules! levels_as_bytes {
    () => {
        type Levels = [u8; 256];

        #[inline(always)]
        unsafe fn levels2<const POINTS: usize>(table: &[u16; POINTS], indices: &[u64; 8]) -> [u8; 256] {
            let mut levels = [0; 256];
            for (i, levels) in levels.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let index = (indices[i / 4] >> (16 * (i % 4))) as usize % POINTS;
                *levels = Self::expand::<2>(table[index] as u64).to_le_bytes();
            }
            levels
        }
        #[inline(always)]
        unsafe fn levels4<const POINTS: usize>(table: &[u32; POINTS], indices: &[u64; 8]) -> [u8; 256] {
            let mut levels = [0; 256];
            for (i, levels) in levels.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let index = (indices[i / 4] >> (16 * (i % 4))) as usize % POINTS;
                *levels = Self::expand::<4>(table[index] as u64).to_le_bytes();
            }
            levels
        }
        #[inline(always)]
        unsafe fn levels3<const POINTS: usize>(table: &[u16; POINTS], indices: &[u64; 16]) -> [u8; 256] {
            let mut levels = [0; 256];
            for (i, levels) in levels.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let pair = indices[i / 2] >> (32 * (i % 2));
                let (low, high) = (pair as usize % POINTS, (pair >> 16) as usize % POINTS);
                let points = table[low] as u64 | ((table[high] as u64) << 12);
                *levels = Self::expand::<3>(points).to_le_bytes();
            }
            levels
        }
        #[inline(always)]
        unsafe fn digits(p: *const u8) -> [u8; 256] {
            let (qs, qh) = (p.cast::<[u8; 48]>().read_unaligned(), p.add(48).cast::<[u8; 4]>().read_unaligned());
            // Digit n of a byte is what the product with 3ⁿ⁺¹ carries, the digits before dropped: see the format's definition.
            let digit = |byte: u8, power: u8| ((byte.wrapping_mul(power) as u16 * 3) >> 8) as u8;
            let mut levels = [0; 256];
            for (n, power) in [1u8, 3, 9, 27, 81].into_iter().enumerate() {
                for l in 0..32 {
                    levels[32 * n + l] = digit(qs[l], power);
                }
                for l in 0..16 {
                    levels[160 + 16 * n + l] = digit(qs[32 + l], power);
                }
                if n < 4 {
                    for l in 0..4 {
                        levels[240 + 4 * n + l] = digit(qh[l], power);
                    }
                }
            }
            levels
        }
        #[inline(always)]
        unsafe fn levels_at(levels: &[u8; 256], _kind: super::Levels, s: usize, half: usize) -> Self::Bytes {
            Self::block_halves(levels.as_ptr().add(s * Self::LANES % 8 * 32))[half]
        }
    };
}

pub(super) use {half_bytes_as_words, levels_as_bytes};
