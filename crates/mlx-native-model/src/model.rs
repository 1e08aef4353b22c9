//! A model on a device.

use std::path::Path;

use mlx_native::io::gguf::GgufFile;
use mlx_native::io::mlx_dir::MlxModelDir;
use mlx_native::{DType, MlxDevice};

use crate::source::{Loader, MlxSource, Source};
use crate::weights::Weights;
use crate::{ModelConfig, ModelFile, Result, Session};

/// A decoder's configuration and weights on a device. Sessions borrow it; several may run in turn.
///
/// ```no_run
/// use mlx_native::MlxDevice;
/// use mlx_native::io::gguf::GgufFile;
/// use mlx_native_model::{Model, SessionOptions};
/// let file = GgufFile::open("model.gguf")?;
/// let model = Model::from_gguf(&file, &MlxDevice::new()?)?;
/// let mut session = model.session(SessionOptions::default())?;
/// let logits = session.forward(&[1, 2, 3])?;
/// assert_eq!(logits.len(), model.vocabulary());
/// # Ok::<(), mlx_native_model::ModelError>(())
/// ```
#[derive(Debug)]
pub struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) weights: Weights,
    pub(crate) device: MlxDevice,
}

/// What a [`Session`] is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SessionOptions {
    /// Positions of the context; 0 takes the model's own, at most 8192.
    pub context: usize,
    /// Element type of the key-value cache: [`DType::F16`] or [`DType::F32`].
    pub kv_dtype: DType,
    /// Most tokens that are computed together; 0 leaves it to the device: as many as fill it.
    pub batch: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions { context: 0, kv_dtype: DType::F16, batch: 0 }
    }
}

/// The largest context that is allocated unless more is asked for.
const DEFAULT_CONTEXT: usize = 8192;

impl Model {
    /// Opens a GGUF file or a model directory and puts it on a device.
    ///
    /// # Errors
    ///
    /// A file is missing or malformed, its architecture is not supported, or a tensor is missing or has another shape.
    pub fn open(path: impl AsRef<Path>, device: &MlxDevice) -> Result<Model> {
        ModelFile::open(path)?.model(device)
    }

    /// Puts a model on a device. Quantized weights stay in the mapped file where the device shares the host's memory.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn from_gguf(file: &GgufFile, device: &MlxDevice) -> Result<Model> {
        let config = ModelConfig::from_gguf(file)?;
        Model::load(Source::Gguf(file), config, device)
    }

    /// Puts the model of a directory in MLX's or Hugging Face's layout on a device. Weights stay in the mapped files as with GGUF, except those
    /// that are not aligned there, and experts that lie one by one.
    ///
    /// # Errors
    ///
    /// The configuration is malformed, the architecture is not supported, a tensor is missing or has another shape, or a scale is no number.
    pub fn from_mlx(dir: &MlxModelDir, device: &MlxDevice) -> Result<Model> {
        let config = ModelConfig::from_config_json(dir.config())?;
        let architecture = config.architecture.clone();
        Model::load(Source::Mlx(MlxSource::new(dir, &architecture)), config, device)
    }

    fn load(source: Source<'_>, config: ModelConfig, device: &MlxDevice) -> Result<Model> {
        let weights = Weights::load(&Loader { source, device }, &config)?;
        Ok(Model { config, weights, device: device.clone() })
    }

    /// The layers' dimensions.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device that computes.
    pub fn device(&self) -> &MlxDevice {
        &self.device
    }

    /// Tokens that have an embedding, the length of a row of logits.
    pub fn vocabulary(&self) -> usize {
        self.weights.vocabulary()
    }

    /// Bytes of weights that a generated token reads; of experts those that a token goes to.
    pub fn bytes_per_token(&self) -> usize {
        self.weights.bytes_per_token(&self.config)
    }

    /// Multiply-adds in products that each token of a prompt takes; the logits, which only the last one has, and attention are not among them.
    pub fn multiply_adds_per_prompt_token(&self) -> usize {
        self.weights.multiply_adds_per_token(&self.config)
    }

    /// The context that [`SessionOptions::context`] gives.
    pub fn context(&self, options: &SessionOptions) -> usize {
        match options.context {
            0 => self.config.context_length.min(DEFAULT_CONTEXT),
            context => context,
        }
    }

    /// An empty context.
    ///
    /// # Errors
    ///
    /// There is no memory for the cache, or its dtype is neither f16 nor f32.
    pub fn session(&self, options: SessionOptions) -> Result<Session<'_>> {
        Session::new(self, options)
    }
}
