//! Whether this GPU and system run tensor operations: a small product is compiled, run once and compared, and the compiler takes our kernels.

use half::f16;
use objc2_metal::{
    MTLCommandBuffer, MTLCommandEncoder, MTLCommandQueue, MTLComputeCommandEncoder, MTLLanguageVersion, MTLSize,
};

use super::MetalBackend;
use super::memory::Buffer;
use crate::backend::metal::launches::{Library, WeightText};
use crate::backend::metal::source;
use crate::{GgmlType, Result};

/// Rows, columns and depth of the product.
const SIDE: usize = 32;

/// Whether tensor operations compile and give right results. What fails on the way is a no.
pub(super) fn tensor_operations(backend: &MetalBackend) -> bool {
    // They came with Metal 4.
    objc2::available!(macos = 26.0) && run(backend).unwrap_or(false) && kernels_compile(backend).is_ok()
}

/// Makes the pipelines of one weight format; the other formats' differ in how they decode.
fn kernels_compile(backend: &MetalBackend) -> Result<()> {
    let (name, text) = source::assemble(Library::Tensor(WeightText::Ggml(GgmlType::F16)));
    let library = backend.pipelines.compile(&name, &text, MTLLanguageVersion::Version4_0)?;
    // Input and output in f32.
    let constants = [(0, 0), (1, 0)];
    source::TENSOR_KERNELS
        .iter()
        .try_for_each(|function| backend.pipelines.pipeline(&library, function, &constants).map(drop))
}

fn run(backend: &MetalBackend) -> Result<bool> {
    const NAME: &str = "probe.metal";
    let library = backend.pipelines.compile(NAME, include_str!("probe.metal"), MTLLanguageVersion::Version4_0)?;
    let pipeline = backend.pipelines.pipeline(&library, "probe", &[])?;
    // Small whole numbers, so that sums are exact in every order.
    let x: Vec<f16> = (0..SIDE * SIDE).map(|i| f16::from_f32((i % 7) as f32 - 3.0)).collect();
    let w: Vec<f16> = (0..SIDE * SIDE).map(|i| f16::from_f32((i % 5) as f32 - 2.0)).collect();
    let (matrix, result) = (SIDE * SIDE * 2, SIDE * SIDE * 4);
    let memory = backend.pool.take(2 * matrix + result)?;
    // SAFETY: the memory has room for both matrices and the result, and no command uses it.
    unsafe {
        x.as_ptr().cast::<u8>().copy_to_nonoverlapping(memory.contents(), matrix);
        w.as_ptr().cast::<u8>().copy_to_nonoverlapping(memory.contents().add(matrix), matrix);
        memory.contents().add(2 * matrix).write_bytes(0xff, result);
    }
    backend.pool.settle();
    let right = dispatch(backend, &pipeline, &memory, [0, matrix, 2 * matrix]).is_some() && {
        let first = memory.contents().wrapping_add(2 * matrix).cast::<f32>();
        // SAFETY: inside of the memory, at a multiple of 4 bytes from a page's start; the work has ended.
        let y = unsafe { std::slice::from_raw_parts(first, SIDE * SIDE) };
        is_product(&x, &w, y)
    };
    backend.pool.put_back(memory);
    Ok(right)
}

/// Runs the kernel and waits; None when it could not run to its end.
fn dispatch(
    backend: &MetalBackend,
    pipeline: &super::pipelines::Pipeline,
    memory: &Buffer,
    offsets: [usize; 3],
) -> Option<()> {
    let command_buffer = backend.queue.commandBuffer()?;
    let encoder = command_buffer.computeCommandEncoder()?;
    encoder.setComputePipelineState(pipeline);
    for (index, offset) in offsets.into_iter().enumerate() {
        // SAFETY: the offsets lie inside of the memory, with what the kernel touches behind them.
        unsafe { encoder.setBuffer_offset_atIndex(Some(memory.get()), offset, index) };
    }
    // SAFETY: the kernel has one threadgroup argument, for the two operands.
    unsafe { encoder.setThreadgroupMemoryLength_atIndex(2 * SIDE * SIDE * 2, 0) };
    let one = MTLSize { width: 1, height: 1, depth: 1 };
    encoder.dispatchThreadgroups_threadsPerThreadgroup(one, MTLSize { width: 32, ..one });
    encoder.endEncoding();
    command_buffer.commit();
    command_buffer.waitUntilCompleted();
    command_buffer.error().is_none().then_some(())
}

fn is_product(x: &[f16], w: &[f16], y: &[f32]) -> bool {
    y.chunks_exact(SIDE).zip(x.chunks_exact(SIDE)).all(|(row, x)| {
        row.iter()
            .zip(w.chunks_exact(SIDE))
            .all(|(&found, w)| found == x.iter().zip(w).map(|(x, w)| x.to_f32() * w.to_f32()).sum::<f32>())
    })
}
