#!/usr/bin/env python3
"""One matmul: ours, llama.cpp's, candle's and MLX's in turn on the same machine: Markdown tables, and JSON for plots.py.

ours     mlxn bench ops, beside what the processor can do at most
llama    test-backend-ops perf, which has m = 1, 8 and 512 of n = 4096, k = 14336; it multiplies plain blocks, not those that llama.cpp repacks when it loads a model
candle   the program in candle/, built with: RUSTFLAGS="-C target-cpu=native" cargo build --release
mlx      mlx on the CPU, affine formats, groups of 64

Each round runs everything once; medians of all rounds are compared.

example: matmul.py mlxn ~/.cache/mlx-native/peers --candle candle/target/release/candle-matmul --json matmul.json
"""

import argparse
import os
import pathlib
import re
import subprocess

import common

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("mlxn")
parser.add_argument("peers", type=pathlib.Path)
parser.add_argument("--candle", help="the program built from candle/")
words = lambda text: [word for word in text.split(",") if word]
parser.add_argument("--formats", type=words, default=words("Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,IQ4_NL,IQ4_XS,MXFP4"))
parser.add_argument("--affine", type=words, default=["4", "8"], help="widths of MLX formats")
parser.add_argument("-m", type=words, default=["1", "8", "128", "512"])
parser.add_argument("-n", type=int, default=4096)
parser.add_argument("-k", type=int, default=14336)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--isa", help="instruction set of ours")
parser.add_argument("--exact", action="store_true", help="exact activations of ours")
parser.add_argument("--without", type=words, default=[], help="leave out: llama, candle, mlx")
parser.add_argument("--json", help="write the results to this file")
args = parser.parse_args()
LLAMA_M = {"1", "8", "512"}


def ours(formats):
    command = [args.mlxn, "bench", "ops", "--format", ",".join(formats), "-m", ",".join(args.m), "-n", args.n, "-k", args.k]
    command += ["--threads", args.threads, "--json", "--device", "cpu"] + (["--isa", args.isa] if args.isa else [])
    command += ["--activations", "exact"] if args.exact else []
    return {(found["format"], found["m"]): found for found in common.run_json(command)}


def llama(formats):
    ms = [m for m in args.m if m in LLAMA_M]
    if "llama" in args.without or not ms or (args.n, args.k) != (4096, 14336):
        return {}
    pattern = f"type_a=({'|'.join(f.lower().replace('_k', '_K') for f in formats)}),type_b=f32,m={args.n},n=({'|'.join(ms)}),k={args.k},bs=\\[1,1\\],nr=\\[1,1\\]"
    command = [args.peers / "llama.cpp/build/bin/test-backend-ops", "perf", "-o", "MUL_MAT", "-b", "CPU", "-p", pattern]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {}
    # Its CSV has no times.
    for ty, m, microseconds in re.findall(r"type_a=(\w+),.*?,n=(\d+),k=.* ([\d.]+) us/run", run.stdout):
        found[ty.upper(), int(m)] = {"seconds": float(microseconds) / 1e6}
    return found


def candle(formats):
    if "candle" in args.without or not args.candle:
        return {}
    command = [args.candle, str(args.n), str(args.k), ",".join(formats), ",".join(args.m), "0.3"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "RAYON_NUM_THREADS": str(args.threads)})
    import json
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    return {(row["format"], row["m"]): row for row in rows}


MLX = """
import json, sys, time, mlx.core as mx
n, k, bits, ms = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(",")
mx.set_default_device(mx.cpu)
w, scales, biases = mx.quantize(mx.random.normal((n, k)), group_size=64, bits=bits)
for m in map(int, ms):
    x = mx.random.normal((m, k))
    times = []
    for _ in range(3 if m > 8 else 4):
        mx.eval(x)
        start = time.perf_counter()
        mx.eval(mx.quantized_matmul(x, w, scales, biases, transpose=True, group_size=64, bits=bits))
        times.append(time.perf_counter() - start)
    print(json.dumps({"m": m, "seconds": sorted(times[1:])[len(times[1:]) // 2]}))
"""


def mlx(bits):
    if "mlx" in args.without:
        return {}
    import json
    # Every row costs it the same; more than 64 of them take minutes.
    ms = ",".join(m for m in args.m if int(m) <= 64)
    run = subprocess.run([args.peers / "venv/bin/python", "-c", MLX, str(args.n), str(args.k), bits, ms], capture_output=True, text=True, check=True)
    return {(f"affine{bits}", row["m"]): row for row in map(json.loads, run.stdout.splitlines())}


def affine(bits):
    return f"affine{bits}"


def main():
    results = {"machine": common.machine(), "rounds": args.rounds, "n": args.n, "k": args.k, "threads": args.threads, "isa": args.isa, "exact": args.exact, "cases": []}
    groups = [(name, [name]) for name in args.formats] + [(affine(bits), [bits]) for bits in args.affine]
    flops = lambda m, seconds: 2.0 * m * args.n * args.k / seconds / 1e9
    print(common.table(["format", "m", "ours: GFLOP/s", "share of reading", "share of peak", "llama.cpp", "candle", "MLX", "ours against the best"], []), flush=True)
    for name, members in groups:
        rounds = []
        for _ in range(args.rounds):
            if name.startswith("affine"):
                bits = members[0]
                us = {(name, m): row for (_, m), row in ours([f"affine{bits}_g64_bf16"]).items()}
                rounds.append({"ours": us, "mlx": mlx(bits)})
            else:
                rounds.append({"ours": ours(members), "llama": llama(members), "candle": candle(members)})
        for m in map(int, args.m):
            pick = lambda who, field: common.median([(r.get(who, {}).get((name, m)) or {}).get(field) for r in rounds])
            found = {"format": name, "m": m, "seconds": pick("ours", "seconds"), "share_of_read": pick("ours", "share_of_read"), "gb_per_s": pick("ours", "gb_per_s"),
                     "read_gb_per_s": pick("ours", "read_gb_per_s"), "share_of_peak": pick("ours", "share_of_peak"), "peak_gop_per_s": pick("ours", "peak_gop_per_s")}
            found["peers"] = {who: seconds for who in ("llama", "candle", "mlx") if (seconds := pick(who, "seconds"))}
            results["cases"].append(found)
            common.write_json(args.json, results)
            peer = lambda who: f"{flops(m, found['peers'][who]):.4g}" if who in found["peers"] else ""
            ratio = f"{min(found['peers'].values()) / found['seconds']:.2f} ×" if found["peers"] else ""
            print(f"| {name} | {m} | {flops(m, found['seconds']):.0f} | {100 * (found['share_of_read'] or 0):.0f} % | {100 * (found['share_of_peak'] or 0):.0f} % "
                  f"| {peer('llama')} | {peer('candle')} | {peer('mlx')} | {ratio} |", flush=True)


main()
