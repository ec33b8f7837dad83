"""A quantised weight as the tensor that it stands for: dequantised when it is asked for."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.memory import lacking
from rmtspec.checkpoint.quantised.layout import Layout
from rmtspec.checkpoint.stamps import Stamp
from rmtspec.checkpoint.stored import Part, StoredTensor, named_dtype
from rmtspec.errors import FileError


@dataclass(frozen=True, slots=True)
class QuantisedTensor(StoredTensor):
    """A weight that several tensors hold; calling it returns its values in float32.

    Attributes
    ----------
    layout : Layout
        How they hold it.
    turned : bool
        Whether the last two sides of the weight are exchanged in the model.
    """

    layout: Layout
    turned: bool = False

    @classmethod
    def of(cls, name: str, layout: Layout, *, turned: bool = False) -> "QuantisedTensor":
        """Return the weight of a layout under its name."""
        shape = layout.shape
        if turned:
            shape = (*shape[:-2], shape[-1], shape[-2])
        return cls(
            path=layout.sources[0].path, name=name, dtype=layout.method, numpy_name="<f4",
            shape=shape, nbytes=4 * math.prod(shape), layout=layout, turned=turned,
        )  # fmt: skip

    def stamps(self) -> Iterable[tuple[str, Stamp]]:
        """Return the files of all tensors that hold it, with their stamps."""
        return [found for source in self.layout.sources for found in source.stamps()]

    def check_unchanged(self) -> None:
        """Raise `FileError` if a file that holds it was rewritten since it was listed."""
        for path, stamp in set(self.stamps()):
            stamp.check(path)

    def matrix(self, part: Part) -> NDArray[Any]:
        """Return a part of it; of a stack, no more than the matrix that holds it is read."""
        return self._part(part, steps=False)

    def steps(self) -> NDArray[Any] | None:
        """Return the distance of neighbouring values at each entry."""
        return self._whole(steps=True)

    def part_steps(self, part: Part) -> NDArray[Any] | None:
        """Return the same for the entries of a part."""
        return self._part(part, steps=True)

    def pieces(self) -> Iterator[NDArray[Any]]:
        """Yield the weight in its dense dtype, one matrix of a stack at a time."""
        dtype = named_dtype(self.layout.dtype)
        for item in range(self.layout.items) if self.layout.items else (None,):
            values = self._item(item, steps=False)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite stays so
                rounded = values.astype(dtype)
            del values
            yield rounded

    def _load(self) -> NDArray[Any]:
        return self._whole(steps=False)

    def _whole(self, *, steps: bool) -> NDArray[Any]:
        if not self.layout.items:
            return self._item(None, steps=steps)
        self._check_memory(self.nbytes)
        found = np.empty(self.shape, np.float32)
        for item in range(self.layout.items):
            found[item] = self._item(item, steps=steps)
        return found

    def _part(self, part: Part, *, steps: bool) -> NDArray[Any]:
        span = part.box[0] if part.box else None
        if not self.layout.items or span is None or span[1] - span[0] != 1:
            return part.of(self._whole(steps=steps))
        box = ((0, 1), *part.box[1:])
        within = dataclasses.replace(part, view=(1, *part.view[1:]), box=box)
        return within.of(self._item(span[0], steps=steps))

    def _item(self, item: int | None, *, steps: bool) -> NDArray[Any]:
        count = math.prod(self.shape) // max(1, self.layout.items)
        self._check_memory(6 * count)  # the values, the codes, and what holds them
        values = self.layout.steps(item) if steps else self.layout.values(item)
        return np.ascontiguousarray(values.swapaxes(-1, -2)) if self.turned else values

    def _check_memory(self, needed: int) -> None:
        if words := lacking(needed):
            raise FileError(
                f"{self.path} holds {self.name!r}, which is too large for the memory when it is "
                f"dequantised: {words}. Read it on a computer with more, or free some."
            )
