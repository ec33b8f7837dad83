import copy
import json
import math
import pickle
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import quad
from scipy.stats import kstest

from rmtspec import MarchenkoPastur
from rmtspec._kernels import marchenko_pastur as kernels
from rmtspec.errors import InvalidTypeError, InvalidValueError, RmtspecError

TABLE = json.loads((Path(__file__).parents[1] / "reference" / "marchenko_pastur.json").read_text())
POINTS = np.array(TABLE["points"]["rows"], dtype=float)
QUANTILES = np.array(TABLE["quantiles"]["rows"], dtype=float)
RATIOS = sorted(set(POINTS[:, 0]))
FEW = [1e-6, 0.1, 0.784, 1.0, 1 + 1e-9, 3.0, 1e6]
EPS = np.finfo(float).eps

ratios = st.floats(-5.9, 5.9).map(lambda e: 10.0**e) | st.sampled_from(RATIOS)
shares = st.floats(1e-12, 0.5)
deterministic = settings(derandomize=True, max_examples=60, deadline=None)


def of_ratio(table, ratio):
    return table[table[:, 0] == ratio]


def test_reference_is_as_wide_as_claimed():
    assert len(POINTS) >= 300
    assert {1e-6, 1 - 1e-9, 1.0, 1 + 1e-9, 1e6} <= set(RATIOS)


@pytest.mark.kernels
@pytest.mark.parametrize("ratio", RATIOS)
def test_both_tails_against_quadrature_in_40_digits(ratio):
    _, x, cdf, sf, _ = of_ratio(POINTS, ratio).T
    law = MarchenkoPastur(ratio)
    assert_allclose(law.cdf(x), cdf, rtol=0, atol=1e-14)
    assert_allclose(law.sf(x), sf, rtol=0, atol=1e-14)
    # Relative in the tails too: measured 3e-15, with edges in double-double.
    assert_allclose(law.cdf(x), cdf, rtol=1e-12)
    assert_allclose(law.sf(x), sf, rtol=1e-12)
    assert_allclose(law.logcdf(x), np.log(cdf), rtol=1e-12, atol=1e-12)
    assert_allclose(law.logsf(x), np.log(sf), rtol=1e-12, atol=1e-12)


@pytest.mark.kernels
@pytest.mark.parametrize("ratio", RATIOS)
def test_density_against_40_digits(ratio):
    _, x, _, _, pdf = of_ratio(POINTS, ratio).T
    law = MarchenkoPastur(ratio)
    assert_allclose(law.pdf(x), pdf, rtol=1e-13)
    assert_allclose(law.logpdf(x), np.log(pdf), rtol=1e-13, atol=1e-13)


@pytest.mark.kernels
@pytest.mark.parametrize("ratio", RATIOS)
def test_quantiles_against_40_digits(ratio):
    rows = of_ratio(QUANTILES, ratio)
    law = MarchenkoPastur(ratio)
    for upper, function in ((0.0, law.ppf), (1.0, law.isf)):
        _, share, _, x = rows[rows[:, 2] == upper].T
        assert_allclose(function(share), x, rtol=1e-13)
        assert_allclose([function(s) for s in share], x, rtol=1e-13)


@pytest.mark.kernels
@pytest.mark.parametrize("ratio", FEW)
def test_many_quantiles_agree_with_single_ones(ratio):
    """Runs of a sorted array, a table for an unsorted one and the solver answer alike."""
    law = MarchenkoPastur(ratio)
    p = np.random.default_rng(3).random(600)
    p[:8] = [0.0, 1.0, 0.5, np.nan, -0.1, 1.1, 1e-300, 1 - 2**-53]
    # Both ends of the widest cells, where their polynomials are worst.
    p[8:24] = np.outer(2.0 ** -np.arange(2, 10), [1.0, np.nextafter(1.125, 0)]).ravel()
    tail = p * min(1.0, 1.0 / ratio)
    for function, values in ((law.ppf, p), (law.isf, tail), (law.ppf, 1 - tail)):
        single = np.array([function(v) for v in values])
        # Fourteen ulps at most were seen, at ratio 1, where x goes like the square of u.
        assert_allclose(function(values), single, rtol=6e-15)
        order = np.argsort(values[~np.isnan(values)])
        known = values[~np.isnan(values)][order]
        assert_allclose(function(known), single[~np.isnan(values)][order], rtol=6e-15)


@pytest.mark.kernels
@pytest.mark.parametrize("ratio", FEW)
def test_midpoint_grid_is_ascending_and_round_trips(ratio):
    law = MarchenkoPastur(ratio)
    size = 1000
    grid = (np.arange(size) + 0.5) / size
    x = law.ppf(grid)
    assert np.all(np.diff(x) >= 0)
    inside = grid > law.atom
    # x is rounded: the cdf moves by pdf(x) times that.
    slack = 4e-15 + 2 * EPS * x * law.pdf(x)
    assert np.all(np.abs(law.cdf(x) - grid)[inside] <= slack[inside])


@pytest.mark.kernels
@pytest.mark.parametrize("ratio", FEW)
def test_round_trip_in_both_tails(ratio):
    law = MarchenkoPastur(ratio)
    tail = np.logspace(-14, -1, 40) * (1.0 - law.atom)
    x = law.isf(tail)
    # Relative, but for the rounding of x, which the sf feels as pdf(x) eps x.
    assert np.all(np.abs(law.sf(x) - tail) <= 1e-12 * tail + EPS * x * law.pdf(x))
    x = law.ppf(law.atom + tail)
    reached = law.cdf(x) - law.atom - ((law.atom + tail) - law.atom)
    assert np.all(np.abs(reached) <= 1e-12 * tail + EPS * x * law.pdf(x) + 2 * EPS * law.atom)


@pytest.mark.parametrize("ratio", [0.1, 0.784, 1.0, 3.0])
def test_against_the_naive_loops(ratio):
    law = MarchenkoPastur(ratio, 1.7)
    x = np.linspace(law.lower_edge, law.bulk_edge, 9)[1:-1]
    assert_allclose(law.pdf(x), [naive.mp_pdf(v, ratio, 1.7) for v in x], rtol=1e-12)
    assert_allclose(law.cdf(x), [naive.mp_cdf(v, ratio, 1.7) for v in x], rtol=1e-7)
    p = np.array([0.1, 0.5, 0.9])
    assert_allclose(law.ppf(p), [naive.mp_ppf(v, ratio, 1.7) for v in p], rtol=1e-7)


@pytest.mark.parametrize("ratio", [0.01, 0.5, 1.0, 4.0])
def test_pdf_integrates_to_one_less_the_atom(ratio):
    law = MarchenkoPastur(ratio, 0.3)
    a, b = law.lower_edge, law.bulk_edge

    def integrand(t):
        return law.pdf(a + (b - a) * math.sin(t) ** 2) * (b - a) * math.sin(2 * t)

    total, _ = quad(integrand, 0, math.pi / 2, epsabs=1e-12)
    assert total == pytest.approx(1 - law.atom, abs=1e-11)


@pytest.mark.kernels
@pytest.mark.parametrize("ratio", [0.01, 0.5, 1.0, 4.0])
def test_density_is_the_derivative_of_both_tails(ratio):
    law = MarchenkoPastur(ratio, 0.3)
    width = law.bulk_edge - law.lower_edge
    x, h = law.lower_edge + width * np.linspace(0.1, 0.9, 41), width * 1e-3

    def derivative(function):
        inner = 8 * (function(x + h) - function(x - h))
        return (inner - function(x + 2 * h) + function(x - 2 * h)) / (12 * h)

    # Five-point rule: its error is of the order (h / distance from the edge)^4 = 1e-8.
    assert_allclose(derivative(law.cdf), law.pdf(x), rtol=1e-7)
    assert_allclose(-derivative(law.sf), law.pdf(x), rtol=1e-7)
    assert_allclose(derivative(law.logcdf), np.exp(law.logpdf(x) - law.logcdf(x)), rtol=1e-7)
    assert_allclose(-derivative(law.logsf), np.exp(law.logpdf(x) - law.logsf(x)), rtol=1e-7)


@pytest.mark.kernels
@pytest.mark.parametrize("ratio", [1 / 16, 16.0])
def test_constants_by_name(ratio):
    law = kernels.constants(ratio, 3.0)
    assert law._asdict() == {
        "ratio": ratio,
        "weight": min(1.0, 1.0 / ratio),
        "r": 0.25,
        "gap": 0.75,
        "width": law.top - law.lower,
        "lower": 3.0 * (1 - ratio**0.5) ** 2,
        "lower_low": 0.0,
        "top": 3.0 * (1 + ratio**0.5) ** 2,
        "top_low": 0.0,
    }


@pytest.mark.kernels
@deterministic
@given(ratio=ratios, share=shares, variance=st.floats(1e-3, 1e3))
def test_scaling_by_the_variance(ratio, share, variance):
    unit, law = MarchenkoPastur(ratio), MarchenkoPastur(ratio, variance)
    share *= 1 - law.atom
    x = law.isf(share)
    assert_allclose(x, variance * unit.isf(share), rtol=1e-14)
    assert_allclose(law.ppf(1 - share), variance * unit.ppf(1 - share), rtol=1e-14)
    assert law.bulk_edge == pytest.approx(variance * unit.bulk_edge, rel=1e-15)


@pytest.mark.kernels
@deterministic
@given(ratio=ratios, share=shares)
def test_cdf_of_ppf_is_p(ratio, share):
    law = MarchenkoPastur(ratio)
    for p in (share, 1 - share):
        if p > law.atom:
            x = law.ppf(p)
            assert abs(law.cdf(x) - p) <= 1e-14 + EPS * x * law.pdf(x)
    tail = share * (1 - law.atom)
    x = law.isf(tail)
    assert abs(law.sf(x) - tail) <= 1e-12 * tail + EPS * x * law.pdf(x)


@pytest.mark.kernels
@deterministic
@given(exponent=st.floats(0, 5.9), share=shares)
def test_transpose_has_the_same_positive_eigenvalues(exponent, share):
    """X^T X / n and X X^T / n share their positive eigenvalues: ratio c, and 1 / c scaled by c."""
    wide = 10.0**exponent
    tall = MarchenkoPastur(1 / wide, wide)
    law = MarchenkoPastur(wide)
    # 1 / c is rounded, which moves the edges by eps bulk_edge; so is 1 - share, felt as eps / pdf.
    for part in (share, 1 - share):
        x = law.isf(part / wide)
        slack = 4 * EPS * (law.bulk_edge + part / wide / law.pdf(x))
        assert_allclose(x, tall.isf(part), rtol=1e-13, atol=slack)


@pytest.mark.kernels
def test_conventions_at_and_beyond_the_ends():
    law = MarchenkoPastur(0.25)
    x = np.array([-np.inf, -1.0, 0.0, 0.25, 2.25, 3.0, np.inf, np.nan])
    assert_array_equal(law.cdf(x), [0, 0, 0, 0, 1, 1, 1, np.nan])
    assert_array_equal(law.sf(x), [1, 1, 1, 1, 0, 0, 0, np.nan])
    assert_array_equal(law.pdf(x), [0, 0, 0, 0, 0, 0, 0, np.nan])
    assert_array_equal(law.logpdf(x), [-np.inf] * 7 + [np.nan])
    assert_array_equal(law.logcdf(x), [-np.inf] * 4 + [0] * 3 + [np.nan])
    assert_array_equal(law.logsf(x), [0] * 4 + [-np.inf] * 3 + [np.nan])
    p = np.array([0.0, 1.0, -1e-9, 1 + 1e-9, np.nan])
    assert_array_equal(law.ppf(p), [0.25, 2.25, np.nan, np.nan, np.nan])
    assert_array_equal(law.isf(p), [2.25, 0.25, np.nan, np.nan, np.nan])
    assert (law.ppf(-0.0), law.isf(-0.0)) == (0.25, 2.25)
    assert law.support() == (0.25, 2.25)
    assert law.atom == 0.0


@pytest.mark.kernels
def test_conventions_with_an_atom():
    law = MarchenkoPastur(4.0)
    assert law.atom == 0.75
    assert law.support() == (0.0, 9.0)
    assert (law.lower_edge, law.bulk_edge) == (1.0, 9.0)
    assert_array_equal(law.cdf([-1e-300, 0.0, 0.5, 1.0, 9.0]), [0, 0.75, 0.75, 0.75, 1])
    assert_array_equal(law.sf([-1e-300, 0.0, 0.5, 1.0, 9.0]), [1, 0.25, 0.25, 0.25, 0])
    assert_array_equal(law.ppf([0.0, 0.5, 0.75, 1.0]), [0, 0, 0, 9])
    # 0 is the least x with sf(x) <= 1/4: the sf is flat up to the bulk.
    assert_array_equal(law.isf([1.0, 0.5, 0.25, 0.0]), [0, 0, 0, 9])
    assert law.isf(0.25 - 1e-15) == pytest.approx(1.0)
    assert law.ppf(0.75 + 1e-15) == pytest.approx(1.0)
    assert (law.ppf(-0.0), law.isf(-0.0)) == (0.0, 9.0)
    assert law.pdf(0.0) == 0.0
    assert law.median() == 0.0


@pytest.mark.kernels
def test_ratio_one_reaches_zero():
    law = MarchenkoPastur(1.0)
    assert law.pdf(0.0) == math.inf
    assert law.logpdf(0.0) == math.inf
    assert law.support() == (0.0, 4.0)
    # Near 0 the cdf is 2 sqrt(x) / pi.
    x = np.array([1e-300, 1e-100, 1e-20])
    assert_allclose(law.cdf(x), 2 * np.sqrt(x) / math.pi, rtol=1e-14)
    assert_allclose(law.ppf([1e-100, 1e-10]), [2.4674011002723395e-200, 2.4674011002723395e-20])


@pytest.mark.kernels
def test_shapes_and_types():
    law = MarchenkoPastur(0.5)
    for function in (law.pdf, law.cdf, law.sf, law.logcdf, law.logsf, law.logpdf, law.ppf, law.isf):
        assert isinstance(function(0.3), float)
        assert isinstance(function(np.float32(0.25)), float)
        assert function([]).shape == (0,)
        block = np.linspace(0.1, 0.9, 24).reshape(2, 3, 4)
        assert function(block).shape == (2, 3, 4)
        assert_allclose(function(block.T), function(block).T, rtol=1e-15)
        assert_array_equal(function(block[:, ::-2, 1]), function(block[:, ::-2, 1].copy()))
        block.flags.writeable = False
        kept = block.copy()
        assert_allclose(function(block.ravel()), function(kept.ravel()), rtol=0)
        assert_array_equal(block, kept)
        assert function([0, 1]).dtype == np.float64
        with pytest.raises(InvalidTypeError):
            function(1j)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 2.5])
def test_moments(ratio):
    law = MarchenkoPastur(ratio, 1.5)
    assert law.moment(0) == 1.0
    assert law.moment(1) == law.mean() == 1.5
    assert law.moment(2) == pytest.approx(law.var() + law.mean() ** 2, rel=1e-15)
    assert law.std() ** 2 == pytest.approx(law.var(), rel=1e-15)
    a, b = law.lower_edge, law.bulk_edge

    def integrand(t, k):
        x = a + (b - a) * math.sin(t) ** 2
        return x**k * law.pdf(x) * (b - a) * math.sin(2 * t)

    for k in (3, 5, 8):
        integral, _ = quad(integrand, 0, math.pi / 2, args=(k,), epsabs=0, epsrel=1e-12)
        assert law.moment(k) == pytest.approx(integral, rel=1e-11)


def test_moments_of_ratio_one_are_catalan_numbers():
    law = MarchenkoPastur(1.0)
    for k in (1, 2, 10, 30):
        assert law.moment(k) == math.comb(2 * k, k) // (k + 1)
    assert law.moment(1000) == math.inf
    with pytest.raises(InvalidTypeError, match=r"`k` is 1\.5"):
        law.moment(1.5)
    with pytest.raises(InvalidValueError, match="`k` is -1"):
        law.moment(-1)


def test_interval_has_equal_tails():
    law = MarchenkoPastur(0.5)
    low, high = law.interval(0.9)
    assert law.cdf(low) == pytest.approx(0.05, rel=1e-13)
    assert law.sf(high) == pytest.approx(0.05, rel=1e-13)
    assert law.interval(1.0) == law.support()
    assert law.median() == law.ppf(0.5)
    drawn = law.rvs(10_000, rng=11)
    # 3.3 standard errors, false-alarm rate 1e-3, seed fixed.
    assert abs(np.mean((low <= drawn) & (drawn <= high)) - 0.9) < 3.3 * 0.003


def test_spread_at_the_ends_of_the_variances():
    law = MarchenkoPastur(0.25, 1e200)
    assert (law.mean(), law.std(), law.var()) == (1e200, 5e199, math.inf)
    law = MarchenkoPastur(0.25, 1e-200)
    assert (law.mean(), law.std(), law.var()) == (1e-200, 5e-201, 0.0)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 4.0])
def test_rvs_follows_the_law(ratio):
    law = MarchenkoPastur(ratio, 2.0)
    drawn = law.rvs(4000, rng=np.random.default_rng(5))
    positive = drawn[drawn > 0]
    # False-alarm rate 1e-3 each, seed fixed.
    assert kstest(positive, lambda x: (law.cdf(x) - law.atom) / (1 - law.atom)).pvalue > 1e-3
    spread = math.sqrt(4000 * law.atom * (1 - law.atom))
    assert abs(np.sum(drawn == 0) - 4000 * law.atom) <= 3.3 * spread
    assert_array_equal(law.rvs((2, 3), rng=7), law.rvs((2, 3), rng=7))
    assert isinstance(law.rvs(rng=1), float)


def test_a_law_is_a_value():
    law = MarchenkoPastur(0.5)
    assert repr(law) == "MarchenkoPastur(ratio=0.5, variance=1.0)"
    assert eval(repr(law)) == law
    assert law == MarchenkoPastur(1 / 2, 1)
    assert hash(law) == hash(MarchenkoPastur(0.5, variance=1.0))
    assert law != MarchenkoPastur(0.5, 2.0)
    assert law != 0.5
    assert pickle.loads(pickle.dumps(law)) == law
    assert copy.deepcopy(law) == law
    for name in ("ratio", "variance", "anything"):
        with pytest.raises(AttributeError):
            setattr(law, name, 2.0)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 9e-7, 1.1e6, math.nan, math.inf])
def test_refused_ratio_teaches(ratio):
    with pytest.raises(InvalidValueError, match=r"`ratio` is .*expected .* Pass "):
        MarchenkoPastur(ratio)


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf, 1e-320, 1e305])
def test_refused_variance_teaches(variance):
    with pytest.raises(InvalidValueError, match=r"`variance` is .*expected "):
        MarchenkoPastur(0.5, variance)


def test_wrong_types_are_refused():
    for bad in ("0.5", True, None, [1, 2]):
        with pytest.raises(InvalidTypeError, match="`ratio` is"):
            MarchenkoPastur(bad)
    with pytest.raises(RmtspecError):
        MarchenkoPastur(0.5).interval(1.5)
