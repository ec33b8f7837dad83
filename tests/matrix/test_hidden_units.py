"""Hidden units leave in the right order, at the loss that is predicted."""

import numpy as np
import pytest

from rmtspec.errors import InvalidValueError
from rmtspec.matrix.hidden_units import refitted, unit_order
from rmtspec.matrix.weighting import RIDGE


def case(rows=12, units=30, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * units, units)) @ np.diag(np.geomspace(0.1, 3, units))
    x @= np.eye(units) + 0.3 * rng.standard_normal((units, units))
    weight = rng.standard_normal((rows, units))
    gradients = rng.standard_normal((200, rows)) * np.geomspace(0.05, 2, rows)
    return weight, x.T @ x / len(x), gradients.T @ gradients / 200


def ridged(moment):
    return moment + RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))


def loss(weight, moment, G, kept):
    """What is lost by the best fit from the units kept, both moments with their ridge."""
    moment = ridged(moment)
    fit = weight @ moment[:, kept] @ np.linalg.inv(moment[np.ix_(kept, kept)])
    gap = weight.copy()
    gap[:, kept] -= fit
    return 0.5 * np.trace(ridged(G) @ gap @ moment @ gap.T)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("units", [30, 130])
def test_the_predicted_loss_is_that_of_the_best_fit(full, units):
    weight, moment, G = case(units=units)
    G = G if full else np.diag(np.diag(G))
    found = unit_order(weight, moment, G if full else np.diag(G))
    assert sorted([*found.order, *set(range(units)) - set(found.order)]) == list(range(units))
    assert found.losses[0] == 0.0
    assert (np.diff(found.losses) >= 0).all()
    step = max(1, units // 48)
    for left in (step, 5 * step, 10 * step, units - 1 - (units - 1) % step):
        kept = found.kept(units - left)
        np.testing.assert_allclose(found.losses[left], loss(weight, moment, G, kept), rtol=1e-6)


def test_each_unit_that_leaves_is_the_cheapest():
    weight, moment, G = case(units=20)
    found = unit_order(weight, moment, G)
    first = [loss(weight, moment, G, np.delete(np.arange(20), i)) for i in range(20)]
    assert found.order[0] == np.argmin(first)
    gone = found.order[:6]
    rest = np.setdiff1d(np.arange(20), gone)
    next_ones = [loss(weight, moment, G, np.setdiff1d(rest, [i])) for i in rest]
    assert found.order[6] == rest[np.argmin(next_ones)]


def test_what_the_others_can_say_costs_nothing():
    rng = np.random.default_rng(0)
    h = rng.standard_normal((500, 10))
    h = np.hstack([h, h @ rng.standard_normal((10, 6))])
    weight, moment = rng.standard_normal((8, 16)), h.T @ h / 500
    found = unit_order(weight, moment, np.ones(8))
    assert found.losses[6] < 0.25 * found.losses[7]
    kept = found.kept(10)
    fit = refitted(weight, moment, kept)
    assert np.linalg.norm(h[:, kept] @ fit.T - h @ weight.T) < 0.05 * np.linalg.norm(h @ weight.T)


def test_all_units_are_the_matrix_itself_and_one_always_stays():
    weight, moment, G = case()
    found = unit_order(weight, moment, G)
    assert found.kept(30).tolist() == list(range(30))
    assert len(found.kept(1)) == 1
    np.testing.assert_allclose(refitted(weight, moment, np.arange(30)), weight, rtol=1e-8)
    alone = unit_order(weight[:, :1], moment[:1, :1], G)
    assert (alone.order.tolist(), alone.losses.tolist()) == ([], [0.0])


def test_outputs_that_do_not_matter_decide_nothing():
    weight, moment, _ = case()
    D = np.zeros(12)
    D[3] = 1.0
    only = unit_order(weight[3:4], moment, D[3:4])
    assert unit_order(weight, moment, D).order[:10].tolist() == only.order[:10].tolist()


def test_wrong_moments():
    weight, moment, G = case()
    with pytest.raises(InvalidValueError, match="`input_moment` has shape"):
        unit_order(weight, moment[:5, :5], G)
    with pytest.raises(InvalidValueError, match="`output_weight` has 30 entries; expected 12"):
        unit_order(weight, moment, np.ones(30))


def test_what_is_lost_on_other_inputs_is_predicted():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((40, 40)) * np.geomspace(1, 0.1, 40)
    weight, D = rng.standard_normal((10, 40)), np.ones(10)

    def moment(count):
        h = rng.standard_normal((count, 40)) @ mix
        return h.T @ h / count

    truth, ratios = moment(200_000), {None: [], 400: []}
    for _ in range(20):
        seen = moment(200)
        for rows, found in ratios.items():
            order = unit_order(weight, seen, D, rows=rows)
            kept = order.kept(25)
            gap = weight.copy()
            gap[:, kept] -= refitted(weight, seen, kept)
            found.append(order.losses[15] / (0.5 * np.vdot(gap, gap @ truth)))
    assert np.mean(ratios[None]) < 0.8
    assert 0.85 < np.mean(ratios[400]) < 1.15


def test_from_too_few_inputs_nothing_leaves():
    weight, moment, G = case(units=60)
    found = unit_order(weight, moment, G, rows=70)
    assert found.losses[0] == 0.0
    assert np.isinf(found.losses[1])
    assert np.isfinite(found.losses[-1])
    assert (
        unit_order(weight, moment, G, rows=10**6).losses >= unit_order(weight, moment, G).losses
    ).all()
