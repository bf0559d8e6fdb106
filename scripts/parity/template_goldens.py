"""Renders chat templates exactly as transformers does: what retune's renderer is compared with.

usage: template_goldens.py DATA        (run with the venv of scripts/peers)

DATA holds tokenizers/configs/. Writes tests/parity/templates/<name>.json: template, bos_token,
eos_token, and cases of {name, messages, add_generation_prompt, text | error}, with `tools` and `extra`
(further variables) only where the template is to see them. `synthetic` is a template of ours that
tries what real ones use of Jinja: one case a construct.

Without tools, `tools` is undefined here, as in retune; transformers (5.23) passes null for it and for
`documents`. Every case of a real template is rendered both ways and must come out the same.
"""

import json
import sys
from pathlib import Path

import gguf
from gguf_models import peers_dir, read_fields
from transformers.utils.chat_template_utils import _compile_jinja_template

OUT = Path(__file__).resolve().parents[2] / "tests" / "parity" / "templates"
USER = {"role": "user", "content": "What's the weather in Zürich — <b>today</b> & \"tomorrow\"?"}
SYSTEM = {"role": "system", "content": "You are terse.\nAnswer in one line."}
ANSWER = {"role": "assistant", "content": "It's 5 °C: don't go out."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather; it's <i>free</i> & fast",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Zürich", "Köln"]}, "days": {"type": "integer", "default": 1}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "nothing", "parameters": {"type": "object", "properties": {}}}},
]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "exact": True, "unit": None, "scale": 0.5}}}],
}
TWO_CALLS = {
    "role": "assistant",
    "content": "Let me look.",
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln"}}},
        {"id": "c2", "type": "function", "function": {"name": "nothing", "arguments": {}}},
    ],
}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "c1", "content": "{\"celsius\": 5}"}
THINKING = {"role": "assistant", "content": "<think>\nIt is winter.\n</think>\n\nCold."}
THANKS = {"role": "user", "content": "  Thanks!  "}

# name -> (messages, tools, further variables)
CONVERSATIONS = {
    "user": ([USER], None, {}),
    "system": ([SYSTEM, USER], None, {}),
    "one turn": ([USER, ANSWER], None, {}),
    "system, two turns": ([SYSTEM, USER, ANSWER, THANKS, {"role": "assistant", "content": "\nWelcome.\n"}], None, {}),
    "system in the middle": ([USER, ANSWER, SYSTEM, THANKS], None, {}),
    "empty contents": ([{"role": "user", "content": ""}, {"role": "assistant", "content": ""}], None, {}),
    "tools": ([USER], TOOLS, {}),
    "tools, system": ([SYSTEM, USER], TOOLS, {}),
    "call and result": ([USER, CALL, RESULT, ANSWER], TOOLS, {}),
    "two calls, two results": ([SYSTEM, USER, TWO_CALLS, RESULT, {"role": "tool", "name": "nothing", "content": "ok"}, ANSWER, THANKS], TOOLS, {}),
    "calls without tools": ([USER, TWO_CALLS, RESULT], None, {}),
    "thinking": ([USER, THINKING, THANKS, THINKING], None, {}),
    "thinking switched off": ([USER], None, {"enable_thinking": False}),
    "reasoning content": ([USER, {"role": "assistant", "reasoning_content": "Hm.", "content": "Cold."}], None, {}),
    "no content": ([{"role": "user"}], None, {}),
    "content is null": ([USER, {"role": "assistant", "content": None}], None, {}),
    "no messages": ([], None, {}),
}

# name -> template; each is rendered over [SYSTEM, USER, ANSWER, THANKS]
SYNTHETIC = {
    "trim and lstrip blocks": "a\n  {% if true %}\n  b\n  {% endif %}\nc\n{%- if true %}\n d {%- endif %}\n e\n",
    "raise_exception": "{{ raise_exception('roles must alternate: ' + messages[0].role) }}",
    "raise_exception not reached": "{% if messages|length == 0 %}{{ raise_exception('none') }}{% endif %}fine",
    "strftime_now": "{{ strftime_now('%Y')|length }}{{ strftime_now('%d %b %Y')|length }}",
    "break and continue": "{% for m in messages %}{% if m.role == 'assistant' %}{% continue %}{% endif %}{{ m.role }};{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}",
    "generation block": "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!{% endgeneration %}{% endif %}\n{% endfor %}",
    "tojson": "{{ messages[1] | tojson }}{{ {'b': [1, 2.5, none, true], 'a': \"<'&é\"} | tojson }}",
    "tojson indented": "{{ {'b': [1, {'c': {}}], 'a': []} | tojson(indent=2) }}{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}{{ {'b': [1, 2]} | tojson(separators=(',', ':')) }}",
    "tojson ascii": "{{ 'Zürich 😀' | tojson(ensure_ascii=true) }}",
    "printed values": "{{ true }} {{ false }} {{ none }} {{ 1.0 }} {{ 1e20 }} {{ [1, 'a', none] }} {{ {'k': 'v', 'n': 1.5} }} {{ (1, 2) }}",
    "quotes in printed lists": "{{ [\"it's\", 'say \"x\"', 'new\\nline'] }}",
    "string methods": "{{ ' ab '.strip() }}|{{ 'xxabxx'.strip('x') }}|{{ ' ab'.lstrip() }}|{{ 'ab\\n'.rstrip('\\n') }}|{{ 'a,b,c'.split(',') }}|{{ 'a b  c'.split() }}|{{ 'a-b-c'.split('-', 1) }}|{{ 'abc'.startswith('ab') }}|{{ 'abc'.endswith('bc') }}|{{ 'abc'.upper() }}|{{ 'ABC'.lower() }}|{{ 'hello world'.title() }}|{{ 'hello'.capitalize() }}|{{ 'aXbX'.replace('X', '-') }}|{{ 'abcb'.find('b') }}|{{ 'abcb'.count('b') }}|{{ '12'.isdigit() }}|{{ ','.join(['a', 'b']) }}",
    "dict methods": "{% for k, v in messages[0].items() %}{{ k }}={{ v|length }};{% endfor %}{{ messages[0].get('nothing') }}{{ messages[0].get('nothing', 'd') }}{% for k in messages[0].keys() %}{{ k }}{% endfor %}{% for v in {'a': 1}.values() %}{{ v }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, found=false) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.n = ns.n + 1 %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.n }}{{ ns.found }}",
    "scope of set in a loop": "{% set x = 'outer' %}{% for m in messages %}{% set x = 'inner' %}{% endfor %}{{ x }}{% if true %}{% set x = 'if' %}{% endif %}{{ x }}",
    "set block": "{% set text %}a {{ messages[0].role }} b{% endset %}[{{ text }}]",
    "macro": "{% macro show(m, mark='*') -%}{{ mark }}{{ m.role }}{{ mark }}{%- endmacro %}{{ show(messages[0]) }}{{ show(messages[1], mark='#') }}",
    "slices": "{{ messages[::-1][0].role }}{{ messages[1:]|length }}{{ messages[-1].role }}{{ messages[:-1][-1].role }}{{ 'abcdef'[2:4] }}{{ 'abcdef'[-2:] }}",
    "loop variables": "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{ loop.length }}{{ (loop.previtem or {}).role }}{{ (loop.nextitem or {}).role }};{% endfor %}",
    "loop filter and else": "{% for m in messages if m.role == 'tool' %}x{% else %}none{% endfor %}{% for m in messages if m.role == 'user' %}{{ loop.index }}{% endfor %}",
    "filters": "{{ '  a ' | trim }}|{{ [3, 1, 2] | sort | join(',') }}|{{ messages | map(attribute='role') | list }}|{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ messages | rejectattr('role', 'in', ['user', 'system']) | map(attribute='role') | join }}|{{ nothing | default('d') }}|{{ '' | default('e', true) }}|{{ 'ab' | upper }}|{{ [1, 2] | first }}{{ [1, 2] | last }}|{{ 'a' ~ 1 ~ none }}|{{ 7 // 2 }}{{ 7 % 2 }}{{ 2 ** 3 }}{{ 7 / 2 }}|{{ {'b': 1, 'a': 2} | dictsort }}|{{ {'a': 1} | items | list }}|{{ '3' | int + 1 }}|{{ 3 | string + '1' }}|{{ 'x\\ny' | indent(2) }}|{{ [1, [2]] | string }}|{{ 'a<b' | safe }}|{{ ['b', 'a', 'b'] | unique | list }}|{{ -3 | abs }}|{{ 'hello' | length }}|{{ 'aXb' | replace('X', 'y') }}",
    "tests": "{{ nothing is defined }}{{ messages is defined }}{{ messages[0].content is string }}{{ messages is iterable }}{{ messages[0] is mapping }}{{ none is none }}{{ 1 is number }}{{ messages is sequence }}{{ 'a' in 'abc' }}{{ 'role' in messages[0] }}{{ 2 is even }}{{ 'x' is not string }}{{ true is boolean }}{{ 1 is integer }}{{ 1.5 is float }}{{ 3 is divisibleby(3) }}",
    "inline if": "{{ 'a' if messages else 'b' }}[{{ 'a' if not messages }}]",
    "undefined prints nothing": "[{{ nothing }}][{{ messages[0].nothing }}][{{ messages[0]['nothing'] }}]",
    "undefined of undefined": "{{ nothing.more }}",
    "undefined concatenated": "{{ 'a' + nothing }}",
    "none concatenated": "{{ 'a' + none }}",
    "none is falsy, empty list too": "{{ 'y' if none else 'n' }}{{ 'y' if [] else 'n' }}{{ 'y' if '' else 'n' }}{{ 'y' if 0 else 'n' }}{{ 'y' if {} else 'n' }}",
    "tools undefined": "{{ tools is defined }}{{ tools is none }}{% if tools %}x{% endif %}",
    "bos and eos": "{{ bos_token }}a{{ eos_token }}",
    "comments and raw": "a{# not seen #}b{% raw %}{{ x }}{% endraw %}\n{#- trimmed -#}\n c",
    "strings beside each other": "{{ 'it''s' }}{{ \"a\\tb\\\\n\\u00e9\" }}",
    "changing a list is refused": "{% set l = [1] %}{{ l.append(2) }}{{ l }}",
    "range and chained comparison": "{% for i in range(1, 6, 2) %}{{ i }}{% endfor %}{{ 1 < 2 < 3 }}{{ 1 == 1.0 }}{{ 'a' < 'b' }}",
    "unpacking and nested loops": "{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% for c in 'xy' %}{{ loop.index }}{{ c }}{% endfor %}{% endfor %}",
    "dict with string keys kept in order": "{% set d = dict(b=1, a=2) %}{{ d | tojson }}{{ dict(d, c=3) | tojson }}",
    "trailing newline of the template": "a\n",
}


def render(template, messages, tools, add_generation_prompt, variables):
    context = dict(variables, messages=messages, add_generation_prompt=add_generation_prompt)
    if tools is not None:
        context["tools"] = tools
    try:
        return {"text": _compile_jinja_template(template).render(**context)}
    except Exception as error:  # what a template raises is part of what is compared
        return {"error": f"{type(error).__name__}: {error}"}


def cases_of(template, special):
    cases = []
    for name, (messages, tools, extra) in CONVERSATIONS.items():
        for add_generation_prompt in [False, True]:
            case = {"name": name, "messages": messages, "add_generation_prompt": add_generation_prompt}
            if tools is not None:
                case["tools"] = tools
            if extra:
                case["extra"] = extra
            outcome = render(template, messages, tools, add_generation_prompt, special | extra)
            nulls = {"documents": None} | ({"tools": None} if tools is None else {})
            assert outcome == render(template, messages, tools, add_generation_prompt, special | extra | nulls), name
            cases.append(case | outcome)
    return cases


def write(name, result):
    OUT.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, ensure_ascii=False).replace('}, {"name"', '},\n{"name"').replace('"cases": [', '"cases": [\n')
    (OUT / f"{name}.json").write_text(text + "\n")
    raised = [case["name"] + ": " + case["error"] for case in result["cases"] if "error" in case]
    print(f"{name}: {len(result['cases'])} cases, {len(raised)} of them errors")
    for line in dict.fromkeys(raised):
        print("   ", line)


def write_template(name, template, bos_token, eos_token):
    special = {key: value for key, value in {"bos_token": bos_token, "eos_token": eos_token}.items() if value is not None}
    write(name, {"template": template, "bos_token": bos_token, "eos_token": eos_token, "cases": cases_of(template, special)})


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    data = Path(sys.argv[1])
    fields = read_fields(gguf.GGUFReader(peers_dir() / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
    tokens = fields["tokenizer.ggml.tokens"]
    bos, eos = (tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for name in ["bos", "eos"])
    write_template("smollm2", fields["tokenizer.chat_template"], bos, eos)
    phi3 = read_fields(gguf.GGUFReader(data / "gguf_vocab" / "ggml-vocab-phi-3.gguf"))
    write_template("phi-3", phi3["tokenizer.chat_template"], "<s>", "<|endoftext|>")
    for path in sorted((data / "tokenizers" / "configs").glob("*/tokenizer_config.json")):
        config = json.loads(path.read_text())
        write_template(path.parent.name, config["chat_template"], config["bos_token"], config["eos_token"])

    messages, special = [SYSTEM, USER, ANSWER, THANKS], {"bos_token": "<s>", "eos_token": "</s>"}
    cases = []
    for name, template in SYNTHETIC.items():
        case = {"name": name, "template": template, "messages": messages, "add_generation_prompt": False}
        cases.append(case | render(template, messages, None, False, special))
    write("synthetic", special | {"cases": cases})


if __name__ == "__main__":
    main()
