// Barriers, simdgroup and quadgroup functions, 8x8 simdgroup matrices.
#pragma once
#include "math.h"

namespace metal {
enum class mem_flags : uint32_t {
  mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4, mem_threadgroup_imageblock = 8, mem_object_data = 16
};
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint32_t(a) | uint32_t(b)); }
constexpr mem_flags operator&(mem_flags a, mem_flags b) { return mem_flags(uint32_t(a) & uint32_t(b)); }
inline void threadgroup_barrier(mem_flags flags, mh_site site = mh_site::here()) { mh_barrier(MH_SCOPE_THREADGROUP, uint32_t(flags), site); }
inline void simdgroup_barrier(mem_flags flags, mh_site site = mh_site::here()) { mh_barrier(MH_SCOPE_SIMDGROUP, uint32_t(flags), site); }

// ---- functions over the lanes of a simdgroup ----
template <class T> struct lane_value { T in, out; int argument; };

// Rule::apply(lanes, lane) is the result of a lane; lanes[i] is null where lane i takes no part.
template <class Rule, class T> inline T over_lanes(const char* what, T v, int argument, mh_site site) {
  lane_value<T> mine{v, v, argument};
  mh_collective(MH_SCOPE_SIMDGROUP, what, &mine, [](void** payloads, uint32_t) {
    lane_value<T>** lanes = (lane_value<T>**)payloads;
    for (int lane = 0; lane < 32; lane++) if (lanes[lane]) lanes[lane]->out = Rule::apply(lanes, lane);
  }, false, site);
  return mine.out;
}
// Reductions compute one value for all lanes, by halves when every lane takes part.
template <class Combine, class T> inline T reduce_lanes(const char* what, T v, int lanes_per_group, mh_site site) {
  lane_value<T> mine{v, v, lanes_per_group};
  mh_collective(MH_SCOPE_SIMDGROUP, what, &mine, [](void** payloads, uint32_t) {
    lane_value<T>** lanes = (lane_value<T>**)payloads;
    int span = 32;
    for (int i = 0; i < 32; i++) if (lanes[i]) span = lanes[i]->argument;
    for (int base = 0; base < 32; base += span) {
      T values[32]; int n = 0;
      for (int i = base; i < base + span; i++) if (lanes[i]) values[n++] = lanes[i]->in;
      if (n == 0) continue;
      for (int stride = 1; stride < n; stride *= 2)
        for (int i = 0; i + stride < n; i += 2 * stride) values[i] = Combine::apply(values[i], values[i + stride]);
      for (int i = base; i < base + span; i++) if (lanes[i]) lanes[i]->out = values[0];
    }
  }, false, site);
  return mine.out;
}
template <class T> inline T lane_in(lane_value<T>** lanes, int lane, int source) {
  if (source < 0 || source > 31) return lanes[lane]->in;
  if (lanes[source]) return lanes[source]->in;
  mh_note(MH_SIMD_DIVERGENCE, "a lane reads one that takes no part", mh_site{nullptr, 0});
  return lanes[lane]->in;
}

#define MH_REDUCTION(name, quad, C, expr) \
  struct name##_rule { template <class T> static T apply(T a, T b) { return T(expr); } }; \
  template <C T> inline T name(T v, mh_site site = mh_site::here()) { return reduce_lanes<name##_rule>(#name, v, 32, site); } \
  template <C T, int N> inline vec<T, N> name(vec<T, N> v, mh_site site = mh_site::here()) { \
    for (int i = 0; i < N; i++) v.d[i] = name(v.d[i], site); return v; } \
  template <C T> inline T quad(T v, mh_site site = mh_site::here()) { return reduce_lanes<name##_rule>(#quad, v, 4, site); }
MH_REDUCTION(simd_sum, quad_sum, scalar, a + b) MH_REDUCTION(simd_product, quad_product, scalar, a * b)
MH_REDUCTION(simd_max, quad_max, scalar, max(a, b)) MH_REDUCTION(simd_min, quad_min, scalar, min(a, b))
MH_REDUCTION(simd_and, quad_and, integer, a & b) MH_REDUCTION(simd_or, quad_or, integer, a | b)
MH_REDUCTION(simd_xor, quad_xor, integer, a ^ b)
#undef MH_REDUCTION

// `lane` takes part as the receiver, `k` is the call's argument; the value is the source lane.
#define MH_SHUFFLE(name, expr) \
  struct name##_rule { template <class T> static T apply(lane_value<T>** lanes, int lane) { \
    int k = lanes[lane]->argument; (void)k; return lane_in(lanes, lane, expr); } }; \
  template <class T> inline T name(T v, ushort k, mh_site site = mh_site::here()) { return over_lanes<name##_rule>(#name, v, int(k), site); }
MH_SHUFFLE(simd_shuffle, k) MH_SHUFFLE(simd_broadcast, k) MH_SHUFFLE(simd_shuffle_xor, lane ^ k)
MH_SHUFFLE(simd_shuffle_down, lane + k) MH_SHUFFLE(simd_shuffle_up, lane - k)
MH_SHUFFLE(simd_shuffle_rotate_down, (lane + k) & 31) MH_SHUFFLE(simd_shuffle_rotate_up, (lane - k) & 31)
MH_SHUFFLE(quad_shuffle, (lane & ~3) + (k & 3)) MH_SHUFFLE(quad_broadcast, (lane & ~3) + (k & 3))
MH_SHUFFLE(quad_shuffle_xor, lane ^ (k & 3))
MH_SHUFFLE(quad_shuffle_down, (lane & 3) + k < 4 ? lane + k : lane) MH_SHUFFLE(quad_shuffle_up, (lane & 3) >= k ? lane - k : lane)
#undef MH_SHUFFLE
// The fill value comes in through the same argument list, so these two carry both.
template <class T> inline T simd_shuffle_and_fill_down(T v, T fill, ushort k, ushort modulo = 32, mh_site site = mh_site::here()) {
  ushort lane = ushort(mh_self->lane % modulo);
  T a = simd_shuffle_rotate_down(v, k, site);
  T b = simd_shuffle_rotate_down(fill, ushort((k - modulo) & 31), site);
  return lane + k < modulo ? a : b;
}
template <class T> inline T simd_shuffle_and_fill_up(T v, T fill, ushort k, ushort modulo = 32, mh_site site = mh_site::here()) {
  ushort lane = ushort(mh_self->lane % modulo);
  T a = simd_shuffle_rotate_up(v, k, site);
  T b = simd_shuffle_rotate_up(fill, ushort((k - modulo) & 31), site);
  return lane >= k ? a : b;
}
struct first_lane_rule { template <class T> static T apply(lane_value<T>** lanes, int lane) {
  for (int i = 0; i < 32; i++) if (lanes[i]) return lanes[i]->in;
  return lanes[lane]->in; } };
template <class T> inline T simd_broadcast_first(T v, mh_site site = mh_site::here()) { return over_lanes<first_lane_rule>("simd_broadcast_first", v, 0, site); }
#define MH_SCAN(name, start, until, expr) \
  struct name##_rule { template <class T> static T apply(lane_value<T>** lanes, int lane) { \
    T a = T(start); for (int i = 0; until; i++) if (lanes[i]) { T b = lanes[i]->in; a = T(expr); } return a; } }; \
  template <scalar T> inline T name(T v, mh_site site = mh_site::here()) { return over_lanes<name##_rule>(#name, v, 0, site); }
MH_SCAN(simd_prefix_exclusive_sum, 0, i < lane, a + b) MH_SCAN(simd_prefix_inclusive_sum, 0, i <= lane, a + b)
MH_SCAN(simd_prefix_exclusive_product, 1, i < lane, a * b) MH_SCAN(simd_prefix_inclusive_product, 1, i <= lane, a * b)
#undef MH_SCAN

struct simd_vote {
  uint64_t bits;
  constexpr explicit simd_vote(uint64_t b = 0) : bits(b) {}
  constexpr explicit operator uint64_t() const { return bits; }
  constexpr bool any() const { return bits != 0; }
  constexpr bool all() const { return bits == 0xffffffffu; }
};
struct ballot_rule { static ulong apply(lane_value<ulong>** lanes, int) {
  ulong m = 0; for (int i = 0; i < 32; i++) if (lanes[i] && lanes[i]->in) m |= 1ul << i; return m; } };
inline simd_vote simd_ballot(bool v, mh_site site = mh_site::here()) { return simd_vote(over_lanes<ballot_rule>("simd_ballot", ulong(v), 0, site)); }
inline simd_vote simd_active_threads_mask(mh_site site = mh_site::here()) { return simd_ballot(true, site); }
inline bool simd_any(bool v, mh_site site = mh_site::here()) { return simd_or(uint(v), site) != 0; }
inline bool simd_all(bool v, mh_site site = mh_site::here()) { return simd_and(uint(v), site) != 0; }
inline bool simd_is_first(mh_site site = mh_site::here()) { return simd_broadcast_first(mh_self->lane, site) == mh_self->lane; }

// ---- 8x8 matrices: two neighbouring elements of a row per lane ----
template <class T, int Cols, int Rows> struct simdgroup_matrix {
  static_assert(Cols == 8 && Rows == 8, "simdgroup matrices are 8x8");
  T element[2];
  bool filled = false;                     // tells an accumulator that was never given a value
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T v) : element{v, v}, filled(true) {}
  using storage_type = vec<T, 2>;
  vec<T, 2>& thread_elements() { filled = true; return *(vec<T, 2>*)(void*)element; }
  const vec<T, 2>& thread_elements() const { return *(const vec<T, 2>*)(const void*)element; }
} __attribute__((aligned(8)));
template <class T> using simdgroup_matrix8 = simdgroup_matrix<T, 8, 8>;
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <class T, int Cols, int Rows = Cols> inline simdgroup_matrix<T, Cols, Rows> make_filled_simdgroup_matrix(T v) {
  return simdgroup_matrix<T, Cols, Rows>(v);
}
template <class T, int Cols, int Rows = Cols> inline simdgroup_matrix<T, Cols, Rows> make_diagonal_simdgroup_matrix(T v);

template <class T, int Cols, int Rows> inline simdgroup_matrix<T, Cols, Rows> make_diagonal_simdgroup_matrix(T v) {
  simdgroup_matrix<T, Cols, Rows> m(T(0));
  for (int i = 0; i < 2; i++) if (mh_matrix_row(int(mh_self->lane)) == mh_matrix_column(int(mh_self->lane)) + i) m.element[i] = v;
  return m;
}
template <class T> struct matrix_walk {
  size_t position[2];
  matrix_walk(const char* what, ulong stride, ulong2 origin, bool transposed, mh_site site) {
    mh_together(what, site);
    ulong row = ulong(mh_matrix_row(int(mh_self->lane))), column = ulong(mh_matrix_column(int(mh_self->lane)));
    for (ulong i = 0; i < 2; i++)
      position[i] = transposed ? (origin.y + column + i) * stride + origin.x + row : (origin.y + row) * stride + origin.x + column + i;
  }
};
template <class T, class P> inline void simdgroup_load(simdgroup_matrix8<T>& m, const P* source, ulong stride = 8,
    ulong2 origin = ulong2(0ul), bool transposed = false, mh_site site = mh_site::here()) {
  static_assert(std::is_same_v<T, std::remove_cv_t<P>>, "simdgroup_load: element types differ");
  matrix_walk<T> at("simdgroup_load", stride, origin, transposed, site);
  for (int i = 0; i < 2; i++) m.element[i] = source[at.position[i]];
  m.filled = true;
}
template <class T, class P> inline void simdgroup_store(const simdgroup_matrix8<T>& m, P* target, ulong stride = 8,
    ulong2 origin = ulong2(0ul), bool transposed = false, mh_site site = mh_site::here()) {
  static_assert(std::is_same_v<T, P>, "simdgroup_store: element types differ");
  matrix_walk<T> at("simdgroup_store", stride, origin, transposed, site);
  for (int i = 0; i < 2; i++) target[at.position[i]] = m.element[i];
}

template <class D, class A, class B, class C> inline void matrix_product(const char* what, simdgroup_matrix8<D>& d,
    const simdgroup_matrix8<A>& a, const simdgroup_matrix8<B>& b, const simdgroup_matrix8<C>* c, mh_site site) {
  if (!a.filled || !b.filled || (c && !c->filled)) mh_note(MH_UNINITIALISED, "a simdgroup matrix that was never given a value is multiplied", site);
  mh_matrix_operands p;
  for (int i = 0; i < 2; i++) { p.a[i] = float(a.element[i]); p.b[i] = float(b.element[i]); p.c[i] = c ? float(c->element[i]) : 0.0f; }
  mh_collective(MH_SCOPE_SIMDGROUP, what, &p, mh_multiply_matrices, true, site);
  for (int i = 0; i < 2; i++) d.element[i] = D(p.c[i]);
  d.filled = true;
}
template <class D, class A, class B, class C> inline void simdgroup_multiply_accumulate(simdgroup_matrix8<D>& d, const simdgroup_matrix8<A>& a,
    const simdgroup_matrix8<B>& b, const simdgroup_matrix8<C>& c, mh_site site = mh_site::here()) {
  matrix_product("simdgroup_multiply_accumulate", d, a, b, &c, site);
}
template <class D, class A, class B> inline void simdgroup_multiply(simdgroup_matrix8<D>& d, const simdgroup_matrix8<A>& a,
    const simdgroup_matrix8<B>& b, mh_site site = mh_site::here()) {
  matrix_product<D, A, B, D>("simdgroup_multiply", d, a, b, nullptr, site);
}
template <class T> inline simdgroup_matrix8<T> operator*(const simdgroup_matrix8<T>& a, const simdgroup_matrix8<T>& b) {
  simdgroup_matrix8<T> d; simdgroup_multiply(d, a, b); return d;
}
}  // namespace metal
