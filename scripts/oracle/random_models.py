#!/usr/bin/env python3
"""Records llama.cpp's logits of small random models of every architecture, for crates/mlx-native-model/tests/random_models.rs.

    pip install numpy gguf==0.19.0
    python scripts/oracle/random_models.py LLAMA_ORACLE [FOLDER]

LLAMA_ORACLE is llama_oracle.cpp, built as it says. The GGUF files go to FOLDER, else to one that is removed again.

Head sizes, expert counts and numbers of experts that a token goes to are those of published models; the width and the number of layers are small.
Every weight is t · 2^-e with t in -7..=7, a function of the tensor's name and the value's index that the test repeats: Q4_0, Q8_0, f16 and
MLX's 4-bit groups hold such values exactly, so one record serves for all of them.

Written: random/models.json (what the models are), random/NAME.logits (f32 [tokens, vocabulary]).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

GOLDEN = Path(__file__).resolve().parents[2] / "crates/mlx-native-model/tests/golden/random"
VOCABULARY, TOKENS, HIDDEN = 96, 32, 256
U64 = np.uint64


def codes(name, count):
    """t in -7..=7 of each value of a tensor: splitmix64 from the FNV-1a hash of its name, the upper 24 bits modulo 15."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = U64(seed) + np.arange(1, count + 1, dtype=U64) * U64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
        z = z ^ (z >> U64(31))
    return (z >> U64(40)).astype(np.int64) % 15 - 7


def values(tensor):
    count = int(np.prod(tensor["shape"]))
    t = codes(tensor["name"], count).astype(np.float32)
    return (tensor["offset"] + t * np.float32(2.0 ** -tensor["exponent"])).reshape(tensor["shape"]).astype(np.float32)


def model(name, architecture, heads, kv_heads, head_dim, config, metadata=(), layers=2, feed_forward=320, experts=None):
    """experts: (count, top_k, length, shared length or 0)"""
    tensors = []

    def add(name, *shape, exponent=6, offset=0):
        tensors.append({"name": name, "shape": list(shape), "exponent": exponent, "offset": offset})

    def norm(name, length):
        add(name, length, exponent=5, offset=1)

    gemma = architecture == "gemma3"
    add("token_embd.weight", VOCABULARY, HIDDEN, exponent=4)
    for layer in range(layers):
        blk = f"blk.{layer}."
        norm(blk + "attn_norm.weight", HIDDEN)
        for part, n in (("q", heads * head_dim), ("k", kv_heads * head_dim), ("v", kv_heads * head_dim)):
            add(f"{blk}attn_{part}.weight", n, HIDDEN)
            if architecture in ("qwen2", "qwen2moe"):
                add(f"{blk}attn_{part}.bias", n, exponent=4)
        if architecture in ("qwen3", "qwen3moe", "gemma3"):
            norm(blk + "attn_q_norm.weight", head_dim)
            norm(blk + "attn_k_norm.weight", head_dim)
        if architecture == "olmoe":
            norm(blk + "attn_q_norm.weight", heads * head_dim)
            norm(blk + "attn_k_norm.weight", kv_heads * head_dim)
        add(blk + "attn_output.weight", HIDDEN, heads * head_dim)
        if gemma:
            norm(blk + "post_attention_norm.weight", HIDDEN)
            norm(blk + "post_ffw_norm.weight", HIDDEN)
        norm(blk + "ffn_norm.weight", HIDDEN)
        if experts is None:
            add(blk + "ffn_gate.weight", feed_forward, HIDDEN)
            add(blk + "ffn_up.weight", feed_forward, HIDDEN)
            add(blk + "ffn_down.weight", HIDDEN, feed_forward)
            continue
        count, _, length, shared = experts
        add(blk + "ffn_gate_inp.weight", count, HIDDEN, exponent=5)
        add(blk + "ffn_gate_exps.weight", count, length, HIDDEN)
        add(blk + "ffn_up_exps.weight", count, length, HIDDEN)
        add(blk + "ffn_down_exps.weight", count, HIDDEN, length, exponent=5)
        if shared:
            add(blk + "ffn_gate_inp_shexp.weight", HIDDEN)
            add(blk + "ffn_gate_shexp.weight", shared, HIDDEN)
            add(blk + "ffn_up_shexp.weight", shared, HIDDEN)
            add(blk + "ffn_down_shexp.weight", HIDDEN, shared)
    norm("output_norm.weight", HIDDEN)
    if not gemma:
        add("output.weight", VOCABULARY, HIDDEN)

    numbers = {
        "block_count": layers, "context_length": 512, "embedding_length": HIDDEN, "attention.head_count": heads,
        "attention.head_count_kv": kv_heads, "attention.key_length": head_dim, "attention.value_length": head_dim,
        "rope.dimension_count": head_dim, "vocab_size": VOCABULARY, "feed_forward_length": feed_forward,
    }
    config = {
        "hidden_size": HIDDEN, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "intermediate_size": feed_forward, "rms_norm_eps": 1e-6, "vocab_size": VOCABULARY, "tie_word_embeddings": gemma,
        "max_position_embeddings": 512, "rope_theta": 1e6, **config,
    }
    if experts:
        count, top_k, length, shared = experts
        numbers |= {"expert_count": count, "expert_used_count": top_k}
        config["num_experts_per_tok"] = top_k
        config["num_local_experts" if architecture == "llama" else "num_experts"] = count
        if architecture in ("llama", "olmoe"):
            numbers["feed_forward_length"] = config["intermediate_size"] = length
        else:
            numbers["expert_feed_forward_length"] = config["moe_intermediate_size"] = length
        if shared:
            numbers["expert_shared_feed_forward_length"] = config["shared_expert_intermediate_size"] = shared
    floats = {"attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e6}
    return {
        "name": name, "architecture": architecture, "numbers": numbers | dict(metadata), "floats": floats, "config": config, "tensors": tensors,
    }


MODELS = [
    model("llama", "llama", 4, 2, 64, {"model_type": "llama"}),
    model("qwen2", "qwen2", 4, 2, 64, {"model_type": "qwen2"}),
    model("qwen3", "qwen3", 4, 2, 128, {"model_type": "qwen3"}),
    # Seven layers, so that the sixth sees everything, and more tokens than the window.
    model("gemma3", "gemma3", 2, 1, 256,
          {"model_type": "gemma3_text", "sliding_window": 12, "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000.0},
          {"attention.sliding_window": 12}.items(), layers=7),
    model("mixtral-top1", "llama", 2, 1, 128, {"model_type": "mixtral"}, experts=(8, 1, 192, 0)),
    model("mixtral", "llama", 2, 1, 128, {"model_type": "mixtral"}, experts=(8, 2, 192, 0)),
    model("qwen2moe", "qwen2moe", 2, 2, 128, {"model_type": "qwen2_moe", "decoder_sparse_step": 1, "norm_topk_prob": False},
          experts=(60, 4, 64, 192)),
    model("qwen3moe", "qwen3moe", 4, 1, 128, {"model_type": "qwen3_moe", "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
          experts=(128, 8, 64, 0)),
    model("olmoe", "olmoe", 2, 2, 128, {"model_type": "olmoe", "norm_topk_prob": False}, experts=(64, 8, 64, 0)),
]


def write_gguf(model, path):
    writer = gguf.GGUFWriter(path, model["architecture"])
    for key, value in model["numbers"].items():
        writer.add_uint32(f"{model['architecture']}.{key}", value)
    for key, value in model["floats"].items():
        writer.add_float32(f"{model['architecture']}.{key}", value)
    writer.add_tokenizer_model("llama")
    texts = [b"<unk>", b"<s>", b"</s>", b"\n"] + [bytes([byte]) for byte in range(32, 32 + VOCABULARY - 4)]
    writer.add_token_list(texts)
    writer.add_token_scores([-float(i) for i in range(VOCABULARY)])
    writer.add_token_types([2, 3, 3] + [1] * (VOCABULARY - 3))
    for tensor in model["tensors"]:
        writer.add_tensor(tensor["name"], values(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    oracle = sys.argv[1]
    GOLDEN.mkdir(parents=True, exist_ok=True)
    ids = [int(t) + 40 for t in codes("ids", TOKENS) * 5]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[2] if len(sys.argv) > 2 else temporary)
        for model in MODELS:
            path = folder / f"random-{model['name']}.gguf"
            write_gguf(model, path)
            listed = Path(temporary) / "ids"
            listed.write_text(" ".join(map(str, ids)))
            out = GOLDEN / f"{model['name']}.logits"
            subprocess.run([oracle, "logits", path, listed, out], check=True)
            logits = np.frombuffer(out.read_bytes(), np.float32)
            print(f"{model['name']}: {path.stat().st_size / 2**20:.1f} MiB, logits' standard deviation {logits.std():.3f}")
            assert logits.size == TOKENS * VOCABULARY and np.isfinite(logits).all()
    with open(GOLDEN / "models.json", "w") as file:
        file.write(json.dumps({"ids": ids, "models": MODELS}, separators=(",", ":")) + "\n")


main()
