// What every kernel is written in. No header is included, so that NVRTC needs nothing but itself. Functions without a mark are
// device functions (NVRTC's -default-device), kernels are templates: what nobody asks for is not compiled. Products and sums are fused only where fmaf says so (-fmad=false): the bits of a
// result do not depend on what the compiler makes of the code around it.
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long long ulong;

#define FULL 0xffffffffu
#define DIVIDE_UP(a, b) (((a) + (b) - 1) / (b))

inline float infinity() { return __uint_as_float(0x7f800000u); }
inline float not_a_number() { return __uint_as_float(0x7fffffffu); }

// The 16-bit floats as they lie in memory.
struct half {
    ushort bits;
    half() = default;
    explicit half(float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
    operator float() const {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }
};
struct __nv_bfloat16 {
    ushort bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float value) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
    operator float() const { return __uint_as_float(uint(bits) << 16); }
};
typedef __nv_bfloat16 bfloat;

// Two halves in a word: `low` in the lower one.
inline uint pack_half2(float low, float high) {
    uint packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
inline float low_half(uint packed) {
    half h;
    h.bits = ushort(packed);
    return h;
}
inline float high_half(uint packed) {
    half h;
    h.bits = ushort(packed >> 16);
    return h;
}

// Every kernel begins with this. On Hopper a launch that overlaps (see Launch) may be brought up while the one before it runs: this lets the next one,
// and waits until the one before has ended and its writes can be seen. Without overlap neither has an effect.
inline void begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

inline uint lane_index() { return threadIdx.x % 32; }
inline uint warp_index() { return threadIdx.x / 32; }

inline float warp_sum(float value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(FULL, value, step);
    return value;
}
inline float warp_max(float value) {
    for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(FULL, value, step));
    return value;
}

// Sum over a block of whole warps; every thread gets it. shared has room for 32 floats and may be used again at once.
inline float block_sum(float value, float* shared) {
    value = warp_sum(value);
    if (lane_index() == 0) shared[warp_index()] = value;
    __syncthreads();
    value = warp_sum(lane_index() < blockDim.x / 32 ? shared[lane_index()] : 0.0f);
    __syncthreads();
    return value;
}
// The same for the largest value; a NaN loses against a number.
inline float block_max(float value, float* shared) {
    value = warp_max(value);
    if (lane_index() == 0) shared[warp_index()] = value;
    __syncthreads();
    value = warp_max(lane_index() < blockDim.x / 32 ? shared[lane_index()] : -infinity());
    __syncthreads();
    return value;
}

// Reports what only the data can tell: the word keeps the smallest index, with the value found there.
inline void report(ulong* fault, uint index, uint found) { atomicMin(fault, (ulong(index) << 32) | found); }

inline uint shared_address(const void* pointer) { return uint(__cvta_generic_to_shared(pointer)); }

// Copies 16 bytes to shared memory without a register in between; `valid` of them are read, the rest is zero.
inline void copy_async(void* target, const void* source, uint valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)), "l"(source), "r"(valid) : "memory");
}
inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> inline void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// Four 8 x 8 matrices of halves from shared memory: lane l gives the address of row l % 8 of matrix l / 8.
inline void load_matrices(uint (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
inline void load_matrices_transposed(uint (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// c += a b for a 16 x 16, b 16 x 8 of halves, c 16 x 8 of floats.
inline void multiply_accumulate(float (&c)[4], const uint (&a)[4], uint b0, uint b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
