//! Rows of a matrix by id, decoded by the format's reference.
// SAFETY of every unsafe block here: the rules of `vector`; an id is compared with the number of rows before it becomes an address.
#![allow(clippy::undocumented_unsafe_blocks)]

use half::{bf16, f16};

use super::simd::Simd;
use super::{Mem, Task};
use crate::backend::cpu::kernel::{Resolver, Share};
use crate::format::{WeightFormat, affine, dequantize_row};
use crate::ops::{Embedding, fault};
use crate::{DType, Result};

pub(super) struct EmbeddingTask {
    format: WeightFormat,
    data: Mem<u8>,
    scales: Option<Mem<u8>>,
    biases: Option<Mem<u8>>,
    ids: Mem<u32>,
    output: Mem<f32>,
    n: usize,
    k: usize,
    n_tokens: usize,
    scale: f32,
    /// Bytes of a stored row: of k values, or of n where the stored matrix is `[k, n]`.
    row_bytes: usize,
    /// Scales of a stored row.
    groups: usize,
    transposed: bool,
    /// Position of the operation in its list.
    index: usize,
}

impl EmbeddingTask {
    pub(super) fn new(op: &Embedding, index: usize, resolver: &mut Resolver) -> Result<EmbeddingTask> {
        let weight = &op.weight;
        let row = if weight.transposed { op.n } else { op.k };
        let groups = match weight.format {
            WeightFormat::Ggml(_) => 0,
            WeightFormat::Affine(affine) => affine.groups(row)?,
            WeightFormat::Fp(mode) => mode.groups(row),
        };
        Ok(EmbeddingTask {
            format: weight.format,
            data: Mem::new(resolver, &weight.data)?,
            scales: Mem::optional(resolver, &weight.scales)?,
            biases: Mem::optional(resolver, &weight.biases)?,
            ids: Mem::new(resolver, &op.ids)?,
            output: Mem::new(resolver, &op.output)?,
            n: op.n,
            k: op.k,
            n_tokens: op.params.n_tokens,
            scale: op.params.scale,
            row_bytes: weight.format.row_bytes(row)?,
            groups,
            transposed: weight.transposed,
            index,
        })
    }

    /// Stored row `row` as packed bytes.
    unsafe fn packed(&self, row: usize) -> &[u8] {
        unsafe { std::slice::from_raw_parts(self.data.at(row * self.row_bytes), self.row_bytes) }
    }

    /// Scale (or bias) number `i`, counted over all rows.
    unsafe fn side(&self, side: Option<Mem<u8>>, dtype: DType, i: usize) -> f32 {
        let Some(Mem(side)) = side else { return 0.0 };
        unsafe {
            match dtype {
                DType::F16 => f16::from_bits(side.cast::<u16>().add(i).read_unaligned()).to_f32(),
                DType::BF16 => bf16::from_bits(side.cast::<u16>().add(i).read_unaligned()).to_f32(),
                _ => side.cast::<f32>().add(i).read_unaligned(),
            }
        }
    }

    unsafe fn sides(&self, side: Option<Mem<u8>>, dtype: DType, row: usize) -> Vec<f32> {
        (row * self.groups..(row + 1) * self.groups).map(|i| unsafe { self.side(side, dtype, i) }).collect()
    }

    /// Decodes row `id` of the logical `[n, k]` matrix.
    unsafe fn row(&self, id: usize, out: &mut [f32]) -> Result<()> {
        if self.transposed {
            unsafe { self.column(id, out) };
            return Ok(());
        }
        unsafe {
            let packed = self.packed(id);
            match self.format {
                WeightFormat::Ggml(ty) => dequantize_row(ty, packed, out),
                WeightFormat::Affine(format) => {
                    let scales = self.sides(self.scales, format.scale_dtype, id);
                    let biases = self.sides(self.biases, format.scale_dtype, id);
                    format.dequantize_row(packed, affine::Groups { scales: &scales, biases: &biases }, out)
                }
                WeightFormat::Fp(mode) => {
                    let scales = self.scales.map_or(&[] as &[u8], |scales| {
                        std::slice::from_raw_parts(scales.at(id * self.groups), self.groups)
                    });
                    mode.dequantize_row(packed, scales, out)
                }
            }
        }
    }

    /// Decodes column `id` of the stored `[k, n]` matrix, whose groups lie along n.
    unsafe fn column(&self, id: usize, out: &mut [f32]) {
        for (row, out) in out.iter_mut().enumerate() {
            unsafe {
                let code = |bits| affine::value_at(bits, self.packed(row), id).unwrap_or(0);
                let group = |size: u32| row * self.groups + id / size as usize;
                *out = match self.format {
                    // A GGML matrix is never stored transposed.
                    WeightFormat::Ggml(_) => f32::NAN,
                    WeightFormat::Affine(format) => {
                        let group = group(format.group_size);
                        let scale = self.side(self.scales, format.scale_dtype, group);
                        let bias = self.side(self.biases, format.scale_dtype, group);
                        scale * f32::from(code(format.bits)) + bias
                    }
                    WeightFormat::Fp(mode) => {
                        let scale = self.scales.map_or(0, |scales| scales.get(group(mode.group_size())));
                        mode.scale(scale) * mode.code(code(mode.bits()))
                    }
                };
            }
        }
    }
}

impl Task for EmbeddingTask {
    fn shares(&self, _phase: usize) -> usize {
        self.n_tokens
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _s: S, _phase: usize, share: &Share<'_>) {
        let mut row = vec![0.0f32; self.k];
        for token in share.range(self.n_tokens, 1) {
            let id = unsafe { self.ids.get(token) } as usize;
            if id >= self.n {
                row.fill(f32::NAN);
                share.faults.report(self.index, token, || fault::bad_row(token, id as u32, self.n));
            } else if let Err(error) = unsafe { self.row(id, &mut row) } {
                row.fill(f32::NAN);
                share.faults.report(self.index, token, || format!("embedding: token {token}: {error}"));
            } else if self.scale != 1.0 {
                row.iter_mut().for_each(|value| *value *= self.scale);
            }
            unsafe {
                let to = self.output.at(token * self.k).cast::<u8>();
                to.copy_from_nonoverlapping(row.as_ptr().cast(), 4 * self.k);
            }
        }
    }
}
