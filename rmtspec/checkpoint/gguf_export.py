"""A GGUF checkpoint in the terms of transformers: its names, its order of rows, its config.

llama.cpp renames tensors, and in models of the Llama family it reorders the rows of q and k, since
it rotates neighbouring pairs where transformers rotates halves (convert_hf_to_gguf.py).
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmtspec.checkpoint.gguf_reader import GgufTensor
from rmtspec.checkpoint.grouping import group
from rmtspec.checkpoint.listing import CONFIG, Checkpoint
from rmtspec.checkpoint.stored import StoredTensor

#: Names in a GGUF file, without their ".weight" or ".bias", and in transformers.
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_BLOCK = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
#: Architectures, with the class in transformers and whether the rows of q and k are reordered.
_CLASSES = {
    "llama": ("LlamaForCausalLM", True),
    "qwen2": ("Qwen2ForCausalLM", False),
    "qwen3": ("Qwen3ForCausalLM", False),
}
_BLOCK = re.compile(r"blk\.(\d{1,6})\.([a-z_]+)\.(weight|bias)")
_OUTSIDE = re.compile(r"([a-z_]+)\.(weight|bias)")


def is_gguf(listed: Checkpoint) -> bool:
    """Tell whether a checkpoint is one of GGUF files."""
    return listed.files[0].suffix.lower() == ".gguf"


def write_config(listed: Checkpoint, folder: Path) -> None:
    """Write the config of a GGUF checkpoint into a folder, if it is known and there is none."""
    place = folder / CONFIG
    if is_gguf(listed) and listed.config and not place.exists():
        place.write_text(json.dumps(listed.config, indent=2) + "\n", encoding="utf-8")


def in_transformers(listed: Checkpoint) -> Checkpoint:
    """Return the checkpoint as transformers would have it; as it is if that is not known.

    Known are the architectures of `_CLASSES` whose tensors all have a name there. The config then
    has what the metadata say. A checkpoint in another format stays as it is.
    """
    if not is_gguf(listed):
        return listed
    architecture = listed.metadata.get("general.architecture", "")
    as_it_is = dataclasses.replace(listed, metadata={})
    config = _config(architecture, listed) if architecture in _CLASSES else None
    if config is None or listed.unread:
        return as_it_is
    renamed = _renamed(listed.tensors, config, reordered=_CLASSES[architecture][1])
    if len(renamed) < len(listed.tensors):
        return as_it_is
    matrices, skipped = group(renamed, config, parts=listed.parts)
    return dataclasses.replace(
        listed, tensors=renamed, matrices=matrices, skipped=skipped, metadata={}, config=config
    )


def _renamed(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], *, reordered: bool
) -> dict[str, StoredTensor]:
    """Return the tensors under their names in transformers, without those that have none."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        inside, outside = _BLOCK.fullmatch(name), _OUTSIDE.fullmatch(name)
        if inside and inside[2] in _IN_BLOCK:
            new = f"model.layers.{inside[1]}.{_IN_BLOCK[inside[2]]}.{inside[3]}"
            count = heads.get(inside[2], 0) if reordered else 0
            if count and isinstance(tensor, GgufTensor):
                if tensor.shape[0] % (2 * count):
                    continue
                tensor = dataclasses.replace(tensor, heads=count)
        elif outside and outside[1] in _NAMES:
            new = f"{_NAMES[outside[1]]}.{outside[2]}"
        else:
            continue
        renamed[new] = dataclasses.replace(tensor, name=new)
    return renamed


def _config(architecture: str, listed: Checkpoint) -> dict[str, Any] | None:
    """Return the config of a model of transformers; None if a size is missing."""

    def number(key: str, kind: type = int) -> Any:
        try:
            return kind(listed.metadata[f"{architecture}.{key}"])
        except (KeyError, ValueError):
            return None

    heads, embedded = number("attention.head_count"), listed.tensors.get("token_embd.weight")
    config = {
        "architectures": [_CLASSES[architecture][0]], "model_type": architecture,
        "vocab_size": embedded.shape[0] if embedded is not None and embedded.shape else None,
        "hidden_size": number("embedding_length"),
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv") or heads,
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon", float),
    }  # fmt: skip
    if any(value is None for value in config.values()) or not heads:
        return None
    head = number("attention.key_length") or config["hidden_size"] // heads
    attention_bias = "blk.0.attn_q.bias" in listed.tensors
    config |= {
        "rope_theta": number("rope.freq_base", float) or 10000.0,
        "tie_word_embeddings": "output.weight" not in listed.tensors, "head_dim": head,
        "hidden_act": "silu", "dtype": "float32",
    }  # fmt: skip
    if architecture == "llama":
        config["attention_bias"] = attention_bias
    for name in ("bos", "eos"):
        token = listed.metadata.get(f"tokenizer.ggml.{name}_token_id", "")
        if token.isdecimal():
            config[f"{name}_token_id"] = int(token)
    return config
