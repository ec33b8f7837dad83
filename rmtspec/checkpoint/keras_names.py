"""Names of the variables in a file of Keras 3, which numbers them, as Keras itself shows them."""

import math
from collections import Counter
from collections.abc import Mapping

_Shape = tuple[int, ...]
#: Parts of a path that hold layers and are none.
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
_CELL = {"0": "kernel", "1": "recurrent_kernel", "2": "bias"}


class KerasNames:
    """The names of the variables in an HDF5 file.

    A layer's variables lie in a group "vars", beside its sublayers, and that group has the layer's
    own name: "layers/multi_head_attention/query_dense/vars/0" is "mha.query.kernel".

    Parameters
    ----------
    own : mapping
        The own names of layers by their path.
    shapes : mapping
        Shapes of the arrays by their path.
    """

    def __init__(self, own: Mapping[str, str], shapes: Mapping[str, _Shape]) -> None:
        times = Counter((place.rpartition("/")[0], name) for place, name in own.items())
        self._own = {
            place: name for place, name in own.items() if times[place.rpartition("/")[0], name] == 1
        }
        self._shapes = shapes

    def of(self, place: str) -> str:
        """Return the name of the variable at a path."""
        parts = place.strip("/").split("/")
        if parts[0] == "model_weights":  # of Keras 2, which writes the layer's name twice
            parts = parts[2:] or parts
        if len(parts) < 2 or parts[-2] != "vars":
            return ".".join(part.removesuffix(":0") for part in parts)
        words, here = [], ""
        for part in parts[:-2]:
            here = f"{here}/{part}"
            own = self._own.get(here, "")
            if own or part not in _CONTAINERS:
                words.append(own or part)
        kinds = f"{parts[-3]} {words[-1]}" if words else ""
        return ".".join([*words, self._variable(place, kinds)])

    def _variable(self, place: str, kinds: str) -> str:
        """Return the name of a variable of a layer by its number and the shapes of the others."""
        group, _, index = place.rpartition("/")
        if "cell" in kinds and index in _CELL:
            return _CELL[index]
        shape = self._shapes[place]
        first, second = (self._shapes.get(f"{group}/{i}", ()) for i in "01")
        if index == "0" and len(first) > 1:
            if "embedding" in kinds:
                return "embeddings"
            return "depthwise_kernel" if _for_each_channel(first, second, kinds) else "kernel"
        if index == "1" and _pointwise(first, shape):
            return "pointwise_kernel"
        kernel = second if index == "2" else first
        if 0 < len(shape) < len(kernel) and kernel[-len(shape) :] == shape:
            return "bias"
        return f"vars.{index}"


def _for_each_channel(first: _Shape, second: _Shape, kinds: str) -> bool:
    """Tell whether a kernel (..., channels, multiplier) is applied to each channel by itself."""
    if "depthwise" in kinds or "separable" in kinds or _pointwise(first, second):
        return True
    outputs = math.prod(first[-2:])
    return len(first) > 2 and first[-1] != outputs and second == (outputs,)


def _pointwise(first: _Shape, second: _Shape) -> bool:
    """Tell whether a second kernel mixes, at one place, what a depthwise first one gives."""
    return (
        len(second) == len(first) > 2
        and set(second[:-2]) == {1}
        and second[-2] == math.prod(first[-2:])
    )
