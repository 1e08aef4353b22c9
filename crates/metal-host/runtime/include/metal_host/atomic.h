// Atomics. One host thread runs all fibers, so the operations are plain; the race check is told that they are atomic.
#pragma once
#include "simd.h"

namespace metal {
enum memory_order { memory_order_relaxed, memory_order_acquire, memory_order_release, memory_order_acq_rel, memory_order_seq_cst };
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };
template <class T> struct atomic { T value; };
template <class T> struct _atomic : atomic<T> {};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;
typedef atomic<ulong> atomic_ulong;

template <class T> struct atomic_access {
  const volatile atomic<T>* p;
  T old;
  atomic_access(const volatile atomic<T>* p_, bool write, mh_site site) : p(p_) {
    mh_access(mh_self->index, (const void*)p_, sizeof(T), write, true, site);
    mh_quiet(1);
    old = p->value;
  }
  void set(T v) { ((volatile atomic<T>*)p)->value = v; }
  ~atomic_access() { mh_quiet(-1); }
};
template <class T> using exactly = std::type_identity_t<T>;
#define MH_ATOMIC(name, expr) \
  template <class T> inline T name(volatile atomic<T>* p, exactly<T> x, memory_order, mh_site site = mh_site::here()) { \
    atomic_access<T> at(p, true, site); T o = at.old; at.set(T(expr)); return o; }
MH_ATOMIC(atomic_exchange_explicit, x) MH_ATOMIC(atomic_fetch_add_explicit, o + x) MH_ATOMIC(atomic_fetch_sub_explicit, o - x)
MH_ATOMIC(atomic_fetch_and_explicit, o & x) MH_ATOMIC(atomic_fetch_or_explicit, o | x) MH_ATOMIC(atomic_fetch_xor_explicit, o ^ x)
MH_ATOMIC(atomic_fetch_min_explicit, x < o ? x : o) MH_ATOMIC(atomic_fetch_max_explicit, o < x ? x : o)
#undef MH_ATOMIC
template <class T> inline void atomic_store_explicit(volatile atomic<T>* p, exactly<T> x, memory_order, mh_site site = mh_site::here()) {
  atomic_access<T>(p, true, site).set(x);
}
template <class T> inline T atomic_load_explicit(const volatile atomic<T>* p, memory_order, mh_site site = mh_site::here()) {
  return atomic_access<T>(p, false, site).old;
}
template <class T> inline bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* p, T* expected, exactly<T> x, memory_order, memory_order,
    mh_site site = mh_site::here()) {
  T found;
  { atomic_access<T> at(p, true, site); found = at.old; if (found == *expected) { at.set(x); return true; } }
  *expected = found;
  return false;
}
inline void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}
}  // namespace metal
