"""Verifies an answer to a HumanEvalPack row (Python): runs declaration, answer and the row's tests as one program.

    retune ... --verifier 'python3 humaneval_python.py'

Exit 0: the tests pass; 1: they do not.
"""

import json
import re
import subprocess
import sys

row = json.load(open("item.json", encoding="utf-8"))
answer = open("answer.txt", encoding="utf-8").read()

fenced = re.search(r"^[ \t]*```\w*\n(.*?)^[ \t]*```", answer, re.DOTALL | re.MULTILINE)
code = fenced.group(1) if fenced else answer
# The body that follows the declaration, or the function as a whole.
if not re.search(rf"^def\s+{re.escape(row['entry_point'])}\b", code, re.MULTILINE):
    code = row["declaration"] + code
else:
    code = row["declaration"].split(f"def {row['entry_point']}")[0] + code

# An answer that ends the program by itself, with exit code 0, never comes to the last line.
last = "all tests have passed"
with open("program.py", "w", encoding="utf-8") as program:
    program.write(f"{code}\n\n{row['test']}\n\nprint({last!r})\n")
run = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True)
print(run.stdout[-1000:], run.stderr[-2000:], sep="\n")
sys.exit(0 if run.returncode == 0 and run.stdout.rstrip().endswith(last) else 1)
