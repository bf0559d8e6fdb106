"""Writes the PEFT folder that the SmolLM2 comparison starts from, the same bytes on every machine.

usage: start_adapter.py FOLDER

A is uniform in +-1/sqrt(in), the bounds of PEFT's own start (kaiming, a = sqrt 5); B is zero. The
numbers come from the raw stream of PCG64, which numpy keeps stable; the file is written by hand, so
that no library's version shows in its digest.
"""

import hashlib
import json
import struct
import sys
from pathlib import Path

import numpy as np

SEED = 20261121
RANK, ALPHA = 16, 32
LAYERS, HIDDEN, KV, MLP = 30, 576, 192, 1536
LINEARS = {  # name -> (out, in)
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "mlp.down_proj": (HIDDEN, MLP),
}


def uniform(generator, shape, bound):
    """float32 in [-bound, bound): the upper 24 bits of each raw 64-bit number."""
    raw = generator.random_raw(int(np.prod(shape))) >> np.uint64(40)
    unit = raw.astype(np.float64) / (1 << 23) - 1.0
    return (unit * bound).astype(np.float32).reshape(shape)


def tensors():
    generator = np.random.PCG64(SEED)
    for layer in range(LAYERS):
        for name, (rows, columns) in LINEARS.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            yield f"{prefix}.lora_A.weight", uniform(generator, (RANK, columns), columns**-0.5)
            yield f"{prefix}.lora_B.weight", np.zeros((rows, RANK), np.float32)


def safetensors_bytes(named):
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in sorted(named):
        blob = tensor.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(blobs)


def config():
    return {
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": sorted(name.split(".")[1] for name in LINEARS),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    data = safetensors_bytes(tensors())
    (folder / "adapter_model.safetensors").write_bytes(data)
    (folder / "adapter_config.json").write_text(json.dumps(config(), indent=2) + "\n")
    print(hashlib.sha256(data).hexdigest())


if __name__ == "__main__":
    main()
