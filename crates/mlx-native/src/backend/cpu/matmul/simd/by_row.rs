//! What few rows of x are multiplied with weight row by weight row, where that is faster than with four weight rows in the places of a vector.

use super::super::rowwise::{Digits, Fields, Sums};
use super::Simd;

/// Sums of a row of weights in vectors of their own. Only sets of four lanes have it.
pub(in super::super) trait ByRow<S: Simd> {
    /// Whether the set has it; nothing else may be used otherwise.
    const THERE: bool;

    /// In each lane, place r: the sum of the four floats of `v[r]`.
    unsafe fn sum_each_float(v: [S::Floats; 4]) -> S::Floats;

    /// Brings four spread records, `stride` bytes from one to the next, into the form that [`bit_sums`](Self::bit_sums) and
    /// [`block_notes`](Self::block_notes) read; each has room for a vector behind its notes. With `TWICE` scales are halved.
    unsafe fn arrange_bits<const TWICE: bool>(x: *mut u8, stride: usize);
    /// For each of four rows, place i: of block i of sixteen, twice the sum of the activations whose bits are set, and the start. `p` is four blocks of a row,
    /// each STRIDE bytes with 128 bits at OFFSET; `x` four arranged records, whose sums are the start with `START`.
    unsafe fn bit_sums<const STRIDE: usize, const OFFSET: usize, const START: bool>(
        p: [*const u8; 4],
        x: *const u8,
        stride: usize,
    ) -> [S::Ints; 4];
    /// Sums of sixteen blocks for each row by step: lane i, place r of result s is place 4s + i of `v[r]`.
    unsafe fn by_step(v: [S::Ints; 4]) -> [S::Ints; 4];
    /// Of the sixteen blocks of four arranged records, the scales (0) or the sums (1).
    unsafe fn block_notes(x: *const u8, stride: usize, place: usize) -> S::Floats;
    /// Result r, all places of lane s: the f16 at `p[r] + s·STRIDE`, in a block of STRIDE bytes.
    unsafe fn row_f16_steps<const STRIDE: usize>(p: [*const u8; 4]) -> [S::Floats; 4];
    /// Place i: number i / 2 of the f16 or bf16 at `p`.
    unsafe fn row_groups_of_64(p: *const u8, f16: bool) -> S::Floats;
    /// Result s, place r of every lane: the f16 at `p[r] + s·STRIDE`, in a block of STRIDE bytes.
    unsafe fn f16_steps<const STRIDE: usize>(p: [*const u8; 4]) -> [S::Floats; 4];

    /// Brings 256 values of x into the form that [`add_tq1_0`](Self::add_tq1_0) reads.
    unsafe fn digits_of_x(x: *const f32, to: *mut Digits);
    /// Adds the products of a block of TQ1_0 at each `p[r]` with M rows of x to `totals[row of x]`, of each weight row the sum of all places.
    unsafe fn add_tq1_0<const M: usize>(
        p: [*const u8; 4],
        x: [*const Digits; M],
        totals: [[S::Floats; 4]; M],
    ) -> [[S::Floats; 4]; M];
    /// Brings 256 values of x into the form that the following functions read.
    unsafe fn fields_of_x(x: *const f32, to: *mut Fields, sums: Sums);
    /// Adds the products of a block of Q2_K at each `p[r]` with x to `totals`, of each weight row the sum of all places.
    unsafe fn add_q2_k(p: [*const u8; 4], x: *const Fields, totals: [S::Floats; 4]) -> [S::Floats; 4];
    /// [`add_q2_k`](Self::add_q2_k) of Q3_K.
    unsafe fn add_q3_k(p: [*const u8; 4], x: *const Fields, totals: [S::Floats; 4]) -> [S::Floats; 4];
}

/// For sets without.
pub(crate) struct Nowhere;

/// Functions that are never called.
macro_rules! never {
    ($(fn $name:ident$(<$(const $constant:ident: $of:ty),*>)?($($argument:ty),*)$( -> $result:ty)?;)*) => {
        $(
            unsafe fn $name$(<$(const $constant: $of),*>)?($(_: $argument),*)$( -> $result)? {
                unreachable!("not on this instruction set")
            }
        )*
    };
}

impl<S: Simd> ByRow<S> for Nowhere {
    const THERE: bool = false;

    never! {
        fn sum_each_float([S::Floats; 4]) -> S::Floats;
        fn arrange_bits<const TWICE: bool>(*mut u8, usize);
        fn bit_sums<const STRIDE: usize, const OFFSET: usize, const START: bool>([*const u8; 4], *const u8, usize) -> [S::Ints; 4];
        fn by_step([S::Ints; 4]) -> [S::Ints; 4];
        fn block_notes(*const u8, usize, usize) -> S::Floats;
        fn row_f16_steps<const STRIDE: usize>([*const u8; 4]) -> [S::Floats; 4];
        fn row_groups_of_64(*const u8, bool) -> S::Floats;
        fn f16_steps<const STRIDE: usize>([*const u8; 4]) -> [S::Floats; 4];
        fn digits_of_x(*const f32, *mut Digits);
        fn add_tq1_0<const M: usize>([*const u8; 4], [*const Digits; M], [[S::Floats; 4]; M]) -> [[S::Floats; 4]; M];
        fn fields_of_x(*const f32, *mut Fields, Sums);
        fn add_q2_k([*const u8; 4], *const Fields, [S::Floats; 4]) -> [S::Floats; 4];
        fn add_q3_k([*const u8; 4], *const Fields, [S::Floats; 4]) -> [S::Floats; 4];
    }
}
