"""Writes the parity fixture of the preference methods: TRL's own loss functions on the llama of make_fixtures.py, in f32.

usage: make_preferences.py        (run with the venv of scripts/peers, and TRL beside it:
                                  pip install --target T --no-deps trl datasets pyarrow pandas multiprocess dill xxhash
                                  PYTHONPATH=T python make_preferences.py)

In tests/parity/preferences/:
  expected.json         rows, and for each method the loss of all examples, its rewards, and ten training steps
  expected.safetensors  for each method the gradients of the adapter, and the adapter after the ten steps

The reference is the base without the adapter, the policy the base with it: they differ from the first step on. Of a pair the
chosen row comes first. KTO's mismatched row is a prompt with the answer of the row before it.
"""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import torch
import trl
from make_fixtures import OUT, adapter_tensors
from peft import PeftModel
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, get_cosine_schedule_with_warmup
from trl import DPOTrainer, KTOTrainer
from trl.experimental.orpo import ORPOTrainer

LLAMA, FOLDER = OUT / "llama", OUT / "preferences"
# prompt, chosen answer, rejected answer
PAIRS = [(5, 9, 14), (11, 4, 3), (3, 17, 6), (8, 6, 6), (14, 2, 11), (6, 12, 1)]
GOOD = [True, False, True, True, False, False]
SETTINGS = {
    "beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.7, "learning_rate": 5e-3, "weight_decay": 0.01, "clip": 3.0,
    "warmup_steps": 2, "total_steps": 10,
}  # fmt: skip


def make_rows(vocab):
    rng = np.random.Generator(np.random.PCG64(33))
    rows = []
    for prompt, chosen, rejected in PAIRS:
        ids = rng.integers(0, vocab, prompt).tolist()
        for length in (chosen, rejected):
            rows.append({"ids": ids + rng.integers(0, vocab, length).tolist(), "trained": [0] * prompt + [1] * length})
    rows[4]["trained"][10] = 0  # a hole: what a tool says in an answer
    return rows


def padded(rows, key, fill):
    length = max(len(row["ids"]) for row in rows)
    return torch.tensor([row[key] + [fill] * (length - len(row["ids"])) for row in rows])


def inputs(rows):
    mask = torch.tensor([[1] * len(row["ids"]) + [0] * (max(len(r["ids"]) for r in rows) - len(row["ids"])) for row in rows])
    return {"input_ids": padded(rows, "ids", 0), "attention_mask": mask, "completion_mask": padded(rows, "trained", 0)}


class Fused:
    """What TRL's patched head answers: log-probabilities of the labels (0 where there is none), and what it only logs."""

    def __init__(self, model):
        self.model = model

    def __call__(self, input_ids, attention_mask, labels, **_):
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        labels = labels[:, 1:]
        log_probs = torch.log_softmax(logits, -1).gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
        zero = torch.zeros_like(log_probs)
        return SimpleNamespace(log_probs=log_probs.where(labels != -100, zero), entropy=zero, mean_logits=zero, is_top1=zero.bool())


def trainer(kind, **attributes):
    """A trainer of TRL without its machinery: only its loss is called."""
    made = object.__new__(kind)
    same = lambda value: value  # noqa: E731
    made.accelerator = SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same)
    made.model = SimpleNamespace(training=True)
    made.aux_loss_enabled, made.beta, made._tp_size, made._total_train_tokens = False, SETTINGS["beta"], 1, 0
    made._metrics = {"train": __import__("collections").defaultdict(list)}
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def log_ps(model, rows):
    batch = inputs(rows)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    with torch.no_grad():
        return Fused(model)(batch["input_ids"], batch["attention_mask"], labels).log_probs.sum(1)


def named(metrics):
    wanted = {"rewards_chosen": "chosen", "rewards_rejected": "rejected", "reward_accuracy": "accuracies", "margin": "margins"}
    return {ours: float(np.mean(metrics[f"rewards/{theirs}"])) for ours, theirs in wanted.items() if metrics.get(f"rewards/{theirs}")}


class Dpo:
    def __init__(self, base, rows):
        self.rows, self.reference = rows, log_ps(base, rows)

    def loss(self, model, examples):
        order = [2 * i for i in examples] + [2 * i + 1 for i in examples]
        made = trainer(
            DPOTrainer, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=["sigmoid"],
            loss_weights=[1.0], label_smoothing=0.0, use_weighting=False,
        )  # fmt: skip
        reference = self.reference[order]
        batch = inputs([self.rows[i] for i in order])
        batch |= {"ref_chosen_logps": reference[: len(examples)], "ref_rejected_logps": reference[len(examples) :]}
        return made._compute_loss(Fused(model), batch, False), named(made._metrics["train"])


class Orpo:
    def __init__(self, base, rows):
        self.rows = rows

    def loss(self, model, examples):
        made = trainer(ORPOTrainer, is_encoder_decoder=False, padding_value=0)
        batch = {}
        for side, place in (("chosen", 0), ("rejected", 1)):
            side_inputs = inputs([self.rows[2 * i + place] for i in examples])
            labels = side_inputs["input_ids"].masked_fill(side_inputs["completion_mask"] == 0, -100)
            batch |= {f"{side}_input_ids": side_inputs["input_ids"], f"{side}_attention_mask": side_inputs["attention_mask"]}
            batch[f"{side}_labels"] = labels
        loss, metrics = made.get_batch_loss_metrics(lambda ids, attention_mask, **_: model(input_ids=ids, attention_mask=attention_mask), batch)
        return loss, named({name: [value] for name, value in metrics.items()})


class Kto:
    """Rows are the chosen one of a pair where GOOD, the rejected one elsewhere."""

    def __init__(self, base, rows):
        self.rows = [rows[2 * i + (not good)] for i, good in enumerate(GOOD)]
        starts = [prompt for prompt, _, _ in PAIRS]
        self.mismatched = [
            {key: self.rows[i][key][: starts[i]] + self.rows[i - 1][key][starts[i - 1] :] for key in ("ids", "trained")}
            for i in range(len(GOOD))
        ]
        self.reference, self.kl_reference = log_ps(base, self.rows), log_ps(base, self.mismatched)
        self.kls = []

    def loss(self, model, examples):
        made = trainer(
            KTOTrainer, calculate_KL=True, precompute_ref_logps=True, loss_type="kto",
            desirable_weight=SETTINGS["desirable_weight"], undesirable_weight=SETTINGS["undesirable_weight"],
        )  # fmt: skip
        batch = inputs([self.rows[i] for i in examples])
        batch |= {f"KL_{name}": value for name, value in inputs([self.mismatched[i] for i in examples]).items()}
        batch["label"] = torch.tensor([GOOD[i] for i in examples])
        batch |= {"ref_logps": self.reference[examples], "ref_KL_logps": self.kl_reference[examples]}
        self.kls.append(float((made._compute_kl_logps(Fused(model), batch) - batch["ref_KL_logps"]).mean()))
        return made._compute_loss(Fused(model), batch, False), named(made._metrics["train"])


def train(base, method):
    model = PeftModel.from_pretrained(base, LLAMA / "adapter", is_trainable=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=SETTINGS["learning_rate"], weight_decay=SETTINGS["weight_decay"])
    scheduler = get_cosine_schedule_with_warmup(optimizer, SETTINGS["warmup_steps"], SETTINGS["total_steps"])
    record = {"batches": [], "losses": [], "grad_norms": [], "rewards": []}
    for step in range(SETTINGS["total_steps"]):
        examples = [(4 * step + i) % len(PAIRS) for i in range(4)]
        loss, rewards = method.loss(model, examples)
        loss.backward()
        record["batches"].append(examples)
        record["losses"].append(loss.item())
        record["grad_norms"].append(float(torch.nn.utils.clip_grad_norm_(parameters, SETTINGS["clip"])))
        record["rewards"].append(rewards)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return record, adapter_tensors(model), model.unload()


def main():
    torch.set_num_threads(1)
    base = LlamaForCausalLM.from_pretrained(LLAMA / "base", dtype=torch.float32, attn_implementation="eager").eval()
    rows = make_rows(base.config.vocab_size)
    result = {"versions": {"torch": torch.__version__.split("+")[0], "trl": trl.__version__}, "settings": SETTINGS, "rows": rows, "good": GOOD}
    tensors = {}
    for name, kind in (("dpo", Dpo), ("orpo", Orpo), ("kto", Kto)):
        method = kind(base, rows)
        model = PeftModel.from_pretrained(base, LLAMA / "adapter", is_trainable=True)
        loss, rewards = method.loss(model, list(range(len(PAIRS))))
        loss.backward()
        gradients = adapter_tensors(model, grad=True)
        tensors |= {f"{name}.grad.{key}": value for key, value in gradients.items()}
        base = model.unload()
        record, final, base = train(base, method)
        tensors |= {f"{name}.final.{key}": value for key, value in final.items()}
        result[name] = {"loss": loss.item(), **rewards, "training": record}
        if name == "kto":
            result[name]["kl"] = method.kls
            assert min(method.kls) < 0 < max(method.kls), "the clamp of KTO's KL term is not tested"
        assert min(float(gradient.norm()) for gradient in gradients.values()) > 1e-4
        print(f"{name}: loss {loss.item():.4f}, {rewards}; training {record['losses'][0]:.4f} -> {record['losses'][-1]:.4f}; norms {min(record['grad_norms']):.2f} to {max(record['grad_norms']):.2f}" + (f"; KL {method.kls}" if name == "kto" else ""))
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    save_file({key: value.contiguous() for key, value in sorted(tensors.items())}, FOLDER / "expected.safetensors")
    (FOLDER / "expected.json").write_text(json.dumps(result).replace('], "', '],\n"').replace('}, "', '},\n"') + "\n")


if __name__ == "__main__":
    main()
