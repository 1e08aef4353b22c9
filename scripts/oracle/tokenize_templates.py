#!/usr/bin/env python3
"""Writes what jinja2 renders of chat templates, as the golden file of the chat template's tests.

    pip install jinja2
    scripts/oracle/tokenize_templates.py crates/mlx-native-model/tests > crates/mlx-native-model/tests/template_golden.json

The templates are the files template_*.jinja of that directory: SmolLM2's and Gemma 3's own, and one that uses everything that
templates take from Python. The environment is the one that Hugging Face's libraries document for chat templates.
"""

import json
import pathlib
import sys

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Raised(Exception):
    """The template's own refusal."""


class Generation(Extension):
    """The block that marks an answer: here only what is in it."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def raise_exception(message):
    raise Raised(message)


def to_json(value, ensure_ascii=False, indent=None):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = to_json
    env.globals["raise_exception"] = raise_exception
    return env


def message(role, content, **more):
    return {"role": role, "content": content, **more}


SYSTEM = message("system", "Be brief.  ")
USER = message("user", "  What is 2 + 2?\n")
ANSWER = message("assistant", "Four <b>&amp;</b> \"4\".")
AGAIN = message("user", "日本語で 🙂?\n\n\tAnd why?")
THOUGHT = message("assistant", "<think>\nhm, well\n</think>\n\n 4 ", tool_calls=[
    {"name": "add", "arguments": {"a": 2, "b": [2.5, None], "note": "x<y>'z'"}}, {"name": "stop", "arguments": {}}])
PARTS = message("user", [{"type": "text", "text": " Look: "}, {"type": "image"}, {"type": "text", "text": "What is it?"}])
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False}}]

CONVERSATIONS = [
    [USER], [SYSTEM, USER], [USER, ANSWER, AGAIN], [SYSTEM, USER, ANSWER, AGAIN, ANSWER], [ANSWER], [USER, USER], [message("user", "")],
]
MORE = [
    [PARTS], [SYSTEM, PARTS, ANSWER, AGAIN], [message("user", 7)],
]
FEATURES = [
    [USER, THOUGHT, message("skip", "x"), AGAIN, AGAIN, message("stop", "y"), ANSWER],
    [SYSTEM, USER, ANSWER],
]


def cases():
    for name, bos, eos, conversations in [
        ("smollm2", "<|im_start|>", "<|im_end|>", CONVERSATIONS),
        ("gemma3", "<bos>", "<eos>", CONVERSATIONS + MORE),
        ("features", "<s>", "</s>", FEATURES),
    ]:
        for messages in conversations:
            for prompt in [True, False]:
                for variables in [{}, {"tools": TOOLS}] if name == "features" else [{}]:
                    yield name, {"bos": bos, "eos": eos, "messages": messages, "add_generation_prompt": prompt, "variables": variables}


def main():
    directory = pathlib.Path(sys.argv[1])
    env = environment()
    golden = []
    for name, case in cases():
        template = env.from_string((directory / f"template_{name}.jinja").read_text())
        golden.append({"template": name, **case})
        try:
            golden[-1]["text"] = template.render(
                messages=case["messages"], add_generation_prompt=case["add_generation_prompt"], bos_token=case["bos"],
                eos_token=case["eos"], **case["variables"])
        except Raised as refusal:
            golden[-1]["refused"] = str(refusal)
    print(json.dumps(golden, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
