//! Safetensors files and model directories as MLX writes them. Made by scripts/golden/make_mlx_dir.py.

use std::fs;
use std::path::PathBuf;

use mlx_native::format::affine::Groups;
use mlx_native::io::FileMap;
use mlx_native::io::mlx_dir::{MlxModelDir, MlxWeight, Quantization, QuantizationConfig};
use mlx_native::io::safetensors::{SafetensorsFile, SafetensorsInfo};
use mlx_native::{AffineFormat, DType, FpMode, GgmlType, MlxError, WeightFormat};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mlx").join(name)
}

/// A directory of this test's own, removed at the end.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mlx-native-dir-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        TempDir(dir)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A float tensor's values.
fn floats(file: &SafetensorsFile, info: &SafetensorsInfo) -> Vec<f32> {
    let data = file.tensor_data(info).unwrap();
    match info.dtype().unwrap() {
        DType::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        DType::F16 => data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::BF16 => data.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        other => panic!("{other}"),
    }
}

fn dequantize(file: &SafetensorsFile, weight: &MlxWeight<'_>) -> Vec<f32> {
    let packed = file.tensor_data(weight.weight).unwrap();
    let rows = weight.n_experts * weight.n;
    let mut out = vec![f32::NAN; rows * weight.k];
    let pitch = weight.format.row_bytes(weight.k).unwrap();
    assert_eq!(packed.len(), rows * pitch);
    for (row, (out, packed)) in out.chunks_exact_mut(weight.k).zip(packed.chunks_exact(pitch)).enumerate() {
        match weight.format {
            WeightFormat::Affine(affine) => {
                let (scales, biases) = (floats(file, weight.scales.unwrap()), floats(file, weight.biases.unwrap()));
                let groups = affine.groups(weight.k).unwrap();
                let range = row * groups..(row + 1) * groups;
                let groups = Groups { scales: &scales[range.clone()], biases: &biases[range] };
                affine.dequantize_row(packed, groups, out).unwrap();
            }
            WeightFormat::Fp(mode) => {
                let groups = mode.groups(weight.k);
                let scales = file.tensor_data(weight.scales.unwrap()).unwrap();
                mode.dequantize_row(packed, &scales[row * groups..(row + 1) * groups], out).unwrap();
            }
            WeightFormat::Ggml(plain) => panic!("{plain}"),
        }
    }
    out
}

#[test]
fn every_layer_has_its_format_and_values() {
    let dir = MlxModelDir::open(golden("sharded")).unwrap();
    let expected = SafetensorsFile::open(golden("expected.safetensors")).unwrap();
    assert_eq!(dir.config()["hidden_size"], 128);
    assert_eq!(dir.file().maps().len(), 2);
    let affine = |bits, group_size, dtype| WeightFormat::Affine(AffineFormat::new(bits, group_size, dtype).unwrap());
    let layers = [
        ("model.embed_tokens", affine(4, 64, DType::BF16), 1, 3, 128),
        ("model.layers.0.q_proj", affine(8, 32, DType::F16), 1, 4, 64),
        ("model.layers.0.k_proj", affine(3, 32, DType::F32), 1, 2, 64),
        ("model.layers.0.v_proj", affine(6, 128, DType::BF16), 1, 2, 128),
        ("model.layers.0.up_proj", WeightFormat::Fp(FpMode::Mxfp4), 1, 2, 64),
        ("model.layers.0.gate_proj", WeightFormat::Fp(FpMode::Mxfp8), 1, 2, 64),
        ("model.layers.0.down_proj", WeightFormat::Fp(FpMode::Nvfp4), 1, 2, 32),
        ("model.layers.0.experts", affine(4, 32, DType::F16), 3, 2, 64),
    ];
    for (layer, format, n_experts, n, k) in layers {
        let weight = dir.weight(layer).unwrap();
        assert_eq!((weight.format, weight.n_experts, weight.n, weight.k), (format, n_experts, n, k), "{layer}");
        assert_eq!(weight.biases.is_some(), matches!(format, WeightFormat::Affine(_)));
        let expected = floats(&expected, expected.required_tensor(layer).unwrap());
        assert_eq!(dequantize(dir.file(), &weight), expected, "{layer}");
    }
    let head = dir.weight("lm_head").unwrap();
    assert_eq!((head.format, head.n, head.k), (GgmlType::BF16.into(), 3, 8));
    assert!(head.scales.is_none() && head.biases.is_none());
    assert_eq!(dir.quantization().layer("lm_head"), None);
    let norm = dir.file().required_tensor("model.norm.weight").unwrap();
    assert_eq!(floats(dir.file(), norm), [1.0; 128]);
    assert_eq!(dir.file().metadata()["format"], "mlx");
}

#[test]
fn a_single_file_without_quantization() {
    let dir = MlxModelDir::open(golden("single")).unwrap();
    assert_eq!(dir.quantization(), &QuantizationConfig::default());
    let head = dir.weight("lm_head").unwrap();
    assert_eq!((head.format, head.n, head.k), (GgmlType::F16.into(), 3, 4));
    assert_eq!(floats(dir.file(), head.weight), (0..12).map(|i| i as f32).collect::<Vec<_>>());
    // MLX does not pad its headers.
    assert!(head.weight.is_aligned());
    assert_eq!(head.weight.offset % 4, 2);
    let error = dir.weight("model.norm").unwrap_err();
    assert!(
        matches!(&error, MlxError::SafetensorsError(m) if m.contains("`model.norm.weight`: no such tensor")),
        "{error}"
    );
}

fn quantization(json: &str) -> mlx_native::Result<QuantizationConfig> {
    QuantizationConfig::from_config(&serde_json::from_str(json).unwrap())
}

#[test]
fn configurations() {
    let config = quantization(
        r#"{"quantization": {"group_size": 32, "bits": 8, "a": {"bits": 5}, "b": false, "c": true, "d": {"mode": "nvfp4"}, "quant_method": "x"}}"#,
    )
    .unwrap();
    let affine = |group_size, bits| Some(Quantization::Affine { group_size, bits });
    assert_eq!(config.layer("any"), affine(32, 8));
    assert_eq!(config.layer("a"), affine(64, 5));
    assert_eq!(config.layer("b"), None);
    assert_eq!(config.layer("c"), affine(32, 8));
    assert_eq!(config.layer("d"), Some(Quantization::Fp(FpMode::Nvfp4)));
    assert_eq!(quantization(r#"{"quantization": {}}"#).unwrap().layer("x"), affine(64, 4));
    assert_eq!(quantization(r#"{"quantization": null}"#).unwrap(), QuantizationConfig::default());

    let errors = [
        (r#"{"quantization": 4}"#, "quantization: expected an object, found 4"),
        (r#"{"quantization": {"bits": "4"}}"#, "quantization.bits: expected a whole number, found \"4\""),
        (r#"{"quantization": {"bits": -4}}"#, "quantization.bits: expected a whole number, found -4"),
        (r#"{"quantization": {"bits": 4294967300}}"#, "quantization.bits: expected a whole number, found 4294967300"),
        (r#"{"quantization": {"bits": 7}}"#, "bits must be 1, 2, 3, 4, 5, 6 or 8, got 7"),
        (r#"{"quantization": {"group_size": 0}}"#, "group_size must be at least 1"),
        (r#"{"quantization": {"mode": 1}}"#, "quantization.mode: expected a string, found 1"),
        (
            r#"{"quantization": {"mode": "awq"}}"#,
            "quantization.mode: expected affine, mxfp4, mxfp8 or nvfp4, found \"awq\"",
        ),
        (
            r#"{"quantization": {"a.b": {"mode": "mxfp8", "bits": 4}}}"#,
            "quantization.a.b.bits: expected 8 for mxfp8, found 4",
        ),
        (
            r#"{"quantization": {"a": {"mode": "mxfp4", "group_size": 64}}}"#,
            "quantization.a.group_size: expected 32 for mxfp4, found 64",
        ),
    ];
    for (json, expected) in errors {
        let error = quantization(json).unwrap_err();
        assert!(matches!(&error, MlxError::QuantConfigError(m) if m.contains(expected)), "{error}\n{expected}");
    }
}

/// A file of the given header and so many bytes of data.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn weights_that_contradict_the_configuration() {
    let dir = TempDir::new("contradiction");
    let open = |config: &str, scales: &str, scale_bytes: usize| {
        fs::write(dir.0.join("config.json"), config).unwrap();
        let end = 64 + scale_bytes;
        let header = format!(
            r#"{{"a.weight":{{"dtype":"U32","shape":[2,8],"data_offsets":[0,64]}},"a.scales":{{{scales},"data_offsets":[64,{end}]}}}}"#
        );
        fs::write(dir.0.join("model.safetensors"), raw(&header, end)).unwrap();
        MlxModelDir::open(&dir.0)
    };
    let f16 = r#""dtype":"F16","shape":[2,1]"#;
    let cases = [
        (r#"{}"#, f16, 4, "layer `a`: has scales, but config.json does not say how it is quantized"),
        (r#"{"quantization":{"a":false}}"#, f16, 4, "layer `a`: has scales, but config.json"),
        (r#"{"quantization":{}}"#, f16, 4, "tensor `a.biases`: no such tensor"),
        (
            r#"{"quantization":{"bits":8}}"#,
            f16,
            4,
            "layer `a`: 1 groups make rows of 64 bytes in affine8_g64_f16, but the weight's have 32",
        ),
        (r#"{"quantization":{}}"#, r#""dtype":"F16","shape":[1,1]"#, 2, "expected scales of [2] rows, found [1, 1]"),
        (r#"{"quantization":{}}"#, r#""dtype":"F16","shape":[]"#, 2, "expected scales of [2] rows, found []"),
        (r#"{"quantization":{}}"#, r#""dtype":"U32","shape":[2,1]"#, 8, "scales and biases are f32, f16 or bf16"),
        (r#"{"quantization":{"mode":"mxfp4"}}"#, f16, 4, "layer `a`: expected u8 scales for mxfp4, found F16"),
    ];
    for (config, scales, bytes, expected) in cases {
        let error = open(config, scales, bytes).unwrap().weight("a").unwrap_err();
        assert!(error.to_string().contains(expected), "{error}\n{expected}");
        assert!(matches!(error, MlxError::QuantConfigError(_) | MlxError::SafetensorsError(_)), "{error:?}");
    }
    let error = open("{", f16, 4).unwrap_err();
    assert!(matches!(&error, MlxError::QuantConfigError(m) if m.contains("config.json: EOF")), "{error}");
}

#[test]
fn malformed_files() {
    let long = u64::MAX.to_le_bytes().to_vec();
    let tensor = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"t":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    // Ends at 2^64 - 8, which wraps to the file's size when the header's length is added.
    let size = (1_u64 << 61) - 1;
    let wrap: Vec<String> = (0..8)
        .map(|i| {
            let (from, to) = (i * size, (i + 1) * size);
            format!(r#""t{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{from},{to}]}}"#)
        })
        .collect();
    let cases = [
        (vec![], "expected 8 bytes of header length, found 0 bytes"),
        (long, "a header of 18446744073709551615 bytes does not fit in the 0 bytes behind its length"),
        (raw("{", 0), "EOF while parsing"),
        (raw("{}", 1), "expected 0 bytes of data, found 1"),
        (raw(&tensor("[2]", 0, 8), 7), "expected 8 bytes of data, found 7"),
        (raw(&tensor("[2]", 0, 12), 12), "invalid shape, data type, or offset for tensor"),
        (raw(&tensor("[2]", 4, 12), 12), "t"),
        (raw(&tensor("[4294967296,4294967296]", 0, 0), 0), "overflow"),
        (raw(&format!("{{{}}}", wrap.join(",")), 0), "expected 18446744073709551608 bytes of data, found 0"),
    ];
    for (bytes, expected) in cases {
        let error = SafetensorsFile::from_map(FileMap::from_bytes(bytes)).unwrap_err();
        assert!(matches!(&error, MlxError::SafetensorsError(m) if m.contains(expected)), "{error}\n{expected}");
    }
    let bytes = fs::read(golden("sharded/model-00001-of-00002.safetensors")).unwrap();
    for len in 0..bytes.len() {
        let error = SafetensorsFile::from_map(FileMap::from_bytes(&bytes[..len])).unwrap_err();
        assert!(matches!(error, MlxError::SafetensorsError(_)), "{len}");
    }
}

#[test]
fn an_index_stays_in_its_directory() {
    let dir = TempDir::new("index");
    let path = dir.0.join("model.safetensors.index.json");
    for shard in ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "", ".."] {
        fs::write(&path, format!(r#"{{"weight_map":{{"t":"{shard}"}}}}"#)).unwrap();
        let error = SafetensorsFile::open_dir(&dir.0).unwrap_err().to_string();
        assert!(error.contains("expected the name of a file beside the index"), "{error}");
    }
    fs::write(&path, r#"{"weight_map":{"t":"model.safetensors"}}"#).unwrap();
    assert!(matches!(SafetensorsFile::open_dir(&dir.0), Err(MlxError::IoError { .. })));
    fs::copy(golden("single/model.safetensors"), dir.0.join("model.safetensors")).unwrap();
    let error = SafetensorsFile::open_dir(&dir.0).unwrap_err().to_string();
    assert!(error.contains("tensor `t` is not in model.safetensors"), "{error}");
}

#[test]
fn types_that_no_buffer_holds() {
    let header = r#"{"t":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#;
    let file = SafetensorsFile::from_map(FileMap::from_bytes(raw(header, 8))).unwrap();
    let info = &file.tensors()[0];
    assert_eq!(info.dtype_name(), "I64");
    assert!(matches!(info.dtype(), Err(MlxError::UnsupportedDtype(m)) if m == "tensor `t` is I64"));
}
