"""Write crates/mlx-native/tests/golden/mlx: two small model directories in mlx-lm's layout, for mlx_dir.rs.

    pip install mlx==0.32.4 mlx-cpu==0.32.4
    python scripts/golden/make_mlx_dir.py

    sharded/  config.json, two shards and their index: layers in every mode, named overrides, a stack of experts, plain weights
    single/   config.json without quantization, model.safetensors with one f16 matrix
    expected.safetensors  what mx.dequantize makes of each quantized layer, as f32
"""

import json
import shutil
from pathlib import Path

import mlx.core as mx

OUT = Path(__file__).resolve().parents[2] / "crates/mlx-native/tests/golden/mlx"

# Layer, shape, dtype, parameters; None: the model's own, False: not quantized.
DEFAULT = {"group_size": 64, "bits": 4}
LAYERS = [
    ("model.embed_tokens", (3, 128), mx.bfloat16, None),
    ("model.layers.0.q_proj", (4, 64), mx.float16, {"group_size": 32, "bits": 8}),
    ("model.layers.0.k_proj", (2, 64), mx.float32, {"group_size": 32, "bits": 3}),
    ("model.layers.0.v_proj", (2, 128), mx.bfloat16, {"group_size": 128, "bits": 6}),
    ("model.layers.0.up_proj", (2, 64), mx.bfloat16, {"mode": "mxfp4", "group_size": 32, "bits": 4}),
    ("model.layers.0.gate_proj", (2, 64), mx.bfloat16, {"mode": "mxfp8"}),
    ("model.layers.0.down_proj", (2, 32), mx.bfloat16, {"mode": "nvfp4"}),
    ("model.layers.0.experts", (3, 2, 64), mx.float16, {"group_size": 32, "bits": 4}),
    ("lm_head", (3, 8), mx.bfloat16, False),
]


def main():
    mx.random.seed(1)
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "sharded").mkdir(parents=True)
    (OUT / "single").mkdir()
    shards, expected = [{}, {}], {}
    config = {"model_type": "golden", "quantization": dict(DEFAULT), "hidden_size": 128}
    for i, (layer, shape, dtype, parameters) in enumerate(LAYERS):
        weight = mx.random.normal(shape).astype(dtype)
        shard = shards[i % 2]
        if parameters is not None:
            config["quantization"][layer] = parameters
        if parameters is False:
            shard[f"{layer}.weight"] = weight
            continue
        parameters = parameters or DEFAULT
        parts = mx.quantize(weight, **parameters)
        shard.update({f"{layer}.{name}": part for name, part in zip(("weight", "scales", "biases"), parts)})
        # In f32, so that nothing is rounded that a reader would not round.
        wide = [parts[0]] + [p if p.dtype == mx.uint8 else p.astype(mx.float32) for p in parts[1:]]
        expected[layer] = mx.dequantize(*wide, **parameters, dtype=mx.float32)
    shards[1]["model.norm.weight"] = mx.ones((128,), mx.bfloat16)

    names = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    for name, shard in zip(names, shards):
        mx.save_safetensors(str(OUT / "sharded" / name), shard, {"format": "mlx"})
    weight_map = {tensor: name for name, shard in zip(names, shards) for tensor in sorted(shard)}
    index = {"metadata": {"total_size": sum(a.nbytes for s in shards for a in s.values())}, "weight_map": weight_map}
    (OUT / "sharded/model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    (OUT / "sharded/config.json").write_text(json.dumps(config, indent=1) + "\n")

    plain = mx.arange(12).reshape(3, 4).astype(mx.float16)
    mx.save_safetensors(str(OUT / "single/model.safetensors"), {"lm_head.weight": plain})
    (OUT / "single/config.json").write_text(json.dumps({"model_type": "golden"}) + "\n")
    mx.save_safetensors(str(OUT / "expected.safetensors"), expected)


if __name__ == "__main__":
    main()
