// vec, packed_vec and matrix, with swizzles.
#pragma once
#include "scalar.h"

namespace metal {
template <class T, int N> struct vec;
template <class T, int N> struct packed_vec;

template <class T, int N> struct vec_operators {
#define MH_OP(op) \
  friend constexpr vec<T, N> operator op(const vec<T, N>& a, const vec<T, N>& b) { \
    vec<T, N> r{}; for (int i = 0; i < N; i++) r.d[i] = T(a.d[i] op b.d[i]); return r; }
  MH_OP(+) MH_OP(-) MH_OP(*) MH_OP(/) MH_OP(%) MH_OP(&) MH_OP(|) MH_OP(^) MH_OP(<<) MH_OP(>>)
#undef MH_OP
#define MH_OP(op) \
  friend constexpr vec<bool, N> operator op(const vec<T, N>& a, const vec<T, N>& b) { \
    vec<bool, N> r{}; for (int i = 0; i < N; i++) r.d[i] = a.d[i] op b.d[i]; return r; }
  MH_OP(<) MH_OP(<=) MH_OP(>) MH_OP(>=) MH_OP(==) MH_OP(!=) MH_OP(&&) MH_OP(||)
#undef MH_OP
#define MH_OP(op, R) \
  friend constexpr vec<R, N> operator op(const vec<T, N>& a) { \
    vec<R, N> r{}; for (int i = 0; i < N; i++) r.d[i] = R(op a.d[i]); return r; }
  MH_OP(+, T) MH_OP(-, T) MH_OP(~, T) MH_OP(!, bool)
#undef MH_OP
};

// A selection of elements of a vector whose storage it shares. V is a parameter of its own so that the operators of
// vec are found by argument-dependent lookup.
template <class V, class T, int Stored, int... I> struct swizzle {
  T d[Stored];
  constexpr operator V() const { return V(d[I]...); }
  constexpr swizzle& operator=(const V& v) { int k = 0; ((d[I] = v.d[k++]), ...); return *this; }
  constexpr swizzle& operator=(const swizzle& o) { return *this = V(o); }
  swizzle() = default;
  swizzle(const swizzle&) = default;
#define MH_OP(op) constexpr swizzle& operator op##=(const V& v) { return *this = V(*this) op v; }
  MH_OP(+) MH_OP(-) MH_OP(*) MH_OP(/) MH_OP(&) MH_OP(|) MH_OP(^) MH_OP(<<) MH_OP(>>)
#undef MH_OP
  constexpr T operator[](int i) const { return V(*this).d[i]; }
};

template <class X> constexpr int width = is_scalar_v_<X> ? 1 : 0;
template <class T, int N> constexpr int width<vec<T, N>> = N;
template <class T, int N> constexpr int width<packed_vec<T, N>> = N;
template <class V, class T, int S, int... I> constexpr int width<swizzle<V, T, S, I...>> = sizeof...(I);

[[gnu::noinline, gnu::cold]] inline void bad_index(mh_site site) { mh_note(MH_INDEX, "vector or matrix subscript", site); }

#define MH_VEC_ASSIGN(op) \
  constexpr vec& operator op##=(const vec& b) { for (int i = 0; i < count; i++) d[i] = T(d[i] op b.d[i]); return *this; }
// clang checks the alignment of what a constructor's reference is bound to, but not of what a trivial copy reads.
#ifdef __clang__
#define MH_VEC_COPY(N) constexpr vec(const vec& o) { *this = o; }
#else
#define MH_VEC_COPY(N) constexpr vec(const vec&) = default;
#endif
#define MH_VEC_BODY(N) \
  static constexpr int count = N; \
  constexpr vec() = default; \
  MH_VEC_COPY(N) \
  constexpr vec(T s) : d{} { for (int i = 0; i < N; i++) d[i] = s; } \
  template <class U> requires(!std::is_same_v<U, T>) constexpr explicit vec(const vec<U, N>& o) : d{} { \
    for (int i = 0; i < N; i++) d[i] = convert<T>(o.d[i]); } \
  template <class U> constexpr explicit vec(const packed_vec<U, N>& o) : d{} { \
    for (int i = 0; i < N; i++) d[i] = convert<T>(o.d[i]); } \
  template <class U, int S, int... I> requires(!std::is_same_v<U, T>) \
  constexpr explicit vec(const swizzle<vec<U, N>, U, S, I...>& o) : vec(vec<U, N>(o)) {} \
  template <class A, class B, class... R> requires(width<A> + (width<B> + ... + width<R>) == N) \
  constexpr vec(const A& a, const B& b, const R&... r) : d{} { int k = 0; put(k, a); put(k, b); (put(k, r), ...); } \
  template <class A> constexpr void put(int& k, const A& a) { \
    if constexpr (is_scalar_v_<A>) d[k++] = convert<T>(a); \
    else for (int i = 0; i < width<A>; i++) d[k++] = convert<T>(a[i]); } \
  constexpr vec& operator=(const vec& o) { \
    if (std::is_constant_evaluated()) { for (int i = 0; i < N; i++) d[i] = o.d[i]; } \
    else __builtin_memcpy((void*)this, (const void*)&o, sizeof *this); \
    return *this; } \
  constexpr T& operator[](int i) { if (unsigned(i) >= N) bad_index(mh_site::here()); return d[i]; } \
  constexpr const T& operator[](int i) const { if (unsigned(i) >= N) bad_index(mh_site::here()); return d[i]; } \
  MH_VEC_ASSIGN(+) MH_VEC_ASSIGN(-) MH_VEC_ASSIGN(*) MH_VEC_ASSIGN(/) MH_VEC_ASSIGN(%) \
  MH_VEC_ASSIGN(&) MH_VEC_ASSIGN(|) MH_VEC_ASSIGN(^) MH_VEC_ASSIGN(<<) MH_VEC_ASSIGN(>>)

// swizzle_N.h declares the swizzles of an N-element vector; the Rust side writes it.
template <class T> struct alignas(2 * sizeof(T)) vec<T, 2> : vec_operators<T, 2> {
  union {
    T d[2];
    struct { T x, y; };
    struct { T r, g; };
#include "swizzle_2.h"
  };
  MH_VEC_BODY(2)
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 3> : vec_operators<T, 3> {
  union {
    T d[4];
    struct { T x, y, z; };
    struct { T r, g, b; };
#include "swizzle_3.h"
  };
  MH_VEC_BODY(3)
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 4> : vec_operators<T, 4> {
  union {
    T d[4];
    struct { T x, y, z, w; };
    struct { T r, g, b, a; };
#include "swizzle_4.h"
  };
  MH_VEC_BODY(4)
};
// Wider vectors appear as fragments of matrix code; they have no swizzles.
#define MH_WIDE_VEC(N) \
  template <class T> struct alignas(16) vec<T, N> : vec_operators<T, N> { T d[N]; MH_VEC_BODY(N) };
MH_WIDE_VEC(8) MH_WIDE_VEC(16)
#undef MH_WIDE_VEC
static_assert(sizeof(vec<float, 2>) == 8 && sizeof(vec<float, 3>) == 16 && sizeof(vec<float, 4>) == 16);
static_assert(sizeof(vec<half, 3>) == 8 && sizeof(vec<half, 4>) == 8 && sizeof(vec<uchar, 2>) == 2);

template <class T, int N> struct packed_vec {
  T d[N];
  packed_vec() = default;
  constexpr packed_vec(const vec<T, N>& v) { for (int i = 0; i < N; i++) d[i] = v.d[i]; }
  constexpr operator vec<T, N>() const { vec<T, N> r{}; for (int i = 0; i < N; i++) r.d[i] = d[i]; return r; }
  constexpr T& operator[](int i) { return d[i]; }
  constexpr const T& operator[](int i) const { return d[i]; }
};

// Column major: m[column][row].
template <class T, int C, int R> struct matrix {
  vec<T, R> columns[C];
  constexpr matrix() = default;
  constexpr explicit matrix(T s) : columns{} {
    for (int c = 0; c < C; c++) for (int r = 0; r < R; r++) columns[c].d[r] = c == r ? s : T(0);
  }
  template <class... V> requires(sizeof...(V) == C && C > 1 && (std::is_convertible_v<V, vec<T, R>> && ...))
  constexpr matrix(const V&... v) : columns{vec<T, R>(v)...} {}
  template <class U> constexpr explicit matrix(const matrix<U, C, R>& o) {
    for (int c = 0; c < C; c++) columns[c] = vec<T, R>(o.columns[c]);
  }
  constexpr vec<T, R>& operator[](int i) { if (unsigned(i) >= C) bad_index(mh_site::here()); return columns[i]; }
  constexpr const vec<T, R>& operator[](int i) const { if (unsigned(i) >= C) bad_index(mh_site::here()); return columns[i]; }
  friend constexpr matrix operator+(const matrix& a, const matrix& b) {
    matrix r{}; for (int c = 0; c < C; c++) r.columns[c] = a.columns[c] + b.columns[c]; return r;
  }
  friend constexpr matrix operator-(const matrix& a, const matrix& b) {
    matrix r{}; for (int c = 0; c < C; c++) r.columns[c] = a.columns[c] - b.columns[c]; return r;
  }
  friend constexpr matrix operator*(const matrix& a, T s) {
    matrix r{}; for (int c = 0; c < C; c++) r.columns[c] = a.columns[c] * vec<T, R>(s); return r;
  }
  friend constexpr matrix operator*(T s, const matrix& a) { return a * s; }
  friend constexpr vec<T, R> operator*(const matrix& a, const vec<T, C>& v) {
    vec<T, R> r(T(0)); for (int c = 0; c < C; c++) r += a.columns[c] * vec<T, R>(v.d[c]); return r;
  }
  friend constexpr vec<T, C> operator*(const vec<T, R>& v, const matrix& a) {
    vec<T, C> r(T(0)); for (int c = 0; c < C; c++) for (int i = 0; i < R; i++) r.d[c] += v.d[i] * a.columns[c].d[i]; return r;
  }
};
template <class T, int C, int R, int K> constexpr matrix<T, K, R> operator*(const matrix<T, C, R>& a, const matrix<T, K, C>& b) {
  matrix<T, K, R> r{}; for (int k = 0; k < K; k++) r.columns[k] = a * b.columns[k]; return r;
}
template <class T, int C, int R> constexpr matrix<T, R, C> transpose(const matrix<T, C, R>& a) {
  matrix<T, R, C> r{}; for (int c = 0; c < C; c++) for (int i = 0; i < R; i++) r.columns[i].d[c] = a.columns[c].d[i]; return r;
}

template <class To, class From> constexpr To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs equal sizes");
  To to;
  __builtin_memcpy((void*)&to, (const void*)&from, sizeof to);
  return to;
}
}  // namespace metal

using metal::as_type;
// The names exist with and without the namespace.
#define MH_TYPES(t) \
  typedef metal::vec<t, 2> t##2; typedef metal::vec<t, 3> t##3; typedef metal::vec<t, 4> t##4; \
  namespace metal { using ::t##2; using ::t##3; using ::t##4; }
MH_TYPES(bool) MH_TYPES(char) MH_TYPES(uchar) MH_TYPES(short) MH_TYPES(ushort) MH_TYPES(int) MH_TYPES(uint)
MH_TYPES(long) MH_TYPES(ulong) MH_TYPES(half) MH_TYPES(bfloat) MH_TYPES(float)
#undef MH_TYPES
#define MH_TYPES(t) \
  typedef metal::packed_vec<t, 2> packed_##t##2; typedef metal::packed_vec<t, 3> packed_##t##3; \
  typedef metal::packed_vec<t, 4> packed_##t##4;
MH_TYPES(char) MH_TYPES(uchar) MH_TYPES(short) MH_TYPES(ushort) MH_TYPES(int) MH_TYPES(uint)
MH_TYPES(long) MH_TYPES(half) MH_TYPES(bfloat) MH_TYPES(float)
#undef MH_TYPES
#define MH_TYPES(t, c) typedef metal::matrix<t, c, 2> t##c##x2; typedef metal::matrix<t, c, 3> t##c##x3; typedef metal::matrix<t, c, 4> t##c##x4;
MH_TYPES(half, 2) MH_TYPES(half, 3) MH_TYPES(half, 4) MH_TYPES(float, 2) MH_TYPES(float, 3) MH_TYPES(float, 4)
#undef MH_TYPES
