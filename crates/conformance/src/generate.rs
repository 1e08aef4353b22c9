//! Random operands: seeded, never zero, and weights whose every bit pattern is used.

use fastrand::Rng;
use half::f16;
use mlx_native::format::affine::Groups;
use mlx_native::format::ggml::Scalar;
use mlx_native::format::{can_quantize, dequantize_row, quantize_row};
use mlx_native::{FpMode, GgmlType, MlxDevice, Result, Weight, WeightFormat};

use crate::Array;

/// A generator that depends on nothing but these two.
pub fn rng(seed: u64, name: &str) -> Rng {
    // FNV-1a: the same on every machine and in every version, unlike the standard library's hashes.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    Rng::with_seed(hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// About normally distributed with variance 1, and never closer to zero than 0.001.
pub fn normal(rng: &mut Rng) -> f32 {
    let sum: f32 = (0..4).map(|_| rng.f32()).sum();
    let value = (sum - 2.0) * 3f32.sqrt();
    if value.abs() < 1e-3 { 1e-3 } else { value }
}

/// `len` such values, times `scale`.
pub fn normals(rng: &mut Rng, len: usize, scale: f32) -> Vec<f32> {
    (0..len).map(|_| normal(rng) * scale).collect()
}

/// A weight on the host: `n_experts` matrices `[n, k]`.
#[derive(Clone, Debug)]
pub struct WeightData {
    /// Format.
    pub format: WeightFormat,
    /// Matrices.
    pub n_experts: usize,
    /// Rows of a matrix.
    pub n: usize,
    /// Values of a row.
    pub k: usize,
    /// Blocks or packed values.
    pub data: Array,
    /// Scales of the MLX formats.
    pub scales: Option<Array>,
    /// Biases of the affine format.
    pub biases: Option<Array>,
}

/// How large the scales of generated weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// Such that values are around 1.
    Ordinary,
    /// f16 scales below 2^-10, many of them subnormal; the smallest exponents of the 8-bit scale types.
    Tiny,
}

impl WeightData {
    /// A random weight. GGML blocks are half quantized random values (where the library writes the format), half random bytes with sane scales; MLX
    /// formats are random bits, those of the padding included.
    ///
    /// # Errors
    ///
    /// InvalidArgument when k does not suit the format.
    pub fn random(
        format: WeightFormat,
        n_experts: usize,
        n: usize,
        k: usize,
        scales: Scales,
        rng: &mut Rng,
    ) -> Result<WeightData> {
        let rows = n_experts * n;
        let row_bytes = format.row_bytes(k)?;
        let mut weight =
            WeightData { format, n_experts, n, k, data: Array::raw(Vec::new()), scales: None, biases: None };
        match format {
            WeightFormat::Ggml(ty) => {
                let blocks = BlockPool::new(ty, scales, rng)?;
                let count = row_bytes / ty.block_bytes() as usize * rows;
                weight.data.bytes = (0..count).flat_map(|_| blocks.pick(rng).to_vec()).collect();
            }
            WeightFormat::Affine(affine) => {
                weight.data.bytes = random_bytes(rng, row_bytes * rows);
                let groups = affine.groups(k)? * rows;
                let size = if scales == Scales::Tiny { 1e-6 } else { 1.0 } / f32::from(1u16 << affine.bits);
                let side = |rng: &mut Rng| Array::floats(affine.scale_dtype, &normals(rng, groups, size));
                weight.scales = Some(side(rng));
                weight.biases = Some(side(rng));
            }
            WeightFormat::Fp(mode) => {
                weight.data.bytes = random_bytes(rng, row_bytes * rows);
                if mode == FpMode::Mxfp8 {
                    weight.data.bytes.iter_mut().filter(|byte| **byte & 0x7f == 0x7f).for_each(|byte| *byte ^= 0x40);
                }
                let side = (0..mode.groups(k) * rows).map(|_| fp_scale(mode, scales, rng)).collect();
                weight.scales = Some(Array::raw(side));
            }
        }
        Ok(weight)
    }

    /// The weight on a device.
    ///
    /// # Errors
    ///
    /// Those of the allocation.
    pub fn upload(&self, device: &MlxDevice) -> Result<Weight> {
        let side = |array: &Option<Array>| array.as_ref().map(|array| array.upload(device)).transpose();
        let data = self.data.upload(device)?;
        Weight::stack(self.format, self.n_experts, self.n, self.k, data, side(&self.scales)?, side(&self.biases)?)
    }

    /// All values, decoded.
    ///
    /// # Errors
    ///
    /// None for a weight made by [`random`](Self::random).
    pub fn decode(&self) -> Result<Vec<f32>> {
        let row_bytes = self.format.row_bytes(self.k)?;
        let side = |array: &Option<Array>| -> Vec<f32> {
            array.iter().flat_map(Array::values).map(|value| value as f32).collect()
        };
        let (scales, biases) = (side(&self.scales), side(&self.biases));
        let mut values = vec![0.0; self.n_experts * self.n * self.k];
        for (row, values) in values.chunks_mut(self.k).enumerate() {
            let packed = &self.data.bytes[row * row_bytes..][..row_bytes];
            match self.format {
                WeightFormat::Ggml(ty) => dequantize_row(ty, packed, values)?,
                WeightFormat::Affine(affine) => {
                    let groups = affine.groups(self.k)?;
                    let of_row = |side: &'_ [f32]| side[row * groups..][..groups].to_vec();
                    let (scales, biases) = (of_row(&scales), of_row(&biases));
                    affine.dequantize_row(packed, Groups { scales: &scales, biases: &biases }, values)?;
                }
                WeightFormat::Fp(mode) => {
                    let groups = mode.groups(self.k);
                    let scales = self.scales.as_ref().map_or(&[][..], |array| &array.bytes);
                    mode.dequantize_row(packed, &scales[row * groups..][..groups], values)?;
                }
            }
        }
        Ok(values)
    }
}

fn random_bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.u8(..)).collect()
}

/// A scale byte of an fp mode that is neither NaN nor infinite.
fn fp_scale(mode: FpMode, scales: Scales, rng: &mut Rng) -> u8 {
    match (mode, scales) {
        // E8M0: around 1 for the largest codes 6 and 448, or 2^-100 and below.
        (FpMode::Mxfp4, Scales::Ordinary) => rng.u8(121..=130),
        (FpMode::Mxfp8, Scales::Ordinary) => rng.u8(114..=121),
        (FpMode::Mxfp4 | FpMode::Mxfp8, Scales::Tiny) => rng.u8(20..=27),
        // E4M3 with its sign: around 1, or subnormal.
        (FpMode::Nvfp4, Scales::Ordinary) => rng.u8(0x30..=0x40) | (rng.u8(..) & 0x80),
        (FpMode::Nvfp4, Scales::Tiny) => rng.u8(1..=7),
    }
}

/// Blocks of one type to build matrices from; a block's cost is paid once.
struct BlockPool {
    block_bytes: usize,
    bytes: Vec<u8>,
}

impl BlockPool {
    const BLOCKS: usize = 64;

    fn new(ty: GgmlType, scales: Scales, rng: &mut Rng) -> Result<BlockPool> {
        let (block_bytes, values) = (ty.block_bytes() as usize, ty.block_values() as usize);
        let mut bytes = random_bytes(rng, Self::BLOCKS * block_bytes);
        // The search for points of a grid takes long, and any bits are points of it.
        let searched = ty.block_format().codebooks.iter().any(|name| name.ends_with("_GRID"));
        for (i, block) in bytes.chunks_mut(block_bytes).enumerate() {
            let plain = values == 1;
            if can_quantize(ty) && !searched && (i % 2 == 0 || plain) {
                // Decaying magnitudes give sub-blocks with scales of all sizes.
                let size = if scales == Scales::Tiny { 1e-4 } else { 1.0 };
                let decay: Vec<f32> = (0..values).map(|l| normal(rng) * size / (1 + l / 16) as f32).collect();
                quantize_row(ty, &decay, block)?;
            } else {
                set_scales(ty, scales, block, rng);
            }
        }
        Ok(BlockPool { block_bytes, bytes })
    }

    fn pick(&self, rng: &mut Rng) -> &[u8] {
        let i = rng.usize(..Self::BLOCKS);
        &self.bytes[i * self.block_bytes..][..self.block_bytes]
    }
}

/// Overwrites a random block's scales with finite ones that bring its values to around 1 (or below 2^-10 · that).
fn set_scales(ty: GgmlType, scales: Scales, block: &mut [u8], rng: &mut Rng) {
    let format = ty.block_format();
    let largest = {
        let mut unit = block.to_vec();
        put_scales(format.fields, &mut unit, |_| 1.0);
        embedded_scales(ty, &mut unit, Scales::Ordinary, &mut rng.clone());
        let mut values = vec![0.0f32; ty.block_values() as usize];
        let decoded = dequantize_row(ty, &unit, &mut values);
        debug_assert!(decoded.is_ok());
        values.iter().fold(1e-3f32, |largest, value| largest.max(value.abs()))
    };
    let size = match scales {
        Scales::Ordinary => 2.0 / largest,
        // Around the border 2^-14 between normal and subnormal f16, whatever the format's range of integers.
        Scales::Tiny => 6e-5,
    };
    put_scales(format.fields, block, |rank| {
        // The second scale of a block (minimum, sum) is smaller, as in real weights.
        let sign = if rng.bool() { 1.0 } else { -1.0 };
        sign * size * (0.25 + 0.75 * rng.f32()) / (1 + rank) as f32
    });
    embedded_scales(ty, block, scales, rng);
}

/// Puts `scale(rank)` into each f16 field of a block, where rank counts them.
fn put_scales(fields: &[mlx_native::format::ggml::Field], block: &mut [u8], mut scale: impl FnMut(usize) -> f32) {
    for (rank, field) in fields.iter().filter(|field| field.scalar == Scalar::F16).enumerate() {
        for at in 0..field.bytes() / 2 {
            let bits = f16::from_f32(scale(rank)).to_le_bytes();
            block[field.offset + 2 * at..][..2].copy_from_slice(&bits);
        }
    }
}

/// Scales that are not an f16 field of their own.
fn embedded_scales(ty: GgmlType, block: &mut [u8], scales: Scales, rng: &mut Rng) {
    let tiny = scales == Scales::Tiny;
    match ty {
        // E8M0 exponent.
        GgmlType::MXFP4 => block[0] = if tiny { rng.u8(20..=27) } else { rng.u8(121..=130) },
        // Four UE4M3.
        GgmlType::NVFP4 => {
            block[..4].iter_mut().for_each(|byte| *byte = if tiny { rng.u8(1..=7) } else { rng.u8(0x30..=0x40) })
        }
        // An f16 in the upper nibbles of the four 16-bit scale words: its sign and upper exponent bits stand in the last one.
        GgmlType::IQ1_M => block[55] = (block[55] & 0x0f) | if tiny { 0x00 } else { 0x20 },
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx_native::{AffineFormat, DType};

    fn formats() -> impl Iterator<Item = WeightFormat> {
        let ggml = GgmlType::all().filter(|ty| ty.is_matmul_weight()).map(WeightFormat::Ggml);
        let affine = [1, 2, 3, 4, 5, 6, 8].map(|bits| AffineFormat { bits, group_size: 64, scale_dtype: DType::BF16 });
        ggml.chain(affine.map(WeightFormat::Affine)).chain(FpMode::ALL.map(WeightFormat::Fp))
    }

    #[test]
    fn weights_are_finite_and_of_a_sane_size() {
        for format in formats() {
            let mut rng = rng(1, &format.name());
            let ordinary = WeightData::random(format, 1, 8, 1024, Scales::Ordinary, &mut rng).unwrap();
            let size = |weight: &WeightData| Array::floats(DType::F32, &weight.decode().unwrap()).mean_square().sqrt();
            assert!(ordinary.decode().unwrap().iter().all(|value| value.is_finite()), "{format}");
            assert!((0.02..20.0).contains(&size(&ordinary)), "{format}: {}", size(&ordinary));
            let tiny = WeightData::random(format, 1, 8, 1024, Scales::Tiny, &mut rng).unwrap();
            assert!(size(&tiny) > 0.0 && size(&tiny) < size(&ordinary) / 4.0, "{format}: {}", size(&tiny));
        }
    }

    #[test]
    fn the_seed_and_the_name_decide() {
        let draw = |seed, name| normals(&mut rng(seed, name), 8, 1.0);
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert!(normals(&mut rng(0, ""), 10_000, 1.0).iter().all(|value| *value != 0.0));
    }
}
