//! Which instruction sets this machine has, found at run time.

/// An instruction set that the CPU kernels are compiled for.
///
/// Every build contains all sets of its architecture; the machine that it runs on decides which are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Isa {
    /// Plain Rust, what the architecture's baseline gives.
    Portable,
    /// x86-64 with AVX2, FMA, F16C and BMI2 (Haswell, Zen and later).
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, DQ, VBMI and VNNI, and GFNI (Ice Lake, Zen 4 and later).
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AArch64 with the dot-product extension (Apple M1, Cortex-A75, Neoverse N1 and later).
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// The sets that this build knows, the fastest first.
    const ALL: &'static [Isa] = &[
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon,
        Isa::Portable,
    ];

    /// The sets that this machine can run, the fastest first; never empty.
    pub(crate) fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.iter().copied().filter(|isa| isa.is_available())
    }

    /// The fastest set that this machine can run.
    pub(crate) fn best() -> Isa {
        Isa::available().next().unwrap_or(Isa::Portable)
    }

    /// The name in kernel names: `"avx512"`, `"avx2"`, `"neon"`, `"portable"`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
        }
    }

    /// Asks for a cache line that will be used soon, but not next: into the second-level cache. Any address may be named.
    #[inline(always)]
    pub(crate) fn prefetch(self, _address: *const u8) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has the instruction, and it faults at no address.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(_address.cast());
        }
    }

    /// Whether this machine can run it.
    pub(crate) fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("bmi2")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("gfni")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => {
                std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_portable_set_is_always_last() {
        assert_eq!(Isa::available().last(), Some(Isa::Portable));
        assert!(Isa::best().is_available());
    }
}
