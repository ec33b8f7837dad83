"""Which axes of a parameter of three or more dimensions are outputs, and which are inputs.

The forward of the layer decides that, and no shape tells it: attention with einsum keeps its heads
as an axis of the weight. Patterns are written as einops writes them: ``"h n d -> (n d) h"`` has the
outputs first, then the inputs; three groups, ``"e i o -> e o i"``, are a stack of such matrices.
The table is taken from the modelling code of transformers 5.23 and TransformerLens 2. A layer that
is not in it may say so itself, in its attribute `matrix_axes`: ``{"weight": pattern}``.
"""

import re
from typing import Any, NamedTuple

from torch import nn

from rmtspec.errors import InvalidValueError

_HEADS_LAST = "h n d -> (n d) h"
_LENS_IN, _LENS_OUT = "n h d -> (n d) h", "n d h -> h (n d)"
_LENS = {"W_Q": _LENS_IN, "W_K": _LENS_IN, "W_V": _LENS_IN, "_W_K": _LENS_IN, "_W_V": _LENS_IN,
         "W_O": _LENS_OUT}  # fmt: skip
#: Patterns by the package and the class of the layer, then by the name of the parameter.
_KNOWN: dict[tuple[str, str], dict[str, str]] = {
    ("transformers", "XLNetRelativeAttention"): {
        **dict.fromkeys("qkvr", _HEADS_LAST), "o": "h n d -> h (n d)",
    },
    ("transformers", "FunnelRelMultiheadAttention"): {"r_kernel": _HEADS_LAST},
    ("transformers", "GroupedLinearLayer"): {"weight": "g i o -> g o i"},
    ("transformers", "CsmCodebooksHead"): {"weight": "c i o -> c o i"},
    ("transformers", "MoshiFlexibleLinear"): {"weight": "l o i -> l o i"},
    ("transformers", "KyutaiSpeechToTextFlexibleLinear"): {"weight": "l o i -> l o i"},
    ("transformer_lens", "Attention"): _LENS,
    ("transformer_lens", "GroupedQueryAttention"): _LENS,
}  # fmt: skip


class Axes(NamedTuple):
    """The axes of a parameter by their use, as positions; `stack` is that of several matrices."""

    stack: int | None
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]


def axes_of(layer: nn.Module, short: str, ndim: int) -> Axes | None:
    """Return the axes of a layer's parameter, or None where neither the table nor the layer knows.

    Raises
    ------
    InvalidValueError
        The layer's own pattern is not one.
    """
    own: Any = getattr(layer, "matrix_axes", None)
    if isinstance(own, dict) and short in own:
        return _parsed(own[short], f"{type(layer).__name__}.matrix_axes[{short!r}]", ndim)
    for family in type(layer).__mro__:
        known = _KNOWN.get((family.__module__.partition(".")[0], family.__name__), {})
        if short in known:
            return _parsed(known[short], family.__name__, ndim)
    return None


def _parsed(pattern: Any, owner: str, ndim: int) -> Axes:
    left, arrow, right = str(pattern).partition("->")
    names, groups = left.split(), [g.strip("()").split() for g in re.findall(r"\(.*?\)|\w+", right)]
    used = [name for group in groups for name in group]
    stacked = len(groups) == 3 and len(groups[0]) == 1
    if not (
        arrow and len(names) == ndim and sorted(used) == sorted(set(names)) and all(groups)
        and len(set(names)) == ndim and (stacked or len(groups) == 2)
    ):  # fmt: skip
        raise InvalidValueError(
            f"`{owner}` is {pattern!r}; expected the {ndim} axes, an arrow, the outputs and the "
            'inputs, as in "h n d -> (n d) h", or "e i o -> e o i" for a stack of matrices.'
        )
    places = [tuple(map(names.index, group)) for group in groups]
    return Axes(places[0][0] if stacked else None, places[-2], places[-1])
