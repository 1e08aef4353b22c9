//! Apple GPUs: hand-written kernels in the Metal Shading Language, and planning in Rust that runs anywhere.
//!
//! [`launches`] turns an `Op` into [`launches::Launch`]es: which kernel, bound to what, over which grid. [`source`] assembles the text of a kernel
//! from the rendered formats, the argument structs and the templates in `kernels/`. [`host`] runs launches on the CPU through the
//! `metal-host` crate, every access checked, so that planning and kernel text are tested where there is no GPU.

pub(crate) mod host;
mod launches;
mod source;
