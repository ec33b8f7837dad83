"""The bulk of columns with gamma-distributed variances: equation, both tails, simulation."""

import itertools
import math
import pickle

import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import quad
from scipy.stats import gamma

from rmtspec import GammaMarchenkoPastur, MarchenkoPastur
from rmtspec.errors import InvalidTypeError, InvalidValueError

CASES = [(0.3, 1.0), (0.784, 2.0), (1.0, 5.0), (2.5, 1.5)]
WIDE = [
    (ratio, shape)
    for ratio in (1e-6, 1e-3, 0.3, 1.0, 1.0 + 1e-9, 2.0, 1e3)
    for shape in (0.2, 1.0, 5.0, 1e4)
]


@pytest.mark.kernels
@pytest.mark.parametrize(("ratio", "shape"), CASES)
def test_density_against_the_slow_reference(ratio, shape):
    law = GammaMarchenkoPastur(ratio, shape)
    x = law.ppf(law.atom + (1.0 - law.atom) * np.array([0.2, 0.9]))
    expected = [naive.gamma_bulk_pdf(value, ratio, shape) for value in x]
    assert_allclose(law.pdf(x), expected, rtol=3e-5)  # the reference sums over 20000 variances


@pytest.mark.kernels
@pytest.mark.parametrize(("ratio", "shape"), CASES)
def test_distribution_is_the_integral_of_the_density(ratio, shape):
    """The cdf comes from the potential, without any integral of the density."""
    law = GammaMarchenkoPastur(ratio, shape)
    x = law.ppf(law.atom + (1.0 - law.atom) * np.array([0.05, 0.4, 0.97]))
    for low, high in itertools.pairwise(x):
        assert law.cdf(high) - law.cdf(low) == pytest.approx(
            quad(law.pdf, low, high, epsrel=1e-10)[0], abs=1e-9
        )


@pytest.mark.parametrize(("ratio", "shape"), WIDE)
def test_quantiles_invert_and_moments_agree(ratio, shape):
    law = GammaMarchenkoPastur(ratio, shape)
    p = law.atom + (1.0 - law.atom) * np.array([1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1.0 - 1e-6])
    assert_allclose(law.cdf(law.ppf(p)), p, atol=1e-11)
    assert_allclose(law.sf(law.isf(1.0 - p)), 1.0 - p, atol=1e-11)
    assert (np.diff(law.ppf(p)) > 0.0).all()
    # E[x] is the integral of the sf: on a fine grid of each decade down to 1e-12
    x = np.geomspace(1e-12, law.isf(1e-9), 3_000)
    mean = x[0] * law.sf(x[0]) + np.trapezoid(law.sf(x), x)
    assert mean == pytest.approx(1.0, abs=2e-4)


def test_moments_against_quadrature():
    law = GammaMarchenkoPastur(0.6, 2.0, 1.5)
    x = np.linspace(1e-9, law.isf(1e-9), 20_001)
    for k in (1, 2, 3, 4):
        assert law.moment(k) == pytest.approx(np.trapezoid(x**k * law.pdf(x), x), rel=1e-4)
    assert law.moment(2) - law.moment(1) ** 2 == pytest.approx(law.var())
    assert law.moment(0) == 1.0
    # for equal variances they are the Narayana sums
    flat = GammaMarchenkoPastur(0.6, 1e4)
    assert flat.moment(5) == pytest.approx(MarchenkoPastur(0.6).moment(5), rel=2e-3)


@pytest.mark.parametrize(("ratio", "shape"), [(0.5, 2.0), (0.784, 3.0)])
def test_quantiles_within_one_percent_of_simulation(ratio, shape):
    """Three matrices of 600 rows with their variances at the midpoints of the gamma law: .6 %."""
    p = int(600 * ratio)
    scales = np.sqrt(gamma.ppf((np.arange(p) + 0.5) / p, shape) / shape)
    rng = np.random.default_rng(0)
    draws = [rng.standard_normal((600, p)) * scales for _ in range(3)]
    values = np.concatenate([np.linalg.eigvalsh(W.T @ W / 600) for W in draws])
    levels = np.array([0.25, 0.5, 0.75, 0.9])  # the lowest converge slowly
    law = GammaMarchenkoPastur(ratio, shape)
    assert_allclose(np.quantile(values, levels, method="hazen"), law.ppf(levels), rtol=0.01)


def test_equal_variances_give_marchenko_and_pastur():
    p = np.linspace(0.05, 0.95, 19)
    assert_allclose(
        GammaMarchenkoPastur(0.5, 1e4, 3.0).ppf(p), MarchenkoPastur(0.5, 3.0).ppf(p), rtol=5e-4
    )


def test_transposed_matrix_has_the_same_eigenvalues():
    """For ratio 1 / c the law describes W W^T; with variance given to the other side it differs."""
    tall, wide = GammaMarchenkoPastur(0.5, 1e4), GammaMarchenkoPastur(2.0, 1e4)
    p = np.linspace(0.1, 0.9, 9)
    assert_allclose(wide.ppf(0.5 + 0.5 * p), 2.0 * tall.ppf(p), rtol=1e-3)


def test_variance_is_a_scale():
    unit, law = GammaMarchenkoPastur(0.3, 2.0), GammaMarchenkoPastur(0.3, 2.0, 1e-6)
    x = np.array([0.1, 1.0, 3.0])
    assert_allclose(law.cdf(1e-6 * x), unit.cdf(x), rtol=1e-12)
    assert_allclose(law.pdf(1e-6 * x) * 1e-6, unit.pdf(x), rtol=1e-12)
    assert_allclose(law.isf(0.1), 1e-6 * unit.isf(0.1), rtol=1e-12)


def test_values_at_and_beyond_the_ends():
    law = GammaMarchenkoPastur(2.0, 1.0)
    x = np.array([-1.0, 0.0, math.inf, math.nan])
    assert_array_equal(law.cdf(x), [0.0, 0.5, 1.0, math.nan])
    assert_array_equal(law.pdf(x), [0.0, 0.0, 0.0, math.nan])
    assert_array_equal(law.ppf([0.0, 0.5, 1.0, 1.1]), [0.0, 0.0, math.inf, math.nan])
    assert law.logsf(math.inf) == -math.inf
    assert law.pdf(0.01) < 1e-6  # in the gap above the atom
    assert law.support() == (0.0, math.inf)


def test_equality_pickle_and_words():
    law = GammaMarchenkoPastur(0.3, 2.0)
    assert law == pickle.loads(pickle.dumps(law)) == GammaMarchenkoPastur(0.3, 2.0, 1.0)
    assert hash(law) == hash(GammaMarchenkoPastur(0.3, 2.0))
    assert law != GammaMarchenkoPastur(0.3, 2.1)
    assert law != MarchenkoPastur(0.3)
    assert eval(repr(law)) == law
    assert (law.ratio, law.shape, law.variance, law.atom) == (0.3, 2.0, 1.0, 0.0)


@pytest.mark.parametrize("bad", [(0.5, 0.1), (0.5, 2e4), (1e-7, 1.0), (0.5, 1.0, 0.0)])
def test_parameters_outside_their_range(bad):
    with pytest.raises(InvalidValueError, match="expected a number in"):
        GammaMarchenkoPastur(*bad)
    with pytest.raises(InvalidTypeError, match="shape"):
        GammaMarchenkoPastur(0.5, "one")
