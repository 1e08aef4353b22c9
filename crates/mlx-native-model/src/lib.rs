//! Configuration, layers, KV cache, tokenizer, chat template, sampler and generation for GGUF models.

pub mod tokenizer;
