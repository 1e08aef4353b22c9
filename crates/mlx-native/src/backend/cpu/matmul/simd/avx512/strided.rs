//! Parts of blocks that lie one behind the other, at any stride.
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::{Simd, four};
use super::Avx512;

/// Where the parts of four blocks of STRIDE bytes at OFFSET lie in two vectors, whose places are chosen so that different parts of a block share loads: the
/// compiler loads the same place once.
pub(super) struct Strided<const STRIDE: usize, const OFFSET: usize>;

impl<const STRIDE: usize, const OFFSET: usize> Strided<STRIDE, OFFSET> {
    /// Bytes of a part's lane 0 to the end of lane `lane`.
    const fn reach(lane: usize, bytes: usize) -> usize {
        lane * STRIDE + OFFSET + bytes
    }

    /// Whether one vector has lanes 0 to 2 of 16 bytes: it begins at [`AT`](Self::AT).
    pub(super) const THREE: bool = Self::reach(2, 16) - Self::reach(0, 0) <= 64;

    /// Where a vector begins that has lanes 0 to 2 of 16 bytes: at the first block's first byte if possible.
    pub(super) const AT: usize = Self::reach(2, 16).saturating_sub(64);

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
            index[t] = if Self::THREE {
                (Self::reach(t / 16, t % 16) - Self::AT) % 64
            } else {
                Self::place(t / 16, t % 16, 16)
            } as u8;
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

    /// For each lane the first sixteen bits of a dword, and the last sixteen. Put together in general registers, as all vector units are busy: the compiler would
    /// shuffle them together.
    #[inline(always)]
    pub(super) unsafe fn masks(p: *const u8) -> [u64; 2] {
        let (first, second);
        asm!(
            "movzx {first:e}, word ptr [{p} + {at} + 3 * {stride}]",
            "movzx {second:e}, word ptr [{p} + {at} + 3 * {stride} + 2]",
            "shl {first}, 16",
            "shl {second}, 16",
            "mov {first:x}, word ptr [{p} + {at} + 2 * {stride}]",
            "mov {second:x}, word ptr [{p} + {at} + 2 * {stride} + 2]",
            "shl {first}, 16",
            "shl {second}, 16",
            "mov {first:x}, word ptr [{p} + {at} + {stride}]",
            "mov {second:x}, word ptr [{p} + {at} + {stride} + 2]",
            "shl {first}, 16",
            "shl {second}, 16",
            "mov {first:x}, word ptr [{p} + {at}]",
            "mov {second:x}, word ptr [{p} + {at} + 2]",
            p = in(reg) p,
            at = const OFFSET,
            stride = const STRIDE,
            first = out(reg) first,
            second = out(reg) second,
            options(pure, readonly, nostack),
        );
        [first, second]
    }

    /// The words [lane][row] of four rows. Every row's go straight to their places: that takes fewer shuffles than bringing together what each row has.
    #[inline(always)]
    pub(super) unsafe fn words(p: [*const u8; 4]) -> __m256i {
        let index = Avx512::load(Self::WORDS.as_ptr());
        let together = |v: [__m512i; 4]| {
            let mut words = _mm512_permutexvar_epi8(index, v[0]);
            for (row, v) in v.into_iter().enumerate().skip(1) {
                words = permuted_where(words, 0x0303_0303 << (2 * row), index, v);
            }
            _mm512_castsi512_si256(words)
        };
        if Self::ONE {
            together(four!(|r| Avx512::load(p[r])))
        } else {
            let rows = four!(|r| Self::both(p[r], 2));
            _mm256_blend_epi32::<0xF0>(together(four!(|r| rows[r][0])), together(four!(|r| rows[r][1])))
        }
    }

    /// The two vectors that have `bytes` bytes of each lane of the blocks at `p`.
    #[inline(always)]
    pub(super) unsafe fn both(p: *const u8, bytes: usize) -> [__m512i; 2] {
        [Avx512::load(p.add(Self::first(bytes))), Avx512::load(p.add(Self::second(bytes)))]
    }
}

/// `v` with `value` added to the bytes whose bit is set: one instruction, which the compiler would make three of.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn add_where(mut v: __m512i, set: u64, value: u8) -> __m512i {
    asm!(
        "vpaddb {v}{{{set}}}, {v}, {value}",
        v = inout(zmm_reg) v,
        set = in(kreg) set,
        value = in(zmm_reg) _mm512_set1_epi8(value as i8),
        options(pure, nomem, nostack, preserves_flags),
    );
    v
}

/// `to`, with bytes of `v` where a bit of `places` is set: one instruction, which the compiler would make two or more of.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) unsafe fn permuted_where(mut to: __m512i, places: u64, index: __m512i, v: __m512i) -> __m512i {
    asm!(
        "vpermb {to}{{{places}}}, {index}, {v}",
        to = inout(zmm_reg) to,
        places = in(kreg) places,
        index = in(zmm_reg) index,
        v = in(zmm_reg) v,
        options(pure, nomem, nostack, preserves_flags),
    );
    to
}
