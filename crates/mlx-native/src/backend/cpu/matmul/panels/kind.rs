//! Kinds of formats, which loops are compiled for.

use std::marker::PhantomData;

use crate::backend::cpu::matmul::simd::Simd;
use crate::backend::cpu::matmul::source::Source;

/// What the loop over a panel depends on besides the instruction set.
pub(crate) trait Kind {
    /// As [`Source::HALVES`].
    const HALVES: bool;
    /// What the records say about sums of codes, and how it enters.
    const SUMS: Entering;
    /// As [`Source::WIDE`].
    const WIDE: bool;
    /// Codes are [`Source::folded`]: records and minimums have halves all the same.
    const FOLDED: bool = false;
    /// Blocks with one scale, where [`Source::spans`].
    const SPAN: usize = if matches!(Self::SUMS, Entering::Mins) && !Self::FOLDED { 2 } else { 8 };
}

/// How sums of activations enter a result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entering {
    /// Not at all.
    None,
    /// Integer sums start with them: the codes have an offset.
    Start,
    /// Times minimums.
    Mins,
}

/// The kind of a source, where a loop is compiled for the source alone.
pub(in super::super) struct OfSource<S: Simd, F: Source<S>>(PhantomData<(S, F)>);

impl<S: Simd, F: Source<S>> Kind for OfSource<S, F> {
    const HALVES: bool = F::HALVES;
    const SUMS: Entering = if F::MINS {
        Entering::Mins
    } else if F::OFFSET != 0 {
        Entering::Start
    } else {
        Entering::None
    };
    const WIDE: bool = F::WIDE;
}

/// The kinds: (halves, wide) × how sums enter.
pub(in super::super) struct With<const HALVES: bool, const SUMS: u8, const WIDE: bool>;

impl<const HALVES: bool, const SUMS: u8, const WIDE: bool> Kind for With<HALVES, SUMS, WIDE> {
    const HALVES: bool = HALVES;
    const SUMS: Entering = match SUMS {
        0 => Entering::None,
        1 => Entering::Start,
        _ => Entering::Mins,
    };
    const WIDE: bool = WIDE;
}

/// The kinds of folded codes.
pub(super) struct Folded<const MINS: bool>;

impl<const MINS: bool> Kind for Folded<MINS> {
    const HALVES: bool = false;
    const SUMS: Entering = if MINS { Entering::Mins } else { Entering::Start };
    const WIDE: bool = !MINS;
    const FOLDED: bool = true;
}

/// Expands `$run!(kind)` with the kind of source F, one of few that loops are compiled for.
macro_rules! of_kind {
    ($set:ident, $source:ident, $run:ident) => {{
        use $crate::backend::cpu::matmul::panels::With;
        let sums = if <$source as Source<$set>>::MINS { 2 } else { (<$source as Source<$set>>::OFFSET != 0) as u8 };
        match (<$source as Source<$set>>::HALVES, sums, <$source as Source<$set>>::WIDE) {
            (false, 0, false) => $run!(With<false, 0, false>),
            (false, 1, false) => $run!(With<false, 1, false>),
            (false, _, false) => $run!(With<false, 2, false>),
            (false, 0, true) => $run!(With<false, 0, true>),
            (false, 1, true) => $run!(With<false, 1, true>),
            (false, _, true) => $run!(With<false, 2, true>),
            (true, 0, false) => $run!(With<true, 0, false>),
            (true, 1, false) => $run!(With<true, 1, false>),
            (true, _, false) => $run!(With<true, 2, false>),
            (true, 0, true) => $run!(With<true, 0, true>),
            (true, 1, true) => $run!(With<true, 1, true>),
            (true, _, true) => $run!(With<true, 2, true>),
        }
    }};
}
pub(in super::super) use of_kind;
