"""Writes the ids that tokenizers of every kind give for nasty texts.

usage: tokenizer_goldens.py DATA        (run with the venv of scripts/peers)

DATA holds tokenizers/, gguf_vocab/ and models/stories260K/. Writes tests/parity/tokenizers/<name>.json:
  sources      which files these ids are for, below DATA or (peers:) below the peers' folder
  cases        text, ids (no special tokens added; those that the text spells are parsed), with_special
               (as the tokenizer adds them), decoded (of ids, special tokens kept)
  gguf_cases   the ids that llama.cpp gives for the GGUF, only for the texts where they differ
The ids come from transformers and tokenizers, and every vocabulary is asked of llama.cpp as well.
(A script named tokenizers.py would hide the library of that name from its neighbours.)
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
from gguf_models import load_tokenizer, peers_dir
from transformers import PreTrainedTokenizerFast, Qwen2TokenizerFast

OUT = Path(__file__).resolve().parents[2] / "tests" / "parity" / "tokenizers"
TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n\n",
    "\t\t x",
    " \n \n  y",
    "\r\nwindows\r\nlines\r\n",
    "Hello, world!",
    " leading space",
    "trailing space ",
    "two  spaces,   three,    four",
    "line one\nline two\n\n  indented\n",
    "I'm you're we'll they've he'd it's DON'T can't O'Neill's",
    "0 1 12 123 1234 12345 3.14159 -1e-10 1,000,000 ½ ² ٣ 四",
    "the year2024 and v1.2.3-rc4",
    "naïve café Führer Ångström ﬁ e\u0301 (combining)",
    "日本語のテキスト、中文字符，한국어 문장.",
    "Привет, мир! שלום עולם مرحبا بالعالم",
    "emoji: 😀 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ☃️",
    "math ∑∫√∞ ≠ ≤ arrows → ⇒ ▁ Ġ",
    "zero\u200bwidth\u00a0nbsp\u2003em\u3000ideographic\ufeffbom",
    "def f(x):\n    if x > 0:\n\t\treturn {'a': [x**2, -x]}  # ok\n",
    "<div class=\"a\">&amp;</div> /* c */ // d\n#include <stdio.h>",
    "{\"tool\": \"RateBook\", \"arguments\": {\"rating_value\": \"4\"}}",
    "https://example.org/a_b?c=d&e=%20f#g user@example.org C:\\dir\\file.txt",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa !!!!!!!! ........ ======== ----",
    "CamelCaseWords snake_case_words SCREAMING_CASE kebab-case",
    "control \x01\x1f\x7f\x85 chars",
    "Once upon a time, there was a little girl named Lily.",
]
SPECIAL = {
    "smollm2": ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "a <|im_end|> b<|endoftext|>", "<|im_end |> <|im_end"],
    "stories260K": ["<s>Once</s>", "a <s> b </s> c", "<unk><s"],
    "phi-3": ["<|user|>\nHi<|end|>\n<|assistant|>\n", "a <|end|> b </s> c", "<|endoftext|>x <|end"],
    "qwen3": ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "a <|im_end|> b<tool_call>{}</tool_call>", "<|im_end"],
    "gpt-2": ["a<|endoftext|>b", "<|endoftext|> x <|endoftext"],
    "starcoder": ["a<|endoftext|>b", "<|endoftext|> x <|endoftext"],
}


def llama_ids(path, text):
    """None where llama.cpp has no answer."""
    with tempfile.NamedTemporaryFile("wb", suffix=".txt") as file:
        file.write(text.encode())
        file.flush()
        command = [peers_dir() / "llama/bin/llama-tokenize", "-m", path, "-f", file.name, "--ids", "--no-bos", "--no-escape"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else None


def write_qwen_gguf(folder, path):
    """A vocabulary-only GGUF, so that llama.cpp can be asked."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    added = json.loads((folder / "added_tokens.json").read_text())
    by_id = {i: token for token, i in (vocabulary | added).items()}
    special = {i for i, token in json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"].items() if token["special"]}
    kinds = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED}
    merges = [line for line in (folder / "merges.txt").read_text().splitlines() if line and not line.startswith("#version")]
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([by_id[i] for i in range(len(by_id))])
    writer.add_token_types([kinds[str(i) in special] if by_id[i] in added else gguf.TokenType.NORMAL for i in range(len(by_id))])
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def write(name, tokenizer, sources, path):
    cases, differ, unanswered = [], [], []
    for text in TEXTS + SPECIAL[name]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        case = {"text": text, "ids": ids, "with_special": tokenizer.encode(text, add_special_tokens=True)}
        case["decoded"] = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        cases.append(case)
        theirs = llama_ids(path, text)
        if theirs is None:
            unanswered.append(text)
        elif theirs != ids:
            differ.append({"text": text, "ids": theirs})
    result = {"name": name, "sources": sources, "cases": cases, "gguf_cases": differ}
    OUT.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(result, ensure_ascii=True).replace('}, {"text"', '},\n{"text"').replace('"cases": [', '"cases": [\n')
    (OUT / f"{name}.json").write_text(lines + "\n")
    asked = f"llama.cpp differs on {len(differ)}: {[d['text'] for d in differ]}"
    print(f"{name}: {len(cases)} texts; {asked}" + (f"; no answer to {unanswered}" if unanswered else ""))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    data = Path(sys.argv[1])
    smollm2 = peers_dir() / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    write("smollm2", load_tokenizer(smollm2), {"gguf": f"peers:smollm2/{smollm2.name}"}, smollm2)
    vocabularies = [
        ("stories260K", "models/stories260K/tokenizer.json", "models/stories260K/stories260K-f32.gguf"),
        ("phi-3", "tokenizers/phi-3/tokenizer.json", "gguf_vocab/ggml-vocab-phi-3.gguf"),
    ]
    for name, file, path in vocabularies:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(data / file))
        write(name, tokenizer, {"tokenizer_json": file, "gguf": path}, data / path)
    for name in ["gpt-2", "starcoder"]:
        path = f"gguf_vocab/ggml-vocab-{name}.gguf"
        write(name, load_tokenizer(data / path), {"gguf": path}, data / path)
    qwen3 = Qwen2TokenizerFast.from_pretrained(data / "tokenizers" / "qwen3")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "qwen3.gguf"
        write_qwen_gguf(data / "tokenizers" / "qwen3", path)
        write("qwen3", qwen3, {"vocab_and_merges": "tokenizers/qwen3", "gguf_pre": "qwen2"}, path)


if __name__ == "__main__":
    main()
