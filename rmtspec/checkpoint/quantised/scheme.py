"""What the files beside the weights say about how they were quantised."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rmtspec._files.reading import bounded_json
from rmtspec.errors import FileError

#: Keys of config.json under which the method and its options are; the second one is older.
CONFIG_KEYS = ("quantization_config", "compression_config")
#: Keys under which the config of a part of a model is.
_PARTS = ("text_config", "language_config", "llm_config", "thinker_config")
#: Files that older versions of GPTQ and AWQ, and ModelOpt, wrote instead.
OLDER_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
#: dtypes of models, as configs have them, with their names for `named_dtype`.
_DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "bfloat16"}
#: Models whose layers keep inputs x outputs (Conv1D of transformers), and what these are called.
_TURNED_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_TURNED_LAYERS = ("c_attn", "c_proj", "c_fc", "q_attn")


class Scheme(NamedTuple):
    """The method by which a checkpoint was quantised.

    `method` is as in its config, in small letters, and empty if no file says it; `dtype` is that of
    the model, as a name for `named_dtype`, or empty; `model_type` is that of the config.
    """

    method: str
    options: Mapping[str, Any]
    dtype: str = ""
    model_type: str = ""

    def whole(self, *names: str, default: int | None = None) -> int | None:
        """Return the first of some options that is a whole number."""
        found = (self.options.get(name) for name in names)
        return next((value for value in found if type(value) is int), default)

    def word(self, *names: str) -> str:
        """Return the first of some options that is text, in small letters; else ""."""
        found = (self.options.get(name) for name in names)
        return next((value.lower() for value in found if isinstance(value, str)), "")

    def turns(self, layer: str) -> bool:
        """Tell whether the dense weight of a layer has inputs as rows, unlike what is packed."""
        known = self.model_type in _TURNED_TYPES
        return known and layer.rpartition(".")[2] in _TURNED_LAYERS


def scheme_of(config: Mapping[str, Any], folder: Path) -> Scheme:
    """Return the method and options of a checkpoint in a folder whose config.json this is."""
    found: Mapping[str, Any] = {}
    dtype = ""
    for section in (config, *(config.get(name) for name in _PARTS)):
        if not isinstance(section, Mapping):
            continue
        for key in CONFIG_KEYS:
            options = section.get(key)
            if not found and isinstance(options, Mapping):
                found = options
        dtype = dtype or _DTYPES.get(str(section.get("dtype") or section.get("torch_dtype")), "")
    if not found:
        found = _older(folder)
    method = found.get("quant_method")
    words = method.lower().replace("_", "-") if isinstance(method, str) else _guessed(found)
    return Scheme(words, found, dtype, str(config.get("model_type", "")))


def without_scheme(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without what says how its weights are quantised."""
    kept = {key: value for key, value in config.items() if key not in CONFIG_KEYS}
    parts = {key: value for key, value in kept.items() if key in _PARTS}
    dense = {key: without_scheme(v) for key, v in parts.items() if isinstance(v, Mapping)}
    return kept | dense


def _older(folder: Path) -> Mapping[str, Any]:
    """Return the options in a file of an older version, or nothing."""
    for name in OLDER_FILES[:2]:
        try:
            content = bounded_json(folder / name)
        except FileError:
            raise
        except (OSError, ValueError):
            continue
        if isinstance(content, Mapping):
            return content
    return {}


def _guessed(options: Mapping[str, Any]) -> str:
    """Return the method of options that older versions wrote without its name."""
    if "load_in_4bit" in options or "load_in_8bit" in options:
        return "bitsandbytes"
    if "w_bit" in options and "q_group_size" in options:
        return "awq"
    if "bits" in options and "desc_act" in options:
        return "gptq"
    if "config_groups" in options:
        return "compressed-tensors"
    return ""
