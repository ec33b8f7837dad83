"""The hidden layers of a model: matrices that make hidden units, and the one that reads them."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from rmtspec.matrix.hidden_units import UnitOrder, unit_order
from rmtspec.planning.calibration import Weights


@dataclass(slots=True, eq=False)
class HiddenLayer:
    """Hidden units by what makes them and what reads them, all by name of the matrix.

    Attributes
    ----------
    makers : tuple of str
        Each has a row for each unit.
    reader : str
        It has a column for each unit.
    """

    makers: tuple[str, ...]
    reader: str
    _order: UnitOrder | None = field(default=None, repr=False)

    @property
    def members(self) -> tuple[str, ...]:
        """All its matrices."""
        return (*self.makers, self.reader)

    def order(self, matrix: NDArray[Any], known: Weights) -> UnitOrder:
        """Return the order in which units leave, computed once from the matrix that reads them."""
        if self._order is None:
            if known.output_weight is None:
                raise ValueError("hidden units are chosen by the loss")
            self._order = unit_order(
                matrix, known.input_moment, known.output_weight, rows=known.rows
            )
        return self._order


def hidden_layers(
    readers: Mapping[str, Sequence[str]],
    names: Mapping[str, str],
    weights: Mapping[str, Weights],
) -> dict[str, HiddenLayer]:
    """Return the hidden layers by the name of the matrix that reads them.

    Parameters
    ----------
    readers : mapping of str to sequence of str
        The layers that make hidden units by the layer that reads them: `Calibration.hidden_units`.
    names : mapping of str to str
        The matrix of each layer.
    weights : mapping of str to Weights
        What is known of the matrices; without the gradients of the reader, nothing is chosen.
    """
    found: dict[str, HiddenLayer] = {}
    for layer, makers in readers.items():
        known = weights.get(names.get(layer, ""))
        if known is not None and known.output_weight is not None and set(makers) <= names.keys():
            made = HiddenLayer(tuple(names[maker] for maker in makers), names[layer])
            found[made.reader] = made
    return found


def unit_orders(
    hidden: Iterable[HiddenLayer],
    names: Collection[str],
    matrices: Mapping[str, Callable[[], NDArray[Any]]],
    weights: Mapping[str, Weights],
) -> dict[str, tuple[HiddenLayer, UnitOrder]]:
    """Return the hidden layers all of whose matrices are among `names`, with their orders."""
    return {
        each.reader: (each, each.order(matrices[each.reader](), weights[each.reader]))
        for each in hidden
        if set(each.members) <= set(names)
    }
