//! What the writers of model files share: where data comes from, and files that are whole or not there.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{MlxError, Result};

/// Where a tensor's bytes come from.
pub struct TensorData<'a>(pub(super) Source<'a>);

pub(super) enum Source<'a> {
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
    Stream(Box<Callback<'a>>),
}

impl fmt::Debug for TensorData<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Borrowed(bytes) => write!(f, "TensorData({} borrowed bytes)", bytes.len()),
            Source::Owned(bytes) => write!(f, "TensorData({} bytes)", bytes.len()),
            Source::Stream(_) => f.write_str("TensorData(a stream)"),
        }
    }
}

pub(super) type Callback<'a> = dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a;

impl<'a> TensorData<'a> {
    /// Bytes that a callback writes when the tensor's turn comes; it has to write exactly the tensor's size.
    pub fn stream(write: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'a) -> Self {
        TensorData(Source::Stream(Box::new(write)))
    }
}

impl<'a> From<&'a [u8]> for TensorData<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        TensorData(Source::Borrowed(bytes))
    }
}

impl From<Vec<u8>> for TensorData<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        TensorData(Source::Owned(bytes))
    }
}

/// A file under a temporary name, removed unless it is finished.
pub(super) struct PartialFile {
    pub file: File,
    temporary: PathBuf,
    pub path: PathBuf,
}

impl PartialFile {
    pub fn create(path: &Path) -> Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(MlxError::io(path, io::Error::new(io::ErrorKind::InvalidInput, "not a file name")));
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.partial", std::process::id()));
        let temporary = path.with_file_name(hidden);
        let file = File::create(&temporary).map_err(|e| MlxError::io(path, e))?;
        Ok(PartialFile { file, temporary, path: path.to_path_buf() })
    }

    pub fn finish(self) -> Result<()> {
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.temporary, &self.path))
            .map_err(|e| MlxError::io(&self.path, e))
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = fs::remove_file(&self.temporary);
    }
}
