//! Quantized matrix multiplication for inference: weights as they lie in a GGUF or MLX file times activations, dense or expert-routed.
//!
//! * [`MlxDevice`] opens a device, allocates [`MlxBuffer`]s and hands out [`CommandEncoder`]s.
//! * [`Weight`] is a weight in any [`WeightFormat`]; [`CommandEncoder::matmul`] and its neighbours record operations, and a commit runs them.
//! * [`ops`] has the published long-signature functions ([`quantized_matmul_ggml`], …), which record the same operations.
//! * [`mod@format`] says what the bytes of a weight mean; [`io`] reads and writes files.
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
