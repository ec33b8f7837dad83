"""What each rank of a matrix buys, by what calibration says about it."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec.matrix.hidden_units import UnitOrder
from rmtspec.matrix.spatial import spatial_losses
from rmtspec.matrix.weighting import weighted_energies
from rmtspec.planning.calibration import Weights
from rmtspec.planning.hidden_units import HiddenLayer, unit_orders


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """What each rank of a matrix buys according to data, by name of the matrix, descending.

    Attributes
    ----------
    energies : mapping of str to ndarray of shape (p,)
        The squared singular values of W C^(1/2), where no loss is known; those of W by default.
    losses : mapping of str to ndarray of shape (p,)
        Half the squared singular values of G^(1/2) W C^(1/2): the loss that each rank saves.
    units : mapping of str to (HiddenLayer, UnitOrder)
        The order in which hidden units leave, and the losses, by name of the matrix that reads
        them.
    spatial : mapping of str to ndarray
        The loss that each channel saves where a kernel becomes two, along one axis each.
    """

    energies: Mapping[str, Float64Array] = field(default_factory=dict)
    losses: Mapping[str, Float64Array] = field(default_factory=dict)
    units: Mapping[str, tuple[HiddenLayer, UnitOrder]] = field(default_factory=dict)
    spatial: Mapping[str, Float64Array] = field(default_factory=dict)


def curves_of(
    names: Collection[str],
    matrices: Mapping[str, Callable[[], NDArray[Any]]],
    weights: Mapping[str, Weights],
    hidden: Iterable[HiddenLayer] = (),
    kernels: Mapping[str, tuple[int, ...]] | None = None,
) -> Curves:
    """Return the curves of the matrices whose weights are known; each is read in its turn.

    Of `hidden` layers, units may leave where all their matrices are among `names`. `kernels` are
    those that can become two, by name.
    """
    spatial: dict[str, Float64Array] = {}
    energies: dict[str, Float64Array] = {}
    losses: dict[str, Float64Array] = {}
    for name in names:
        known = weights.get(name)
        if known is None:
            continue
        curve = weighted_energies(matrices[name](), known.input_moment, known.output_weight)
        if known.output_weight is None:
            energies[name] = curve
        else:
            losses[name] = curve / 2.0
            if kernel := (kernels or {}).get(name):
                spatial[name] = spatial_losses(
                    matrices[name](), (kernel[0], kernel[1]), known.input_moment,
                    known.output_weight,
                )  # fmt: skip
    units = unit_orders(hidden, losses.keys(), matrices, weights)
    return Curves(energies, losses, units, spatial)
