// Names of Apple's compiler that shader code in the wild calls directly to give bfloat its mathematical functions.
#pragma once
#include "atomic.h"

#define __METAL_MAYBE_FAST_MATH__ 0
#define __METAL_FAST_MATH__ 1
#define __METAL_PRECISE_MATH__ 2
#define MH_ONE(n) inline float __metal_##n(float x, int = 0) { return metal::n(x); }
MH_ONE(acos) MH_ONE(acosh) MH_ONE(asin) MH_ONE(asinh) MH_ONE(atan) MH_ONE(atanh) MH_ONE(ceil) MH_ONE(cos) MH_ONE(cosh) MH_ONE(cospi)
MH_ONE(exp) MH_ONE(exp2) MH_ONE(exp10) MH_ONE(fabs) MH_ONE(floor) MH_ONE(fract) MH_ONE(log) MH_ONE(log2) MH_ONE(log10) MH_ONE(rint)
MH_ONE(round) MH_ONE(rsqrt) MH_ONE(sin) MH_ONE(sinh) MH_ONE(sinpi) MH_ONE(sqrt) MH_ONE(tan) MH_ONE(tanh) MH_ONE(tanpi) MH_ONE(trunc)
#undef MH_ONE
#define MH_TWO(n) inline float __metal_##n(float x, float y, int = 0) { return metal::n(x, y); }
MH_TWO(atan2) MH_TWO(divide) MH_TWO(fdim) MH_TWO(fmax) MH_TWO(fmin) MH_TWO(fmod) MH_TWO(nextafter) MH_TWO(pow) MH_TWO(powr)
#undef MH_TWO
inline float __metal_fma(float a, float b, float c) { return metal::fma(a, b, c); }
inline float __metal_fmax3(float a, float b, float c, int = 0) { return metal::fmax3(a, b, c); }
inline float __metal_fmin3(float a, float b, float c, int = 0) { return metal::fmin3(a, b, c); }
inline float __metal_fmedian3(float a, float b, float c, int = 0) { return metal::median3(a, b, c); }
inline float __metal_ldexp(float a, int e, int = 0) { return metal::ldexp(a, e); }
inline float __metal_frexp(float a, int* e, int = 0) { return metal::frexp(a, *e); }
#define MH_LANES(n) template <class T> inline T __metal_##n(T v, mh_site site = mh_site::here()) { return metal::n(v, site); }
MH_LANES(simd_max) MH_LANES(simd_min) MH_LANES(simd_sum) MH_LANES(simd_product) MH_LANES(simd_prefix_exclusive_sum)
MH_LANES(simd_prefix_inclusive_sum) MH_LANES(simd_prefix_exclusive_product) MH_LANES(simd_prefix_inclusive_product)
#undef MH_LANES
template <class T> inline T __metal_simd_xor(T v, mh_site site = mh_site::here()) {
  mh_note(MH_ARITHMETIC, "simd_xor of a floating-point value", site);
  return v;
}
#define MH_LANES(n) template <class T> inline T __metal_##n(T v, ushort k, mh_site site = mh_site::here()) { return metal::n(v, k, site); }
MH_LANES(simd_broadcast) MH_LANES(simd_shuffle) MH_LANES(simd_shuffle_down) MH_LANES(simd_shuffle_up) MH_LANES(simd_shuffle_xor)
MH_LANES(simd_shuffle_rotate_down) MH_LANES(simd_shuffle_rotate_up)
#undef MH_LANES
template <class T> inline T __metal_simd_shuffle_and_fill_down(T v, T fill, ushort k, ushort modulo, mh_site site = mh_site::here()) {
  return metal::simd_shuffle_and_fill_down(v, fill, k, modulo, site);
}
template <class T> inline T __metal_simd_shuffle_and_fill_up(T v, T fill, ushort k, ushort modulo, mh_site site = mh_site::here()) {
  return metal::simd_shuffle_and_fill_up(v, fill, k, modulo, site);
}
inline ushort __metal_get_simdgroup_size(ushort) { return 32; }
inline ushort __metal_get_thread_index_in_simdgroup(ushort) { return ushort(mh_self->lane); }
