"""The shape in which the inputs of a layer are pictures or filters."""

import math
from typing import Any

from rmtspec.adapters.torch._layers.product_matrix import ProductMatrix
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Kind, checks
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError

#: Numbers of channels that may stand behind height and width.
_CHANNELS = (1, 3, 4)


def image_shape_of(matrix: WeightMatrix, given: Any) -> tuple[tuple[int, ...], bool]:
    """Return the shape of the right singular vectors as images, and whether channels are last.

    The shape is empty if they are no images.
    """
    filters = _filter_shape(matrix)
    if given is None:
        return filters, False
    if isinstance(given, str | bytes) or not hasattr(given, "__iter__"):
        raise InvalidOptionTypeError(
            f"`image_shape` is {given!r}", "two or three whole numbers, such as (28, 28)"
        )
    shape = tuple(checks.integer(side, "image_shape", 1) for side in given)
    columns = matrix.shape[1]
    if len(shape) not in (2, 3) or math.prod(shape) != columns:
        sides = math.isqrt(columns)
        if filters:
            hint = f"A filter of this layer is {filters}: leave `image_shape` out."
        elif sides * sides == columns:
            hint = f"Perhaps ({sides}, {sides})."
        else:
            hint = "A layer that does not read pixels has no images: leave `image_shape` out."
        raise InvalidOptionError(
            f"`image_shape` is {shape}, a picture of {math.prod(shape)} numbers",
            f"(height, width) or (channels, height, width) whose product is {columns}, the "
            f"number of columns of {matrix.name!r}",
            hint,
        )
    last = len(shape) == 3 and shape[2] in _CHANNELS and shape[0] not in _CHANNELS
    return shape, last


def _filter_shape(matrix: WeightMatrix) -> tuple[int, ...]:
    """Return (channels, height, width) of a filter of a convolution; empty if it has none.

    Of a convolution along one axis that is (channels, width), as one picture.
    """
    sides = {Kind.CONV1D: 2, Kind.CONV2D: 3}.get(Kind(matrix.kind), 0)
    weight: Any = matrix.parameter
    if isinstance(matrix, ProductMatrix):
        weight = matrix.split_layer.inner.weight
    if not sides or weight is None or weight.ndim != sides + 1:
        return ()
    shape = tuple(weight.shape[1:])
    if math.prod(shape) != matrix.shape[1] or math.prod(shape[1:]) == 1:
        return ()
    return shape
