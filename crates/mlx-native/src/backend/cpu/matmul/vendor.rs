//! Whose processor this is. How memory is asked for depends on it, no result does.

pub(super) use found::is_intel;

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod found {
    use std::arch::x86_64::__cpuid;
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

    const UNKNOWN: u8 = 0;
    const INTEL: u8 = 1;
    const OTHER: u8 = 2;
    static VENDOR: AtomicU8 = AtomicU8::new(UNKNOWN);

    /// Whether it is one of Intel's. Kernels ask for every step of a weight: it takes a load and a branch that is always the same.
    #[inline(always)]
    pub(in super::super) fn is_intel() -> bool {
        match VENDOR.load(Relaxed) {
            UNKNOWN => find(),
            vendor => vendor == INTEL,
        }
    }

    #[cold]
    fn find() -> bool {
        let leaf = __cpuid(0);
        let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
        let vendor = if name.as_flattened() == b"GenuineIntel" { INTEL } else { OTHER };
        VENDOR.store(vendor, Relaxed);
        vendor == INTEL
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
mod found {
    /// Whether it is one of Intel's.
    #[inline(always)]
    pub(in super::super) fn is_intel() -> bool {
        false
    }
}
