"""The spectrum of a product, from its factors."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import rmtspec
from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.matrix.product import product_spectrum

rng = np.random.default_rng(0)
OUTER, INNER = rng.standard_normal((90, 20)), rng.standard_normal((20, 60))


@pytest.mark.parametrize("turned", [False, True])
def test_as_of_the_product(turned):
    outer, inner = (INNER.T, OUTER.T) if turned else (OUTER, INNER)
    spec, whole = product_spectrum(outer, inner), rmtspec.spectrum(outer @ inner, "svd")
    assert (spec.n, spec.p, spec.shape) == (whole.n, whole.p, whole.shape)
    assert spec.numerical_rank == whole.numerical_rank == 20
    assert_allclose(spec.eigenvalues[-20:], whole.eigenvalues[-20:], rtol=1e-11)  # rounding
    assert not spec.eigenvalues[:-20].any()
    assert rmtspec.bema(spec).reason == "no bulk"


def test_a_rank_near_the_full_one_has_the_fit_of_the_matrix():
    W = rmtspec.ensembles.spiked(120, 80, [4, 7], rng=1)
    parts = rmtspec.split(W, 70)
    fit = rmtspec.bema(product_spectrum(parts.outer, parts.inner))
    assert fit.n_spikes == rmtspec.bema(rmtspec.spectrum(W)).n_spikes == 2
    assert_allclose(fit.variance, rmtspec.bema(rmtspec.spectrum(W)).variance, rtol=1e-10)
    parts = rmtspec.split(W, 63)  # more than a fifth of the values are gone
    assert rmtspec.bema(product_spectrum(parts.outer, parts.inner)).reason == "no bulk"


def test_zero_rows_and_columns_are_left_out():
    outer, inner = OUTER.copy(), INNER.copy()
    outer[:50] = 0.0
    inner[:, :5] = 0.0
    spec, whole = product_spectrum(outer, inner), rmtspec.spectrum(outer @ inner)
    assert (spec.n, spec.p) == (whole.n, whole.p) == (55, 40)
    assert (spec.dropped_rows, spec.dropped_columns) == (50, 5)
    assert_allclose(spec.eigenvalues[-20:], whole.eigenvalues[-20:], rtol=1e-11)


def test_wider_than_the_matrix_and_zeros():
    spec = product_spectrum(OUTER.T, OUTER)  # 20 x 90 x 20: no zeros
    assert spec.numerical_rank == spec.p == 20
    zeros = product_spectrum(np.zeros((5, 2)), np.ones((2, 4)))
    assert (zeros.p, zeros.n, zeros.numerical_rank) == (4, 5, 0)


def test_half_precision():
    spec = product_spectrum(OUTER.astype("f2"), INNER.astype("f2"))
    expected = rmtspec.spectrum(OUTER.astype("f2").astype("f8") @ INNER.astype("f2"))
    assert_allclose(spec.eigenvalues[-20:], expected.eigenvalues[-20:], rtol=1e-11)


def test_what_is_refused():
    with pytest.raises(
        InvalidValueError, match=r"`outer` has shape \(90, 20\) and `inner` \(19, 60"
    ):
        product_spectrum(OUTER, INNER[1:])
    with pytest.raises(InvalidValueError, match="`inner` has nan or infinite entries"):
        product_spectrum(OUTER, np.full((20, 60), np.nan))
    with pytest.raises(InvalidTypeError, match="`outer` is complex"):
        product_spectrum(OUTER + 1j, INNER)
