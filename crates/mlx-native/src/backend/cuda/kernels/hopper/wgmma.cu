// Warpgroup products d[64 x N] += a[64 x 16] b[16 x N]: a in registers, b in shared memory (K-major, 128-byte swizzle), f32 sums.

#define SUMS_8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS_32(i) SUMS_8(i), SUMS_8(i + 8), SUMS_8(i + 16), SUMS_8(i + 24)
#define NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_24 NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define NAMES_32 NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_128 NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WARPGROUP_MMA(n, names, a0, a1, a2, a3, b, ...)                                                                          \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" names "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", 1, 1, 1, 0;" \
                 : __VA_ARGS__                                                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(operand))

template <int N> DI void warpgroup_mma(float (&d)[N / 2], const u32 (&a)[4], u64 operand) {
    if constexpr (N == 32) WARPGROUP_MMA(32, NAMES_16, 16, 17, 18, 19, 20, SUMS_8(0), SUMS_8(8));
    else if constexpr (N == 48) WARPGROUP_MMA(48, NAMES_24, 24, 25, 26, 27, 28, SUMS_8(0), SUMS_8(8), SUMS_8(16));
    else if constexpr (N == 64) WARPGROUP_MMA(64, NAMES_32, 32, 33, 34, 35, 36, SUMS_32(0));
    else if constexpr (N == 128) WARPGROUP_MMA(128, NAMES_64, 64, 65, 66, 67, 68, SUMS_32(0), SUMS_32(32));
    else WARPGROUP_MMA(256, NAMES_128, 128, 129, 130, 131, 132, SUMS_32(0), SUMS_32(32), SUMS_32(64), SUMS_32(96));
}
DI void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DI void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DI void warpgroup_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
// Describes 64 values of k x N rows at `at`: K-major, rows of 128 bytes swizzled, groups of eight rows 1024 bytes apart.
DI u64 operand_of(u32 at) { return (u64)((at & 0x3FFFF) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
