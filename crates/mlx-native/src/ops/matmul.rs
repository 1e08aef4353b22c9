//! The two matrix products, dense and expert-routed, that every quantized entry point records.

use arrayvec::ArrayVec;

use super::{Op, check};
use crate::buffer::View;
use crate::device::DeviceId;
use crate::format::{FpMode, GgmlType, WeightFormat};
use crate::{CommandEncoder, DType, IdMmScratch, MlxBuffer, Result, Weight};

/// The activations of a product: logical rows `[m, k]`.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub view: View,
    /// F32, F16 or BF16; widened exactly before anything else.
    pub dtype: DType,
    pub layout: InputLayout,
}

/// Where value l of row i of batch b lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputLayout {
    /// b · batch_bytes + i · row_bytes + l · size_of(dtype)
    Rows { row_bytes: usize, batch_bytes: usize },
    /// `[k/head_dim, m, head_dim]`: row i, value h·head_dim + f at element (h·m + i)·head_dim + f. One batch.
    Heads { head_dim: usize },
}

/// The weight operand: one matrix, or a stack of them.
#[derive(Clone, Debug)]
pub(crate) struct WeightView {
    pub format: WeightFormat,
    /// Blocks or packed words.
    pub data: View,
    /// Scales of the MLX formats.
    pub scales: Option<View>,
    /// Biases of the affine format.
    pub biases: Option<View>,
    /// Bytes from one matrix of a stack to the next, in each of the three views.
    pub strides: [usize; 3],
    /// The matrix is `[k, n]` with groups along n, and the product is x @ w.
    pub transposed: bool,
}

impl WeightView {
    pub(crate) fn views(&self) -> impl Iterator<Item = &View> {
        [&self.data].into_iter().chain(&self.scales).chain(&self.biases)
    }
}

/// `output[b][i][j]` = Σ_l `weight[b'][j][l]` · `input[b][i][l]`, where b' = b ÷ (batch ÷ weight_batch).
#[derive(Clone, Debug)]
pub(crate) struct Matmul {
    pub input: Input,
    pub weight: WeightView,
    /// `[batch, m, n]`, F32 or BF16.
    pub output: View,
    pub output_dtype: DType,
    /// Where the shape allows it, in the order of accumulation of MLX's qmv kernel; for those GPUs that have it.
    #[allow(dead_code)] // Metal's kernels alone have that order, and a build may have none.
    pub mlx_order: bool,
    pub batch: usize,
    pub weight_batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// `output[t·top_k + s]` = `weight[ids[t·top_k + s]]` · `input[t]`; a bad id gives a row of NaN and an error from the wait.
#[derive(Clone, Debug)]
pub(crate) struct MatmulId {
    /// f32 rows, `[n_tokens, k]`.
    pub input: Input,
    pub weight: WeightView,
    /// u32 `[n_tokens, top_k]`
    pub ids: View,
    /// f32 `[n_tokens·top_k, n]`
    pub output: View,
    /// The caller's lists: token counts `[n_experts]` and slots `[n_tokens·top_k]`, both u32; a backend uses its own where there are none.
    pub scratch: Option<[View; 2]>,
    pub n_tokens: usize,
    pub top_k: usize,
    pub n_experts: usize,
    pub n: usize,
    pub k: usize,
}

/// The logical dimensions of a product, checked: non-zero, and none of the products overflows.
pub(super) fn check_shape(op: &str, dims: &[(&str, usize)]) -> Result<()> {
    check::non_zero(op, dims)?;
    let sizes: ArrayVec<usize, 4> = dims.iter().map(|dim| dim.1).collect();
    check::product(op, &sizes).map(|_| ())
}

/// The format has real values that a matmul can use.
pub(super) fn check_format(op: &str, ty: GgmlType) -> Result<()> {
    if ty.is_matmul_weight() {
        return Ok(());
    }
    check::invalid(format!("{op}: {ty} weights have no matmul"))
}

impl CommandEncoder {
    /// output = input · weightᵀ: input f32 (or bf16 or f16) `[m, k]`, output f32 or bf16 `[m, n]`; m = |input| / k.
    ///
    /// ```
    /// use mlx_native::{DType, GgmlType, MlxDevice, Weight};
    /// let device = MlxDevice::cpu()?;
    /// let mut data = device.alloc_buffer(2 * 18, DType::U8, vec![2, 18])?; // two rows of one Q4_0 block
    /// data.as_mut_slice::<u8>()?[..3].copy_from_slice(&[0x00, 0x3c, 0x09]); // d = 1, the first value 9 − 8
    /// let weight = Weight::ggml(GgmlType::Q4_0, 2, 32, data)?;
    /// let mut x = device.alloc_buffer(32 * 4, DType::F32, vec![1, 32])?;
    /// x.as_mut_slice::<f32>()?[0] = 3.0;
    /// let mut y = device.alloc_buffer(2 * 4, DType::F32, vec![1, 2])?;
    /// let mut encoder = device.command_encoder()?;
    /// encoder.matmul(&x, &weight, &mut y)?;
    /// encoder.commit_and_wait()?;
    /// assert_eq!(y.as_slice::<f32>()?, [3.0, 0.0]);
    /// # Ok::<(), mlx_native::MlxError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) when a dtype is unsupported, the input is no whole number of rows, the weight is a stack, or `output` is too small.
    pub fn matmul(&mut self, input: &MlxBuffer, weight: &Weight, output: &mut MlxBuffer) -> Result<()> {
        check::dtype_in("matmul", "input", input, &[DType::F32, DType::F16, DType::BF16])?;
        check::dtype_in("matmul", "output", output, &[DType::F32, DType::BF16])?;
        let (n, k) = (weight.n(), weight.k());
        let elements = input.element_count();
        if !elements.is_multiple_of(k) {
            return check::invalid(format!(
                "matmul: input of {elements} elements is no whole number of rows of k = {k}"
            ));
        }
        let m = elements / k;
        check_shape("matmul", &[("m", m), ("n", n), ("k", k)])?;
        let device = self.device_id();
        let row_bytes = k * input.dtype().size_of();
        let output_bytes = check::bytes("matmul", &[m, n], output.dtype())?;
        self.record(Op::Matmul(Matmul {
            input: Input {
                view: input.read(device, "input", m * row_bytes)?,
                dtype: input.dtype(),
                layout: InputLayout::Rows { row_bytes, batch_bytes: m * row_bytes },
            },
            weight: weight.matrix_view(device, "matmul")?,
            output: output.write(device, "output", output_bytes)?,
            output_dtype: output.dtype(),
            mlx_order: false,
            batch: 1,
            weight_batch: 1,
            m,
            n,
            k,
        }))
    }

    /// `output[t·top_k + s]` = `weight[ids[t·top_k + s]]` · `input[t]`: input f32 `[n_tokens, k]`, ids u32 `[n_tokens, top_k]`, output f32
    /// `[n_tokens·top_k, n]`; weight a stack (see [`Weight::stack`]). top_k = |ids| / n_tokens.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) when a dtype is wrong, the input is no whole number of rows, the ids are no whole number per token, or a buffer is too small.
    /// An id that is no expert comes back from the wait as [`CommandBufferError`](crate::MlxError::CommandBufferError), and its row is NaN.
    pub fn matmul_id(
        &mut self,
        input: &MlxBuffer,
        weight: &Weight,
        ids: &MlxBuffer,
        output: &mut MlxBuffer,
        scratch: Option<&mut IdMmScratch>,
    ) -> Result<()> {
        check::dtype("matmul_id", "input", input, DType::F32)?;
        check::dtype("matmul_id", "ids", ids, DType::U32)?;
        let k = weight.k();
        let (elements, slots) = (input.element_count(), ids.element_count());
        if !elements.is_multiple_of(k) || elements == 0 || !slots.is_multiple_of(elements / k) {
            return check::invalid(format!(
                "matmul_id: {elements} input elements and {slots} ids are no whole number of rows of k = {k} and of ids for each"
            ));
        }
        let n_tokens = elements / k;
        let view = weight.stack_view(self.device_id())?;
        let shape = IdShape { n_tokens, top_k: slots / n_tokens, n_experts: weight.n_experts(), n: weight.n(), k };
        let op = matmul_id(self.device_id(), IdOperands { input, ids, output, scratch }, view, shape)?;
        self.record(op)
    }
}

/// The buffers of an expert-routed product.
pub(super) struct IdOperands<'a> {
    pub input: &'a MlxBuffer,
    pub ids: &'a MlxBuffer,
    pub output: &'a mut MlxBuffer,
    pub scratch: Option<&'a mut IdMmScratch>,
}

/// The dimensions of an expert-routed product.
pub(super) struct IdShape {
    pub n_tokens: usize,
    pub top_k: usize,
    pub n_experts: usize,
    pub n: usize,
    pub k: usize,
}

/// An expert-routed product over a weight that has been checked, with its other operands checked.
pub(super) fn matmul_id(device: DeviceId, operands: IdOperands<'_>, weight: WeightView, shape: IdShape) -> Result<Op> {
    const OP: &str = "quantized_matmul_id";
    let IdShape { n_tokens, top_k, n_experts, n, k } = shape;
    let dims = [("n_tokens", n_tokens), ("top_k", top_k), ("n", n), ("k", k), ("n_experts", n_experts)];
    check::non_zero(OP, &dims)?;
    check::dtype(OP, "input", operands.input, DType::F32)?;
    check::dtype(OP, "output", operands.output, DType::F32)?;
    check::dtype_in(OP, "ids", operands.ids, &[DType::U32, DType::I32])?;
    let input_bytes = check::bytes(OP, &[n_tokens, k], DType::F32)?;
    let ids_bytes = check::bytes(OP, &[n_tokens, top_k], DType::U32)?;
    let output_bytes = check::bytes(OP, &[n_tokens, top_k, n], DType::F32)?;
    if n_tokens.saturating_mul(top_k) > u32::MAX as usize {
        return check::invalid(format!("{OP}: {n_tokens} tokens × top_k {top_k} exceed 2^32 slots"));
    }
    let input = Input {
        view: operands.input.read(device, "input", input_bytes)?,
        dtype: DType::F32,
        layout: InputLayout::Rows { row_bytes: k * 4, batch_bytes: input_bytes },
    };
    let ids = operands.ids.read(device, "ids", ids_bytes)?;
    let scratch = match operands.scratch {
        None => None,
        Some(scratch) => Some(scratch.views(device, n_experts, n_tokens, top_k)?),
    };
    let output = operands.output.write(device, "output", output_bytes)?;
    Ok(Op::MatmulId(MatmulId { input, weight, ids, output, scratch, n_tokens, top_k, n_experts, n, k }))
}

/// A GGML weight in a buffer: `slabs` matrices `[n, k]`, `stride` bytes apart.
pub(super) struct GgmlSlabs {
    pub ty: GgmlType,
    pub slabs: usize,
    pub n: usize,
    pub k: usize,
    pub stride: Option<u64>,
}

/// Checks that `weight` holds the matrices in full.
pub(super) fn ggml_view(op: &str, device: DeviceId, weight: &MlxBuffer, slabs: &GgmlSlabs) -> Result<WeightView> {
    check_format(op, slabs.ty)?;
    let format = WeightFormat::Ggml(slabs.ty);
    let slab = format.matrix_bytes(slabs.n, slabs.k)?;
    let stride = match slabs.stride {
        None => slab,
        Some(stride) => match usize::try_from(stride) {
            Ok(stride) if stride >= slab || slabs.slabs == 1 => stride,
            _ => {
                return check::invalid(format!(
                    "{op}: expert_stride must be at least one slab, {slab} bytes, got {stride}"
                ));
            }
        },
    };
    let last = (slabs.slabs - 1).checked_mul(stride).and_then(|bytes| bytes.checked_add(slab));
    let Some(bytes) = last.filter(|&bytes| bytes <= isize::MAX as usize) else {
        return check::invalid(format!("{op}: {} slabs {stride} bytes apart exceed the address space", slabs.slabs));
    };
    Ok(WeightView {
        format,
        data: weight.read(device, "weight", bytes)?,
        scales: None,
        biases: None,
        strides: [stride, 0, 0],
        transposed: false,
    })
}

/// Bytes of the scales (and as many biases) of one matrix of an MLX format.
pub(crate) fn scale_bytes(format: &WeightFormat, rows: usize, k: usize) -> Result<usize> {
    match format {
        WeightFormat::Ggml(_) => Ok(0),
        WeightFormat::Affine(affine) => check::bytes("scales", &[rows, affine.groups(k)?], affine.scale_dtype),
        WeightFormat::Fp(mode) => check::product("scales", &[rows, fp_groups(*mode, k)?]),
    }
}

fn fp_groups(mode: FpMode, k: usize) -> Result<usize> {
    let group = mode.group_size() as usize;
    if k.is_multiple_of(group) {
        return Ok(k / group);
    }
    check::invalid(format!("{mode}: k must be a multiple of the group size {group}, got {k}"))
}
