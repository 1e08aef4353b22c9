//! A weight as one value: format, shape and buffers.

use crate::buffer::MlxBuffer;
use crate::device::DeviceId;
use crate::format::{AffineFormat, FpMode, GgmlType, WeightFormat};
use crate::ops::check::invalid;
use crate::ops::{WeightView, scale_bytes};
use crate::{DType, Result};

/// A weight matrix `[n, k]`, or a stack of them for experts, in whatever format: what [`CommandEncoder::matmul`](crate::CommandEncoder::matmul) multiplies with.
///
/// The buffers are handles: a `Weight` copies nothing, and a mapped file's tensor stays in the file.
#[derive(Clone, Debug)]
pub struct Weight {
    format: WeightFormat,
    n: usize,
    k: usize,
    n_experts: usize,
    transposed: bool,
    strides: [usize; 3],
    data: MlxBuffer,
    scales: Option<MlxBuffer>,
    biases: Option<MlxBuffer>,
}

impl Weight {
    /// GGML blocks `[n, k]`, as they lie in a GGUF file; F32, F16 and BF16 matrices too.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) when a dimension is 0, k is not whole blocks, the type has no matmul, or the buffer is too small.
    pub fn ggml(ty: GgmlType, n: usize, k: usize, data: MlxBuffer) -> Result<Weight> {
        Weight::new(ty.into(), 1, n, k, data, None, None)
    }

    /// MLX affine groups: packed values `[n, packed k]`, scales and biases `[n, ⌈k/group_size⌉]` of the format's dtype.
    ///
    /// # Errors
    ///
    /// As [`ggml`](Self::ggml), for each of the three buffers.
    pub fn affine(
        format: AffineFormat,
        n: usize,
        k: usize,
        data: MlxBuffer,
        scales: MlxBuffer,
        biases: MlxBuffer,
    ) -> Result<Weight> {
        Weight::new(WeightFormat::Affine(format), 1, n, k, data, Some(scales), Some(biases))
    }

    /// MLX floating-point groups: packed values `[n, packed k]`, one scale byte per group.
    ///
    /// # Errors
    ///
    /// As [`ggml`](Self::ggml), for both buffers.
    pub fn fp(mode: FpMode, n: usize, k: usize, data: MlxBuffer, scales: MlxBuffer) -> Result<Weight> {
        Weight::new(WeightFormat::Fp(mode), 1, n, k, data, Some(scales), None)
    }

    /// The same buffers understood as `n_experts` matrices `[n, k]` that follow each other without gaps.
    ///
    /// ```
    /// # use mlx_native::{DType, GgmlType, MlxDevice, Weight};
    /// # let device = MlxDevice::cpu()?;
    /// let data = device.alloc_buffer(4 * 8 * 34, DType::U8, vec![4, 8, 34])?;
    /// let experts = Weight::stack(GgmlType::Q8_0.into(), 4, 8, 32, data, None, None)?;
    /// assert_eq!(experts.n_experts(), 4);
    /// # Ok::<(), mlx_native::MlxError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`ggml`](Self::ggml), for each buffer.
    pub fn stack(
        format: WeightFormat,
        n_experts: usize,
        n: usize,
        k: usize,
        data: MlxBuffer,
        scales: Option<MlxBuffer>,
        biases: Option<MlxBuffer>,
    ) -> Result<Weight> {
        Weight::new(format, n_experts, n, k, data, scales, biases)
    }

    /// The same weight used as x @ w: this `[n, k]` matrix multiplies rows of n values and gives rows of k (MLX's `transpose = false`).
    /// Affine and fp formats.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) for GGML formats and for stacks.
    pub fn transposed(mut self) -> Result<Weight> {
        if matches!(self.format, WeightFormat::Ggml(_)) || self.n_experts > 1 {
            return invalid(format!("transpose = false is for single MLX matrices, not for {}", self.format));
        }
        self.transposed = !self.transposed;
        std::mem::swap(&mut self.n, &mut self.k);
        Ok(self)
    }

    fn new(
        format: WeightFormat,
        n_experts: usize,
        n: usize,
        k: usize,
        data: MlxBuffer,
        scales: Option<MlxBuffer>,
        biases: Option<MlxBuffer>,
    ) -> Result<Weight> {
        crate::ops::check::non_zero("weight", &[("n_experts", n_experts), ("n", n), ("k", k)])?;
        if !format.is_matmul_weight() {
            return invalid(format!("weight: {format} weights have no matmul"));
        }
        let side = scale_bytes(&format, n, k)?;
        let strides = [format.matrix_bytes(n, k)?, side, side];
        let (wants_scales, wants_biases) = match format {
            WeightFormat::Ggml(_) => (false, false),
            WeightFormat::Affine(_) => (true, true),
            WeightFormat::Fp(_) => (true, false),
        };
        for (name, buffer, wanted, bytes) in [
            ("weight", Some(&data), true, strides[0]),
            ("scales", scales.as_ref(), wants_scales, strides[1]),
            ("biases", biases.as_ref(), wants_biases, strides[2]),
        ] {
            match (buffer, wanted) {
                (None, false) => {}
                (None, true) => return invalid(format!("{format} weight: {name} are missing")),
                (Some(_), false) => return invalid(format!("{format} weight: has no {name}, but some were given")),
                (Some(buffer), true) => {
                    let bytes = crate::ops::check::product(name, &[n_experts, bytes])?;
                    if buffer.byte_len() < bytes {
                        return invalid(format!("{name}: expected at least {bytes} bytes, got {}", buffer.byte_len()));
                    }
                }
            }
        }
        if let WeightFormat::Affine(affine) = format {
            for (name, buffer) in [("scales", &scales), ("biases", &biases)] {
                if let Some(found) =
                    buffer.as_ref().map(MlxBuffer::dtype).filter(|d| !same_bits(*d, affine.scale_dtype))
                {
                    return invalid(format!("{name}: expected {}, got {found}", affine.scale_dtype));
                }
            }
        }
        Ok(Weight { format, n, k, n_experts, transposed: false, strides, data, scales, biases })
    }

    /// The format.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Matrices in the stack; 1 for a dense weight.
    pub fn n_experts(&self) -> usize {
        self.n_experts
    }

    /// Bytes that a product with the whole weight reads: blocks or packed values, scales and biases.
    pub fn byte_len(&self) -> usize {
        let parts = 1 + usize::from(self.scales.is_some()) + usize::from(self.biases.is_some());
        self.strides[..parts].iter().sum::<usize>() * self.n_experts
    }

    /// The rows `from .. from + rows` as a weight of their own, on the same buffers.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) when the rows are not inside, or for a stack or a transposed weight.
    pub fn rows(&self, from: usize, rows: usize) -> Result<Weight> {
        if self.n_experts > 1 || self.transposed || rows == 0 || from.checked_add(rows).is_none_or(|end| end > self.n) {
            return invalid(format!("rows {from} to {from} + {rows} of a weight [{}, {}]", self.n, self.k));
        }
        let part = |buffer: &MlxBuffer, matrix_bytes: usize| {
            let row = matrix_bytes / self.n;
            buffer.try_slice_view((from * row) as u64, rows * row / buffer.dtype().size_of())
        };
        let side = |buffer: &Option<MlxBuffer>, bytes| buffer.as_ref().map(|b| part(b, bytes)).transpose();
        Weight::new(
            self.format,
            1,
            rows,
            self.k,
            part(&self.data, self.strides[0])?,
            side(&self.scales, self.strides[1])?,
            side(&self.biases, self.strides[2])?,
        )
    }

    pub(crate) fn matrix_view(&self, device: DeviceId, op: &str) -> Result<WeightView> {
        if self.n_experts > 1 {
            return invalid(format!("{op}: the weight is a stack of {} matrices", self.n_experts));
        }
        self.stack_view(device)
    }

    pub(crate) fn stack_view(&self, device: DeviceId) -> Result<WeightView> {
        let side = |buffer: &Option<MlxBuffer>, name, bytes: usize| {
            buffer.as_ref().map(|b| b.read(device, name, bytes * self.n_experts)).transpose()
        };
        Ok(WeightView {
            format: self.format,
            data: self.data.read(device, "weight", self.strides[0] * self.n_experts)?,
            scales: side(&self.scales, "scales", self.strides[1])?,
            biases: side(&self.biases, "biases", self.strides[2])?,
            strides: self.strides,
            transposed: self.transposed,
        })
    }
}

/// Whether a buffer of dtype `found` can hold scales of dtype `expected`: the same, or raw 16-bit words for the 16-bit floats.
fn same_bits(found: DType, expected: DType) -> bool {
    found == expected || (found == DType::U16 && expected.size_of() == 2) || found == DType::U8
}
