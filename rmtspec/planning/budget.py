"""A budget of parameters, spread over layers where it buys the most."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidOptionError


@dataclass(frozen=True, slots=True)
class Purchase:
    """What rank costs in one layer, and what it buys.

    Attributes
    ----------
    unit : int
        Parameters of one rank: rows + columns, summed over the layer's matrices.
    dense : int
        Parameters of the layer as it is: rows * columns, summed likewise.
    energies : ndarray of shape (p,)
        What each rank adds, descending: squared singular values of W, or of W C^(1/2) where
        the inputs are known, as shares that sum to 1.
    """

    unit: int
    dense: int
    energies: Float64Array


def spread(layers: Mapping[str, Purchase], budget: float) -> dict[str, int | None]:
    """Return the rank of each layer, None where it stays dense, within a share of parameters.

    Each layer may keep 1, 2, ... ranks below its break-even, or stay as it is at no error.
    Parameters go step by step where the error (the relative squared Frobenius error, summed over
    layers) falls most per parameter, over the lower convex hull of each layer's choices; that is
    optimal but for the last step that does not fit.
    """
    total = sum(layer.dense for layer in layers.values())
    allowed = budget * total
    ranks: dict[str, int | None] = {
        name: 1 if layer.unit < layer.dense else None for name, layer in layers.items()
    }
    spent = sum(min(layer.unit, layer.dense) for layer in layers.values())
    if spent > allowed:
        raise InvalidOptionError(
            f"`budget` is {budget:g}, {int(allowed):,} of {total:,} parameters; rank 1 everywhere "
            f"needs {spent:,} ({spent / total:.4f}). Raise it, or leave layers out with `exclude`."
        )
    steps: list[tuple[float, str, int | None, int]] = []
    for name, layer in layers.items():
        rate = math.inf
        for gain, cost, rank in _hull(layer) if ranks[name] is not None else ():
            # Rounding may let a step seem better than the one it builds on; the order must hold.
            rate = min(rate, gain / cost)
            steps.append((rate, name, rank, cost))
    steps.sort(key=lambda step: -step[0])  # stable: ties stay in the order of layers and ranks
    closed: set[str] = set()
    for _, name, rank, cost in steps:
        if name in closed:
            continue
        if spent + cost <= allowed:
            ranks[name], spent = rank, spent + cost
            continue
        closed.add(name)
        layer, reached = layers[name], ranks[name]
        if rank is None and reached is not None:  # whole: too much; what is left buys ranks
            more = min(_last(layer) - reached, int((allowed - spent) // layer.unit))
            ranks[name], spent = reached + more, spent + more * layer.unit
    return ranks


def _last(layer: Purchase) -> int:
    """Return the largest rank below break-even, at least 1."""
    return max(1, min(len(layer.energies), (layer.dense - 1) // layer.unit))


def _hull(layer: Purchase) -> list[tuple[float, int, int | None]]:
    """Return the steps (error removed, parameters, rank reached) of the lower convex hull.

    The error falls convexly from rank to rank, so the hull follows the ranks until the straight
    line to the dense layer (no error) is steeper, then takes that line.
    """
    last = _last(layer)
    left = np.maximum(1.0 - np.cumsum(layer.energies), 0.0)[:last]  # error at ranks 1, 2, ...
    rest = layer.dense - np.arange(1, last + 1) * layer.unit  # parameters from there to dense
    chord = left / np.maximum(rest, 1)
    step = np.append((left[:-1] - left[1:]) / layer.unit, -1.0)
    leave = int(np.argmax(step <= chord))  # the first rank (from 0) that is better left for dense
    steps: list[tuple[float, int, int | None]] = [
        (float(left[k] - left[k + 1]), layer.unit, k + 2) for k in range(leave)
    ]
    if rest[leave] > 0:
        steps.append((float(left[leave]), int(rest[leave]), None))
    return steps
