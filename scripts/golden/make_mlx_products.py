"""Write crates/mlx-native/tests/golden/mlx_products.bin: what MLX's quantized products make of random operands, for mlx_products.rs.

    pip install mlx==0.32.4 mlx-cpu==0.32.4
    python scripts/golden/make_mlx_products.py

Every mode, width and group, each with `transpose`, without it, and gathered by expert; rows, columns and groups are odd numbers where MLX
allows it. One record each, all little-endian, the parts without padding:

    u32 mode (0 affine, 1 mxfp4, 2 mxfp8, 3 nvfp4), bits, group_size, dtype of the scales (0 f32, 1 f16, 2 bf16, 3 u8)
    u32 kind (0 x @ w.T, 1 x @ w, 2 gathered), experts, m, n, k; w is [experts, n, k]
    x f32 [m, k] (kind 1: [m, n]), weight bytes, scales, biases (affine), kind 2: ids u32 [m]
    the product f32 [m, n] (kind 1: [m, k])
"""

import struct
from pathlib import Path

import mlx.core as mx
import numpy as np

OUT = Path(__file__).resolve().parents[2] / "crates/mlx-native/tests/golden/mlx_products.bin"
DTYPES = [mx.float32, mx.float16, mx.bfloat16]
FP = {"mxfp4": (1, 4, 32), "mxfp8": (2, 8, 32), "nvfp4": (3, 4, 16)}


def raw(array):
    """The bytes of an array, whatever its type."""
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.array(array).tobytes()


def record(random, index, mode, bits, group, kind):
    dtype = DTYPES[index % 3]
    experts = 3 if kind == 2 else 1
    groups = random.integers(1, 5 if group < 128 else 3)
    # MLX quantizes 32 values at once.
    k = int(max(group, 32) * groups)
    n = int(random.integers(1, 5) * 2 + 1)
    m = int(random.integers(1, 6))
    if kind == 1:
        # MLX wants whole groups along the product's columns only.
        n = int(random.integers(3, 9))
    w = mx.array((random.standard_normal((experts, n, k)) * 0.3).astype(np.float32)).astype(dtype)
    name = {0: "affine", 1: "mxfp4", 2: "mxfp8", 3: "nvfp4"}[mode]
    parts = mx.quantize(w, group_size=group, bits=bits, mode=name)
    x = mx.array(random.standard_normal((m, n if kind == 1 else k)).astype(np.float32))
    options = {"group_size": group, "bits": bits, "mode": name, "transpose": kind != 1}
    biases = parts[2] if mode == 0 else None
    ids = b""
    if kind == 2:
        chosen = random.integers(0, experts, m).astype(np.uint32)
        ids = chosen.tobytes()
        y = mx.gather_qmm(x[:, None, :], parts[0], parts[1], biases, rhs_indices=mx.array(chosen), **options)[:, 0, :]
    else:
        y = mx.quantized_matmul(x, parts[0][0], parts[1][0], None if biases is None else biases[0], **options)
    assert y.dtype == mx.float32, y.dtype
    scale_dtype = DTYPES.index(dtype) if mode == 0 else 3
    head = struct.pack("<9I", mode, bits, group, scale_dtype, kind, experts, m, n, k)
    return head + raw(x) + b"".join(raw(part) for part in parts) + ids + raw(y)


def main():
    random = np.random.default_rng(7)
    records = []
    for kind in range(3):
        for bits in (1, 2, 3, 4, 5, 6, 8):
            for group in (32, 64, 128):
                records.append((0, bits, group, kind))
        records += [(mode, bits, group, kind) for mode, bits, group in FP.values()]
    out = b""
    skipped = []
    for index, (mode, bits, group, kind) in enumerate(records):
        try:
            out += record(random, index, mode, bits, group, kind)
        except ValueError as problem:
            skipped.append((mode, bits, group, kind, str(problem)))
    OUT.write_bytes(out)
    print(f"{len(records) - len(skipped)} records, {len(out)} bytes; not possible in MLX: {skipped}")


main()
