import numpy as np
import pytest

from rmtspec.errors import InvalidOptionError
from rmtspec.interpretation.directions import leading_directions
from rmtspec.interpretation.nearest import nearest_rows

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(40, 25), (25, 40), (30, 30)])
@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_they_are_those_of_the_svd(shape, scale):
    W = RNG.standard_normal(shape) * scale
    found = leading_directions(W, 5, min(shape))
    U, s, Vt = np.linalg.svd(W)
    np.testing.assert_allclose(found.values, s[:5], rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(found.inputs[:5] * Vt[:5], axis=1)), 1, rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(found.outputs[:5] * U.T[:5], axis=1)), 1, rtol=1e-10)
    scaled = (W / scale) @ found.inputs[:5].T
    np.testing.assert_allclose(scaled, found.outputs[:5].T * found.values / scale, atol=1e-12)
    assert (found.inputs[:5].max(axis=1) == np.abs(found.inputs[:5]).max(axis=1)).all()


def test_small_values_keep_their_directions():
    U, V = (np.linalg.qr(RNG.standard_normal((30, 3)))[0] for _ in range(2))
    W = U @ np.diag([1.0, 1e-3, 1e-10]) @ V.T
    found = leading_directions(W, 3, 3)
    np.testing.assert_allclose(found.values, [1.0, 1e-3, 1e-10], rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(found.outputs[:3] * U.T, axis=1)), 1, atol=1e-5)


@pytest.mark.parametrize("k", [0, 4, 2.5])
def test_more_than_the_rank_is_refused(k):
    with pytest.raises((InvalidOptionError, TypeError), match="`k`"):
        leading_directions(np.eye(3), k, 3)


def test_nearest_rows_are_those_of_the_largest_cosine():
    table = RNG.standard_normal((20_000, 12)) + 3.0  # the mean is taken away
    asked = RNG.standard_normal((2, 12))
    scale = RNG.uniform(0.5, 2.0, 12)
    found = nearest_rows(table, asked, 4, scale=scale)
    centred = table - table.mean(axis=0)
    for direction, near in zip(asked * scale, found, strict=True):
        cosines = centred @ direction / np.linalg.norm(centred, axis=1) / np.linalg.norm(direction)
        assert [i for i, _ in near.along] == list(np.argsort(-cosines)[:4])
        assert [i for i, _ in near.against] == list(np.argsort(cosines)[:4])
        assert near.closest == pytest.approx(np.abs(cosines).max())


def test_chance_is_what_random_directions_reach():
    table = RNG.standard_normal((500, 40))
    reached = [each.closest for each in nearest_rows(table, RNG.standard_normal((400, 40)), 1)]
    chance = nearest_rows(table, RNG.standard_normal((1, 40)), 1)[0].chance
    assert 0.005 < np.mean(np.array(reached) > chance) < 0.15  # one in twenty, from 100 draws
