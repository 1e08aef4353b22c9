// The runtime of a compiled shader: fibers, barriers, collective operations, and the callbacks through which the
// compiler's thread and undefined-behaviour instrumentation reports every access. No sanitizer library is linked.
#include "memory.h"
#include "include/metal_host/scalar.h"
#include <link.h>

extern "C" {
mh_thread* mh_self;
extern const mh_kernel mh_kernels[];
extern const uint32_t mh_kernel_count;
extern const mh_constant mh_constants[];
extern const uint32_t mh_constant_count;
void mh_derive_constants();
}

// ---- scheduling -------------------------------------------------------------------------------------------------
static uint64_t rng;
static uint32_t random_below(uint32_t n) {      // SplitMix64
  uint64_t z = (rng += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return uint32_t((z ^ (z >> 31)) >> 32) % n;
}
static void shuffle(uint16_t* v, uint32_t n) {
  for (uint32_t i = n; i > 1; i--) { uint32_t j = random_below(i); uint16_t t = v[i - 1]; v[i - 1] = v[j]; v[j] = t; }
}

// The simdgroup that runs: its threads, the order of its lanes, and how far this round has come.
static uint32_t round_begin, round_end, round_at;
static uint16_t lane_order[32];

// The next thread of this round that can run.
static fiber* next_ready() {
  while (round_at < 32) {
    uint32_t i = round_begin + lane_order[round_at++];
    if (i < round_end && fibers[i].state == READY) return &fibers[i];
  }
  return nullptr;
}

static void suspend() {
  launch->switches++;
  if (second_write.waiting) { quietly q; settle(); }
  int level = quiet;
  fiber* from = current;
  if (fiber* to = stopped ? nullptr : next_ready()) {
    current = to;
    mh_self = to;
    mh_switch(&from->sp, to->sp);
  } else {
    mh_switch(&from->sp, scheduler_sp);
  }
  quiet = level;
}

static void (*entry)();
static void fiber_main() {
  quiet = launch->checks ? 0 : 1;
  entry();
  quiet = 1;
  settle();
  current->state = DONE;
  void* unused;
  mh_switch(&unused, scheduler_sp);
  __builtin_trap();
}

static bool same_call(const fiber& a, const fiber& b) {
  return a.state == b.state && a.call == b.call;
}

static void report_divergence(mh_kind kind, uint32_t begin, uint32_t end, fiber& at);

// Whether the lanes of a simdgroup have come the same way; reports it where they have not.
static void compare_paths(uint32_t begin, uint32_t end) {
  fiber* odd = nullptr;
  for (uint32_t i = begin + 1; i < end; i++) if (fibers[i].path != fibers[begin].path) odd = fibers[i].path ? &fibers[i] : &fibers[begin];
  if (!odd) return;
  fiber* was = current;
  current = odd;
  uint32_t with = 0;
  for (uint32_t i = begin; i < end; i++) with += fibers[i].path == odd->path;
  char text[160];
  __builtin_snprintf(text, sizeof text, "%u of %u at %s, line %d", with, end - begin, odd->path_what, odd->path_site.line);
  mh_finding f = finding(MH_SIMD_DIVERGENCE, nullptr, odd->path_site);
  f.detail = text;
  file(f);
  current = was;
  for (uint32_t i = begin; i < end; i++) fibers[i].path = 0;
}

static bool combining;                           // a collective's work is being done for its threads

// Completes a collective for the threads of [begin, end) that wait at the same call as `leader`.
static void complete(fiber& leader, uint32_t begin, uint32_t end) {
  static void* payloads[MAX_THREADS];
  const uint64_t call = leader.call;
  uint32_t n = 0, lanes = leader.scope == MH_SCOPE_SIMDGROUP ? 32 : end - begin;
  for (uint32_t i = begin; i < end; i++) {
    fiber& f = fibers[i];
    bool here = f.state == AT_COLLECTIVE && f.call == call;
    payloads[n++] = here ? f.payload : nullptr;
    if (here) f.state = READY;
  }
  while (n < lanes) payloads[n++] = nullptr;
  if (leader.needs_all) for (uint32_t b = begin; b < end; b += 32) compare_paths(b, b + 32 < end ? b + 32 : end);
  if (leader.combine) {
    fiber* was = current;
    current = &leader;
    mh_self = &leader;
    quietly q;
    combining = true;
    leader.combine(payloads, lanes);
    combining = false;
    current = was;
    mh_self = was;
  }
}

static void scope_bounds(const fiber& f, mh_scope scope, uint32_t& begin, uint32_t& end) {
  begin = scope == MH_SCOPE_SIMDGROUP ? f.simdgroup * 32 : 0;
  end = scope == MH_SCOPE_SIMDGROUP && begin + 32 < f.threads ? begin + 32 : f.threads;
}

extern "C" void mh_barrier(mh_scope scope, uint32_t flags, mh_site site) {
  current->state = scope == MH_SCOPE_SIMDGROUP ? AT_SIMD_BARRIER : AT_BARRIER;
  current->scope = scope;
  current->flags = flags;
  current->what = scope == MH_SCOPE_SIMDGROUP ? "simdgroup_barrier" : "threadgroup_barrier";
  current->site = site;
  current->call = call_of(current->what, site);
  suspend();
}

extern "C" void mh_together(const char* what, mh_site site) {
  fiber& f = *current;
  f.path = f.path * 0x100000001b3 + call_of(what, site);
  f.path_what = what;
  f.path_site = site;
}

extern "C" void mh_collective(mh_scope scope, const char* what, void* payload, mh_combine combine, bool needs_all, mh_site site) {
  fiber& f = *current;
  f.scope = scope;
  f.what = what;
  f.site = site;
  f.payload = payload;
  f.combine = combine;
  f.needs_all = needs_all;
  f.call = call_of(what, site);
  if (scope == MH_SCOPE_THREAD) {
    if (!combine) return;
    quietly q;
    combining = true;
    combine(&payload, 1);
    combining = false;
    return;
  }
  f.state = AT_COLLECTIVE;
  uint32_t begin, end;
  scope_bounds(f, scope, begin, end);
  for (uint32_t i = end; i-- > begin;) if (!same_call(fibers[i], f) && !(fibers[i].state == DONE && !needs_all)) { suspend(); return; }
  complete(f, begin, end);                     // the last to arrive does the work and needs no switch
}

// A text of who waits where, for reports of divergence.
static void describe(char* text, size_t size, uint32_t begin, uint32_t end) {
  bool told[MAX_THREADS] = {};
  size_t used = 0;
  text[0] = 0;
  for (uint32_t i = begin; i < end && used + 1 < size; i++) {
    if (told[i]) continue;
    uint32_t n = 0;
    for (uint32_t j = i; j < end; j++)
      if (fibers[j].state == fibers[i].state && (fibers[i].state == DONE || same_call(fibers[j], fibers[i]))) { told[j] = true; n++; }
    const char* sep = used ? "; " : "";
    int w = fibers[i].state == DONE
        ? __builtin_snprintf(text + used, size - used, "%s%u of %u returned (first: thread %u)", sep, n, end - begin, i)
        : __builtin_snprintf(text + used, size - used, "%s%u of %u at %s, line %d (first: thread %u)", sep, n, end - begin, fibers[i].what, fibers[i].site.line, i);
    if (w < 0) break;
    used += size_t(w);
  }
}
static void report_divergence(mh_kind kind, uint32_t begin, uint32_t end, fiber& at) {
  char text[512];
  describe(text, sizeof text, begin, end);
  current = &at;
  mh_finding f = finding(kind, nullptr, at.site);
  f.detail = text;
  file(f);
  current = nullptr;
}

// Runs each thread of a simdgroup that can run until it waits. False when there was none.
static bool run_round(uint32_t begin, uint32_t end) {
  round_begin = begin;
  round_end = end;
  round_at = 0;
  bool any = false;
  while (fiber* f = stopped ? nullptr : next_ready()) {
    any = true;
    current = f;
    mh_self = f;
    mh_switch(&scheduler_sp, f->sp);
    quiet = 1;
  }
  return any;
}

// Lets go of one simdgroup's threads that wait for each other; false when there are none.
static bool release_simdgroup(uint32_t begin, uint32_t end) {
  fiber* waiting = nullptr;
  bool whole = true;
  for (uint32_t i = begin; i < end; i++) {
    fiber& f = fibers[i];
    if (f.state == AT_SIMD_BARRIER || (f.state == AT_COLLECTIVE && f.scope == MH_SCOPE_SIMDGROUP)) { if (!waiting) waiting = &f; }
  }
  if (!waiting) return false;
  for (uint32_t i = begin; i < end; i++) if (!same_call(fibers[i], *waiting) && fibers[i].state != DONE) whole = false;
  if (waiting->state == AT_SIMD_BARRIER) {
    if (!whole) report_divergence(MH_BARRIER_DIVERGENCE, begin, end, *waiting);
    uint32_t s = begin / 32;
    if (waiting->flags & 1) simd_barriers[s][0]++;
    if (waiting->flags & 2) simd_barriers[s][1]++;
    compare_paths(begin, end);
    const uint64_t call = waiting->call;
    for (uint32_t i = begin; i < end; i++) if (fibers[i].state == AT_SIMD_BARRIER && fibers[i].call == call) fibers[i].state = READY;
    return true;
  }
  bool absent = false;
  for (uint32_t i = begin; i < end; i++) absent |= !same_call(fibers[i], *waiting);
  if (waiting->needs_all && (absent || end - begin < 32)) {
    report_divergence(MH_SIMD_DIVERGENCE, begin, end, *waiting);
    stopped = true;
    return true;
  }
  if (!whole) report_divergence(MH_SIMD_DIVERGENCE, begin, end, *waiting);
  complete(*waiting, begin, end);
  return true;
}

static void clear_group_memory() {
  uint64_t begin = launch->group_memory, bytes = group_memory_used;
  memset(launch->init + begin, 0, bytes);
  memset(launch->arena + begin, 0xff, bytes);
}

static void run_group(uint32_t threads) {
  uint32_t simdgroups = (threads + 31) / 32;
  uint16_t order[32];
  for (uint32_t i = 0; i < 32; i++) order[i] = lane_order[i] = uint16_t(i);
  memset(barriers, 0, sizeof barriers);
  memset(simd_barriers, 0, sizeof simd_barriers);
  if (launch->checks) clear_group_memory();
  for (uint32_t i = 0; i < threads; i++) {
    fibers[i].state = READY;
    fibers[i].path = 0;
    // Tops a cache line apart, so that the stacks do not all fall into one set of the cache.
    fibers[i].sp = fiber_stack(fibers[i].stack + STACK - i % 48 * 80, fiber_main);
  }
  while (!stopped) {
    if (launch->seed) { shuffle(order, simdgroups); shuffle(lane_order, 32); }
    for (uint32_t k = 0; k < simdgroups && !stopped; k++) {
      uint32_t begin = order[k] * 32u, end = begin + 32 < threads ? begin + 32 : threads;
      bool to_the_end = !launch->seed || random_below(2);      // until it waits for other simdgroups, or one round only
      do {
        while (run_round(begin, end)) {}
        if (stopped) break;
        bool stores = false;
        for (uint32_t i = begin; i < end; i++) if (fibers[i].state == AT_STORE) { fibers[i].state = READY; stores = true; }
        if (stores) continue;
        if (!release_simdgroup(begin, end)) break;
      } while (to_the_end && !stopped);
    }
    current = nullptr;
    if (stopped) return;
    uint32_t done = 0, at_barrier = 0, ready = 0;
    for (uint32_t i = 0; i < threads; i++) {
      done += fibers[i].state == DONE;
      at_barrier += same_call(fibers[i], fibers[0]) && fibers[i].state == AT_BARRIER;
      ready += fibers[i].state == READY;
    }
    if (done == threads) {
      for (uint32_t b = 0; b < threads; b += 32) compare_paths(b, b + 32 < threads ? b + 32 : threads);
      current = nullptr;
      return;
    }
    if (ready) continue;
    if (at_barrier == threads) {
      if (fibers[0].flags & 1) barriers[0]++;
      if (fibers[0].flags & 2) barriers[1]++;
      for (uint32_t b = 0; b < threads; b += 32) compare_paths(b, b + 32 < threads ? b + 32 : threads);
      for (uint32_t i = 0; i < threads; i++) fibers[i].state = READY;
      continue;
    }
    // Only waits across simdgroups are left, and not everyone is there.
    fiber* at = &fibers[0];
    for (uint32_t i = 0; i < threads; i++) if (fibers[i].state == AT_BARRIER || fibers[i].state == AT_COLLECTIVE) { at = &fibers[i]; break; }
    report_divergence(at->state == AT_COLLECTIVE ? MH_SIMD_DIVERGENCE : MH_BARRIER_DIVERGENCE, 0, threads, *at);
    stopped = true;
  }
}

// ---- what shader code calls --------------------------------------------------------------------------------------
extern "C" void mh_quiet(int step) { quiet += step; }
extern "C" uint64_t mh_seed() { return launch->seed; }
extern "C" void mh_note(mh_kind kind, const char* detail, mh_site site) {
  quietly q;
  char text[160];
  if (!site.file && combining) {              // from within a collective operation: its call is the place
    site = current->site;
    __builtin_snprintf(text, sizeof text, "%s: %s", current->what, detail);
    detail = text;
  }
  mh_finding f = finding(kind, site.file ? __builtin_return_address(0) : nullptr, site);
  f.detail = detail;
  file(f);
  if (stopped) stop_dispatch();
}
extern "C" void mh_access(uint32_t index, const void* p, size_t bytes, bool write, bool atomic, mh_site site) {
  if (!launch->checks) return;
  uint64_t at = uint64_t((const uint8_t*)p - launch->arena);
  quietly q;
  if (second_write.waiting) settle();
  if (at < launch->arena_bytes) access_arena(at, bytes, write, atomic, fibers[index], nullptr, site);
}
extern "C" void* mh_buffer(uint32_t index, const char* name, size_t expected) {
  quietly q;
  if (index >= launch->buffer_count) {
    mh_finding f = finding(MH_ARGUMENT, nullptr, mh_site{nullptr, 0});
    f.region_kind = MH_REGION_BUFFER;
    f.region_index = index;
    f.region_name = name;
    f.detail = "the index is beyond the buffers that a kernel can have";
    file(f);
    stop_dispatch();
  }
  if (expected && launch->buffer_bytes[index] && launch->buffer_bytes[index] < expected) {
    mh_finding f = finding(MH_ARGUMENT, nullptr, mh_site{nullptr, 0});
    f.region_kind = MH_REGION_BUFFER;
    f.region_index = index;
    f.region_name = name;
    f.region_bytes = launch->buffer_bytes[index];
    f.access_bytes = expected;
    f.detail = "the kernel's parameter is larger than what is bound";
    file(f);
    stop_dispatch();
  }
  return launch->arena + launch->buffers[index];
}
static void* group_region(mh_region_kind kind, uint32_t index, const char* name, uint64_t bytes, uint64_t align) {
  quietly q;
  for (uint32_t i = 0; i < region_count; i++)
    if (regions[i].kind == kind && regions[i].index == index) return launch->arena + regions[i].begin;
  if (align < 16) align = 16;
  uint64_t begin = (group_memory_used + align - 1) / align * align;
  if (region_count == MAX_REGIONS || begin + bytes + 1024 > launch->group_memory_bytes) {
    mh_note(MH_ARGUMENT, "threadgroup memory beyond what the host keeps", mh_site{nullptr, 0});
    stop_dispatch();
  }
  bool fitted = group_memory_wanted <= GROUP_MEMORY_LIMIT;
  group_memory_wanted += bytes;
  if (fitted && group_memory_wanted > GROUP_MEMORY_LIMIT) mh_note(MH_ARGUMENT, "threadgroup arguments and variables together exceed 32 KiB", mh_site{nullptr, 0});
  group_memory_used = begin + bytes + 1024;    // what follows is far enough for a near miss to be seen
  uint64_t at = launch->group_memory + begin;
  regions[region_count++] = mh_region{at, at + bytes, kind, index, name, 1, 1, 1, 0};
  if (launch->checks) { memset(launch->init + at, 0, bytes); memset(launch->arena + at, 0xff, bytes); }
  return launch->arena + at;
}
extern "C" void* mh_threadgroup_variable(uint32_t id, const char* name, size_t bytes, size_t align) {
  return group_region(MH_REGION_VARIABLE, id, name, bytes, align);
}
extern "C" void* mh_group_memory(uint32_t index) {
  return group_region(MH_REGION_THREADGROUP, index, nullptr, index < launch->group_count ? launch->group_bytes[index] : 0, 16);
}
extern "C" void mh_gemm(int m, int n, int k, const float* __restrict a, const float* __restrict b, float* __restrict c) {
  for (int i = 0; i < m; i++)
    for (int p = 0; p < k; p++) {
      const float x = a[i * k + p];
      for (int j = 0; j < n; j++) c[i * n + j] += x * b[p * n + j];
    }
}

extern "C" void mh_multiply_matrices(void** payloads, uint32_t) {
  mh_matrix_operands** lanes = (mh_matrix_operands**)payloads;
  float a[8][8], b[8][8], c[8][8];
  for (int lane = 0; lane < 32; lane++) {
    int row = mh_matrix_row(lane), column = mh_matrix_column(lane);
    for (int i = 0; i < 2; i++) {
      a[row][column + i] = lanes[lane]->a[i];
      b[row][column + i] = lanes[lane]->b[i];
      c[row][column + i] = lanes[lane]->c[i];
    }
  }
  for (int row = 0; row < 8; row++)
    for (int k = 0; k < 8; k++)
      for (int column = 0; column < 8; column++) c[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 2; i++) lanes[lane]->c[i] = c[mh_matrix_row(lane)][mh_matrix_column(lane) + i];
}

// One past the last address of this shared object.
static const char* object_end;
static int find_end(dl_phdr_info* info, size_t, void*) {
  const char *base = (const char*)info->dlpi_addr, *end = nullptr;
  bool mine = false;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
    const char* from = base + info->dlpi_phdr[i].p_vaddr;
    const char* to = from + info->dlpi_phdr[i].p_memsz;
    if (to > end) end = to;
    mine |= &load_address >= from && &load_address < to;
  }
  if (mine) object_end = end;
  return mine;
}

// ---- what the compiler's instrumentation calls --------------------------------------------------------------------
static inline void hook(const void* p, uint64_t bytes, bool write, const void* pc) {
  if (quiet) return;
  uint64_t at = uint64_t((const uint8_t*)p - launch->arena);
  if (__builtin_expect(at < launch->arena_bytes, 1)) {
    quietly q;
    if (second_write.waiting) settle();
    if (launch->lockstep && write && at >= launch->group_memory && at < launch->group_memory + launch->group_memory_bytes) {
      current->state = AT_STORE;
      suspend();
    }
    access_arena(at, bytes, write, false, *current, pc, mh_site{nullptr, 0});
    return;
  }
  if (uint64_t((const uint8_t*)p - current->stack) < STACK) return;
  if (!write && (const char*)p >= &load_address && (const char*)p < object_end) return;   // the program's constants, the thread's ids
  quietly q;
  mh_finding f = finding(MH_WILD_ACCESS, pc, mh_site{nullptr, 0});
  f.write = write;
  f.access_bytes = bytes;
  if (uint64_t((const uint8_t*)p - launch->stacks) < launch->stack_bytes) f.detail = "private memory of another thread";
  file(f);
  stop_dispatch();
}
#define PC __builtin_return_address(0)
extern "C" {
#define MH_HOOKS(n) \
  void __tsan_read##n(void* p) { hook(p, n, false, PC); } \
  void __tsan_write##n(void* p) { hook(p, n, true, PC); } \
  void __tsan_unaligned_read##n(void* p) { hook(p, n, false, PC); } \
  void __tsan_unaligned_write##n(void* p) { hook(p, n, true, PC); } \
  void __tsan_volatile_read##n(void* p) { hook(p, n, false, PC); } \
  void __tsan_volatile_write##n(void* p) { hook(p, n, true, PC); } \
  void __tsan_read_write##n(void* p) { hook(p, n, false, PC); hook(p, n, true, PC); } \
  void __tsan_unaligned_read_write##n(void* p) { hook(p, n, false, PC); hook(p, n, true, PC); }
MH_HOOKS(1) MH_HOOKS(2) MH_HOOKS(4) MH_HOOKS(8) MH_HOOKS(16)
void __tsan_read_range(void* p, size_t n) { hook(p, n, false, PC); }
void __tsan_write_range(void* p, size_t n) { hook(p, n, true, PC); }
void* __tsan_memcpy(void* d, const void* s, size_t n) { if (n) { hook(s, n, false, PC); hook(d, n, true, PC); } return memcpy(d, s, n); }
void* __tsan_memmove(void* d, const void* s, size_t n) { if (n) { hook(s, n, false, PC); hook(d, n, true, PC); } return memmove(d, s, n); }
void* __tsan_memset(void* d, int v, size_t n) { if (n) hook(d, n, true, PC); return memset(d, v, n); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

struct ubsan_location { const char* file; uint32_t line, column; };
struct ubsan_type { uint16_t kind, info; char name[1]; };
struct ubsan_mismatch { ubsan_location at; const ubsan_type* type; uint8_t log_alignment, kind; };
struct ubsan_data { ubsan_location at; const ubsan_type* types[2]; };

static void undefined(mh_kind kind, const char* detail, const ubsan_location& at) {
  if (!launch || !current) return;             // a static initialiser
  mh_note(kind, detail, mh_site{at.file, int(at.line)});
}
void __ubsan_handle_type_mismatch_v1(ubsan_mismatch* data, void* p) {
  if (!launch || !current) return;
  quietly q;
  mh_finding f = finding(MH_MISALIGNED, PC, mh_site{data->at.file, int(data->at.line)});
  char text[96];
  __builtin_snprintf(text, sizeof text, "%s wants an address divisible by %u", data->type->name, 1u << data->log_alignment);
  f.detail = text;
  uint64_t at = uint64_t((const uint8_t*)p - launch->arena);
  if (at < launch->arena_bytes) place(f, at, 0);
  file(f);
  stop_dispatch();                             // the access itself may fault
}
void __ubsan_handle_out_of_bounds(ubsan_data* data, uintptr_t index) {
  char text[96];
  __builtin_snprintf(text, sizeof text, "index %ld into %s", long(index), data->types[0]->name);
  if (!launch || !current) return;
  { quietly q; mh_finding f = finding(MH_INDEX, PC, mh_site{data->at.file, int(data->at.line)}); f.detail = text; file(f); }
  stop_dispatch();
}
void __ubsan_handle_shift_out_of_bounds(ubsan_data* data, uintptr_t, uintptr_t) { undefined(MH_ARITHMETIC, "a shift by the width of the type or more", data->at); }
void __ubsan_handle_divrem_overflow(ubsan_data* data, uintptr_t, uintptr_t) { undefined(MH_ARITHMETIC, "an integer division by zero", data->at); stop_dispatch(); }
void __ubsan_handle_add_overflow(ubsan_data* data, uintptr_t, uintptr_t) { undefined(MH_ARITHMETIC, "a signed addition overflows", data->at); }
void __ubsan_handle_sub_overflow(ubsan_data* data, uintptr_t, uintptr_t) { undefined(MH_ARITHMETIC, "a signed subtraction overflows", data->at); }
void __ubsan_handle_mul_overflow(ubsan_data* data, uintptr_t, uintptr_t) { undefined(MH_ARITHMETIC, "a signed multiplication overflows", data->at); }
void __ubsan_handle_negate_overflow(ubsan_data* data, uintptr_t) { undefined(MH_ARITHMETIC, "a signed negation overflows", data->at); }
}

// ---- dispatch ----------------------------------------------------------------------------------------------------
static void set_constant(const mh_constant& c, const mh_function_constant* v) {
  *c.defined = v != nullptr;
  if (!v) { memset(c.value, 0, c.size); return; }
  double number = v->real ? v->number : double(v->integer);
  int64_t integer = v->real ? int64_t(v->number) : v->integer;
  switch (c.kind) {
    case 2: { float f = float(number); memcpy(c.value, c.size == 8 ? (void*)&number : (void*)&f, c.size); break; }
    case 3: *(bool*)c.value = number != 0; break;
    case 4: { uint16_t bits = mh::binary16::encode(float(number)); memcpy(c.value, &bits, 2); break; }
    case 5: { uint16_t bits = mh::brain16::encode(float(number)); memcpy(c.value, &bits, 2); break; }
    default: memcpy(c.value, &integer, c.size);
  }
}

extern "C" __attribute__((visibility("default"))) uint32_t mh_abi_version() { return 1; }
extern "C" __attribute__((visibility("default"))) const mh_kernel* mh_list_kernels(uint32_t* count) { *count = mh_kernel_count; return mh_kernels; }
extern "C" __attribute__((visibility("default"))) const mh_constant* mh_list_constants(uint32_t* count) { *count = mh_constant_count; return mh_constants; }

extern "C" __attribute__((visibility("default"))) void mh_run(uint32_t kernel, mh_launch* l) {
  launch = l;
  if (!object_end) dl_iterate_phdr(find_end, nullptr);
  entry = mh_kernels[kernel].entry;
  stopped = false;
  quiet = 1;
  findings = 0;
  second_write.waiting = false;
  current = nullptr;
  combining = false;
  rng = l->seed;
  region_count = l->region_count;
  hot_region = 0;
  group_memory_used = 4096;
  group_memory_wanted = 0;
  memcpy(regions, l->regions, region_count * sizeof *regions);
  for (uint32_t i = 0; i < mh_constant_count; i++) {
    const mh_function_constant* v = nullptr;
    for (uint32_t k = 0; k < l->constant_count; k++) if (l->constants[k].index == mh_constants[i].index) v = &l->constants[k];
    set_constant(mh_constants[i], v);
  }
  mh_derive_constants();
  for (uint32_t i = 0; i < l->group_count; i++) mh_group_memory(i);

  uint32_t groups[3];
  uint64_t total = 1;
  for (int i = 0; i < 3; i++) { groups[i] = (l->grid[i] + l->threads[i] - 1) / l->threads[i]; total *= groups[i]; }
  uint64_t turn = l->seed && total ? random_below(uint32_t(total < 0xffffffff ? total : 0xffffffff)) : 0;
  for (uint64_t n = 0; n < total && !stopped; n++) {
    // Seeds start elsewhere and go backwards: threadgroups have no order.
    uint64_t g = l->seed ? (total - 1 - n + turn) % total : n;
    uint32_t group[3] = {uint32_t(g % groups[0]), uint32_t(g / groups[0] % groups[1]), uint32_t(g / groups[0] / groups[1])}, size[3];
    for (int i = 0; i < 3; i++) { uint32_t left = l->grid[i] - group[i] * l->threads[i]; size[i] = left < l->threads[i] ? left : l->threads[i]; }
    uint32_t threads = size[0] * size[1] * size[2];
    group_number = l->first_group + uint32_t(g);
    for (uint32_t i = 0; i < threads; i++) {
      fiber& f = fibers[i];
      f.index = i;
      f.lane = i & 31;
      f.simdgroup = i / 32;
      f.threads = threads;
      f.simdgroups = (threads + 31) / 32;
      f.position[0] = i % size[0];
      f.position[1] = i / size[0] % size[1];
      f.position[2] = i / size[0] / size[1];
      memcpy(f.group, group, sizeof group);
      memcpy(f.size, size, sizeof size);
      memcpy(f.nominal, l->threads, sizeof size);
      memcpy(f.groups, groups, sizeof groups);
      memcpy(f.grid, l->grid, sizeof groups);
      f.stack = l->stacks + uint64_t(i) * STACK;
    }
    run_group(threads);
  }
  current = nullptr;
  quiet = 1;
  l->stopped = stopped;
}
