"""Print what the reference implementations make of the tensors of a GGUF file, for crates/mlx-native/tests/format_real.rs.

    python scripts/golden/check_real.py model.gguf > checks.txt
    MLX_NATIVE_REAL_CHECKS=checks.txt cargo test -p mlx-native --test format_real -- --nocapture

    file PATH
    tensor NAME CHECKSUM        Σ (2i + 1) · bits(value i) mod 2^64, values decoded by the gguf package
    quantize NAME FORMAT RMSE   llama.cpp's error on the tensor's first values (a multiple of 256)
"""

import sys

import gguf
import numpy as np

from make_golden import SEARCHED, llama_rmse

VALUES = 64 * 1024
# Tensors whose own format is at least this fine; coarser ones lie on the grid that they were quantized to.
FINE = ("Q8_0", "Q6_K", "F16", "BF16", "F32")


def checksum(values):
    bits = values.ravel().view(np.uint32).astype(np.uint64)
    return int(np.sum(bits * (2 * np.arange(bits.size, dtype=np.uint64) + 1), dtype=np.uint64))


def main(path):
    print("file", path)
    quantized = set()
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        print(f"tensor {tensor.name} {checksum(values):016x}")
        kind = tensor.name.removeprefix("blk.").split(".", 1)[-1]
        if tensor.tensor_type.name in FINE and values.size >= VALUES and kind not in quantized:
            quantized.add(kind)
            for name in SEARCHED:
                print(f"quantize {tensor.name} {name} {llama_rmse(name, values.ravel()[:VALUES].reshape(1, -1)):.9e}")


if __name__ == "__main__":
    main(sys.argv[1])
