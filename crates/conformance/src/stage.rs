//! Where a case meets a device: operands go up, outputs come back with the bytes around them.

use mlx_native::{CommandEncoder, DType, KernelRegistry, MlxBuffer, MlxDevice, MlxError, Result, Weight};

use crate::Array;
use crate::generate::WeightData;

/// Bytes before and after every output that nobody may write.
const GUARD: usize = 64;

/// A device, an encoder, and the outputs of what is recorded.
pub(crate) struct Stage<'a> {
    pub device: &'a MlxDevice,
    pub encoder: CommandEncoder,
    pub registry: KernelRegistry,
    /// Whether buffers are views at odd multiples of the alignment.
    offset: bool,
    /// What fills outputs, and the bytes around them, before the run.
    poison: u8,
    outputs: Vec<Output>,
    /// What Σref² is on average over inputs of that size; only where asked for.
    energy: Option<f64>,
}

struct Output {
    base: MlxBuffer,
    /// Bytes before the first element.
    front: usize,
    len: usize,
    guarded: bool,
}

/// What a run left.
pub(crate) struct Run {
    pub outputs: Vec<Array>,
    /// The error of the wait.
    pub error: Option<String>,
    pub energy: Option<f64>,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(device: &'a MlxDevice, offset: bool, poison: u8) -> Result<Stage<'a>> {
        Ok(Stage {
            device,
            encoder: device.command_encoder()?,
            registry: KernelRegistry::new(),
            offset,
            poison,
            outputs: Vec::new(),
            energy: None,
        })
    }

    /// Asks for the energy.
    pub(crate) fn measured(mut self) -> Stage<'a> {
        self.energy = Some(0.0);
        self
    }

    /// Says that `rows` rows like `input` times `n` weight rows like `weight` are an output.
    pub(crate) fn expect_energy(&mut self, input: &Array, weight: &WeightData, rows: usize) -> Result<()> {
        if let Some(energy) = &mut self.energy {
            let w = Array::floats(DType::F32, &weight.decode()?).mean_square();
            *energy += (rows * weight.n * weight.k) as f64 * w * input.mean_square();
        }
        Ok(())
    }

    fn front(&self, align: usize) -> usize {
        if self.offset { GUARD + align } else { GUARD }
    }

    /// An operand that is read, aligned to its elements.
    pub(crate) fn input(&self, array: &Array) -> Result<MlxBuffer> {
        self.aligned_input(array, array.dtype.size_of())
    }

    fn aligned_input(&self, array: &Array, align: usize) -> Result<MlxBuffer> {
        if !self.offset {
            return array.upload(self.device);
        }
        let front = self.front(align);
        let mut base = self.device.alloc_buffer(front + array.bytes.len(), array.dtype, vec![])?;
        base.as_mut_slice::<u8>()?[front..].copy_from_slice(&array.bytes);
        base.try_slice_view(front as u64, array.len())
    }

    /// The bytes of a GGML weight or packed values.
    pub(crate) fn weight_bytes(&self, weight: &WeightData) -> Result<MlxBuffer> {
        // The widest scalar of the blocks; MLX's packed values are words.
        let align = match weight.format {
            mlx_native::WeightFormat::Ggml(ty) => {
                ty.block_format().fields.iter().map(|field| field.scalar.bytes()).max().unwrap_or(1)
            }
            _ => 4,
        };
        self.aligned_input(&weight.data, align)
    }

    /// A weight operand.
    pub(crate) fn weight(&self, weight: &WeightData) -> Result<Weight> {
        let side = |array: &Option<Array>| array.as_ref().map(|array| self.input(array)).transpose();
        let data = self.weight_bytes(weight)?;
        let (scales, biases) = (side(&weight.scales)?, side(&weight.biases)?);
        Weight::stack(weight.format, weight.n_experts, weight.n, weight.k, data, scales, biases)
    }

    /// An output of `len` poisoned elements.
    pub(crate) fn output(&mut self, dtype: DType, len: usize) -> Result<MlxBuffer> {
        let poison = self.poison;
        self.guarded(dtype, len, |bytes| bytes.fill(poison))
    }

    /// An output that holds `array` before the run.
    pub(crate) fn output_over(&mut self, array: &Array) -> Result<MlxBuffer> {
        self.guarded(array.dtype, array.len(), |bytes| bytes.copy_from_slice(&array.bytes))
    }

    fn guarded(&mut self, dtype: DType, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<MlxBuffer> {
        let (front, size) = (self.front(dtype.size_of()), dtype.size_of());
        let mut base = self.device.alloc_buffer(front + len * size + GUARD, dtype, vec![])?;
        let bytes = base.as_mut_slice::<u8>()?;
        bytes.fill(self.poison);
        fill(&mut bytes[front..front + len * size]);
        let view = base.try_slice_view(front as u64, len)?;
        self.outputs.push(Output { base, front, len, guarded: true });
        Ok(view)
    }

    /// An output that the operation allocated.
    pub(crate) fn returned(&mut self, buffer: MlxBuffer) {
        let len = buffer.element_count();
        self.outputs.push(Output { base: buffer, front: 0, len, guarded: false });
    }

    /// Runs what was recorded. All handles on the outputs that the operations were given are gone.
    ///
    /// # Errors
    ///
    /// What is wrong apart from the values: bytes beside an output that were written, or an error other than the wait's.
    pub(crate) fn run(mut self) -> std::result::Result<Run, String> {
        let error = match self.encoder.commit_and_wait() {
            Ok(()) => None,
            Err(MlxError::CommandBufferError(message)) => Some(message),
            Err(other) => return Err(other.to_string()),
        };
        let mut outputs = Vec::new();
        for (i, output) in self.outputs.iter().enumerate() {
            let dtype = output.base.dtype();
            let bytes = output.base.as_slice::<u8>().map_err(|error| format!("output {i}: {error}"))?;
            let range = output.front..output.front + output.len * dtype.size_of();
            let outside = bytes[..range.start].iter().chain(&bytes[range.end..]);
            if output.guarded && outside.clone().any(|byte| *byte != self.poison) {
                let before = bytes[..range.start].iter().any(|byte| *byte != self.poison);
                let side = if before { "before" } else { "after" };
                return Err(format!("output {i}: bytes {side} its {} {dtype} elements were written", output.len));
            }
            outputs.push(Array { dtype, bytes: bytes[range].to_vec() });
        }
        Ok(Run { outputs, error, energy: self.energy })
    }
}

/// bf16 rows `[m, heads·head_dim]` as attention leaves them, `[heads, m, head_dim]`.
pub(crate) fn by_heads(rows: &Array, m: usize, head_dim: usize) -> Array {
    let heads = rows.len() / (m * head_dim);
    let runs = (0..heads).flat_map(|h| (0..m).map(move |i| (i * heads + h) * head_dim * 2));
    Array { dtype: rows.dtype, bytes: runs.flat_map(|at| rows.bytes[at..at + head_dim * 2].to_vec()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overrun_is_caught() {
        let device = MlxDevice::reference().unwrap();
        let x = Array::floats(DType::F32, &[1.0; 9]);
        let overrun = |elements: usize| {
            let mut stage = Stage::new(&device, true, 0xff).unwrap();
            let y = stage.output(DType::F32, 8).unwrap();
            // A view that begins with the output and ends behind it, as a kernel without a tail check would write.
            let front = stage.front(4) as u64;
            drop(y);
            let base = &stage.outputs[0].base;
            let mut wide = base.try_slice_view(front, elements).unwrap();
            let x = stage.input(&x).unwrap().try_slice_view(0, elements).unwrap();
            stage.encoder.soft_cap(&x, &mut wide, 1.0).unwrap();
            drop(wide);
            stage.run().map(|_| ())
        };
        assert_eq!(overrun(8), Ok(()));
        assert!(overrun(9).unwrap_err().contains("after"));
    }
}
