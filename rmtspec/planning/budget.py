"""A budget of parameters, spread over the layers where it buys the most."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidOptionError


@dataclass(frozen=True, slots=True)
class Purchase:
    """What each rank costs in one layer, and what it buys.

    Attributes
    ----------
    unit : int
        Parameters per rank: rows + columns, summed over the layer's matrices.
    dense : int
        Parameters of the layer as it is: rows * columns, summed likewise.
    energies : ndarray of shape (p,)
        What each rank adds, descending: the squared singular values of W, or of W C^(1/2) if
        the inputs are known, as shares that sum to 1.
    """

    unit: int
    dense: int
    energies: Float64Array


def spread(layers: Mapping[str, Purchase], budget: float) -> dict[str, int | None]:
    """Return the rank of each layer, or None if it stays dense, within a share of the parameters.

    Each layer may keep any rank below its break-even, or stay as it is, without error. Step by
    step, parameters go where the error (the relative squared Frobenius error, summed over layers)
    falls most per parameter, along the lower convex hull of each layer's choices. This is optimal
    except for the last step, which may not fit.
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
            # Rounding may make a step look better than the one it builds on; keep their order.
            rate = min(rate, gain / cost)
            steps.append((rate, name, rank, cost))
    steps.sort(key=lambda step: -step[0])  # stable: ties keep the order of layers and ranks
    closed: set[str] = set()
    for _, name, rank, cost in steps:
        if name in closed:
            continue
        if spent + cost <= allowed:
            ranks[name], spent = rank, spent + cost
            continue
        closed.add(name)
        layer, reached = layers[name], ranks[name]
        if rank is None and reached is not None:  # dense does not fit: the rest buys ranks
            more = min(_last(layer) - reached, int((allowed - spent) // layer.unit))
            ranks[name], spent = reached + more, spent + more * layer.unit
    return ranks


def _last(layer: Purchase) -> int:
    """Return the largest rank below break-even, at least 1."""
    return max(1, min(len(layer.energies), (layer.dense - 1) // layer.unit))


def _hull(layer: Purchase) -> list[tuple[float, int, int | None]]:
    """Return the steps (error removed, parameters, rank reached) of the lower convex hull.

    The error is convex in the rank, so the hull follows the ranks until the straight line to the
    dense layer (no error) is steeper, and then takes that line.
    """
    last = _last(layer)
    left = np.maximum(1.0 - np.cumsum(layer.energies), 0.0)[:last]  # error at ranks 1, 2, ...
    rest = layer.dense - np.arange(1, last + 1) * layer.unit  # further parameters to be dense
    chord = left / np.maximum(rest, 1)
    step = np.append((left[:-1] - left[1:]) / layer.unit, -1.0)
    leave = int(np.argmax(step <= chord))  # index of the first rank where dense is the next step
    steps: list[tuple[float, int, int | None]] = [
        (float(left[k] - left[k + 1]), layer.unit, k + 2) for k in range(leave)
    ]
    if rest[leave] > 0:
        steps.append((float(left[leave]), int(rest[leave]), None))
    return steps
