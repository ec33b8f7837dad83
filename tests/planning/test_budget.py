"""The budget is kept, and spent almost as well as it can be: against all ways to spend it."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmtspec.errors import InvalidValueError
from rmtspec.planning.budget import Purchase, spread


def layer(rows, columns, energies):
    energies = np.sort(np.asarray(energies, dtype=np.float64))[::-1]
    prices = (rows + columns) * np.arange(1.0, len(energies) + 1)
    return Purchase(energies=energies / energies.sum(), prices=prices, dense=rows * columns)


def choices(bought):
    """Return (rank, parameters, error) of every way to keep a layer; rank None is dense."""
    left = [max(0.0, 1.0 - math.fsum(bought.energies[:k])) for k in range(len(bought.energies) + 1)]
    costs = [0.0, *bought.prices]
    below = [(k, costs[k], left[k]) for k in range(1, len(left)) if costs[k] < bought.dense]
    return [(None, bought.dense, 0.0), *below]


def cost_and_error(layers, ranks):
    known = [{c[0]: c[1:] for c in choices(layers[name])} for name in layers]
    kept = [found[ranks[name]] for found, name in zip(known, layers, strict=True)]
    return sum(cost for cost, _ in kept), sum(error for _, error in kept)


def least_error(layers, allowed):
    """The least error of all combinations that `allowed` parameters pay for."""
    return min(
        sum(error for _, _, error in combination)
        for combination in itertools.product(*map(choices, layers.values()))
        if sum(cost for _, cost, _ in combination) <= allowed
    )


def last_step(layers, allowed):
    """The error removed by the first step, of the best first, that is not paid for."""
    steps, spent = [], 0
    for bought in layers.values():
        points = sorted((cost, error) for _, cost, error in choices(bought))
        cost, error = points[0]
        spent += cost
        while ahead := [p for p in points if p[0] > cost]:
            best = max(ahead, key=lambda p: (error - p[1]) / (p[0] - cost))
            steps.append(((error - best[1]) / (best[0] - cost), error - best[1], best[0] - cost))
            cost, error = best
    for _, gain, price in sorted(steps, reverse=True):
        spent += price
        if spent > allowed:
            return gain
    return 0.0


SIDES = st.integers(1, 12)
ENERGIES = st.lists(st.sampled_from([1.0, 2.0, 3.0, 7.0, 30.0, 200.0]), min_size=12, max_size=12)


@given(
    st.lists(st.tuples(SIDES, SIDES, ENERGIES), min_size=1, max_size=3),
    st.floats(0.05, 1.0),
)
def test_no_way_to_spend_it_is_better_by_more_than_a_step(given_layers, budget):
    layers = {str(i): layer(r, c, e[: min(r, c)]) for i, (r, c, e) in enumerate(given_layers)}
    total = sum(bought.dense for bought in layers.values())
    allowed = budget * total
    if sum(min(b.prices[0], b.dense) for b in layers.values()) > allowed:
        with pytest.raises(InvalidValueError, match="rank 1 everywhere"):
            spread(layers, budget)
        return
    cost, error = cost_and_error(layers, spread(layers, budget))
    assert cost <= allowed
    # 1e-12: sums of twelve shares, rounded.
    assert error <= least_error(layers, allowed) + last_step(layers, allowed) + 1e-12


def test_rank_goes_where_the_error_falls_most():
    layers = {
        "steep": layer(100, 100, [1000, 500, 250, *np.ones(97)]),
        "flat": layer(100, 100, np.linspace(1.2, 1.0, 100)),
    }
    ranks = spread(layers, 0.10)  # 10 ranks
    assert ranks["steep"] >= 3
    assert ranks["steep"] + ranks["flat"] == 10


@pytest.mark.parametrize("bought", range(1, 21))
def test_equal_steps_are_taken_in_order(bought):
    # Equal singular values: the differences of the sums differ in the last digit.
    layers = {"a": layer(100, 100, [*np.ones(20), *np.full(80, 1e-9)])}
    assert spread(layers, (bought * 200 + 1) / 10_000) == {"a": bought}


def test_what_one_layer_cannot_use_goes_to_the_others():
    # The first step is to leave "flat" dense, which is too much by 20; its last rank is 14.
    weak = layer(10, 10, [980, 10, 8, *np.full(7, 0.1)])
    layers = {"flat": layer(30, 30, np.ones(30)), "weak": weak}
    assert spread(layers, 0.9) == {"flat": 14, "weak": 3}


def test_whole_budget_leaves_all_dense():
    rng = np.random.default_rng(0)
    layers = {str(i): layer(20, 30, rng.random(20)) for i in range(4)}
    layers["small"] = layer(1, 30, [1.0])
    assert spread(layers, 1.0) == dict.fromkeys(layers)


def test_layers_that_no_split_saves_stay_dense():
    layers = {"vector": layer(1, 50, [1.0]), "matrix": layer(40, 40, np.arange(1, 41))}
    ranks = spread(layers, 0.5)
    assert ranks["vector"] is None
    assert cost_and_error(layers, ranks)[0] <= 0.5 * 1650


def test_a_budget_that_buys_nothing():
    layers = {"a": layer(100, 100, np.ones(100)), "b": layer(100, 100, np.ones(100))}
    message = r"`budget` is 0.01, 200 of 20,000 parameters; rank 1 everywhere needs 400 \(0.0200\)"
    with pytest.raises(InvalidValueError, match=message):
        spread(layers, 0.01)
    assert spread(layers, 0.02) == {"a": 1, "b": 1}


def test_of_ranks_at_one_price_the_largest_is_bought():
    bought = Purchase(
        energies=np.array([4.0, 3.0, 2.0, 1.0]), prices=np.array([2.0, 2.0, 3.0, 3.0]), dense=9.0
    )
    assert spread({"a": bought}, 0.25) == {"a": 2}
    assert spread({"a": bought}, 0.4) == {"a": 4}


def test_ranks_are_multiples_or_the_layer_stays_dense():
    prices = 20.0 * np.arange(1, 11)
    layers = {
        "wide": Purchase(energies=np.linspace(10, 1, 10), prices=prices, dense=100.0, multiple=2),
        "thin": Purchase(energies=np.ones(3), prices=np.array([8.0, 16.0, 24.0]), dense=20.0,
                         multiple=4),
    }  # fmt: skip
    assert spread(layers, 0.7) == {"wide": 2, "thin": None}
    with pytest.raises(InvalidValueError, match="rank 4 everywhere needs 60"):
        spread(layers, 0.1)
