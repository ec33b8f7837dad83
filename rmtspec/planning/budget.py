"""A budget, of parameters or of another price, spread over the layers where it buys the most."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidOptionError


@dataclass(frozen=True, slots=True)
class Units:
    """So many hidden units stay in the layer."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """What each rank costs in one layer, and what it buys.

    Attributes
    ----------
    energies : ndarray of shape (p,)
        What each rank takes off the error, descending. In a budget of relative errors, the squared
        singular values of W, or of W C^(1/2) if the inputs are known, as shares that sum to 1; in
        one of losses, half the squared singular values of G^(1/2) W C^(1/2).
    prices : ndarray of shape (p,)
        What ranks 1, 2, ... cost, ascending: in parameters, rank * (rows + columns), summed over
        the layer's matrices.
    dense : float
        What the layer costs as it is; ranks that cost as much or more are not bought.
    multiple : int
        Only ranks that are multiples of it are bought.
    """

    energies: Float64Array
    prices: Float64Array
    dense: float
    multiple: int = 1

    def choices(self) -> tuple[Float64Array, Float64Array, list[Any]]:
        """Return prices, errors and ranks of all ways to keep the layer; None stands for dense."""
        last = int(np.searchsorted(self.prices, self.dense, side="left"))
        ranks = np.arange(self.multiple, min(last, len(self.energies)) + 1, self.multiple)
        left = np.maximum(float(np.sum(self.energies)) - np.cumsum(self.energies), 0.0)
        prices = np.append(self.prices[ranks - 1], self.dense)
        return prices, np.append(left[ranks - 1], 0.0), [*map(int, ranks), None]


class Ranked(NamedTuple):
    """A rank in one of several forms."""

    form: str
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Either:
    """A layer that may be bought in one of several forms, all for the same error.

    Attributes
    ----------
    forms : mapping of str to Purchase
        What each rank costs and buys in each form.
    """

    forms: Mapping[str, Purchase]

    @property
    def dense(self) -> float:
        """What the layer costs as it is."""
        return next(iter(self.forms.values())).dense

    @property
    def multiple(self) -> int:
        """Only ranks that are multiples of it are bought."""
        return next(iter(self.forms.values())).multiple

    def choices(self) -> tuple[Float64Array, Float64Array, list[Any]]:
        """Return prices, errors and ranks (`Ranked`, or None) of the ways that may be best."""
        found: list[tuple[float, float, Any]] = []
        for form, layer in self.forms.items():
            for price, error, rank in zip(*layer.choices(), strict=True):
                label = None if rank is None else Ranked(form, rank)
                found.append((float(price), float(error), label))
        return _best(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """Layers that are either bought one by one, or together with fewer hidden units.

    Attributes
    ----------
    layers : mapping of str to Purchase
        What each rank costs and buys, in the error that `losses` count.
    losses : ndarray of shape (units,)
        The error when so many units have left, in all layers together.
    price : float
        What one unit costs.
    """

    layers: Mapping[str, Purchase]
    losses: Float64Array
    price: float

    @property
    def dense(self) -> float:
        """What the layers cost as they are."""
        return sum(layer.dense for layer in self.layers.values())

    @property
    def multiple(self) -> int:
        """Only ranks and numbers of units that are multiples of it are bought."""
        return max(layer.multiple for layer in self.layers.values())

    def choices(self) -> tuple[Float64Array, Float64Array, list[Any]]:
        """Return prices, errors and, by layer, ranks or units of the ways that may be best."""
        offers = {name: _Offer(layer) for name, layer in self.layers.items()}
        found = [_state(offers)]
        for _, name, choice in _steps(offers):
            offers[name].move(choice)
            found.append(_state(offers))
        units = len(self.losses)
        for count in range(self.multiple, units, self.multiple):
            kept, lost = dict.fromkeys(self.layers, Units(count)), float(self.losses[units - count])
            if math.isfinite(lost):
                found.append((count * self.price, lost, kept))
        return _best(found)


#: Anything that a budget is spread over.
Offered = Purchase | Either | Joint


def spread(
    layers: Mapping[str, Offered], budget: float, what: str = "parameters"
) -> dict[str, Any]:
    """Return the rank of each layer, or None if it stays dense, within a share of the price.

    Of joint layers it is the choice of each: a rank, None, or `Units`; of several forms, `Ranked`.

    Each layer may keep any rank that is cheaper than the layer as it is, or stay as it is, without
    error. Step by step, the budget goes where the error, summed over layers, falls most for its
    price, along the lower convex hull of each layer's choices. This is optimal except for the last
    step, which may not fit. `what` names the unit of the prices, for the error message.
    """
    offers = {name: _Offer(layer) for name, layer in layers.items()}
    total = sum(layer.dense for layer in layers.values())
    allowed = budget * total
    spent = sum(offer.price for offer in offers.values())
    if spent > allowed:
        least = max((layer.multiple for layer in layers.values()), default=1)
        raise InvalidOptionError(
            f"`budget` is {budget:g}, {_amount(allowed, total)} of {_amount(total, total)} {what}; "
            f"rank {least} everywhere needs {_amount(spent, total)} ({spent / total:.4f}). Raise "
            "it, or leave layers out with `exclude`."
        )
    closed: set[str] = set()
    for _, name, after in _steps(offers):
        if name in closed:
            continue
        offer = offers[name]
        best = offer.within(allowed - spent, after)
        if best < after:  # it does not fit: the rest buys what it can
            closed.add(name)
        spent += offer.move(best)
    return {name: offer.rank for name, offer in offers.items()}


def least(layers: Mapping[str, Offered]) -> float:
    """Return the share of the price that the cheapest choices take."""
    total = sum(layer.dense for layer in layers.values())
    return sum(float(layer.choices()[0][0]) for layer in layers.values()) / total


def _steps(offers: Mapping[str, "_Offer"]) -> list[tuple[float, str, int]]:
    """Return all steps along the hulls of choices, the one that pays best first."""
    steps: list[tuple[float, str, int]] = []
    for name, offer in offers.items():
        rate = math.inf
        for before, after in zip(offer.hull, offer.hull[1:], strict=False):
            gain = offer.errors[before] - offer.errors[after]
            # Rounding may make a step look better than the one it builds on; keep their order.
            rate = min(rate, float(gain / (offer.prices[after] - offer.prices[before])))
            steps.append((rate, name, after))
    steps.sort(key=lambda step: -step[0])  # stable: ties keep the order of layers and ranks
    return steps


def _best(
    found: list[tuple[float, float, Any]],
) -> tuple[Float64Array, Float64Array, list[Any]]:
    """Return prices, errors and labels of those that nothing beats, the cheapest first."""
    best: list[tuple[float, float, Any]] = []
    for each in sorted(found, key=lambda each: each[:2]):
        if not best or each[1] < best[-1][1]:
            best.append(each)
    prices, errors, labels = zip(*best, strict=True)
    return np.array(prices), np.array(errors), list(labels)


def _state(offers: Mapping[str, "_Offer"]) -> tuple[float, float, dict[str, Any]]:
    """Return price, error and the choice of each layer as taken so far."""
    taken = {name: offer.rank for name, offer in offers.items()}
    return sum(o.price for o in offers.values()), sum(o.error for o in offers.values()), taken


class _Offer:
    """The choices of one layer, and the one taken so far."""

    def __init__(self, layer: Offered) -> None:
        self.prices, self.errors, self._ranks = layer.choices()
        self.hull = _lower_hull(self.prices, self.errors)
        self._taken = self.hull[0]

    @property
    def price(self) -> float:
        return float(self.prices[self._taken])

    @property
    def error(self) -> float:
        return float(self.errors[self._taken])

    @property
    def rank(self) -> Any:
        return self._ranks[self._taken]

    def within(self, rest: float, most: int) -> int:
        """Return the dearest choice up to `most` whose price exceeds the present by `rest`."""
        top = self.price + rest
        affordable = int(np.searchsorted(self.prices[: most + 1], top, side="right")) - 1
        return max(self._taken, affordable)

    def move(self, choice: int) -> float:
        """Take a choice, and return what it costs more."""
        before, self._taken = self.price, choice
        return self.price - before


def _lower_hull(prices: Float64Array, errors: Float64Array) -> list[int]:
    """Return the indices of the lower convex hull, from the cheapest choice to the dense layer."""
    hull: list[int] = []
    for index in range(len(prices)):
        if hull and prices[index] <= prices[hull[-1]]:  # more for the same price
            hull.pop()
        while len(hull) > 1:
            a, b = hull[-2:]
            # b lies on or above the line from a to the new point: it is never the best step.
            gain = (errors[a] - errors[b]) * (prices[index] - prices[a])
            if gain >= (errors[a] - errors[index]) * (prices[b] - prices[a]):
                break
            hull.pop()
        hull.append(index)
    return hull


def _amount(price: float, total: float) -> str:
    """Return a price in words; a total of 100 or more counts things, a smaller one measures."""
    return f"{math.floor(price):,}" if total >= 100.0 else f"{price:.4g}"
