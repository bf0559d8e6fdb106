"""PEFT's figures for SmolLM2-135M on the tool calls: what retune's training is compared with.

usage: smollm2_tools.py DATA [--full] [--steps N] [--save FOLDER]     (run with the venv of scripts/peers)

DATA is the folder that holds tool_calls_train.jsonl and tool_calls_heldout.jsonl. The base is the
Q4_1 GGUF of scripts/peers, dequantised to f32; the adapter starts from its smollm2/start-adapter.
Writes tests/parity/smollm2/expected.json with the first 20 steps of a schedule of 75; --full goes on
to step 75 and adds what it measured there. --save keeps the adapters as FOLDER/step-20, FOLDER/step-75.

The recipe: the first 1,200 rows in the file's order, 16 a step, one pass; AdamW 1e-3 with betas .9
and .999, eps 1e-8, weight decay .01, clip 1, five steps of warm-up, cosine to 0 as transformers has
it (step s runs at lambda(s - 1)). Trained are the assistant's text and its end-of-turn token.
"""

import argparse
import hashlib
import json
import math
import platform
import resource
import time
from pathlib import Path

import peft
import torch
import transformers
from gguf_models import load_model, load_tokenizer, peers_dir
from peft import PeftModel
from transformers import get_cosine_schedule_with_warmup

OUT = Path(__file__).resolve().parents[2] / "tests" / "parity" / "smollm2" / "expected.json"
RECIPE = {
    "rank": 16, "alpha": 32, "targets": "all", "dropout": 0.0, "batch_size": 16, "learning_rate": 1e-3,
    "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "clip": 1.0, "schedule": "cosine",
    "warmup_steps": 5, "total_steps": 75,
}  # fmt: skip
SHORT_STEPS, HELD_OUT_ROWS = 20, 100
END_OF_TURN = "<|im_end|>"


def encode(tokenizer, messages):
    """A row's ids, and 1 for every token of an assistant's text and its end-of-turn token."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            start = len(tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True))
            end = start + len(message["content"]) + len(END_OF_TURN)
            assert text[start:end] == message["content"] + END_OF_TURN
            spans.append((start, end))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    trained = []
    for start, end in encoded["offset_mapping"]:
        inside = [a <= start and end <= b for a, b in spans]
        assert any(inside) or all(end <= a or start >= b for a, b in spans), "a token crosses a span's edge"
        trained.append(int(any(inside)))
    return {"text": text, "ids": encoded["input_ids"], "trained": trained}


def read_rows(tokenizer, path, limit):
    lines = path.read_text().splitlines()[:limit]
    return [encode(tokenizer, json.loads(line)["messages"]) for line in lines]


def losses_of(model, rows):
    """The loss of every trained token, row after row. Padded on the right: with causal attention and
    positions from 0 no token of a row sees it, so that no mask is needed."""
    longest = max(len(row["ids"]) for row in rows)
    ids = torch.tensor([row["ids"] + [0] * (longest - len(row["ids"])) for row in rows])
    trained = torch.tensor([row["trained"] + [0] * (longest - len(row["ids"])) for row in rows], dtype=torch.bool)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden = inner.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    logits = inner.lm_head(hidden[trained[:, 1:]])
    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:][trained[:, 1:]], reduction="none")
    return losses.split([sum(row["trained"][1:]) for row in rows])


def evaluate(model, rows):
    model.eval()
    sums, tokens = [], []
    with torch.no_grad():
        for i in range(0, len(rows), 20):
            for losses in losses_of(model, rows[i : i + 20]):
                sums.append(float(losses.double().sum()))
                tokens.append(len(losses))
    model.train()
    return {"rows": len(rows), "loss": math.fsum(sums) / sum(tokens), "trained_tokens": sum(tokens), "first_loss_sums": sums[:3]}


def check_speech(model, tokenizer):
    """A wrong permutation or norm makes babble: the model must still know a capital."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0)
    answer = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    print(f"greedy: {answer!r}", flush=True)
    assert "Paris" in answer
    return {"text": text, "ids": ids[0].tolist(), "greedy_ids": output[0, ids.shape[1] :].tolist(), "greedy_text": answer}


def cpu():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
        return f"{facts['model name']}, family {facts['cpu family']}, model {facts['model']}"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--full", action="store_true", help="go on to step 75")
    parser.add_argument("--steps", type=int, default=SHORT_STEPS, help="stop earlier and write nothing (a trial)")
    parser.add_argument("--save", type=Path, help="keep the trained adapters in this folder")
    arguments = parser.parse_args()

    files = peers_dir() / "smollm2"
    gguf_path = files / "SmolLM2-135M-Instruct.Q4_1.gguf"
    start = files / "start-adapter"
    tokenizer, base = load_tokenizer(gguf_path), load_model(gguf_path)
    speech = check_speech(base, tokenizer)
    train_rows = read_rows(tokenizer, arguments.data / "tool_calls_train.jsonl", RECIPE["total_steps"] * RECIPE["batch_size"])
    held_out = read_rows(tokenizer, arguments.data / "tool_calls_heldout.jsonl", HELD_OUT_ROWS)
    result = {
        "versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "peft": peft.__version__},
        "recipe": RECIPE,
        "start_adapter_sha256": hashlib.sha256((start / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "generation": speech,
        "train_rows": train_rows[:3],
        "held_out_rows": held_out[:3],
        "held_out_before": evaluate(base, held_out),
    }
    print(f"held-out loss before: {result['held_out_before']['loss']:.6f}", flush=True)

    model = PeftModel.from_pretrained(base, start, is_trainable=True)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert len(parameters) == 420 and all(p.dtype == torch.float32 for p in parameters)
    optimizer = torch.optim.AdamW(
        parameters, lr=RECIPE["learning_rate"], betas=RECIPE["betas"], eps=RECIPE["eps"], weight_decay=RECIPE["weight_decay"]
    )
    scheduler = get_cosine_schedule_with_warmup(optimizer, RECIPE["warmup_steps"], RECIPE["total_steps"])
    steps = {"learning_rates": [], "trained_tokens": [], "losses": [], "grad_norms": []}
    last = RECIPE["total_steps"] if arguments.full else arguments.steps
    seconds, tokens = 0.0, 0
    for step in range(1, last + 1):
        began = time.perf_counter()
        rows = train_rows[(step - 1) * RECIPE["batch_size"] : step * RECIPE["batch_size"]]
        losses = torch.cat(losses_of(model, rows))
        losses.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, RECIPE["clip"])
        steps["learning_rates"].append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - began
        tokens += sum(len(row["ids"]) for row in rows)
        steps["trained_tokens"].append(len(losses))
        steps["losses"].append(float(losses.detach().double().mean()))
        steps["grad_norms"].append(float(norm))
        print(f"step {step}: loss {steps['losses'][-1]:.6f}, gradient {float(norm):.4f}, {tokens / seconds:.0f} tokens/s", flush=True)
        if step in (SHORT_STEPS, RECIPE["total_steps"]):
            result[f"held_out_after_{step}"] = evaluate(model, held_out)
            print(f"held-out loss after {step} steps: {result[f'held_out_after_{step}']['loss']:.6f}", flush=True)
            if arguments.save:
                model.save_pretrained(arguments.save / f"step-{step}")
    result["steps"] = steps
    result["measured"] = {
        "cpu": cpu(), "threads": torch.get_num_threads(), "steps": last, "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }  # fmt: skip
    print(result["measured"])
    if last >= SHORT_STEPS:
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps(result, ensure_ascii=False).replace('], "', '],\n"').replace('}, "', '},\n"') + "\n")


if __name__ == "__main__":
    main()
