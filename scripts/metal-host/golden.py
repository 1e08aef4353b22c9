#!/usr/bin/env python3
"""Writes small quantized products, computed by MLX on this CPU, for crates/metal-host/tests/mlx_kernels.rs.

golden.py OUT: for each case a line "dtype width group m n k" and the lengths of five arrays in bytes, then their bytes:
packed weights, scales, biases, x, y = x w^T.
"""
import sys

import mlx.core as mx
import numpy as np

CASES = [(m, n, k) for m, n, k in [(1, 13, 384), (37, 45, 128)]]


def raw(a):
    # numpy has no bfloat16: its bits travel as integers.
    return np.array(a.view(mx.uint16) if a.dtype == mx.bfloat16 else a).tobytes()


with open(sys.argv[1], "wb") as out:
    mx.set_default_device(mx.cpu)
    mx.random.seed(7)
    for dtype, name in [(mx.float32, "float"), (mx.float16, "half"), (mx.bfloat16, "bfloat16_t")]:
        for width in [2, 3, 4, 5, 6, 8]:
            for group in [32, 64, 128]:
                for m, n, k in CASES:
                    x = mx.random.normal((m, k)).astype(dtype)
                    w, scales, biases = mx.quantize(mx.random.normal((n, k)).astype(dtype), group_size=group, bits=width)
                    y = mx.quantized_matmul(x, w, scales, biases, transpose=True, group_size=group, bits=width)
                    arrays = [raw(a) for a in (w, scales, biases, x, y)]
                    sizes = " ".join(str(len(a)) for a in arrays)
                    out.write(f"{name} {width} {group} {m} {n} {k} {sizes}\n".encode() + b"".join(arrays))
