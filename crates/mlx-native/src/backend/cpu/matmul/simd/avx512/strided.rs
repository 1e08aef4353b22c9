//! Parts of blocks that lie one behind the other, at any stride.
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::x86_64::*;

use super::super::Simd;
use super::Avx512;

/// Where the parts of four blocks of STRIDE bytes at OFFSET lie in two vectors, whose places are chosen so that different parts of a block share loads: the
/// compiler loads the same place once.
pub(super) struct Strided<const STRIDE: usize, const OFFSET: usize>;

impl<const STRIDE: usize, const OFFSET: usize> Strided<STRIDE, OFFSET> {
    /// Bytes of a part's lane 0 to the end of lane `lane`.
    const fn reach(lane: usize, bytes: usize) -> usize {
        lane * STRIDE + OFFSET + bytes
    }

    /// Whether a vector from the first byte of the blocks on has lanes 0 to 2 of 16 bytes.
    pub(super) const THREE: bool = Self::reach(2, 16) <= 64;

    /// Where a vector begins that has lanes 0 and 1 of so many bytes: at the first block's first byte if possible.
    const fn first(bytes: usize) -> usize {
        Self::reach(1, bytes).saturating_sub(64)
    }

    /// Where a vector begins that has lanes 2 and 3 of so many bytes, and nothing behind the last block: 64 bytes on if possible.
    const fn second(bytes: usize) -> usize {
        let last = 4 * STRIDE - 64;
        if last >= 64 && Self::reach(2, 0) >= 64 && Self::reach(3, bytes) <= 128 { 64 } else { last }
    }

    /// Byte `byte` of `lane`, of parts of `bytes` bytes, in the two vectors.
    const fn place(lane: usize, byte: usize, bytes: usize) -> usize {
        let at = Self::reach(lane, byte);
        if lane < 2 { at - Self::first(bytes) } else { 64 + at - Self::second(bytes) }
    }

    /// Sixteen bytes of each lane in one vector with [`THREE`](Self::THREE), where lane 3 comes from elsewhere, otherwise in two.
    pub(super) const BYTES: &'static [u8; 64] = &{
        let mut index = [0; 64];
        let mut t = 0;
        while t < 64 {
            index[t] =
                if Self::THREE { Self::reach(t / 16, t % 16) % 64 } else { Self::place(t / 16, t % 16, 16) } as u8;
            t += 1;
        }
        index
    };

    /// Whether a vector from the first byte of the blocks on has a word of each lane.
    const ONE: bool = Self::reach(3, 2) <= 64;

    /// For each byte of words [lane][row], where it lies in the vector of its row that has the lane.
    const WORDS: &'static [u8; 64] = &{
        let mut index = [0; 64];
        let mut t = 0;
        while t < 32 {
            let (lane, byte) = (t / 8, t % 2);
            index[t] = (if Self::ONE { Self::reach(lane, byte) } else { Self::place(lane, byte, 2) } % 64) as u8;
            t += 1;
        }
        index
    };

    /// For each of sixteen bytes of a lane, which byte of its word has its bit.
    pub(super) const BITS: &'static [u8; 64] = &{
        let mut index = [0; 64];
        let mut t = 0;
        while t < 64 {
            index[t] = Self::place(t / 16, t % 16 / 8, 2) as u8;
            t += 1;
        }
        index
    };

    /// The words [lane][row] of four rows. Every row's go straight to their places: that takes fewer shuffles than bringing together what each row has.
    #[inline(always)]
    pub(super) unsafe fn words(p: [*const u8; 4]) -> __m256i {
        let index = Avx512::load(Self::WORDS.as_ptr());
        let mut words = _mm512_setzero_si512();
        for (row, p) in p.into_iter().enumerate() {
            let places = 0x0303_0303 << (2 * row);
            if Self::ONE {
                words = _mm512_mask_permutexvar_epi8(words, places, index, Avx512::load(p));
            } else {
                let [first, second] = Self::both(p, 2);
                words = _mm512_mask_permutexvar_epi8(words, places & 0x0000_FFFF, index, first);
                words = _mm512_mask_permutexvar_epi8(words, places & 0xFFFF_0000, index, second);
            }
        }
        _mm512_castsi512_si256(words)
    }

    /// The two vectors that have `bytes` bytes of each lane of the blocks at `p`.
    #[inline(always)]
    pub(super) unsafe fn both(p: *const u8, bytes: usize) -> [__m512i; 2] {
        [Avx512::load(p.add(Self::first(bytes))), Avx512::load(p.add(Self::second(bytes)))]
    }
}
