//! Mirror of `runtime/include/metal_host/abi.h`.

use std::ffi::{c_char, c_void};

pub(crate) const VERSION: u32 = 1;
pub(crate) const MAX_THREADS: usize = 1024;
pub(crate) const STACK_BYTES: usize = 256 << 10;
/// Bytes of race state per byte of memory (`mh_cell`).
pub(crate) const CELL_BYTES: usize = 24;
/// Buffer indices that a kernel can use on Metal.
pub(crate) const BUFFER_SLOTS: usize = 31;
pub(crate) const NOBODY: u32 = u32::MAX;
pub(crate) const SEVERAL: u32 = u32::MAX - 1;

pub(crate) const SOURCE_BUFFER: u32 = 0;
pub(crate) const REGION_BUFFER: u32 = 1;
pub(crate) const REGION_THREADGROUP: u32 = 2;
pub(crate) const REGION_VARIABLE: u32 = 3;
pub(crate) const REGION_UNBOUND: u32 = 4;

#[repr(C)]
pub(crate) struct Param {
    pub source: u32,
    pub index: u32,
    pub name: *const c_char,
    pub conditional: u32,
}

#[repr(C)]
pub(crate) struct Kernel {
    pub name: *const c_char,
    pub entry: *const c_void,
    pub params: *const Param,
    pub param_count: u32,
    pub max_threads: u32,
}

#[repr(C)]
pub(crate) struct Constant {
    pub index: u32,
    pub kind: u32,
    pub size: u32,
    pub value: *mut c_void,
    pub defined: *mut bool,
    pub name: *const c_char,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Region {
    pub begin: u64,
    pub end: u64,
    pub kind: u32,
    pub index: u32,
    pub name: *const c_char,
    pub writable: u8,
    pub tracked: u8,
    pub check_init: u8,
    pub quiet: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) union Number {
    pub integer: i64,
    pub number: f64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FunctionConstant {
    pub index: u32,
    pub real: u32,
    pub value: Number,
}

#[repr(C)]
pub(crate) struct Finding {
    pub kind: u32,
    pub write: u32,
    pub atomic: u32,
    pub thread: u32,
    pub group: [u32; 3],
    pub file: *const c_char,
    pub line: u32,
    pub pc: u64,
    pub region_kind: u32,
    pub region_index: u32,
    pub region_name: *const c_char,
    pub offset: i64,
    pub region_bytes: u64,
    pub access_bytes: u64,
    pub other_thread: u32,
    pub other_wrote: u32,
    pub detail: *const c_char,
}

#[repr(C)]
pub(crate) struct Launch {
    pub arena: *mut u8,
    pub arena_bytes: u64,
    pub init: *mut u8,
    pub cells: *mut c_void,
    pub group_memory: u64,
    pub group_memory_bytes: u64,
    pub stacks: *mut u8,
    pub stack_bytes: u64,
    pub regions: *const Region,
    pub region_count: u32,
    pub buffer_count: u32,
    pub buffers: *const u64,
    pub buffer_bytes: *const u64,
    pub group_bytes: *const u32,
    pub group_count: u32,
    pub constant_count: u32,
    pub constants: *const FunctionConstant,
    pub grid: [u32; 3],
    pub threads: [u32; 3],
    pub seed: u64,
    pub checks: u32,
    pub lockstep: u32,
    pub first_group: u32,
    pub finding_limit: u32,
    pub emit: unsafe extern "C" fn(*mut c_void, *const Finding),
    pub user: *mut c_void,
    pub accesses: u64,
    pub switches: u64,
    pub stopped: u32,
}

pub(crate) type AbiVersion = unsafe extern "C" fn() -> u32;
pub(crate) type ListKernels = unsafe extern "C" fn(*mut u32) -> *const Kernel;
pub(crate) type ListConstants = unsafe extern "C" fn(*mut u32) -> *const Constant;
pub(crate) type Run = unsafe extern "C" fn(u32, *mut Launch);
