//! Every kernel on every instruction set that the machine has, for several numbers of shares, against the f64 reference.

mod attention;
mod cases;

use half::{bf16, f16};

use super::{Shared, Target, kernel};
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::kernel::{Faults, Resolver, Share};
use crate::backend::cpu::kernels::Kernels;
use crate::device::DeviceOptions;
use crate::{CommandEncoder, DType, MlxBuffer, MlxDevice, Result};

/// Values of every size, some of them negative, none zero; the same for the same seed.
fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 + 0.5) / (1u32 << 24) as f32
    };
    // A sum of uniform numbers is close to normal.
    (0..len).map(|_| (uniform() + uniform() + uniform() + uniform() - 2.0) * 1.7 + 1e-6).collect()
}

/// An operand: its content before the operation.
struct Operand {
    bytes: Vec<u8>,
    dtype: DType,
}

fn f32s(values: &[f32]) -> Operand {
    Operand { bytes: bytemuck::cast_slice(values).to_vec(), dtype: DType::F32 }
}

fn u32s(values: &[u32]) -> Operand {
    Operand { bytes: bytemuck::cast_slice(values).to_vec(), dtype: DType::U32 }
}

fn f16s(values: &[f32]) -> Operand {
    let bits: Vec<u16> = values.iter().map(|&v| f16::from_f32(v).to_bits()).collect();
    Operand { bytes: bytemuck::cast_slice(&bits).to_vec(), dtype: DType::F16 }
}

/// An output, filled with NaN (or an impossible id).
fn poison(len: usize, dtype: DType) -> Operand {
    Operand { bytes: vec![0xff; len * dtype.size_of()], dtype }
}

/// Records the operation on its operands.
type Record<'a> = &'a dyn Fn(&mut CommandEncoder, &mut [MlxBuffer]) -> Result<()>;

fn values(buffer: &MlxBuffer) -> Vec<f64> {
    let bytes = buffer.as_slice::<u8>().unwrap();
    match buffer.dtype() {
        DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        DType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        DType::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        _ => bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
    }
}

fn nmse(found: &[f64], expected: &[f64]) -> f64 {
    let error: f64 = found.iter().zip(expected).map(|(f, e)| if f == e { 0.0 } else { (f - e).powi(2) }).sum();
    error / expected.iter().map(|e| e * e).sum::<f64>().max(f64::MIN_POSITIVE)
}

fn buffers(device: &MlxDevice, operands: &[Operand]) -> Vec<MlxBuffer> {
    let buffer = |o: &Operand| device.buffer_from_slice(&o.bytes, o.dtype, vec![o.bytes.len() / o.dtype.size_of()]);
    operands.iter().map(|operand| buffer(operand).unwrap()).collect()
}

/// What the operation leaves in all operands when `parts` shares run one after the other, and the first fault.
fn run_kernel(
    isa: Isa,
    parts: usize,
    options: &DeviceOptions,
    operands: &[Operand],
    record: Record<'_>,
) -> (Vec<MlxBuffer>, Result<()>) {
    let device = MlxDevice::reference().unwrap();
    let mut buffers = buffers(&device, operands);
    let mut encoder = device.command_encoder().unwrap();
    record(&mut encoder, &mut buffers).unwrap();
    let mut resolver = Resolver::default();
    let mut shared = Shared::default();
    let mut kernels = Kernels::default();
    let faults = Faults::default();
    for (index, op) in encoder.ops().enumerate() {
        let target = Target { isa, options, threads: parts };
        kernel(op, index, &mut resolver, &mut shared, target, &mut kernels).unwrap();
        let kernel = kernels.get(index);
        for phase in 0..kernel.phases() {
            for part in 0..parts {
                kernel.run(phase, &Share { part, parts, faults: &faults });
            }
        }
    }
    drop(encoder);
    (buffers, faults.result())
}

/// Every set and number of shares gives `operands[output]` within `bound` (NMSE) of the reference, and with the same faults;
/// for one set, the same bits for every number of shares.
#[track_caller]
fn check(operands: &[Operand], outputs: &[usize], bound: f64, record: Record<'_>) {
    let device = MlxDevice::reference().unwrap();
    let mut expected = buffers(&device, operands);
    let mut encoder = device.command_encoder().unwrap();
    record(&mut encoder, &mut expected).unwrap();
    let expected_result = encoder.commit_and_wait();
    for isa in Isa::available() {
        let mut first: Option<Vec<Vec<u8>>> = None;
        for parts in [1, 2, 3, 7] {
            let (found, result) = run_kernel(isa, parts, &DeviceOptions::default(), operands, record);
            assert_eq!(result.is_err(), expected_result.is_err(), "{isa:?}, {parts} parts: {result:?}");
            for &output in outputs {
                let (f, e) = (values(&found[output]), values(&expected[output]));
                for (i, (f, e)) in f.iter().zip(&e).enumerate() {
                    assert_eq!(f.is_nan(), e.is_nan(), "{isa:?}, {parts} parts, output {output}[{i}]: {f}, not {e}");
                }
                let clean = |v: &[f64]| v.iter().map(|v| if v.is_nan() { 0.0 } else { *v }).collect::<Vec<_>>();
                let error = nmse(&clean(&f), &clean(&e));
                assert!(error <= bound, "{isa:?}, {parts} parts, output {output}: NMSE {error:e}\n{f:?}\n{e:?}");
            }
            let bits = outputs.iter().map(|&o| found[o].as_slice::<u8>().unwrap().to_vec()).collect::<Vec<_>>();
            assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{isa:?}: {parts} parts change the result");
        }
    }
}

/// The bound of exact operations.
const EXACT: f64 = 1e-10;
