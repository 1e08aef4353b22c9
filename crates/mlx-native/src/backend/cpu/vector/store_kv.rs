//! Storing keys or values into their cache.
// SAFETY of every unsafe block here: the rules of `vector`; rows `[start, start + n_tokens)` of every head are inside the cache.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::simd::Simd;
use super::{GRAIN, Mem, Task};
use crate::backend::cpu::kernel::{Resolver, Share};
use crate::ops::{KvCacheParams, StoreKv};
use crate::{DType, Result};

pub(super) struct StoreKvTask {
    input: Mem<f32>,
    cache: Mem<u8>,
    f16: bool,
    shape: KvCacheParams,
    n_tokens: usize,
    start: usize,
}

impl StoreKvTask {
    pub(super) fn new(op: &StoreKv, resolver: &mut Resolver) -> Result<StoreKvTask> {
        Ok(StoreKvTask {
            input: Mem::new(resolver, &op.input)?,
            cache: Mem::new(resolver, &op.cache)?,
            f16: op.cache.dtype == DType::F16,
            shape: op.shape,
            n_tokens: op.n_tokens,
            start: op.start,
        })
    }
}

impl Task for StoreKvTask {
    fn shares(&self, _phase: usize) -> usize {
        (self.n_tokens * self.shape.n_kv_heads).div_ceil(GRAIN.div_ceil(self.shape.head_dim))
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, _phase: usize, share: &Share<'_>) {
        let KvCacheParams { n_kv_heads, capacity, head_dim } = self.shape;
        for row in share.range(self.n_tokens * n_kv_heads, GRAIN.div_ceil(head_dim)) {
            let (token, head) = (row / n_kv_heads, row % n_kv_heads);
            let to = (head * capacity + self.start + token) * head_dim;
            unsafe {
                let from = self.input.at(row * head_dim);
                if !self.f16 {
                    from.cast::<u8>().copy_to_nonoverlapping(self.cache.at(4 * to), 4 * head_dim);
                    continue;
                }
                let to = self.cache.at(2 * to).cast::<u16>();
                let mut i = 0;
                while i + S::LANES <= head_dim {
                    s.store_f16(to.add(i), s.load(from.add(i)));
                    i += S::LANES;
                }
                if i < head_dim {
                    s.store_f16_n(to.add(i), s.load_n(from.add(i), head_dim - i), head_dim - i);
                }
            }
        }
    }
}
