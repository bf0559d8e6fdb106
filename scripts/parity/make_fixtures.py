"""Writes the parity fixtures of tiny random models with transformers and PEFT, in f32.

usage: make_fixtures.py [FAMILY...]        (run with the venv of scripts/peers)

For each family, in tests/parity/<family>/:
  base/                 config.json, model.safetensors
  adapter/              the PEFT folder, as PEFT saves it: all seven linears, B not zero
  expected.json         rows, losses a row, twenty training steps
  expected.safetensors  logits, gradients of the adapter, the adapter after the twenty steps
The llama base is also saved as two shards, with its config as transformers 4 wrote it, in
tests/parity/llama_sharded/. Variants (DoRA, dropout) are other adapters on these bases, with fewer rows; those with dropout
train (gradients, twenty steps) with the masks of kernels/src/dropout.rs put in the place of PEFT's random ones.

`trained[i] == 1` says that token i is a target, predicted from position i - 1; trained[0] is never
counted. Each row runs alone, unpadded, with positions from 0.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, get_cosine_schedule_with_warmup

OUT = Path(__file__).resolve().parents[2] / "tests" / "parity"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LENGTHS = [7, 41, 18, 23, 33, 12, 29, 15]
RANK, ALPHA = 4, 12
TRAINING = {
    "learning_rate": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "clip": 3.0,
    "schedule": "cosine", "warmup_steps": 3, "total_steps": 20,  # clip: some steps are cut, some are not
}  # fmt: skip


def llama():
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=97, max_position_embeddings=128, rms_norm_eps=1e-5,
        rope_theta=10000.0, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    ))  # fmt: skip


def qwen2():
    return Qwen2ForCausalLM(Qwen2Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=131, max_position_embeddings=128, rms_norm_eps=1e-6,
        rope_theta=1e6, tie_word_embeddings=True, bos_token_id=None, eos_token_id=2,
    ))  # fmt: skip


FAMILIES = {"llama": (llama, 11), "qwen2": (qwen2, 22)}
# name: base, seed, what PEFT's LoraConfig is given besides the layers
VARIANTS = {
    "llama_dora": ("llama", 33, {"r": 3, "lora_alpha": 5, "use_dora": True}),
    "llama_dropout": ("llama", 44, {"r": 2, "lora_alpha": 5, "lora_dropout": 0.25}),
    "qwen2_dora": ("qwen2", 55, {"r": 2, "lora_alpha": 3, "use_dora": True, "use_rslora": True, "lora_dropout": 0.15}),
}
VARIANT_LENGTHS = [7, 21, 18, 13, 9]
SEED = 42  # of the masks


def randomise(model, generator):
    """Norms around 1, biases not zero, weights large enough for attention and logits to have shape."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                weight.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.5 * noise)
            elif "embed_tokens" in name:
                weight.copy_((0.3 if model.config.tie_word_embeddings else 1.0) * noise)
            elif "lm_head" in name:
                weight.copy_(2.0 * noise / math.sqrt(weight.shape[1]))
            else:
                weight.copy_(1.2 * noise / math.sqrt(weight.shape[1]))


def splitmix(x):
    """The output of splitmix64 (Steele, Lea, Flood, 2014) from the state x."""
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def mask_of(rate, step, row, length, place, columns):
    """The mask [length, columns] of one linear layer over one row, as the head of kernels/src/dropout.rs says it."""
    mix = lambda key, value: splitmix(key ^ np.asarray(value, dtype=np.uint64))  # noqa: E731
    key = np.full(1, int.from_bytes(b"dropout", "big"), dtype=np.uint64)
    for value in [SEED, step, row, np.arange(length)]:
        key = mix(key, value)
    state = mix(key, place)[:, None]
    words = splitmix(state + np.arange((columns + 1) // 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    bits = np.stack([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)], axis=2).reshape(length, -1)[:, :columns]
    return torch.tensor(np.where(bits < round(rate * 2**32), 0.0, 1 / (1 - rate)), dtype=torch.float32)


class Masked(torch.nn.Module):
    """Stands in the place of PEFT's dropout. `now` is (step, row in the step) of the row that runs."""

    now = (0, 0)

    def __init__(self, rate, place):
        super().__init__()
        self.rate, self.place = rate, place

    def forward(self, x):
        if not self.training:
            return x
        return x * mask_of(self.rate, *Masked.now, x.shape[1], self.place, x.shape[2])


def put_masks(model):
    """Turns training on where PEFT would drop out, with our masks."""
    rate = model.peft_config["default"].lora_dropout
    if rate == 0:
        return
    replaced = 0
    for name, module in model.named_modules():
        if hasattr(module, "lora_dropout"):
            layer = int(name.split(".layers.")[1].split(".")[0])
            place = layer * len(LINEARS) + LINEARS.index(name.rsplit(".", 1)[1])
            assert isinstance(module.lora_dropout["default"], torch.nn.Dropout)
            module.lora_dropout["default"] = Masked(rate, place)
            replaced += 1
    assert replaced == model.config.num_hidden_layers * len(LINEARS)
    model.train()


def make_rows(vocab, rng, lengths):
    """Rows of several lengths; masks with two assistant segments, and single holes in them."""
    rows = []
    for length in lengths:
        ids = rng.integers(0, vocab, length).tolist()
        trained = [0] * length
        first, second = length // 4, 2 * length // 3
        for i in range(first, first + max(2, length // 4)):
            trained[i] = 1
        for i in range(second, length):
            trained[i] = 1
        if length > 12:
            trained[second + 2] = 0
        rows.append({"ids": ids, "trained": trained})
    rows[1]["trained"][0] = 1  # has no position that predicts it: must not be counted
    rows[3]["trained"][-1] = 0
    return rows


def logits_of(model, row):
    return model(input_ids=torch.tensor([row["ids"]])).logits[0]


def loss_of(model, row):
    """(sum of the losses of the row's trained tokens, their number)"""
    ids, trained = torch.tensor(row["ids"]), torch.tensor(row["trained"][1:], dtype=torch.bool)
    losses = torch.nn.functional.cross_entropy(logits_of(model, row)[:-1], ids[1:], reduction="none")
    return losses[trained].sum(), int(trained.sum())


def losses_of(model, rows):
    with torch.no_grad():
        pairs = [loss_of(model, row) for row in rows]
    total = math.fsum(float(loss) for loss, _ in pairs)
    count = sum(count for _, count in pairs)
    return {
        "loss_sum": [float(loss) for loss, _ in pairs],
        "trained_tokens": [count for _, count in pairs],
        "loss": total / count,
    }


def adapter_tensors(model, grad=False):
    """The adapter's parameters (or their gradients) under the names that PEFT saves them with."""
    tensors = {}
    for name, weight in model.named_parameters():
        if "lora_" in name:
            value = weight.grad if grad else weight
            name = name.replace(".default.", ".").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
            tensors[name] = value.detach().clone().contiguous()
    return tensors


def train(folder, base, rows):
    model = PeftModel.from_pretrained(base, folder, is_trainable=True)
    put_masks(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=TRAINING["learning_rate"], betas=TRAINING["betas"], eps=TRAINING["eps"],
        weight_decay=TRAINING["weight_decay"],
    )  # fmt: skip
    scheduler = get_cosine_schedule_with_warmup(optimizer, TRAINING["warmup_steps"], TRAINING["total_steps"])
    record = {**TRAINING, "batches": [], "losses": [], "grad_norms": [], "learning_rates": []}
    for step in range(TRAINING["total_steps"]):
        order = [(3 * step + i) % len(rows) for i in range(5)]
        batches = [order[:2], order[2:]]
        total, count = 0.0, sum(sum(rows[i]["trained"][1:]) for i in order)
        row_in_step = iter(range(len(order)))
        for batch in batches:
            loss = 0.0
            for i in batch:
                Masked.now = (step + 1, next(row_in_step))
                loss = loss + loss_of(model, rows[i])[0]
            (loss / count).backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, TRAINING["clip"])
        record["batches"].append(batches)
        record["losses"].append(total / count)
        record["grad_norms"].append(float(norm))
        record["learning_rates"].append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    final = adapter_tensors(model)
    model.unload()
    return record, final


def tidy_adapter(folder):
    """Drops PEFT's model card, and sorts the one list whose order changes from run to run."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2) + "\n")


def old_config(path):
    """Rewrites config.json as transformers 4 wrote it: most folders on disk look like that."""
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    del config["head_dim"]
    config["transformers_version"] = "4.44.0"
    path.write_text(json.dumps(config, indent=2) + "\n")


def make(family):
    build, seed = FAMILIES[family]
    out = OUT / family
    shutil.rmtree(out, ignore_errors=True)
    generator = torch.Generator().manual_seed(seed)
    base = build().float().eval()
    randomise(base, generator)
    base.save_pretrained(out / "base")
    (out / "base" / "generation_config.json").unlink(missing_ok=True)
    if family == "llama":
        sharded = OUT / "llama_sharded"
        shutil.rmtree(sharded, ignore_errors=True)
        size = sum(p.numel() * 4 for p in base.parameters())
        base.save_pretrained(sharded, max_shard_size=size * 55 // 100)
        (sharded / "generation_config.json").unlink(missing_ok=True)
        old_config(sharded / "config.json")
        assert len(list(sharded.glob("model-*.safetensors"))) == 2

    rows = make_rows(base.config.vocab_size, np.random.Generator(np.random.PCG64(seed)), LENGTHS)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM")
    record(family, base, rows, config, generator)


def make_variant(variant):
    family, seed, settings = VARIANTS[variant]
    out = OUT / variant
    shutil.rmtree(out, ignore_errors=True)
    base = AutoModelForCausalLM.from_pretrained(OUT / family / "base", dtype=torch.float32).eval()
    rows = make_rows(base.config.vocab_size, np.random.Generator(np.random.PCG64(seed)), VARIANT_LENGTHS)
    config = LoraConfig(target_modules=LINEARS, task_type="CAUSAL_LM", **settings)
    record(variant, base, rows, config, torch.Generator().manual_seed(seed))


def record(family, base, rows, config, generator):
    """The adapter's folder, expected.json and expected.safetensors of a family or a variant."""
    out = OUT / family
    result = {"versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "peft": peft.__version__}}
    result["rows"] = rows
    result["loss_base"] = losses_of(base, rows)
    tensors = {}
    with torch.no_grad():
        for i, row in enumerate(rows):
            tensors[f"logits.base.{i}"] = logits_of(base, row).clone()

    model = get_peft_model(base, config)
    model.eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator) if "lora_" in name else None
            if "magnitude" in name:
                weight.mul_(1 + 0.2 * noise)
            elif "lora_" in name:
                weight.copy_(noise * (0.1 if "lora_B" in name else 0.15))
    model.save_pretrained(out / "adapter")
    tidy_adapter(out / "adapter")
    result["loss_adapter"] = losses_of(model, rows)
    with torch.no_grad():
        for i, row in enumerate(rows):
            tensors[f"logits.adapter.{i}"] = logits_of(model, row).clone()
    model.zero_grad()
    count = sum(result["loss_adapter"]["trained_tokens"])
    put_masks(model)
    for i, row in enumerate(rows):
        Masked.now = (1, i)
        (loss_of(model, row)[0] / count).backward()
    gradients = adapter_tensors(model, grad=True)
    saved = load_file(out / "adapter" / "adapter_model.safetensors")
    assert gradients.keys() == saved.keys(), "names differ from those of PEFT's file"
    tensors |= {f"grad.{name}": gradient for name, gradient in gradients.items()}

    base = model.unload().eval()
    result["training"], final = train(out / "adapter", base, rows)
    assert final.keys() == saved.keys()
    tensors |= {f"final.{name}": weight for name, weight in final.items()}

    spread = min(float(tensors[f"logits.base.{i}"].std()) for i in range(len(rows)))
    moved = max(float((tensors[f"logits.base.{i}"] - tensors[f"logits.adapter.{i}"]).abs().max()) for i in range(len(rows)))
    assert spread >= 1, f"{family}: logits with a standard deviation of {spread}"
    assert moved >= 0.1, f"{family}: the adapter moves the logits by {moved} only"
    assert min(float(gradient.norm()) for gradient in gradients.values()) > 1e-4
    assert result["training"]["losses"][-1] < result["training"]["losses"][0]
    save_file({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, out / "expected.safetensors")
    (out / "expected.json").write_text(json.dumps(result).replace('], "', '],\n"').replace('}, "', '},\n"') + "\n")
    losses = result["training"]["losses"]
    print(
        f"{family}: logits' deviation at least {spread:.2f}, adapter moves them by {moved:.2f}; loss {result['loss_base']['loss']:.4f}, "
        f"with adapter {result['loss_adapter']['loss']:.4f}; training {losses[0]:.4f} -> {losses[-1]:.4f}; "
        f"clipped in {sum(n > TRAINING['clip'] for n in result['training']['grad_norms'])} of {len(losses)} steps; "
        f"{sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.2f} MB"
    )


def main():
    torch.set_num_threads(1)  # the same order of sums on every machine
    known = [*FAMILIES, *VARIANTS]
    for name in sys.argv[1:] or known:
        if name not in known:
            sys.exit(f"no family {name}; there are: {', '.join(known)}")
        make(name) if name in FAMILIES else make_variant(name)


if __name__ == "__main__":
    main()
