//! Which rows of input the launches of a product have, and as what columns of the tensor cores' products.

use crate::device::{Activations, DeviceOptions};

/// Rows of one launch: with operands as good as f32, and as halves.
pub(super) const EXACT_ROWS: usize = 4;
const ROWS: usize = 8;

/// How the eight columns of an mma are used, `Columns` in units.cu.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Columns {
    /// One row as good as f32, whose groups lie side by side.
    One,
    /// Up to four rows as good as f32.
    Four,
    /// Up to eight rows as halves.
    Eight,
}

impl Columns {
    pub(super) fn name(self) -> &'static str {
        match self {
            Columns::One => "ONE_ROW",
            Columns::Four => "FOUR_ROWS",
            Columns::Eight => "EIGHT_ROWS",
        }
    }

    /// Rows of a launch at most.
    pub(super) fn rows(self) -> usize {
        match self {
            Columns::One => 1,
            Columns::Four => EXACT_ROWS,
            Columns::Eight => ROWS,
        }
    }

    pub(super) fn exact(self) -> bool {
        self != Columns::Eight
    }
}

/// The rows of a launch: the first, and how many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Part {
    pub first: usize,
    pub m: usize,
    pub columns: Columns,
    /// Whether a row's result must not depend on how many others there are: nothing but weights and columns decides how it is summed.
    pub invariant: bool,
}

impl Part {
    /// The launches for so many rows. With `batch_invariant` all rows are columns of one kind, whatever their number.
    pub(super) fn all(m: usize, options: &DeviceOptions) -> impl Iterator<Item = Part> + use<> {
        let invariant = options.batch_invariant;
        let exact = options.activations == Activations::Exact || (m <= EXACT_ROWS && !invariant);
        let most = if exact { EXACT_ROWS } else { ROWS };
        (0..m).step_by(most).map(move |first| {
            let m = most.min(m - first);
            let columns = match m {
                _ if !exact => Columns::Eight,
                1 if !invariant => Columns::One,
                _ => Columns::Four,
            };
            Part { first, m, columns, invariant }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(m: usize, options: &DeviceOptions) -> Vec<(usize, usize, Columns)> {
        Part::all(m, options).map(|part| (part.first, part.m, part.columns)).collect()
    }

    #[test]
    fn the_number_of_rows_chooses_the_columns() {
        let default = DeviceOptions::default();
        let exact = DeviceOptions { activations: Activations::Exact, ..default };
        assert_eq!(cut(1, &default), [(0, 1, Columns::One)]);
        assert_eq!(cut(4, &default), [(0, 4, Columns::Four)]);
        assert_eq!(cut(5, &default), [(0, 5, Columns::Eight)]);
        assert_eq!(cut(5, &exact), [(0, 4, Columns::Four), (4, 1, Columns::One)]);
    }

    #[test]
    fn invariant_rows_are_columns_of_one_kind() {
        for (activations, columns, most) in
            [(Activations::Auto, Columns::Eight, 8), (Activations::Exact, Columns::Four, 4)]
        {
            let options = DeviceOptions { activations, batch_invariant: true, ..DeviceOptions::default() };
            for m in 1..20 {
                let parts = cut(m, &options);
                assert!(parts.iter().all(|part| part.2 == columns && part.0.is_multiple_of(most)), "{m}: {parts:?}");
                assert_eq!(parts.iter().map(|part| part.1).sum::<usize>(), m);
            }
        }
    }
}
