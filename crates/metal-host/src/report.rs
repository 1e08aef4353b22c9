//! What a dispatch did wrong, in words.

use std::fmt;
use std::time::Duration;

/// Kinds of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// An access outside of everything bound, or across the end of what is bound.
    OutOfBounds,
    /// A write to a buffer that is marked or bound read-only.
    ReadOnlyWrite,
    /// An access whose address is not a multiple of what its type demands.
    Misaligned,
    /// A read of memory, of a simdgroup matrix or of a cooperative tensor that was never given a value.
    Uninitialised,
    /// A barrier that some threads do not reach.
    BarrierDivergence,
    /// A simdgroup or tensor operation that needs lanes which are elsewhere.
    SimdDivergence,
    /// Two lanes of one simdgroup, one of them writing, with no simdgroup barrier in between.
    RaceInSimdgroup,
    /// Two threads of one threadgroup, one of them writing, with no threadgroup barrier in between.
    RaceInThreadgroup,
    /// Two threadgroups, one of them writing; nothing orders them within a dispatch.
    RaceAcrossThreadgroups,
    /// Two threads write the same value: undefined in the text of MSL, harmless in practice. A note, not an error.
    SameValueWrite,
    /// An access to memory that belongs to no buffer at all, or to another thread's private memory.
    WildAccess,
    /// An access through a buffer argument that nothing is bound to.
    UnboundBuffer,
    /// An index beyond an array, vector or matrix of known size.
    Index,
    /// A shift by too much, a division by zero, an overflow of signed integers.
    Arithmetic,
    /// An argument that does not fit the kernel's parameter.
    Argument,
    /// A tensor operation whose operands or scope are not what it demands.
    Tensor,
    /// Bytes of an output bound with [`Access::Overwrite`](crate::Access::Overwrite) that no thread wrote.
    UnwrittenOutput,
}

const KINDS: [Kind; 17] = [
    Kind::OutOfBounds,
    Kind::ReadOnlyWrite,
    Kind::Misaligned,
    Kind::Uninitialised,
    Kind::BarrierDivergence,
    Kind::SimdDivergence,
    Kind::RaceInSimdgroup,
    Kind::RaceInThreadgroup,
    Kind::RaceAcrossThreadgroups,
    Kind::SameValueWrite,
    Kind::WildAccess,
    Kind::UnboundBuffer,
    Kind::Index,
    Kind::Arithmetic,
    Kind::Argument,
    Kind::Tensor,
    Kind::UnwrittenOutput,
];

impl Kind {
    pub(crate) fn from_abi(n: u32) -> Kind {
        KINDS.get(n as usize).copied().unwrap_or(Kind::Argument)
    }

    fn describe(self) -> &'static str {
        match self {
            Kind::OutOfBounds => "out of bounds",
            Kind::ReadOnlyWrite => "write to read-only memory",
            Kind::Misaligned => "misaligned access",
            Kind::Uninitialised => "use of a value that was never written",
            Kind::BarrierDivergence => "barrier that not all threads reach",
            Kind::SimdDivergence => "simdgroup operation that not all lanes reach",
            Kind::RaceInSimdgroup => "race inside a simdgroup",
            Kind::RaceInThreadgroup => "race inside a threadgroup",
            Kind::RaceAcrossThreadgroups => "race across threadgroups",
            Kind::SameValueWrite => "several threads write one value",
            Kind::WildAccess => "access outside of device memory",
            Kind::UnboundBuffer => "access to a buffer that is not bound",
            Kind::Index => "index beyond the end",
            Kind::Arithmetic => "arithmetic",
            Kind::Argument => "argument",
            Kind::Tensor => "tensor operation",
            Kind::UnwrittenOutput => "output not written",
        }
    }
}

/// Which memory a finding is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// `buffer(2) "x"`, `threadgroup(0)`, `threadgroup variable "tile"`.
    pub name: String,
    /// Byte position of the access; negative before the start.
    pub offset: i64,
    /// Bytes that the memory has.
    pub len: u64,
}

/// Another thread that takes part in a race.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// The thread of this index in its threadgroup.
    Thread(u32),
    /// More than one.
    Several,
}

/// One thing that a dispatch did wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// `file:line` of the shader; several, innermost first, where functions were inlined.
    pub location: Option<String>,
    /// Whether the access writes.
    pub write: bool,
    /// Bytes of the access; 0 when it is none.
    pub access_bytes: u64,
    /// The memory it is about.
    pub memory: Option<Memory>,
    /// Position of the threadgroup in the grid.
    pub threadgroup: [u32; 3],
    /// Index of the thread in its threadgroup.
    pub thread: Option<u32>,
    /// The other thread of a race, and whether it wrote.
    pub other: Option<(Other, bool)>,
    /// More words.
    pub detail: Option<String>,
    /// How often it happened at this place.
    pub count: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind.describe())?;
        if let Some(l) = &self.location {
            write!(f, " at {l}")?;
        }
        if let Some(m) = &self.memory {
            let verb = if self.write { "write" } else { "read" };
            if self.access_bytes > 0 {
                write!(f, ": {verb} of {} bytes at {} of {} ({} bytes)", self.access_bytes, m.offset, m.name, m.len)?;
            } else {
                write!(f, ": byte {} of {} ({} bytes)", m.offset, m.name, m.len)?;
            }
        } else if self.access_bytes > 0 {
            write!(f, ": {} of {} bytes", if self.write { "write" } else { "read" }, self.access_bytes)?;
        }
        if let Some((other, wrote)) = self.other {
            let verb = if wrote { "written" } else { "read" };
            match other {
                Other::Thread(n) => write!(f, ", {verb} by thread {n}")?,
                Other::Several => write!(f, ", {verb} by several threads")?,
            }
            if self.kind == Kind::RaceAcrossThreadgroups {
                write!(f, " of another threadgroup")?;
            }
        }
        if let Some(d) = &self.detail {
            write!(f, ": {d}")?;
        }
        if let Some(t) = self.thread {
            write!(f, " [thread {t} (simdgroup {}, lane {}) of threadgroup {:?}]", t / 32, t % 32, self.threadgroup)?;
        }
        if self.count > 1 {
            write!(f, " and {} more", self.count - 1)?;
        }
        Ok(())
    }
}

/// The outcome of a dispatch that ran.
#[derive(Debug, Clone)]
#[must_use = "a report says what the kernel did wrong"]
pub struct Report {
    /// The kernel's name.
    pub kernel: String,
    /// What it did wrong, in the order of discovery; one entry per place and kind.
    pub findings: Vec<Finding>,
    /// Findings at further places, beyond those that are kept.
    pub dropped: u64,
    /// Whether the dispatch was given up, so that memory holds a part of the result only.
    pub stopped: bool,
    /// Accesses to device and threadgroup memory that were checked.
    pub accesses: u64,
    /// Switches between threads.
    pub switches: u64,
    /// Time that the dispatch took.
    pub elapsed: Duration,
}

impl Report {
    /// Whether there is nothing but notes ([`Kind::SameValueWrite`]).
    pub fn is_clean(&self) -> bool {
        !self.stopped && self.findings.iter().all(|f| f.kind == Kind::SameValueWrite)
    }

    /// The first finding of a kind.
    pub fn find(&self, kind: Kind) -> Option<&Finding> {
        self.findings.iter().find(|f| f.kind == kind)
    }

    /// Turns findings into an error.
    ///
    /// # Errors
    /// [`Error::Findings`](crate::Error::Findings) unless the report [is clean](Self::is_clean).
    pub fn into_result(self) -> crate::Result<Report> {
        if self.is_clean() { Ok(self) } else { Err(crate::Error::Findings(Box::new(self))) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.findings.is_empty() {
            return write!(f, "{}: no findings in {} accesses", self.kernel, self.accesses);
        }
        write!(f, "{}: {} findings", self.kernel, self.findings.len())?;
        if self.dropped > 0 {
            write!(f, " (and {} more)", self.dropped)?;
        }
        if self.stopped {
            write!(f, ", given up")?;
        }
        for finding in &self.findings {
            write!(f, "\n  {finding}")?;
        }
        Ok(())
    }
}
