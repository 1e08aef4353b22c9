//! Asking for cache lines that are read once.

use std::arch::x86_64::*;

use super::super::vendor::is_intel;

/// Asks for `bytes` bytes from each of these addresses on, past the outer caches where that is the fastest way.
///
/// Non-temporal lines of Intel's processors come through the few buffers of the first-level cache alone, and a thread has too few of them on their way to keep
/// memory busy.
#[inline(always)]
pub(super) fn once<const N: usize>(p: [*const u8; N], bytes: usize) {
    if is_intel() { lines::<N, _MM_HINT_T0>(p, bytes) } else { lines::<N, _MM_HINT_NTA>(p, bytes) }
}

#[inline(always)]
fn lines<const N: usize, const HINT: i32>(p: [*const u8; N], bytes: usize) {
    for p in p {
        for line in (0..bytes).step_by(64) {
            // SAFETY: every x86-64 processor has the instruction, and it faults at no address.
            unsafe { _mm_prefetch::<HINT>(p.wrapping_add(line).cast()) };
        }
    }
}
