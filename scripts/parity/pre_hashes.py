"""Writes src/text/tokenizer/pre_hash.rs: how llama.cpp's converter knows a pre-tokenizer.

usage: pre_hashes.py        (needs the part llama-src of scripts/peers)

The converter encodes one nasty text and hashes the ids (conversion/base.py, `get_vocab_base_pre`). Taken are the names that
src/text/tokenizer/pre.rs knows: what we cannot read ourselves we do not write.
"""

import ast
import re
from pathlib import Path

from gguf_models import peers_dir

ROOT = Path(__file__).resolve().parents[2]


def main():
    source = (peers_dir() / "llama/src/conversion/base.py").read_text()
    body = source[source.index("# Marker: Start get_vocab_base_pre") : source.index("# Marker: End get_vocab_base_pre")]
    text = ast.literal_eval(re.search(r"chktxt = (.+)", body).group(1))
    pairs = re.findall(r'if chkhsh == "([0-9a-f]{64})":\s+# ref: \S+\s+res = "([^"]+)"', body)
    table = (ROOT / "src/text/tokenizer/pre.rs").read_text()
    table = table[table.index("const TABLE") : table.index("/// The pre-tokenizer of a name.")]
    known = {(hash, name) for hash, name in pairs if f'"{name}"' in table}
    escaped = "".join(c if " " <= c <= "~" and c not in '"\\' else f"\\u{{{ord(c):x}}}" for c in text)
    lines = [
        "//! How llama.cpp's converter knows a pre-tokenizer: the SHA-256 of the ids that one nasty text becomes, written as Python",
        "//! writes a list. Source: ggml-org/llama.cpp, conversion/base.py, `get_vocab_base_pre`; written by",
        "//! scripts/parity/pre_hashes.py with the names that `pre` knows.",
        "",
        "/// Spaces, emoji, digits, scripts, contractions: every kind of text that pre-tokenizers cut differently.",
        "#[rustfmt::skip]",
        f'pub const TEXT: &str = "{escaped}";',
        "",
        "/// (hash, `tokenizer.ggml.pre`)",
        f"const TABLE: [(&str, &str); {len(known)}] = [",
        *(f'    ("{hash}", "{name}"),' for hash, name in sorted(known, key=lambda pair: pair[::-1])),
        "];",
        "",
        "/// The pre-tokenizer of a hash.",
        "pub fn named(hash: &str) -> Option<&'static str> {",
        "    TABLE.iter().find(|(known, _)| *known == hash).map(|(_, name)| *name)",
        "}",
        "",
    ]
    (ROOT / "src/text/tokenizer/pre_hash.rs").write_text("\n".join(lines))
    print(f"{len(known)} of {len(pairs)} hashes")


main()
