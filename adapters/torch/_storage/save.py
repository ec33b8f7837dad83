"""Saving a model, including its split layers, as safetensors and a manifest, without pickle."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rmtspec.adapters.torch._layers.entries import entries_of
from rmtspec.adapters.torch._layers.marked_config import MARK
from rmtspec.adapters.torch._storage.extra_states import extra_states, is_extra
from rmtspec.adapters.torch._weights.layer_kinds import unreadable
from rmtspec.adapters.torch._weights.matrices import check_model, memory_of
from rmtspec.adapters.torch._weights.tensors import to_numpy
from rmtspec.adapting import Outgoing, PathLike, format_dtype, model_folder, versions
from rmtspec.errors import InvalidValueError

#: Files of tokenizers and processors.
_COMPANIONS = re.compile(
    r"^(tokenizer|special_tokens|added_tokens|vocab|merges|spiece|sentencepiece|chat_template"
    r"|preprocessor_config|processor_config)[\w.-]*\.(json|txt|model|jinja)$"
)


def save(model: nn.Module, folder: PathLike) -> Path:
    """Save a model, including its split layers, into a new folder.

    The folder gets ``rmtspec.safetensors`` with the tensors of the state dict, shared ones once,
    and the manifest ``rmtspec.json``, which holds what `get_extra_state` of a module returns if
    that is no tensor. The config files of a transformers model are written too, and
    the files of its tokenizer or processor are copied from the folder that it was loaded from, if
    that was one. The folder appears under its name only when it is complete.

    Parameters
    ----------
    model : torch.nn.Module
    folder : path
        It must not exist yet, or be empty.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        The model is wrapped, or its state dict has an entry that is neither a dense tensor with
        values nor, from `get_extra_state`, a value that JSON has.
    FileError
        The folder is not empty or cannot be written; nothing is left behind.

    Examples
    --------
    >>> import tempfile, torch
    >>> from rmtspec.adapters import torch as rt
    >>> smaller, _ = rt.prune(rt.MLP([64, 100, 10]), ranks={"layers.0": 8})
    >>> with tempfile.TemporaryDirectory() as place:
    ...     saved = rt.save(smaller, f"{place}/small")
    ...     loaded = rt.load(rt.MLP([64, 100, 10]), saved)
    >>> x = torch.ones(1, 64)
    >>> bool((loaded(x) == smaller(x)).all())
    True
    """
    check_model(model)
    extra = extra_states(model)
    tensors, tied = _state(model)
    outgoing = [
        Outgoing(name, _dtype(value), tuple(value.shape), partial(_array, value))
        for name, value in tensors.items()
    ]
    entries = entries_of(model)
    more: dict[str, Any] = {"versions": versions("torch"), "metadata": {"format": "pt"}}
    more["extra_states"] = extra
    with model_folder(folder, outgoing, entries, tied=tied, **more) as work:
        for config in (getattr(model, "config", None), getattr(model, "generation_config", None)):
            if callable(getattr(config, "save_pretrained", None)):
                config.save_pretrained(work)  # type: ignore[union-attr]
        _name_class(model, work / "config.json")
        _carry_along(model, work)
    return Path(folder)


def _state(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors of the state dict, shared ones once, and the keys that share them."""
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if is_extra(name) and not isinstance(value, torch.Tensor):
            continue
        reason = unreadable(value, codes=True)
        if reason:
            raise InvalidValueError(
                f"The state dict has {name!r}, which cannot be saved: {reason}. Expected dense "
                "tensors with values."
            )
        place = (memory_of(value), tuple(value.shape), value.stride(), value.dtype)
        first = seen.setdefault(place, name)
        if first != name:
            tied[name] = first
        else:
            tensors[name] = value.detach()
    return tensors, tied


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(to_numpy(tensor)).reshape(tensor.shape)


def _dtype(tensor: torch.Tensor) -> str:
    return format_dtype(to_numpy(tensor.new_empty(0, device="cpu")).dtype)


def _name_class(model: nn.Module, file: Path) -> None:
    """Write the class of a model of transformers into its config, as its own saving does.

    The manifest says which layers were cut, so that the config need not.
    """
    if not file.exists():
        return
    content = json.loads(file.read_text("utf-8"))
    content["architectures"] = [type(model).__name__]
    if MARK in (content.get("quantization_config") or {}):
        del content["quantization_config"]
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def _carry_along(model: nn.Module, work: Path) -> None:
    """Copy the files of the tokenizer from the folder that a transformers model came from."""
    source = getattr(model, "name_or_path", "")
    if not (isinstance(source, str) and source and Path(source).is_dir()):
        return
    for file in sorted(Path(source).iterdir()):
        if _COMPANIONS.match(file.name) and file.is_file() and not (work / file.name).exists():
            shutil.copyfile(file, work / file.name)
