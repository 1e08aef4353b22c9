//! Which kernel a product runs: by the number of rows, the format, the shape, and what the device has.

use crate::backend::metal::source::PASSES;
use crate::device::{Activations, DeviceOptions};
use crate::format::WeightFormat;
use crate::ops::{InputLayout, Matmul, MatmulId};
use crate::{DType, MM_ID_ROUTING_THRESHOLD, MM_ROUTING_THRESHOLD, MlxError, Result};

/// What the choice of a kernel depends on beside the operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Routing {
    pub options: DeviceOptions,
    /// The device compiles and runs Metal's tensor operations.
    pub tensor_ops: bool,
}

/// How a tile's products are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operands {
    /// Simdgroup matrices of f16, scaled in blocks.
    Half,
    /// Simdgroup matrices of f32.
    Float,
    /// Tensor operations on f16, scaled in blocks.
    Tensor,
}

/// A kernel of a dense product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dense {
    /// So many input rows at a time, and so many columns to a team of lanes.
    Rows { rows: u32, columns: u32 },
    /// Tiles of 64 columns by 32 rows.
    Tile(Operands),
    /// Tiles of 64 columns by 128 rows over f32 input, by tensor operations or by simdgroup matrices.
    Large { tensor: bool },
    /// MLX's order of accumulation, a lane with so many neighbouring values.
    Qmv { values: u32 },
    /// x @ w
    Transposed,
}

/// A kernel of an expert-routed product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Routed {
    /// Slot by slot.
    Rows,
    /// Tiles over each expert's list.
    Tile(Operands),
}

/// What the choice of a dense kernel looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DenseShape {
    pub m: usize,
    /// x @ w
    pub transposed: bool,
    /// The large tile can read the input: f32 whose rows are whole floats apart, or heads that are widened first; k a multiple of 8.
    pub large: bool,
    /// Values of a lane where MLX's order of accumulation is asked for and the shape is one of its fast kernel's.
    pub qmv: Option<u32>,
}

impl DenseShape {
    pub(crate) fn of(op: &Matmul) -> DenseShape {
        let float_rows = match op.input.layout {
            InputLayout::Rows { row_bytes, batch_bytes } => {
                // Strides of a tensor are signed.
                let whole = row_bytes.is_multiple_of(4) && batch_bytes.is_multiple_of(4);
                op.input.dtype == DType::F32 && whole && i32::try_from(row_bytes / 4).is_ok()
            }
            InputLayout::Heads { .. } => op.input.dtype == DType::BF16,
        };
        DenseShape {
            m: op.m,
            transposed: op.weight.transposed,
            large: float_rows && large_k(op.k),
            qmv: if op.mlx_order { qmv_values(op) } else { None },
        }
    }
}

/// Whether the large tile's steps come out even.
pub(crate) fn large_k(k: usize) -> bool {
    k.is_multiple_of(8)
}

/// Neighbouring values that a lane of MLX's kernel has: 8, and 16 of bf16 with weights of 4 bits; none where the shape does not divide.
fn qmv_values(op: &Matmul) -> Option<u32> {
    let WeightFormat::Affine(affine) = op.weight.format else { return None };
    let values = match (affine.bits, op.input.dtype) {
        (4, DType::BF16) => 16,
        (4 | 8, _) => 8,
        _ => return None,
    };
    let whole = op.n.is_multiple_of(8)
        && op.k.is_multiple_of(32 * values as usize)
        && affine.group_size.is_multiple_of(values)
        && (op.batch, op.weight.transposed) == (1, false);
    whole.then_some(values)
}

impl Dense {
    const ALL: [Dense; 12] = [
        Dense::Rows { rows: PASSES[0].0, columns: PASSES[0].1 },
        Dense::Rows { rows: PASSES[1].0, columns: PASSES[1].1 },
        Dense::Rows { rows: PASSES[2].0, columns: PASSES[2].1 },
        Dense::Rows { rows: PASSES[3].0, columns: PASSES[3].1 },
        Dense::Tile(Operands::Half),
        Dense::Tile(Operands::Float),
        Dense::Tile(Operands::Tensor),
        Dense::Large { tensor: false },
        Dense::Large { tensor: true },
        Dense::Qmv { values: 8 },
        Dense::Qmv { values: 16 },
        Dense::Transposed,
    ];

    /// The kernel for a shape. The tile kernels sum in another order than the row kernels, so with `batch_invariant` the row kernels run at
    /// every m, eight rows to a pass.
    pub(crate) fn choose(shape: &DenseShape, routing: &Routing) -> Dense {
        if shape.transposed {
            return Dense::Transposed;
        }
        if let Some(values) = shape.qmv {
            return Dense::Qmv { values };
        }
        if shape.m <= MM_ROUTING_THRESHOLD as usize || routing.options.batch_invariant {
            let (rows, columns) = pass(shape.m);
            return Dense::Rows { rows, columns };
        }
        match operands(routing) {
            Operands::Float => Dense::Tile(Operands::Float),
            _ if shape.large && large_pays(shape.m) => Dense::Large { tensor: routing.tensor_ops },
            operands => Dense::Tile(operands),
        }
    }

    /// The kernel that is asked for by name.
    pub(crate) fn named(name: &str, shape: &DenseShape, routing: &Routing) -> Result<Dense> {
        let suits = |kernel: &Dense| match kernel {
            Dense::Transposed => shape.transposed,
            Dense::Tile(Operands::Tensor) => routing.tensor_ops && !shape.transposed,
            Dense::Large { tensor } => {
                shape.large && shape.m >= 8 && (!tensor || routing.tensor_ops) && !shape.transposed
            }
            Dense::Qmv { values } => shape.qmv == Some(*values),
            Dense::Rows { .. } | Dense::Tile(_) => !shape.transposed,
        };
        let kernel = Dense::ALL.into_iter().filter(suits).find(|kernel| kernel.name() == name);
        kernel.ok_or_else(|| not_found(name, Dense::choose(shape, routing).name()))
    }

    /// The function's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Dense::Rows { rows: 1, .. } => "mv_r1",
            Dense::Rows { rows: 2, .. } => "mv_r2",
            Dense::Rows { rows: 4, .. } => "mv_r4",
            Dense::Rows { .. } => "mv_r8",
            Dense::Tile(Operands::Half) => "mm",
            Dense::Tile(Operands::Float) => "mm_f32",
            Dense::Tile(Operands::Tensor) => "mm_tensor",
            Dense::Large { tensor: false } => "mm_large",
            Dense::Large { tensor: true } => "mm_large_tensor",
            Dense::Qmv { values: 16 } => "qmv_16",
            Dense::Qmv { .. } => "qmv_8",
            Dense::Transposed => "vm",
        }
    }

    /// Whether the kernel stands in the library of tensor operations.
    pub(crate) fn is_tensor(self) -> bool {
        matches!(self, Dense::Tile(Operands::Tensor) | Dense::Large { tensor: true })
    }
}

/// Whether tiles of 128 rows make at most an eighth more rows than tiles of 32.
fn large_pays(m: usize) -> bool {
    m.div_ceil(128) * 128 * 8 <= m.div_ceil(32) * 32 * 9
}

impl Routed {
    const ALL: [Routed; 4] =
        [Routed::Rows, Routed::Tile(Operands::Half), Routed::Tile(Operands::Float), Routed::Tile(Operands::Tensor)];

    /// The kernel for so many tokens.
    pub(crate) fn choose(n_tokens: usize, routing: &Routing) -> Routed {
        if n_tokens <= MM_ID_ROUTING_THRESHOLD as usize || routing.options.batch_invariant {
            return Routed::Rows;
        }
        Routed::Tile(operands(routing))
    }

    /// The kernel that is asked for by name.
    pub(crate) fn named(name: &str, op: &MatmulId, routing: &Routing) -> Result<Routed> {
        let suits = |kernel: &Routed| *kernel != Routed::Tile(Operands::Tensor) || routing.tensor_ops;
        let kernel = Routed::ALL.into_iter().filter(suits).find(|kernel| kernel.name() == name);
        kernel.ok_or_else(|| not_found(name, Routed::choose(op.n_tokens, routing).name()))
    }

    /// The function's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Routed::Rows => "mv_id",
            Routed::Tile(Operands::Half) => "mm_id",
            Routed::Tile(Operands::Float) => "mm_id_f32",
            Routed::Tile(Operands::Tensor) => "mm_id_tensor",
        }
    }

    /// Whether the kernel stands in the library of tensor operations.
    pub(crate) fn is_tensor(self) -> bool {
        self == Routed::Tile(Operands::Tensor)
    }
}

impl Operands {
    /// Threadgroup memory of a tile of 64 columns by 32 rows, 32 of k deep: both operands and, in f16, their scales, or the result on its
    /// way out.
    pub(crate) fn tile_bytes(self) -> usize {
        match self {
            Operands::Half => 64 * 32 * 4,
            Operands::Float => (64 + 32) * 32 * 4,
            // The result leaves the registers for device memory.
            Operands::Tensor => (64 + 32) * (32 * 2 + 4),
        }
    }
}

fn operands(routing: &Routing) -> Operands {
    match routing.options.activations {
        Activations::Exact => Operands::Float,
        Activations::Auto | Activations::Q8 if routing.tensor_ops => Operands::Tensor,
        Activations::Auto | Activations::Q8 => Operands::Half,
    }
}

/// Input rows that a pass over the weights serves, and columns of a team.
fn pass(m: usize) -> (u32, u32) {
    PASSES.into_iter().find(|(rows, _)| m <= *rows as usize).unwrap_or(PASSES[PASSES.len() - 1])
}

fn not_found(name: &str, chosen: &str) -> MlxError {
    MlxError::KernelNotFound(format!("{name}: no Metal kernel of this operation and shape; `{chosen}` runs it"))
}
