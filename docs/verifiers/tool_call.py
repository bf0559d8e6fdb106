"""Verifies a tool call: the answer is the JSON that is expected, whatever its spaces and the order of its keys.

    retune ... --verifier 'python3 tool_call.py'
"""

import json
import sys

expected = json.load(open("expected.txt", encoding="utf-8"))
try:
    answer = json.load(open("answer.txt", encoding="utf-8"))
except ValueError as error:
    sys.exit(f"the answer is no JSON: {error}")  # exit code 1
if answer != expected:
    sys.exit(f"expected {json.dumps(expected)}, found {json.dumps(answer)}")
