"""What the parity scripts share: a GGUF file of a llama model as transformers objects, in f32."""

import os
from pathlib import Path

import numpy as np

HEAD_PERMUTED = ("attn_q.weight", "attn_k.weight")
NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


def peers_dir():
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RETUNE_PEERS_DIR") or Path(cache) / "retune" / "peers")


def read_fields(reader):
    return {name: field.contents() for name, field in reader.fields.items()}


def hf_rows(weight, heads):
    """GGUF interleaves the two halves of each head's rows (llama only); HF keeps them apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def load_model(path):
    """LlamaForCausalLM in f32 with the file's dequantised weights."""
    import gguf
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = gguf.GGUFReader(path)
    fields = read_fields(reader)
    heads, kv_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    names = {tensor.name for tensor in reader.tensors}
    config = LlamaConfig(
        hidden_size=fields["llama.embedding_length"], intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"], num_attention_heads=heads, num_key_value_heads=kv_heads,
        vocab_size=len(fields["tokenizer.ggml.tokens"]), max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"], rope_theta=fields["llama.rope.freq_base"],
        tie_word_embeddings="output.weight" not in names, bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
    )  # fmt: skip
    state = {}
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name.endswith(HEAD_PERMUTED):
            weight = hf_rows(weight, heads if "attn_q" in tensor.name else kv_heads)
        if tensor.name == "token_embd.weight":
            name = "model.embed_tokens.weight"
        elif tensor.name == "output_norm.weight":
            name = "model.norm.weight"
        elif tensor.name == "output.weight":
            name = "lm_head.weight"
        else:
            _, layer, part, kind = tensor.name.split(".")
            name = f"model.layers.{layer}.{NAMES[part]}.{kind}"
        state[name] = torch.from_numpy(np.ascontiguousarray(weight))
    model = LlamaForCausalLM(config).float().eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model


def load_tokenizer(path):
    """A fast tokenizer of a gpt2-kind vocabulary as its hub twin splits text, and its chat template."""
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = read_fields(gguf.GGUFReader(path))
    kind = (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"])
    splits = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if kind in [("gpt2", "smollm"), ("gpt2", "starcoder")]:
        splits.insert(0, pre_tokenizers.Digits(individual_digits=True))
    else:
        assert kind == ("gpt2", "gpt-2"), f"a tokenizer of kind {kind} is not known here"
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, types) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    assert tokenizer.get_vocab_size() == len(tokens)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        chat_template=fields.get("tokenizer.chat_template"),
    )
