//! Read-only memory maps of files, shared by reference count.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::{MlxError, Result};

/// The bytes of a file, mapped read-only; clones share the map.
///
/// Nothing is read at [`open`](Self::open): pages come in from the file (or from the system's page cache) when they are first
/// touched, and the system may drop them again under memory pressure, since they can be read back.
///
/// # When the file changes underneath
///
/// A map shows the file, not a copy of it. The size is taken once, when the map is made; whoever interprets the bytes checks
/// against that size. If another process later
///
/// - **overwrites** the file in place, reads see new or mixed bytes: wrong numbers, but never an access outside the map;
/// - **truncates** it, touching a page beyond the new end raises `SIGBUS` (on Windows an in-page error), which ends the process.
///   No check in this process can prevent it, because the truncation may come between the check and the access;
/// - **replaces** it by renaming another file over it, or deletes it, nothing happens: the map keeps the old file alive.
///
/// So replace model files by rename, as this crate's own writers do, and never truncate or rewrite them in place.
#[derive(Clone)]
pub struct FileMap(Arc<Source>);

enum Source {
    Mapped(Mmap),
    Memory(Arc<[u8]>),
}

impl FileMap {
    /// Maps a whole file.
    ///
    /// # Errors
    /// [`MlxError::IoError`] if the file cannot be opened or mapped, or is not a regular file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |source| MlxError::io(path, source);
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(io(Error::new(ErrorKind::InvalidInput, "not a regular file")));
        }
        if metadata.len() == 0 {
            return Ok(Self::from_bytes([]));
        }
        let len = usize::try_from(metadata.len())
            .map_err(|_| io(Error::new(ErrorKind::FileTooLarge, "larger than the address space")))?;
        // SAFETY: the map is read-only and private to `Source`, which only lends it as `&[u8]`. It covers `len` bytes, the
        // file's size just now, so every index into the slice lies in the map. What the language asks beyond that, that the
        // bytes do not change while borrowed, is the documented condition on the file above: the readers of this crate
        // never index by a value from the map without checking it after it was read, so a file that is overwritten leads to
        // wrong values or an error and not to an access out of bounds.
        let map = unsafe { memmap2::MmapOptions::new().len(len).map(&file) }.map_err(io)?;
        // What the system reads from now on it keeps in large pages, if it has them for files: reading it the first time takes half as long, and
        // every pass over the weights misses the table of addresses less often. What it holds in small pages already stays as it is.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self(Arc::new(Source::Mapped(map))))
    }

    /// The same interface over bytes in memory.
    pub fn from_bytes(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self(Arc::new(Source::Memory(bytes.into())))
    }

    /// Whether the bytes are a mapped file (and start on a page boundary) rather than memory of this process.
    pub fn is_mapped(&self) -> bool {
        matches!(*self.0, Source::Mapped(_))
    }

    /// Asks the system to start reading a range of the file in the background, so that first touches do not wait one by one.
    ///
    /// A hint: a range outside the map, a failure, or a system without such a call is ignored.
    pub fn prefetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Source::Mapped(map) = &*self.0
            && range.start < range.end
            && range.end <= map.len()
        {
            // Failure means only that the pages come in when touched.
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.end - range.start);
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &*self.0 {
            Source::Mapped(map) => map,
            Source::Memory(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for FileMap {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for FileMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.is_mapped() { "mapped" } else { "memory" };
        write!(f, "FileMap({kind}, {} bytes)", self.len())
    }
}
