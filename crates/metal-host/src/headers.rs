//! The C++ side, carried inside of the crate and written out for the compiler.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// Headers that a shader's translation includes as `<metal_host/…>`.
const HEADERS: [(&str, &str); 11] = [
    ("abi.h", include_str!("../runtime/include/metal_host/abi.h")),
    ("scalar.h", include_str!("../runtime/include/metal_host/scalar.h")),
    ("vector.h", include_str!("../runtime/include/metal_host/vector.h")),
    ("math.h", include_str!("../runtime/include/metal_host/math.h")),
    ("simd.h", include_str!("../runtime/include/metal_host/simd.h")),
    ("atomic.h", include_str!("../runtime/include/metal_host/atomic.h")),
    ("tensor.h", include_str!("../runtime/include/metal_host/tensor.h")),
    ("compiler.h", include_str!("../runtime/include/metal_host/compiler.h")),
    ("entry.h", include_str!("../runtime/include/metal_host/entry.h")),
    ("all.h", include_str!("../runtime/include/metal_host/all.h")),
    ("stub.h", ""),
];

const RUNTIME: [(&str, &str); 3] = [
    ("runtime.cpp", include_str!("../runtime/runtime.cpp")),
    ("memory.h", include_str!("../runtime/memory.h")),
    ("fiber.h", include_str!("../runtime/fiber.h")),
];

/// Headers of Metal that a shader may include. They are empty: what they declare is there before the shader begins.
const STUBS: [&str; 24] = [
    "metal_stdlib",
    "metal_atomic",
    "metal_common",
    "metal_compute",
    "metal_config",
    "metal_cooperative_tensor",
    "metal_extended_vector",
    "metal_geometric",
    "metal_integer",
    "metal_limits",
    "metal_logging",
    "metal_math",
    "metal_matrix",
    "metal_numeric",
    "metal_pack",
    "metal_quadgroup",
    "metal_relational",
    "metal_simdgroup",
    "metal_simdgroup_matrix",
    "metal_tensor",
    "metal_texture",
    "metal_type_traits",
    "metal_uniform",
    "MetalPerformancePrimitives/MetalPerformancePrimitives.h",
];

/// Where the runtime's source lies below the directory that [`write()`] filled.
pub(crate) const RUNTIME_SOURCE: &str = "runtime/runtime.cpp";
/// Include directory for a translated shader.
pub(crate) const INCLUDE: &str = "runtime/include";
/// Include directory for a shader that is being preprocessed.
pub(crate) const STUB_INCLUDE: &str = "stubs";

/// All text that a compiled shader depends on besides its own.
pub(crate) fn fingerprint() -> impl Iterator<Item = &'static str> {
    HEADERS.iter().chain(&RUNTIME).flat_map(|(n, t)| [*n, *t])
}

/// Writes everything below `root`.
pub(crate) fn write(root: &Path) -> Result<()> {
    let put = |path: &str, text: &str| -> Result<()> {
        let path = root.join(path);
        let io = |source| Error::Io { path: path.clone(), source };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(io)?;
        }
        // Another process may be compiling with these files: they change as a whole or not at all.
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&temporary, text).map_err(io)?;
        fs::rename(&temporary, &path).map_err(io)
    };
    for (name, text) in HEADERS {
        put(&format!("{INCLUDE}/metal_host/{name}"), text)?;
    }
    for n in 2..=4 {
        put(&format!("{INCLUDE}/metal_host/swizzle_{n}.h"), &swizzles(n))?;
    }
    for (name, text) in RUNTIME {
        // The runtime sees the headers under the name that its own folder gives them.
        put(&format!("runtime/{name}"), text)?;
    }
    for name in STUBS {
        put(&format!("{STUB_INCLUDE}/{name}"), "")?;
    }
    Ok(())
}

/// Declares every selection of two to four elements of an `n`-element vector, by both sets of names.
fn swizzles(n: usize) -> String {
    let stored = if n == 3 { 4 } else { n };
    let mut out = String::new();
    for width in 2..=4usize {
        for code in 0..n.pow(width as u32) {
            let picks: Vec<usize> = (0..width).rev().map(|d| code / n.pow(d as u32) % n).collect();
            let list: Vec<String> = picks.iter().map(usize::to_string).collect();
            let names: Vec<String> =
                ["xyzw", "rgba"].iter().map(|set| picks.iter().map(|&p| set.as_bytes()[p] as char).collect()).collect();
            let names = if width == n || n == 4 && width == 3 { names.join(", ") } else { names[0].clone() };
            out.push_str(&format!("swizzle<vec<T, {width}>, T, {stored}, {}> {names};\n", list.join(", ")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swizzles_cover_every_selection_once() {
        let text = swizzles(3);
        assert_eq!(text.lines().count(), 9 + 27 + 81);
        assert!(text.contains("swizzle<vec<T, 2>, T, 4, 2, 0> zx;"));
        assert!(text.contains("swizzle<vec<T, 3>, T, 4, 0, 1, 2> xyz, rgb;"));
    }
}
