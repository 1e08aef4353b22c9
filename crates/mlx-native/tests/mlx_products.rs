//! Products with MLX's formats beside MLX's own, recorded by `scripts/golden/make_mlx_products.py`: every mode, width and group, odd shapes, both
//! directions of `transpose`, and gathered by expert.

use mlx_native::{
    Activations, AffineFormat, DType, DeviceOptions, FpMode, MlxBuffer, MlxDevice, Result, Weight, WeightFormat,
};

const GOLDEN: &[u8] = include_bytes!("golden/mlx_products.bin");

/// The bound for f32 activations, and for 8-bit ones.
const EXACT: f64 = 1e-10;
const Q8: f64 = 1e-4;

/// The record that begins at `at`.
struct Reader {
    at: usize,
}

impl Reader {
    fn bytes(&mut self, len: usize) -> &'static [u8] {
        self.at += len;
        &GOLDEN[self.at - len..self.at]
    }

    fn u32(&mut self) -> usize {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap()) as usize
    }

    fn f32s(&mut self, count: usize) -> Vec<f32> {
        self.bytes(4 * count).as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }
}

struct Case {
    name: String,
    kind: usize,
    m: usize,
    weight: Weight,
    x: Vec<f32>,
    ids: Vec<u32>,
    y: Vec<f32>,
}

fn read(reader: &mut Reader, device: &MlxDevice) -> Result<Case> {
    let [mode, bits, group_size, dtype, kind, experts, m, n, k] = std::array::from_fn(|_| reader.u32());
    let dtype = [DType::F32, DType::F16, DType::BF16, DType::U8][dtype];
    let format = match mode {
        0 => WeightFormat::Affine(AffineFormat::new(bits as u32, group_size as u32, dtype)?),
        mode => WeightFormat::Fp([FpMode::Mxfp4, FpMode::Mxfp8, FpMode::Nvfp4][mode - 1]),
    };
    let (inputs, outputs) = if kind == 1 { (n, k) } else { (k, n) };
    let x = reader.f32s(m * inputs);
    let mut part = |dtype: DType, bytes: usize| -> Result<MlxBuffer> {
        device.buffer_from_slice(reader.bytes(bytes), dtype, vec![bytes / dtype.size_of()])
    };
    let data = part(DType::U32, experts * format.matrix_bytes(n, k)?)?;
    let side = experts * n * (k / group_size) * dtype.size_of();
    let scales = part(dtype, side)?;
    let biases = (mode == 0).then(|| part(dtype, side)).transpose()?;
    let weight = Weight::stack(format, experts, n, k, data, Some(scales), biases)?;
    let weight = if kind == 1 { weight.transposed()? } else { weight };
    let ids = if kind == 2 { reader.bytes(4 * m).as_chunks::<4>().0 } else { &[] };
    let ids = ids.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
    let y = reader.f32s(m * outputs);
    let name = format!("{format}, {} [{m}, {n}, {k}]", ["x @ w.T", "x @ w", "gathered"][kind]);
    Ok(Case { name, kind, m, weight, x, ids, y })
}

fn product(device: &MlxDevice, case: &Case) -> Result<Vec<f32>> {
    let x = device.buffer_from_slice(&case.x, DType::F32, vec![case.m, case.x.len() / case.m])?;
    let mut y = device.buffer_from_slice(&vec![f32::NAN; case.y.len()], DType::F32, vec![case.y.len()])?;
    let mut encoder = device.command_encoder()?;
    if case.kind == 2 {
        let ids = device.buffer_from_slice(&case.ids, DType::U32, vec![case.m])?;
        encoder.matmul_id(&x, &case.weight, &ids, &mut y, None)?;
    } else {
        encoder.matmul(&x, &case.weight, &mut y)?;
    }
    encoder.commit_and_wait()?;
    Ok(y.as_slice::<f32>()?.to_vec())
}

fn compare(device: &MlxDevice, bound: f64) {
    let mut reader = Reader { at: 0 };
    let (mut cases, mut worst) = (0, 0.0f64);
    while reader.at < GOLDEN.len() {
        let case = read(&mut reader, device).unwrap();
        let ours = product(device, &case).unwrap();
        let error: f64 = ours.iter().zip(&case.y).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        let nmse = error / case.y.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>();
        assert!(nmse <= bound, "{} on {}: NMSE {nmse:e}", case.name, device.name());
        worst = worst.max(nmse);
        cases += 1;
    }
    println!("{}: {cases} products, NMSE at most {worst:.1e}", device.name());
    assert_eq!(cases, 3 * (7 * 3 + 3));
}

#[test]
fn exact_activations() {
    for name in MlxDevice::cpu_instruction_sets() {
        let device = MlxDevice::cpu_with_instruction_set(name, DeviceOptions::default()).unwrap();
        compare(&device, EXACT);
    }
    compare(&MlxDevice::reference().unwrap(), EXACT);
}

#[test]
fn activations_of_8_bits() {
    let options = DeviceOptions { activations: Activations::Q8, ..Default::default() };
    compare(&MlxDevice::cpu_with(options).unwrap(), Q8);
}
