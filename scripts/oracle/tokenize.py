#!/usr/bin/env python3
"""Writes the token ids that llama.cpp gives for 1,000 strings, as the golden file of the tokenizer's tests.

    pip install llama-cpp-python
    scripts/oracle/tokenize.py smollm2.gguf gemma3-270m.gguf > crates/mlx-native-model/tests/tokenizer_golden.jsonl

The strings come from a generator with a fixed seed. Each output line is a JSON array: text, add_special, parse_special, ids for
SmolLM2, ids for Gemma 3.
"""

import argparse
import json
import sys

COUNT = 1000


class Random:
    """A linear congruential generator (Knuth's MMIX constants), the same on every Python."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % n

    def choice(self, items):
        return items[self.below(len(items))]


ENGLISH = """the quick brown fox jumps over lazy dog while nobody's watching and it's raining we'll see they've gone I'm sure
you'd better not don't can't O'Neil rock'n'roll HELLO World iPhone internationalization antidisestablishmentarianism a I of
Photosynthesis converts light energy into chemical quantum tokenizer unbelievable naïve café résumé Zürich coöperate""".split()
OTHER_SCRIPTS = """Привет мир как дела сегодня Ελληνικά γλώσσα καλημέρα שלום עולם مرحبا بالعالم السلام عليكم हिन्दी नमस्ते दुनिया
ภาษาไทย สวัสดี ქართული հայերեն 日本語のテキスト 東京都 こんにちは カタカナ 한국어 안녕하세요 中文分词 你好世界 繁體中文 𠮷野家 Tiếng Việt
đường İstanbul ığdır Straße ﬁne ǅ ᚠᚢᚦ ꙮ தமிழ் తెలుగు മലയാളം বাংলা ລາວ မြန်မာ ភាសាខ្មែរ አማርኛ ᏣᎳᎩ""".split()
CODE = [
    "fn main() {\n    println!(\"{}\", x);\n}\n",
    "def f(self, *args, **kwargs):\n\treturn [i**2 for i in range(10) if i % 2 == 0]\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * c[i]; }",
    "SELECT * FROM users WHERE id = 42 AND name LIKE '%x%';",
    "<div class=\"box\"><p>Hi &amp; bye</p></div>",
    "{\"key\": [1, 2.5, -3e10, null, true], \"s\": \"a\\\"b\\n\"}",
    "#include <stdio.h>\r\nint main(void) {\r\n  return 0;\r\n}\r\n",
    "git commit -m 'fix: x' && cargo test --all-features | tee /tmp/log.txt",
    "x = y<<3 | ~z & 0xFF ^ 0b1010; // comment /* nested */",
    "https://example.com/a/b?c=d&e=%20f#frag user@example.org",
    "if __name__ == \"__main__\":\n    import sys\n\n\n    sys.exit(main())",
    "$$\\int_0^\\infty e^{-x^2} dx = \\frac{\\sqrt{\\pi}}{2}$$",
    "| a | b |\n|---|:-:|\n| 1 | 2 |\n\n- [ ] todo\n  1. one\n",
    "\t\t\tdeeply\n\t\t\t\tindented\n        spaces\n            more",
]
EMOJI = ["🙂", "👩‍💻", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇯🇵", "👍🏽", "❤️", "☕", "🤷🏿‍♂️", "1️⃣", "🫠", "✨🎉", "©®™", "→⇒∀∃∈ℝ", "½¼²³①Ⅷ"]
NUMBERS = ["0", "7", "42", "123", "1234", "12345", "1234567890", "3.14159", "-1.5e-10", "1,000,000", "0x1F", "2024-02-29",
           "12:34:56", "$99.99", "50%", "٣٤٥", "१२३", "１２３", "1/2", "v1.2.3-rc.4", "007"]
SPACES = [" ", "  ", "   ", "    ", "     ", "         ", "\t", "\t\t", " \t ", "\n", "\n\n", "\n\n\n", "\r\n", "\r", " \n", "\n ",
          "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", "\x0b", "\x0c", "\x85", "\ufeff", "\u202e", "▁", "▁▁"]
CONTROLS = ["\x00", "\x01", "\x04", "\x06", "\x07", "\x08", "\x13", "\x14", "\x16", "\x1b[31m", "\x1c", "\x1d", "\x1e", "\x1f", "\x7f",
            "\x80", "\x9f", "\ufffd", "\ufffe", "\uffff", "\ue000", "\U0010ffff", "\u0300", "e\u0301\u0327", "\u0378"]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<unk>", "<pad>",
           "<mask>", "<repo_name>", "<file_sep>", "<unused0>", "<unused99>", "<0x0A>", "<0xE2>", "[multimodal]", "<start_of_image>",
           "<|im_end", "|im_end|>", "< |im_end|>", "<s>", "</s>", "<h1>", "</table>", "<br>", "<|IM_END|>", "<<|im_end|>>", "[INST]"]
PUNCTUATION = ["!", "?!", "...", "…", "—", "--", "''", "\"", "'s", "'S", "'ll", "'LL", "’s", "«»", "(", ")]}", "/*", "*/", "#", "@", "\\",
               "~~~", "===", "!!!!!!!!!!", "。", "、", "？", "¿", "،", "·", "•", "`", "```", "§", "€", "£", "+-*/", "^_^", ";:"]


def words(rng):
    return rng.choice(["", " "]).join(rng.choice(ENGLISH) + rng.choice(["", "", "", ",", ".", "!", "'s"]) + " "
                                      for _ in range(1 + rng.below(12)))


def scripts(rng):
    return rng.choice(["", " ", "  "]).join(rng.choice(OTHER_SCRIPTS) for _ in range(1 + rng.below(6)))


def code(rng):
    text = rng.choice(CODE)
    start = rng.below(len(text))
    return rng.choice([text, text[start:], text[:start + 1]])


def emoji(rng):
    return "".join(rng.choice(EMOJI) + rng.choice(["", " ", "a"]) for _ in range(1 + rng.below(5)))


def numbers(rng):
    return "".join(rng.choice(NUMBERS) + rng.choice(["", " ", "  ", "x", ","]) for _ in range(1 + rng.below(5)))


def spaces(rng):
    def run():
        return rng.choice(SPACES) * (1 + rng.below(4) * rng.below(9))
    return "".join(run() + rng.choice(["", "a", "The", "1", "é", "!", "日"]) for _ in range(1 + rng.below(6)))


def controls(rng):
    return "".join(rng.choice(CONTROLS) + rng.choice(["", "a", " ", "日"]) for _ in range(1 + rng.below(5)))


def special(rng):
    return "".join(rng.choice(SPECIAL) + rng.choice(["", "", " ", "\n", "user\n", " x "]) for _ in range(1 + rng.below(5)))


def punctuation(rng):
    return "".join(rng.choice(["", " "]) + rng.choice(PUNCTUATION) + rng.choice(["", "a", "B2"]) for _ in range(1 + rng.below(8)))


def code_points(rng):
    def one():
        block = rng.choice([0x20, 0xA0, 0x250, 0x370, 0x590, 0x900, 0x1E00, 0x2000, 0x2E80, 0x3040, 0x4E00, 0xA640, 0xAC00, 0xFB00,
                            0x1D400, 0x1F300, 0x1F900, 0x20000])
        return chr(block + rng.below(0x200))
    return "".join(one() for _ in range(1 + rng.below(24)))


def runs(rng):
    return rng.choice(["a", "A", "ab", "=", "-", "9", "ha", "é", "日", "🙂", ".", "x ", "_"]) * (1 + rng.below(60))


def mixed(rng):
    parts = [words, scripts, code, emoji, numbers, spaces, controls, special, punctuation, code_points]
    return "".join(rng.choice(parts)(rng)[:40] for _ in range(2 + rng.below(3)))


def strings():
    """The cases: (text, add_special, parse_special)."""
    kinds = [words, scripts, code, emoji, numbers, spaces, controls, special, punctuation, code_points, runs, mixed, mixed]
    texts = ["", " ", "  ", "\n", "a", "'", "\x00"]
    rng = Random(20260101)
    while len(texts) < COUNT:
        text = kinds[len(texts) % len(kinds)](rng)[:190]
        texts.append("".join(c for c in text if not 0xD800 <= ord(c) < 0xE000))
    return [(text, i % 3 == 0, i % 2 == 0) for i, text in enumerate(texts)]


class Vocabulary:
    """A model's vocabulary, read by llama.cpp."""

    def __init__(self, path):
        import llama_cpp

        self.api = llama_cpp
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            sys.exit(f"{path}: llama.cpp cannot load it")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def tokenize(self, text, add_special, parse_special):
        data = text.encode()
        ids = (self.api.llama_token * (len(data) + 2))()
        n = self.api.llama_tokenize(self.vocab, data, len(data), ids, len(ids), add_special, parse_special)
        if n < 0:
            sys.exit(f"{text!r}: llama.cpp gives {-n} ids, more than one a byte")
        return ids[:n]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smollm2", help="SmolLM2-135M-Instruct as GGUF")
    parser.add_argument("gemma3", help="Gemma 3 270M as GGUF")
    args = parser.parse_args()
    models = [Vocabulary(args.smollm2), Vocabulary(args.gemma3)]
    for text, add_special, parse_special in strings():
        ids = [model.tokenize(text, add_special, parse_special) for model in models]
        print(json.dumps([text, add_special, parse_special, *ids], ensure_ascii=False, separators=(",", ":")))


if __name__ == "__main__":
    main()
