"""Write the golden vectors of crates/mlx-native/tests/golden: what the reference implementations make of given bytes.

    pip install numpy gguf==0.19.0 mlx==0.32.4 mlx-cpu==0.32.4 llama-cpp-python==0.3.36
    python scripts/golden/make_golden.py [ggml] [mlx] [quantize]

The files are little-endian streams of records that crates/mlx-native/tests/format_golden.rs and format_quantize.rs read:

    ggml_dequantize.bin  u32 type id, u32 blocks, the blocks' bytes, the values as f32
    affine.bin, fp.bin   see write_mlx
    quantize_inputs.bin, quantize_rmse.txt  see write_quantize
"""

import ctypes
import struct
import sys
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parents[2] / "crates/mlx-native/tests/golden"


def ggml_base():
    """llama.cpp's library: the oracle for what the gguf package does not do."""
    import llama_cpp

    return ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib/libggml-base.so"))


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


# Where the f16 scales of a block lie; absent: the block has none.
F16_OFFSETS = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q8_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ2_XXS": [0], "IQ2_XS": [0], "IQ3_XXS": [0], "IQ1_S": [0], "IQ4_NL": [0],
    "IQ3_S": [0], "IQ2_S": [0], "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64], "Q1_0": [0],
}
# Infinity, NaN, the smallest subnormal, a large subnormal, minus zero, the largest number.
SPECIAL_F16 = [0x7C00, 0xFE01, 0x0001, 0x83FF, 0x8000, 0x7BFF]


def dequantize(name, blocks):
    """Values of rows of one block each."""
    import gguf

    if name == "Q8_1":  # no package decodes it: d · q by definition
        d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        return d * blocks[:, 4:].view(np.int8).astype(np.float32)
    if name in ("Q8_K", "Q1_0"):
        function = getattr(ggml_base(), {"Q8_K": "dequantize_row_q8_K", "Q1_0": "dequantize_row_q1_0"}[name])
        values = np.empty((len(blocks), {"Q8_K": 256, "Q1_0": 128}[name]), np.float32)
        function(pointer(blocks), pointer(values), ctypes.c_int64(values.size))
        return values
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])


def write_ggml():
    import gguf

    rng = np.random.default_rng(1)
    with open(OUT / "ggml_dequantize.bin", "wb") as file:
        for ty in gguf.GGMLQuantizationType:
            if ty.name in ("F64", "I8", "I16", "I32", "I64"):
                continue
            values, size = gguf.GGML_QUANT_SIZES[ty]
            if ty.name == "Q8_1":
                size = 36  # the package says 40
            n = 8 if values == 256 else 64 if values == 1 else 12
            blocks = rng.integers(0, 256, (n, size), np.uint8)
            for offset in F16_OFFSETS.get(ty.name, []):
                # ordinary scales, about 2^-7, and after them the special ones
                scales = (rng.standard_normal(n) / 128).astype(np.float16)
                scales.view(np.uint16)[-len(SPECIAL_F16) :] = SPECIAL_F16
                blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(n, 2)
            if ty.name == "MXFP4":
                blocks[:6, 0] = [0, 1, 2, 127, 254, 255]
            if ty.name == "NVFP4":
                blocks[:2, :4] = [[0, 1, 7, 8], [0x7E, 0x7F, 0x80, 0xFF]]
            with np.errstate(all="ignore"):
                expected = dequantize(ty.name, blocks)
            assert expected.dtype == np.float32 and expected.size == n * values, ty
            file.write(struct.pack("<II", ty.value, n) + blocks.tobytes() + expected.tobytes())


def mlx_inputs(rng):
    """A matrix [6, 256] of what weights look like and of what breaks quantizers."""
    rows = [
        rng.standard_normal(256) / 50,
        rng.integers(-9, 10, 256) / 4,  # ties
        rng.integers(0, 10, 256) / 2,
        rng.standard_normal(256) * np.repeat(10.0 ** rng.integers(-6, 4, 8), 32),
        rng.laplace(size=256) * np.repeat([0, 1, 0, 0.01, 0, 1, 1e-4, 1], 32),  # whole groups of (signed) zeros
        np.repeat(rng.standard_normal(8), 32),  # constant groups
    ]
    return np.array(rows, np.float32)


def write_mlx():
    """affine.bin: for each dtype (0 f32, 1 f16, 2 bf16) u32 dtype, rows, k and the input; for each of 21 widths and group sizes
    u32 bits, group size, then packed rows, scales, biases (in the dtype), and for f32 in groups of 64 the decoded values.

    fp.bin: for each dtype and mode (0 mxfp4, 1 mxfp8, 2 nvfp4) u32 dtype, mode, rows, k, the input, packed rows, scales; then for each
    mode u32 groups, packed values, scales, the decoded values as f32.
    """
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    rng = np.random.default_rng(2)

    def raw(array):
        return np.array(array.view(mx.uint8) if array.dtype == mx.bfloat16 else array).tobytes()

    inputs = mlx_inputs(rng)
    dtypes = [mx.float32, mx.float16, mx.bfloat16]
    with open(OUT / "affine.bin", "wb") as file:
        for code, dtype in enumerate(dtypes):
            w = mx.array(inputs).astype(dtype)
            file.write(struct.pack("<III", code, *w.shape) + raw(w))
            for bits in (1, 2, 3, 4, 5, 6, 8):
                for group_size in (32, 64, 128):
                    packed, scales, biases = mx.quantize(w, group_size=group_size, bits=bits)
                    file.write(struct.pack("<II", bits, group_size) + raw(packed) + raw(scales) + raw(biases))
                    if code == 0 and group_size == 64:
                        file.write(raw(mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits)))
    modes = [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
    with open(OUT / "fp.bin", "wb") as file:
        for code, dtype in enumerate(dtypes):
            w = mx.array(inputs).astype(dtype)
            for mode_code, (mode, _, _) in enumerate(modes):
                packed, scales = mx.quantize(w, mode=mode)
                file.write(struct.pack("<IIII", code, mode_code, *w.shape) + raw(w) + raw(packed) + raw(scales))
        for mode, bits, group_size in modes:
            # every scale next to a special one, and every code
            scales = np.r_[[127] * 16, 0:5, 7:10, 120:131, 248:256, rng.integers(0, 256, 5)].astype(np.uint8)
            codes = np.r_[np.arange(256), rng.integers(0, 256, (len(scales) * group_size * bits // 8) - 256)].astype(np.uint8)
            values = mx.dequantize(
                mx.array(codes.view(np.uint32).reshape(len(scales), -1)),
                mx.array(scales.reshape(-1, 1)),
                group_size=group_size,
                bits=bits,
                mode=mode,
                dtype=mx.float32,
            )
            file.write(struct.pack("<I", len(scales)) + codes.tobytes() + scales.tobytes() + raw(values))


COMPARED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "F16", "BF16"]
COMPARED += ["TQ1_0", "TQ2_0", "NVFP4", "Q1_0", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]


def llama_quantize(name, rows):
    """The blocks that llama.cpp's quantizer makes of f32 rows without importance, a row each; for grids, which ask for one, with the same for all."""
    import gguf

    ty = gguf.GGMLQuantizationType[name]
    values, size = gguf.GGML_QUANT_SIZES[ty]
    blocks = np.empty((rows.size // values, size), np.uint8)
    importance = np.ones(rows.shape[1], np.float32) if name[:3] in ("IQ1", "IQ2", "IQ3") else None
    base = ggml_base()
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    written = base.ggml_quantize_chunk(
        ctypes.c_int(ty.value), pointer(rows), pointer(blocks), ctypes.c_int64(0), ctypes.c_int64(len(rows)), ctypes.c_int64(rows.shape[1]),
        None if importance is None else pointer(importance),
    )
    assert written == blocks.size, name
    return blocks


def llama_rmse(name, rows):
    """Root mean square error of what llama.cpp's quantizer makes of the rows."""
    rows = np.ascontiguousarray(rows, np.float32)
    values = dequantize(name, llama_quantize(name, rows)).reshape(rows.shape)
    return float(np.sqrt(np.mean((values.astype(np.float64) - rows) ** 2)))


def write_quantize():
    """quantize_inputs.bin: for each distribution 16 rows of 1024 values as f16; quantize_rmse.txt: lines of distribution, format and
    the error of llama.cpp (llama-cpp-python 0.3.36) on them.

    quantize_exact.bin: u32 values, the values as f32; then, for each format whose rounding is fixed, u32 type id and the bytes that
    the gguf package writes, or llama.cpp where that does not.
    """
    import gguf

    rng = np.random.default_rng(3)
    shape = (16, 1024)
    channels = np.exp(rng.standard_normal(1024) / 2)
    inputs = {
        "gaussian": rng.standard_normal(shape) / 50,
        "laplace": rng.laplace(size=shape) / 70,
        # heavy tails, and channels of different size as in a trained matrix
        "student": rng.standard_t(4, shape) * channels / 100,
    }
    with open(OUT / "quantize_inputs.bin", "wb") as file, open(OUT / "quantize_rmse.txt", "w") as text:
        for distribution, rows in inputs.items():
            rows = rows.astype(np.float16)
            file.write(rows.tobytes())
            for name in COMPARED:
                text.write(f"{distribution} {name} {llama_rmse(name, rows):.9e}\n")

    values = np.concatenate([mlx_inputs(rng)[:4].ravel(), np.float32([-1, 1] * 16), np.float32([0] * 32)])
    values = np.resize(values, 1024 + 256)
    with open(OUT / "quantize_exact.bin", "wb") as file:
        file.write(struct.pack("<I", values.size) + values.tobytes())
        for name in ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"):
            ty = gguf.GGMLQuantizationType[name]
            with np.errstate(all="ignore"):
                file.write(struct.pack("<I", ty.value) + gguf.quants.quantize(values, ty).tobytes())
        for name in ("TQ1_0", "TQ2_0", "NVFP4", "Q1_0"):
            file.write(struct.pack("<I", gguf.GGMLQuantizationType[name].value) + llama_quantize(name, values[np.newaxis]).tobytes())


def main():
    parts = {"ggml": write_ggml, "mlx": write_mlx, "quantize": write_quantize}
    OUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or parts:
        parts[name]()
    for path in sorted(OUT.iterdir()):
        print(f"{path.stat().st_size:8} {path.name}")


if __name__ == "__main__":
    main()
