"""Names in a file and in a model: prefixes of wrappers, and what libraries rename on saving."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from rmtspec.adapting import WRAPPERS, Manifest, MappedTensor, listed
from rmtspec.errors import InvalidValueError

Rename = Callable[[str], str]


def in_model(
    model: nn.Module, manifest: Manifest, stored: Mapping[str, MappedTensor]
) -> tuple[Manifest, dict[str, MappedTensor]]:
    """Return a manifest and its tensors under the names that they have in a model.

    Tried are the names as they are, without or with what wrappers put before them, and as
    transformers renames them when it reads the model's files; the first of these under which
    nothing is foreign to the model, else those under which the least is.

    Raises
    ------
    InvalidValueError
        A layer that was split is only a part of a parameter of the model.
    """
    layers = [entry.name for entry in manifest.splits]
    dense = {key: _dense_key(key, layers) for key in (*stored, *manifest.tied)}
    wanted = set(dense.values())
    known = set(model.state_dict(keep_vars=True))
    fused: dict[str, str] = {}
    ways = [_same, *_prefixes(wanted), *_of_transformers(model, fused)]
    strange = [len({way(key) for key in wanted} - known) for way in ways]
    best = ways[strange.index(min(strange))]
    if best is _same:
        return manifest, dict(stored)
    split = {f"{name}.weight" if name else "weight": name for name in layers}
    parts = [name for key, name in split.items() if key in fused and best(key) == fused[key]]
    if parts:
        raise InvalidValueError(
            f"{listed(map(repr, parts), most=3)} were split in the file, and in this "
            f"{type(model).__name__} each is a part of one parameter, such as "
            f"{fused[f'{parts[0]}.weight']!r}, which has no factors. Undo the split (rmtspec "
            "merge), or prune with --as dense, and load the result with from_pretrained."
        )
    moved = {name: best(key).removesuffix("weight").rstrip(".") for key, name in split.items()}

    def renamed(key: str) -> str:
        layer = _layer_of(key, layers)
        if layer is None:
            return best(key)
        return f"{moved[layer]}.{key.removeprefix(f'{layer}.')}".lstrip(".")

    entries = tuple(dataclasses.replace(e, name=moved[e.name]) for e in manifest.splits)
    tied = {renamed(key): renamed(holder) for key, holder in manifest.tied.items()}
    tensors = {renamed(key): tensor for key, tensor in stored.items()}
    extra = {renamed(key): value for key, value in manifest.extra_states.items()}
    return dataclasses.replace(manifest, splits=entries, tied=tied, extra_states=extra), tensors


def _same(key: str) -> str:
    return key


def _prefixes(keys: Iterable[str]) -> list[Rename]:
    """Return the ways to drop a wrapper's prefix that all keys have, and to put one before them."""
    keys = list(keys)
    ways: list[Rename] = []
    for prefix in WRAPPERS:
        if keys and all(key.startswith(prefix) for key in keys):
            ways.append(lambda key, prefix=prefix: key.removeprefix(prefix))  # type: ignore[misc]
        ways.append(lambda key, prefix=prefix: prefix + key)  # type: ignore[misc]
    return ways


def _of_transformers(model: nn.Module, fused: dict[str, str]) -> list[Rename]:
    """Return how transformers renames the keys of a file; `fused` gets those it puts together."""
    library: Any = sys.modules.get("transformers")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return []
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )
    except ImportError:  # a version that renames nothing this way
        return []
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    state = model.state_dict(keep_vars=True)
    prefix = model.base_model_prefix

    def rename(key: str) -> str:
        found, converter = rename_source_key(key, renamings, converters, prefix, state)
        if converter is not None:
            fused[key] = found
        return str(found)

    return [rename]


def _layer_of(key: str, layers: Iterable[str]) -> str | None:
    """Return the layer that was split to which a key belongs, or None."""
    inside = [name for name in layers if name == "" or key.startswith(f"{name}.")]
    return max(inside, key=len, default=None)


def _dense_key(key: str, layers: Iterable[str]) -> str:
    """Return the key that a factor's tensor had before the split."""
    layer = _layer_of(key, layers)
    if layer is None:
        return key
    last = "bias" if key.endswith(".bias") else "weight"
    return f"{layer}.{last}" if layer else last
