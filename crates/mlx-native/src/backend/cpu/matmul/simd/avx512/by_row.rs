//! [`ByRow`] in vectors of sixteen places.
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::x86_64::*;

use super::super::super::rowwise::{Digits, Fields, Sums};
use super::super::{ByRow, Simd, four};
use super::{Avx512, bits, groups, rowwise};

impl ByRow<Avx512> for Avx512 {
    const THERE: bool = true;

    #[inline(always)]
    unsafe fn sum_each_float(v: [__m512; 4]) -> __m512 {
        let [a, b, c, d] = Self::transpose(four!(|r| _mm512_castps_si512(v[r]))).map(|v| _mm512_castsi512_ps(v));
        _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d))
    }
    #[inline(always)]
    unsafe fn arrange_bits<const TWICE: bool>(x: *mut u8, stride: usize) {
        bits::arrange::<TWICE>(x, stride)
    }
    #[inline(always)]
    unsafe fn bit_sums<const STRIDE: usize, const OFFSET: usize, const START: bool>(
        p: [*const u8; 4],
        x: *const u8,
        stride: usize,
    ) -> [__m512i; 4] {
        bits::sums::<STRIDE, OFFSET, START>(p, x, stride)
    }
    #[inline(always)]
    unsafe fn by_step(v: [__m512i; 4]) -> [__m512i; 4] {
        Self::transpose(four!(|r| Self::turned(v[r])))
    }
    #[inline(always)]
    unsafe fn block_notes(x: *const u8, stride: usize, place: usize) -> __m512 {
        _mm512_castsi512_ps(bits::notes(x, stride, place))
    }
    #[inline(always)]
    unsafe fn row_f16_steps<const STRIDE: usize>(p: [*const u8; 4]) -> [__m512; 4] {
        let v = Self::strided_f16::<STRIDE, 0>(p);
        [
            _mm512_permute_ps::<0x00>(v),
            _mm512_permute_ps::<0x55>(v),
            _mm512_permute_ps::<0xAA>(v),
            _mm512_permute_ps::<0xFF>(v),
        ]
    }
    #[inline(always)]
    unsafe fn row_groups_of_64(p: *const u8, f16: bool) -> __m512 {
        groups::of_row(p, f16)
    }
    #[inline(always)]
    unsafe fn f16_steps<const STRIDE: usize>(p: [*const u8; 4]) -> [__m512; 4] {
        let v = Self::strided_f16::<STRIDE, 0>(p);
        [
            _mm512_shuffle_f32x4::<0x00>(v, v),
            _mm512_shuffle_f32x4::<0x55>(v, v),
            _mm512_shuffle_f32x4::<0xAA>(v, v),
            _mm512_shuffle_f32x4::<0xFF>(v, v),
        ]
    }
    #[inline(always)]
    unsafe fn digits_of_x(x: *const f32, to: *mut Digits) {
        rowwise::digits_of_x(x, to)
    }
    #[inline(always)]
    unsafe fn add_tq1_0<const M: usize>(
        p: [*const u8; 4],
        x: [*const Digits; M],
        totals: [[__m512; 4]; M],
    ) -> [[__m512; 4]; M] {
        rowwise::add_tq1_0(p, x, totals)
    }
    #[inline(always)]
    unsafe fn fields_of_x(x: *const f32, to: *mut Fields, sums: Sums) {
        rowwise::fields_of_x(x, to, sums)
    }
    #[inline(always)]
    unsafe fn add_q2_k(p: [*const u8; 4], x: *const Fields, totals: [__m512; 4]) -> [__m512; 4] {
        rowwise::add_q2_k(p, x, totals)
    }
    #[inline(always)]
    unsafe fn add_q3_k(p: [*const u8; 4], x: *const Fields, totals: [__m512; 4]) -> [__m512; 4] {
        rowwise::add_q3_k(p, x, totals)
    }
}
