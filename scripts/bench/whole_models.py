#!/usr/bin/env python3
"""Prefill and decode of whole models, ours and llama.cpp's in turn on the same machine, as a Markdown table.

usage: whole_models.py MLXN PEERS [MODEL…]    (PEERS: the folder that scripts/peers/setup.sh made; MODEL: names of its models, without .gguf)

Each round runs both programs once, so that a noisy neighbour disturbs both; the medians of ROUNDS rounds are compared. Two threads, a prompt of 512
tokens, 64 generated ones.
"""

import json
import pathlib
import statistics
import subprocess
import sys

ROUNDS = 5
mlxn, peers = sys.argv[1], pathlib.Path(sys.argv[2])
models = sys.argv[3:] or ["smollm2", "gemma3-270m"]


def ours(model):
    run = subprocess.run([mlxn, "bench", "model", model, "-p", "512", "-n", "64", "-r", "1", "--threads", "2", "--json"],
                         capture_output=True, check=True)
    result = json.loads(run.stdout)
    return result["prefill_tokens_per_second"], result["decode_tokens_per_second"]


def theirs(model):
    run = subprocess.run([peers / "llama.cpp/build/bin/llama-bench", "-m", model, "-p", "512", "-n", "64", "-t", "2", "-r", "1", "-o", "json"],
                         capture_output=True, check=True)
    prefill, decode = json.loads(run.stdout)
    return prefill["avg_ts"], decode["avg_ts"]


print("| model | prefill: ours | llama.cpp | ratio | decode: ours | llama.cpp | ratio |\n|---|---|---|---|---|---|---|")
for name in models:
    model = peers / f"models/{name}.gguf"
    rounds = [(ours(model), theirs(model)) for _ in range(ROUNDS)]
    row = [name]
    for kind in (0, 1):
        us = statistics.median(a[kind] for a, _ in rounds)
        them = statistics.median(b[kind] for _, b in rounds)
        row += [f"{us:.0f}", f"{them:.0f}", f"{us / them:.1f} ×"]
    print("| " + " | ".join(row) + " |", flush=True)
