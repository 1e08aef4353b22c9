// Names for the instructions that CUDA C++ has no spelling for. The argument structs are rendered with `uint` and `ulong`. Products and sums are
// fused only where fmaf says so.
typedef unsigned int uint;
typedef unsigned long long ulong;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#define DI __device__ __forceinline__

extern __shared__ __align__(1024) u8 smem[];

// Plain loads from shared memory: the compiler may merge equal ones and keeps them behind barriers.
DI u32 lds32(u32 at) { return *(const u32*)(smem + at); }
DI u32 lds16(u32 at) { return *(const u16*)(smem + at); }
DI u32 shared_address(u32 at) { return (u32)__cvta_generic_to_shared(smem) + at; }

DI u32 prmt(u32 a, u32 b, u32 select) {
    u32 r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(select));
    return r;
}
// (a & b) | c in one instruction.
DI u32 and_or(u32 a, u32 b, u32 c) {
    u32 r;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
DI u32 funnel(u32 low, u32 high, u32 bits) { return __funnelshift_r(low, high, bits); }
// Hides from the compiler what a value comes from: it stays in a register where it would be computed anew in every round of a loop, and what is made of it in a loop
// is not made before the loop.
DI void keep(u32& value) { asm volatile("" : "+r"(value)); }

// Pairs of halves.
DI u32 hadd2(u32 a, u32 b) {
    u32 r;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
DI u32 hmul2(u32 a, u32 b) {
    u32 r;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
DI u32 hfma2(u32 a, u32 b, u32 c) {
    u32 r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
DI float low_half(u32 x) {
    float r;
    asm("{.reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(r) : "r"(x));
    return r;
}
DI float high_half(u32 x) {
    float r;
    asm("{.reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(r) : "r"(x));
    return r;
}
// The halves nearest to a (low) and b (high).
DI u32 pack_halves(float a, float b) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a));
    return r;
}
