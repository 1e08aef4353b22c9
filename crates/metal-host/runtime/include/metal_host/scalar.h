// half and bfloat, and the scalar part of the standard library.
#pragma once
#include <limits.h>
#include <float.h>
#include <limits>
#include <type_traits>
#include <utility>
#include "abi.h"

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

namespace mh {
// IEEE binary16, rounding to nearest even.
struct binary16 {
  static constexpr uint16_t encode(float f) {
    uint32_t u = __builtin_bit_cast(uint32_t, f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (a >= 0x477ff000) return uint16_t(sign | 0x7c00);
    if (a < 0x33000001) return uint16_t(sign);
    int e = int(a >> 23) - 127;
    uint32_t m = (a & 0x7fffff) | 0x800000;
    int drop = e < -14 ? 13 + (-14 - e) : 13;                  // subnormal halves keep fewer bits
    uint32_t kept = m >> drop, rest = m & ((1u << drop) - 1), tie = 1u << (drop - 1);
    kept += rest > tie || (rest == tie && (kept & 1));
    return uint16_t(sign | (e < -14 ? kept : (uint32_t(e + 14) << 10) + kept));
  }
  static constexpr float decode(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 0x3ff;
    if (e == 31) return __builtin_bit_cast(float, sign | 0x7f800000 | m << 13);
    if (e == 0) return (sign ? -1.0f : 1.0f) * float(m) * 0x1p-24f;
    return __builtin_bit_cast(float, sign | (e + 112) << 23 | m << 13);
  }
};
// The upper half of a float, rounding to nearest even.
struct brain16 {
  static constexpr uint16_t encode(float f) {
    uint32_t u = __builtin_bit_cast(uint32_t, f);
    if ((u & 0x7fffffff) > 0x7f800000) return uint16_t(u >> 16 | 0x40);
    return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
  static constexpr float decode(uint16_t h) { return __builtin_bit_cast(float, uint32_t(h) << 16); }
};

template <class A> concept arithmetic = std::is_arithmetic_v<A>;

// A 16-bit float for compilers that have none of their own. As in MSL, integers convert to it silently and it converts
// to float silently; a float has to be cast.
template <class Format> struct float16 {
  uint16_t bits;
  float16() = default;
  template <class A> requires std::is_integral_v<A> constexpr float16(A a) : bits(Format::encode(float(a))) {}
  template <class A> requires(!std::is_integral_v<A>) constexpr explicit float16(A a) : bits(Format::encode(float(a))) {}
  constexpr operator float() const { return Format::decode(bits); }
#define MH_OP(op) \
  friend constexpr float16 operator op(float16 a, float16 b) { return float16(float(a) op float(b)); } \
  template <arithmetic A> friend constexpr auto operator op(float16 a, A b) { \
    if constexpr (std::is_integral_v<A>) return float16(float(a) op float(b)); else return float(a) op b; } \
  template <arithmetic A> friend constexpr auto operator op(A a, float16 b) { \
    if constexpr (std::is_integral_v<A>) return float16(float(a) op float(b)); else return a op float(b); } \
  template <class A> constexpr float16& operator op##=(A b) { return *this = float16(float(*this) op float(b)); }
  MH_OP(+) MH_OP(-) MH_OP(*) MH_OP(/)
#undef MH_OP
#define MH_OP(op) \
  friend constexpr bool operator op(float16 a, float16 b) { return float(a) op float(b); } \
  template <arithmetic A> friend constexpr bool operator op(float16 a, A b) { return float(a) op float(b); } \
  template <arithmetic A> friend constexpr bool operator op(A a, float16 b) { return float(a) op float(b); }
  MH_OP(<) MH_OP(<=) MH_OP(>) MH_OP(>=) MH_OP(==) MH_OP(!=)
#undef MH_OP
  constexpr float16 operator-() const { return float16(-float(*this)); }
  constexpr float16 operator+() const { return *this; }
};
}  // namespace mh

// g++ 12 has _Float16 in C++ on x86 only.
#if defined(__FLT16_MAX__) && (defined(__x86_64__) || defined(__clang__) || __GNUC__ >= 13)
typedef _Float16 half;
#else
typedef mh::float16<mh::binary16> half;
#endif
typedef mh::float16<mh::brain16> bfloat;
constexpr half operator""h(long double v) { return half(float(v)); }
constexpr half operator""H(long double v) { return half(float(v)); }
constexpr bfloat operator""bf(long double v) { return bfloat(float(v)); }
constexpr bfloat operator""BF(long double v) { return bfloat(float(v)); }

#define METAL_FUNC inline __attribute__((always_inline))
#define METAL_CONST const
#undef INFINITY
#undef NAN
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define MAXFLOAT FLT_MAX
#define MAXHALF half(65504.0f)
#define HALF_MAX half(65504.0f)
#define HALF_MIN half(6.103515625e-05f)
#define HALF_EPSILON half(0.0009765625f)
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.43429448190325182765f
#define M_LN2_F 0.69314718055994530942f
#define M_LN10_F 2.30258509299404568402f
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_4_F 0.78539816339744830962f
#define M_1_PI_F 0.31830988618379067154f
#define M_2_PI_F 0.63661977236758134308f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.70710678118654752440f

namespace metal {
using ::half;
using ::bfloat;
using ::size_t;
using ::ptrdiff_t;

template <class T> constexpr bool is_float16 = std::is_same_v<T, half> || std::is_same_v<T, bfloat>;
template <class T> constexpr bool is_fp = std::is_floating_point_v<T> || is_float16<T>;
template <class T> constexpr bool is_scalar_v_ = std::is_arithmetic_v<T> || is_fp<T>;
template <class T> concept scalar = is_scalar_v_<T>;
template <class T> concept real = is_fp<T>;
template <class T> concept integer = std::is_integral_v<T>;

// Conversion between any two scalars; the host knows none between half and bfloat.
template <class T, class U> constexpr T convert(U u) {
  if constexpr (std::is_same_v<T, U>) return u;
  else if constexpr (is_fp<T> && is_fp<U>) return T(float(u));
  else return T(u);
}

template <class T> struct numeric_limits : std::numeric_limits<T> {};
template <class T, class L> struct float16_limits {
  static constexpr bool is_specialized = true, is_signed = true, is_integer = false, is_exact = false;
  static constexpr bool has_infinity = true, has_quiet_NaN = true;
  static constexpr int radix = 2, digits = L::digits, max_exponent = L::max_exponent, min_exponent = L::min_exponent;
  static constexpr T max() { return T(L::max); }
  static constexpr T lowest() { return T(-L::max); }
  static constexpr T min() { return T(L::min); }
  static constexpr T epsilon() { return T(L::epsilon); }
  static constexpr T denorm_min() { return T(L::denorm); }
  static constexpr T infinity() { return T(INFINITY); }
  static constexpr T quiet_NaN() { return T(NAN); }
  static constexpr T signaling_NaN() { return T(NAN); }
};
struct half_figures {
  static constexpr int digits = 11, max_exponent = 16, min_exponent = -13;
  static constexpr float max = 65504.0f, min = 0x1p-14f, epsilon = 0x1p-10f, denorm = 0x1p-24f;
};
struct bfloat_figures {
  static constexpr int digits = 8, max_exponent = 128, min_exponent = -125;
  static constexpr float max = 0x1.fep127f, min = 0x1p-126f, epsilon = 0x1p-7f, denorm = 0x1p-133f;
};
template <> struct numeric_limits<half> : float16_limits<half, half_figures> {};
template <> struct numeric_limits<bfloat> : float16_limits<bfloat, bfloat_figures> {};

template <class T> struct is_floating_point : std::bool_constant<is_fp<T>> {};
template <class T> constexpr bool is_floating_point_v = is_fp<T>;
template <class T> struct is_arithmetic : std::bool_constant<is_scalar_v_<T>> {};
template <class T> constexpr bool is_arithmetic_v = is_scalar_v_<T>;
template <class T> struct is_scalar : std::bool_constant<is_scalar_v_<T>> {};
template <class T> constexpr bool is_scalar_v = is_scalar_v_<T>;
using std::bool_constant; using std::conditional; using std::conditional_t; using std::decay; using std::decay_t;
using std::declval; using std::enable_if; using std::enable_if_t; using std::false_type; using std::integral_constant;
using std::is_base_of; using std::is_base_of_v; using std::is_const; using std::is_const_v; using std::is_convertible;
using std::is_convertible_v; using std::is_enum; using std::is_integral; using std::is_integral_v;
using std::is_pointer; using std::is_pointer_v; using std::is_reference; using std::is_same; using std::is_same_v;
using std::is_signed; using std::is_signed_v; using std::is_unsigned; using std::is_unsigned_v; using std::is_void;
using std::is_void_v; using std::make_signed; using std::make_signed_t; using std::make_unsigned;
using std::make_unsigned_t; using std::remove_const; using std::remove_const_t; using std::remove_cv;
using std::remove_cv_t; using std::remove_pointer; using std::remove_pointer_t; using std::remove_reference;
using std::remove_reference_t; using std::true_type; using std::index_sequence; using std::integer_sequence;
using std::make_index_sequence; using std::make_integer_sequence;
template <class T> using remove_addrspace_t = std::remove_cv_t<std::remove_reference_t<T>>;
template <class... B> struct _disjunction : std::disjunction<B...> {};
template <class... B> struct _conjunction : std::conjunction<B...> {};
template <class T> using uniform = T;
template <class T> constexpr T make_uniform(T v) { return v; }

template <class T, size_t N> struct array {
  T elements[N];
  constexpr T& operator[](size_t i) { return elements[i]; }
  constexpr const T& operator[](size_t i) const { return elements[i]; }
  static constexpr size_t size() { return N; }
};

// Logging is accepted and dropped.
struct os_log {
  constexpr os_log(const char*, const char*) {}
  template <class... A> void log(const char*, A...) const {}
  template <class... A> void log_debug(const char*, A...) const {}
  template <class... A> void log_info(const char*, A...) const {}
  template <class... A> void log_error(const char*, A...) const {}
  template <class... A> void log_fault(const char*, A...) const {}
};
}  // namespace metal
