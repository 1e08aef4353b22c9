#!/usr/bin/env python3
"""Records what llama.cpp computes, for crates/mlx-native-model/tests/llama_cpp.rs.

usage: make_golden.py PEERS MLXN

PEERS is the folder that scripts/peers/setup.sh made; MLXN our program, which turns text into token ids (they equal llama.cpp's: tests/tokenizer.rs).
llama.cpp runs the same weights dequantized to F32 with a key-value cache in f32: with its own quantized activations it is no oracle.
Needs g++ for llama_oracle.cpp.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

peers, mlxn = pathlib.Path(sys.argv[1]), sys.argv[2]
here = pathlib.Path(__file__).resolve().parent
golden = here.parent.parent / "crates/mlx-native-model/tests/golden"
llama = peers / "llama.cpp"
oracle = pathlib.Path(tempfile.mkdtemp()) / "llama_oracle"
libraries = llama / "build/bin"
subprocess.run(
    ["g++", "-O2", "-std=c++17", f"-I{llama}/include", f"-I{llama}/ggml/include", here / "llama_oracle.cpp", f"-L{libraries}",
     "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}", "-o", oracle],
    check=True,
)

# Every STRIDE-th token's logit at every STEP-th position, which the test repeats.
COLUMNS = 1024
MODELS = {"smollm2": (256, 16), "gemma3-270m": (900, 50)}
GREEDY = 32


def tokenize(model, text):
    run = subprocess.run([mlxn, "tokenize", model, "--json"], input=text.encode(), capture_output=True, check=True)
    return json.loads(run.stdout)["ids"]


def ask(mode, model, ids, argument):
    with tempfile.NamedTemporaryFile("w", suffix=".ids") as file:
        file.write(" ".join(map(str, ids)))
        file.flush()
        return subprocess.run([oracle, mode, model, file.name, argument], capture_output=True, check=True, text=True).stdout


text = (golden / "text.txt").read_text()
prompts = (golden / "prompts.txt").read_text().splitlines()
for name, (tokens, step) in MODELS.items():
    model, wide = peers / f"models/{name}.gguf", peers / f"models/{name}-f32.gguf"
    ids = tokenize(model, text)[:tokens]
    with tempfile.NamedTemporaryFile(suffix=".f32") as out:
        ask("logits", wide, ids, out.name)
        rows = pathlib.Path(out.name).read_bytes()
    vocabulary = len(rows) // 4 // tokens
    stride = vocabulary // COLUMNS
    sample = bytearray()
    for position in range(step - 1, tokens, step):
        for column in range(COLUMNS):
            at = 4 * (position * vocabulary + column * stride)
            sample += rows[at : at + 4]
    (golden / f"{name}.logits").write_bytes(sample)

    lines = []
    for prompt in prompts:
        ids = tokenize(model, prompt.replace("\\n", "\n"))
        steps = [line.split() for line in ask("greedy", wide, ids, str(GREEDY)).splitlines()]
        lines.append(" ".join(f"{token}:{float(best) - float(second):.4f}" for token, best, second in steps))
    (golden / f"{name}.greedy").write_text("\n".join(lines) + "\n")

    # Of the dequantized weights, and of the file as it is: the second has the noise of llama.cpp's own 8-bit activations.
    perplexities = []
    for file in (wide, model):
        run = subprocess.run(
            [libraries / "llama-perplexity", "-m", file, "-f", golden / "text.txt", "-c", "512", "-t", "2", "--no-warmup"],
            capture_output=True, text=True, check=True,
        )
        perplexities.append(re.search(r"Final estimate: PPL = ([0-9.]+)", run.stdout + run.stderr).group(1))
    (golden / f"{name}.perplexity").write_text(" ".join(perplexities) + "\n")
    print(f"{name}: vocabulary {vocabulary}, perplexities {perplexities}")
