// Switching between stacks. Only what the calling convention preserves across a call is saved.
#pragma once
#include <stdint.h>

extern "C" void mh_switch(void** save, void* to) __attribute__((visibility("hidden")));

#if defined(__x86_64__)
asm(R"(
.text
.globl mh_switch
.hidden mh_switch
.type mh_switch, @function
mh_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size mh_switch, .-mh_switch
)");
// A stack that enters `run` when it is first switched to. The zero above the entry is its return address, which keeps
// the alignment that the convention wants at a function's first instruction.
static inline void* fiber_stack(uint8_t* top, void (*run)()) {
  void** sp = (void**)((uintptr_t)top & ~(uintptr_t)15);
  *--sp = nullptr;
  *--sp = (void*)run;
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  return sp;
}
#elif defined(__aarch64__)
asm(R"(
.text
.globl mh_switch
.hidden mh_switch
.type mh_switch, %function
mh_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size mh_switch, .-mh_switch
)");
static inline void* fiber_stack(uint8_t* top, void (*run)()) {
  uint64_t* sp = (uint64_t*)((uintptr_t)top & ~(uintptr_t)15) - 20;
  for (int i = 0; i < 20; i++) sp[i] = 0;
  sp[11] = (uint64_t)run;                      // x30: where the switch returns to
  return sp;
}
#else
#error "metal-host has no context switch for this processor"
#endif
