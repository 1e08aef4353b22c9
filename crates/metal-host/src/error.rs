//! What can go wrong before a dispatch runs. What a dispatch does wrong is in its [`Report`](crate::Report).

use std::path::PathBuf;

use crate::translate::TranslateError;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No C++ compiler was found.
    #[error("no C++ compiler: tried {tried}; install g++ 12 or clang 16 (or newer), or name one in CXX")]
    NoCompiler {
        /// The commands that were tried.
        tried: String,
    },
    /// The compiler refused the shader or its translation.
    #[error("{compiler} refuses {name}:\n{diagnostics}")]
    Compile {
        /// Name given to the shader.
        name: String,
        /// The compiler's command.
        compiler: String,
        /// What it printed.
        diagnostics: String,
    },
    /// The text is not a shader that can be translated.
    #[error("{0}")]
    Translate(#[from] TranslateErrorBox),
    /// The library has no kernel of that name.
    #[error("no kernel {name:?} in {library}; it has {}", available.join(", "))]
    UnknownKernel {
        /// The name asked for.
        name: String,
        /// The shader's name.
        library: String,
        /// The names that exist.
        available: Vec<String>,
    },
    /// The shader declares no function constant of that index.
    #[error("{library} declares no function constant {index}; it has {}", available.join(", "))]
    UnknownConstant {
        /// The index asked for.
        index: u32,
        /// The shader's name.
        library: String,
        /// `index: name` of each that exists.
        available: Vec<String>,
    },
    /// A dispatch whose arguments cannot be: sizes, ranges, indices.
    #[error("dispatch of {kernel}: {what}: expected {expected}, found {found}")]
    Dispatch {
        /// The kernel.
        kernel: String,
        /// The argument.
        what: String,
        /// What it has to be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Buffer access from the host beyond its end.
    #[error("buffer {buffer:?}: bytes {offset}..{end} are beyond its {len} bytes")]
    Range {
        /// The buffer's name.
        buffer: String,
        /// First byte.
        offset: usize,
        /// One past the last byte.
        end: usize,
        /// The buffer's length.
        len: usize,
    },
    /// The address space that holds all buffers is full or could not be reserved.
    #[error("device memory: {0}")]
    Memory(String),
    /// A file of the cache cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A compiled shader cannot be loaded.
    #[error("{path}: {message}")]
    Load {
        /// The shared object.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// The checks found something, for callers that treat a report as a failure.
    #[error("{0}")]
    Findings(Box<crate::Report>),
}

/// A [`TranslateError`], as an error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TranslateErrorBox(pub TranslateError);

impl From<TranslateError> for Error {
    fn from(e: TranslateError) -> Self {
        Error::Translate(TranslateErrorBox(e))
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
