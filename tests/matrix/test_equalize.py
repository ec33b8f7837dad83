"""Equalizing: unit mean squares in all rows and columns, against the definition."""

import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose

from rmtspec._kernels.equalize import sweep
from rmtspec.matrix.entries import Entries, Scales
from rmtspec.matrix.equalize import even, guarded, sinkhorn


def noise_of(shape, seed=0):
    """Noise whose variances are no product of rows and columns."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) * np.exp(rng.normal(size=shape))


@pytest.mark.kernels
@pytest.mark.parametrize("shape", [(12, 7), (13, 5), (14, 14), (15, 3), (3, 2), (1, 1)])
def test_a_sweep_against_numpy(shape):
    entries, (n, p) = noise_of(shape), shape
    x, y, inverse = np.full(n, 2.0), np.empty(p), np.linspace(0.5, 2.0, p)
    rows = (entries**2 * inverse).mean(axis=1)
    change = sweep(entries, inverse, x, y)
    assert_allclose(x, rows, rtol=1e-13)
    assert_allclose(y, (entries**2 / rows[:, None]).mean(axis=0), rtol=1e-13)
    assert_allclose(inverse, 1 / y, rtol=1e-13)
    assert change == pytest.approx(np.abs(rows / 2 - 1).max())


@pytest.mark.kernels
@pytest.mark.parametrize("shape", [(30, 20), (17, 17), (41, 4)])
def test_scales_against_the_slow_reference(shape):
    entries = noise_of(shape)
    scales = sinkhorn(entries)
    x, y = naive.sinkhorn(entries)
    assert_allclose(np.outer(scales.rows, scales.columns), np.sqrt(np.outer(x, y)), rtol=1e-9)
    equalized = np.square(entries / np.outer(scales.rows, scales.columns))
    assert_allclose(equalized.mean(axis=1), 1, rtol=1e-9)
    assert_allclose(equalized.mean(axis=0), 1, rtol=1e-9)
    assert np.log(scales.rows).mean() == pytest.approx(np.log(scales.columns).mean())


def test_scaling_rows_and_columns_scales_the_scales():
    entries = noise_of((40, 25))
    rng = np.random.default_rng(1)
    rows, columns = np.exp(rng.normal(size=40) * 3), np.exp(rng.normal(size=25) * 3)
    before, after = sinkhorn(entries), sinkhorn(entries * np.outer(rows, columns))
    expected = np.outer(before.rows * rows, before.columns * columns)
    assert_allclose(np.outer(after.rows, after.columns), expected, rtol=1e-8)


def test_what_has_no_such_scales_stays_finite():
    """An upper triangle: only its diagonal could stay, so that the sweeps end by their number."""
    for entries in (np.triu(noise_of((30, 30))), np.eye(20), np.zeros((6, 4))):
        for values in sinkhorn(entries):
            assert np.isfinite(values).all()
            assert values.min() > 0


def test_even_changes_no_product():
    scales = Scales(np.array([1.0, 4.0]), np.array([9.0, 1.0, 3.0]))
    evened = even(scales)
    assert_allclose(np.outer(*evened), np.outer(*scales))
    assert np.log(evened.rows).mean() == pytest.approx(np.log(evened.columns).mean())


def test_guard_holds_what_fell_and_nothing_else():
    first = Scales(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.ones(3))
    now = Scales(first.rows * [1e-8, 1.0, 1.0, 1.0, 7.0], np.array([1.0, 1.0, 0.5]))
    held = guarded(now, first)
    assert_allclose(held.rows, [np.sqrt(0.2), 2.0, 3.0, 4.0, 35.0])
    assert_allclose(held.columns, now.columns)  # 0.25 of the median variance


@pytest.mark.parametrize("order", ["C", "F"])
def test_entries_are_live_ones_with_the_longer_side_first(order):
    inner = noise_of((9, 6))
    W = np.zeros((7, 11))
    W[np.ix_([0, 1, 2, 4, 5, 6], [0, 1, 3, 4, 5, 6, 7, 9, 10])] = inner.T
    for given, wide in ((W, True), (W.T, False)):
        entries = Entries(np.array(given, order=order))
        assert (entries.n, entries.p, entries.wide) == (9, 6, wide)
        assert entries.shape == given.shape
        assert_allclose(np.vstack([block for _, block in entries.blocks()]), inner)
        assert entries.largest == np.abs(inner).max()
        assert entries.energy == pytest.approx(np.square(inner / entries.largest).sum())
        assert entries.typical == 6
        placed = entries.placed(np.arange(1.0, 10.0), longer=True)
        assert placed.tolist() == [1, 2, 0, 3, 4, 5, 6, 7, 0, 8, 9]


def test_entries_in_blocks_are_scaled_as_in_one(monkeypatch):
    W = noise_of((23, 8))
    scales = Scales(np.arange(1.0, 24.0), np.arange(1.0, 9.0))
    monkeypatch.setattr("rmtspec.matrix.eigenvalues._BLOCK_BYTES", 8 * 8 * 5)
    parts = list(Entries(W).blocks(scales))
    assert [start for start, _ in parts] == [0, 5, 10, 15, 20]
    assert_allclose(np.vstack([part for _, part in parts]), W / np.outer(*scales), rtol=1e-15)
