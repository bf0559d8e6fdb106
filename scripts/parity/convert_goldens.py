"""llama.cpp's own converter, as the reference of `retune convert`.

usage: convert_goldens.py goldens DATA            writes tests/parity/convert/ (DATA holds models/stories260K)
       convert_goldens.py graft KIND DIR          a tiny random model with the real vocabulary of qwen3, llama3 or smollm2
       convert_goldens.py convert DIR OUT TYPE [PRE]   what convert_hf_to_gguf.py writes
Run with the venv of scripts/peers; needs its parts venv and llama-src, smollm2 for the graft of that name.

tests/parity/convert/NAME/ holds the tokenizer's files for the weights of tests/parity/{llama,qwen2}/base, and expected.json:
  keys      every metadata key with its type and value (general.file_type, which depends on the type, is left out)
  tensors   by type: name, type, shape (row-major) and SHA-256 of the bytes of every tensor, in file order
A vocabulary as small as these has no hash that the converter knows: PRE tells it the pre-tokenizer.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

from gguf_models import load_tokenizer, peers_dir

ROOT = Path(__file__).resolve().parents[2]
LLAMA_CPP = peers_dir() / "llama/src"
sys.path.insert(0, str(LLAMA_CPP))
TYPES = ["f32", "f16", "bf16", "q8_0"]
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXT = "the cat sat on the mat and the hat that the rat had, then the dog ran; there they are in the sand, and that is it\n"
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"


def convert(folder, out, kind, pre=None):
    import convert_hf_to_gguf
    from conversion.base import TextModel

    if pre:
        TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    sys.argv = ["convert", str(folder), "--outfile", str(out), "--outtype", kind]
    convert_hf_to_gguf.main()


def byte_level(out, size, pattern, ignore_merges, special, plain, bos, config):
    """A tiny byte-level vocabulary: `size` tokens, then special ones, then added ones that are not special."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=size, show_progress=False))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
    level = processors.ByteLevel(trim_offsets=False)
    if bos:
        ids = [(bos, tokenizer.token_to_id(bos))]
        template = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=ids)
        level = processors.Sequence([level, template])
    tokenizer.post_processor = level
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}, indent=1))


def sentencepiece(out):
    import sentencepiece as spm

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "text").write_text(TEXT * 40)
        spm.SentencePieceTrainer.train(
            input=f"{scratch}/text", model_prefix=f"{scratch}/m", vocab_size=60, model_type="bpe", hard_vocab_limit=False,
            user_defined_symbols=["<usr>"], normalization_rule_name="identity", minloglevel=2,
        )  # fmt: skip
        shutil.copy(f"{scratch}/m.model", out / "tokenizer.model")
    added = {
        "70": {"content": "<|extra|>", "special": False},
        "71": {"content": "▁plain", "special": False},
        "72": {"content": "[CTL]", "special": True},
    }
    config = {"add_prefix_space": False, "add_bos_token": True, "bos_token": "<s>", "added_tokens_decoder": added}
    (out / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **config}, indent=1))
    (out / "added_tokens.json").write_text(json.dumps({"<added>": 69}))
    # The weights say nothing of rope: Llama 3's scaling, with pairs on both sides of its ramp and on it.
    config = json.loads((ROOT / "tests/parity/llama/base/config.json").read_text())
    config["rope_parameters"] = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=1))


def dump(file, expected, kind):
    import gguf

    reader = gguf.GGUFReader(file)
    fields = {k: f for k, f in reader.fields.items() if not k.startswith("GGUF.") and k != "general.file_type"}
    keys = {k: [[t.name for t in f.types], f.contents()] for k, f in fields.items()}
    assert expected.setdefault("keys", keys) == keys, f"keys depend on the type {kind}"
    tensors = reader.tensors
    shape = lambda t: [int(n) for n in reversed(t.shape)]
    digest = lambda t: hashlib.sha256(t.data.tobytes()).hexdigest()
    expected.setdefault("tensors", {})[kind] = [[t.name, t.tensor_type.name, shape(t), digest(t)] for t in tensors]


def goldens(data):
    out = ROOT / "tests/parity/convert"
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": None}
    byte_level(out / "llama", 80, WORDS % "{1,3}", True, ["<unk>", "<s>", "</s>"], [], "<s>", config)
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False, "chat_template": TEMPLATE}
    byte_level(out / "qwen2", 90, WORDS % "", False, special, ["<tool>", "<|odd|>"], None, config)
    sentencepiece(out / "sentencepiece")
    for name, weights, pre in [
        ("llama", ROOT / "tests/parity/llama/base", "llama-bpe"), ("qwen2", ROOT / "tests/parity/qwen2/base", "qwen2"),
        ("sentencepiece", ROOT / "tests/parity/llama/base", None), ("stories260K", data / "models/stories260K", None),
    ]:  # fmt: skip
        (out / name).mkdir(exist_ok=True)
        expected = {}
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / name
            folder.mkdir()
            for file in [*weights.iterdir(), *(out / name).iterdir()]:
                if file.name != "expected.json":
                    shutil.copy(file, folder)
            for kind in TYPES:
                convert(folder, f"{scratch}/{kind}.gguf", kind, pre)
                dump(f"{scratch}/{kind}.gguf", expected, kind)
        (out / name / "expected.json").write_text(json.dumps(expected, indent=None, ensure_ascii=False) + "\n")


def graft(kind, out):
    import gguf
    import torch
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(7)

    def save(model, config, rows, dtype, **settings):
        shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
        model = model(config(vocab_size=rows, **shape, **settings)).to(dtype)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.1)
        model.save_pretrained(out)

    def vocabulary(name):
        return {k: f.contents() for k, f in gguf.GGUFReader(LLAMA_CPP / "models" / name).fields.items()}

    def load(fields, pattern, count, whole):
        """The vocabulary of a GGUF file as its hub twin has it."""
        tokens = fields["tokenizer.ggml.tokens"]
        merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
        vocab = {token: id for id, token in enumerate(tokens[:count])}
        tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=whole))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens[count:]])
        return tokenizer, tokens

    if kind == "qwen2":
        tokenizer, tokens = load(vocabulary("ggml-vocab-qwen2.gguf"), WORDS % "", 151643, False)
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        save(Qwen2ForCausalLM, Qwen2Config, 151936, torch.bfloat16, tie_word_embeddings=True, rope_theta=1e6,
             bos_token_id=151643, eos_token_id=151645)  # fmt: skip
        twin = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
        twin.chat_template = TEMPLATE
        twin.save_pretrained(out)
    elif kind == "llama3":
        tokenizer, tokens = load(vocabulary("ggml-vocab-llama-bpe.gguf"), WORDS % "{1,3}", 128000, True)
        bos = tokens[128000]
        template = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, 128000)])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
        rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192}  # fmt: skip
        save(LlamaForCausalLM, LlamaConfig, 128256, torch.bfloat16, tie_word_embeddings=False, head_dim=64, rope_parameters=rope,
             bos_token_id=128000, eos_token_id=[128001, 128008, 128009], max_position_embeddings=131072)  # fmt: skip
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=tokens[128009]).save_pretrained(out)
        (out / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "top_k": 40, "do_sample": True}))
    elif kind == "smollm2":
        save(LlamaForCausalLM, LlamaConfig, 49152, torch.float32, tie_word_embeddings=True, rope_theta=1e5, bos_token_id=1, eos_token_id=2)
        load_tokenizer(peers_dir() / "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").save_pretrained(out)
    elif kind == "smollm2-whole":
        from gguf_models import load_model

        file = peers_dir() / "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        load_model(file).to(torch.bfloat16).save_pretrained(out)
        load_tokenizer(file).save_pretrained(out)
    else:
        sys.exit(f"no graft {kind}")


if __name__ == "__main__":
    mode, *rest = sys.argv[1:] or [""]
    if mode == "goldens":
        goldens(Path(rest[0]))
    elif mode == "graft":
        Path(rest[1]).mkdir(parents=True, exist_ok=True)
        graft(rest[0], Path(rest[1]))
    elif mode == "convert":
        convert(*rest)
    else:
        sys.exit(__doc__)
