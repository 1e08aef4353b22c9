//! A model where it lies: a GGUF file, or a directory in MLX's or Hugging Face's layout.

use std::path::{Path, PathBuf};

use mlx_native::MlxDevice;
use mlx_native::io::gguf::GgufFile;
use mlx_native::io::mlx_dir::MlxModelDir;

use crate::chat_template::{ChatTemplate, ChatTemplateError};
use crate::tokenizer::{Tokenizer, TokenizerData, TokenizerError};
use crate::{Model, ModelConfig, Result};

/// An open model: its metadata and the list of its tensors, whichever of the two layouts it has.
///
/// ```no_run
/// use mlx_native::MlxDevice;
/// use mlx_native_model::ModelFile;
/// let file = ModelFile::open("Qwen3-4B-4bit")?; // or "model.gguf"
/// let tokenizer = file.tokenizer()?;
/// let model = file.model(&MlxDevice::new()?)?;
/// # Ok::<(), mlx_native_model::ModelError>(())
/// ```
#[derive(Debug)]
pub enum ModelFile {
    /// A GGUF file, or all parts of a split one.
    Gguf(GgufFile),
    /// A directory with `config.json`, safetensors and `tokenizer.json`.
    Directory {
        /// Where it is.
        path: PathBuf,
        /// Its configuration and tensors.
        dir: Box<MlxModelDir>,
    },
}

impl ModelFile {
    /// Opens a GGUF file, or a directory that has a `config.json`.
    ///
    /// # Errors
    ///
    /// Something is missing or malformed; the message names the file.
    pub fn open(path: impl AsRef<Path>) -> Result<ModelFile> {
        let path = path.as_ref();
        Ok(match path.is_dir() {
            true => ModelFile::Directory { path: path.to_owned(), dir: Box::new(MlxModelDir::open(path)?) },
            false => ModelFile::Gguf(GgufFile::open(path)?),
        })
    }

    /// Whether a path is a directory that [`open`](Self::open) takes for a model.
    pub fn is_model_directory(path: impl AsRef<Path>) -> bool {
        path.as_ref().join("config.json").is_file()
    }

    /// The layers' dimensions.
    ///
    /// # Errors
    ///
    /// As [`ModelConfig::from_gguf`] and [`ModelConfig::from_config_json`].
    pub fn config(&self) -> Result<ModelConfig> {
        match self {
            ModelFile::Gguf(file) => ModelConfig::from_gguf(file),
            ModelFile::Directory { dir, .. } => ModelConfig::from_config_json(dir.config()),
        }
    }

    /// What it says about its tokenizer.
    ///
    /// # Errors
    ///
    /// As [`TokenizerData::from_gguf`] and [`TokenizerData::from_dir`].
    pub fn tokenizer_data(&self) -> std::result::Result<TokenizerData, TokenizerError> {
        match self {
            ModelFile::Gguf(file) => TokenizerData::from_gguf(file),
            ModelFile::Directory { path, .. } => TokenizerData::from_dir(path),
        }
    }

    /// Its tokenizer.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::from_gguf`] and [`Tokenizer::from_dir`].
    pub fn tokenizer(&self) -> std::result::Result<Tokenizer, TokenizerError> {
        Tokenizer::new(&self.tokenizer_data()?)
    }

    /// Its chat format.
    ///
    /// # Errors
    ///
    /// As [`ChatTemplate::from_gguf`] and [`ChatTemplate::from_dir`].
    pub fn chat_template(&self, tokenizer: &Tokenizer) -> std::result::Result<ChatTemplate, ChatTemplateError> {
        match self {
            ModelFile::Gguf(file) => ChatTemplate::from_gguf(file, tokenizer),
            ModelFile::Directory { path, .. } => ChatTemplate::from_dir(path, tokenizer),
        }
    }

    /// Its weights on a device.
    ///
    /// # Errors
    ///
    /// As [`Model::from_gguf`] and [`Model::from_mlx`].
    pub fn model(&self, device: &MlxDevice) -> Result<Model> {
        match self {
            ModelFile::Gguf(file) => Model::from_gguf(file, device),
            ModelFile::Directory { dir, .. } => Model::from_mlx(dir, device),
        }
    }
}
