//! Keys and values of the positions that have been computed.

use mlx_native::{DType, KvCacheParams, MlxBuffer, MlxDevice};

use crate::{ModelConfig, Result};

/// Keys and values of every layer, each `[n_kv_heads, capacity, head_dim]`.
#[derive(Debug)]
pub(crate) struct KvCache {
    pub layers: Vec<LayerCache>,
    pub shape: KvCacheParams,
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(crate) struct LayerCache {
    pub k: MlxBuffer,
    pub v: MlxBuffer,
}

impl KvCache {
    pub(crate) fn new(device: &MlxDevice, config: &ModelConfig, capacity: usize, dtype: DType) -> Result<KvCache> {
        let shape = KvCacheParams { n_kv_heads: config.n_kv_heads, capacity, head_dim: config.head_dim };
        let dims = vec![shape.n_kv_heads, capacity, shape.head_dim];
        let bytes = dims.iter().try_fold(dtype.size_of(), |bytes, &dim| bytes.checked_mul(dim)).unwrap_or(usize::MAX);
        let allocate = || device.alloc_buffer(bytes, dtype, dims.clone());
        let layers = (0..config.n_layers)
            .map(|_| Ok(LayerCache { k: allocate()?, v: allocate()? }))
            .collect::<Result<Vec<_>>>()?;
        Ok(KvCache { layers, shape })
    }

    /// Bytes of all layers.
    pub(crate) fn byte_len(&self) -> usize {
        self.layers.iter().map(|layer| layer.k.byte_len() + layer.v.byte_len()).sum()
    }
}
