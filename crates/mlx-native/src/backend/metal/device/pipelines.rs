//! Compiling kernels: a library for each text, a pipeline for each function with its constants.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSError, NSString};
use objc2_metal::{
    MTLCompileOptions, MTLComputePipelineState, MTLDataType, MTLDevice, MTLFunctionConstantValues, MTLLanguageVersion,
    MTLLibrary, MTLMathFloatingPointFunctions, MTLMathMode,
};

use super::Device;
use crate::backend::metal::launches::{Library, PipelineKey};
use crate::backend::metal::{log_pipeline, source};
use crate::ops::Op;
use crate::{MlxError, Result};

pub(super) type Pipeline = Retained<ProtocolObject<dyn MTLComputePipelineState>>;
type CompiledLibrary = Retained<ProtocolObject<dyn MTLLibrary>>;

/// What a device has compiled.
pub(super) struct Pipelines {
    device: Device,
    compiled: Mutex<Compiled>,
}

#[derive(Default)]
struct Compiled {
    libraries: HashMap<Library, CompiledLibrary>,
    pipelines: HashMap<PipelineKey, Pipeline>,
}

impl Pipelines {
    pub(super) fn new(device: Device) -> Pipelines {
        Pipelines { device, compiled: Mutex::default() }
    }

    /// The pipeline of a key, compiled when it is first asked for. `op` is the operation that asks, for the log.
    ///
    /// # Errors
    ///
    /// [`MlxError::ShaderCompilationError`] with the compiler's words.
    pub(super) fn get(&self, key: &PipelineKey, op: &Op) -> Result<Pipeline> {
        // Held while compiling, so that threads that need the same library do not compile it twice.
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = compiled.pipelines.get(key) {
            return Ok(pipeline.clone());
        }
        log_pipeline(key, op);
        let library = match compiled.libraries.get(&key.library) {
            Some(library) => library.clone(),
            None => {
                let (name, text) = source::assemble(key.library);
                let version = match key.library {
                    Library::Tensor(_) => MTLLanguageVersion::Version4_0,
                    _ => MTLLanguageVersion::Version3_1,
                };
                let library = self.compile(&name, &text, version)?;
                compiled.libraries.insert(key.library, library.clone());
                library
            }
        };
        let pipeline = self.pipeline(&library, &key.function, &key.constants)?;
        compiled.pipelines.insert(key.clone(), pipeline.clone());
        Ok(pipeline)
    }

    /// Compiles a text. Products and their sums are rounded one by one and functions are exact to their last bits, as on every other device.
    pub(super) fn compile(&self, name: &str, text: &str, version: MTLLanguageVersion) -> Result<CompiledLibrary> {
        let options = MTLCompileOptions::new();
        options.setLanguageVersion(version);
        if objc2::available!(macos = 15.0) {
            options.setMathMode(MTLMathMode::Safe);
            options.setMathFloatingPointFunctions(MTLMathFloatingPointFunctions::Precise);
        } else {
            #[expect(deprecated, reason = "systems before macOS 15 have nothing else")]
            options.setFastMathEnabled(false);
        }
        self.device
            .newLibraryWithSource_options_error(&NSString::from_str(text), Some(&options))
            .map_err(|error| compilation_error(name, &error))
    }

    /// Makes a pipeline of a library's function.
    pub(super) fn pipeline(
        &self,
        library: &CompiledLibrary,
        function: &str,
        constants: &[(u32, u32)],
    ) -> Result<Pipeline> {
        let values = MTLFunctionConstantValues::new();
        for (index, value) in constants {
            // SAFETY: the value is a u32, as the type says; it is copied.
            unsafe {
                values.setConstantValue_type_atIndex(
                    NonNull::from(value).cast::<c_void>(),
                    MTLDataType::UInt,
                    *index as usize,
                );
            }
        }
        library
            .newFunctionWithName_constantValues_error(&NSString::from_str(function), &values)
            .and_then(|function| self.device.newComputePipelineStateWithFunction_error(&function))
            .map_err(|error| compilation_error(function, &error))
    }
}

fn compilation_error(name: &str, error: &NSError) -> MlxError {
    MlxError::ShaderCompilationError { name: name.into(), message: error.localizedDescription().to_string() }
}
