//! Compiled shaders: the cache on disk and what is loaded.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::abi;
use crate::error::{Error, Result};
use crate::headers;
use crate::toolchain::Toolchain;
use crate::translate::translate;

/// How a shader is compiled.
#[derive(Debug, Clone)]
pub struct CompileOptions {
    /// Name in reports and diagnostics, as a file would have.
    pub name: String,
    /// Folders for `#include "…"`.
    pub include_dirs: Vec<PathBuf>,
    /// Macros, `NAME` or `NAME=value`.
    pub defines: Vec<String>,
    /// Whether accesses are checked. Without checks a dispatch is several times faster and reports almost nothing.
    pub checks: bool,
    /// `__METAL_VERSION__`, 400 for Metal 4.0.
    pub metal_version: u32,
    /// Where compiled shaders are kept; by default `metal-host` in the user's cache folder, or `METAL_HOST_CACHE`.
    pub cache_dir: Option<PathBuf>,
    /// The C++ compiler; by default `CXX`, else g++ or clang++.
    pub compiler: Option<PathBuf>,
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions {
            name: "shader.metal".into(),
            include_dirs: Vec::new(),
            defines: Vec::new(),
            checks: true,
            metal_version: 400,
            cache_dir: None,
            compiler: None,
        }
    }
}

impl CompileOptions {
    /// Default options with a name.
    pub fn named(name: &str) -> Self {
        CompileOptions { name: name.into(), ..Default::default() }
    }
}

/// A compiled shader.
///
/// Compiling runs a C++ compiler on the text and loads the result into this process: the text is trusted as any source
/// of the program is.
#[derive(Debug, Clone)]
pub struct Library {
    pub(crate) loaded: Arc<Loaded>,
}

/// A kernel with its function constants.
#[derive(Debug, Clone)]
pub struct Pipeline {
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) kernel: u32,
    pub(crate) name: String,
    pub(crate) constants: Vec<FunctionConstant>,
}

/// The value of a function constant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ConstantValue {
    /// For a `bool`.
    Bool(bool),
    /// For any integer type.
    Int(i64),
    /// For any floating-point type.
    Float(f64),
}

/// A function constant by index.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FunctionConstant {
    /// `[[function_constant(index)]]`
    pub index: u32,
    /// Its value.
    pub value: ConstantValue,
}

impl FunctionConstant {
    /// A `bool`.
    pub fn bool(index: u32, value: bool) -> Self {
        FunctionConstant { index, value: ConstantValue::Bool(value) }
    }

    /// An integer.
    pub fn int(index: u32, value: impl Into<i64>) -> Self {
        FunctionConstant { index, value: ConstantValue::Int(value.into()) }
    }

    /// A float.
    pub fn float(index: u32, value: impl Into<f64>) -> Self {
        FunctionConstant { index, value: ConstantValue::Float(value.into()) }
    }
}

/// One parameter of a kernel, as far as a dispatch has to know it.
#[derive(Debug, Clone)]
pub(crate) struct ParamInfo {
    pub is_buffer: bool,
    pub index: u32,
    pub conditional: bool,
    pub name: *const std::ffi::c_char,
}

#[derive(Debug)]
pub(crate) struct KernelInfo {
    pub name: String,
    pub max_threads: u32,
    pub params: Vec<ParamInfo>,
}

/// A shared object in this process. One dispatch at a time runs in it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub name: String,
    pub path: PathBuf,
    pub checks: bool,
    pub warnings: Vec<String>,
    pub kernels: Vec<KernelInfo>,
    pub constants: Vec<(u32, String)>,
    pub run: abi::Run,
    pub running: Mutex<()>,
    /// Kept loaded for `run` and for the names that `kernels` point to.
    _object: libloading::Library,
}

// SAFETY: the pointers lead to constant tables of the shared object, which stays loaded as long as this value lives.
unsafe impl Send for Loaded {}
// SAFETY: as above; `run` is entered under `running` only.
unsafe impl Sync for Loaded {}

impl Library {
    /// Compiles MSL text, or loads what an earlier call compiled from the same text and options.
    ///
    /// # Errors
    /// [`Error::NoCompiler`] where no C++ compiler is installed, [`Error::Translate`] for a text with a kernel that is
    /// not understood, [`Error::Compile`] with the compiler's words for anything that C++ does not accept,
    /// [`Error::Io`] when the cache cannot be written.
    pub fn compile(source: &str, options: CompileOptions) -> Result<Library> {
        let toolchain = Toolchain::find(options.compiler.as_deref())?;
        let cache = Cache::open(&toolchain, &options)?;
        // With includes only the flattened text says what is compiled.
        let flat =
            if options.include_dirs.is_empty() { None } else { Some(cache.flatten(&toolchain, source, &options)?) };
        let key = cache.key(flat.as_deref().unwrap_or(source), &options);
        let lock = per_key(&key);
        let mut slot = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = slot.as_ref() {
            return Ok(Library { loaded: loaded.clone() });
        }
        let object = cache.dir.join(format!("{key}.so"));
        if !object.exists() {
            let flat = match flat {
                Some(f) => f,
                None => cache.flatten(&toolchain, source, &options)?,
            };
            cache.build(&toolchain, &flat, &key, &object, &options)?;
        }
        let loaded = Arc::new(load(&object, &options)?);
        *slot = Some(loaded.clone());
        Ok(Library { loaded })
    }

    /// The kernels' names.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.loaded.kernels.iter().map(|k| k.name.as_str())
    }

    /// What the compiler warned of: use of variables that were never given a value, and the like.
    pub fn warnings(&self) -> &[String] {
        &self.loaded.warnings
    }

    /// A kernel, with values for its function constants. Constants that are left out are undefined, as
    /// `is_function_constant_defined` tells the shader, and zero.
    ///
    /// # Errors
    /// [`Error::UnknownKernel`], [`Error::UnknownConstant`].
    pub fn pipeline(&self, name: &str, constants: &[FunctionConstant]) -> Result<Pipeline> {
        let kernel = self.loaded.kernels.iter().position(|k| k.name == name).ok_or_else(|| Error::UnknownKernel {
            name: name.into(),
            library: self.loaded.name.clone(),
            available: self.kernels().map(str::to_string).collect(),
        })?;
        for c in constants {
            if !self.loaded.constants.iter().any(|(i, _)| *i == c.index) {
                return Err(Error::UnknownConstant {
                    index: c.index,
                    library: self.loaded.name.clone(),
                    available: self.loaded.constants.iter().map(|(i, n)| format!("{i}: {n}")).collect(),
                });
            }
        }
        Ok(Pipeline {
            loaded: self.loaded.clone(),
            kernel: kernel as u32,
            name: name.into(),
            constants: constants.to_vec(),
        })
    }
}

impl Pipeline {
    /// The kernel's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn info(&self) -> &KernelInfo {
        &self.loaded.kernels[self.kernel as usize]
    }
}

type Slot = Arc<Mutex<Option<Arc<Loaded>>>>;

/// What is loaded, by key. A shared object opened twice would share its state, so there is one of each; they stay.
fn per_key(key: &str) -> Slot {
    static LOADED: OnceLock<Mutex<HashMap<String, Slot>>> = OnceLock::new();
    let mut map = LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    map.entry(key.to_string()).or_default().clone()
}

struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The folder for this compiler and this version of the runtime, with headers and runtime in it.
    fn open(toolchain: &Toolchain, options: &CompileOptions) -> Result<Cache> {
        static READY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
        let root = options.cache_dir.clone().unwrap_or_else(default_cache);
        let mut parts: Vec<String> = headers::fingerprint().map(str::to_string).collect();
        parts.push(toolchain.version.clone());
        parts.extend(toolchain.shader_flags(true).iter().chain(&toolchain.shader_flags(false)).map(|s| s.to_string()));
        parts.extend(toolchain.runtime_flags().iter().map(|s| s.to_string()));
        // A new translator makes other text of the same shader.
        parts.push(TRANSLATOR.concat());
        let dir = root.join(&digest(&parts)[..16]);
        let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
        if !ready.contains(&dir) {
            let cache = Cache { dir: dir.clone() };
            if !cache.runtime_object().exists() {
                headers::write(&dir)?;
                cache.build_runtime(toolchain)?;
            }
            ready.push(dir.clone());
        }
        Ok(Cache { dir })
    }

    fn runtime_object(&self) -> PathBuf {
        self.dir.join("runtime.o")
    }

    fn build_runtime(&self, toolchain: &Toolchain) -> Result<()> {
        let temporary = self.temporary("runtime.o");
        toolchain.run("the runtime", |c| {
            c.args(toolchain.runtime_flags())
                .arg("-c")
                .arg(self.dir.join(headers::RUNTIME_SOURCE))
                .arg("-o")
                .arg(&temporary);
        })?;
        rename(&temporary, &self.runtime_object())
    }

    /// A name that no other process uses.
    fn temporary(&self, name: &str) -> PathBuf {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.dir.join(format!("{}-{}-{name}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    fn key(&self, text: &str, options: &CompileOptions) -> String {
        let mut parts =
            vec![text.to_string(), options.name.clone(), options.checks.to_string(), options.metal_version.to_string()];
        parts.extend(options.defines.iter().cloned());
        digest(&parts)
    }

    /// Expands includes and macros; headers of Metal vanish.
    fn flatten(&self, toolchain: &Toolchain, source: &str, options: &CompileOptions) -> Result<String> {
        let file = self.temporary("source.metal");
        let text = format!("#line 1 \"{}\"\n{source}\n", options.name.replace(['"', '\\', '\n'], "_"));
        write(&file, &text)?;
        // Through standard input, so that the output does not contain a name that is new every time.
        let input = fs::File::open(&file).map_err(|source| Error::Io { path: file.clone(), source })?;
        let out = toolchain.run(&options.name, |c| {
            c.args(["-E", "-x", "c++", "-std=c++20", "-nostdinc", "-nostdinc++", "-w", "-D__METAL__"])
                .arg(format!("-D__METAL_VERSION__={}", options.metal_version))
                .arg("-isystem")
                .arg(self.dir.join(headers::STUB_INCLUDE));
            for dir in &options.include_dirs {
                c.arg("-I").arg(dir);
            }
            c.args(options.defines.iter().map(|d| format!("-D{d}"))).arg("-").stdin(input);
        });
        let _ = fs::remove_file(&file);
        Ok(String::from_utf8_lossy(&out?.stdout).into_owned())
    }

    fn build(
        &self,
        toolchain: &Toolchain,
        flat: &str,
        key: &str,
        object: &Path,
        options: &CompileOptions,
    ) -> Result<()> {
        let cpp = self.dir.join(format!("{key}.cpp"));
        write(&cpp, &translate(flat)?)?;
        let unlinked = self.temporary("shader.o");
        let compiled = toolchain.run(&options.name, |c| {
            c.args(toolchain.shader_flags(options.checks))
                .arg(format!("-D__METAL_VERSION__={}", options.metal_version))
                .arg("-isystem")
                .arg(self.dir.join(headers::INCLUDE))
                .arg("-c")
                .arg(&cpp)
                .arg("-o")
                .arg(&unlinked);
        })?;
        write(&object.with_extension("warnings"), &String::from_utf8_lossy(&compiled.stderr))?;
        let temporary = self.temporary("shader.so");
        let linked = toolchain.run(&options.name, |c| {
            c.args(["-shared", "-Wl,-z,defs"])
                .arg(&unlinked)
                .arg(self.runtime_object())
                .arg("-o")
                .arg(&temporary)
                .arg("-lm");
        });
        let _ = fs::remove_file(&unlinked);
        linked?;
        rename(&temporary, object)
    }
}

/// The translator's own text: a change in it must not meet yesterday's objects.
const TRANSLATOR: [&str; 4] = [
    include_str!("translate/scan.rs"),
    include_str!("translate/rewrite.rs"),
    include_str!("translate/emit.rs"),
    include_str!("translate/lexer.rs"),
];

fn default_cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("METAL_HOST_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("metal-host")))
        .or_else(|| set("HOME").map(|d| d.join(".cache").join("metal-host")))
        .unwrap_or_else(|| std::env::temp_dir().join("metal-host"))
}

fn digest(parts: &[String]) -> String {
    let mut out = String::new();
    for salt in 0..2u64 {
        let mut h = DefaultHasher::new();
        salt.hash(&mut h);
        parts.hash(&mut h);
        out.push_str(&format!("{:016x}", h.finish()));
    }
    out
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|source| Error::Io { path: path.into(), source })
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|source| Error::Io { path: to.into(), source })
}

fn load(path: &Path, options: &CompileOptions) -> Result<Loaded> {
    let bad = |message: String| Error::Load { path: path.into(), message };
    // SAFETY: the object was built by this crate from the shader; its initialisers set up constants only.
    let object = unsafe { libloading::Library::new(path) }.map_err(|e| bad(e.to_string()))?;
    // SAFETY: the runtime defines these symbols with the signatures that abi.rs mirrors, and every pointer in its tables
    // leads to constants of the object. The object outlives them in `Loaded`.
    let (run, kernels, constants) = unsafe {
        let version = object.get::<abi::AbiVersion>(b"mh_abi_version\0").map_err(|e| bad(e.to_string()))?();
        if version != abi::VERSION {
            return Err(bad(format!("expected interface version {}, found {version}", abi::VERSION)));
        }
        let run = *object.get::<abi::Run>(b"mh_run\0").map_err(|e| bad(e.to_string()))?;
        let list_kernels = object.get::<abi::ListKernels>(b"mh_list_kernels\0").map_err(|e| bad(e.to_string()))?;
        let list_constants =
            object.get::<abi::ListConstants>(b"mh_list_constants\0").map_err(|e| bad(e.to_string()))?;
        let text = |p: *const std::ffi::c_char| CStr::from_ptr(p).to_string_lossy().into_owned();
        let mut count = 0;
        let first = list_kernels(&mut count);
        let kernels = std::slice::from_raw_parts(first, count as usize)
            .iter()
            .map(|k| KernelInfo {
                name: text(k.name),
                max_threads: k.max_threads,
                params: std::slice::from_raw_parts(k.params, k.param_count as usize)
                    .iter()
                    .map(|p| ParamInfo {
                        is_buffer: p.source == abi::SOURCE_BUFFER,
                        index: p.index,
                        conditional: p.conditional != 0,
                        name: p.name,
                    })
                    .collect(),
            })
            .collect();
        let first = list_constants(&mut count);
        let constants: Vec<(u32, String)> =
            std::slice::from_raw_parts(first, count as usize).iter().map(|c| (c.index, text(c.name))).collect();
        (run, kernels, constants)
    };
    let warnings = fs::read_to_string(path.with_extension("warnings")).unwrap_or_default();
    Ok(Loaded {
        name: options.name.clone(),
        path: path.into(),
        checks: options.checks,
        warnings: warnings.lines().filter(|l| l.contains("warning:")).map(str::to_string).collect(),
        kernels,
        constants,
        run,
        running: Mutex::new(()),
        _object: object,
    })
}
