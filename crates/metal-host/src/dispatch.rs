//! Running a kernel over a grid.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::abi;
use crate::arena::{Arena, Scratch};
use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::library::{ConstantValue, Pipeline};
use crate::report::{Finding, Kind, Memory, Other, Report};
use crate::toolchain::locate;

/// What a kernel may do to a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads only; a write is reported.
    Read,
    /// Reads and writes.
    ReadWrite,
    /// Writes every byte: the content is undefined before, and bytes that stay unwritten are reported.
    Overwrite,
}

/// What is bound to one buffer index.
#[derive(Debug, Clone, Copy)]
pub enum Binding<'a> {
    /// Nothing. Legal as long as the kernel does not touch it.
    Empty,
    /// A part of a buffer.
    Buffer {
        /// The buffer.
        buffer: &'a Buffer,
        /// First byte that the kernel sees.
        offset: usize,
        /// Bytes that it may touch; `None` for all up to the buffer's end.
        len: Option<usize>,
        /// What it may do there.
        access: Access,
    },
    /// A copy of up to 4096 bytes, as of a struct of arguments.
    Bytes(&'a [u8]),
}

impl<'a> Binding<'a> {
    /// A whole buffer to read.
    pub fn read(buffer: &'a Buffer) -> Self {
        Binding::Buffer { buffer, offset: 0, len: None, access: Access::Read }
    }

    /// A whole buffer to read and write.
    pub fn read_write(buffer: &'a Buffer) -> Self {
        Binding::Buffer { buffer, offset: 0, len: None, access: Access::ReadWrite }
    }

    /// A whole buffer that the kernel fills.
    pub fn overwrite(buffer: &'a Buffer) -> Self {
        Binding::Buffer { buffer, offset: 0, len: None, access: Access::Overwrite }
    }

    /// The same binding of `len` bytes from `offset`.
    #[must_use]
    pub fn part(self, offset: usize, len: usize) -> Self {
        match self {
            Binding::Buffer { buffer, access, .. } => Binding::Buffer { buffer, offset, len: Some(len), access },
            other => other,
        }
    }
}

/// Size of a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grid {
    /// Whole threadgroups, as `dispatchThreadgroups` takes them.
    Threadgroups([u32; 3]),
    /// Threads, as `dispatchThreads` takes them: threadgroups at the edge may be smaller.
    Threads([u32; 3]),
}

/// How a dispatch is run and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Whether accesses are checked; false is for shaders compiled with checks, to run them without.
    pub checks: bool,
    /// Order of execution: 0 runs threads and threadgroups in order, each other value in another random order.
    pub seed: u64,
    /// Whether the lanes of a simdgroup wait for each other before they store to threadgroup memory. An approximation of
    /// hardware for kernels that lean on it, which the text of MSL does not allow.
    pub lockstep: bool,
    /// Places that are reported at most.
    pub max_findings: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { checks: true, seed: 0, lockstep: false, max_findings: 40 }
    }
}

impl Options {
    /// Default options with a seed.
    pub fn seed(seed: u64) -> Self {
        Options { seed, ..Default::default() }
    }
}

/// The arguments of a dispatch.
#[derive(Debug, Clone, Copy)]
pub struct Dispatch<'a> {
    /// By buffer index.
    pub bindings: &'a [Binding<'a>],
    /// Bytes of threadgroup memory by `[[threadgroup(n)]]` index, in multiples of 16. Together with the kernel's own
    /// variables there are 32 KiB.
    pub threadgroup_bytes: &'a [usize],
    /// Size of the grid.
    pub grid: Grid,
    /// Threads per threadgroup.
    pub group: [u32; 3],
    /// How it is run.
    pub options: Options,
}

/// Numbers of threadgroups, never used twice, so that race state of an earlier dispatch is known to be old. 0 is the
/// state of fresh memory.
static NEXT_GROUP: AtomicU32 = AtomicU32::new(1);

/// Findings after which a dispatch is given up: with that many every thread is wrong.
const FINDING_LIMIT: u32 = 20_000;
/// What `setBytes` takes.
const BYTES_LIMIT: usize = 4096;
/// Threadgroup memory that a threadgroup has on Metal.
const THREADGROUP_LIMIT: usize = 32 << 10;

impl Pipeline {
    /// Runs the kernel over a grid and waits for it.
    ///
    /// # Errors
    /// [`Error::Dispatch`] for sizes and ranges that cannot be; what the kernel itself does wrong is in the report.
    pub fn dispatch(&self, dispatch: &Dispatch) -> Result<Report> {
        let start = Instant::now();
        let prepared = Prepared::new(self, dispatch)?;
        // One dispatch at a time: the shader's state is global, and buffers are locked in the order of their addresses.
        let mut buffers: Vec<&Buffer> = prepared.buffers.iter().map(|(b, ..)| *b).collect();
        buffers.sort_by_key(|b| b.position());
        buffers.dedup_by_key(|b| b.position());
        let _buffer_guards: Vec<_> = buffers.iter().map(|b| b.guard()).collect();
        let _running = self.loaded.running.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = Scratch::take()?;
        let outcome = self.run(dispatch, &prepared, &scratch);
        scratch.put_back();
        let mut report = outcome?;
        report.elapsed = start.elapsed();
        Ok(report)
    }

    fn run(&self, dispatch: &Dispatch, prepared: &Prepared, scratch: &Scratch) -> Result<Report> {
        let arena = Arena::get()?;
        let checks = dispatch.options.checks && self.loaded.checks;
        let constants: Vec<abi::FunctionConstant> = self.constants.iter().map(constant).collect();
        let groups = prepared.grid.iter().zip(prepared.group).map(|(g, t)| u64::from(g.div_ceil(t))).product::<u64>();
        let groups = u32::try_from(groups)
            .map_err(|_| self.refuse("grid", "fewer than 2^32 threadgroups", groups.to_string()))?;
        let first_group = NEXT_GROUP.fetch_add(groups, Ordering::Relaxed);
        if checks {
            for (buffer, offset, len, access) in &prepared.buffers {
                if *access == Access::Overwrite {
                    buffer.poison(*offset, *len);
                }
            }
        }
        let regions = prepared.regions(checks, self);
        let group_bytes: Vec<u32> =
            dispatch.threadgroup_bytes.iter().map(|&b| u32::try_from(b).unwrap_or(u32::MAX)).collect();
        let mut collector = Collector { limit: dispatch.options.max_findings, ..Default::default() };
        let mut launch = abi::Launch {
            arena: arena.base(),
            arena_bytes: arena.len() as u64,
            init: arena.init(),
            cells: arena.cells().cast(),
            group_memory: scratch.group_memory.begin as u64,
            group_memory_bytes: scratch.group_memory.len as u64,
            stacks: scratch.stacks(),
            stack_bytes: (abi::MAX_THREADS * abi::STACK_BYTES) as u64,
            regions: regions.as_ptr(),
            region_count: regions.len() as u32,
            buffer_count: abi::BUFFER_SLOTS as u32,
            buffers: prepared.positions.as_ptr(),
            buffer_bytes: prepared.lengths.as_ptr(),
            group_bytes: group_bytes.as_ptr(),
            group_count: group_bytes.len() as u32,
            constant_count: constants.len() as u32,
            constants: constants.as_ptr(),
            grid: prepared.grid,
            threads: prepared.group,
            seed: dispatch.options.seed,
            checks: u32::from(checks),
            lockstep: u32::from(dispatch.options.lockstep && checks),
            first_group,
            finding_limit: FINDING_LIMIT,
            emit,
            user: (&raw mut collector).cast(),
            accesses: 0,
            switches: 0,
            stopped: 0,
        };
        // SAFETY: every pointer in the launch outlives the call; the ranges of its regions lie in buffers whose guards
        // are held; `running` keeps other dispatches out of this object; `emit` gets the collector it is typed for.
        unsafe { (self.loaded.run)(self.kernel, &mut launch) };
        if checks && launch.stopped == 0 {
            for (buffer, offset, len, access) in &prepared.buffers {
                if *access != Access::Overwrite {
                    continue;
                }
                if let Some((first, missing)) = buffer.unwritten_in(*offset, *len) {
                    collector.found.push(Raw::unwritten(buffer.name(), first, missing, *len));
                }
            }
        }
        Ok(collector.into_report(self, &launch))
    }

    fn refuse(&self, what: &str, expected: &str, found: String) -> Error {
        Error::Dispatch { kernel: self.name.clone(), what: what.into(), expected: expected.into(), found }
    }
}

/// A dispatch whose arguments were checked.
struct Prepared<'a> {
    grid: [u32; 3],
    group: [u32; 3],
    /// Bound parts: buffer, offset, length, access.
    buffers: Vec<(&'a Buffer, usize, usize, Access)>,
    /// The buffer index of each of `buffers`, and whether its content is a copy made for this dispatch.
    slots: Vec<usize>,
    positions: [u64; abi::BUFFER_SLOTS],
    lengths: [u64; abi::BUFFER_SLOTS],
    /// Keeps the copies of `Binding::Bytes` alive.
    copies: Vec<(usize, Buffer)>,
}

impl<'a> Prepared<'a> {
    fn new(pipeline: &Pipeline, dispatch: &Dispatch<'a>) -> Result<Self> {
        let group = dispatch.group;
        let threads = group.iter().map(|&n| u64::from(n)).product::<u64>();
        let limit = match pipeline.info().max_threads {
            0 => abi::MAX_THREADS as u64,
            n => u64::from(n),
        };
        if threads == 0 || threads > limit {
            return Err(pipeline.refuse("threads per threadgroup", &format!("1 to {limit}"), format!("{group:?}")));
        }
        let grid = match dispatch.grid {
            Grid::Threads(t) => t,
            Grid::Threadgroups(g) => {
                let mut t = [0; 3];
                for i in 0..3 {
                    t[i] = g[i].checked_mul(group[i]).ok_or_else(|| {
                        pipeline.refuse("grid", "fewer than 2^32 threads per dimension", format!("{g:?}"))
                    })?;
                }
                t
            }
        };
        let threadgroup_bytes =
            dispatch.threadgroup_bytes.iter().try_fold(0usize, |a, b| a.checked_add(*b)).unwrap_or(usize::MAX);
        if threadgroup_bytes > THREADGROUP_LIMIT {
            return Err(pipeline.refuse(
                "threadgroup memory",
                &format!("up to {THREADGROUP_LIMIT} bytes"),
                format!("{threadgroup_bytes} bytes"),
            ));
        }
        if let Some(odd) = dispatch.threadgroup_bytes.iter().find(|b| **b % 16 != 0) {
            return Err(pipeline.refuse("threadgroup memory", "multiples of 16 bytes", format!("{odd} bytes")));
        }
        if dispatch.bindings.len() > abi::BUFFER_SLOTS {
            return Err(pipeline.refuse(
                "bindings",
                &format!("up to {}", abi::BUFFER_SLOTS),
                dispatch.bindings.len().to_string(),
            ));
        }
        let mut prepared = Prepared {
            grid,
            group,
            buffers: Vec::new(),
            slots: Vec::new(),
            positions: std::array::from_fn(|i| Arena::unbound(i).0 as u64),
            lengths: [0; abi::BUFFER_SLOTS],
            copies: Vec::new(),
        };
        for (i, binding) in dispatch.bindings.iter().enumerate() {
            prepared.bind(pipeline, i, binding)?;
        }
        Ok(prepared)
    }

    /// Takes what is bound to `buffer(i)`.
    fn bind(&mut self, pipeline: &Pipeline, i: usize, binding: &Binding<'a>) -> Result<()> {
        match *binding {
            Binding::Empty => {}
            Binding::Buffer { buffer, offset, len, access } => {
                let len = len.or_else(|| buffer.len().checked_sub(offset));
                let len =
                    len.filter(|l| offset.checked_add(*l).is_some_and(|end| end <= buffer.len())).ok_or_else(|| {
                        let found = format!("offset {offset}, length {len:?}");
                        pipeline.refuse(
                            &format!("buffer({i}) {:?}", buffer.name()),
                            &format!("a range within {} bytes", buffer.len()),
                            found,
                        )
                    })?;
                self.positions[i] = (buffer.position() + offset) as u64;
                self.lengths[i] = len as u64;
                self.buffers.push((buffer, offset, len, if buffer.is_read_only() { Access::Read } else { access }));
                self.slots.push(i);
            }
            Binding::Bytes(bytes) => {
                if bytes.len() > BYTES_LIMIT {
                    let expected = format!("up to {BYTES_LIMIT} bytes; more belongs in a buffer");
                    return Err(pipeline.refuse(
                        &format!("bytes for buffer({i})"),
                        &expected,
                        format!("{} bytes", bytes.len()),
                    ));
                }
                let copy = Buffer::from_bytes("", bytes)?;
                self.positions[i] = copy.position() as u64;
                self.lengths[i] = bytes.len() as u64;
                self.copies.push((i, copy));
            }
        }
        Ok(())
    }

    /// What the kernel may touch. Two parts of one buffer may overlap; a part that another one may write is tracked for
    /// races as well, and its own limits hold for whoever comes through it.
    fn regions(&self, checks: bool, pipeline: &Pipeline) -> Vec<abi::Region> {
        let mut out: Vec<abi::Region> = Vec::new();
        if !checks {
            return out;
        }
        let param = |i: usize| pipeline.info().params.iter().find(|p| p.is_buffer && p.index as usize == i);
        let name_of = |i: usize, own: *const c_char| {
            // SAFETY: names are null-terminated strings of the buffer or of the loaded object.
            let named = !own.is_null() && unsafe { *own } != 0;
            if named { own } else { param(i).map_or(std::ptr::null(), |p| p.name) }
        };
        for (n, (buffer, offset, len, access)) in self.buffers.iter().enumerate() {
            let begin = (buffer.position() + offset) as u64;
            let end = begin + *len as u64;
            let overlaps = |m: usize| {
                let (b, o, l, _) = &self.buffers[m];
                let other = (b.position() + o) as u64;
                other < end && begin < other + *l as u64
            };
            let written = (0..self.buffers.len()).any(|m| self.buffers[m].3 != Access::Read && overlaps(m));
            out.push(abi::Region {
                begin,
                end,
                kind: abi::REGION_BUFFER,
                index: self.slots[n] as u32,
                name: name_of(self.slots[n], buffer.c_name().as_ptr()),
                writable: u8::from(*access != Access::Read),
                tracked: u8::from(written),
                check_init: u8::from(buffer.is_partly_written()),
                quiet: 0,
            });
        }
        // Of overlapping parts the writable one comes first: which pointer an access came through is not known.
        out.sort_by_key(|r| (r.writable == 0, u64::MAX - (r.end - r.begin)));
        for (i, copy) in &self.copies {
            let begin = copy.position() as u64;
            out.push(abi::Region {
                begin,
                end: begin + copy.len() as u64,
                kind: abi::REGION_BUFFER,
                index: *i as u32,
                name: name_of(*i, std::ptr::null()),
                writable: 0,
                tracked: 0,
                check_init: 0,
                quiet: 0,
            });
        }
        for i in (0..abi::BUFFER_SLOTS).filter(|&i| self.lengths[i] == 0) {
            let (begin, end) = Arena::unbound(i);
            out.push(abi::Region {
                begin: begin as u64,
                end: end as u64,
                kind: abi::REGION_UNBOUND,
                index: i as u32,
                name: param(i).map_or(std::ptr::null(), |p| p.name),
                writable: 0,
                tracked: 0,
                check_init: 0,
                quiet: u8::from(param(i).is_some_and(|p| p.conditional)),
            });
        }
        out
    }
}

fn constant(c: &crate::library::FunctionConstant) -> abi::FunctionConstant {
    let (real, value) = match c.value {
        ConstantValue::Bool(b) => (0, abi::Number { integer: i64::from(b) }),
        ConstantValue::Int(n) => (0, abi::Number { integer: n }),
        ConstantValue::Float(x) => (1, abi::Number { number: x }),
    };
    abi::FunctionConstant { index: c.index, real, value }
}

/// A finding before its place is looked up.
struct Raw {
    finding: Finding,
    file: Option<String>,
    line: u32,
    pc: u64,
}

impl Raw {
    fn unwritten(name: &str, first: usize, missing: usize, len: usize) -> Raw {
        let finding = Finding {
            kind: Kind::UnwrittenOutput,
            location: None,
            write: true,
            access_bytes: 0,
            memory: Some(Memory { name: format!("{name:?}"), offset: first as i64, len: len as u64 }),
            threadgroup: [0; 3],
            thread: None,
            other: None,
            detail: Some(format!("{missing} bytes were never written")),
            count: 1,
        };
        Raw { finding, file: None, line: 0, pc: 0 }
    }
}

#[derive(Default)]
struct Collector {
    found: Vec<Raw>,
    seen: HashMap<(u32, u64, u32, u32, u32), usize>,
    limit: usize,
    dropped: u64,
}

/// Called by the runtime for each finding.
///
/// # Safety
/// `user` is a `Collector` that no one else uses, `finding` is valid for the call.
unsafe extern "C" fn emit(user: *mut c_void, finding: *const abi::Finding) {
    // SAFETY: the contract of this function.
    let (collector, finding) = unsafe { (&mut *user.cast::<Collector>(), &*finding) };
    // A panic must not unwind into C++.
    let _ = catch_unwind(AssertUnwindSafe(|| collector.add(finding)));
}

fn text(p: *const c_char) -> Option<String> {
    // SAFETY: strings of a finding are null or null-terminated and live for the call.
    (!p.is_null()).then(|| unsafe { CStr::from_ptr(p) }.to_string_lossy().into_owned())
}

impl Collector {
    fn add(&mut self, f: &abi::Finding) {
        let place = if f.pc != 0 { f.pc } else { f.file as u64 };
        let key = (f.kind, place, f.line, f.region_kind, f.region_index);
        if let Some(&at) = self.seen.get(&key) {
            if let Some(raw) = self.found.get_mut(at) {
                raw.finding.count += 1;
            }
            return;
        }
        if self.found.len() >= self.limit {
            self.dropped += 1;
            return;
        }
        self.seen.insert(key, self.found.len());
        let name = text(f.region_name).filter(|n| !n.is_empty());
        let quoted = name.map_or(String::new(), |n| format!(" {n:?}"));
        let memory = match f.region_kind {
            abi::REGION_BUFFER => Some(format!("buffer({}){quoted}", f.region_index)),
            abi::REGION_THREADGROUP => Some(format!("threadgroup({}){quoted}", f.region_index)),
            abi::REGION_VARIABLE => Some(format!("threadgroup variable{quoted}")),
            abi::REGION_UNBOUND => Some(format!("unbound buffer({}){quoted}", f.region_index)),
            _ => None,
        };
        let other = match f.other_thread {
            abi::NOBODY => None,
            abi::SEVERAL => Some((Other::Several, f.other_wrote != 0)),
            n => Some((Other::Thread(n), f.other_wrote != 0)),
        };
        self.found.push(Raw {
            finding: Finding {
                kind: Kind::from_abi(f.kind),
                location: None,
                write: f.write != 0,
                access_bytes: f.access_bytes,
                memory: memory.map(|name| Memory { name, offset: f.offset, len: f.region_bytes }),
                threadgroup: f.group,
                thread: (f.thread != abi::NOBODY).then_some(f.thread),
                other,
                detail: text(f.detail),
                count: 1,
            },
            file: text(f.file),
            line: f.line,
            pc: f.pc,
        });
    }

    fn into_report(mut self, pipeline: &Pipeline, launch: &abi::Launch) -> Report {
        // A place in this crate's own headers says less than where the shader called them.
        let shader = |r: &Raw| r.file.as_deref().is_some_and(|f| !f.contains("metal_host/"));
        let mut unknown: Vec<u64> = self.found.iter().filter(|r| !shader(r) && r.pc != 0).map(|r| r.pc).collect();
        unknown.sort_unstable();
        unknown.dedup();
        let places: HashMap<u64, Option<String>> =
            unknown.iter().copied().zip(locate(&pipeline.loaded.path, &unknown)).collect();
        for raw in &mut self.found {
            let known = match &raw.file {
                Some(file) if raw.line > 0 => Some(format!("{}:{}", file.rsplit('/').next().unwrap_or(file), raw.line)),
                _ => None,
            };
            raw.finding.location = if shader(raw) { known } else { places.get(&raw.pc).cloned().flatten().or(known) };
        }
        Report {
            kernel: pipeline.name.clone(),
            findings: self.found.into_iter().map(|r| r.finding).collect(),
            dropped: self.dropped,
            stopped: launch.stopped != 0,
            accesses: launch.accesses,
            switches: launch.switches,
            elapsed: Default::default(),
        }
    }
}
