"""Write crates/mlx-native/tests/golden/gguf: small files as the gguf package writes them, for gguf_golden.rs.

    pip install numpy gguf==0.19.0
    python scripts/golden/make_gguf.py

    all.gguf                 every metadata type, nested arrays, tokens that are not UTF-8, alignment 64, tensors of several types
    split-0000N-of-00003.gguf  five tensors over three parts, the first of which holds metadata only
    big-endian.gguf          a big-endian file, which the reader refuses by name

Byte j of tensor number i (from 0) is (7 j + 13 i + 1) mod 256.
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFEndian, GGUFValueType as V, GGUFWriter

OUT = Path(__file__).resolve().parents[2] / "crates/mlx-native/tests/golden/gguf"

# Name, shape in bytes (rows of whole blocks), type.
TENSORS = [
    ("token_embd.weight", (3, 34 * 2), Q.Q8_0),
    ("blk.0.attn_q.weight", (2, 144), Q.Q4_K),
    ("blk.0.ffn_gate_exps.weight", (2, 3, 18 * 2), Q.Q4_0),
    ("blk.0.attn_norm.weight", (5 * 4,), Q.F32),
    ("blk.0.bf16", (1, 2, 3, 4 * 2), Q.BF16),
    ("blk.0.mxfp4", (1, 17), Q.MXFP4),
]


def add_tensors(writer, tensors):
    for i, (name, shape, kind) in enumerate(tensors):
        data = ((7 * np.arange(np.prod(shape)) + 13 * i + 1) % 256).astype(np.uint8).reshape(shape)
        writer.add_tensor(name, data, raw_dtype=kind)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_all():
    writer = GGUFWriter(OUT / "all.gguf", "golden")
    writer.add_custom_alignment(64)
    writer.add_uint8("v.u8", 200)
    writer.add_int8("v.i8", -100)
    writer.add_uint16("v.u16", 60_000)
    writer.add_int16("v.i16", -30_000)
    writer.add_uint32("v.u32", 4_000_000_000)
    writer.add_int32("v.i32", -2_000_000_000)
    writer.add_uint64("v.u64", 2**63 + 1)
    writer.add_key_value("v.i64", -(2**62), V.INT64)
    writer.add_float32("v.f32", 0.15625)
    writer.add_float64("v.f64", 1e300)
    writer.add_bool("v.true", True)
    writer.add_bool("v.false", False)
    writer.add_string("v.string", "grüße, 世界 🦀")
    writer.add_key_value("v.empty_string", "", V.STRING)
    writer.add_array("a.strings", ["a", "", "ß"])
    writer.add_array("a.i32", [1, -2, 3])
    writer.add_array("a.f32", [0.5, -1.5])
    writer.add_array("a.bool", [True, False, True])
    writer.add_key_value("a.u64", [2**64 - 1, 0], V.ARRAY, V.UINT64)
    writer.add_key_value("a.bytes", b"\x00\xff\x7f", V.ARRAY)
    writer.add_array("a.nested", [[1, 2], [3]])
    writer.add_token_list([b"\xff\xfe", "ok".encode(), b"\xc3"])
    add_tensors(writer, TENSORS)
    finish(writer)


def write_split():
    writer = GGUFWriter(OUT / "split.gguf", "golden", split_max_tensors=3, small_first_shard=True)
    writer.add_uint32("golden.block_count", 7)
    add_tensors(writer, TENSORS[:5])
    finish(writer)


def write_big_endian():
    writer = GGUFWriter(OUT / "big-endian.gguf", "golden", endianess=GGUFEndian.BIG)
    finish(writer)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.glob("*.gguf"):
        old.unlink()
    write_all()
    write_split()
    write_big_endian()
    for path in sorted(OUT.glob("*.gguf")):
        print(path.name, path.stat().st_size)
