"""One weight of a model as a matrix: read when called, written in place."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rmtspec.adapters.torch._weights.axes import Axes
from rmtspec.adapters.torch._weights.tensors import to_numpy, to_tensor
from rmtspec.adapting import HEAD, Kind, Why
from rmtspec.errors import InvalidValueError, RmtspecWarning

#: Kinds that are cut only if the user names them, and why.
ON_REQUEST: dict[str, str] = {
    kind: Why.NOT_NAMED.words(what=what, options="`include` or `ranks`")
    for kind, what in ((Kind.EMBEDDING, "an embedding"), (Kind.PARAMETER, "of unknown use"))
}
_HEAD = Why.NOT_NAMED.words(what=HEAD, options="`include` or `ranks`")


class SkippedMatrixError(InvalidValueError):
    """A weight that cannot be read as a matrix; the message is the reason."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightMatrix:
    """One matrix of a model, read when called; `rmtspec.analyze_many` accepts it as it is.

    Attributes
    ----------
    name : str
        The layer's, with the part in brackets if it has several: "encoder.0.attn[q]".
    kind : str
        A `rmtspec.terms.Kind`; empty for a vector or a number.
    layer : str
        Fully qualified name of the module.
    key : str
        Fully qualified name of the parameter, as in the state dict.
    shape : tuple of int
        (rows, columns); rows are outputs.
    reason : str
        Why it cannot be read; empty if it can.
    unsplittable : str
        Why the layer can only be truncated, not split into two; empty if it can be split.
    tied : str
        "tied to ...", with the other weights that share its memory; empty if there are none.
    head : bool
        Whether the layer is the output head of a language model.
    factor_of : str
        The layer that was split into this one and another; empty if it was not.
    """

    name: str
    kind: str
    layer: str
    key: str
    shape: tuple[int, ...]
    reason: str = ""
    unsplittable: str = ""
    tied: str = ""
    head: bool = False
    factor_of: str = ""
    parameter: Any = field(default=None, repr=False)
    part: slice | int | None = field(default=None, repr=False)
    axes: Axes | None = field(default=None, repr=False)
    transposed: bool = field(default=False, repr=False)

    def __call__(self) -> NDArray[Any]:
        """Return the matrix; on the CPU a view of the model's memory wherever possible.

        Raises
        ------
        InvalidValueError
            It cannot be read: the message is `reason`.
        """
        if self.reason:
            raise SkippedMatrixError(self.reason)
        block = to_numpy(self._block())
        matrix = block.reshape(self.shape if self.axes else (block.shape[0], -1))
        return matrix.T if self.transposed else matrix

    def tensor(self) -> torch.Tensor:
        """Return the matrix as a view of the parameter through which gradients flow."""
        block = self._block()
        matrix = block.reshape(self.shape) if self.axes else block.flatten(1)
        return matrix.mT if self.transposed else matrix

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self(), dtype=dtype, copy=copy)

    def is_finite(self) -> bool:
        """Tell whether all entries are finite."""
        return bool(torch.isfinite(self._block()).all())

    def write(self, matrix: NDArray[Any]) -> None:
        """Overwrite this matrix with `matrix`, in the memory that the model uses."""
        values = matrix.T if self.transposed else matrix
        with torch.no_grad():
            block = self._block()
            block.copy_(to_tensor(values, block).reshape(block.shape))

    @property
    def fixed(self) -> str:
        """Why it can be neither split nor truncated; empty if it can be."""
        if not self.tied and not self.reason and self.itemsize == 1:
            return Why.NO_ARITHMETIC.words(dtype=self.parameter.dtype)
        return self.tied

    @property
    def whole(self) -> str:
        """The old name of `unsplittable`."""
        words = "`whole` of a WeightMatrix is now called `unsplittable`."
        warnings.warn(words, RmtspecWarning, stacklevel=2)
        return self.unsplittable

    @property
    def on_request(self) -> str:
        """Why it is cut only if the user names it; empty if that is not so."""
        if self.factor_of:
            return Why.A_FACTOR.words(name=self.factor_of)
        return _HEAD if self.head else ON_REQUEST.get(self.kind, "")

    @property
    def present_rank(self) -> int:
        """The rank at which it is split already; 0, because each factor is a matrix here."""
        return 0

    @property
    def kernel(self) -> tuple[int, ...]:
        """Height and width of a kernel that can become two, along one axis each; else empty."""
        if self.kind != Kind.CONV2D or self.unsplittable or self.parameter is None:
            return ()
        sides = tuple(self.parameter.shape[2:])
        return sides if min(sides) > 1 and self.shape[0] == len(self.parameter) else ()

    @property
    def itemsize(self) -> int:
        """Bytes per entry; 0 if there is no parameter to read."""
        return 0 if self.parameter is None else int(self.parameter.element_size())

    @property
    def names(self) -> tuple[str, ...]:
        """All names that `include`, `exclude` and `ranks` may use."""
        return tuple(dict.fromkeys((self.name, self.layer, self.key)))

    def _block(self) -> torch.Tensor:
        block: torch.Tensor = self.parameter
        if self.axes is not None:
            stack = () if self.axes.stack is None else (self.axes.stack,)
            block = block.permute(*stack, *self.axes.outputs, *self.axes.inputs)
        return block if self.part is None else block[self.part]
