//! Headers made to mislead: each is an error that names the key or tensor and the byte.

use mlx_native::MlxError;
use mlx_native::io::gguf::GgufFile;

/// Bytes of a file, written field by field without any check.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    /// A file of version 3 with so many tensors and metadata entries: 24 bytes.
    fn new(tensors: u64, entries: u64) -> Raw {
        Raw::default().bytes(b"GGUF").u32(3).u64(tensors).u64(entries)
    }

    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u32(self, v: u32) -> Raw {
        self.bytes(&v.to_le_bytes())
    }

    fn u64(self, v: u64) -> Raw {
        self.bytes(&v.to_le_bytes())
    }

    fn string(self, s: &[u8]) -> Raw {
        self.u64(s.len() as u64).bytes(s)
    }

    /// Key and value type; the value follows.
    fn key(self, key: &str, kind: u32) -> Raw {
        self.string(key.as_bytes()).u32(kind)
    }

    /// A tensor entry, dimensions in the order of the file.
    fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Raw {
        let mut raw = self.string(name.as_bytes()).u32(dims.len() as u32);
        for &dim in dims {
            raw = raw.u64(dim);
        }
        raw.u32(kind).u64(offset)
    }

    fn data(mut self, len: usize) -> Raw {
        self.0.resize(self.0.len().next_multiple_of(32) + len, 0);
        self
    }

    #[track_caller]
    fn fails(self, expected: &str) {
        match GgufFile::from_bytes(self.0) {
            Err(MlxError::GgufParseError(message)) => assert!(message.contains(expected), "{message}\n{expected}"),
            other => panic!("expected {expected}, got {other:?}"),
        }
    }

    #[track_caller]
    fn opens(self) -> GgufFile {
        GgufFile::from_bytes(self.0).unwrap()
    }
}

const U8: u32 = 0;
const U32: u32 = 4;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;

const F32: u32 = 0;
const Q8_0: u32 = 8;

#[test]
fn header() {
    Raw::new(0, 0).opens();
    Raw::default().bytes(b"GGUF").u32(2).u64(0).u64(0).opens();
    Raw::default().bytes(b"GG").fails("header, magic: expected 4 bytes, found the end of the file after 2 (at byte 0)");
    Raw::default().bytes(b"GGML").u32(3).fails("header, magic: expected \"GGUF\", found \"GGML\" (at byte 0)");
    Raw::default().bytes(b"\0\xff\n\"").fails("found \"\\x00\\xff\\n\\\"\"");
    for version in [0, 1, 4, 0x0001_0000] {
        let file = Raw::default().bytes(b"GGUF").u32(version).u64(0).u64(0);
        file.fails(&format!("header, version: expected version 2 or 3, found {version} (at byte 4)"));
    }
    let big = Raw::default().bytes(b"GGUF").u32(3_u32.swap_bytes()).u64(0).u64(0);
    big.fails("header, version: the file is big-endian (version 3); only little-endian files can be read (at byte 4)");
}

#[test]
fn counts_beyond_the_file() {
    for count in [1, 1 << 32, 1 << 60, u64::MAX] {
        Raw::new(count, 0)
            .fails(&format!("header, tensor count: {count} tensors of at least 33 bytes, in 8 bytes left (at byte 8)"));
        let entries = format!(
            "header, metadata count: {count} metadata entries of at least 14 bytes, in 0 bytes left (at byte 16)"
        );
        Raw::new(0, count).fails(&entries);
    }
    // Fits before the metadata is read, not after.
    let file = Raw::new(2, 1).key("k", STRING).string(&[b'x'; 100]).bytes(&[0; 40]);
    file.fails(
        "header, tensor count: 2 tensors of at least 33 bytes, in 40 bytes left behind the metadata (at byte 8)",
    );
}

#[test]
fn keys() {
    let pad = [0; 32];
    for len in [45, u64::MAX, 1 << 63] {
        let file = Raw::new(0, 1).u64(len).bytes(&pad);
        file.fails(&format!(
            "key of metadata entry 0: {len} string bytes of at least 1 bytes, in 32 bytes left (at byte 24)"
        ));
    }
    Raw::new(0, 1)
        .key("", U32)
        .bytes(&pad)
        .fails("key of metadata entry 0: expected a name, found an empty string (at byte 24)");
    let file = Raw::new(0, 2).key("k", U8).bytes(&[1]).string(b"ab\xff").u32(U8).bytes(&[1]);
    file.fails("key of metadata entry 1: expected UTF-8, found other bytes (at byte 48)");
    let file = Raw::new(0, 2).key("twice", U8).bytes(&[1]).key("twice", U8).bytes(&[2]);
    file.fails("key `twice`: appears twice, first at byte 24 (at byte 42)");
    // A key cannot flood or garble the message.
    let long = format!("\u{1b}[31m{}", "x".repeat(1000));
    let shown = format!("key `\\u{{1b}}[31m{}…`: expected a value type 0..=12, found 13", "x".repeat(75));
    Raw::new(0, 1).key(&long, 13).bytes(&pad).fails(&shown);
}

#[test]
fn values() {
    let pad = [0; 32];
    Raw::new(0, 1).key("k", 13).bytes(&pad).fails("key `k`: expected a value type 0..=12, found 13 (at byte 33)");
    Raw::new(0, 1)
        .key("k", U64)
        .u32(0)
        .fails("key `k`: expected 8 bytes, found the end of the file after 4 (at byte 37)");
    Raw::new(0, 1).key("k", BOOL).bytes(&[2]).fails("key `k`: expected a bool 0 or 1, found 2 (at byte 37)");
    let file = Raw::new(0, 1).key("k", STRING).u64(u64::MAX).bytes(&pad);
    file.fails("key `k`: 18446744073709551615 string bytes of at least 1 bytes, in 32 bytes left (at byte 37)");
}

#[test]
fn arrays() {
    let pad = [0; 32];
    let array = |element: u32, len: u64| Raw::new(0, 1).key("k", ARRAY).u32(element).u64(len);
    array(99, 0).fails("key `k`: expected a value type 0..=12, found 99 (at byte 37)");
    // 2^61 elements of 8 bytes are 0 bytes in 64-bit arithmetic, 2^61 + 1 are 8.
    for len in [5, 1 << 61, (1 << 61) + 1, u64::MAX] {
        let expected = format!("key `k`: {len} array elements of at least 8 bytes, in 32 bytes left (at byte 41)");
        array(U64, len).bytes(&pad).fails(&expected);
        array(STRING, len).bytes(&pad).fails(&expected);
    }
    array(U64, 4).bytes(&pad).opens();
    array(BOOL, 3).bytes(&[0, 1, 2]).fails("key `k`: expected a bool 0 or 1, found 2 (at byte 51)");
    let file = array(STRING, 2).string(b"ok").u64(1 << 40).bytes(&pad);
    file.fails("key `k`: 1099511627776 string bytes of at least 1 bytes, in 32 bytes left (at byte 59)");
    let nested =
        |depth: usize| (1..depth).fold(array(ARRAY, 1), |raw, _| raw.u32(ARRAY).u64(1)).u32(U8).u64(1).bytes(&[7]);
    let file = nested(7).opens();
    assert_eq!(file.get("k").unwrap().to_string(), "[[[[[[[[7]]]]]]]]");
    nested(8).fails("key `k`: arrays nested deeper than 8 (at byte 133)");
    nested(100_000).fails("key `k`: arrays nested deeper than 8 (at byte 133)");
}

#[test]
fn alignment() {
    for alignment in [0, 1, 3, 48, 1 << 22, u32::MAX] {
        let file = Raw::new(0, 1).key("general.alignment", U32).u32(alignment);
        file.fails(&format!(
            "key `general.alignment`: expected a u32 power of two in 8..=2097152, found u32 {alignment} (at byte 24)"
        ));
    }
    let file = Raw::new(0, 1).key("general.alignment", U64).u64(32);
    file.fails("key `general.alignment`: expected a u32 power of two in 8..=2097152, found u64 32");
    assert_eq!(Raw::new(0, 1).key("general.alignment", U32).u32(8).opens().alignment(), 8);
}

#[test]
fn tensor_entries() {
    let pad = [0; 64];
    let file = Raw::new(1, 0).u64(1 << 50).bytes(&pad);
    file.fails("name of tensor 0: 1125899906842624 string bytes of at least 1 bytes, in 64 bytes left (at byte 24)");
    Raw::new(1, 0).tensor("", &[1], F32, 0).data(32).fails("name of tensor 0: expected a name, found an empty string");
    Raw::new(1, 0)
        .tensor("t", &[], F32, 0)
        .bytes(&pad)
        .fails("tensor `t`: expected 1 to 4 dimensions, found 0 (at byte 33)");
    Raw::new(1, 0)
        .tensor("t", &[1; 5], F32, 0)
        .data(32)
        .fails("tensor `t`: expected 1 to 4 dimensions, found 5 (at byte 33)");
    let file = Raw::new(1, 0).string(b"t").u32(u32::MAX).bytes(&pad);
    file.fails("tensor `t`: expected 1 to 4 dimensions, found 4294967295 (at byte 33)");
    Raw::new(1, 0)
        .tensor("t", &[4, 0], F32, 0)
        .data(32)
        .fails("tensor `t`: expected a dimension of at least 1, found 0 (at byte 45)");
    for unknown in [4, 5, 31, 36, 42, u32::MAX] {
        let file = Raw::new(1, 0).tensor("t", &[32], unknown, 0).data(32);
        file.fails(&format!("tensor `t`: tensor type {unknown} is not known (at byte 45)"));
    }
    let file = Raw::new(1, 0).tensor("t", &[33, 32], Q8_0, 0).data(4096);
    file.fails("tensor `t`: rows of 33 values are not whole Q8_0 blocks of 32 (at byte 37)");
    let file = Raw::new(2, 0).tensor("t", &[1], F32, 0).tensor("t", &[1], F32, 32).data(64);
    file.fails("tensor `t`: appears twice, first at byte 24 (at byte 57)");
}

#[test]
fn tensor_sizes_that_overflow() {
    // The byte size is 0 or small modulo 2^64, and fits into the file.
    let cases: [(&[u64], u32); 6] = [
        (&[1 << 32, 1 << 32], F32),
        (&[1 << 62], F32),
        (&[(1 << 62) + 1], F32),
        (&[1 << 16, 1 << 16, 1 << 16, 1 << 16], F32),
        (&[1 << 63, 2], 24),
        (&[32 * ((u64::MAX / 34 + 1) / 32 * 32), 32], Q8_0),
    ];
    for (dims, kind) in cases {
        Raw::new(1, 0).tensor("t", dims, kind, 0).data(4096).fails("overflows (at byte 37)");
    }
    let file = Raw::new(1, 0).tensor("t", &[u64::MAX], 24, 0).data(4096);
    file.fails("tensor `t`: 18446744073709551615 bytes of data at offset 0 do not fit in the 4096 bytes of the data section (at byte 49)");
}

#[test]
fn data_outside_the_file() {
    let tensor = |dim: u64, offset: u64| Raw::new(1, 0).tensor("t", &[dim], F32, offset);
    tensor(8, 32).data(64).opens();
    tensor(8, 32)
        .data(63)
        .fails("tensor `t`: 32 bytes of data at offset 32 do not fit in the 63 bytes of the data section (at byte 49)");
    tensor(8, 64)
        .data(64)
        .fails("tensor `t`: 32 bytes of data at offset 64 do not fit in the 64 bytes of the data section");
    // offset + size wraps around to the start of the file.
    tensor(8, u64::MAX - 31).data(64).fails("tensor `t`: 32 bytes of data at offset 18446744073709551584 do not fit");
    tensor(1 << 61, 1 << 63).data(64).fails("do not fit");
    tensor(8, 8).data(64).fails("tensor `t`: data offset 8 is not a multiple of the alignment 32 (at byte 49)");
    // No data section at all, not even its padding.
    tensor(8, 0).fails("tensor `t`: 32 bytes of data at offset 0 do not fit in the 0 bytes of the data section");
}

#[test]
fn data_of_two_tensors_on_the_same_bytes() {
    let two = |a: u64, b: u64| Raw::new(2, 0).tensor("a", &[16], F32, a).tensor("b", &[8], F32, b).data(128);
    two(0, 64).opens();
    two(32, 0).opens();
    two(0, 0).fails("overlaps");
    two(0, 32).fails("tensor `b`: its data at bytes 128..160 overlaps that of tensor `a` at 96..160 (at byte 57)");
    two(64, 96).fails("overlaps");
}

#[test]
fn split_keys() {
    const U16: u32 = 2;
    let file = Raw::new(0, 1).key("split.count", U16).bytes(&[3, 0]);
    file.fails("key `split.count`: expected 1 in part 0 of 1, found 3 (at byte 24)");
    let file = Raw::new(0, 1).key("split.count", STRING).string(b"3");
    file.fails("key `split.count`: expected u16, found string (at byte 24)");
}

#[test]
fn every_prefix_is_an_error() {
    let file = Raw::new(2, 3)
        .key("general.alignment", U32)
        .u32(32)
        .key("k", ARRAY)
        .u32(STRING)
        .u64(2)
        .string(b"one")
        .string(b"two")
        .key("b", BOOL)
        .bytes(&[1])
        .tensor("t", &[32, 2], Q8_0, 0)
        .tensor("u", &[3], F32, 96)
        .data(96 + 12);
    file.clone().opens();
    for len in 0..file.0.len() {
        let error = GgufFile::parse(&file.0[..len]).unwrap_err();
        assert!(matches!(&error, MlxError::GgufParseError(m) if m.contains("(at byte ")), "{len}: {error}");
    }
}
