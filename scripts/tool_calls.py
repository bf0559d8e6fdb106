#!/usr/bin/env python3
"""Counts how many tool calls a model gets right. Needs nothing but Python 3.

usage: tool_calls.py score ROWS ANSWERS          answers of `retune generate --data ROWS --json`
       tool_calls.py ask ROWS MODEL OUT [--like ANSWERS] [--host URL]
                                                 answers of a model that Ollama serves, kept in OUT
       tool_calls.py show ROWS N NAME=ANSWERS... the first N requests with the answers of several files

ROWS holds messages, the last of them the right answer. An answer counts as JSON where it parses to an
object, as the right tool where its "tool" is, as all exact where the whole object is; the right tool is
named also where the text is cut or goes astray after it. --like compares
each served answer with ours, made with --alternatives 5: they must be the same text, or part where two
tokens are within 0.1 in log-probability on one of the two sides, since each sums in another order. Exit 1
where one does not.
"""

import argparse
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request

TIE_LOGPROB = 0.1
MAX_TOKENS = 128


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def read_rows(path):
    """The messages before the last answer, and that answer, of each row."""
    rows = [row["messages"] for row in read_lines(path)]
    return [(messages[:-1], json.loads(messages[-1]["content"])) for messages in rows]


def parsed(text):
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def named(text):
    """The tool that a text begins to call, be it JSON to its end or not."""
    call = re.match(r'\s*\{\s*"tool"\s*:\s*"([^"]*)"', text)
    return call and call[1]


def score(rows, answers):
    if len(rows) != len(answers):
        sys.exit(f"{len(answers)} answers for {len(rows)} rows: make them again from the same file")
    calls = [(parsed(answer["text"]), right) for answer, (_, right) in zip(answers, rows)]
    count = {
        "valid JSON": sum(call is not None for call, _ in calls),
        "right tool": sum(call is not None and call.get("tool") == right["tool"] for call, right in calls),
        "right tool named": sum(named(answer["text"]) == right["tool"] for answer, (_, right) in zip(answers, rows)),
        "all exact": sum(call == right for call, right in calls),
    }
    return ", ".join(f"{name} {n} of {len(rows)} ({100 * n / len(rows):.1f}%)" for name, n in count.items())


def ask(host, model, messages):
    body = {"model": model, "messages": messages, "stream": False, "options": {"temperature": 0, "num_predict": MAX_TOKENS}}
    body |= {"logprobs": True, "top_logprobs": 5}
    request = urllib.request.Request(f"{host}/api/chat", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as reply:
            answer = json.load(reply)
    except urllib.error.HTTPError as error:
        sys.exit(f"{host} refuses a request to {model}: {error} {error.read().decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"{host} does not answer: {error}; is Ollama running there?")
    # Steps as `retune generate --alternatives` has them: the token that was taken stands first.
    steps = [[one, *(top for top in one["top_logprobs"] if top["token"] != one["token"])] for one in answer.get("logprobs") or []]
    return {
        "text": answer["message"]["content"],
        "prompt_tokens": answer["prompt_eval_count"],
        "tokens": answer["eval_count"],
        "alternatives": [[{"text": top["token"], "logprob": top["logprob"]} for top in step] for step in steps],
    }


def token_of(steps, at):
    """The token taken at a step; the end, which one side lists and the other does not, is always "<|"."""
    text = steps[at][0]["text"] if at < len(steps) else "<|"
    return "<|" if text.startswith("<|") else text


def gap(mine, theirs):
    """How much more probable, as `mine` has it, its own token was than the one of `theirs` at the first step where they
    part; None: that one was not among its alternatives. Call it only where the texts differ."""
    mine, theirs = mine["alternatives"], theirs["alternatives"]
    for at, step in enumerate(mine):
        wanted = token_of(theirs, at)
        if token_of(mine, at) != wanted:
            found = [one["logprob"] for one in step[1:] if one["text"] == wanted or wanted == one["text"][:2] == "<|"]
            return step[0]["logprob"] - found[0] if found else None
    return None


def compare(ours, served):
    """Prints what differs; gives whether all is the same but for ties."""
    same = ties = 0
    bad = []
    for number, (mine, theirs) in enumerate(zip(ours, served), 1):
        if mine["prompt_tokens"] != theirs["prompt_tokens"]:
            bad.append(f"row {number}: the prompt has {theirs['prompt_tokens']} tokens, {mine['prompt_tokens']} were trained")
        elif mine["text"] == theirs["text"]:
            same += 1
        else:
            gaps = [gap(mine, theirs), gap(theirs, mine)]
            if min((by for by in gaps if by is not None), default=1) <= TIE_LOGPROB:
                ties += 1
            else:
                far = ", ".join("not among the five" if by is None else f"{by:.2f}" for by in gaps)
                far = f"apart in log-probability (as we have it, as it is served): {far}"
                bad.append(f"row {number}: {far}\n  ours   {mine['text']}\n  served {theirs['text']}")
    print(f"the same answers as ours: {same} of {len(ours)}; parted at a tie: {ties}; other: {len(bad)}")
    print("".join(line + "\n" for line in bad), end="")
    return not bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("score")
    verb.add_argument("rows")
    verb.add_argument("answers")
    verb = verbs.add_parser("ask")
    verb.add_argument("rows")
    verb.add_argument("model")
    verb.add_argument("out")
    verb.add_argument("--like", metavar="ANSWERS")
    verb.add_argument("--host", default=os.environ.get("OLLAMA_HOST") or "127.0.0.1:11434")
    verb = verbs.add_parser("show")
    verb.add_argument("rows")
    verb.add_argument("count", type=int)
    verb.add_argument("answers", nargs="+", metavar="NAME=ANSWERS")
    arguments = parser.parse_args()
    rows = read_rows(arguments.rows)
    if arguments.verb == "score":
        print(score(rows, read_lines(arguments.answers)))
    elif arguments.verb == "show":
        files = [(name, read_lines(path)) for name, path in (pair.split("=", 1) for pair in arguments.answers)]
        width = max(len(name) for name, _ in [*files, ("asked", None)])
        for i, (messages, _) in enumerate(rows[: arguments.count]):
            print(f"{'asked':{width}}  {messages[-1]['content']}")
            for name, answers in files:
                text = " ".join(answers[i]["text"].split())
                print(f"{name:{width}}  {text if len(text) <= 160 else text[:160] + ' ...'}")
            print()
    else:
        host = arguments.host if "://" in arguments.host else f"http://{arguments.host}"
        start, answers = time.monotonic(), []
        with open(arguments.out, "w", encoding="utf-8", buffering=1) as out:
            for messages, _ in rows:
                answers.append(ask(host, arguments.model, messages))
                out.write(json.dumps(answers[-1], ensure_ascii=False) + "\n")
        print(f"{len(rows)} requests to {arguments.model} in {time.monotonic() - start:.0f} s: {score(rows, answers)}")
        if arguments.like and not compare(read_lines(arguments.like), answers):
            sys.exit(1)


if __name__ == "__main__":
    main()
