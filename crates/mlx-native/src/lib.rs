//! Quantized matrix multiplication for inference: weights as they lie in a GGUF or MLX file times activations, dense or expert-routed.
//!
//! * [`MlxDevice`] opens a device, allocates [`MlxBuffer`]s and hands out [`CommandEncoder`]s.
//! * [`Weight`] is a weight in any [`WeightFormat`]; [`CommandEncoder::matmul`] and its neighbours record operations, and a commit runs them.
//! * [`ops`] has the published long-signature functions ([`quantized_matmul_ggml`], …), which record the same operations.
//! * [`mod@format`] says what the bytes of a weight mean; [`io`] reads and writes files.
//!
//! ```
//! use mlx_native::{DType, GgmlType, MlxDevice, Weight};
//!
//! let device = MlxDevice::new()?; // the best device of this machine; `MlxDevice::cpu()` is one that every machine has
//! let (m, n, k) = (2, 3, 64);
//! // Blocks as a GGUF file holds them, here all zeros; `io::gguf` maps a file's.
//! let blocks = device.alloc_buffer(n * GgmlType::Q8_0.row_bytes(k)?, DType::U8, vec![n, GgmlType::Q8_0.row_bytes(k)?])?;
//! let weight = Weight::ggml(GgmlType::Q8_0, n, k, blocks)?;
//! let x = device.buffer_from_slice(&vec![1.0f32; m * k], DType::F32, vec![m, k])?;
//! let mut y = device.alloc_buffer(m * n * 4, DType::F32, vec![m, n])?;
//!
//! let mut encoder = device.command_encoder()?;
//! encoder.matmul(&x, &weight, &mut y)?; // y = x · weightᵀ, recorded
//! encoder.commit_and_wait()?; // and computed
//! assert_eq!(y.as_slice::<f32>()?, [0.0; 6]);
//! # Ok::<(), mlx_native::MlxError>(())
//! ```
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod backend;
mod buffer;
mod device;
mod dtype;
mod encoder;
mod error;
pub mod format;
pub mod io;
mod kernel_registry;
mod limits;
mod memory;
pub mod ops;
mod shelf;
mod timing;
mod weight;

pub use backend::{Capability, CapabilityQuery, MatmulShape, OpKind, capability};
pub use buffer::MlxBuffer;
pub use device::{Activations, DeviceKind, DeviceOptions, MlxDevice, Pace};
pub use dtype::DType;
pub use encoder::CommandEncoder;
pub use error::{MlxError, Result};
pub use format::{AffineFormat, FpMode, GgmlType, WeightFormat};
pub use kernel_registry::KernelRegistry;
pub use limits::{Limits, LimitsProbe};
pub use ops::quantized_matmul::{
    QuantizedMatmulParams, dispatch_quantized_matmul_simd_bf16, dispatch_quantized_matmul_simd_bf16_expert,
    quantized_matmul, quantized_matmul_simd,
};
pub use ops::quantized_matmul_ggml::{
    GgmlBatchedQuantizedMatmulInputStrides, GgmlBatchedQuantizedMatmulParams, GgmlQuantizedMatmulParams,
    GgmlQuantizedMatmulPerm021Params, MM_ROUTING_THRESHOLD, quantized_matmul_ggml, quantized_matmul_ggml_batched,
    quantized_matmul_ggml_batched_strided, quantized_matmul_mm_tensor_perm021, quantized_matmul_mm_tensor_perm021_f16,
};
pub use ops::quantized_matmul_id_ggml::{
    GgmlQuantizedMatmulIdParams, IdMmScratch, MM_ID_ROUTING_THRESHOLD, quantized_matmul_id_ggml,
    quantized_matmul_id_ggml_pooled,
};
pub use ops::{
    Activation, AttentionParams, Binary, CastDirection, EmbeddingParams, ExpertGateParams, KvCacheParams,
    RmsNormParams, RopeParams, RopeStyle, SampleParams, cast,
};
pub use timing::{Laps, VendorProduct};
pub use weight::Weight;

/// The README's example, compiled and run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
