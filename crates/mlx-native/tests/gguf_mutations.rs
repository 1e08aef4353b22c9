//! Damaged files: an error or a consistent file, never a panic, a hang, or memory beyond the file's size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use mlx_native::GgmlType;
use mlx_native::io::FileMap;
use mlx_native::io::gguf::{GgufFile, GgufStr, GgufWriter};

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Counts the bytes that each thread holds.
struct Counting;

fn count(change: isize) {
    LIVE.set(LIVE.get() + change);
    PEAK.set(PEAK.get().max(LIVE.get()));
}

// SAFETY: every call goes to the system's allocator unchanged; counting does not allocate, since the cells are
// const-initialized and have no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise about `ptr` and `layout` is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `f` returns, and the most memory that it held.
fn peak_of<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = f();
    (result, (PEAK.get() - before) as usize)
}

/// An error message, and the list of one part: what does not depend on the file.
const FIXED_BYTES: usize = 1024;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

fn small_file() -> Vec<u8> {
    let mut w = GgufWriter::new();
    w.metadata("general.architecture", "llama").unwrap();
    w.metadata("general.alignment", 32_u32).unwrap();
    w.metadata("flag", true).unwrap();
    w.metadata("f64", 1.5_f64).unwrap();
    w.metadata("tokens", ["a", "bc", "", "ß"]).unwrap();
    w.metadata("nested", [vec![1_u16, 2], vec![], vec![3]]).unwrap();
    w.metadata("flags", [true, false]).unwrap();
    w.tensor("q", &[2, 32], GgmlType::Q8_0, vec![1; 68]).unwrap();
    w.tensor("norm", &[3], GgmlType::F32, vec![2; 12]).unwrap();
    w.tensor("experts", &[2, 1, 32], GgmlType::Q4_0, vec![3; 36]).unwrap();
    let mut bytes = Vec::new();
    w.write_to(&mut bytes).unwrap();
    bytes
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    const VALUES: [u64; 12] = [0, 1, 4, 5, 9, 32, 255, 1 << 31, 1 << 32, 1 << 61, u64::MAX - 31, u64::MAX];
    let at = rng.below(bytes.len());
    match rng.below(8) {
        0 | 1 => bytes[at] ^= 1 << rng.below(8),
        2 => bytes[at] = rng.next() as u8,
        3 => {
            let value = VALUES[rng.below(VALUES.len())].to_le_bytes();
            let n = (1 << rng.below(4)).min(bytes.len() - at);
            bytes[at..at + n].copy_from_slice(&value[..n]);
        }
        4 => {
            let delta = rng.below(65) as i64 - 32;
            if let Some(field) = bytes.get_mut(at..at + 8) {
                let value = i64::from_le_bytes((&*field).try_into().unwrap()).wrapping_add(delta);
                field.copy_from_slice(&value.to_le_bytes());
            }
        }
        5 => bytes.truncate(at.max(1)),
        6 => {
            let end = (at + 1 + rng.below(40)).min(bytes.len());
            if end - at < bytes.len() {
                bytes.drain(at..end);
            }
        }
        _ => {
            let end = (at + 1 + rng.below(40)).min(bytes.len());
            let copy = bytes[at..end].to_vec();
            let to = rng.below(bytes.len());
            bytes.splice(to..to, copy);
        }
    }
}

/// Reads all that the file offers; panics where it contradicts itself.
fn check_consistent(file: &GgufFile, len: usize) {
    let mut keys = 0;
    for (key, value) in file.metadata() {
        keys += 1;
        // Text rather than the values, because NaN differs from itself.
        assert_eq!(file.get(key).map(|v| v.to_string()), Some(value.to_string()));
        if let Ok(array) = file.array(key) {
            assert_eq!(array.iter().count(), array.len());
        }
    }
    assert_eq!(keys, file.n_metadata());
    let mut ranges = Vec::new();
    for tensor in file.tensors() {
        assert_eq!(file.tensor(tensor.name), Some(tensor));
        assert_eq!(file.tensor_data(&tensor).unwrap().len(), tensor.byte_len);
        assert!(tensor.byte_len > 0 && tensor.offset.is_multiple_of(8));
        let values: u64 = tensor.shape.iter().product();
        let blocks = values / u64::from(tensor.ggml_type.block_values());
        assert_eq!(blocks * u64::from(tensor.ggml_type.block_bytes()), tensor.byte_len as u64);
        ranges.push((tensor.offset, tensor.offset + tensor.byte_len));
    }
    assert_eq!(ranges.len(), file.n_tensors());
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    assert!(ranges.last().is_none_or(|range| range.1 <= len));
}

#[test]
fn a_hundred_thousand_mutations() {
    let original = small_file();
    let mut rng = Rng(2026);
    let (mut opened, mut worst) = (0, 0);
    for _ in 0..100_000 {
        let mut bytes = original.clone();
        for _ in 0..1 + rng.below(3) {
            mutate(&mut bytes, &mut rng);
        }
        let len = bytes.len();
        let map = FileMap::from_bytes(bytes);
        let (result, peak) = peak_of(|| GgufFile::from_maps([map]));
        worst = worst.max(peak as isize - len as isize);
        assert!(peak <= len + FIXED_BYTES, "{peak} bytes of memory for a file of {len}: {result:?}");
        match result {
            Ok(file) => {
                opened += 1;
                check_consistent(&file, len);
            }
            Err(error) => assert!(matches!(error, mlx_native::MlxError::GgufParseError(_)), "{error:?}"),
        }
    }
    println!("{opened} of 100000 still open; at most {worst} bytes of memory more than the file has");
    // Mutations of tensor data and of values leave a file valid; of lengths and counts hardly ever.
    assert!((10_000..60_000).contains(&opened), "{opened}");
}

#[test]
fn the_densest_file_costs_less_memory_than_its_size() {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    let (tensors, keys) = (10_000_u64, 20_000_u64);
    bytes.extend_from_slice(&tensors.to_le_bytes());
    bytes.extend_from_slice(&keys.to_le_bytes());
    for i in 0..keys {
        let key = format!("{i:x}");
        bytes.extend_from_slice(&(key.len() as u64).to_le_bytes());
        bytes.extend_from_slice(key.as_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 0, 9]);
    }
    for i in 0..tensors {
        let name = format!("{i:x}");
        bytes.extend_from_slice(&(name.len() as u64).to_le_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&1_u32.to_le_bytes());
        bytes.extend_from_slice(&1_u64.to_le_bytes());
        bytes.extend_from_slice(&24_u32.to_le_bytes());
        bytes.extend_from_slice(&(32 * i).to_le_bytes());
    }
    let header = bytes.len();
    bytes.resize(header.next_multiple_of(32) + 32 * tensors as usize, 0);
    let map = FileMap::from_bytes(bytes);
    let (file, peak) = peak_of(|| GgufFile::from_maps([map]).unwrap());
    assert!(peak <= header, "{peak} bytes of memory for a header of {header}");
    let name = format!("{:x}", 7777);
    assert_eq!(file.u32(&name).unwrap(), 9);
    assert_eq!(file.required_tensor(&name).unwrap().byte_len, 1);
}

/// Random contents survive writing and reading, and are then written to the same bytes.
#[test]
fn random_files_round_trip() {
    let mut rng = Rng(7);
    for _ in 0..200 {
        let tokens: Vec<Vec<u8>> =
            (0..rng.below(9)).map(|_| (0..rng.below(5)).map(|_| rng.next() as u8).collect()).collect();
        let tokens: Vec<GgufStr> = tokens.iter().map(|t| t.as_slice().into()).collect();
        let floats: Vec<f32> = (0..rng.below(9)).map(|_| rng.below(1000) as f32 / 8.0).collect();
        let nested: Vec<Vec<i64>> =
            (0..rng.below(4)).map(|_| (0..rng.below(4)).map(|_| rng.next() as i64).collect()).collect();
        let alignment = 8_u32 << rng.below(6);
        let integer = rng.next();
        let all: Vec<GgmlType> = GgmlType::all().collect();
        let mut tensors = Vec::new();
        for i in 0..rng.below(6) {
            let kind = all[rng.below(all.len())];
            let mut shape: Vec<u64> = (0..rng.below(4)).map(|_| 1 + rng.below(3) as u64).collect();
            shape.push(u64::from(kind.block_values()) * (1 + rng.below(3) as u64));
            let blocks: u64 = shape.iter().product::<u64>() / u64::from(kind.block_values());
            let data: Vec<u8> = (0..blocks * u64::from(kind.block_bytes())).map(|_| rng.next() as u8).collect();
            tensors.push((format!("t{i}"), shape, kind, data));
        }
        let mut w = GgufWriter::new();
        w.metadata("tokens", &tokens).unwrap().metadata("floats", &floats).unwrap();
        w.metadata("general.alignment", alignment).unwrap();
        w.metadata("nested", &nested).unwrap().metadata("integer", integer).unwrap();
        for (name, shape, kind, data) in &tensors {
            w.tensor(name, shape, *kind, data.as_slice()).unwrap();
        }
        let mut bytes = Vec::new();
        w.write_to(&mut bytes).unwrap();

        let file = GgufFile::parse(&bytes).unwrap();
        assert_eq!(file.required::<Vec<GgufStr>>("tokens").unwrap(), tokens);
        assert_eq!(file.required::<Vec<f32>>("floats").unwrap(), floats);
        assert_eq!(file.required::<Vec<Vec<i64>>>("nested").unwrap(), nested);
        assert_eq!(file.u64("integer").unwrap(), integer);
        assert_eq!(file.alignment(), u64::from(alignment));
        assert_eq!(file.n_tensors(), tensors.len());
        for (found, (name, shape, kind, data)) in file.tensors().zip(&tensors) {
            assert_eq!((found.name, &*found.shape, found.ggml_type), (name.as_str(), shape.as_slice(), *kind));
            assert_eq!(file.tensor_data(&found).unwrap(), data);
        }
        let mut again = Vec::new();
        GgufWriter::copy_of(&file).unwrap().write_to(&mut again).unwrap();
        assert!(again == bytes);
    }
}
