"""What `analyze` says of a matrix does not depend on how the matrix is held or turned."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mutants import EXAMPLES
from threadpoolctl import threadpool_limits

import rmtspec
from rmtspec.errors import RmtspecError

DTYPES = {"f2": np.float16, "bf16": ml_dtypes.bfloat16, "f4": np.float32, "f8": np.float64}
#: What rounding to float64 leaves, relative to the largest eigenvalue.
CLOSE = 1e-11


#: Columns whose unit is that of a squared entry.
SQUARES = (
    "variance", "lower_edge", "bulk_edge", "threshold", "largest_eigenvalue", "noise_variance",
    "noise_variance_low", "noise_variance_high", "lower_threshold", "rounding_variance",
    "rounding_edge",
)  # fmt: skip


def heavy(rng, n, p):
    return rng.standard_t(2.5, (n, p))


def profile(rng, n, p):
    return rng.standard_normal((n, p)) * rng.gamma(2.0, 1.0, (n, 1)) * rng.gamma(2.0, 1.0, p)


def spiked(rng, n, p):
    columns = rng.standard_normal((3, p)) * 4.0
    return rng.standard_normal((n, p)) + rng.standard_normal((n, 3)) @ columns


def low_rank(rng, n, p):
    return rng.standard_normal((n, 3)) @ rng.standard_normal((3, p))


def padded(rng, n, p):
    W = rng.standard_normal((n, p))
    W[rng.random(n) < 0.3] = 0.0
    W[:, rng.random(p) < 0.2] = 0.0
    return W


def repeated(rng, n, p):
    return rng.standard_normal((n, p))[rng.integers(0, n, n)]


def whole(rng, n, p):
    return rng.integers(-3, 4, (n, p)).astype(float)


def constant(rng, n, p):
    return np.full((n, p), rng.standard_normal())


STRUCTURES = [np.random.Generator.standard_normal, heavy, profile, spiked, low_rank, padded,
              repeated, whole, constant]  # fmt: skip


@st.composite
def matrices(draw, dtypes=tuple(DTYPES)):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, p = draw(st.integers(2, 70)), draw(st.integers(2, 70))
    make = draw(st.sampled_from(STRUCTURES))
    W = rng.standard_normal((n, p)) if make is STRUCTURES[0] else make(rng, n, p)
    return W.astype(DTYPES[draw(st.sampled_from(dtypes))])


def trials(*strategies):
    """Run a test on examples, as many as the other tests here."""

    def decorate(test):
        mine = settings(
            max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None,
            deadline=None,
        )  # fmt: skip
        return mine(given(*strategies)(test))

    return decorate


def outcome(W, **options):
    """The row of a report, or the class of the error; nothing else may come out."""
    try:
        row = rmtspec.analyze(W, **options).to_dict()
    except RmtspecError as error:
        return type(error)
    del row["seconds"]
    return row


def same(one, other, *, scale=1.0, close=CLOSE):
    """Hold two outcomes against each other: counts equal, numbers close, variances scaled."""
    if isinstance(one, type) or isinstance(other, type):
        assert one == other
        return
    assert one.keys() == other.keys()
    for key, value in one.items():
        expected = other[key]
        if key in ("rows", "columns", "verdict_reason"):  # the last has numbers, to three digits
            continue
        if isinstance(value, float) and isinstance(expected, float):
            value = value * scale**2 if key in SQUARES else value
            assert value == pytest.approx(expected, rel=1e-6, abs=close), key
        else:
            assert value == expected, key


@trials(matrices())
def test_nothing_but_rows_and_errors_of_ours(W):
    for noise in ("mp", "auto"):
        outcome(W, noise=noise)


@trials(matrices())
def test_the_same_again_and_on_more_threads(W):
    first = outcome(W, noise="auto")
    assert repr(outcome(W, noise="auto")) == repr(first)
    with threadpool_limits(2):
        same(outcome(W, noise="auto"), first)


@trials(matrices())
def test_transposition(W):
    same(outcome(np.ascontiguousarray(W.T), noise="mp"), outcome(W, noise="mp"))


@trials(matrices(), st.integers(0, 2**32))
def test_permutations_and_signs(W, seed):
    rng = np.random.default_rng(seed)
    signs = [rng.choice([-1.0, 1.0], side).astype(W.dtype) for side in W.shape]
    turned = (signs[0][:, None] * W * signs[1])[rng.permutation(W.shape[0])]
    turned = turned[:, rng.permutation(W.shape[1])]
    same(outcome(turned, noise="mp"), outcome(W, noise="mp"))


@trials(matrices(("f4", "f8")), st.integers(-30, 30))
def test_powers_of_two(W, exponent):
    scaled = W * W.dtype.type(2.0**exponent)
    assume(np.array_equal(scaled / W.dtype.type(2.0**exponent), W))
    same(outcome(W, noise="mp"), outcome(scaled, noise="mp"), scale=2.0**exponent)


@trials(matrices(("f2", "bf16", "f4")))
def test_wider_dtypes(W):
    """The same numbers; what the dtype tells of rounding aside."""
    narrow, wide = (rmtspec.spectrum(array).eigenvalues for array in (W, W.astype(np.float64)))
    np.testing.assert_allclose(narrow, wide, rtol=0, atol=CLOSE * max(wide.max(), 1e-300))


@trials(matrices(("f4", "f8")), st.booleans())
def test_strides(W, backwards):
    """A view with gaps, or backwards, is the matrix that it shows."""
    held = np.zeros((2 * W.shape[0], 3 * W.shape[1]), W.dtype)
    view = held[::2, ::3]
    view[:] = W
    if backwards:
        held = np.ascontiguousarray(W[::-1, ::-1])
        view = held[::-1, ::-1]
    assert repr(outcome(view, noise="mp")) == repr(outcome(W, noise="mp"))
