"""Tracy-Widom laws against Painleve II values of 230 digits, literature, and mathematics."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import quad
from scipy.special import airy
from scipy.stats import kstest

import rmtspec
from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.laws._tracy_widom_series import CENTRE, EDGES
from rmtspec.laws.tracy_widom import TracyWidom

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "tracy_widom.json").read_text())
BETAS = (1, 2, 4)

# Rounding x by eps moves log F by eps |x| |log F|', which for F = 1e-300 is 2e-13 times F.
TAIL = 1e-12
TINY = 1e-300

every_beta = pytest.mark.parametrize("beta", BETAS)


def derivative(function, x, h):
    """Five-point rule; its error is h^4 / 30 times the fifth derivative, and rounding / h."""
    inner = 8 * (function(x + h) - function(x - h))
    outer = function(x + 2 * h) - function(x - 2 * h)
    return (inner - outer) / (12 * h)


def column(beta, name):
    return np.array([row[name] for row in REFERENCE["values"][str(beta)]])


def quantile_columns(beta, *, upper):
    rows = [row for row in REFERENCE["quantiles"][str(beta)] if row["upper"] is upper]
    return np.array([row["p"] for row in rows]), np.array([row["x"] for row in rows])


@every_beta
@pytest.mark.parametrize("name", ["cdf", "sf", "pdf"])
def test_values_match_painleve(beta, name):
    x, expected = column(beta, "x"), column(beta, name)
    found = getattr(TracyWidom(beta), name)(x)
    assert_allclose(found, expected, rtol=0, atol=2e-15)
    # relative, both tails: the reference goes from x = -28 to 38
    normal = expected > TINY
    assert normal.sum() > 70
    assert_allclose(found[normal], expected[normal], rtol=TAIL)
    assert (found[expected == 0] == 0).all()


@every_beta
@pytest.mark.parametrize("name", ["logcdf", "logsf"])
def test_logs_match_painleve(beta, name):
    x, expected = column(beta, "x"), column(beta, name)
    found = getattr(TracyWidom(beta), name)(x)
    large = np.abs(expected) > 0.1  # from x = -28, beyond the table
    assert_allclose(found[large], expected[large], rtol=1e-13)
    # near 0 the log is minus the other tail
    small = ~large & (np.abs(expected) > TINY)
    assert_allclose(found[small], expected[small], rtol=TAIL)


@every_beta
def test_quantiles_match_painleve(beta):
    law = TracyWidom(beta)
    p, x = quantile_columns(beta, upper=False)
    assert p.size == 23
    assert_allclose(law.ppf(p), x, rtol=1e-14, atol=1e-14)
    q, x = quantile_columns(beta, upper=True)
    assert q.size == 6
    assert_allclose(law.isf(q), x, rtol=1e-14, atol=1e-14)


def test_known_values_of_the_real_law():
    law = rmtspec.TracyWidom(beta=1)
    quantiles = [0.450143289058251, 0.979316053469554, 2.023449281380162]
    assert_allclose(law.ppf([0.9, 0.95, 0.99]), quantiles, rtol=0, atol=1e-12)
    assert_allclose(law.cdf(0.0), 0.8319080662029523, rtol=0, atol=1e-12)
    assert law.median() == law.ppf(0.5)


@pytest.mark.parametrize(
    ("beta", "mean", "variance"),
    # Bornemann (2010), table 4
    [
        (1, -1.2065335745820, 1.607781034581),
        (2, -1.7710868074, 0.8131947928329),
        (4, -2.306884893241, 0.5177237207726),
    ],
)
def test_mean_and_variance_match_literature(beta, mean, variance):
    law = TracyWidom(beta)
    assert_allclose(law.mean(), mean, rtol=0, atol=2e-11)
    assert_allclose(law.var(), variance, rtol=0, atol=2e-11)
    assert_allclose(law.std() ** 2, variance, rtol=0, atol=2e-11)


@pytest.mark.parametrize(
    ("beta", "skewness", "excess"),
    # Bornemann (2010), table 4
    [
        (1, 0.29346452408, 0.1652429384),
        (2, 0.224084203610, 0.0934480876),
        (4, 0.16550949435, 0.0491951565),
    ],
)
def test_third_and_fourth_moment_match_literature(beta, skewness, excess):
    law = TracyWidom(beta)
    mean, var = law.mean(), law.var()
    assert (law.moment(0), law.moment(1)) == (1.0, mean)
    second, third, fourth = (law.moment(k) for k in (2, 3, 4))
    assert_allclose(second, var + mean**2, rtol=1e-15)
    central = third - 3 * mean * second + 2 * mean**3
    assert_allclose(central / var**1.5, skewness, rtol=0, atol=1e-11)
    central = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
    assert_allclose(central / var**2 - 3, excess, rtol=0, atol=1e-10)


@every_beta
@pytest.mark.parametrize("k", [2, 3, 5, 8, 21, 100])
def test_moments_are_integrals_of_the_tails(beta, k):
    """By parts, k x^(k-1) against sf over x > 0, less the same against cdf over x < 0."""
    law = TracyWidom(beta)

    def integral(tail, ends):
        return sum(
            quad(lambda x: k * x ** (k - 1) * tail(x), a, b, epsabs=0, epsrel=1e-12)[0]
            for a, b in pairwise(ends)
        )

    right = integral(law.sf, (0, 2, 4, 8, 12, 20, 40, 70))
    left = integral(law.cdf, (-19, -14, -10, -7, -4, -2, 0))
    assert abs(law.moment(k) - (right - left)) < 1e-12 * (right + abs(left))


@every_beta
def test_moments_beyond_the_floats(beta):
    law = TracyWidom(beta)
    # E|x|^k is log-convex in k, so this one is finite and the others are not
    assert 1e200 < law.moment(230) < np.inf
    assert [law.moment(k) for k in (500, 501, 10**400)] == [np.inf] * 3


@every_beta
def test_interval_has_equal_tails(beta):
    law = TracyWidom(beta)
    for level in (0.0, 0.5, 0.95, 1 - 1e-9):
        low, high = law.interval(level)
        tail = (1 - level) / 2
        assert_allclose([law.cdf(low), law.sf(high)], tail, rtol=TAIL)
    assert law.interval(1.0) == law.support()
    drawn = law.rvs(10_000, rng=11)
    low, high = law.interval(0.9)
    # 3.3 standard errors, false-alarm rate 1e-3, seed fixed
    assert abs(np.mean((low <= drawn) & (drawn <= high)) - 0.9) < 3.3 * 0.003


@every_beta
def test_drawn_values_follow_the_law(beta):
    law = TracyWidom(beta)
    # false-alarm rate 1e-3, seed fixed
    assert kstest(law.rvs(5000, rng=3), law.cdf).pvalue > 1e-3
    assert_array_equal(law.rvs((2, 3), rng=7), law.rvs((2, 3), rng=np.random.default_rng(7)))
    assert (law.rvs(5, rng=1) != law.rvs(5, rng=2)).all()
    assert law.rvs((2, 0, 3), rng=7).shape == (2, 0, 3)
    assert isinstance(law.rvs(rng=1), float)


def test_drawn_values_are_finite():
    class Zeros(np.random.Generator):
        def random(self, size=None):
            return np.zeros(size)

    assert np.isfinite(TracyWidom().rvs(3, rng=Zeros(np.random.PCG64(0)))).all()


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda law: law.interval(1.5), InvalidValueError, r"`level` is 1\.5.*\[0, 1\].*0\.95"),
        (lambda law: law.interval("a"), InvalidTypeError, "`level` is 'a'.*real number"),
        (lambda law: law.moment(-1), InvalidValueError, "`k` is -1.*at least 0.*order"),
        (lambda law: law.moment(1.5), InvalidTypeError, r"`k` is 1\.5.*whole number.*order"),
        (lambda law: law.rvs(-1), InvalidValueError, "`size` is -1.*negative.*whole number"),
        (lambda law: law.rvs(1.5), InvalidTypeError, r"`size` is 1\.5.*whole number"),
        (lambda law: law.rvs(rng="a"), InvalidTypeError, "`rng` is 'a'.*seed"),
        (lambda law: law.rvs(rng=-1), InvalidValueError, "`rng` is -1.*seed"),
        (lambda law: law.logpdf(1j), InvalidTypeError, "`x` has dtype complex.*real numbers"),
        (lambda law: law.isf("a"), InvalidTypeError, "`q` is 'a'; expected real numbers"),
    ],
)
@pytest.mark.parametrize("law", [TracyWidom(), rmtspec.MarchenkoPastur(0.5)])
def test_refused_arguments_teach(law, call, kind, message):
    with pytest.raises(kind, match=message):
        call(law)


@every_beta
def test_density_integrates_to_one_and_to_the_moments(beta):
    law = TracyWidom(beta)

    def integral(f):
        parts = [(-12, -4), (-4, -1), (-1, 2), (2, 16)]
        return sum(quad(f, a, b, epsabs=1e-13, epsrel=1e-13)[0] for a, b in parts)

    assert_allclose(integral(law.pdf), 1, rtol=0, atol=1e-12)
    assert_allclose(integral(lambda x: x * law.pdf(x)), law.mean(), rtol=0, atol=1e-12)
    second = integral(lambda x: (x - law.mean()) ** 2 * law.pdf(x))
    assert_allclose(second, law.var(), rtol=0, atol=1e-12)


@every_beta
def test_density_is_the_derivative(beta):
    law = TracyWidom(beta)
    x = np.linspace(-6, 5, 111)
    # the fifth derivative is below 6
    assert_allclose(derivative(law.cdf, x, 2e-3), law.pdf(x), rtol=0, atol=2e-11)


@every_beta
def test_log_density_matches_painleve(beta):
    x, pdf = column(beta, "x"), column(beta, "pdf")
    normal = pdf > TINY
    expected = np.log(pdf[normal])
    # TAIL of the density is as much of its log; that of numbers near 1 is near 0
    assert_allclose(TracyWidom(beta).logpdf(x[normal]), expected, rtol=1e-14, atol=TAIL)


@every_beta
@pytest.mark.parametrize("name", ["logcdf", "logsf"])
def test_log_density_is_the_log_of_the_derivative(beta, name):
    """(log F)' = f / F and -(log(1 - F))' = f / (1 - F), also where f, F or 1 - F underflow."""
    law = TracyWidom(beta)
    x = {
        "logcdf": np.array([-400.0, -60.0, -30.0, -20.5, -15.0, -8.0, -3.0, -1.9, 0.0, 1.0]),
        "logsf": np.array([-3.0, -1.0, 0.0, 2.5, 8.0, 25.0, 60.0, 90.0, 120.0, 1000.0]),
    }[name]
    log_tail = getattr(law, name)
    h = 2e-3 * np.maximum(np.abs(x), 1)
    slope = np.abs(derivative(log_tail, x, h))
    # rounding of the log, eps |log|, over h times the slope, and of both logs in the difference
    slack = 1e-15 * np.abs(log_tail(x)) * (1 + 1 / (h * slope)) + 2e-9
    found = law.logpdf(x) - log_tail(x)
    assert (np.abs(found - np.log(slope)) < slack).all()


@every_beta
def test_logs_are_those_of_the_plain_values(beta):
    law = TracyWidom(beta)
    x = np.linspace(-9, 30, 400)
    for log, plain in ((law.logpdf, law.pdf), (law.logcdf, law.cdf), (law.logsf, law.sf)):
        assert_allclose(np.exp(log(x)), plain(x), rtol=TAIL)
    assert_allclose(np.exp(law.logcdf(x)) + np.exp(law.logsf(x)), 1, rtol=1e-15)


@every_beta
def test_round_trips(beta):
    law = TracyWidom(beta)
    p = np.concatenate([np.logspace(-300, -1, 200), np.linspace(0.1, 0.999, 300)])
    assert_allclose(law.cdf(law.ppf(p)), p, rtol=TAIL)
    assert_allclose(law.sf(law.isf(p)), p, rtol=TAIL)
    assert_allclose(law.isf(p[p > 0.01]), law.ppf(1 - p[p > 0.01]), rtol=0, atol=1e-13)


@every_beta
def test_pieces_of_the_table_join(beta):
    # a point and its neighbour are read from different series
    law = TracyWidom(beta)
    scale = math.sqrt(2) if beta == 4 else 1.0
    edges = np.array(EDGES) / scale
    for name in ("logcdf", "logsf", "logpdf", "cdf", "sf"):
        method = getattr(law, name)
        below, above = (method(edges + sign * 4e-16 * np.abs(edges)) for sign in (-1, 1))
        # the step itself moves F2(-14) and 1 - F2(40) by 5e-13 of their values
        assert_allclose(below, above, rtol=1e-12)


@every_beta
def test_quantiles_next_to_the_centre(beta):
    # where ppf goes from one side of the table to the other, and Newton must not cross
    law = TracyWidom(beta)
    centre = CENTRE / (math.sqrt(2) if beta == 4 else 1.0)
    steps = np.concatenate([np.arange(200) * 2.0**-53, np.logspace(-13, -2, 100)])
    for p in (law.cdf(centre) - steps, law.cdf(centre) + steps):
        assert_allclose(law.cdf(law.ppf(p)), p, rtol=0, atol=4e-15)
    for q in (law.sf(centre) - steps, law.sf(centre) + steps):
        assert_allclose(law.sf(law.isf(q)), q, rtol=0, atol=4e-15)


@every_beta
def test_monotone(beta):
    law = TracyWidom(beta)
    x = np.linspace(-30, 60, 4001)
    for found in (law.cdf(x), law.logcdf(x), -law.sf(x), -law.logsf(x)):
        assert (np.diff(found) >= -4e-16).all()
    p = np.linspace(0, 1, 2001)
    assert (np.diff(law.ppf(p)[1:-1]) > 0).all()
    assert (law.pdf(x) >= 0).all()


@every_beta
def test_far_right_follows_the_airy_function(beta):
    # first term of the determinant; the next is smaller by exp(-4/3 t^1.5) or exp(-2/3 t^1.5)
    x = np.array([25.0, 60.0, 105.0, 115.0, 1000.0])
    t = x * math.sqrt(2) if beta == 4 else x
    rate = 2 / 3 if beta == 1 else 4 / 3
    power = {1: 0.75, 2: 1.5, 4: 3.0}[beta]
    constant = {1: 4 * math.sqrt(math.pi), 2: 16 * math.pi, 4: 128 * math.pi}[beta]
    leading = -rate * t**1.5 - power * np.log(t) - math.log(constant)
    # next term of the expansion is of relative size 6 t^-1.5 in 1 - F
    assert (np.abs(TracyWidom(beta).logsf(x) - leading) < 6 * t**-1.5).all()


def test_unitary_law_far_right_is_the_airy_trace():
    x = np.linspace(6, 40, 30)
    ai, slope, _, _ = airy(x)
    # K = (2 x^2 Ai^2 - 2 x Ai'^2 - Ai Ai') / 3 cancels to z^2 of its terms
    trace = (2 * x**2 * ai**2 - 2 * x * slope**2 - ai * slope) / 3
    assert_allclose(TracyWidom(2).sf(x), trace, rtol=1e-8)


@every_beta
def test_beyond_the_table(beta):
    law = TracyWidom(beta)
    far = np.array([-np.inf, -1e300, -1e60, -40.0, 120.0, 1e60, 1e300, np.inf])
    left = far < 0
    for name, value in (("cdf", 0), ("pdf", 0), ("sf", 1)):
        assert_array_equal(getattr(law, name)(far[left]), value)
    for name, value in (("cdf", 1), ("pdf", 0), ("sf", 0)):
        assert_array_equal(getattr(law, name)(far[~left]), value)
    assert_array_equal(law.logcdf(far[:2]), -np.inf)
    assert_array_equal(law.logsf(far[-2:]), -np.inf)
    assert_array_equal(law.logpdf(far[[0, 1, -2, -1]]), -np.inf)
    assert np.isfinite(law.logpdf(far[2:-2])).all()
    assert_array_equal(law.logcdf(far[~left]), 0)
    assert_array_equal(law.logsf(far[left]), 0)
    assert not np.signbit(law.logcdf(far[~left])).any()
    assert not np.signbit(law.logsf(far[left])).any()
    assert np.isfinite(law.logcdf(far[2:4])).all()
    assert np.isfinite(law.logsf(far[4:6])).all()
    ends = law.ppf([5e-324, 1 - 2**-53])
    assert np.isfinite(ends).all()
    assert np.isfinite(law.isf([5e-324, 1 - 2**-53])).all()


def test_edges_of_the_quantile():
    law = TracyWidom(1)
    p = np.array([0.0, 1.0, -0.1, 1.1, np.nan, -np.inf, np.inf])
    assert_array_equal(law.ppf(p), [-np.inf, np.inf] + [np.nan] * 5)
    assert_array_equal(law.isf(p), [np.inf, -np.inf] + [np.nan] * 5)
    assert law.support() == (-np.inf, np.inf)


@pytest.mark.parametrize("name", ["pdf", "logpdf", "cdf", "sf", "logcdf", "logsf", "ppf", "isf"])
@every_beta
def test_shapes_and_nan(beta, name):
    method = getattr(TracyWidom(beta), name)
    grid = np.linspace(0.01, 0.99, 12)
    expected = method(grid)
    assert expected.dtype == np.float64
    assert_array_equal(method(grid.reshape(3, 4)), expected.reshape(3, 4))
    assert_array_equal(method(list(grid)), expected)
    assert_array_equal(method(grid[::-1]), expected[::-1])
    single = method(float(grid[5]))
    assert isinstance(single, float)
    assert_allclose(single, expected[5], rtol=1e-15, atol=1e-15)
    assert method([]).shape == (0,)
    assert method(np.zeros((2, 0))).shape == (2, 0)
    assert np.isnan(method(np.nan))
    assert_array_equal(np.isnan(method([np.nan, 0.5])), [True, False])
    assert_allclose(method(np.float32(0.5)), method(0.5), rtol=1e-15)


@pytest.mark.parametrize("beta", [3, 8])
def test_a_beta_without_a_law(beta):
    with pytest.raises(
        rmtspec.RmtspecError, match=rf"`beta` is {beta}; expected 1, 2 or 4"
    ) as error:
        TracyWidom(beta)
    assert isinstance(error.value, ValueError)
    assert "real matrices" in str(error.value)


@pytest.mark.parametrize("beta", [0, -1])
def test_a_beta_below_one(beta):
    with pytest.raises(ValueError, match=r"`beta` is .*Pass 1 for real matrices"):
        TracyWidom(beta)


@pytest.mark.parametrize("beta", ["1", None, 1.0, True])
def test_a_beta_that_is_no_whole_number(beta):
    with pytest.raises(TypeError, match=r"`beta` is .*whole number"):
        TracyWidom(beta)


@pytest.mark.parametrize("bad", ["a", [1j], [None]])
def test_points_that_are_no_numbers(bad):
    with pytest.raises(TypeError, match=r"`x` .*expected real numbers"):
        TracyWidom(1).cdf(bad)
    with pytest.raises(TypeError, match=r"`p` .*expected real numbers"):
        TracyWidom(1).ppf(bad)


def test_law_is_a_value():
    law = TracyWidom(beta=1)
    assert repr(law) == "TracyWidom(beta=1)"
    assert law == TracyWidom() == TracyWidom(np.int64(1))
    assert type(TracyWidom(np.int64(4)).beta) is int
    assert law != TracyWidom(2)
    assert hash(law) == hash(TracyWidom(1))
    with pytest.raises(AttributeError):
        law.beta = 2
