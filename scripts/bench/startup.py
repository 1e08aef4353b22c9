#!/usr/bin/env python3
"""Time to the first token from the start of a process, and peak memory: ours and llama.cpp's in turn, as a Markdown table.

A process answers a prompt of about 32 tokens with one token. `cached` leaves the model file in the operating system's page cache; `cold` asks the system
to drop it before every start. Memory is what the system counts as resident at most, pages of the mapped file included; the bound of ours is the file,
the key-value cache and 64 MiB.

example: startup.py mlxn ~/.cache/mlx-native/peers smollm2 --json startup.json
"""

import argparse
import os
import pathlib
import subprocess
import time

import common

PROMPT = "The quick brown fox jumps over the lazy dog. A journey of a thousand miles begins with a single step, and every river finds its way to the sea."

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("mlxn")
parser.add_argument("peers", type=pathlib.Path)
parser.add_argument("models", nargs="*", default=["smollm2"])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--json")
args = parser.parse_args()


def drop(path):
    """Asks the system to forget the file's pages."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def start(command):
    """Seconds until the process has ended, and its peak memory in bytes."""
    before = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit status {process.returncode}")
    return time.perf_counter() - before, usage.ru_maxrss * 1024


def main():
    results = {"machine": common.machine(), "rounds": args.rounds, "cases": []}
    print(common.table(["model", "file", "ours", "llama.cpp", "ratio", "memory: ours", "llama.cpp", "file"], []), flush=True)
    for name in args.models:
        model = pathlib.Path(name) if pathlib.Path(name).is_file() else args.peers / f"models/{name}.gguf"
        us = [args.mlxn, "run", model, "--raw", PROMPT, "-n", 1, "--temperature", 0, "--quiet", "--threads", args.threads, "--device", "cpu"]
        them = [args.peers / "llama.cpp/build/bin/llama-completion", "-m", model, "-p", PROMPT, "-n", 1, "--temp", 0, "-t", args.threads, "-no-cnv", "--no-warmup", "-c", 128]
        for kind in ("cached", "cold"):
            rounds = []
            start(us)
            for _ in range(args.rounds):
                both = []
                for command in (us, them):
                    if kind == "cold":
                        drop(model)
                    both.append(start(command))
                rounds.append(both)
            found = {"model": model.stem, "file": kind, "file_bytes": model.stat().st_size}
            for i, who in enumerate(("ours", "theirs")):
                found[who] = {"seconds": common.spread([both[i][0] for both in rounds]), "memory_bytes": max(both[i][1] for both in rounds)}
            results["cases"].append(found)
            common.write_json(args.json, results)
            seconds = [found[who]["seconds"]["median"] for who in ("ours", "theirs")]
            memory = [found[who]["memory_bytes"] >> 20 for who in ("ours", "theirs")]
            print(f"| {model.stem} | {kind} | {1e3 * seconds[0]:.0f} ms | {1e3 * seconds[1]:.0f} ms | {seconds[1] / seconds[0]:.1f} × "
                  f"| {memory[0]} MiB | {memory[1]} MiB | {found['file_bytes'] >> 20} MiB |", flush=True)


main()
