"""One weight of a model as a matrix: read when called, written in place."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rmtspec.adapters.torch._weights.tensors import to_numpy, to_tensor
from rmtspec.adapting import Kind, Why
from rmtspec.errors import InvalidValueError, RmtspecWarning

#: Kinds that are cut only where the user names them, and why.
ON_REQUEST: dict[str, str] = {
    kind: Why.NOT_NAMED.words(what=what, options="`include` or `ranks`")
    for kind, what in ((Kind.EMBEDDING, "an embedding"), (Kind.PARAMETER, "of unknown use"))
}


class SkippedMatrixError(InvalidValueError):
    """A weight that cannot be read as a matrix; the message is the reason."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightMatrix:
    """One matrix of a model, read when called; `rmtspec.analyze_many` takes it as it is.

    Attributes
    ----------
    name : str
        Of the layer, with the part in brackets where a layer has several: "encoder.0.attn[q]".
    kind : str
        One of `rmtspec.terms.Kind`; empty for a vector or a number.
    layer : str
        Fully qualified name of the module.
    key : str
        Fully qualified name of the parameter, as in the state dict.
    shape : tuple of int
        (rows, columns); rows are outputs.
    reason : str
        Why it cannot be read; empty where it can.
    unsplittable : str
        Why the layer cannot be split into two, only truncated; empty where it can.
    tied : str
        Name of another layer that uses the same weight; empty where there is none.
    """

    name: str
    kind: str
    layer: str
    key: str
    shape: tuple[int, ...]
    reason: str = ""
    unsplittable: str = ""
    tied: str = ""
    parameter: Any = field(default=None, repr=False)
    part: slice | int | None = field(default=None, repr=False)
    transposed: bool = field(default=False, repr=False)

    def __call__(self) -> NDArray[Any]:
        """Return the matrix; on the CPU a view of the model's memory wherever that is possible.

        Raises
        ------
        InvalidValueError
            It cannot be read: the message is `reason`.
        """
        if self.reason:
            raise SkippedMatrixError(self.reason)
        matrix = to_numpy(self._block()).reshape(self._block().shape[0], -1)
        return matrix.T if self.transposed else matrix

    def tensor(self) -> torch.Tensor:
        """Return the matrix as a view of the parameter, through which gradients flow."""
        block = self.parameter if self.part is None else self.parameter[self.part]
        matrix: torch.Tensor = block.flatten(1)
        return matrix.mT if self.transposed else matrix

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self(), dtype=dtype, copy=copy)

    def is_finite(self) -> bool:
        """Tell whether no entry is nan or infinite."""
        return bool(torch.isfinite(self._block()).all())

    def write(self, matrix: NDArray[Any]) -> None:
        """Put `matrix` in place of this one, in the memory the model uses."""
        block = self._block()
        values = matrix.T if self.transposed else matrix
        with torch.no_grad():
            block.copy_(to_tensor(values, block).reshape(block.shape))

    @property
    def fixed(self) -> str:
        """Why it can neither be split nor truncated; empty where one is possible."""
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
        """Why it is cut only where the user names it; empty where it is not so."""
        return ON_REQUEST.get(self.kind, "")

    @property
    def itemsize(self) -> int:
        """Bytes of an entry; 0 where there is no parameter to read."""
        size: int = self.parameter.element_size() if self.parameter is not None else 0
        return size

    @property
    def names(self) -> tuple[str, ...]:
        """All names that `include`, `exclude` and `ranks` may use."""
        return tuple(dict.fromkeys((self.name, self.layer, self.key)))

    def _block(self) -> torch.Tensor:
        whole: torch.Tensor = self.parameter.detach()
        return whole if self.part is None else whole[self.part]
