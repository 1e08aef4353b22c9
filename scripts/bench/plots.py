#!/usr/bin/env python3
"""One chart for each model from the JSON of whole_models.py: tokens per second of ours and of llama.cpp, as SVG.

usage: plots.py OUT RESULT.json…      writes OUT/MODEL.svg; results of the same case in later files replace those in earlier ones
"""

import json
import math
import pathlib
import sys
from xml.sax.saxutils import escape

OURS, THEIRS, INK, GRID = "#2563a8", "#c9a227", "#222", "#ddd"
PANEL_HEIGHT, BAR, GAP, LEFT, TOP = 190, 24, 26, 60, 54


def nice_ceiling(value):
    """The next of 1, 2 and 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value)


def text(x, y, content, size=12, anchor="middle", color=INK):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}">{escape(str(content))}</text>'


def panel(x, title, cases, label):
    """A group of two bars for each case: the elements, and the panel's width."""
    highest = nice_ceiling(max(max(c["ours"]["max"], c["theirs"]["max"]) for c in cases))
    width = LEFT + len(cases) * (2 * BAR + GAP) + GAP
    height = lambda value: value / highest * PANEL_HEIGHT
    parts = [text(x + LEFT, TOP - 12, title, 13, "start")]
    for i in range(5):
        y = TOP + PANEL_HEIGHT * (1 - i / 4)
        parts.append(f'<line x1="{x + LEFT}" x2="{x + width - GAP / 2}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(text(x + LEFT - 6, y + 4, f"{highest * i / 4:g}", 11, "end"))
    for i, case in enumerate(cases):
        left = x + LEFT + GAP / 2 + i * (2 * BAR + GAP)
        for j, (who, color) in enumerate((("ours", OURS), ("theirs", THEIRS))):
            value = case[who]
            bar, top = left + j * BAR, TOP + PANEL_HEIGHT - height(value["median"])
            parts.append(f'<rect x="{bar:.1f}" y="{top:.1f}" width="{BAR - 2}" height="{height(value["median"]):.1f}" fill="{color}"/>')
            middle = bar + BAR / 2 - 1
            ends = [TOP + PANEL_HEIGHT - height(value[end]) for end in ("min", "max")]
            parts.append(f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}" stroke="{INK}"/>')
        parts.append(text(left + BAR, TOP + PANEL_HEIGHT + 16, label(case), 11))
        parts.append(text(left + BAR, TOP + PANEL_HEIGHT + 31, f"{case['ratio']:.1f} ×", 11))
    return parts, width


def chart(model, machine, cases):
    """The SVG of a model on a machine: prefill on the left, decode on the right, one thread before two."""
    parts, x = [], 0
    for kind, title in (("prefill", "prefill, by prompt length: tokens/s"), ("decode", "decode, by tokens in context: tokens/s")):
        for threads in sorted({c["threads"] for c in cases}):
            chosen = [c for c in cases if c["kind"] == kind and c["threads"] == threads]
            chosen.sort(key=lambda c: (c["tokens"], c["depth"]))
            if chosen:
                label = lambda c: c["tokens"] if c["kind"] == "prefill" else c["depth"]
                elements, width = panel(x, f"{title}, {threads} thread{'s' * (threads > 1)}", chosen, label)
                # A title is wider than the bars of a single case.
                x += max(width, LEFT + 7 * len(f"{title}, {threads} threads"))
                parts += elements
    head = [text(12, 22, model, 15, "start")]
    for i, (name, color) in enumerate((("mlx-native", OURS), ("llama.cpp", THEIRS))):
        left = 20 + 9 * len(model) + 110 * i
        head += [f'<rect x="{left}" y="12" width="12" height="12" fill="{color}"/>', text(left + 17, 22, name, 12, "start")]
    head.append(text(20 + 9 * len(model) + 220, 22, machine, 12, "start"))
    height = TOP + PANEL_HEIGHT + 44
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{x}" height="{height}" viewBox="0 0 {x} {height}" font-family="sans-serif">'
    return "\n".join([opening, f'<rect width="{x}" height="{height}" fill="white"/>', *head, *parts, "</svg>"]) + "\n"


out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
found, machines = {}, {}
for path in sys.argv[2:]:
    results = json.loads(pathlib.Path(path).read_text())
    machine = f"{results['machine']['processor']}, {results['machine']['date'][:10]}"
    for case in results["cases"]:
        machines.setdefault(case["model"], []).append(machine)
        if case["isa"] is None and not case["batch_invariant"]:
            found.setdefault(case["model"], {})[case["kind"], case["threads"], case["tokens"], case["depth"]] = case
for model, cases in found.items():
    path = out / f"{model}.svg"
    path.write_text(chart(model, "; ".join(dict.fromkeys(machines[model])), list(cases.values())))
    print(path)
