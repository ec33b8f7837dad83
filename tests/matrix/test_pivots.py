"""Pivot rows and combinations make the same matrix from fewer numbers."""

import numpy as np
import pytest

from rmtspec.matrix.pivots import pivoted
from rmtspec.terms import Form


def product(parts):
    return np.vstack([parts.kept, parts.mixing @ parts.kept])[parts.place]


@pytest.mark.parametrize(("rows", "columns", "rank"), [(30, 20, 7), (20, 30, 20), (9, 5, 1)])
def test_the_product_is_the_same(rows, columns, rank):
    rng = np.random.default_rng(rows)
    outer, inner = rng.standard_normal((rows, rank)), rng.standard_normal((rank, columns))
    parts = pivoted(outer, inner)
    whole = outer @ inner
    # 1e-12: the condition of 20 pivots of 30 rows, a few hundred, times the rounding.
    np.testing.assert_allclose(product(parts), whole, rtol=0, atol=1e-12 * abs(whole).max())
    numbers = parts.kept.size + parts.mixing.size
    assert numbers == Form.PIVOTED.parameters(rank, rows, columns)
    assert numbers == Form.PLAIN.parameters(rank, rows, columns) - rank**2
    assert sorted(parts.place) == list(range(rows))


def test_coefficients_stay_small_where_rows_differ_in_scale():
    rng = np.random.default_rng(0)
    outer = rng.standard_normal((200, 40)) * np.geomspace(1e-4, 1e2, 200)[:, None]
    parts = pivoted(outer, rng.standard_normal((40, 60)))
    assert abs(parts.mixing).max() < 10.0


def test_directions_that_are_missing_are_not_made_up():
    rng = np.random.default_rng(0)
    outer = rng.standard_normal((30, 3)) @ rng.standard_normal((3, 8))
    outer[:, 5] = 0.0
    inner = rng.standard_normal((8, 20))
    parts = pivoted(outer, inner)
    np.testing.assert_allclose(product(parts), outer @ inner, atol=1e-12)
    nothing = pivoted(np.zeros((30, 4)), inner[:4])
    assert not product(nothing).any()
    assert np.isfinite(nothing.mixing).all()
