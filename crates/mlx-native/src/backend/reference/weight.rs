//! Weights as rows of real values.

use super::operand;
use crate::Result;
use crate::buffer::View;
use crate::format::affine::Groups;
use crate::format::{WeightFormat, dequantize_row};
use crate::ops::{WeightView, scale_bytes};

/// The matrices `[n, k]` of a weight operand.
pub(super) struct Rows<'a> {
    weight: &'a WeightView,
    n: usize,
    k: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn new(weight: &'a WeightView, n: usize, k: usize) -> Rows<'a> {
        Rows { weight, n, k }
    }

    /// Row `row` of matrix `matrix`: `k` values.
    pub(super) fn row(&self, matrix: usize, row: usize) -> Result<Vec<f64>> {
        if !self.weight.transposed {
            return self.stored_row(matrix, row, self.k);
        }
        // The stored matrix is [k, n]: the row is a column of it.
        (0..self.k).map(|l| Ok(self.stored_row(matrix, l, self.n)?[row])).collect()
    }

    /// All rows of matrix `matrix`, one after the other.
    pub(super) fn matrix(&self, matrix: usize) -> Result<Vec<Vec<f64>>> {
        if !self.weight.transposed {
            return (0..self.n).map(|row| self.row(matrix, row)).collect();
        }
        let stored: Vec<Vec<f64>> = (0..self.k).map(|l| self.stored_row(matrix, l, self.n)).collect::<Result<_>>()?;
        Ok((0..self.n).map(|j| stored.iter().map(|row| row[j]).collect()).collect())
    }

    /// Row `row` as it lies in the buffer, `len` values.
    fn stored_row(&self, matrix: usize, row: usize, len: usize) -> Result<Vec<f64>> {
        let WeightView { format, data, scales, biases, strides, .. } = self.weight;
        let row_bytes = format.row_bytes(len)?;
        let packed = operand::bytes(data, matrix * strides[0] + row * row_bytes, row_bytes)?;
        let mut values = vec![0.0f32; len];
        match format {
            WeightFormat::Ggml(ty) => dequantize_row(*ty, &packed, &mut values)?,
            WeightFormat::Affine(affine) => {
                let groups = affine.groups(len)?;
                let side_bytes = scale_bytes(format, 1, len)?;
                let side = |view: &Option<View>, stride: usize| -> Result<Vec<f32>> {
                    let Some(view) = view else { return Ok(Vec::new()) };
                    let offset = matrix * stride + row * side_bytes;
                    let wide = operand::floats_at(view, offset, affine.scale_dtype, groups)?;
                    Ok(wide.into_iter().map(|value| value as f32).collect())
                };
                let (scales, biases) = (side(scales, strides[1])?, side(biases, strides[2])?);
                affine.dequantize_row(&packed, Groups { scales: &scales, biases: &biases }, &mut values)?;
            }
            WeightFormat::Fp(mode) => {
                let side_bytes = scale_bytes(format, 1, len)?;
                let scales = match scales {
                    Some(view) => operand::bytes(view, matrix * strides[1] + row * side_bytes, side_bytes)?,
                    None => Vec::new(),
                };
                mode.dequantize_row(&packed, &scales, &mut values)?;
            }
        }
        Ok(values.into_iter().map(f64::from).collect())
    }
}
