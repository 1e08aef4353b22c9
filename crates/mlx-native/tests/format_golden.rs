//! Decoding and packing against what the reference implementations made of the same bytes (scripts/golden/make_golden.py).

use half::{bf16, f16};
use mlx_native::format::affine::{Groups, pack, unpack};
use mlx_native::format::{AffineFormat, FpMode, dequantize_row};
use mlx_native::{DType, GgmlType};

/// A stream of little-endian records.
struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap())
    }

    fn f32s(&mut self, count: usize) -> Vec<f32> {
        self.floats(DType::F32, count)
    }

    fn floats(&mut self, dtype: DType, count: usize) -> Vec<f32> {
        let bytes = self.bytes(count * dtype.size_of());
        let half = |bytes: &[u8]| u16::from_le_bytes(bytes.try_into().unwrap());
        let decode = |bytes: &[u8]| match dtype {
            DType::F16 => f16::from_bits(half(bytes)).to_f32(),
            DType::BF16 => bf16::from_bits(half(bytes)).to_f32(),
            _ => f32::from_le_bytes(bytes.try_into().unwrap()),
        };
        bytes.chunks_exact(dtype.size_of()).map(decode).collect()
    }

    fn dtype(&mut self) -> DType {
        [DType::F32, DType::F16, DType::BF16][self.u32() as usize]
    }
}

/// Bit equality; NaN equals NaN.
#[track_caller]
fn assert_same(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
        assert!(same, "{what}, value {i}: expected {expected} ({:#x}), got {found}", expected.to_bits());
    }
}

#[test]
fn ggml_blocks_decode_as_the_gguf_package_does() {
    let mut records = Records(include_bytes!("golden/ggml_dequantize.bin"));
    let mut seen = Vec::new();
    while !records.0.is_empty() {
        let ty = GgmlType::from_id(records.u32()).unwrap();
        let blocks = records.u32() as usize;
        let bytes = records.bytes(blocks * ty.block_bytes() as usize);
        let expected = records.f32s(blocks * ty.block_values() as usize);
        let mut out = vec![f32::NAN; expected.len()];
        dequantize_row(ty, bytes, &mut out).unwrap();
        assert_same(ty.name(), &out, &expected);

        // The same from an odd address.
        let shifted = [&[0], bytes].concat();
        dequantize_row(ty, &shifted[1..], &mut out).unwrap();
        assert_same(ty.name(), &out, &expected);
        seen.push(ty);
    }
    let decodable = |ty: &GgmlType| ty.block_format().dequantize.is_some();
    assert_eq!(seen, GgmlType::all().filter(decodable).collect::<Vec<_>>());
}

#[test]
fn affine_rows_are_packed_as_mlx_does() {
    let mut records = Records(include_bytes!("golden/affine.bin"));
    let mut compared = 0;
    while !records.0.is_empty() {
        let dtype = records.dtype();
        let (rows, k) = (records.u32() as usize, records.u32() as usize);
        let input = records.floats(dtype, rows * k);
        for _ in 0..21 {
            let format = AffineFormat::new(records.u32(), records.u32(), dtype).unwrap();
            let (pitch, groups) = (format.row_bytes(k).unwrap(), format.groups(k).unwrap());
            let packed = records.bytes(rows * pitch);
            let scales = records.floats(dtype, rows * groups);
            let biases = records.floats(dtype, rows * groups);
            let decoded = (dtype == DType::F32 && format.group_size == 64).then(|| records.f32s(rows * k));
            for row in 0..rows {
                let what = format!("{format} row {row}");
                let expected = &packed[row * pitch..][..pitch];
                let mut found = vec![0xff; pitch];
                let (mut s, mut b) = (vec![f32::NAN; groups], vec![f32::NAN; groups]);
                format.quantize_row(&input[row * k..][..k], &mut found, &mut s, &mut b).unwrap();
                assert_same(&format!("{what} scales"), &s, &scales[row * groups..][..groups]);
                assert_same(&format!("{what} biases"), &b, &biases[row * groups..][..groups]);
                assert_eq!(found, expected, "{what}");

                let mut values = vec![0; k];
                unpack(format.bits, expected, &mut values).unwrap();
                pack(format.bits, &values, &mut found).unwrap();
                assert_eq!(found, expected, "{what}");
                if let Some(decoded) = &decoded {
                    let mut out = vec![f32::NAN; k];
                    format.dequantize_row(expected, Groups { scales: &s, biases: &b }, &mut out).unwrap();
                    assert_same(&what, &out, &decoded[row * k..][..k]);
                }
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 3 * 21 * 6);
}

#[test]
fn fp_rows_are_as_in_mlx() {
    let mut records = Records(include_bytes!("golden/fp.bin"));
    for _ in 0..9 {
        let (dtype, mode) = (records.dtype(), FpMode::ALL[records.u32() as usize]);
        let (rows, k) = (records.u32() as usize, records.u32() as usize);
        let input = records.floats(dtype, rows * k);
        let (pitch, groups) = (mode.row_bytes(k).unwrap(), mode.groups(k));
        let (packed, scales) = (records.bytes(rows * pitch), records.bytes(rows * groups));
        for row in 0..rows {
            let (mut p, mut s) = (vec![0xff; pitch], vec![0xff; groups]);
            mode.quantize_row(&input[row * k..][..k], dtype, &mut p, &mut s).unwrap();
            assert_eq!(s, scales[row * groups..][..groups], "{mode} {dtype} row {row}");
            assert_eq!(p, packed[row * pitch..][..pitch], "{mode} {dtype} row {row}");
        }
    }
    for mode in FpMode::ALL {
        let groups = records.u32() as usize;
        let k = groups * mode.group_size() as usize;
        let packed = records.bytes(k * mode.bits() as usize / 8);
        let scales = records.bytes(groups);
        let expected = records.f32s(k);
        let mut out = vec![0.0; k];
        mode.dequantize_row(packed, scales, &mut out).unwrap();
        assert_same(mode.name(), &out, &expected);
    }
    assert!(records.0.is_empty());
}
