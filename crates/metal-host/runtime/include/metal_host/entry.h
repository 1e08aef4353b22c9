// From the runtime's thread to a kernel's parameters.
#pragma once
#include "tensor.h"

namespace mh {
inline void position_of(uint32_t source, const mh_thread& t, uint32_t out[3]) {
  const uint32_t* from = nullptr;
  out[0] = out[1] = out[2] = 0;
  switch (source) {
    case MH_THREAD_POSITION_IN_GRID: for (int i = 0; i < 3; i++) out[i] = t.group[i] * t.nominal[i] + t.position[i]; return;
    case MH_THREAD_POSITION_IN_THREADGROUP: from = t.position; break;
    case MH_THREADGROUP_POSITION_IN_GRID: from = t.group; break;
    case MH_THREADS_PER_THREADGROUP: from = t.size; break;
    case MH_DISPATCH_THREADS_PER_THREADGROUP: from = t.nominal; break;
    case MH_THREADGROUPS_PER_GRID: from = t.groups; break;
    case MH_THREADS_PER_GRID: from = t.grid; break;
    case MH_THREAD_INDEX_IN_THREADGROUP: out[0] = t.index; return;
    case MH_THREAD_INDEX_IN_SIMDGROUP: out[0] = t.lane; return;
    case MH_SIMDGROUP_INDEX_IN_THREADGROUP: out[0] = t.simdgroup; return;
    case MH_SIMDGROUPS_PER_THREADGROUP: out[0] = t.simdgroups; return;
    case MH_THREADS_PER_SIMDGROUP: out[0] = 32; return;
    case MH_QUADGROUP_INDEX_IN_THREADGROUP: out[0] = t.index / 4; return;
    case MH_THREAD_INDEX_IN_QUADGROUP: out[0] = t.index & 3; return;
    case MH_QUADGROUPS_PER_THREADGROUP: out[0] = (t.threads + 3) / 4; return;
    default: return;
  }
  for (int i = 0; i < 3; i++) out[i] = from[i];
}

template <class P> P argument(const mh_param& param) {
  if constexpr (std::is_reference_v<P>) {
    using T = std::remove_reference_t<P>;
    return *(T*)(param.source == MH_BUFFER ? mh_buffer(param.index, param.name, sizeof(T)) : mh_group_memory(param.index));
  } else if constexpr (std::is_pointer_v<P>) {
    return (P)(param.source == MH_BUFFER ? mh_buffer(param.index, param.name, 0) : mh_group_memory(param.index));
  } else {
    uint32_t at[3];
    position_of(param.source, *mh_self, at);
    if constexpr (std::is_arithmetic_v<P>) return P(at[0]);
    else { P r{}; for (int i = 0; i < P::count; i++) r.d[i] = std::remove_reference_t<decltype(r.d[0])>(at[i]); return r; }
  }
}

template <auto F> struct enter;
template <class... P, void (*F)(P...)> struct enter<F> {
  template <size_t... I> static void with([[maybe_unused]] const mh_param* params, std::index_sequence<I...>) { F(argument<P>(params[I])...); }
  static void run(const mh_param* params) { with(params, std::index_sequence_for<P...>{}); }
};

template <class T> constexpr mh_constant constant(uint32_t index, T* value, bool* defined, const char* name) {
  uint32_t kind = std::is_same_v<T, bool> ? 3 : std::is_same_v<T, half> ? 4 : std::is_same_v<T, bfloat> ? 5
      : metal::is_fp<T> ? 2 : std::is_unsigned_v<T> ? 1 : 0;
  return {index, kind, uint32_t(sizeof(T)), value, defined, name};
}
}  // namespace mh
