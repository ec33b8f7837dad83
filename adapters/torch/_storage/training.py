"""Which part of a training loop's checkpoint is the state dict of the model."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rmtspec.adapting import listed
from rmtspec.errors import FileError

#: How deep a state dict may lie: "ema.model.state_dict".
_DEPTH = 4
#: Keys of a mapping that holds the state of an optimizer, not weights.
_OF_OPTIMIZERS = frozenset(("param_groups", "exp_avg", "exp_avg_sq", "momentum_buffer"))
#: The key of most training loops: taken although others hold tensors, too.
_USUAL = "state_dict"


def state_dict_in(
    content: Any, file: Path, key: str | None
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Return the key of the state dict in what a file holds, the state dict, and the other keys.

    The key is "" for the content itself, and dotted for what lies deeper.

    Raises
    ------
    FileError
        There is none, there are several and `key` does not say which, or none under `key`.
    """
    found = dict(_candidates(content)) if isinstance(content, dict) else {}
    if key is None and _all_tensors(content):
        found = {"": content}
    if not found:
        raise FileError(
            f"{file} holds a {type(content).__name__}, not a state dict of tensors. Save "
            "model.state_dict() in it."
        )
    shown = [
        f"{name!r} ({len(state)} {'entry' if len(state) == 1 else 'entries'})"
        for name, state in found.items()
    ]
    if key is not None and key not in found:
        raise FileError(
            f"{file} has no state dict under the key {key!r}; expected one of "
            f"{listed(shown, most=8)}."
        )
    if key is None and len(found) > 1 and _USUAL not in found:
        first = next(iter(found))
        raise FileError(
            f"{file} holds {len(found)} state dicts: {listed(shown, most=8)}; expected one. Say "
            f"which: key={first!r}, or --key {first} on the command line."
        )
    chosen = key if key is not None else _USUAL if _USUAL in found else next(iter(found))
    top = chosen.partition(".")[0]
    others = tuple(str(k) for k in content if chosen and str(k) != top)
    inner = tuple(name for name in found if name != chosen and name.partition(".")[0] == top)
    return chosen, dict(found[chosen]), (*others, *inner)


def _candidates(
    content: Mapping[Any, Any], prefix: str = "", depth: int = _DEPTH
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the mappings that hold matrices by name, with their dotted keys."""
    if not _OF_OPTIMIZERS.isdisjoint(content):
        return
    if _holds_weights(content) or (prefix and _all_tensors(content) and _named_as_layers(content)):
        yield prefix, content
    if not depth:
        return
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, dict):
            yield from _candidates(value, f"{prefix}.{key}" if prefix else key, depth - 1)


def _holds_weights(content: Mapping[Any, Any]) -> bool:
    """Tell whether a mapping holds a matrix of floats, all keys being names."""
    return all(isinstance(key, str) for key in content) and any(
        isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 1
        for value in content.values()
    )


def _named_as_layers(content: Mapping[str, Any]) -> bool:
    return any(key.endswith(("weight", "bias")) for key in content)


def _all_tensors(content: Any) -> bool:
    """Tell whether something is a mapping of names to tensors and nothing else."""
    return isinstance(content, dict) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    )
