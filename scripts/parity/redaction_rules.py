#!/usr/bin/env python3
"""Makes src/redact/rules/betterleaks.json: the vendor key formats that retune finds.

    cargo info kingfisher-rules@3.0.1        # puts the crate into cargo's cache
    scripts/parity/redaction_rules.py ~/.cargo/registry/cache/*/kingfisher-rules-3.0.1.crate

The crate carries Betterleaks' own config/betterleaks.toml (MIT, by the author of Gitleaks), byte for byte. Kept are the rules
that name a secret by its form or by its vendor; each filter becomes the few conditions that vendor.rs knows. A filter that this
script cannot read is an error, not a guess. Standard library only.
"""

import gzip
import hashlib
import json
import re
import sys
import tarfile
import tomllib
from pathlib import Path

OUT = Path(__file__).resolve().parents[2] / "src/redact/rules"

# Rules that have a better home here, or that name no secret.
ELSEWHERE = {
    "generic-api-key": "secrets.rs: named secrets",
    "generic-password": "secrets.rs: named secrets",
    "generic-credential-uri": "secrets.rs: URLs; keeps user, host and path apart",
    "mongodb-connection-string": "secrets.rs: URLs",
    "private-key": "secrets.rs: also keys that were cut off",
    "gcp-service-account": "its private key and its e-mail are found by themselves",
    "jwt": "secrets.rs",
    "hashicorp-tf-password": "secrets.rs: named secrets; upstream looks at files of Terraform only",
    "generic-username": "names no secret",
    "pkcs12-file": "looks at file names only",
}
# Parts of a credential that are published with it: an id, a host, a name.
PUBLIC = re.compile(r"-(id|url|host|name|domain|address|username)(\.\d+)?$")

SIMPLE = re.compile(r'entropy\(finding\["secret"\]\) (<=?) ([\d.]+)')
RATIO = re.compile(r'tokenRatio\(finding\["secret"\]\) >= 2\.5')
STRING = re.compile(r'`([^`]*)`|("(?:[^"\\]|\\.)*")')
LIST = r'\[((?:\s|,|`[^`]*`|"(?:[^"\\]|\\.)*")*)\]'
MATCHES = re.compile(r'(!?)matchesAny\((finding|attributes)\["(\w+)"\], ' + LIST + r'\)')
CONTAINS = re.compile(r'containsAny\(finding\["secret"\], ' + LIST + r'\)')

# How most rules end: a quote, a space or a semicolon. In a sentence or a list a key ends with other signs, too.
END = r"""(?:\\?['"\x60]|[\s;]|\\[nr]|$)"""
END_IN_PROSE = r"""(?:\\?['"\x60]|[\s;,)\]}<>&!?|*]|[.:](?:[\s'"\x60)]|$)|\\[nr]|$)"""


def for_rust(pattern):
    """RE2 reads a brace that begins no repetition as itself; Rust's regex wants it escaped."""
    out, at, in_class = [], 0, False
    while at < len(pattern):
        two, char = pattern[at : at + 2], pattern[at]
        if char == "\\":
            out.append(two)
            at += 2
            continue
        if in_class:
            in_class = char != "]" or pattern[at - 1] == "[" or pattern[at - 2 : at] == "[^"
        elif char == "[":
            in_class = True
        elif char == "{" and not re.match(r"\{\d+(,\d*)?\}", pattern[at:]):
            char = "\\{"
        elif char == "{" and (not out or out[-1] in ("|", "(", "$", "^")):
            char = "\\{"
        out.append(char)
        at += 1
    return "".join(out)


def strings(text):
    return [for_rust(raw or json.loads(quoted)) for raw, quoted in STRING.findall(text)]


def conditions(rule):
    """What must hold of a match, from the filter that throws matches away."""
    text, out = rule.get("filter", "").strip(), {}
    if rule["id"] == "box-api-access-token":  # Its first part looks at the line for the word client.
        text = text[text.index("entropy"):]

    def entropy(match):
        out["entropy"], out["entropy_inclusive"] = float(match[2]), match[1] == "<"
        return ""

    def ratio(_):
        out["words"] = False
        return ""

    def matches(match):
        negated, what, field, body = match.groups()
        if what == "attributes":
            return ""  # A path; texts have none.
        if (field, negated) == ("match", "!"):
            raise SystemExit(f"{rule['id']}: cannot read its filter")
        key = "must" if negated else "never" if field == "secret" else "never_around"
        out.setdefault(key, []).extend(strings(body))
        return ""

    def contains(match):
        out.setdefault("never", []).extend(re.escape(s) for s in strings(match[1]))
        return ""

    for pattern, take in ((MATCHES, matches), (CONTAINS, contains), (SIMPLE, entropy), (RATIO, ratio)):
        text = pattern.sub(take, text)
    if text.replace("||", "").strip():
        raise SystemExit(f"{rule['id']}: cannot read this part of its filter: {text!r}")
    return out


def main():
    crate = Path(sys.argv[1])
    with tarfile.open(crate) as tar:
        root = crate.name.removesuffix(".crate")
        sources = json.loads(gzip.decompress(tar.extractfile(f"{root}/generated/upstream-sources.json.gz").read()))
    (url, toml), = ((u, t) for u, t in sources.items() if u.endswith("config/betterleaks.toml"))
    licence = next(t for u, t in sources.items() if "/betterleaks/" in u and u.endswith("/LICENSE"))
    config = tomllib.loads(toml)
    if len(config["rules"]) < 400:
        raise SystemExit("the rule set is not the one that this script knows")

    allowed = conditions({"id": "(all)", "filter": config["filter"].strip()[1:-1]})["never"]
    # Upstream writes ^true|false|null$, which throws away every secret that holds "false".
    allowed = [p.replace("(?i)^true|false|null$", "(?i)^(?:true|false|null)$") for p in allowed]

    rules, public = [], []
    for rule in config["rules"]:
        if rule["id"] in ELSEWHERE:
            continue
        if rule.get("skipReport") and PUBLIC.search(rule["id"]):
            public.append(rule["id"])
            continue
        kept = {"id": rule["id"], "regex": for_rust(rule["regex"].replace(END, END_IN_PROSE)), "keywords": rule["keywords"]}
        if "valueGroup" in rule:
            kept["group"] = rule["valueGroup"]
        rules.append(kept | conditions(rule))

    revision = re.search(r"/([0-9a-f]{40})/", url)[1]
    head = {
        "project": "betterleaks/betterleaks", "file": "config/betterleaks.toml", "licence": "MIT",
        "revision": revision, "sha256": hashlib.sha256(toml.encode()).hexdigest(), "carried_by": crate.name.removesuffix(".crate"),
        "rules_upstream": len(config["rules"]), "elsewhere": ELSEWHERE, "public_parts": public,
    }
    ends = sum(END_IN_PROSE in rule["regex"] for rule in rules)
    lines = ",\n".join(json.dumps(rule, ensure_ascii=False) for rule in rules)
    (OUT / "betterleaks.json").write_text(
        "{\n" + f'"source": {json.dumps(head, indent=1)},\n"allowed": {json.dumps(allowed, indent=1)},\n"rules": [\n{lines}\n]\n' + "}\n")
    (OUT / "LICENSE.betterleaks").write_text(licence)
    print(f"{len(rules)} of {len(config['rules'])} rules; {len(ELSEWHERE)} elsewhere, {len(public)} public parts; {ends} ends widened")


if __name__ == "__main__":
    main()
