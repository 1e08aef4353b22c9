#!/usr/bin/env python3
"""Prefill and decode of whole models, ours and llama.cpp's in turn on the same machine: a Markdown table, and JSON for plots.py.

Each round runs both programs once, so that a noisy neighbour disturbs both; the medians of all rounds are compared. Models are names without .gguf of the
folder that scripts/peers/setup.sh made, or paths.

example: whole_models.py mlxn ~/.cache/mlx-native/peers smollm2 gemma3-270m --threads 1,2 --prompts 32,512,2048 --depths 0,512,4096 --json models.json
"""

import argparse
import pathlib

import common

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("mlxn")
parser.add_argument("peers", type=pathlib.Path)
parser.add_argument("models", nargs="*", default=["smollm2", "gemma3-270m"])
numbers = lambda text: [int(number) for number in text.split(",") if number]
parser.add_argument("--threads", type=numbers, default=[2])
parser.add_argument("--prompts", type=numbers, default=[512], help="tokens of prompts")
parser.add_argument("--depths", type=numbers, default=[0], help="tokens in context before decoding")
parser.add_argument("-n", "--generate", type=int, default=64)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--isa", help="instruction set of ours")
parser.add_argument("--libraries", help="folder of llama.cpp's libraries, such as those built for AVX2 alone")
parser.add_argument("--batch-invariant", action="store_true", help="compare ours with batch_invariant on with ours, not with llama.cpp")
parser.add_argument("--json", help="write the results to this file")
args = parser.parse_args()


def ours(model, threads, prompt, generate, depth, *extra):
    command = [args.mlxn, "bench", "model", model, "-p", prompt, "-n", generate, "-d", depth, "-r", 1, "--threads", threads, "--json", "--device", "cpu"]
    command += ["--isa", args.isa] if args.isa else []
    return common.run_json(command + list(extra))


def theirs(model, threads, prompt, generate, depth):
    """Tokens per second of prefill and of decode; what was not asked for is absent."""
    if args.batch_invariant:
        found = ours(model, threads, prompt, generate, depth)
        return {kind: found[f"{kind}_tokens_per_second"] for kind in ("prefill", "decode")}
    command = [args.peers / "llama.cpp/build/bin/llama-bench", "-m", model, "-p", prompt, "-n", generate, "-d", depth, "-t", threads, "-r", 1, "-o", "json"]
    env = {"LD_LIBRARY_PATH": args.libraries} if args.libraries else None
    return {"prefill" if test["n_prompt"] else "decode": test["avg_ts"] for test in common.run_json(command, env)}


def measure(name, threads, prompt, generate, depth):
    """Rounds of one pair of processes: the cases that they measured."""
    model = pathlib.Path(name)
    if not model.is_file():
        model = args.peers / f"models/{name}.gguf"
    extra = ["--batch-invariant"] if args.batch_invariant else []
    rounds = []
    for _ in range(args.rounds):
        us = ours(model, threads, prompt, generate, depth, *extra)
        rounds.append((us, theirs(model, threads, prompt, generate, depth)))
    each = lambda field: [us[field] for us, _ in rounds]
    for kind, tokens, share, limit in (
        ("prefill", prompt, "prefill_share_of_peak", "int8_peak_gop_per_s"),
        ("decode", generate, "decode_share_of_read", "read_gb_per_s"),
    ):
        if tokens:
            us, them = each(f"{kind}_tokens_per_second"), [them[kind] for _, them in rounds]
            yield {
                "model": model.stem, "kind": kind, "threads": threads, "tokens": tokens, "depth": depth, "isa": args.isa,
                "peer": "ours without batch_invariant" if args.batch_invariant else "llama.cpp" + (" (AVX2)" if args.libraries else ""),
                "batch_invariant": args.batch_invariant,
                "ours": common.spread(us), "theirs": common.spread(them), "ratio": common.median(us) / common.median(them),
                "share": common.median(each(share)), "limit": common.median(each(limit)), "limit_is": limit,
                "file_bytes": rounds[0][0]["file_bytes"], "cache_bytes": rounds[0][0]["cache_bytes"],
                "peak_memory_bytes": max(us["peak_memory_bytes"] or 0 for us, _ in rounds),
            }


def processes():
    """(prompt, generated, depth) of each process: the first prompt and decoding in an empty context go into one."""
    prompts, depths = list(args.prompts), list(args.depths) if args.generate else []
    if prompts and depths and depths[0] == 0:
        yield prompts.pop(0), args.generate, depths.pop(0)
    for prompt in prompts:
        yield prompt, 0, 0
    for depth in depths:
        yield 0, args.generate, depth


def main():
    results = {"machine": common.machine(), "rounds": args.rounds, "cases": []}
    header = ["model", "threads", "what", "ours", "share", args.batch_invariant and "ours, not invariant" or "llama.cpp", "ratio"]
    print(common.table(header, []), flush=True)
    for threads in args.threads:
        for name in args.models:
            for found in (found for process in processes() for found in measure(name, threads, *process)):
                results["cases"].append(found)
                common.write_json(args.json, results)
                what = f"prefill of {found['tokens']}" if found["kind"] == "prefill" else f"decode at {found['depth']}"
                print(f"| {found['model']} | {threads} | {what} | {found['ours']['median']:.0f} | {100 * (found['share'] or 0):.0f} % "
                      f"| {found['theirs']['median']:.0f} | {found['ratio']:.2f} × |", flush=True)


main()
