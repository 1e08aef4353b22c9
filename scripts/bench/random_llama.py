#!/usr/bin/env python3
"""Writes a model of Llama 3.2 1B's shape with random weights in F16, and quantizes it with llama.cpp's llama-quantize.

The small models' widths of 576 and 640 are no whole K-blocks, so that most of their tensors fall back to other formats; this one's are. The text that it
generates is noise. Needs numpy and gguf.

usage: random_llama.py PEERS FOLDER [FORMAT…]      (default: Q4_K_M Q4_0; some 4 GB while it works, the F16 file is deleted at the end)
"""

import pathlib
import subprocess
import sys

import gguf
import numpy as np

LAYERS, HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 16, 2048, 8192, 32, 8, 64, 128256
peers, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
formats = sys.argv[3:] or ["Q4_K_M", "Q4_0"]
random = np.random.default_rng(1)
noise = (random.standard_normal(1 << 23, dtype=np.float32) * 0.02).astype(np.float16)


def matrix(rows, columns):
    """Values from a place of the noise that nothing else starts at; drawing a billion of them anew would take minutes."""
    start = int(random.integers(len(noise)))
    return np.take(noise, np.arange(start, start + rows * columns, dtype=np.int64), mode="wrap").reshape(rows, columns)


def bytes_alphabet():
    """The characters that byte-level BPE writes for the 256 bytes."""
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def write(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random, of Llama 3.2 1B's shape")
    writer.add_context_length(131072)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    # Bytes, one merge, and names for all the other tokens: enough to be loaded.
    alphabet = bytes_alphabet()
    tokens = alphabet + ["th"] + [f"<token {i}>" for i in range(257, VOCABULARY - 1)] + ["<|end_of_text|>"]
    types = [gguf.TokenType.NORMAL] * (VOCABULARY - 1) + [gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(VOCABULARY - 1)
    writer.add_eos_token_id(VOCABULARY - 1)

    kv = KV_HEADS * HEAD_DIM
    writer.add_tensor("token_embd.weight", matrix(VOCABULARY, HIDDEN))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, dtype=np.float32))
    for layer in range(LAYERS):
        name = f"blk.{layer}"
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{name}.{part}.weight", np.ones(HIDDEN, dtype=np.float32))
        for part, rows, columns in [
            ("attn_q", HIDDEN, HIDDEN), ("attn_k", kv, HIDDEN), ("attn_v", kv, HIDDEN), ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", FEED_FORWARD, HIDDEN), ("ffn_up", FEED_FORWARD, HIDDEN), ("ffn_down", HIDDEN, FEED_FORWARD),
        ]:
            writer.add_tensor(f"{name}.{part}.weight", matrix(rows, columns))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


folder.mkdir(parents=True, exist_ok=True)
source = folder / "llama-1b-shape-f16.gguf"
write(source)
for name in formats:
    target = folder / f"llama-1b-shape-{name.lower()}.gguf"
    subprocess.run([peers / "llama.cpp/build/bin/llama-quantize", source, target, name, "2"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(target, flush=True)
source.unlink()
