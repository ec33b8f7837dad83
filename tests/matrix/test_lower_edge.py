"""Values below the bulk: level, planted small values, ranks, sizes without a lower edge."""

import json
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

import rmtspec
from rmtspec.errors import InvalidTypeError, InvalidValueError


def smallest(n, p, rng):
    """Return the smallest eigenvalue of a Wishart matrix, from its tridiagonal form."""
    from scipy.linalg import eigh_tridiagonal

    d = np.sqrt(rng.chisquare(np.arange(n, n - p, -1)))
    e = np.sqrt(rng.chisquare(np.arange(p - 1, 0, -1)))
    main = d**2
    main[:-1] += e**2
    select = {"eigvals_only": True, "select": "i", "select_range": (0, 0)}
    return eigh_tridiagonal(main, d[1:] * e, **select)[0]


@pytest.mark.parametrize(("n", "p"), [(300, 200), (288, 32), (40, 30), (30, 29)])
def test_level_with_the_law_known(n, p):
    """1500 draws at .1 and .01: three standard errors are .023 and .008."""
    rng = np.random.default_rng(5)
    least = np.array([smallest(n, p, rng) for _ in range(1500)]) / n
    law = rmtspec.MarchenkoPastur(p / n)
    spec = rmtspec.Spectrum(law.ppf((np.arange(p) + 0.5) / p), n)
    for beta in (0.1, 0.01):
        level = np.mean(least < rmtspec.below_bulk(spec, law, beta).threshold)
        assert 0.06 < level < 0.125 if beta == 0.1 else 0.002 < level < 0.019  # .08 at 30 x 29


def test_counts_planted_small_values():
    rng = np.random.default_rng(0)
    U, s, Vt = np.linalg.svd(rng.standard_normal((300, 200)), full_matrices=False)
    s[-5:] = [1.6, 1.2, 0.8, 0.4, 0.2]  # the bulk begins at 3.2
    s[:3] = 60.0
    spec = rmtspec.spectrum(U * s @ Vt)
    fit = rmtspec.bema(spec, beta=0.01)
    end = rmtspec.below_bulk(spec, fit, beta=0.01)
    assert end.n_below == 5
    assert_allclose(np.sqrt(300 * end.values), [0.2, 0.4, 0.8, 1.2, 1.6], rtol=1e-6)
    assert end.n_components == fit.n_removed == 3
    assert end.n_zero == 0
    # the law alone, with the number that it leaves out
    same = rmtspec.below_bulk(spec, fit.law, beta=0.01, n_components=3)
    assert same.threshold == end.threshold
    assert rmtspec.below_bulk(spec, fit, beta=0.5).threshold > end.threshold


def test_threshold_is_in_the_units_of_the_spectrum():
    spec = rmtspec.spectrum(rmtspec.ensembles.wishart(300, 200, rng=1))
    ends = [
        rmtspec.below_bulk(rmtspec.Spectrum(scale * spec.eigenvalues, 300), fit)
        for scale in (1.0, 9.0)
        for fit in [rmtspec.bema(rmtspec.Spectrum(scale * spec.eigenvalues, 300))]
    ]
    assert ends[1].threshold == pytest.approx(9.0 * ends[0].threshold)
    edge = (1.0 - math.sqrt(2.0 / 3.0)) ** 2
    assert 0.8 * edge < ends[0].threshold < edge


def test_without_components_the_matrix_is_smaller():
    law = rmtspec.MarchenkoPastur(150 / 250, 2.0)
    alone = rmtspec.Spectrum(np.ones(150), n=250)
    beside = rmtspec.Spectrum(np.append(np.ones(150), np.full(50, 9.0)), n=300)
    assert rmtspec.below_bulk(beside, law, n_components=50).threshold == pytest.approx(
        rmtspec.below_bulk(alone, law).threshold, rel=1e-12
    )


def test_zeros_are_counted_apart():
    W = rmtspec.ensembles.wishart(300, 200, rng=1)
    W[:, :4] = W[:, 4:8]
    spec = rmtspec.spectrum(W)
    end = rmtspec.below_bulk(spec, rmtspec.bema(spec))
    assert (end.n_zero, end.n_below, end.values.size) == (4, 0, 0)
    assert "4 of 200" in repr(end)


def test_square_matrices_have_no_lower_edge():
    spec = rmtspec.spectrum(rmtspec.ensembles.wishart(100, 100, rng=0))
    end = rmtspec.below_bulk(spec, rmtspec.bema(spec))
    assert math.isnan(end.n_below)
    assert math.isnan(end.threshold)
    assert end.reason.startswith("square")
    assert end.to_dict()["n_below"] is None
    json.dumps(end.to_dict(), allow_nan=False)


def test_without_a_fit_there_is_no_number():
    spec = rmtspec.spectrum(np.ones((30, 20)))
    end = rmtspec.below_bulk(spec, rmtspec.bema(spec))
    assert end.reason == "no bulk"
    assert end.n_zero == 19
    assert "no bulk" in repr(end)


def test_bad_input():
    spec = rmtspec.spectrum(rmtspec.ensembles.wishart(60, 40, rng=0))
    fit = rmtspec.bema(spec)
    with pytest.raises(InvalidTypeError, match="BulkFit or a MarchenkoPastur"):
        rmtspec.below_bulk(spec, 0.5)
    with pytest.raises(InvalidValueError, match="A BulkFit knows"):
        rmtspec.below_bulk(spec, fit, n_components=0)
    with pytest.raises(InvalidValueError, match="n_components"):
        rmtspec.below_bulk(spec, rmtspec.MarchenkoPastur(0.5))
    with pytest.raises(InvalidValueError, match="expected the fit of this spectrum"):
        rmtspec.below_bulk(rmtspec.Spectrum(np.ones(30), n=60), fit)
    with pytest.raises(InvalidValueError, match="beta"):
        rmtspec.below_bulk(spec, fit, beta=1.0)
