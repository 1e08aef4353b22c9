//! Dense products with GGML weights: plain, batched, and with the permuted bf16 input that attention leaves.

use super::matmul::{GgmlSlabs, check_format, check_shape, ggml_view};
use super::{Input, InputLayout, Matmul, Op, check};
use crate::{CommandEncoder, DType, GgmlType, KernelRegistry, MlxBuffer, MlxDevice, Result};

/// Up to this many input rows a GPU multiplies with its mat-vec kernels, above it with tiles.
pub const MM_ROUTING_THRESHOLD: u32 = 8;

/// Parameters of [`quantized_matmul_ggml`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlQuantizedMatmulParams {
    /// Input rows.
    pub m: u32,
    /// Output features.
    pub n: u32,
    /// Input features, whole blocks.
    pub k: u32,
    /// Format of the weight.
    pub ggml_type: GgmlType,
}

/// Parameters of [`quantized_matmul_mm_tensor_perm021`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlQuantizedMatmulPerm021Params {
    /// Input rows.
    pub m: u32,
    /// Output features.
    pub n: u32,
    /// Input features, whole blocks and whole heads.
    pub k: u32,
    /// Values of a head, a positive multiple of 32.
    pub head_dim: u32,
    /// Format of the weight.
    pub ggml_type: GgmlType,
}

/// Parameters of [`quantized_matmul_ggml_batched`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlBatchedQuantizedMatmulParams {
    /// Products; a multiple of `weight_batch`.
    pub batch: u32,
    /// Weight matrices; product b uses matrix b ÷ (batch ÷ weight_batch).
    pub weight_batch: u32,
    /// Input rows of a product.
    pub m: u32,
    /// Output features.
    pub n: u32,
    /// Input features, whole blocks.
    pub k: u32,
    /// Format of the weights.
    pub ggml_type: GgmlType,
}

/// Where the input rows of [`quantized_matmul_ggml_batched_strided`] lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlBatchedQuantizedMatmulInputStrides {
    /// Bytes from one row of a product to the next; a multiple of 4.
    pub row_bytes: u64,
    /// Bytes from one product's first row to the next product's; a multiple of 4.
    pub batch_bytes: u64,
}

/// `output[i][j]` = Σ_l dequant(`weight[j][l]`) · `input[i][l]`: input f32 `[m, k]`, weight raw blocks `[n, k]` exactly as in the file, output
/// f32 `[m, n]`.
///
/// # Errors
///
/// [`InvalidArgument`](crate::MlxError::InvalidArgument) when m, n or k is 0, k is not whole blocks, a buffer is too small (named, with expected and actual bytes), a product of dimensions overflows, or the format has no matmul.
pub fn quantized_matmul_ggml(
    encoder: &mut CommandEncoder,
    registry: &mut KernelRegistry,
    device: &MlxDevice,
    input: &MlxBuffer,
    weight: &MlxBuffer,
    output: &mut MlxBuffer,
    params: &GgmlQuantizedMatmulParams,
) -> Result<()> {
    let GgmlQuantizedMatmulParams { m, n, k, ggml_type } = *params;
    let batched = GgmlBatchedQuantizedMatmulParams { batch: 1, weight_batch: 1, m, n, k, ggml_type };
    quantized_matmul_ggml_batched(encoder, registry, device, input, weight, output, &batched)
}

/// Batched form of [`quantized_matmul_ggml`]: input f32 `[batch, m, k]`, weight `[weight_batch, n, k]`, output f32 `[batch, m, n]`; product b
/// uses weight b ÷ (batch ÷ weight_batch), so that grouped heads share a matrix.
///
/// # Errors
///
/// As [`quantized_matmul_ggml`], and when batch is not a multiple of weight_batch.
pub fn quantized_matmul_ggml_batched(
    encoder: &mut CommandEncoder,
    registry: &mut KernelRegistry,
    device: &MlxDevice,
    input: &MlxBuffer,
    weight: &MlxBuffer,
    output: &mut MlxBuffer,
    params: &GgmlBatchedQuantizedMatmulParams,
) -> Result<()> {
    let row_bytes = u64::from(params.k) * 4;
    let strides = GgmlBatchedQuantizedMatmulInputStrides {
        row_bytes,
        // Two u32 factors and 4 bytes may exceed 64 bits; the strided form reports any size that large.
        batch_bytes: row_bytes.saturating_mul(u64::from(params.m)) & !3,
    };
    quantized_matmul_ggml_batched_strided(encoder, registry, device, input, weight, output, params, &strides)
}

/// [`quantized_matmul_ggml_batched`] with input row i of product b at byte `b·batch_bytes + i·row_bytes`, so that token-major data needs no
/// copy.
///
/// # Errors
///
/// As [`quantized_matmul_ggml_batched`], and when a stride is not a multiple of 4 or a row is shorter than k values.
#[allow(clippy::too_many_arguments)] // the published signature
pub fn quantized_matmul_ggml_batched_strided(
    encoder: &mut CommandEncoder,
    registry: &mut KernelRegistry,
    _device: &MlxDevice,
    input: &MlxBuffer,
    weight: &MlxBuffer,
    output: &mut MlxBuffer,
    params: &GgmlBatchedQuantizedMatmulParams,
    strides: &GgmlBatchedQuantizedMatmulInputStrides,
) -> Result<()> {
    const OP: &str = "quantized_matmul_ggml";
    let [batch, weight_batch, m, n, k] =
        [params.batch, params.weight_batch, params.m, params.n, params.k].map(|dim| dim as usize);
    check_shape(OP, &[("batch", batch), ("m", m), ("n", n), ("k", k)])?;
    check::non_zero(OP, &[("weight_batch", weight_batch)])?;
    if !batch.is_multiple_of(weight_batch) {
        return check::invalid(format!("{OP}: batch {batch} must be a multiple of weight_batch {weight_batch}"));
    }
    check_format(OP, params.ggml_type)?;
    params.ggml_type.row_bytes(k)?;
    check::dtype(OP, "input", input, DType::F32)?;
    check::dtype(OP, "output", output, DType::F32)?;
    let row_bytes = check::bytes(OP, &[k], DType::F32)?;
    let (layout, input_bytes) = strided_rows(OP, strides, [batch, m, row_bytes])?;
    let device = encoder.device_id();
    let input = Input { view: input.read(device, "input", input_bytes)?, dtype: DType::F32, layout };
    let slabs = GgmlSlabs { ty: params.ggml_type, slabs: weight_batch, n, k, stride: None };
    let weight = ggml_view(OP, device, weight, &slabs)?;
    let output = output.write(device, "output", check::bytes(OP, &[batch, m, n], DType::F32)?)?;
    encoder.force(registry);
    encoder.record(Op::Matmul(Matmul {
        input,
        weight,
        output,
        output_dtype: DType::F32,
        mlx_order: false,
        batch,
        weight_batch,
        m,
        n,
        k,
    }))
}

/// The layout, and the bytes from the first to the last value of the last row.
fn strided_rows(
    op: &str,
    strides: &GgmlBatchedQuantizedMatmulInputStrides,
    [batch, m, row_bytes]: [usize; 3],
) -> Result<(InputLayout, usize)> {
    let GgmlBatchedQuantizedMatmulInputStrides { row_bytes: row_stride, batch_bytes } = *strides;
    if row_stride % 4 != 0 || batch_bytes % 4 != 0 || (m > 1 && row_stride < row_bytes as u64) {
        return check::invalid(format!(
            "{op}: input strides must be multiples of 4 and a row's at least {row_bytes} bytes, got row_bytes {row_stride}, batch_bytes {batch_bytes}"
        ));
    }
    let last = |count: usize, stride: u64| (count as u64 - 1).checked_mul(stride);
    let end = last(batch, batch_bytes)
        .and_then(|bytes| bytes.checked_add(last(m, row_stride)?))
        .and_then(|bytes| bytes.checked_add(row_bytes as u64))
        .and_then(|bytes| usize::try_from(bytes).ok())
        .filter(|&bytes| bytes <= isize::MAX as usize);
    let Some(end) = end else {
        return check::invalid(format!(
            "{op}: input strides row_bytes {row_stride}, batch_bytes {batch_bytes} overflow"
        ));
    };
    // A stride that is never stepped over does not matter and may be any number.
    let used = |count: usize, stride: u64| if count > 1 { stride as usize } else { row_bytes };
    Ok((InputLayout::Rows { row_bytes: used(m, row_stride), batch_bytes: used(batch, batch_bytes) }, end))
}

/// The product with attention's output as it leaves the kernel: input bf16 `[k/head_dim, m, head_dim]`, logical
/// `input[i][h·head_dim + f]` = `buffer[h][i][f]`; equal, bit for bit, to permuting to f32 and calling [`quantized_matmul_ggml`].
///
/// # Errors
///
/// As [`quantized_matmul_ggml`], and when head_dim is not a positive multiple of 32 or k is not a multiple of it.
pub fn quantized_matmul_mm_tensor_perm021(
    encoder: &mut CommandEncoder,
    registry: &mut KernelRegistry,
    _device: &MlxDevice,
    input: &MlxBuffer,
    weight: &MlxBuffer,
    output: &mut MlxBuffer,
    params: &GgmlQuantizedMatmulPerm021Params,
) -> Result<()> {
    const OP: &str = "quantized_matmul_mm_tensor_perm021";
    let [m, n, k, head_dim] = [params.m, params.n, params.k, params.head_dim].map(|dim| dim as usize);
    check_shape(OP, &[("m", m), ("n", n), ("k", k)])?;
    if head_dim == 0 || !head_dim.is_multiple_of(32) || !k.is_multiple_of(head_dim) {
        return check::invalid(format!(
            "{OP}: head_dim must be a positive multiple of 32 that divides k {k}, got {head_dim}"
        ));
    }
    check::dtype_in(OP, "input", input, &[DType::BF16, DType::U16, DType::U8])?;
    check::dtype(OP, "output", output, DType::F32)?;
    let device = encoder.device_id();
    let input = Input {
        view: input.read(device, "input", check::bytes(OP, &[m, k], DType::BF16)?)?,
        dtype: DType::BF16,
        layout: InputLayout::Heads { head_dim },
    };
    let weight = ggml_view(OP, device, weight, &GgmlSlabs { ty: params.ggml_type, slabs: 1, n, k, stride: None })?;
    let output = output.write(device, "output", check::bytes(OP, &[m, n], DType::F32)?)?;
    encoder.force(registry);
    encoder.record(Op::Matmul(Matmul {
        input,
        weight,
        output,
        output_dtype: DType::F32,
        mlx_order: false,
        batch: 1,
        weight_batch: 1,
        m,
        n,
        k,
    }))
}

/// [`quantized_matmul_mm_tensor_perm021`] with an f16 weight `[n, k]`, whatever `params.ggml_type` says of the weight's origin.
///
/// # Errors
///
/// As [`quantized_matmul_mm_tensor_perm021`].
pub fn quantized_matmul_mm_tensor_perm021_f16(
    encoder: &mut CommandEncoder,
    registry: &mut KernelRegistry,
    device: &MlxDevice,
    input: &MlxBuffer,
    weight: &MlxBuffer,
    output: &mut MlxBuffer,
    params: &GgmlQuantizedMatmulPerm021Params,
) -> Result<()> {
    let params = GgmlQuantizedMatmulPerm021Params { ggml_type: GgmlType::F16, ..*params };
    quantized_matmul_mm_tensor_perm021(encoder, registry, device, input, weight, output, &params)
}
