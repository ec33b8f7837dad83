"""Names of the variables in a file of Keras 3, which numbers them, as Keras itself shows them."""

import math
from collections import Counter
from typing import Any

#: Parts of a path that hold layers and are none.
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
_CELL = {"0": "kernel", "1": "recurrent_kernel", "2": "bias"}


class KerasNames:
    """The names of the variables below the root of an HDF5 file.

    A layer's variables lie in a group "vars", beside its sublayers, and that group has the layer's
    own name: "layers/multi_head_attention/query_dense/vars/0" is "mha.query.kernel".
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[tuple[str, ...], dict[str, str]] = {}

    def of(self, place: str, dataset: Any) -> str:
        """Return the name of the variable at a path."""
        parts = place.strip("/").split("/")
        if parts[0] == "model_weights":  # of Keras 2, which writes the layer's name twice
            parts = parts[2:] or parts
        if len(parts) < 2 or parts[-2] != "vars":
            return ".".join(part.removesuffix(":0") for part in parts)
        layer = parts[:-2]
        words = []
        for end, part in enumerate(layer):
            own = self._named_in(tuple(layer[:end])).get(part, "")
            if own or part not in _CONTAINERS:
                words.append(own or part)
        kinds = f"{layer[-1]} {words[-1]}" if words else ""
        return ".".join([*words, _variable(parts[-1], dataset, kinds)])

    def _named_in(self, place: tuple[str, ...]) -> dict[str, str]:
        """Return the own names of the layers in a group, without those that two layers have."""
        if place not in self._known:
            group = self._root["/".join(place)] if place else self._root
            names = {part: _own(group, part) for part in group}
            times = Counter(names.values())
            self._known[place] = {part: own for part, own in names.items() if times[own] == 1}
        return self._known[place]


def _own(group: Any, part: str) -> str:
    """Return the name that a layer has by itself, or nothing."""
    import h5py

    for here in (part, f"{part}/vars"):
        link = group.get(here, getlink=True)
        if not isinstance(link, h5py.HardLink) or group.get(here, getclass=True) is not h5py.Group:
            return ""
    own = group[f"{part}/vars"].attrs.get("name", "")
    return own if isinstance(own, str) else ""


def _variable(index: str, dataset: Any, kinds: str) -> str:
    """Return the name of a variable of a layer by its number and the shapes of the others."""
    if "cell" in kinds and index in _CELL:
        return _CELL[index]
    first = _shape(dataset.parent, "0")
    if index == "0" and len(first) > 1:
        second = _shape(dataset.parent, "1")
        if "embedding" in kinds:
            return "embeddings"
        return "depthwise_kernel" if _for_each_channel(first, second, kinds) else "kernel"
    if index == "1" and _pointwise(first, dataset.shape):
        return "pointwise_kernel"
    kernel = _shape(dataset.parent, "1") if index == "2" else first
    if 0 < dataset.ndim < len(kernel) and kernel[-dataset.ndim :] == dataset.shape:
        return "bias"
    return f"vars.{index}"


def _shape(group: Any, index: str) -> tuple[int, ...]:
    found = group.get(index)
    return tuple(getattr(found, "shape", None) or ())


def _for_each_channel(first: tuple[int, ...], second: tuple[int, ...], kinds: str) -> bool:
    """Tell whether a kernel (..., channels, multiplier) is applied to each channel by itself."""
    if "depthwise" in kinds or "separable" in kinds or _pointwise(first, second):
        return True
    outputs = math.prod(first[-2:])
    return len(first) > 2 and first[-1] != outputs and second == (outputs,)


def _pointwise(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Tell whether a second kernel mixes, at one place, what a depthwise first one gives."""
    return (
        len(second) == len(first) > 2
        and set(second[:-2]) == {1}
        and second[-2] == math.prod(first[-2:])
    )
