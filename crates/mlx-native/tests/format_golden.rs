//! Decoding and packing against what the reference implementations made of the same bytes (scripts/golden/make_golden.py).

use mlx_native::GgmlType;
use mlx_native::format::dequantize_row;

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
        self.bytes(4 * count).as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
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
