//! Products with MLX affine weights: the four published entry points.

use super::{Input, InputLayout, Matmul, Op, WeightView, check, scale_bytes};
use crate::format::{AffineFormat, WeightFormat};
use crate::{CommandEncoder, DType, KernelRegistry, MlxBuffer, MlxDevice, Result};

/// Parameters of [`quantized_matmul`] and its relatives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizedMatmulParams {
    /// Input rows.
    pub m: u32,
    /// Input features.
    pub k: u32,
    /// Output features.
    pub n: u32,
    /// Values that share a scale and a bias; k need not be a multiple.
    pub group_size: u32,
    /// Bits of a packed value: 1, 2, 3, 4, 5, 6 or 8.
    pub bits: u32,
}

/// Returns a new f32 `[m, n]`: `output[i][j]` = Σ_l `(scale·q + bias)[j][l]` · `input[i][l]`. input f32 `[m, k]`, weight packed `[n, packed k]`, scales and
/// biases `[n, ⌈k/group_size⌉]`, bf16, f16 or f32 by the buffer's dtype.
///
/// # Errors
///
/// [`InvalidArgument`](crate::MlxError::InvalidArgument), checked in this order: the width (the message has the word `bits`), zero dimensions or group size,
/// `Input buffer too small`, `Weight buffer too small`, `Scales buffer too small`, `Biases buffer too small`.
#[allow(clippy::too_many_arguments)] // the published signature
pub fn quantized_matmul(
    encoder: &mut CommandEncoder,
    registry: &mut KernelRegistry,
    device: &MlxDevice,
    input: &MlxBuffer,
    weight: &MlxBuffer,
    scales: &MlxBuffer,
    biases: &MlxBuffer,
    params: &QuantizedMatmulParams,
) -> Result<MlxBuffer> {
    let operands = Affine { input, weight, scales, biases, offsets: [0; 3], dtype: DType::F32, mlx_order: false };
    operands.record("quantized_matmul", encoder, registry, device, params)
}

/// [`quantized_matmul`] through the qmv kernel where n % 8 = 0, k % 256 = 0 and group_size % 8 = 0 (4 and 8 bits): MLX's order of
/// accumulation on a GPU. Other shapes take the scalar kernel.
///
/// # Errors
///
/// As [`quantized_matmul`].
#[allow(clippy::too_many_arguments)] // the published signature
pub fn quantized_matmul_simd(
    encoder: &mut CommandEncoder,
    registry: &mut KernelRegistry,
    device: &MlxDevice,
    input: &MlxBuffer,
    weight: &MlxBuffer,
    scales: &MlxBuffer,
    biases: &MlxBuffer,
    params: &QuantizedMatmulParams,
) -> Result<MlxBuffer> {
    let operands = Affine { input, weight, scales, biases, offsets: [0; 3], dtype: DType::F32, mlx_order: true };
    operands.record("quantized_matmul_simd", encoder, registry, device, params)
}

/// [`quantized_matmul`] with bf16 input and a new bf16 `[m, n]`, accumulated in f32.
///
/// # Errors
///
/// As [`quantized_matmul`].
#[allow(clippy::too_many_arguments)] // the published signature
pub fn dispatch_quantized_matmul_simd_bf16(
    encoder: &mut CommandEncoder,
    registry: &mut KernelRegistry,
    device: &MlxDevice,
    input: &MlxBuffer,
    packed_weights: &MlxBuffer,
    scales: &MlxBuffer,
    biases: &MlxBuffer,
    params: &QuantizedMatmulParams,
) -> Result<MlxBuffer> {
    let operands =
        Affine { input, weight: packed_weights, scales, biases, offsets: [0; 3], dtype: DType::BF16, mlx_order: true };
    operands.record("dispatch_quantized_matmul_simd_bf16", encoder, registry, device, params)
}

/// [`dispatch_quantized_matmul_simd_bf16`] with one expert's slab of a stacked tensor, by byte offsets.
///
/// # Errors
///
/// As [`quantized_matmul`]; when the shape is not one of the fast kernel's (n % 8 = 0 and, for 4 bits, k % 512 = 0 and group_size % 16 = 0, for
/// 8 bits, k % 256 = 0 and group_size % 8 = 0); when a slab reaches past its buffer; when an offset is not a multiple of 4 (weights) or of the element
/// size (scales, biases).
#[allow(clippy::too_many_arguments)] // the published signature
pub fn dispatch_quantized_matmul_simd_bf16_expert(
    encoder: &mut CommandEncoder,
    registry: &mut KernelRegistry,
    device: &MlxDevice,
    input: &MlxBuffer,
    packed_weights: &MlxBuffer,
    scales: &MlxBuffer,
    biases: &MlxBuffer,
    params: &QuantizedMatmulParams,
    expert_offset_bytes: u32,
    scales_offset_bytes: u32,
    biases_offset_bytes: u32,
) -> Result<MlxBuffer> {
    const OP: &str = "dispatch_quantized_matmul_simd_bf16_expert";
    let QuantizedMatmulParams { k, n, group_size, bits, .. } = *params;
    let fast = n % 8 == 0
        && match bits {
            4 => k % 512 == 0 && group_size % 16 == 0,
            8 => k % 256 == 0 && group_size % 8 == 0,
            _ => return check::invalid(format!("{OP}: bits must be 4 or 8, got {bits}")),
        };
    let offsets = [expert_offset_bytes, scales_offset_bytes, biases_offset_bytes].map(|offset| offset as usize);
    let operands =
        Affine { input, weight: packed_weights, scales, biases, offsets, dtype: DType::BF16, mlx_order: true };
    if !fast && params.m > 0 && n > 0 && k > 0 && group_size > 0 {
        return check::invalid(format!(
            "{OP}: n {n}, k {k}, group_size {group_size} at {bits} bits are not aligned for the kernel"
        ));
    }
    for (name, offset, align) in [
        ("expert_offset_bytes", offsets[0], 4),
        ("scales_offset_bytes", offsets[1], scales.dtype().size_of()),
        ("biases_offset_bytes", offsets[2], biases.dtype().size_of()),
    ] {
        if !offset.is_multiple_of(align) {
            return check::invalid(format!("{OP}: {name} must be a multiple of {align}, got {offset}"));
        }
    }
    operands.record(OP, encoder, registry, device, params)
}

/// The buffers of an affine product, and where in them the matrix starts.
struct Affine<'a> {
    input: &'a MlxBuffer,
    weight: &'a MlxBuffer,
    scales: &'a MlxBuffer,
    biases: &'a MlxBuffer,
    /// Byte offsets into weight, scales and biases.
    offsets: [usize; 3],
    /// Element type of input and result.
    dtype: DType,
    /// MLX's order of accumulation where the shape is one of its fast kernel's.
    mlx_order: bool,
}

impl Affine<'_> {
    fn record(
        &self,
        op: &str,
        encoder: &mut CommandEncoder,
        registry: &KernelRegistry,
        device: &MlxDevice,
        params: &QuantizedMatmulParams,
    ) -> Result<MlxBuffer> {
        let QuantizedMatmulParams { bits, group_size, .. } = *params;
        let [m, n, k] = [params.m, params.n, params.k].map(|dim| dim as usize);
        // The width comes first: 3 and 5 bits also need whole bytes for every eight values.
        let scale_dtype = match self.scales.dtype() {
            DType::U16 => DType::BF16,
            dtype => dtype,
        };
        let width = AffineFormat { bits, group_size: group_size.max(1), scale_dtype: DType::BF16 };
        width.row_bytes(k)?;
        check::non_zero(op, &[("m", m), ("k", k), ("n", n), ("group_size", group_size as usize)])?;
        check::product(op, &[m, n, k])?;
        let format = WeightFormat::Affine(AffineFormat::new(bits, group_size, scale_dtype)?);
        let side_bytes = scale_bytes(&format, n, k)?;
        let matrix_bytes = format.matrix_bytes(n, k)?;
        let input_bytes = check::bytes(op, &[m, k], self.dtype)?;
        for (name, buffer, offset, bytes) in [
            ("Input", self.input, 0, input_bytes),
            ("Weight", self.weight, self.offsets[0], matrix_bytes),
            ("Scales", self.scales, self.offsets[1], side_bytes),
            ("Biases", self.biases, self.offsets[2], side_bytes),
        ] {
            if offset.checked_add(bytes).is_none_or(|end| end > buffer.byte_len()) {
                return check::invalid(format!(
                    "{op}: {name} buffer too small: expected at least {bytes} bytes from byte {offset}, got {}",
                    buffer.byte_len()
                ));
            }
        }
        check::dtype_in(op, "input", self.input, &[self.dtype, DType::U8])?;
        if self.biases.dtype() != self.scales.dtype() {
            return check::invalid(format!(
                "{op}: scales are {} but biases are {}",
                self.scales.dtype(),
                self.biases.dtype()
            ));
        }
        let id = encoder.device_id();
        let mut output = device.alloc_buffer(check::bytes(op, &[m, n], self.dtype)?, self.dtype, vec![m, n])?;
        let part = |buffer: &MlxBuffer, name, offset, bytes| -> Result<_> {
            Ok(buffer.read(id, name, offset + bytes)?.part(offset, bytes))
        };
        let row_bytes = k * self.dtype.size_of();
        let op = Op::Matmul(Matmul {
            input: Input {
                view: self.input.read(id, "input", input_bytes)?,
                dtype: self.dtype,
                layout: InputLayout::Rows { row_bytes, batch_bytes: input_bytes },
            },
            weight: WeightView {
                format,
                data: part(self.weight, "weight", self.offsets[0], matrix_bytes)?,
                scales: Some(part(self.scales, "scales", self.offsets[1], side_bytes)?),
                biases: Some(part(self.biases, "biases", self.offsets[2], side_bytes)?),
                strides: [matrix_bytes, side_bytes, side_bytes],
                transposed: false,
            },
            output: output.write(id, "output", m * n * self.dtype.size_of())?,
            output_dtype: self.dtype,
            mlx_order: self.mlx_order,
            batch: 1,
            weight_batch: 1,
            m,
            n,
            k,
        });
        encoder.force(registry);
        encoder.record(op)?;
        Ok(output)
    }
}
