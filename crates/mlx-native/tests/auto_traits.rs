//! What callers may do with the public types besides calling them: send them to threads, share, print, copy.

use std::error::Error;
use std::fmt::Debug;

use mlx_native::io::FileMap;
use mlx_native::io::gguf::{GgufFile, GgufWriter};
use mlx_native::io::mlx_dir::MlxModelDir;
use mlx_native::io::safetensors::{SafetensorsFile, SafetensorsWriter};
use mlx_native::*;

fn shared<T: Send + Sync + Debug>() {}
fn handle<T: Send + Sync + Debug + Clone>() {}
fn plain<T: Send + Sync + Debug + Copy + PartialEq>() {}
fn sent<T: Send + Debug>() {}

#[test]
fn traits_of_public_types() {
    handle::<MlxDevice>();
    handle::<MlxBuffer>();
    handle::<Weight>();
    handle::<KernelRegistry>();
    handle::<FileMap>();
    handle::<Capability>();
    shared::<IdMmScratch>();
    shared::<GgufFile>();
    shared::<SafetensorsFile>();
    shared::<MlxModelDir>();
    sent::<CommandEncoder>();
    sent::<LimitsProbe>();
    plain::<DType>();
    plain::<GgmlType>();
    plain::<WeightFormat>();
    plain::<DeviceOptions>();
    plain::<DeviceKind>();
    plain::<CapabilityQuery>();
    plain::<GgmlQuantizedMatmulParams>();
    plain::<GgmlQuantizedMatmulIdParams>();
    plain::<GgmlBatchedQuantizedMatmulParams>();
    plain::<GgmlQuantizedMatmulPerm021Params>();
    plain::<QuantizedMatmulParams>();
    plain::<AttentionParams>();
    plain::<SampleParams>();
    fn printed<T: Debug>() {}
    printed::<GgufWriter<'_>>();
    printed::<SafetensorsWriter<'_>>();
    fn error<E: Error + Send + Sync + 'static>() {}
    error::<MlxError>();
}
