// Tensors, and matmul2d of MetalPerformancePrimitives with inline and cooperative tensors.
#pragma once
#include "atomic.h"

// c[m][n] += a[m][k] b[k][n], all dense and row major.
extern "C" void mh_gemm(int m, int n, int k, const float* a, const float* b, float* c);

namespace metal {
constexpr size_t dynamic_extent = size_t(-1);
template <class I> constexpr I dynamic_length_v = I(-1);
struct tensor_handle {};
struct tensor_inline {};
struct tensor_offset {};

template <class I, size_t... E> struct extents {
  using index_type = I;
  static constexpr size_t rank() { return sizeof...(E); }
  I e[sizeof...(E)];
  constexpr extents() : e{I(E)...} {}
  template <class... A> requires(sizeof...(A) == sizeof...(E)) constexpr extents(A... a) : e{I(a)...} {}
  constexpr I extent(size_t i) const { return e[i]; }
};
template <size_t> constexpr size_t always_dynamic = dynamic_extent;
template <class I, class S> struct all_dynamic;
template <class I, size_t... K> struct all_dynamic<I, std::index_sequence<K...>> { using type = extents<I, always_dynamic<K>...>; };
template <class I, size_t Rank> using dextents = typename all_dynamic<I, std::make_index_sequence<Rank>>::type;

// Dimension 0 is the fast one.
template <class T, class Extents, class Descriptor = tensor_handle, class... Tags> struct tensor {
  using element_type = T;
  using value_type = std::remove_cv_t<T>;
  using extents_type = Extents;
  using index_type = typename Extents::index_type;
  static constexpr size_t rank = Extents::rank();
  T* data;
  Extents size;
  index_type stride[rank];
  tensor(T* p, Extents x) : data(p), size(x) { index_type s = 1; for (size_t i = 0; i < rank; i++) { stride[i] = s; s *= x.e[i]; } }
  tensor(T* p, Extents x, array<index_type, rank> strides) : data(p), size(x) { for (size_t i = 0; i < rank; i++) stride[i] = strides[i]; }
  static constexpr size_t get_rank() { return rank; }
  Extents extents() const { return size; }
  index_type get_extent(size_t i) const { return size.e[i]; }
  index_type get_stride(size_t i) const { return stride[i]; }
  // The end of the tensor stays where it was, so that a tile at the edge is clipped.
  template <class... I> requires(sizeof...(I) == rank) tensor slice(I... origin) const {
    tensor t = *this;
    index_type o[rank] = {index_type(origin)...};
    for (size_t i = 0; i < rank; i++) { t.data += ptrdiff_t(o[i]) * stride[i]; t.size.e[i] = size.e[i] > o[i] ? size.e[i] - o[i] : 0; }
    return t;
  }
  // Static extents promise that the slice is whole.
  template <size_t... E, class... I> requires(sizeof...(E) == rank && sizeof...(I) == rank) tensor slice(I... origin) const {
    tensor t = slice(origin...);
    size_t wanted[] = {E...};
    for (size_t i = 0; i < rank; i++) if (wanted[i] != dynamic_extent) t.size.e[i] = index_type(wanted[i]);
    return t;
  }
};
template <class T, class X> tensor(T*, X) -> tensor<T, X, tensor_inline>;
template <class T, class X, class A> tensor(T*, X, A) -> tensor<T, X, tensor_inline>;

template <int N> struct execution_simdgroups { static constexpr int threads = 32 * N, simdgroups = N; };
using execution_simdgroup = execution_simdgroups<1>;
struct execution_thread { static constexpr int threads = 1, simdgroups = 0; };

template <int Threads> constexpr mh_scope scope_of = Threads == 1 ? MH_SCOPE_THREAD : Threads == 32 ? MH_SCOPE_SIMDGROUP : MH_SCOPE_THREADGROUP;

// A tile of Fast x Slow elements dealt out to the threads of a scope. Metal leaves the dealing open, so it turns with
// the schedule's seed: code that relies on one order fails under another.
template <class T, int Fast, int Slow, int Threads> struct cooperative_tensor {
  using element_type = T;
  static constexpr int fast = Fast, slow = Slow, threads = Threads;
  static constexpr int elements = (Fast * Slow + Threads - 1) / Threads;
  T held[elements];
  bool filled = false;
  static int rank_of(uint32_t thread) { return Threads == 1 ? 0 : int((thread + mh_seed()) % Threads); }
  static int linear(int i, uint32_t thread) { return i * Threads + rank_of(thread); }
  static constexpr int get_capacity() { return elements; }
  static constexpr int capacity() { return elements; }
  bool is_valid_element(int i) const { return linear(i, mh_self->index) < Fast * Slow; }
  bool get_mask(int i) const { return is_valid_element(i); }
  array<int, 2> get_multidimensional_index(int i) const { int e = linear(i, mh_self->index); return {{e % Fast, e / Fast}}; }
  T& operator[](int i) { if (unsigned(i) >= unsigned(elements)) bad_index(mh_site::here()); filled = true; return held[i]; }
  const T& operator[](int i) const { if (unsigned(i) >= unsigned(elements)) bad_index(mh_site::here()); return held[i]; }
  T* begin() { filled = true; return held; }
  T* end() { return held + elements; }
  template <class Tensor, class F> void each(const Tensor& t, F f) {
    for (int i = 0; i < elements; i++) if (is_valid_element(i)) {
      auto at = get_multidimensional_index(i);
      if (at[0] < t.size.e[0] && at[1] < t.size.e[1]) f(held[i], t.data[ptrdiff_t(at[0]) * t.stride[0] + ptrdiff_t(at[1]) * t.stride[1]]);
    }
  }
  template <class Tensor> void store(const Tensor& t, mh_site site = mh_site::here()) {
    mh_collective(scope_of<Threads>, "cooperative_tensor::store", nullptr, nullptr, true, site);
    if (!filled) mh_note(MH_UNINITIALISED, "a cooperative tensor that was never given a value is stored", site);
    each(t, [](T& mine, auto& there) { there = convert<std::remove_reference_t<decltype(there)>>(mine); });
  }
  template <class Tensor> void load(const Tensor& t, mh_site site = mh_site::here()) {
    mh_collective(scope_of<Threads>, "cooperative_tensor::load", nullptr, nullptr, true, site);
    filled = true;
    for (int i = 0; i < elements; i++) held[i] = T(0);
    each(t, [](T& mine, auto& there) { mine = convert<T>(std::remove_cv_t<std::remove_reference_t<decltype(there)>>(there)); });
  }
};
}  // namespace metal

namespace mpp { namespace tensor_ops {
using namespace metal;

struct matmul2d_descriptor {
  enum class mode { multiply, multiply_accumulate };
  int m, n, k;
  bool transpose_left, transpose_right, relaxed_precision;
  mode matmul_mode;
  constexpr matmul2d_descriptor(int m_, int n_, int k_ = dynamic_length_v<int>, bool transpose_left_ = false, bool transpose_right_ = false,
      bool relaxed = false, mode mode_ = mode::multiply)
      : m(m_), n(n_), k(k_), transpose_left(transpose_left_), transpose_right(transpose_right_), relaxed_precision(relaxed), matmul_mode(mode_) {}
};

template <class T> constexpr bool is_cooperative = false;
template <class T, int F, int S, int N> constexpr bool is_cooperative<cooperative_tensor<T, F, S, N>> = true;
template <class T> constexpr bool byte_type = std::is_same_v<T, int8_t> || std::is_same_v<T, uint8_t> || std::is_same_v<T, char>;
// The combinations of element types that the primitive takes.
template <class L, class R, class D> constexpr bool combination() {
  if constexpr (byte_type<L> && byte_type<R>) return std::is_same_v<D, int>;
  else if constexpr (byte_type<L>) return std::is_same_v<D, float> || std::is_same_v<D, R>;
  else if constexpr (byte_type<R>) return std::is_same_v<D, float> || std::is_same_v<D, L>;
  else if constexpr (std::is_same_v<L, R>) return std::is_same_v<D, float> || std::is_same_v<D, L>;
  else return is_fp<L> && is_fp<R> && std::is_same_v<D, float>;
}

template <matmul2d_descriptor Shape, class Scope, class... Options> struct matmul2d {
  static constexpr int threads = Scope::threads;
  template <class L, class R, class E, class... More> cooperative_tensor<E, Shape.n, Shape.m, threads> get_destination_cooperative_tensor() const { return {}; }
  template <class L, class R, class E, class... More>
  cooperative_tensor<L, Shape.transpose_left ? Shape.m : Shape.k, Shape.transpose_left ? Shape.k : Shape.m, threads> get_left_input_cooperative_tensor() const { return {}; }
  template <class L, class R, class E, class... More>
  cooperative_tensor<R, Shape.transpose_right ? Shape.k : Shape.n, Shape.transpose_right ? Shape.n : Shape.k, threads> get_right_input_cooperative_tensor() const { return {}; }

  template <class L, class R, class D> struct job { L* left; R* right; D* out; mh_site site; };

  // Copies the operand `of` picks out of each job to float; x is its fast dimension. Outside a tensor it is zero.
  template <class J, class Of> static void gather(J** jobs, uint32_t count, Of of, int nx, int ny, float* to, bool turn) {
    J* first = nullptr;
    for (uint32_t i = 0; i < count && !first; i++) first = jobs[i];
    auto& t = of(*first);
    using Tensor = std::remove_reference_t<decltype(t)>;
    using E = std::remove_cv_t<typename Tensor::element_type>;
    auto put = [&](int x, int y, E v) { to[turn ? x * ny + y : y * nx + x] = float(v); };
    if constexpr (is_cooperative<Tensor>) {
      for (uint32_t i = 0; i < count; i++) if (jobs[i]) {
        Tensor& mine = of(*jobs[i]);
        if (!mine.filled) { mh_note(MH_UNINITIALISED, "matmul2d reads a cooperative tensor that was never given a value", first->site); return; }
        for (int c = 0; c < Tensor::elements; c++) {
          int e = Tensor::linear(c, thread_of(i));
          if (e < nx * ny) put(e % nx, e / nx, mine.held[c]);
        }
      }
    } else {
      int w = int(t.size.e[0]), h = int(t.size.e[1]);
      if (w > nx) w = nx;
      if (h > ny) h = ny;
      for (int y = 0; y < h && w > 0; y++) {
        const E* row = (const E*)t.data + ptrdiff_t(y) * t.stride[1];
        size_t bytes = (size_t(w - 1) * size_t(t.stride[0]) + 1) * sizeof(E);
        if (threads == 1) mh_access(mh_self->index, row, bytes, false, false, first->site);
        else for (int s = 0; s < Scope::simdgroups; s++) mh_access(thread_of(uint32_t(s * 32)), row, bytes, false, false, first->site);
        for (int x = 0; x < w; x++) put(x, y, row[ptrdiff_t(x) * t.stride[0]]);
      }
    }
  }
  // The index in the threadgroup of a scope's i-th thread.
  static uint32_t thread_of(uint32_t i) { return threads == 1 ? mh_self->index : threads == 32 ? (mh_self->index & ~31u) + i : i; }

  template <class L, class R, class D> [[gnu::noinline]] static void compute(void** payloads, uint32_t count) {
    using J = job<L, R, D>;
    constexpr int M = Shape.m, N = Shape.n;
    constexpr bool add = Shape.matmul_mode == matmul2d_descriptor::mode::multiply_accumulate;
    J** jobs = (J**)payloads;
    J* first = nullptr;
    for (uint32_t i = 0; i < count && !first; i++) first = jobs[i];
    int K = Shape.k;
    if constexpr (!is_cooperative<L>) {
      if (K <= 0) K = int(first->left->size.e[Shape.transpose_left ? 1 : 0]);
      for (uint32_t i = 0; i < count; i++) if (jobs[i] && jobs[i]->left->data != first->left->data)
        mh_note(MH_TENSOR, "the threads of the scope pass different left operands to matmul2d", first->site);
    }
    if constexpr (!is_cooperative<R>)
      for (uint32_t i = 0; i < count; i++) if (jobs[i] && jobs[i]->right->data != first->right->data)
        mh_note(MH_TENSOR, "the threads of the scope pass different right operands to matmul2d", first->site);
    float* a = new float[size_t(M) * K + size_t(N) * K + size_t(M) * N]();
    float *b = a + size_t(M) * K, *c = b + size_t(N) * K;
    gather(jobs, count, [](J& j) -> L& { return *j.left; }, Shape.transpose_left ? M : K, Shape.transpose_left ? K : M, a, Shape.transpose_left);
    gather(jobs, count, [](J& j) -> R& { return *j.right; }, Shape.transpose_right ? K : N, Shape.transpose_right ? N : K, b, Shape.transpose_right);
    mh_gemm(M, N, K, a, b, c);
    for (uint32_t i = 0; i < count; i++) if (jobs[i]) {
      D& out = *jobs[i]->out;
      using E = typename D::element_type;
      if constexpr (is_cooperative<D>) {
        if (add && !out.filled && jobs[i] == first) mh_note(MH_UNINITIALISED, "multiply_accumulate into a cooperative tensor that was never given a value", first->site);
        out.filled = true;
        for (int e = 0; e < D::elements; e++) {
          int at = D::linear(e, thread_of(i));
          if (at < M * N) out.held[e] = E(add ? float(out.held[e]) + c[at] : c[at]);
        }
      } else {
        for (int at = int(i); at < M * N; at += threads) {
          int x = at % N, y = at / N;
          if (x >= out.size.e[0] || y >= out.size.e[1]) continue;
          auto* p = out.data + ptrdiff_t(x) * out.stride[0] + ptrdiff_t(y) * out.stride[1];
          if (add) mh_access(thread_of(i), p, sizeof *p, false, false, first->site);
          mh_access(thread_of(i), p, sizeof *p, true, false, first->site);
          *p = E(add ? float(*p) + c[at] : c[at]);
        }
      }
    }
    delete[] a;
  }
  // Lvalues only, as in MetalPerformancePrimitives.
  template <class L, class R, class D> void run(L& left, R& right, D& out, mh_site site = mh_site::here()) const {
    static_assert(combination<std::remove_cv_t<typename L::element_type>, std::remove_cv_t<typename R::element_type>, typename D::element_type>(),
        "matmul2d does not take this combination of element types");
    if (threads > 32 && mh_self->threads != uint32_t(threads)) mh_note(MH_TENSOR, "the threadgroup has another number of threads than execution_simdgroups<N>", site);
    job<L, R, D> mine{&left, &right, &out, site};
    mh_collective(scope_of<threads>, "matmul2d::run", &mine, compute<L, R, D>, true, site);
  }
};
} }  // namespace mpp::tensor_ops
