#!/usr/bin/env python3
"""Compares model directories with mlx-lm, both ways.

    pip install mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2 gguf==0.19.0
    python scripts/oracle/mlx_directories.py LOGITS MLXN MODEL.gguf FOLDER [OTHER.gguf …]

LOGITS is the example `logits` of mlx-native-model, MLXN the program, MODEL.gguf SmolLM2 in F32 or any type that gguf dequantizes. FOLDER gets the
directories and has to be empty or not there.

1. SmolLM2's weights go to a directory in Hugging Face's layout (f32 and bf16), and mlx_lm.convert makes 4-bit, 8-bit and mxfp4 directories of it.
   Each is run by both: logits after every token of a text, greedy tokens behind prompts. mlx-lm runs once with all floats in f32, where the
   two compute the same thing, and for a few tokens as it would by itself, in bf16 or f16, whose rounding is then in the comparison.
2. `mlxn quantize` makes directories, of the bf16 one and of the GGUF files. Its bytes are compared with mlx_lm.convert's, and mlx-lm runs them.
"""

import json
import subprocess
import sys
from pathlib import Path

# `tokenize.py` here would stand in for the standard library's.
sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

import gguf
import mlx.core as mx
import mlx_lm
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parents[1] / "crates/mlx-native-model/tests/golden"
LOGITS, MLXN, MODEL, FOLDER = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
TOKENS, PROMPTS, GREEDY = 96, 6, 24
# In bf16 MLX's CPU takes some ten seconds a token.
TOKENS_AS_IT_IS = 4
LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
FORMATS = {"4bit": ("affine", 4, 64), "8bit": ("affine", 8, 64), "mxfp4": ("mxfp4", 4, 32)}


def hugging_face(reader, folder, dtype):
    """The directory that SmolLM2's GGUF file was made from, as far as it matters."""
    field = lambda key: reader.fields[key].contents()
    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    weights = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        part, suffix = tensor.name.rsplit(".", 1)
        if part.startswith("blk."):
            _, layer, part = part.split(".")
            name = f"model.layers.{layer}.{LAYER[part]}.{suffix}"
            if part in ("attn_q", "attn_k"):
                n = heads if part == "attn_q" else kv_heads
                rows, columns = values.shape
                values = values.reshape(n, rows // n // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        else:
            name = f"{MODEL_NAMES[part]}.{suffix}"
        weights[name] = mx.array(values).astype(dtype)
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    tokens = field("tokenizer.ggml.tokens")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"), "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "rms_norm_eps": float(field("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(field("llama.rope.freq_base")), "max_position_embeddings": field("llama.context_length"),
        "vocab_size": len(tokens), "tie_word_embeddings": "lm_head.weight" not in weights, "torch_dtype": str(dtype).split(".")[-1],
        "bos_token_id": field("tokenizer.ggml.bos_token_id"), "eos_token_id": field("tokenizer.ggml.eos_token_id"),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    kinds = field("tokenizer.ggml.token_type")
    added = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, text in enumerate(tokens) if kinds[i] == 3
    ]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ]},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": field("tokenizer.ggml.merges"),
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[config["bos_token_id"]],
        "eos_token": tokens[config["eos_token_id"]], "chat_template": field("tokenizer.chat_template"),
    }))


def ours(mode, model, ids, last):
    listed = FOLDER / "ids"
    listed.write_text(" ".join(map(str, ids)))
    return subprocess.run([LOGITS, mode, model, listed, str(last)], check=True, capture_output=True, text=True).stdout


def our_logits(model, ids):
    out = FOLDER / "logits.f32"
    ours("logits", model, ids, out)
    return np.fromfile(out, np.float32).reshape(len(ids), -1)


def their_logits(model, ids):
    return np.array(model(mx.array(ids)[None])[0].astype(mx.float32))


def nmse(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a - b) ** 2).sum() / (b**2).sum())


def their_greedy(model, ids, count):
    """Tokens, and how far each one's logit was ahead."""
    cache, next_ids, out = make_prompt_cache(model), list(ids), []
    for _ in range(count):
        logits = np.array(model(mx.array(next_ids)[None], cache=cache)[0, -1].astype(mx.float32))
        second, first = np.argpartition(logits, -2)[-2:]
        out.append((int(first), float(logits[first] - logits[second])))
        next_ids = [int(first)]
    return out


def compare(directory, text, prompts, report):
    model, tokenizer = load(str(directory))
    ids = tokenizer.encode(text)[:TOKENS]
    mine = our_logits(directory, ids)
    native = their_logits(model, ids[:TOKENS_AS_IT_IS])
    model.set_dtype(mx.float32)
    wide = their_logits(model, ids)
    encoded = subprocess.run([MLXN, "tokenize", directory, "--json"], input=text.encode(), capture_output=True, check=True).stdout
    same_ids = json.loads(encoded)["ids"][:TOKENS] == ids
    agree, ties = 0, []
    for prompt in prompts:
        start = tokenizer.encode(prompt)
        theirs = their_greedy(model, start, GREEDY)
        mine_tokens = [int(line.split()[0]) for line in ours("greedy", directory, start, GREEDY).splitlines()]
        differing = [i for i, (token, _) in enumerate(theirs) if token != mine_tokens[i]]
        agree += not differing
        ties += [theirs[differing[0]][1]] if differing else []
    result = {
        "tokens equal": same_ids, "NMSE, mlx-lm in f32": f"{nmse(mine, wide):.2e}", "NMSE, mlx-lm as it is": f"{nmse(mine[:TOKENS_AS_IT_IS], native):.2e}",
        "mlx-lm as it is beside itself in f32": f"{nmse(native, wide[:TOKENS_AS_IT_IS]):.2e}", "greedy texts equal": f"{agree} of {len(prompts)}",
        "margins where they part": ties,
    }
    report[directory.name] = result
    print(directory.name, json.dumps(result), flush=True)


def same_bytes(a, b):
    """The share of tensors, and of bytes in quantized ones, that are equal."""
    a, b = mx.load(str(a / "model.safetensors")), mx.load(str(b / "model.safetensors"))
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    raw = lambda array: np.array(array.view(mx.uint8))
    equal = {name: bool(a[name].dtype == b[name].dtype and (raw(a[name]) == raw(b[name])).all()) for name in a}
    bytes_equal = sum(int((raw(a[name]) == raw(b[name])).sum()) for name in a if a[name].dtype == b[name].dtype)
    total = sum(array.nbytes for array in a.values())
    return f"{sum(equal.values())} of {len(equal)} tensors, {bytes_equal} of {total} bytes"


def main():
    mx.set_default_device(mx.cpu)
    FOLDER.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(MODEL)
    text = (GOLDEN / "text.txt").read_text()
    prompts = [line.replace("\\n", "\n") for line in (GOLDEN / "prompts.txt").read_text().splitlines()][:PROMPTS]
    hugging_face(reader, FOLDER / "hf-f32", mx.float32)
    hugging_face(reader, FOLDER / "hf-bf16", mx.bfloat16)
    report = {}
    for name, (mode, bits, group) in FORMATS.items():
        for dtype in ("float32", "bfloat16"):
            source = FOLDER / ("hf-f32" if dtype == "float32" else "hf-bf16")
            target = FOLDER / f"theirs-{name}-{dtype}"
            mlx_lm.convert(str(source), str(target), quantize=True, q_group_size=group, q_bits=bits, q_mode=mode, dtype=dtype)
            compare(target, text, prompts, report)
        option = f"{mode}{bits}:{group}" if mode == "affine" else mode
        from_directory = FOLDER / f"ours-{name}-of-bf16"
        subprocess.run([MLXN, "quantize", FOLDER / "hf-bf16", from_directory, "--format", option], check=True)
        report[f"{name}: our bytes and mlx_lm.convert's"] = same_bytes(from_directory, FOLDER / f"theirs-{name}-bfloat16")
        print(report[f"{name}: our bytes and mlx_lm.convert's"], flush=True)
        from_gguf = FOLDER / f"ours-{name}-of-gguf"
        subprocess.run([MLXN, "quantize", MODEL, from_gguf, "--format", option], check=True)
        compare(from_gguf, text, prompts, report)
    for other in map(Path, sys.argv[5:]):
        target = FOLDER / f"ours-8bit-of-{other.stem}"
        subprocess.run([MLXN, "quantize", other, target, "--format", "affine8"], check=True)
        compare(target, text, prompts, report)
    print(json.dumps(report, indent=1))


main()
