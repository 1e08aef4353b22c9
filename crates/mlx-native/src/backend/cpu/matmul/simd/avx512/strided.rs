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

    /// The same of two vectors, transposed: dword l of lane s becomes dword s of lane l.
    pub(super) const DWORDS: &'static [u8; 64] = &{
        let mut index = [0; 64];
        let mut t = 0;
        while t < 64 {
            index[t] = Self::place(t % 16 / 4, t / 16 * 4 + t % 4, 16) as u8;
            t += 1;
        }
        index
    };

    /// A word of each lane.
    pub(super) const WORDS: &'static [u16; 32] = &{
        let mut index = [0; 32];
        let mut i = 0;
        while i < 4 {
            index[i] = (Self::place(i, 0, 2) / 2) as u16;
            i += 1;
        }
        index
    };

    /// The same in one vector, where it has them all.
    pub(super) const WORDS_OF_ONE: &'static [u16; 32] = &{
        let mut index = [0; 32];
        let mut i = 0;
        while i < 4 {
            index[i] = (Self::reach(i, 0) / 2) as u16;
            i += 1;
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

    /// The two vectors that have `bytes` bytes of each lane of the blocks at `p`.
    #[inline(always)]
    pub(super) unsafe fn both(p: *const u8, bytes: usize) -> [__m512i; 2] {
        [Avx512::load(p.add(Self::first(bytes))), Avx512::load(p.add(Self::second(bytes)))]
    }
}
