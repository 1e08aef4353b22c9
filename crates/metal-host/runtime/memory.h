// What every access of a shader is held against: the regions bound to the dispatch, a byte of state per byte of memory
// (written or not) and, where threads may conflict, who last wrote and read each byte.
#pragma once
#include <string.h>
#include "fiber.h"
#include "include/metal_host/abi.h"

enum fiber_state : uint8_t { READY, AT_BARRIER, AT_SIMD_BARRIER, AT_COLLECTIVE, AT_STORE, DONE };

struct fiber : mh_thread {
  void* sp;
  uint8_t* stack;
  fiber_state state;
  bool needs_all;
  mh_scope scope;
  uint32_t flags;
  const char* what;
  mh_site site;
  uint64_t call;                               // tells calls apart: what is called, and where
  void* payload;
  mh_combine combine;
  // Operations that need the whole simdgroup but move no data between lanes do not wait; what each lane has gone
  // through is compared when the simdgroup meets next.
  uint64_t path;
  const char* path_what;
  mh_site path_site;
};

// The barriers that order an access: of the threadgroup, and of the thread's simdgroup.
struct stamp { uint32_t group; uint16_t who, barrier, simd_barrier, unused; };
struct mh_cell { stamp write, read; };
static_assert(sizeof(mh_cell) == 24, "src/arena.rs reserves 24 bytes per byte");
// Values of `who` beside an index: nobody, several simdgroups, several lanes of the simdgroup in the low bits.
static const uint16_t NOBODY = 0x7fff, MANY = 0x7ffe, MANY_LANES = 0x4000, ATOMIC = 0x8000;

static inline uint64_t call_of(const char* what, mh_site site) {
  return ((uint64_t)what * 31 + (uint64_t)site.file) * 31 + (uint64_t)site.line;
}

static const uint32_t MAX_THREADS = 1024, MAX_REGIONS = 256;
static const uint64_t STACK = 256 << 10;

static fiber fibers[MAX_THREADS];
static fiber* current;
static void* scheduler_sp;
static mh_launch* launch;
static bool stopped;                            // the dispatch cannot go on
static int quiet = 1;
static uint32_t group_number, findings;
static uint16_t barriers[2], simd_barriers[32][2];  // counts per kind of memory: 0 device, 1 threadgroup
static mh_region regions[MAX_REGIONS];
static uint32_t region_count, hot_region;
static uint64_t group_memory_used, group_memory_wanted;
// What a threadgroup has on Metal.
static const uint64_t GROUP_MEMORY_LIMIT = 32 << 10;

struct quietly {
  quietly() { quiet++; }
  ~quietly() { quiet--; }
};

[[noreturn]] static void stop_dispatch() {
  stopped = true;
  quiet = 1;
  mh_switch(&current->sp, scheduler_sp);
  __builtin_trap();
}

// The first byte of this shared object, which the linker provides.
extern const char load_address __asm__("__ehdr_start") __attribute__((visibility("hidden")));

static mh_finding finding(mh_kind kind, const void* pc, mh_site site) {
  mh_finding f{};
  f.kind = kind;
  f.other_thread = MH_NOBODY;
  f.file = site.file;
  f.line = uint32_t(site.line);
  f.pc = pc ? uint64_t((const char*)pc - &load_address) - 1 : 0;
  if (current) { f.thread = current->index; memcpy(f.group, current->group, sizeof f.group); }
  else f.thread = MH_NOBODY;
  return f;
}
static void file(const mh_finding& f) {
  launch->emit(launch->user, &f);
  if (++findings >= launch->finding_limit) stopped = true;
}

static const mh_region* region_at(uint64_t at) {
  const mh_region* hot = &regions[hot_region];
  if (hot_region < region_count && at >= hot->begin && at < hot->end) return hot;
  for (uint32_t i = 0; i < region_count; i++)
    if (at >= regions[i].begin && at < regions[i].end) { hot_region = i; return &regions[i]; }
  return nullptr;
}
// The region an access most likely meant: the one it is closest to.
static void place(mh_finding& f, uint64_t at, uint64_t bytes) {
  const mh_region* best = nullptr;
  uint64_t distance = 1 << 20;
  for (uint32_t i = 0; i < region_count; i++) {
    const mh_region& r = regions[i];
    if (r.kind == MH_REGION_UNBOUND && (at < r.begin || at >= r.end)) continue;
    uint64_t d = at < r.begin ? r.begin - at : at >= r.end ? at - r.end + 1 : 0;
    if (d < distance) { distance = d; best = &r; }
  }
  f.access_bytes = bytes;
  if (!best) return;
  f.region_kind = best->kind;
  f.region_index = best->index;
  f.region_name = best->name;
  f.offset = int64_t(at) - int64_t(best->begin);
  f.region_bytes = best->end - best->begin;
}

static uint32_t simdgroup_of(uint16_t who) { return (who & MANY_LANES) ? who & 0xff : (who & 0x3ff) / 32; }

// Whether the access of a stamp happens before anything the thread does now.
static bool ordered(const stamp& s, const mh_thread& t, bool group_memory) {
  uint16_t who = s.who & ~ATOMIC;
  if (who == NOBODY || s.group < launch->first_group) return true;
  if (s.group != group_number) return group_memory;
  if (who == t.index || s.barrier != barriers[group_memory]) return true;
  return who != MANY && simdgroup_of(who) == t.simdgroup && s.simd_barrier != simd_barriers[t.simdgroup][group_memory];
}

// A conflict between two writes is filed after the second store: writing one value twice is another thing than losing one.
static struct { const uint8_t* at; uint32_t bytes; uint8_t before[64]; mh_finding f; bool waiting; } second_write;
static void settle() {
  if (!second_write.waiting) return;
  second_write.waiting = false;
  if (memcmp(second_write.at, second_write.before, second_write.bytes) == 0) second_write.f.kind = MH_SAME_VALUE_WRITE;
  file(second_write.f);
}

static void conflict(const stamp& s, const mh_thread& t, uint64_t at, uint64_t bytes, bool write, bool atomic,
    bool other_wrote, const void* pc, mh_site site) {
  uint16_t who = s.who & ~ATOMIC;
  bool same_group = s.group == group_number;
  mh_kind kind = !same_group ? MH_RACE_GRID : who != MANY && simdgroup_of(who) == t.simdgroup ? MH_RACE_SIMDGROUP : MH_RACE_THREADGROUP;
  mh_finding f = finding(kind, pc, site);
  f.thread = t.index;
  f.write = write;
  f.atomic = atomic;
  place(f, at, bytes);
  f.other_thread = who >= MANY_LANES ? MH_SEVERAL : who;
  f.other_wrote = other_wrote;
  const uint8_t* p = launch->arena + at;
  if (write && other_wrote && !atomic && bytes <= sizeof second_write.before && !second_write.waiting) {
    second_write.at = p;
    second_write.bytes = uint32_t(bytes);
    memcpy(second_write.before, p, bytes);
    second_write.f = f;
    second_write.waiting = true;
  } else file(f);
}

// What a byte's cell becomes by an access; reports a conflict with what it says, unless one was reported before.
static inline void race_check_byte(mh_cell* cell, const stamp& now, bool write, bool atomic, bool group_memory, bool& reported,
    uint64_t at, uint64_t bytes, const mh_thread& t, const void* pc, mh_site site) {
  bool both_atomic = atomic && (cell->write.who & ATOMIC);
  if (!both_atomic && !reported && !ordered(cell->write, t, group_memory)) {
    conflict(cell->write, t, at, bytes, write, atomic, true, pc, site);
    reported = true;
  }
  bool reads_atomic = atomic && (cell->read.who & ATOMIC);
  if (write && !reads_atomic && !reported && !ordered(cell->read, t, group_memory)) {
    conflict(cell->read, t, at, bytes, write, atomic, false, pc, site);
    reported = true;
  }
  if (write) {
    cell->write = now;
    if (reported) cell->read.who = NOBODY;
    return;
  }
  stamp& r = cell->read;
  uint16_t who = r.who & ~ATOMIC;
  if (who == NOBODY || r.group != group_number || r.barrier != now.barrier || who == t.index) { r = now; return; }
  if (who == MANY) return;
  if (simdgroup_of(who) != t.simdgroup) { r.who = MANY; return; }
  // A read before the last simdgroup barrier orders like this one for other simdgroups and is settled for this one.
  if (r.simd_barrier != now.simd_barrier) r = now;
  else r.who = uint16_t(MANY_LANES | t.simdgroup | (atomic && (r.who & ATOMIC) ? ATOMIC : 0));
}

static void race_check(uint64_t at, uint64_t bytes, bool write, bool atomic, bool group_memory, const mh_thread& t, const void* pc, mh_site site) {
  mh_cell* cell = (mh_cell*)launch->cells + at;
  const stamp now{group_number, uint16_t(t.index | (atomic ? ATOMIC : 0)), barriers[group_memory], simd_barriers[t.simdgroup][group_memory], 0};
  bool reported = false;
  // The bytes of an access mostly have one history: what the first becomes, those with the same state become.
  const mh_cell before = cell[0];
  race_check_byte(&cell[0], now, write, atomic, group_memory, reported, at, bytes, t, pc, site);
  for (uint64_t i = 1; i < bytes; i++) {
    if (memcmp(&cell[i], &before, sizeof before) == 0) cell[i] = cell[0];
    else race_check_byte(&cell[i], now, write, atomic, group_memory, reported, at, bytes, t, pc, site);
  }
}

// An access to arena position `at`.
static void access_arena(uint64_t at, uint64_t bytes, bool write, bool atomic, const mh_thread& t, const void* pc, mh_site site) {
  launch->accesses++;
  const mh_region* r = region_at(at);
  // Parts of one buffer may overlap; another one may allow what this one does not.
  if (__builtin_expect(r && (at + bytes > r->end || (write && !r->writable)), 0))
    for (uint32_t i = 0; i < region_count; i++)
      if (at >= regions[i].begin && at + bytes <= regions[i].end && (!write || regions[i].writable)) { r = &regions[i]; break; }
  if (__builtin_expect(!r || at + bytes > r->end, 0)) {
    mh_finding f = finding(MH_OUT_OF_BOUNDS, pc, site);
    f.thread = t.index;
    f.write = write;
    place(f, at, bytes);
    file(f);
    if (write || stopped) stop_dispatch();
    return;
  }
  if (__builtin_expect(write && !r->writable, 0)) {
    mh_finding f = finding(r->kind == MH_REGION_UNBOUND ? MH_UNBOUND : MH_READ_ONLY_WRITE, pc, site);
    f.thread = t.index;
    f.write = true;
    place(f, at, bytes);
    file(f);
    stop_dispatch();
  }
  if (r->kind == MH_REGION_UNBOUND) {
    if (r->quiet) return;
    mh_finding f = finding(MH_UNBOUND, pc, site);
    place(f, at, bytes);
    file(f);
    return;
  }
  uint8_t* init = launch->init + at;
  if (write) { if (r->check_init) memset(init, 1, bytes); }
  else if (r->check_init) for (uint64_t i = 0; i < bytes; i++) if (!init[i]) {
    mh_finding f = finding(MH_UNINITIALISED, pc, site);
    f.thread = t.index;
    place(f, at + i, bytes);
    file(f);
    memset(init + i, 1, bytes - i);
    break;
  }
  if (r->tracked) race_check(at, bytes, write, atomic, r->kind != MH_REGION_BUFFER, t, pc, site);
  if (__builtin_expect(stopped, 0)) stop_dispatch();
}
