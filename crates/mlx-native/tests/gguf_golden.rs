//! Files written by the `gguf` Python package, read and written again. Made by scripts/golden/make_gguf.py.

use std::fs;
use std::path::PathBuf;

use mlx_native::io::FileMap;
use mlx_native::io::gguf::{GgufFile, GgufStr, GgufWriter, MetadataType, MetadataValue, TensorData};
use mlx_native::{GgmlType, MlxError};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf").join(name)
}

/// A directory of this test's own, removed at the end.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mlx-native-gguf-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        TempDir(dir)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const TENSORS: [(&str, &[u64], GgmlType, usize); 6] = [
    ("token_embd.weight", &[3, 64], GgmlType::Q8_0, 3 * 68),
    ("blk.0.attn_q.weight", &[2, 256], GgmlType::Q4_K, 2 * 144),
    ("blk.0.ffn_gate_exps.weight", &[2, 3, 64], GgmlType::Q4_0, 6 * 36),
    ("blk.0.attn_norm.weight", &[5], GgmlType::F32, 20),
    ("blk.0.bf16", &[1, 2, 3, 4], GgmlType::BF16, 48),
    ("blk.0.mxfp4", &[1, 32], GgmlType::MXFP4, 17),
];

fn data(i: usize, len: usize) -> Vec<u8> {
    (0..len).map(|j| ((7 * j + 13 * i + 1) % 256) as u8).collect()
}

fn check_tensors(file: &GgufFile, count: usize) {
    let found: Vec<_> = file.tensors().collect();
    assert_eq!(found.len(), count);
    assert_eq!(file.n_tensors(), count);
    for (i, (tensor, &(name, shape, kind, len))) in found.iter().zip(&TENSORS).enumerate() {
        assert_eq!((tensor.name, &*tensor.shape, tensor.ggml_type, tensor.byte_len), (name, shape, kind, len));
        assert_eq!(file.tensor_data(tensor).unwrap(), data(i, len), "{name}");
        assert_eq!(file.tensor(name), Some(*tensor));
        let (map, range) = file.tensor_map(tensor).unwrap();
        assert_eq!(map[range], data(i, len));
    }
    assert_eq!(file.tensor("blk.0"), None);
    assert!(file.required_tensor("blk.0").unwrap_err().to_string().contains("tensor `blk.0`: no such tensor"));
}

#[test]
fn every_metadata_type() {
    use MetadataValue as V;
    let file = GgufFile::open(golden("all.gguf")).unwrap();
    assert_eq!((file.version(), file.alignment()), (3, 64));
    assert!(file.maps().all(FileMap::is_mapped));
    let scalars = [
        ("v.u8", V::U8(200)),
        ("v.i8", V::I8(-100)),
        ("v.u16", V::U16(60_000)),
        ("v.i16", V::I16(-30_000)),
        ("v.u32", V::U32(4_000_000_000)),
        ("v.i32", V::I32(-2_000_000_000)),
        ("v.u64", V::U64((1 << 63) + 1)),
        ("v.i64", V::I64(-(1 << 62))),
        ("v.f32", V::F32(0.15625)),
        ("v.f64", V::F64(1e300)),
        ("v.true", V::Bool(true)),
        ("v.false", V::Bool(false)),
        ("v.string", V::String("grüße, 世界 🦀".into())),
        ("v.empty_string", V::String("".into())),
    ];
    for (key, value) in scalars {
        assert_eq!(file.get(key), Some(value), "{key}");
    }
    let keys: Vec<&str> = file.metadata().map(|(key, _)| key).collect();
    assert_eq!(keys[..2], ["general.architecture", "general.alignment"]);
    assert_eq!(keys[2..16], scalars.map(|(key, _)| key));
    assert_eq!(keys.len(), file.n_metadata());

    assert_eq!(file.required::<Vec<&str>>("a.strings").unwrap(), ["a", "", "ß"]);
    assert_eq!(file.required::<Vec<i32>>("a.i32").unwrap(), [1, -2, 3]);
    assert_eq!(file.required::<Vec<f32>>("a.f32").unwrap(), [0.5, -1.5]);
    assert_eq!(file.required::<Vec<bool>>("a.bool").unwrap(), [true, false, true]);
    assert_eq!(file.required::<Vec<u64>>("a.u64").unwrap(), [u64::MAX, 0]);
    assert_eq!(file.required::<Vec<u8>>("a.bytes").unwrap(), [0, 255, 127]);
    assert_eq!(file.required::<Vec<Vec<i64>>>("a.nested").unwrap(), [vec![1, 2], vec![3]]);
    assert_eq!(file.array("a.nested").unwrap().element_type(), MetadataType::Array);
    assert_eq!(file.get("a.nested").unwrap().to_string(), "[[1, 2], [3]]");
}

#[test]
fn tokens_that_are_not_utf8_keep_their_bytes() {
    let file = GgufFile::open(golden("all.gguf")).unwrap();
    let tokens: Vec<GgufStr> = file.array("tokenizer.ggml.tokens").unwrap().strings().unwrap().collect();
    assert_eq!(tokens.iter().map(|t| t.as_bytes()).collect::<Vec<_>>(), [b"\xff\xfe".as_slice(), b"ok", b"\xc3"]);
    assert_eq!(tokens.iter().map(|t| t.to_str()).collect::<Vec<_>>(), [None, Some("ok"), None]);
    assert_eq!(tokens[2].to_string(), "\u{fffd}");
}

#[test]
fn typed_getters_say_key_expected_and_found() {
    let file = GgufFile::open(golden("all.gguf")).unwrap();
    assert_eq!(file.u32("v.u8").unwrap(), 200);
    assert_eq!(file.u64("v.u64").unwrap(), (1 << 63) + 1);
    assert_eq!(file.f32("v.f32").unwrap(), 0.15625);
    assert_eq!(file.required::<f64>("v.f32").unwrap(), 0.15625);
    assert!(file.bool("v.true").unwrap());
    assert_eq!(file.str("general.architecture").unwrap(), "golden");
    assert_eq!(file.optional::<u32>("v.none").unwrap(), None);
    let message = |result: mlx_native::Result<()>| match result.unwrap_err() {
        MlxError::GgufParseError(message) => message,
        other => panic!("{other:?}"),
    };
    let cases = [
        (message(file.u32("v.none").map(drop)), "key `v.none`: expected u32, found no such key"),
        (message(file.u32("v.i8").map(drop)), "key `v.i8`: expected u32, found i8 -100 (at byte "),
        (message(file.u32("v.u64").map(drop)), "key `v.u64`: expected u32, found u64 9223372036854775809 (at byte "),
        (message(file.f32("v.u8").map(drop)), "key `v.u8`: expected f32, found u8 200"),
        (message(file.str("v.u8").map(drop)), "key `v.u8`: expected UTF-8 string, found u8 200"),
        (message(file.bool("v.string").map(drop)), "key `v.string`: expected bool, found string"),
        (message(file.array("v.f32").map(drop)), "key `v.f32`: expected array, found f32 0.15625"),
        (
            message(file.required::<Vec<&str>>("tokenizer.ggml.tokens").map(drop)),
            "key `tokenizer.ggml.tokens`: expected array of UTF-8 string, found array of 3 string",
        ),
        (
            message(file.optional::<Vec<u8>>("a.i32").map(drop)),
            "key `a.i32`: expected array of u8, found array of 3 i32",
        ),
    ];
    for (found, expected) in cases {
        assert!(found.starts_with(expected), "{found}");
    }
}

#[test]
fn tensors_are_slices_of_the_map() {
    let file = GgufFile::open(golden("all.gguf")).unwrap();
    check_tensors(&file, 6);
    let map = file.maps().next().unwrap();
    for tensor in file.tensors() {
        let data = file.tensor_data(&tensor).unwrap();
        assert!(std::ptr::eq(data.as_ptr(), &map[tensor.offset]));
        assert_eq!(tensor.offset % 64, 0);
    }
}

#[test]
fn a_tensor_of_another_file_is_refused() {
    let file = GgufFile::open(golden("all.gguf")).unwrap();
    let other = GgufFile::open(golden("split-00001-of-00003.gguf")).unwrap();
    let foreign = other.tensors().last().unwrap();
    let message = file.tensor_data(&foreign).unwrap_err().to_string();
    assert!(message.contains("tensor `blk.0.bf16`: 48 bytes in part 2 are not in this file"), "{message}");
}

#[test]
fn all_parts_of_a_split_file() {
    for named in 1..=3 {
        let file = GgufFile::open(golden(&format!("split-0000{named}-of-00003.gguf"))).unwrap();
        check_tensors(&file, 5);
        assert_eq!(file.u32("golden.block_count").unwrap(), 7);
        assert_eq!(file.maps().len(), 3);
        assert_eq!(file.tensors().map(|t| t.part).collect::<Vec<_>>(), [1, 1, 1, 2, 2]);
    }
}

#[test]
fn parts_that_do_not_belong_together() {
    let part = |i: usize| FileMap::open(golden(&format!("split-0000{i}-of-00003.gguf"))).unwrap();
    let message = |parts: &[usize]| GgufFile::from_maps(parts.iter().map(|&i| part(i))).unwrap_err().to_string();
    assert!(GgufFile::from_maps([part(1), part(2), part(3)]).is_ok());
    assert!(message(&[1]).contains("key `split.count`: expected 1 in part 0 of 1, found 3"));
    assert!(message(&[1, 3, 2]).contains("key `split.no`: expected 1 in part 1 of 3, found 2"));
    assert!(message(&[]).contains("no files"));

    let dir = TempDir::new("parts");
    let copy = |from: &str, to: &str| fs::copy(golden(from), dir.0.join(to)).unwrap();
    copy("split-00001-of-00003.gguf", "split-00001-of-00003.gguf");
    copy("split-00002-of-00003.gguf", "split-00002-of-00003.gguf");
    let error = GgufFile::open(dir.0.join("split-00001-of-00003.gguf")).unwrap_err();
    assert!(matches!(&error, MlxError::IoError { path, .. } if path.ends_with("split-00003-of-00003.gguf")), "{error}");
    copy("split-00002-of-00003.gguf", "split-00003-of-00003.gguf");
    let error = GgufFile::open(dir.0.join("split-00001-of-00003.gguf")).unwrap_err().to_string();
    assert!(error.contains("key `split.no`: expected 2"), "{error}");
    copy("split-00001-of-00003.gguf", "renamed.gguf");
    let error = GgufFile::open(dir.0.join("renamed.gguf")).unwrap_err().to_string();
    assert!(error.contains("renamed.gguf: key `split.count`: is 3"), "{error}");
}

#[test]
fn big_endian_files_are_named_as_such() {
    let error = GgufFile::open(golden("big-endian.gguf")).unwrap_err();
    assert!(matches!(&error, MlxError::GgufParseError(m) if m.contains("big-endian (version 3)")), "{error}");
}

#[test]
fn writing_what_was_read_gives_the_same_bytes() {
    let bytes = fs::read(golden("all.gguf")).unwrap();
    let file = GgufFile::open(golden("all.gguf")).unwrap();
    let mut written = Vec::new();
    GgufWriter::copy_of(&file).unwrap().write_to(&mut written).unwrap();
    assert!(written == bytes, "{} bytes became {}", bytes.len(), written.len());
}

#[test]
fn merged_and_split_again() {
    let dir = TempDir::new("split");
    let file = GgufFile::open(golden("split-00001-of-00003.gguf")).unwrap();
    let merged = dir.0.join("merged.gguf");
    GgufWriter::copy_of(&file).unwrap().write(&merged).unwrap();
    let file = GgufFile::open(&merged).unwrap();
    assert_eq!(file.maps().len(), 1);
    assert!(file.metadata().all(|(key, _)| !key.starts_with("split.")));
    check_tensors(&file, 5);

    // Padded to 32 the tensors have 224, 288, 224, 32 and 64 bytes.
    for (max, expected) in [(1, 5), (300, 4), (512, 2), (1 << 20, 1)] {
        let paths = GgufWriter::copy_of(&file).unwrap().write_split(dir.0.join("again.gguf"), max).unwrap();
        assert_eq!(paths.len(), expected, "{max}");
        let again = GgufFile::open(&paths[expected / 2]).unwrap();
        check_tensors(&again, 5);
        assert_eq!(again.u32("golden.block_count").unwrap(), 7);
    }
    let names: Vec<_> = fs::read_dir(&dir.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| name.ends_with(".gguf")), "{names:?}");
    assert!(names.contains(&"again-00002-of-00004.gguf".to_string()));
}

#[test]
fn split_parts_keep_an_alignment() {
    let dir = TempDir::new("alignment");
    let file = GgufFile::open(golden("all.gguf")).unwrap();
    let paths = GgufWriter::copy_of(&file).unwrap().write_split(dir.0.join("a.gguf"), 64).unwrap();
    assert_eq!(paths.len(), 6);
    let again = GgufFile::open(&paths[0]).unwrap();
    check_tensors(&again, 6);
    assert!(again.tensors().all(|t| t.offset % 64 == 0));
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let dir = TempDir::new("failed");
    let path = dir.0.join("model.gguf");
    fs::write(&path, "old").unwrap();
    let mut writer = GgufWriter::new();
    let short = TensorData::stream(|out| out.write_all(&[0; 11]));
    writer.tensor("t", &[3], GgmlType::F32, short).unwrap();
    let error = writer.write(&path).unwrap_err().to_string();
    assert!(error.contains("tensor `t`: expected 12 bytes, the callback wrote 11"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1);
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut w = GgufWriter::new();
    w.metadata("k", 1_u32).unwrap();
    w.tensor("t", &[2], GgmlType::F32, vec![0; 8]).unwrap();
    let long = "x".repeat(65);
    let errors = [
        (w.metadata("k", 2_u32).map(drop), "key `k` is already there"),
        (w.metadata("", 2_u32).map(drop), "GGUF key: expected 1 to 65535 bytes, found 0"),
        (w.metadata("general.alignment", 48_u32).map(drop), "power of two"),
        (w.metadata("general.alignment", 64_u64).map(drop), "power of two"),
        (w.tensor("t", &[2], GgmlType::F32, vec![0; 8]).map(drop), "tensor `t` is already there"),
        (w.tensor("", &[2], GgmlType::F32, vec![0; 8]).map(drop), "expected 1 to 64 bytes, found 0"),
        (w.tensor(&long, &[2], GgmlType::F32, vec![0; 8]).map(drop), "expected 1 to 64 bytes, found 65"),
        (w.tensor("u", &[], GgmlType::F32, vec![]).map(drop), "expected 1 to 4 dimensions"),
        (w.tensor("u", &[1; 5], GgmlType::F32, vec![0; 4]).map(drop), "expected 1 to 4 dimensions"),
        (w.tensor("u", &[0, 2], GgmlType::F32, vec![]).map(drop), "of at least 1, found [0, 2]"),
        (
            w.tensor("u", &[33], GgmlType::Q8_0, vec![0; 34]).map(drop),
            "rows of 33 values are not whole Q8_0 blocks of 32",
        ),
        (w.tensor("u", &[u64::MAX, 32], GgmlType::Q8_0, vec![0; 34]).map(drop), "overflows"),
        (w.tensor("u", &[32], GgmlType::Q8_0, vec![0; 33]).map(drop), "expected 34 bytes for [32] Q8_0, found 33"),
    ];
    for (result, expected) in errors {
        let error = result.unwrap_err();
        assert!(matches!(&error, MlxError::InvalidArgument(m) if m.contains(expected)), "{error} / {expected}");
    }
}

#[test]
fn files_that_cannot_be_mapped() {
    let dir = TempDir::new("io");
    assert!(matches!(GgufFile::open(&dir.0), Err(MlxError::IoError { .. })));
    assert!(matches!(GgufFile::open(dir.0.join("none.gguf")), Err(MlxError::IoError { .. })));
    let empty = dir.0.join("empty.gguf");
    fs::write(&empty, "").unwrap();
    let error = GgufFile::open(&empty).unwrap_err().to_string();
    assert!(
        error.contains("header, magic: expected 4 bytes, found the end of the file after 0 (at byte 0)"),
        "{error}"
    );
}

/// Values may be wrong then, but nothing outside the map is touched and nothing panics.
#[test]
fn a_file_overwritten_while_it_is_open() {
    let dir = TempDir::new("overwritten");
    let path = dir.0.join("model.gguf");
    fs::copy(golden("all.gguf"), &path).unwrap();
    let file = GgufFile::open(&path).unwrap();
    let keys: Vec<String> = file.metadata().map(|(key, _)| key.to_string()).collect();
    let names: Vec<String> = file.tensors().map(|tensor| tensor.name.to_string()).collect();
    let len = fs::metadata(&path).unwrap().len() as usize;
    for byte in [0xff, 0x01, 0x00] {
        // In place: the map shows the new bytes.
        let mut writer = fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::io::Write::write_all(&mut writer, &vec![byte; len]).unwrap();
        assert_eq!(file.maps().next().unwrap()[0], byte);
        for key in &keys {
            assert!(file.get(key).is_none());
        }
        for name in &names {
            assert_eq!(file.tensor(name), None);
        }
        let values: Vec<String> = file.metadata().map(|(_, value)| value.to_string()).collect();
        assert!(values.is_empty(), "{values:?}");
        assert_eq!(file.tensors().count(), 0);
    }
}

/// A 5 GB file opens without being read: its tensors' pages do not even exist.
#[cfg(target_os = "linux")]
#[test]
fn a_sparse_file_of_five_gigabytes_opens_at_once() {
    const ROWS: u64 = 5_000_000_000 / 4096;
    let dir = TempDir::new("sparse");
    let path = dir.0.join("large.gguf");
    let mut header = Vec::new();
    header.extend_from_slice(b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    for (name, offset) in [(b'a', 0), (b'b', ROWS * 2048)] {
        header.extend_from_slice(&1_u64.to_le_bytes());
        header.push(name);
        header.extend_from_slice(&2_u32.to_le_bytes());
        header.extend_from_slice(&1024_u64.to_le_bytes());
        header.extend_from_slice(&ROWS.to_le_bytes());
        header.extend_from_slice(&1_u32.to_le_bytes());
        header.extend_from_slice(&u64::to_le_bytes(offset));
    }
    fs::write(&path, &header).unwrap();
    let start = header.len().next_multiple_of(32) as u64;
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(start + ROWS * 4096).unwrap();

    let began = std::time::Instant::now();
    let file = GgufFile::open(&path).unwrap();
    let elapsed = began.elapsed();
    let b = file.required_tensor("b").unwrap();
    assert_eq!((&*b.shape, b.byte_len as u64), ([ROWS, 1024].as_slice(), ROWS * 2048));
    assert_eq!(file.tensor_data(&b).unwrap().last(), Some(&0));
    println!("opened {} bytes in {elapsed:?}", start + ROWS * 4096);
    assert!(elapsed.as_millis() < 100, "{elapsed:?}");
}
