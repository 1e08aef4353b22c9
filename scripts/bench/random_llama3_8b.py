#!/usr/bin/env python3
"""Writes a GGUF file shaped like Llama 3 8B with random Q4_K weights, to measure speed with.

    pip install numpy gguf
    python scripts/bench/random_llama3_8b.py FILE [LAYERS]

Blocks are random bytes with small scales, so that activations stay finite; the text that such a model writes means nothing.
"""

import sys

import gguf
import numpy as np

HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 4096, 14336, 32, 8, 128, 128256
BLOCK_BYTES, BLOCK_VALUES = 144, 256


def q4_k(rng, n, k):
    """[n, k / 256 · 144] bytes: the scale 2^-12 and the minimum 2^-11 make values of about ±0.03."""
    blocks = np.frombuffer(rng.bytes(n * k // BLOCK_VALUES * BLOCK_BYTES), np.uint8).reshape(-1, BLOCK_BYTES).copy()
    blocks[:, :4] = np.array([2.0**-14, 2.0**-12], np.float16).view(np.uint8)
    return blocks.reshape(n, -1)


def main():
    path, layers = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 32
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    numbers = {
        "block_count": layers, "context_length": 8192, "embedding_length": HIDDEN, "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM,
        "rope.dimension_count": HEAD_DIM, "vocab_size": VOCABULARY, "feed_forward_length": FEED_FORWARD,
    }
    for key, value in numbers.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 500000.0)
    writer.add_tokenizer_model("llama")
    texts = [b"<unk>", b"<s>", b"</s>"] + [b"t%d" % i for i in range(VOCABULARY - 3)]
    writer.add_token_list(texts)
    writer.add_token_scores([-float(i) for i in range(VOCABULARY)])
    writer.add_token_types([2, 3, 3] + [1] * (VOCABULARY - 3))
    # One matrix of each shape is drawn; the file holds a copy for each tensor.
    drawn = {}

    def matrix(name, n, k):
        if (n, k) not in drawn:
            drawn[n, k] = q4_k(rng, n, k)
        writer.add_tensor(name, drawn[n, k], raw_dtype=gguf.GGMLQuantizationType.Q4_K)

    matrix("token_embd.weight", VOCABULARY, HIDDEN)
    for layer in range(layers):
        blk = f"blk.{layer}."
        writer.add_tensor(blk + "attn_norm.weight", np.ones(HIDDEN, np.float32))
        writer.add_tensor(blk + "ffn_norm.weight", np.ones(HIDDEN, np.float32))
        matrix(blk + "attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        matrix(blk + "attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(blk + "attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(blk + "attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        matrix(blk + "ffn_gate.weight", FEED_FORWARD, HIDDEN)
        matrix(blk + "ffn_up.weight", FEED_FORWARD, HIDDEN)
        matrix(blk + "ffn_down.weight", HIDDEN, FEED_FORWARD)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    matrix("output.weight", VOCABULARY, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
