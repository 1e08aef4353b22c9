//! The C++ compiler: finding it, and the options that make it behave as Metal's does.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Gcc,
    Clang,
}

/// A compiler that was found to work.
#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    pub command: PathBuf,
    /// First line of `--version`.
    pub version: String,
    family: Family,
}

const CANDIDATES: [&str; 9] =
    ["g++", "clang++", "clang++-20", "clang++-19", "clang++-18", "clang++-17", "clang++-16", "g++-12", "c++"];

impl Toolchain {
    /// The compiler named, else the one in `CXX`, else the first of the usual names that is new enough.
    pub fn find(named: Option<&Path>) -> Result<Toolchain> {
        if let Some(path) = named {
            return Self::probe(path).ok_or_else(|| Error::NoCompiler { tried: path.display().to_string() });
        }
        static FOUND: OnceLock<std::result::Result<Toolchain, String>> = OnceLock::new();
        let found = FOUND.get_or_init(|| {
            let from_env = std::env::var_os("CXX").filter(|v| !v.is_empty()).map(PathBuf::from);
            let tried: Vec<PathBuf> = match from_env {
                Some(cxx) => vec![cxx],
                None => CANDIDATES.iter().map(PathBuf::from).collect(),
            };
            let names = || tried.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
            tried.iter().find_map(|p| Self::probe(p)).ok_or_else(names)
        });
        found.clone().map_err(|tried| Error::NoCompiler { tried })
    }

    fn probe(command: &Path) -> Option<Toolchain> {
        let out = Command::new(command).arg("--version").output().ok().filter(|o| o.status.success())?;
        let text = String::from_utf8_lossy(&out.stdout);
        let version = text.lines().next()?.to_string();
        let family = if version.contains("clang") { Family::Clang } else { Family::Gcc };
        // The last word of the line that looks like a number with dots: distributions put their own before it.
        let number = version
            .split(|c: char| c.is_whitespace() || c == '-')
            .rev()
            .find(|w| w.contains('.') && w.starts_with(|c: char| c.is_ascii_digit()));
        let number = if family == Family::Clang { version.split("version ").nth(1) } else { number };
        let major: u32 = number?.split('.').next()?.parse().ok()?;
        let enough = major >= if family == Family::Clang { 16 } else { 12 };
        enough.then(|| Toolchain { command: command.to_path_buf(), version, family })
    }

    /// Options for a translated shader.
    pub fn shader_flags(&self, checks: bool) -> Vec<&'static str> {
        let mut flags = vec![
            "-std=c++20",
            "-fPIC",
            "-fvisibility=hidden",
            "-fno-exceptions",
            "-fno-rtti",
            "-fno-strict-aliasing",
            "-ffp-contract=off",
            "-fno-math-errno",
            "-g1",
            "-Wall",
            "-Wno-attributes",
            "-Wno-unknown-pragmas",
            "-Wno-psabi",
            "-Wno-unused",
            "-Wno-sign-compare",
            "-Wno-parentheses",
            "-Wno-literal-suffix",
            "-Wno-tautological-compare",
            "-Wno-strict-aliasing",
            "-Wno-class-memaccess",
        ];
        flags.extend(processor_flags());
        if checks {
            flags.extend([
                "-O2",
                "-ftrivial-auto-var-init=pattern",
                "-fsanitize=thread,alignment,bounds,shift-exponent,integer-divide-by-zero,signed-integer-overflow",
            ]);
        } else {
            flags.push("-O2");
        }
        // A frame may have half of a thread's stack; clang knows no option that says both the size and that it is an error.
        match self.family {
            Family::Gcc => {
                flags.extend(["-Werror=frame-larger-than=131072", "-fsingle-precision-constant", "-fno-store-merging"]);
                if cfg!(target_arch = "x86_64") {
                    flags.push("-fexcess-precision=16");
                }
                if checks {
                    flags.extend(["-fno-tree-vectorize", "--param=tsan-instrument-func-entry-exit=0"]);
                }
            }
            Family::Clang => {
                flags.extend([
                    "-Wframe-larger-than=131072",
                    "-Werror=frame-larger-than",
                    // binutils 2.40 misreads the file names of clang's DWARF 5.
                    "-gdwarf-4",
                    "-Wno-unknown-warning-option",
                    "-Wno-user-defined-literals",
                    "-Xclang",
                    "-cl-single-precision-constant",
                    "-Xclang",
                    "-ffloat16-excess-precision=none",
                ]);
                if checks {
                    flags.extend([
                        "-fno-vectorize",
                        "-fno-slp-vectorize",
                        "-mllvm",
                        "-tsan-instrument-func-entry-exit=0",
                        "-mllvm",
                        "-tsan-instrument-read-before-write=1",
                    ]);
                }
            }
        }
        flags
    }

    /// Options for the runtime, which is not instrumented.
    pub fn runtime_flags(&self) -> Vec<&'static str> {
        let mut flags = vec![
            "-std=c++20",
            "-O3",
            "-fPIC",
            "-fvisibility=hidden",
            "-fno-exceptions",
            "-fno-rtti",
            "-fno-strict-aliasing",
            "-ffp-contract=off",
        ];
        // The runtime shares a header with shaders, and with it the suffixes of MSL's literals.
        flags.push(if self.family == Family::Clang {
            "-Wno-reserved-user-defined-literal"
        } else {
            "-Wno-literal-suffix"
        });
        flags.extend(processor_flags());
        flags
    }

    /// Runs the compiler; its diagnostics are the output on success.
    pub fn run(&self, name: &str, configure: impl FnOnce(&mut Command)) -> Result<Output> {
        let mut command = Command::new(&self.command);
        command.env("LC_ALL", "C");
        configure(&mut command);
        let out = command.output().map_err(|source| Error::Io { path: self.command.clone(), source })?;
        if out.status.success() {
            return Ok(out);
        }
        Err(Error::Compile {
            name: name.into(),
            compiler: self.version.clone(),
            diagnostics: shorten(&String::from_utf8_lossy(&out.stderr)),
        })
    }
}

/// Instructions for 16-bit floats and fused multiply-add, where this machine has them.
fn processor_flags() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let mut flags = Vec::new();
        if std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("f16c")
            && std::arch::is_x86_feature_detected!("fma")
        {
            flags.extend(["-mavx2", "-mf16c", "-mfma"]);
        }
        flags
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// The first errors; a template gone wrong prints pages.
fn shorten(text: &str) -> String {
    const LINES: usize = 60;
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() <= LINES {
        return text.trim_end().to_string();
    }
    format!("{}\n… {} more lines", lines[..LINES].join("\n"), lines.len() - LINES)
}

/// `file:line` for addresses within a shared object, innermost first and without the crate's own headers. None for an
/// address that is not known, or where the system has no tool to ask.
pub(crate) fn locate(object: &Path, addresses: &[u64]) -> Vec<Option<String>> {
    let mut found = vec![None; addresses.len()];
    if addresses.is_empty() {
        return found;
    }
    let hex: Vec<String> = addresses.iter().map(|a| format!("{a:#x}")).collect();
    // `-a` prints each address before its frames.
    for tool in ["addr2line", "llvm-addr2line", "llvm-symbolizer"] {
        let mut command = Command::new(tool);
        if tool == "llvm-symbolizer" {
            command.args(["--output-style=GNU", "--functions=none"]);
        }
        let Ok(out) = command.args(["-a", "-i", "-e"]).arg(object).args(&hex).output() else { continue };
        let text = String::from_utf8_lossy(&out.stdout);
        let mut current = None;
        let mut frames: Vec<Vec<String>> = vec![Vec::new(); addresses.len()];
        for line in text.lines() {
            if let Some(digits) = line.strip_prefix("0x") {
                let address = u64::from_str_radix(digits.trim(), 16).ok();
                current = addresses.iter().position(|a| Some(*a) == address);
            } else if let Some(n) = current {
                let place = line.split(" (").next().unwrap_or(line);
                if !place.contains("metal_host/")
                    && !place.contains("metal-host tables")
                    && !place.starts_with("??")
                    && !place.ends_with(":?")
                    && !place.ends_with(":0")
                {
                    frames[n].push(place.rsplit('/').next().unwrap_or(place).to_string());
                }
            }
        }
        for (slot, mut frames) in found.iter_mut().zip(frames) {
            frames.dedup();
            if !frames.is_empty() {
                *slot = Some(frames.join(" < "));
            }
        }
        return found;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_compiler_is_a_typed_error() {
        let e = Toolchain::find(Some(Path::new("no-such-compiler"))).unwrap_err();
        assert!(matches!(e, Error::NoCompiler { .. }));
        assert!(e.to_string().contains("no-such-compiler"));
    }
}
