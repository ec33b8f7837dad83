"""Leading and random directions, and the rows of a table nearest to them."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rmtspec import ensembles
from rmtspec.errors import InvalidValueError
from rmtspec.matrix.directions import (
    chance,
    leading_directions,
    nearest_entries,
    nearest_rows,
    random_directions,
)


def naive_nearest(table, direction, most):
    """Return the `most` rows of largest cosine and of smallest, by a loop."""
    cosines = [
        float(row @ direction / (np.linalg.norm(row) * np.linalg.norm(direction))) for row in table
    ]
    order = sorted(range(len(table)), key=lambda i: -cosines[i])
    return order[:most], order[::-1][:most], cosines


@pytest.mark.parametrize("size", [1, 7, 40, 1000])
def test_nearest_rows_are_those_of_a_loop_however_the_table_is_cut(size):
    rng = np.random.default_rng(0)
    table, directions = rng.standard_normal((300, 12)), rng.standard_normal((12, 5))
    pieces = (table[i : i + size] for i in range(0, 300, size))
    near = nearest_rows(pieces, directions, 4)
    for i in range(5):
        first, last, cosines = naive_nearest(table, directions[:, i], 4)
        assert near.towards[i].tolist() == first
        assert near.against[i].tolist() == last
        # float64 sums of 12 terms
        assert_allclose(near.towards_cosines[i], [cosines[j] for j in first], rtol=1e-12)
        assert_allclose(near.against_cosines[i], [cosines[j] for j in last], rtol=1e-12)
        assert_allclose(near.nearness[i], max(map(abs, cosines)), rtol=1e-12)


def test_a_table_shorter_than_the_list_is_listed_whole():
    near = nearest_rows([np.eye(3)], np.array([[3.0], [2.0], [-1.0]]), 10)
    assert near.towards.tolist() == [[0, 1, 2]]
    assert near.against.tolist() == [[2, 1, 0]]


def test_rows_and_directions_of_zeros_are_near_to_nothing():
    near = nearest_rows([np.zeros((50, 3)), np.eye(3)], np.array([[1.0, 0], [0, 0], [0, 0]]), 2)
    assert near.towards[0, 0] == 50
    assert near.nearness.tolist() == [1.0, 0.0]
    assert len(set(near.towards[1].tolist())) == 2


def test_entries_are_cosines_with_the_axes():
    directions = np.random.default_rng(1).standard_normal((30, 3))
    by_entries, by_rows = nearest_entries(directions, 4), nearest_rows([np.eye(30)], directions, 4)
    assert_array_equal(by_entries.towards, by_rows.towards)
    assert_allclose(by_entries.against_cosines, by_rows.against_cosines, rtol=1e-12)


def test_a_table_with_nan_is_refused():
    table = np.ones((10, 2))
    table[7, 1] = np.nan
    with pytest.raises(InvalidValueError, match="nan or inf in its rows 5 to 9"):
        nearest_rows([table[:5], table[5:]], np.ones((2, 1)), 3)


@pytest.mark.parametrize("shape", [(400, 300), (30, 50)])
def test_leading_directions_have_a_sign_of_their_own(shape):
    W = ensembles.spiked(*shape, [4, 6, 9], rng=0)
    left, right = leading_directions(W, 3)
    assert_allclose(left.T @ W @ right, np.diag(np.diag(left.T @ W @ right)), atol=1e-8)
    assert (np.diag(left.T @ W @ right) > 0).all()
    assert (np.take_along_axis(right, np.abs(right).argmax(0)[None], 0) > 0).all()
    other = leading_directions(-W, 3)
    assert_allclose(other[1], right, atol=1e-8)
    assert_allclose(other[0], -left, atol=1e-8)


def test_random_directions_are_unit_vectors_of_a_seed():
    one = random_directions(40, 6, np.random.default_rng(3))
    assert_allclose(np.linalg.norm(one, axis=0), 1.0, rtol=1e-12)
    assert_array_equal(one, random_directions(40, 6, np.random.default_rng(3)))


def test_chance_counts_the_observed_one_too():
    drawn = np.arange(99) / 100
    assert chance(2.0, drawn) == 0.01
    assert chance(0.98, drawn) == 0.02
    assert chance(0.0, drawn) == 1.0
