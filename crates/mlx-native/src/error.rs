//! The error type of every fallible call.

/// The result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, MlxError>;

/// What went wrong: each message says what, where, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MlxError {
    /// The device that was asked for is not on this machine, or this build has no support for it.
    #[error("device not found: {0}")]
    DeviceNotFound(String),
    /// Recorded work failed on the device.
    #[error("command buffer failed: {0}")]
    CommandBufferError(String),
    /// A kernel's source did not compile.
    #[error("shader {name} did not compile: {message}")]
    ShaderCompilationError {
        /// The kernel.
        name: String,
        /// The compiler's report.
        message: String,
    },
    /// The device or the operating system had no memory left.
    #[error("could not allocate a buffer of {bytes} bytes")]
    BufferAllocationError {
        /// The size that was asked for.
        bytes: usize,
    },
    /// An argument is outside the operation's contract.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// No kernel of that name exists on the device.
    #[error("kernel not found: {0}")]
    KernelNotFound(String),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    IoError {
        /// The file.
        path: String,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// A safetensors file is malformed.
    #[error("safetensors: {0}")]
    SafetensorsError(String),
    /// A quantization configuration is malformed or not supported.
    #[error("quantization config: {0}")]
    QuantConfigError(String),
    /// The operation has no meaning for that element type.
    #[error("unsupported dtype: {0}")]
    UnsupportedDtype(String),
    /// A GGUF file is malformed.
    #[error("GGUF: {0}")]
    GgufParseError(String),
}

impl MlxError {
    /// An [`MlxError::IoError`] that names the file.
    pub fn io(path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        MlxError::IoError { path: path.as_ref().display().to_string(), source }
    }
}
