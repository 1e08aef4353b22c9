// The C interface between a compiled shader, the runtime that is linked into the same library, and the Rust side.
// src/abi.rs mirrors every struct here.
#pragma once
#include <stddef.h>
#include <stdint.h>

// Where in the shader something happens; as a default argument it names the line of the call.
struct mh_site {
  const char* file;
  int line;
  static constexpr mh_site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// What a kernel parameter receives.
enum mh_source : uint32_t {
  MH_BUFFER, MH_THREADGROUP_MEMORY,
  MH_THREAD_POSITION_IN_GRID, MH_THREAD_POSITION_IN_THREADGROUP, MH_THREADGROUP_POSITION_IN_GRID,
  MH_THREADS_PER_THREADGROUP, MH_DISPATCH_THREADS_PER_THREADGROUP, MH_THREADGROUPS_PER_GRID, MH_THREADS_PER_GRID,
  MH_THREAD_INDEX_IN_THREADGROUP, MH_THREAD_INDEX_IN_SIMDGROUP, MH_SIMDGROUP_INDEX_IN_THREADGROUP,
  MH_SIMDGROUPS_PER_THREADGROUP, MH_THREADS_PER_SIMDGROUP,
  MH_QUADGROUP_INDEX_IN_THREADGROUP, MH_THREAD_INDEX_IN_QUADGROUP, MH_QUADGROUPS_PER_THREADGROUP,
};

enum mh_scope : uint32_t { MH_SCOPE_THREADGROUP, MH_SCOPE_SIMDGROUP, MH_SCOPE_THREAD };

// Kinds of finding; the order is that of report::Kind in Rust.
enum mh_kind : uint32_t {
  MH_OUT_OF_BOUNDS, MH_READ_ONLY_WRITE, MH_MISALIGNED, MH_UNINITIALISED, MH_BARRIER_DIVERGENCE, MH_SIMD_DIVERGENCE,
  MH_RACE_SIMDGROUP, MH_RACE_THREADGROUP, MH_RACE_GRID, MH_SAME_VALUE_WRITE, MH_WILD_ACCESS, MH_UNBOUND, MH_INDEX,
  MH_ARITHMETIC, MH_ARGUMENT, MH_TENSOR, MH_UNWRITTEN_OUTPUT,
};

enum mh_region_kind : uint32_t { MH_REGION_NONE, MH_REGION_BUFFER, MH_REGION_THREADGROUP, MH_REGION_VARIABLE, MH_REGION_UNBOUND };

struct mh_thread {
  uint32_t index, lane, simdgroup;             // within the threadgroup
  uint32_t threads, simdgroups;                // of this threadgroup, which is smaller at the edge of a grid of threads
  uint32_t group[3], position[3], size[3];     // of the threadgroup in the grid, of the thread in it, of the threadgroup
  uint32_t nominal[3], groups[3], grid[3];     // threads per full threadgroup, threadgroups per grid, threads per grid
};

struct mh_param {
  uint32_t source, index;
  const char* name;
  uint32_t conditional;                        // carries [[function_constant]]: may be left unbound and still be read
};

struct mh_kernel {
  const char* name;
  void (*entry)();
  const mh_param* params;
  uint32_t param_count, max_threads;           // max_threads: 0 when the kernel does not limit it
};

struct mh_constant {
  uint32_t index, kind, size;                  // kind: 0 signed, 1 unsigned, 2 float, 3 bool, 4 half, 5 bfloat
  void* value;
  bool* defined;
  const char* name;
};

// A stretch of the arena that the running kernel may touch; positions are relative to the arena.
struct mh_region {
  uint64_t begin, end;
  uint32_t kind, index;
  const char* name;
  uint8_t writable, tracked, check_init, quiet; // tracked: two threads may conflict here; quiet: reads are never reported
};

struct mh_function_constant {
  uint32_t index, real;                        // real: the value is a double, else an int64
  union { int64_t integer; double number; };
};

struct mh_finding {
  uint32_t kind, write, atomic;
  uint32_t thread, group[3];
  const char* file;                            // null when only pc is known
  uint32_t line;
  uint64_t pc;                                 // relative to the library's load address; 0 when unknown
  uint32_t region_kind, region_index;
  const char* region_name;
  int64_t offset;                              // of the access within the region
  uint64_t region_bytes, access_bytes;
  uint32_t other_thread;                       // MH_NOBODY, MH_SEVERAL or an index
  uint32_t other_wrote;
  const char* detail;
};
#define MH_NOBODY 0xffffffffu
#define MH_SEVERAL 0xfffffffeu

struct mh_launch {
  uint8_t* arena;
  uint64_t arena_bytes;
  uint8_t* init;                               // one byte per byte of the arena: 1 = written
  void* cells;                                 // one mh_cell per byte of the arena
  uint64_t group_memory, group_memory_bytes;   // where threadgroup memory lies in the arena
  uint8_t* stacks;
  uint64_t stack_bytes;
  const mh_region* regions;
  uint32_t region_count;
  uint32_t buffer_count;
  const uint64_t* buffers;                     // arena position per buffer index
  const uint64_t* buffer_bytes;                // 0 when unbound
  const uint32_t* group_bytes;                 // size per threadgroup argument
  uint32_t group_count;
  uint32_t constant_count;
  const mh_function_constant* constants;
  uint32_t grid[3], threads[3];                // threads in the grid, threads per threadgroup
  uint64_t seed;
  uint32_t checks, lockstep;
  uint32_t first_group;                        // number of the first threadgroup; numbers are never used twice
  uint32_t finding_limit;
  void (*emit)(void* user, const mh_finding*);
  void* user;
  uint64_t accesses, switches;                 // out
  uint32_t stopped;                            // out: the dispatch was given up
};

// Which element of an 8x8 matrix a lane holds, and the one to its right: the order observed on Apple GPUs.
static inline int mh_matrix_row(int lane) { return (lane / 4 & 4) + (lane / 2 & 3); }
static inline int mh_matrix_column(int lane) { return (lane / 4 & 2) * 2 + (lane & 1) * 2; }
// A lane's elements of c += a b.
struct mh_matrix_operands { float a[2], b[2], c[2]; };

extern "C" {
extern mh_thread* mh_self;                     // the running thread

void mh_barrier(mh_scope scope, uint32_t flags, mh_site site);
// Waits until the scope's threads have arrived; the last one calls combine(payloads, count), null for absent threads.
typedef void (*mh_combine)(void** payloads, uint32_t count);
void mh_collective(mh_scope scope, const char* what, void* payload, mh_combine combine, bool needs_all, mh_site site);
// Notes that the whole simdgroup has to come by here, without waiting for it.
void mh_together(const char* what, mh_site site);
// Combines mh_matrix_operands over a simdgroup, in float.
void mh_multiply_matrices(void** payloads, uint32_t count);
// Files an access as done by thread `index` of the running threadgroup.
void mh_access(uint32_t index, const void* p, size_t bytes, bool write, bool atomic, mh_site site);
void mh_note(mh_kind kind, const char* detail, mh_site site);
void* mh_threadgroup_variable(uint32_t id, const char* name, size_t bytes, size_t align);
void* mh_buffer(uint32_t index, const char* name, size_t expected_bytes);
void* mh_group_memory(uint32_t index);
uint64_t mh_seed();
void mh_quiet(int step);                       // +1: hooks off, -1: back on
}
