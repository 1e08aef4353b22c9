//! Kernels that are known to work on Apple GPUs give right results here: MLX's affine quantized products, from the headers
//! that its PyPI package carries. `scripts/metal-host/fetch_mlx.sh` fetches them; without it these tests say so and pass,
//! unless `METAL_HOST_MLX` demands them.

use std::fmt::Write as _;
use std::path::PathBuf;

use half::{bf16, f16};
use metal_host::{Binding, Buffer, CompileOptions, Dispatch, Grid, Kind, Library, Options, Report};

const WIDTHS: [usize; 6] = [2, 3, 4, 5, 6, 8];
const GROUPS: [usize; 3] = [32, 64, 128];

/// Where the script put the headers.
fn headers() -> Option<PathBuf> {
    let demanded = std::env::var_os("METAL_HOST_MLX").map(PathBuf::from);
    let cache = || {
        std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
    };
    let dir = demanded.clone().or_else(|| cache().map(|c| c.join("metal-host/mlx")))?.join("include");
    if dir.join("mlx/backend/metal/kernels/quantized.h").exists() {
        return Some(dir);
    }
    assert!(
        demanded.is_none(),
        "METAL_HOST_MLX is set, but {} has no kernels: run scripts/metal-host/fetch_mlx.sh",
        dir.display()
    );
    eprintln!("SKIPPED: MLX's kernels are not in {}; scripts/metal-host/fetch_mlx.sh fetches them", dir.display());
    None
}

/// An element type of MLX's kernels.
trait Element: bytemuck::Pod {
    const NAME: &'static str;
    /// Spacing of values beside 1.
    const EPSILON: f64;
    fn from_f64(v: f64) -> Self;
    fn f64(self) -> f64;
}
impl Element for f32 {
    const NAME: &'static str = "float";
    const EPSILON: f64 = f32::EPSILON as f64;
    fn from_f64(v: f64) -> f32 {
        v as f32
    }
    fn f64(self) -> f64 {
        self.into()
    }
}
impl Element for f16 {
    const NAME: &'static str = "half";
    const EPSILON: f64 = 1.0 / 1024.0;
    fn from_f64(v: f64) -> f16 {
        f16::from_f64(v)
    }
    fn f64(self) -> f64 {
        self.to_f64()
    }
}
impl Element for bf16 {
    const NAME: &'static str = "bfloat16_t";
    const EPSILON: f64 = 1.0 / 128.0;
    fn from_f64(v: f64) -> bf16 {
        bf16::from_f64(v)
    }
    fn f64(self) -> f64 {
        self.to_f64()
    }
}

fn library<T: Element>(kernel: &str, arguments: &str, include: PathBuf) -> Library {
    let mut source = String::new();
    for header in ["utils", "steel/gemm/gemm", "quantized_utils", "quantized"] {
        let _ = writeln!(source, "#include \"mlx/backend/metal/kernels/{header}.h\"");
    }
    for width in WIDTHS {
        for group in GROUPS {
            let id = format!("affine_{kernel}<{}, {group}, {width}, {arguments}>", T::NAME);
            let _ = writeln!(
                source,
                "template [[host_name(\"{kernel}_{group}_{width}\")]] [[kernel]] decltype({id}) {id};"
            );
        }
    }
    let options =
        CompileOptions { include_dirs: vec![include], ..CompileOptions::named(&format!("{kernel}_{}.metal", T::NAME)) };
    Library::compile(&source, options).unwrap()
}

/// A linear generator of values in [-1, 1).
struct Random(u64);
impl Random {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as u32
    }
    fn value(&mut self) -> f64 {
        f64::from(self.bits()) / f64::from(1 << 23) - 1.0
    }
}

/// y = x wᵀ with x of [m, k] and w of [n, k] in groups along k: w = scale q + bias.
struct Product<T> {
    packed: Vec<u8>,
    scales: Vec<T>,
    biases: Vec<T>,
    x: Vec<T>,
    want: Vec<f64>,
}

impl<T: Element> Product<T> {
    fn new([m, n, k]: [usize; 3], width: usize, group: usize) -> Self {
        let mut r = Random((m * 31 + n * 17 + k + width * 1000 + group) as u64);
        let q: Vec<u32> = (0..n * k).map(|_| r.bits() & ((1 << width) - 1)).collect();
        // Values of a row follow one another bit by bit, lowest first, for every width.
        let mut packed = vec![0u8; n * k * width / 8];
        for (i, v) in q.iter().enumerate() {
            for b in 0..width {
                packed[(i * width + b) / 8] |= ((v >> b & 1) as u8) << ((i * width + b) % 8);
            }
        }
        let scales: Vec<T> = (0..n * k / group).map(|_| T::from_f64(0.02 * (1.5 + r.value()))).collect();
        let biases: Vec<T> = scales
            .iter()
            .map(|s| T::from_f64(s.f64() * -0.5 * f64::from((1u32 << width) - 1) * (1.0 + 0.1 * r.value())))
            .collect();
        let x: Vec<T> = (0..m * k).map(|_| T::from_f64(r.value())).collect();
        let weight = |row: usize, i: usize| {
            let g = (row * k + i) / group;
            scales[g].f64() * f64::from(q[row * k + i]) + biases[g].f64()
        };
        let want = (0..m * n).map(|e| (0..k).map(|i| x[e / n * k + i].f64() * weight(e % n, i)).sum()).collect();
        Product { packed, scales, biases, x, want }
    }

    /// Runs a kernel; gives the error of its result, relative in the 2-norm.
    fn run(&self, lib: &Library, name: &str, sizes: &[usize], grid: [u32; 3], group: [u32; 3], seed: u64) -> f64 {
        let (error, report) = self.report(lib, name, sizes, grid, group, seed);
        assert!(report.findings.iter().all(|f| f.kind == Kind::SameValueWrite), "{} {name}: {report}", T::NAME);
        error
    }

    fn report(
        &self,
        lib: &Library,
        name: &str,
        sizes: &[usize],
        grid: [u32; 3],
        group: [u32; 3],
        seed: u64,
    ) -> (f64, Report) {
        let w = Buffer::from_bytes("w", &self.packed).unwrap();
        let (scales, biases) =
            (Buffer::from_slice("scales", &self.scales).unwrap(), Buffer::from_slice("biases", &self.biases).unwrap());
        let x = Buffer::from_slice("x", &self.x).unwrap();
        let y = Buffer::uninitialised("y", self.want.len() * std::mem::size_of::<T>()).unwrap();
        let sizes: Vec<[u8; 4]> = sizes.iter().map(|&s| (s as i32).to_ne_bytes()).collect();
        let mut bindings = vec![
            Binding::read(&w),
            Binding::read(&scales),
            Binding::read(&biases),
            Binding::read(&x),
            Binding::overwrite(&y),
        ];
        bindings.extend(sizes.iter().map(|s| Binding::Bytes(s)));
        let d = Dispatch {
            bindings: &bindings,
            threadgroup_bytes: &[],
            grid: Grid::Threadgroups(grid),
            group,
            options: Options::seed(seed),
        };
        let report = lib.pipeline(name, &[]).unwrap().dispatch(&d).unwrap();
        let (mut error, mut norm) = (0.0, 0.0);
        for (got, want) in y.to_vec_of::<T>().iter().zip(&self.want) {
            error += (got.f64() - want).powi(2);
            norm += want.powi(2);
        }
        ((error / norm).sqrt(), report)
    }
}

/// A product that MLX computed on a CPU, as scripts/metal-host/golden.py writes it.
struct Golden<T> {
    width: usize,
    group: usize,
    shape: [usize; 3],
    product: Product<T>,
}

fn golden<T: Element>(headers: &std::path::Path) -> Vec<Golden<T>> {
    let file = headers.with_file_name("golden.bin");
    let Ok(bytes) = std::fs::read(&file) else {
        eprintln!("SKIPPED: no {}; scripts/metal-host/fetch_mlx.sh --golden computes it", file.display());
        return Vec::new();
    };
    let (mut rest, mut out) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let line = rest.iter().position(|&b| b == b'\n').unwrap();
        let words: Vec<&str> = std::str::from_utf8(&rest[..line]).unwrap().split(' ').collect();
        let numbers: Vec<usize> = words[1..].iter().map(|w| w.parse().unwrap()).collect();
        rest = &rest[line + 1..];
        let mut take = |len: usize| {
            let (head, tail) = rest.split_at(len);
            rest = tail;
            head
        };
        let arrays: Vec<&[u8]> = numbers[5..].iter().map(|&len| take(len)).collect();
        if words[0] == T::NAME {
            let values = |i: usize| -> Vec<T> {
                arrays[i].chunks_exact(std::mem::size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
            };
            let want = values(4).into_iter().map(T::f64).collect();
            let product =
                Product { packed: arrays[0].to_vec(), scales: values(1), biases: values(2), x: values(3), want };
            out.push(Golden {
                width: numbers[0],
                group: numbers[1],
                shape: [numbers[2], numbers[3], numbers[4]],
                product,
            });
        }
    }
    out
}

fn each_format(mut f: impl FnMut(usize, usize)) {
    for width in WIDTHS {
        for group in GROUPS {
            f(width, group);
        }
    }
}

/// Rounding to T once, and for f32 the order of summation.
fn bound<T: Element>() -> f64 {
    T::EPSILON.max(1e-6)
}

/// MLX's kernels for the CPU sum 16-bit products in 16 bits, those for the GPU in 32.
fn bound_of_mlx<T: Element>() -> f64 {
    if T::EPSILON < 1e-6 { 1e-6 } else { 8.0 * T::EPSILON }
}

fn vectors<T: Element>() {
    let Some(include) = headers() else { return };
    let any = library::<T>("qmv", "false", include.clone());
    let mut of_mlx = 0f64;
    for g in golden::<T>(&include).iter().filter(|g| g.shape[0] == 1) {
        let [_, n, k] = g.shape;
        let name = format!("qmv_{}_{}", g.group, g.width);
        of_mlx = of_mlx.max(g.product.run(&any, &name, &[k, n], [1, n.div_ceil(8) as u32, 1], [32, 2, 1], 4));
    }
    let fast = library::<T>("qmv_fast", "false", include);
    let mut worst = 0f64;
    each_format(|width, group| {
        // Whole blocks of 512 along k and of 8 rows.
        let p = Product::<T>::new([2, 16, 512], width, group);
        let error = p.run(&fast, &format!("qmv_fast_{group}_{width}"), &[512, 16], [2, 2, 1], [32, 2, 1], 1);
        worst = worst.max(error);
        // Neither.
        for n in [5, 13] {
            let p = Product::<T>::new([1, n, 384], width, group);
            let error =
                p.run(&any, &format!("qmv_{group}_{width}"), &[384, n], [1, n.div_ceil(8) as u32, 1], [32, 2, 1], 2);
            worst = worst.max(error);
        }
    });
    println!(
        "{} products with a vector: worst difference from f64 {worst:.1e}, from MLX on the CPU {of_mlx:.1e}",
        T::NAME
    );
    assert!(worst < bound::<T>() && of_mlx < bound_of_mlx::<T>(), "{worst:e} {of_mlx:e}");
}

fn matrices<T: Element>() {
    let Some(include) = headers() else { return };
    let lib = library::<T>("qmm_t", "false, false", include.clone());
    let mut of_mlx = 0f64;
    for g in golden::<T>(&include).iter().filter(|g| g.shape[0] > 1) {
        let [m, n, k] = g.shape;
        let grid = [n.div_ceil(32) as u32, m.div_ceil(32) as u32, 1];
        of_mlx =
            of_mlx.max(g.product.run(&lib, &format!("qmm_t_{}_{}", g.group, g.width), &[k, n, m], grid, [32, 2, 2], 5));
    }
    let mut worst = 0f64;
    each_format(|width, group| {
        let [m, n, k] = [37, 45, 128];
        let p = Product::<T>::new([m, n, k], width, group);
        let grid = [n.div_ceil(32) as u32, m.div_ceil(32) as u32, 1];
        worst = worst.max(p.run(&lib, &format!("qmm_t_{group}_{width}"), &[k, n, m], grid, [32, 2, 2], 3));
    });
    println!(
        "{} products with a matrix: worst difference from f64 {worst:.1e}, from MLX on the CPU {of_mlx:.1e}",
        T::NAME
    );
    // The weights are rounded to T before they are multiplied.
    assert!(worst < 2.0 * bound::<T>() && of_mlx < bound_of_mlx::<T>(), "{worst:e} {of_mlx:e}");
}

#[test]
fn vectors_f32() {
    vectors::<f32>();
}

#[test]
fn vectors_f16() {
    vectors::<f16>();
}

#[test]
fn vectors_bf16() {
    vectors::<bf16>();
}

#[test]
fn matrices_f32() {
    matrices::<f32>();
}

#[test]
fn matrices_f16() {
    matrices::<f16>();
}

#[test]
fn matrices_bf16() {
    matrices::<bf16>();
}

/// Takes each barrier of MLX's tile product out in turn: the values mostly stay right, the race is seen every time.
#[test]
fn a_barrier_less_is_caught() {
    let Some(include) = headers() else { return };
    let header = "mlx/backend/metal/kernels/quantized.h";
    let text = std::fs::read_to_string(include.join(header)).unwrap();
    let body = text.find("METAL_FUNC void qmm_t_impl").unwrap();
    let end = body + text[body..].find("\ntemplate").unwrap();
    let barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);";
    // The last one stands before the results leave the registers and orders nothing.
    let mut places: Vec<usize> = text[body..end].match_indices(barrier).map(|(at, _)| body + at).collect();
    places.pop();
    assert!(places.len() >= 4, "{} barriers in the tile product", places.len());
    let [m, n, k] = [37, 45, 128];
    let p = Product::<f32>::new([m, n, k], 4, 64);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("mutants");
    let (mut caught, mut right) = (0, 0);
    for &at in &places {
        std::fs::create_dir_all(folder.join(header).parent().unwrap()).unwrap();
        std::fs::write(folder.join(header), format!("{}{}", &text[..at], &text[at + barrier.len()..])).unwrap();
        let mut source = String::new();
        for header in ["utils", "steel/gemm/gemm", "quantized_utils", "quantized"] {
            let _ = writeln!(source, "#include \"mlx/backend/metal/kernels/{header}.h\"");
        }
        let id = "affine_qmm_t<float, 64, 4, false, false>";
        let _ = writeln!(source, "template [[host_name(\"qmm_t\")]] [[kernel]] decltype({id}) {id};");
        let options = CompileOptions {
            include_dirs: vec![folder.clone(), include.clone()],
            ..CompileOptions::named("mutant.metal")
        };
        let lib = Library::compile(&source, options).unwrap();
        let (error, report) =
            p.report(&lib, "qmm_t", &[k, n, m], [n.div_ceil(32) as u32, m.div_ceil(32) as u32, 1], [32, 2, 2], 0);
        caught += usize::from(
            report.findings.iter().any(|f| matches!(f.kind, Kind::RaceInThreadgroup | Kind::RaceInSimdgroup)),
        );
        right += usize::from(error < 1e-6);
    }
    std::fs::remove_dir_all(&folder).unwrap();
    println!("{caught} of {} missing barriers caught; {right} give right values all the same", places.len());
    assert_eq!(caught, places.len());
}
