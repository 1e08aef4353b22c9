//! From CUDA C++ to machine code: NVRTC, and a disk cache of what it made.

use std::ffi::{CStr, CString};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::nvrtc::sys::{self, nvrtcResult};

use crate::{MlxError, Result};

/// A program: what to compile, and the kernel in it.
pub(super) struct Program<'a> {
    /// For messages.
    pub name: &'a str,
    pub text: &'a str,
    /// The kernel as a C++ expression: `mv<Blocks<Q4_0>, 1, 8>`.
    pub kernel: &'a str,
    /// Compute capability, see [`DeviceInfo::arch`](super::driver::DeviceInfo::arch).
    pub arch: u32,
}

/// Machine code of one kernel.
pub(super) struct Binary {
    pub cubin: Vec<u8>,
    /// The kernel's symbol in it.
    pub symbol: String,
    /// What the assembler says of registers and spills; empty when the code comes from the cache.
    #[cfg_attr(not(test), allow(dead_code))] // Tests alone look for spills.
    pub log: String,
}

/// Directories where an installed toolkit has its libraries, beside those that the loader knows.
pub(super) fn library_directories() -> Vec<PathBuf> {
    let roots = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    roots.chain([PathBuf::from("/usr/local/cuda")]).flat_map(|root| [root.join("lib64"), root.join("lib")]).collect()
}

/// Loads NVRTC once and gives its version; what is missing is [`MlxError::DeviceNotFound`].
pub(super) fn version() -> Result<(i32, i32)> {
    static VERSION: OnceLock<Option<(i32, i32)>> = OnceLock::new();
    let version = VERSION.get_or_init(|| {
        // SAFETY: loading NVRTC runs its initialisers, which have no preconditions.
        let present = || unsafe { sys::is_culib_present() };
        if !present() {
            // A library that is loaded by its path is found by its name from then on.
            let names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
            let paths = library_directories().into_iter().flat_map(|dir| names.map(|name| dir.join(name)));
            // SAFETY: as above.
            let library = paths.into_iter().find_map(|path| unsafe { libloading::Library::new(path) }.ok());
            std::mem::forget(library);
        }
        if !present() {
            return None;
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes to the locals.
        let code = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
        (code == nvrtcResult::NVRTC_SUCCESS).then_some((major, minor))
    });
    version.ok_or_else(|| {
        MlxError::DeviceNotFound(
            "cuda: NVRTC, which compiles the kernels, is not installed: libnvrtc.so of CUDA 12 or 13 was found neither by the loader \
             nor under CUDA_HOME, CUDA_PATH or /usr/local/cuda"
                .into(),
        )
    })
}

/// The architecture's name; Hopper's own instructions need the `a`.
pub(super) fn architecture(arch: u32) -> String {
    if arch == 90 { "sm_90a".into() } else { format!("sm_{arch}") }
}

fn options(arch: u32) -> Vec<String> {
    [
        &format!("--gpu-architecture={}", architecture(arch)),
        "--std=c++17",
        "--device-as-default-execution-space",
        "--fmad=false",
        "--ptxas-options=-v",
        // A template serves several kernels, of which one is compiled: the others' constants are declared and not used.
        "--diag-suppress=177",
    ]
    .map(String::from)
    .to_vec()
}

/// The cache's directory: `mlx-native/cuda` in the user's cache directory; none where there is no such place.
fn cache_directory() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))?;
    Some(cache.join("mlx-native").join("cuda"))
}

/// Two independent 64-bit hashes of everything that the machine code depends on.
fn cache_key(program: &Program<'_>, version: (i32, i32)) -> String {
    let hash = |salt: u8| {
        let mut hasher = foldless::Fnv::new(salt);
        (program.text, program.kernel, options(program.arch), version, env!("CARGO_PKG_VERSION")).hash(&mut hasher);
        hasher.finish()
    };
    format!("{:016x}{:016x}", hash(1), hash(2))
}

/// A hash that is the same in every process and build, which the standard library's is not promised to be.
mod foldless {
    use std::hash::Hasher;

    /// FNV-1a with 64 bits.
    pub(super) struct Fnv(u64);

    impl Fnv {
        pub(super) fn new(salt: u8) -> Fnv {
            let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
            hasher.write(&[salt]);
            hasher
        }
    }

    impl Hasher for Fnv {
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }

        fn finish(&self) -> u64 {
            self.0
        }
    }
}

/// A cached file: the symbol's length in four bytes, the symbol, the code.
fn read_cached(path: &Path) -> Option<Binary> {
    let bytes = std::fs::read(path).ok()?;
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (symbol, cubin) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let symbol = String::from_utf8(symbol.to_vec()).ok()?;
    // Every cubin is an ELF file.
    cubin.starts_with(b"\x7fELF").then(|| Binary { cubin: cubin.to_vec(), symbol, log: String::new() })
}

/// Writes a file under another name first, so that nobody ever reads half of it. A cache that cannot be written is none.
fn write_cached(path: &Path, binary: &Binary) {
    let Some(directory) = path.parent() else { return };
    let mut bytes = (binary.symbol.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(binary.symbol.as_bytes());
    bytes.extend_from_slice(&binary.cubin);
    let unfinished = path.with_extension(format!("{}-{:?}", std::process::id(), std::thread::current().id()));
    let written = std::fs::create_dir_all(directory).and_then(|()| std::fs::write(&unfinished, bytes));
    if written.and_then(|()| std::fs::rename(&unfinished, path)).is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
}

/// The machine code of a kernel, from the cache where it is there.
pub(super) fn build(program: &Program<'_>) -> Result<Binary> {
    let version = version()?;
    let path = cache_directory().map(|directory| directory.join(format!("{}.bin", cache_key(program, version))));
    if let Some(binary) = path.as_deref().and_then(read_cached) {
        return Ok(binary);
    }
    let binary = compile(program)?;
    if let Some(path) = path {
        write_cached(&path, &binary);
    }
    Ok(binary)
}

/// An NVRTC program, destroyed when it is dropped.
struct Handle(sys::nvrtcProgram);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// Compiles without the cache.
pub(super) fn compile(program: &Program<'_>) -> Result<Binary> {
    version()?;
    let failed = |message: String| MlxError::ShaderCompilationError { name: program.kernel.into(), message };
    let c_string = |text: &str| CString::new(text).map_err(|_| failed("a zero byte in the text".into()));
    let (text, name, kernel) = (c_string(program.text)?, c_string(program.name)?, c_string(program.kernel)?);
    let options = options(program.arch).iter().map(|option| c_string(option)).collect::<Result<Vec<_>>>()?;
    let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
    let check = |what: &str, code: nvrtcResult| match code {
        nvrtcResult::NVRTC_SUCCESS => Ok(()),
        code => Err(failed(format!("{what}: {code:?}"))),
    };
    let mut handle = Handle(std::ptr::null_mut());
    // SAFETY: all strings end with a zero and outlive the program; there are no headers.
    unsafe {
        let code =
            sys::nvrtcCreateProgram(&mut handle.0, text.as_ptr(), name.as_ptr(), 0, std::ptr::null(), std::ptr::null());
        check("nvrtcCreateProgram", code)?;
        check("nvrtcAddNameExpression", sys::nvrtcAddNameExpression(handle.0, kernel.as_ptr()))?;
    }
    // SAFETY: as many pointers as are given.
    let compiled = unsafe { sys::nvrtcCompileProgram(handle.0, pointers.len() as i32, pointers.as_ptr()) };
    let mut log_bytes = 0;
    // SAFETY: writes to the local.
    check("nvrtcGetProgramLogSize", unsafe { sys::nvrtcGetProgramLogSize(handle.0, &mut log_bytes) })?;
    let mut log = vec![0u8; log_bytes.max(1)];
    // SAFETY: the buffer has the size that was asked for.
    check("nvrtcGetProgramLog", unsafe { sys::nvrtcGetProgramLog(handle.0, log.as_mut_ptr().cast()) })?;
    let log = CStr::from_bytes_until_nul(&log).map_or_else(|_| String::new(), |log| log.to_string_lossy().into());
    if compiled != nvrtcResult::NVRTC_SUCCESS {
        return Err(failed(log));
    }
    let (mut symbol, mut bytes) = (std::ptr::null(), 0);
    // SAFETY: the program is compiled; both write to locals.
    unsafe {
        check("nvrtcGetLoweredName", sys::nvrtcGetLoweredName(handle.0, kernel.as_ptr(), &mut symbol))?;
        check("nvrtcGetCUBINSize", sys::nvrtcGetCUBINSize(handle.0, &mut bytes))?;
    }
    let mut cubin = vec![0u8; bytes];
    // SAFETY: the buffer has the size that was asked for.
    check("nvrtcGetCUBIN", unsafe { sys::nvrtcGetCUBIN(handle.0, cubin.as_mut_ptr().cast()) })?;
    // SAFETY: a string that ends with a zero and lives as long as the program.
    let symbol = unsafe { CStr::from_ptr(symbol) }.to_string_lossy().into_owned();
    Ok(Binary { cubin, symbol, log })
}
