"""A GGUF checkpoint in the terms of transformers: its names, its order of rows, its config.

llama.cpp renames tensors, and in models of the Llama family it reorders the rows of q and k, since
it rotates neighbouring pairs where transformers rotates halves (convert_hf_to_gguf.py).
"""

import dataclasses
import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmtspec.checkpoint.gguf_reader import GgufTensor
from rmtspec.checkpoint.grouping import group
from rmtspec.checkpoint.listing import CONFIG, Checkpoint
from rmtspec.checkpoint.stored import StoredTensor
from rmtspec.errors import RmtspecWarning

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
#: Sizes that a head can be announced by: they have to agree.
_HEAD_SIZES = ("attention.key_length", "attention.value_length", "rope.dimension_count")
_NEEDED = (
    "embedding_length", "feed_forward_length", "block_count", "context_length",
    "attention.head_count", "attention.layer_norm_rms_epsilon",
)  # fmt: skip
#: Values of an architecture that the config takes up, or that follow from what it does.
_VALUES: dict[str, type] = {
    **dict.fromkeys((*_NEEDED, *_HEAD_SIZES, "attention.head_count_kv", "vocab_size"), int),
    "attention.layer_norm_rms_epsilon": float, "rope.freq_base": float,
}  # fmt: skip
#: Values that say what a model without them does anyway.
_NEUTRAL = {"rope.scaling.type": "none", "attention.causal": "True", "expert_count": "0"}
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

    Known are the architectures of `_CLASSES` whose tensors and values all have a name there. The
    config then has what the metadata say. Any other gets an `RmtspecWarning` that says why it is
    not. A checkpoint in another format stays as it is.
    """
    if not is_gguf(listed):
        return listed
    architecture = listed.metadata.get("general.architecture", "")
    unknown = _unknown(architecture, listed)
    config = {} if unknown else _config(architecture, listed)
    renamed = {} if unknown else _renamed(listed.tensors, config, _CLASSES[architecture][1])
    if not unknown and len(renamed) < len(listed.tensors):
        unknown = f"{len(listed.tensors) - len(renamed)} of its tensors have no place there"
    if unknown:
        warnings.warn(
            f"{listed.path}: names of tensors and the order of rows stay those of llama.cpp, and "
            f"no {CONFIG} is written, since {unknown}.",
            RmtspecWarning,
            stacklevel=2,
        )
        return dataclasses.replace(listed, metadata={})
    matrices, skipped = group(renamed, config, parts=listed.parts)
    return dataclasses.replace(
        listed, tensors=renamed, matrices=matrices, skipped=skipped, metadata={}, config=config
    )


def _unknown(architecture: str, listed: Checkpoint) -> str:
    """Return why a file is not known as a model of transformers; empty if it is.

    A value that this module does not carry over could change what the model computes.
    """
    if architecture not in _CLASSES:
        return f"the architecture {architecture!r} is not one of {', '.join(_CLASSES)}"
    if listed.unread:
        return f"{listed.unread[0]['name']} cannot be read"
    said = {
        key.removeprefix(f"{architecture}."): value
        for key, value in listed.metadata.items()
        if key.startswith(f"{architecture}.")
    }
    for key, value in said.items():
        kind = _VALUES.get(key)
        if kind is None and value != _NEUTRAL.get(key):
            return f"{architecture}.{key} ({value}) has no counterpart here"
        if kind is not None and not _readable(value, kind):
            return f"{architecture}.{key} is {value}, not one {kind.__name__}"
    missing = [key for key in _NEEDED if key not in said]
    embedded = listed.tensors.get("token_embd.weight")
    if missing or embedded is None or len(embedded.shape) != 2:
        return f"it lacks {missing[0] if missing else 'a matrix token_embd.weight'}"
    heads, width = int(said["attention.head_count"]), int(said["embedding_length"])
    sizes = [said[key] for key in _HEAD_SIZES if key in said]
    if heads < 1 or (not sizes and width % heads):
        return f"{heads} heads do not divide {width}"
    if len(set(sizes)) > 1:
        return f"its heads have several sizes, {', '.join(dict.fromkeys(sizes))}"
    return ""


def _readable(value: str, kind: type) -> bool:
    try:
        return math.isfinite(kind(value))
    except ValueError:
        return False


def _renamed(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], reordered: bool
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


def _config(architecture: str, listed: Checkpoint) -> dict[str, Any]:
    """Return the config of a model of transformers, of a file that is known."""

    def number(key: str, usual: Any = None) -> Any:
        value = listed.metadata.get(f"{architecture}.{key}")
        return usual if value is None else _VALUES[key](value)

    heads, width = number("attention.head_count"), number("embedding_length")
    config = {
        "architectures": [_CLASSES[architecture][0]], "model_type": architecture,
        "vocab_size": listed.tensors["token_embd.weight"].shape[0], "hidden_size": width,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": next((number(key) for key in _HEAD_SIZES if number(key)), width // heads),
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "rope_theta": number("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in listed.tensors,
        "hidden_act": "silu", "dtype": "float32",
    }  # fmt: skip
    if architecture != "qwen2":  # whose q, k and v always have one
        config["attention_bias"] = "blk.0.attn_q.bias" in listed.tensors
    for name in ("bos", "eos"):
        token = listed.metadata.get(f"tokenizer.ggml.{name}_token_id", "")
        if token.isdecimal():
            config[f"{name}_token_id"] = int(token)
    return config
