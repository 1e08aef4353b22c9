#!/usr/bin/env python3
"""Runs mlx-lm on the random model directories that crates/mlx-native-model/tests/random_models.rs has written, beside llama.cpp's recorded logits.

    pip install mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2
    cargo test -p mlx-native-model --test random_models
    python scripts/oracle/mlx_random_models.py TARGET/tmp

The test holds our own results to the same record, so that agreement here means that three programs read the directories alike.
"""

import json
import sys
from pathlib import Path

# `tokenize.py` here would stand in for the standard library's.
sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model

GOLDEN = Path(__file__).resolve().parents[2] / "crates/mlx-native-model/tests/golden/random"

mx.set_default_device(mx.cpu)
golden = json.loads((GOLDEN / "models.json").read_text())
for entry in golden["models"]:
    for kind in ("affine4-g64", "affine8-g32"):
        model, _ = load_model(Path(sys.argv[1]) / f"{entry['name']}-{kind}")
        model.set_dtype(mx.float32)
        ours = np.array(model(mx.array(golden["ids"])[None])[0]).astype(np.float64)
        theirs = np.fromfile(GOLDEN / f"{entry['name']}.logits", np.float32).reshape(ours.shape).astype(np.float64)
        print(f"{entry['name']} {kind}: NMSE {((ours - theirs) ** 2).sum() / (theirs**2).sum():.2e}", flush=True)
