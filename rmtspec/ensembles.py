"""Random matrices with known properties: noise, planted spikes, the paper's Example 3.3."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidValueError

ENTRIES = ("gaussian", "uniform", "rademacher", "student-t")


def wishart(
    rows: int,
    columns: int,
    *,
    variance: float = 1.0,
    entries: str = "gaussian",
    degrees: float = 5.0,
    rng: Any = None,
) -> Float64Array:
    """Return a matrix of independent noise entries with mean 0.

    Parameters
    ----------
    rows, columns : int
        Shape, each at least 1.
    variance : float
        Variance of the entries.
    entries : {"gaussian", "uniform", "rademacher", "student-t"}
        Distribution of the entries. With Student's t of 4 or fewer degrees of freedom, single
        large entries cause spikes; with all others the spectrum follows the Marchenko-Pastur law
        up to its edge.
    degrees : float
        Degrees of freedom of Student's t, above 2 (the variance must be finite).
    rng : None, int, or numpy.random.Generator
        Passed to `numpy.random.default_rng`.

    Returns
    -------
    ndarray of shape (rows, columns)

    Raises
    ------
    InvalidValueError
        A side below 1, a variance that is not positive, an unknown distribution, or too few
        degrees of freedom.

    Examples
    --------
    >>> import rmtspec
    >>> W = rmtspec.ensembles.wishart(2000, 500, entries="uniform", variance=4.0, rng=0)
    >>> round(float(W.var()), 1)
    4.0
    """
    rows = _checks.integer(rows, "rows", 1)
    columns = _checks.integer(columns, "columns", 1)
    scale = math.sqrt(_checks.positive(variance, "variance"))
    _checks.choice(entries, "entries", ENTRIES)
    generator: np.random.Generator = np.random.default_rng(rng)
    shape = (rows, columns)
    if entries == "uniform":
        half = scale * math.sqrt(3.0)
        return generator.uniform(-half, half, shape)
    if entries == "rademacher":
        return np.where(generator.integers(0, 2, shape) == 1, scale, -scale)
    if entries == "student-t":
        degrees = _checks.positive(degrees, "degrees")
        if degrees <= 2.0:
            raise InvalidValueError(
                f"`degrees` is {degrees:g}; expected more than 2. At 2 or below the variance of "
                "Student's t is infinite and no Marchenko-Pastur law exists."
            )
        return generator.standard_t(degrees, shape) * (scale * math.sqrt((degrees - 2.0) / degrees))
    return generator.standard_normal(shape) * scale


def spiked(
    rows: int,
    columns: int,
    strengths: Sequence[float] | ArrayLike,
    *,
    variance: float = 1.0,
    entries: str = "gaussian",
    degrees: float = 5.0,
    rng: Any = None,
) -> Float64Array:
    """Return noise plus a signal of low rank with random orthonormal directions.

    This is the information-plus-noise model of the paper, eq. (7): W = R + S.

    Parameters
    ----------
    rows, columns : int
        Shape.
    strengths : array_like of shape (rank,)
        Singular values of the signal S divided by ``sqrt(n variance)``, where n is the larger
        side. In these units the noise of a square matrix ends at 2, and in the limit of large
        matrices a strength above (p / n)^(1/4) appears beyond the edge.
    variance, entries, degrees, rng
        Options of the noise: see `wishart`.

    Returns
    -------
    ndarray of shape (rows, columns)

    Raises
    ------
    InvalidValueError
        More strengths than the smaller side, negative ones, nan, or any error of `wishart`.

    Examples
    --------
    >>> import rmtspec
    >>> W = rmtspec.ensembles.spiked(400, 300, [3, 20], rng=0)
    >>> spec = rmtspec.spectrum(W)
    >>> (spec.singular_values[-2:] / 400**0.5).round(1)
    array([ 3.3, 20.1])
    """
    generator: np.random.Generator = np.random.default_rng(rng)
    noise = wishart(
        rows, columns, variance=variance, entries=entries, degrees=degrees, rng=generator
    )
    values = _checks.floats(strengths, "strengths")
    smaller = min(noise.shape)
    if values.ndim != 1 or values.size > smaller:
        raise InvalidValueError(
            f"`strengths` has shape {values.shape}; expected at most {smaller} numbers (the "
            "smaller side of the matrix) in one dimension."
        )
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise InvalidValueError(f"`strengths` is {strengths!r}; expected finite numbers >= 0.")
    left = np.linalg.qr(generator.standard_normal((noise.shape[0], values.size)))[0]
    right = np.linalg.qr(generator.standard_normal((noise.shape[1], values.size)))[0]
    singular = values * math.sqrt(max(noise.shape) * variance)
    signal: Float64Array = (left * singular) @ right.T
    return noise + signal


def example_3_3(n: int = 1000, rng: Any = None) -> Float64Array:
    """Return the matrix W = R + S of the paper's Example 3.3.

    R has standard normal entries. S is the deterministic matrix of eq. (8),
    ``S[i, j] = tan(pi / 2 + 1 / (j + 1)) + cos(i) log(i + j + 1) + sin(j) cos(i / j)``, with
    indices from 1 (j = 0 would divide by zero). The largest eigenvalue of W is about 1e8 times
    that of the noise.

    Parameters
    ----------
    n : int
        Side of the square matrix, at least 1.
    rng : None, int, or numpy.random.Generator
        Passed to `numpy.random.default_rng`.

    Returns
    -------
    ndarray of shape (n, n)

    Examples
    --------
    >>> import rmtspec
    >>> spec = rmtspec.spectrum(rmtspec.ensembles.example_3_3(1000, rng=0))
    >>> f"{spec.eigenvalues[-1]:.2e}"
    '3.35e+08'
    """
    n = _checks.integer(n, "n", 1)
    i = np.arange(1.0, n + 1.0)[:, None]
    j = np.arange(1.0, n + 1.0)[None, :]
    signal: Float64Array = (
        -1.0 / np.tan(1.0 / (j + 1.0))  # tan(pi/2 + x) = -cot(x), without cancellation
        + np.cos(i) * np.log(i + j + 1.0)
        + np.sin(j) * np.cos(i / j)
    )
    generator: np.random.Generator = np.random.default_rng(rng)
    noise: Float64Array = generator.standard_normal((n, n))
    return noise + signal
