// Mathematical functions. Computed in float and rounded to the argument's type. As overload resolution has it on Metal, an
// integer is an argument only beside a float, and the arguments of min, max or clamp have one type.
#pragma once
#include "vector.h"

namespace metal {
#define MH_UNARY(name, expr) \
  template <real T> inline T name(T v) { float x = float(v); return T(float(expr)); } \
  template <real T, int N> inline vec<T, N> name(vec<T, N> v) { for (int i = 0; i < N; i++) v.d[i] = name(v.d[i]); return v; }
#define MH_BINARY(name, expr) \
  template <real T> inline T name(T a_, T b_) { float a = float(a_), b = float(b_); return T(float(expr)); } \
  template <real T, integer I> inline T name(T a, I b) { return name(a, T(b)); } \
  template <integer I, real T> inline T name(I a, T b) { return name(T(a), b); } \
  template <real T, int N> inline vec<T, N> name(vec<T, N> a, vec<T, N> b) { \
    for (int i = 0; i < N; i++) a.d[i] = name(a.d[i], b.d[i]); return a; } \
  template <real T, int N> inline vec<T, N> name(vec<T, N> a, std::type_identity_t<T> b) { return name(a, vec<T, N>(b)); } \
  template <real T, int N> inline vec<T, N> name(std::type_identity_t<T> a, vec<T, N> b) { return name(vec<T, N>(a), b); }
#define MH_FUNCTIONS \
  MH_UNARY(exp, __builtin_expf(x)) MH_UNARY(exp2, __builtin_exp2f(x)) MH_UNARY(exp10, __builtin_powf(10.0f, x)) \
  MH_UNARY(log, __builtin_logf(x)) MH_UNARY(log2, __builtin_log2f(x)) MH_UNARY(log10, __builtin_log10f(x)) \
  MH_UNARY(sqrt, __builtin_sqrtf(x)) MH_UNARY(rsqrt, 1.0f / __builtin_sqrtf(x)) \
  MH_UNARY(sin, __builtin_sinf(x)) MH_UNARY(cos, __builtin_cosf(x)) MH_UNARY(tan, __builtin_tanf(x)) \
  MH_UNARY(asin, __builtin_asinf(x)) MH_UNARY(acos, __builtin_acosf(x)) MH_UNARY(atan, __builtin_atanf(x)) \
  MH_UNARY(sinh, __builtin_sinhf(x)) MH_UNARY(cosh, __builtin_coshf(x)) MH_UNARY(tanh, __builtin_tanhf(x)) \
  MH_UNARY(asinh, __builtin_asinhf(x)) MH_UNARY(acosh, __builtin_acoshf(x)) MH_UNARY(atanh, __builtin_atanhf(x)) \
  MH_UNARY(sinpi, __builtin_sinf(x * M_PI_F)) MH_UNARY(cospi, __builtin_cosf(x * M_PI_F)) MH_UNARY(tanpi, __builtin_tanf(x * M_PI_F)) \
  MH_UNARY(floor, __builtin_floorf(x)) MH_UNARY(ceil, __builtin_ceilf(x)) MH_UNARY(trunc, __builtin_truncf(x)) \
  MH_UNARY(round, __builtin_roundf(x)) MH_UNARY(rint, __builtin_rintf(x)) MH_UNARY(fabs, __builtin_fabsf(x)) \
  MH_UNARY(fract, x - __builtin_floorf(x)) \
  MH_BINARY(pow, __builtin_powf(a, b)) MH_BINARY(powr, __builtin_powf(a, b)) MH_BINARY(fmod, __builtin_fmodf(a, b)) \
  MH_BINARY(atan2, __builtin_atan2f(a, b)) MH_BINARY(copysign, __builtin_copysignf(a, b)) MH_BINARY(divide, a / b) \
  MH_BINARY(fdim, __builtin_fdimf(a, b)) MH_BINARY(nextafter, __builtin_nextafterf(a, b)) \
  MH_BINARY(fmin, __builtin_fminf(a, b)) MH_BINARY(fmax, __builtin_fmaxf(a, b)) \
  template <real T> inline T fma(T a, T b, T c) { return T(__builtin_fmaf(float(a), float(b), float(c))); } \
  template <real T, int N> inline vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) { \
    for (int i = 0; i < N; i++) a.d[i] = fma(a.d[i], b.d[i], c.d[i]); return a; } \
  template <real T> inline T ldexp(T v, int e) { return T(__builtin_ldexpf(float(v), e)); } \
  template <real T> inline T frexp(T v, int& e) { return T(__builtin_frexpf(float(v), &e)); } \
  template <real T> inline T modf(T v, T& whole) { float w = __builtin_truncf(float(v)); whole = T(w); return T(float(v) - w); } \
  template <real T> inline T sincos(T v, T& c) { c = T(__builtin_cosf(float(v))); return T(__builtin_sinf(float(v))); }
MH_FUNCTIONS
namespace precise { MH_FUNCTIONS }
namespace fast { MH_FUNCTIONS }
#undef MH_FUNCTIONS
#undef MH_BINARY
#undef MH_UNARY

// min and max of floats return the other argument for a NaN, as fmin and fmax do.
#define MH_CHOOSE(name, builtin, take_b) \
  template <scalar T> constexpr T name(T a, T b) { \
    if constexpr (is_fp<T>) return T(builtin(float(a), float(b))); else return (take_b) ? b : a; } \
  template <class T, int N> constexpr vec<T, N> name(vec<T, N> a, vec<T, N> b) { \
    for (int i = 0; i < N; i++) a.d[i] = name(a.d[i], b.d[i]); return a; } \
  template <class T, int N> constexpr vec<T, N> name(vec<T, N> a, std::type_identity_t<T> b) { return name(a, vec<T, N>(b)); } \
  template <class T, int N> constexpr vec<T, N> name(std::type_identity_t<T> a, vec<T, N> b) { return name(vec<T, N>(a), b); } \
  template <scalar T> constexpr T name##3(T a, T b, T c) { return name(a, name(b, c)); }
MH_CHOOSE(min, __builtin_fminf, b < a) MH_CHOOSE(max, __builtin_fmaxf, a < b)
#undef MH_CHOOSE
template <real T> inline T fmin3(T a, T b, T c) { return fmin(a, fmin(b, c)); }
template <real T> inline T fmax3(T a, T b, T c) { return fmax(a, fmax(b, c)); }
template <scalar T> constexpr T median3(T a, T b, T c) { return max(min(a, b), min(max(a, b), c)); }
template <scalar T> constexpr T clamp(T v, T lo, T hi) { return min(max(v, lo), hi); }
template <class T, int N> constexpr vec<T, N> clamp(vec<T, N> v, vec<T, N> lo, vec<T, N> hi) { return min(max(v, lo), hi); }
template <class T, int N> constexpr vec<T, N> clamp(vec<T, N> v, std::type_identity_t<T> lo, std::type_identity_t<T> hi) {
  return min(max(v, lo), hi);
}
template <real T> constexpr T saturate(T v) { return clamp(v, T(0), T(1)); }
template <real T, int N> constexpr vec<T, N> saturate(vec<T, N> v) { return clamp(v, T(0), T(1)); }

#define MH_EACH(name, C, R, expr) \
  template <C T> constexpr R name(T x) { return R(expr); } \
  template <C T, int N> constexpr vec<R, N> name(vec<T, N> v) { \
    vec<R, N> r{}; for (int i = 0; i < N; i++) r.d[i] = name(v.d[i]); return r; }
MH_EACH(abs, scalar, T, x < T(0) ? T(-x) : x) MH_EACH(sign, real, T, (x > T(0)) - (x < T(0)))
MH_EACH(isnan, real, bool, x != x) MH_EACH(isinf, real, bool, __builtin_isinf(float(x)) != 0)
MH_EACH(isfinite, real, bool, __builtin_isfinite(float(x)) != 0) MH_EACH(signbit, real, bool, __builtin_signbit(float(x)) != 0)
MH_EACH(isnormal, real, bool, __builtin_isnormal(float(x)) != 0)
MH_EACH(popcount, integer, T, __builtin_popcountll(std::make_unsigned_t<T>(x)))
MH_EACH(clz, integer, T, x == 0 ? int(sizeof(T) * 8) : __builtin_clzll(std::make_unsigned_t<T>(x)) - (64 - int(sizeof(T) * 8)))
MH_EACH(ctz, integer, T, x == 0 ? int(sizeof(T) * 8) : __builtin_ctzll(std::make_unsigned_t<T>(x)))
#undef MH_EACH
template <integer T> constexpr T extract_bits(T v, uint offset, uint bits) {
  if (bits == 0) return T(0);
  return T(T(v << (sizeof(T) * 8 - bits - offset)) >> (sizeof(T) * 8 - bits));
}
template <integer T> constexpr T insert_bits(T base, T insert, uint offset, uint bits) {
  using U = std::make_unsigned_t<T>;
  U mask = bits >= sizeof(T) * 8 ? U(~U(0)) : U(((U(1) << bits) - 1) << offset);
  return T((U(base) & ~mask) | (U(U(insert) << offset) & mask));
}
template <integer T> constexpr T reverse_bits(T v) {
  T r = 0; for (unsigned i = 0; i < sizeof(T) * 8; i++) r = T(r << 1 | (v >> i & 1)); return r;
}
template <integer T> constexpr T mulhi(T a, T b) {
  using W = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return T(W(a) * W(b) >> sizeof(T) * 8);
}
template <integer T> constexpr T mad24(T a, T b, T c) { return T(a * b + c); }
template <integer T> constexpr T mul24(T a, T b) { return T(a * b); }
template <integer T> constexpr T rotate(T v, T by) {
  using U = std::make_unsigned_t<T>; constexpr unsigned w = sizeof(T) * 8; unsigned s = unsigned(by) % w;
  return s ? T(U(U(v) << s) | U(U(v) >> (w - s))) : v;
}
template <integer T> constexpr T absdiff(T a, T b) { return a < b ? T(b - a) : T(a - b); }

template <scalar T> constexpr T select(T a, T b, bool c) { return c ? b : a; }
template <class T, int N> constexpr vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<bool, N> c) {
  for (int i = 0; i < N; i++) if (c.d[i]) a.d[i] = b.d[i]; return a;
}
template <class T, int N> constexpr vec<T, N> select(vec<T, N> a, vec<T, N> b, bool c) { return c ? b : a; }
template <real T> constexpr T mix(T a, T b, T t) { return T(a + (b - a) * t); }
template <real T, int N> constexpr vec<T, N> mix(vec<T, N> a, vec<T, N> b, vec<T, N> t) { return a + (b - a) * t; }
template <real T> constexpr T step(T edge, T x) { return x < edge ? T(0) : T(1); }
template <class T, int N> constexpr T dot(vec<T, N> a, vec<T, N> b) {
  T r = T(a.d[0] * b.d[0]); for (int i = 1; i < N; i++) r = T(r + a.d[i] * b.d[i]); return r;
}
template <real T, int N> inline T length_squared(vec<T, N> a) { return dot(a, a); }
template <real T, int N> inline T length(vec<T, N> a) { return sqrt(dot(a, a)); }
template <real T, int N> inline T distance(vec<T, N> a, vec<T, N> b) { return length(a - b); }
template <real T, int N> inline vec<T, N> normalize(vec<T, N> a) { return a * rsqrt(dot(a, a)); }
template <int N> constexpr bool any(vec<bool, N> v) { bool r = false; for (int i = 0; i < N; i++) r |= v.d[i]; return r; }
template <int N> constexpr bool all(vec<bool, N> v) { bool r = true; for (int i = 0; i < N; i++) r &= v.d[i]; return r; }
constexpr bool any(bool v) { return v; }
constexpr bool all(bool v) { return v; }

inline float4 unpack_unorm4x8_to_float(uint v) {
  return float4(v & 255, v >> 8 & 255, v >> 16 & 255, v >> 24) / 255.0f;
}
inline float4 unpack_snorm4x8_to_float(uint v) { return max(float4(as_type<char4>(v)) / 127.0f, float4(-1.0f)); }
}  // namespace metal
