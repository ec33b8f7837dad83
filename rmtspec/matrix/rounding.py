"""Known rounding: how large a singular value the rounding of the stored entries makes."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._records import plain
from rmtspec._text import Readable, aligned
from rmtspec.errors import (
    InvalidOptionError,
    InvalidOptionTypeError,
    InvalidTypeError,
    InvalidValueError,
)
from rmtspec.matrix.eigenvalues import check_finite
from rmtspec.matrix.spectrum import spectrum
from rmtspec.terms import Why

#: dtypes that a float array may hold the numbers of, from the coarsest.
_COARSE = ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "float32")
#: Rounding sets the last digit of half of the entries; far fewer, and it was not this rounding.
_LEAST_USE = 0.25
#: Share of zeros from which errors of zeros matter to the edge.
_MANY_ZEROS = 0.1
#: Relative precision above which s^2 from the Gram matrix resolves rounding noise.
_GRAM_SUFFICES = 1e-5


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class RoundingNoise(Readable):
    """Result of `rounding_noise`: the noise that rounding added, and what lies below it.

    Attributes
    ----------
    variance : float
        Mean variance of the rounding errors of the entries, zero rows and columns left out.
    edge : float
        Largest singular value of a matrix of such errors.
    edge_eigenvalue : float
        The same in the units of a Spectrum, edge^2 / n.
    n_below : int
        Number of singular values of `W` at or below the edge.
    row_variances : ndarray of shape (rows,)
        Mean variance of the errors in each row.
    column_variances : ndarray of shape (columns,)
        And in each column.
    n, p : int
        Larger and smaller side of the matrix, without zero rows and columns.
    method : str
        What the variances follow from: "float16", the name of a dtype, or "step".
    draws : int
        Number of simulated error matrices, whose mean largest singular value is the edge.
    note : str
        Why the errors may be others: the entries are exact, or were rounded more coarsely.
    """

    variance: float
    edge: float
    edge_eigenvalue: float
    n_below: int
    row_variances: Float64Array
    column_variances: Float64Array
    n: int
    p: int
    method: str
    draws: int
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {name: plain(getattr(self, name)) for name in self.__slots__}

    def __repr__(self) -> str:
        pairs: list[tuple[str, object]] = [
            ("rounded by", self.method),
            ("variance", self.variance),
            ("edge", f"{self.edge:.6g} (eigenvalue {self.edge_eigenvalue:.6g})"),
            ("below", f"{self.n_below} of {self.p} singular values"),
        ]
        if self.note:
            pairs.append(("note", self.note))
        return aligned("RoundingNoise", pairs)


def rounding_noise(
    W: ArrayLike,
    dtype: Any = None,
    step: ArrayLike | None = None,
    *,
    draws: int = 3,
    rng: Any = 0,
) -> RoundingNoise:
    """Return the level of the noise that rounding added to a stored matrix.

    Rounding to the nearest number of a grid leaves an error that is uniform between the midpoints
    to its neighbours: variance ulp^2 / 12 in a floating format, where ulp is the distance to the
    next number at that entry (and half of it below a power of two), and step^2 / 12 in a quantised
    one. Large entries have large errors, so that the variances differ by row and by column; the
    edge is the largest singular value of simulated errors of these variances, mean of `draws`.
    Against that of the errors themselves, ``s_1(W - rounded W)``, on trained weights with sides
    from 64: a median of 1.00 (float16, float8, 4 bits) and 1.04 (bfloat16) times, from .92 to 1.2.
    The bound from the largest row and column variances is 1.1 to 1.9 times too large.

    A singular value of `W` below the edge may be rounding alone; nothing can be said about its
    vectors. Entries that are exact, such as small whole numbers, have no rounding: see `note`.

    Parameters
    ----------
    W : array_like of shape (rows, columns)
        The matrix as stored: real, finite, of any floating dtype.
    dtype : dtype or str, optional
        Floating format that rounded it: "float16", "bfloat16", "float8_e4m3fn" or another that
        NumPy or ml_dtypes knows. By default that of `W`.
    step : array_like, optional
        Distance between neighbouring values of a quantised matrix: a number, an array that can be
        broadcast to the shape of `W`, or one value per block, an array of two dimensions that
        divide those of `W`. It takes the place of `dtype`.
    draws : int
        Number of simulated error matrices, at least 1.
    rng : int or numpy.random.Generator
        Seed; the same gives the same result.

    Returns
    -------
    RoundingNoise

    Raises
    ------
    InvalidTypeError
        `W` holds whole numbers and no `step` is given, or `dtype` is not a floating format.
    InvalidValueError
        An entry is nan, infinite or beyond the largest number of `dtype`; `step` is negative or
        does not fit the shape; or both `dtype` and `step` are given.

    Examples
    --------
    >>> import numpy as np
    >>> import rmtspec
    >>> rng = np.random.default_rng(0)
    >>> product = rng.standard_normal((300, 20)) @ rng.standard_normal((20, 200))
    >>> rmtspec.rounding_noise(product.astype(np.float16)).n_below  # all but the 20
    180
    """
    array = _checks.matrix(W)
    draws = _checks.integer(draws, "draws", 1, hint="Pass the number of simulated matrices.")
    generator = _checks.generator(rng)
    check_finite(array)
    values = array.astype(np.float64)
    note, precise = "", False
    if step is None:
        kind = _format(array.dtype if dtype is None else dtype)
        above, below = gaps(values, kind)
        note, method = _unused_digits(values, above, kind), str(kind)
        precise = _checks.resolution(kind)[0] < _GRAM_SUFFICES
    elif dtype is not None:
        problem = f"`dtype` is {dtype!r} and `step` is given"
        raise InvalidOptionError(problem, "one of the two", "A step needs no dtype.")
    else:
        above = below = _steps(step, values.shape)
        method = "step"
    spec = spectrum(array, method="svd" if precise else "auto")
    used = (values != 0.0).any(axis=1)[:, None] & (values != 0.0).any(axis=0)
    above, below = np.where(used, above, 0.0), np.where(used, below, 0.0)
    variances = (above * above - above * below + below * below) / 12.0
    zeros = 1.0 - np.count_nonzero(values) / max(int(used.sum()), 1)
    if not note and step is None and zeros >= _MANY_ZEROS:
        note = Why.ZERO_ENTRIES.words(share=zeros)
    sign = np.where(values < 0.0, -1.0, 1.0)
    uniform = (generator.uniform(-0.5 * below, 0.5 * above) for _ in range(draws))
    largest = [_largest(sign * errors) for errors in uniform]
    edge = float(np.mean(largest))
    return RoundingNoise(
        variance=float(variances.sum() / max(int(used.sum()), 1)),
        edge=edge, edge_eigenvalue=edge * edge / spec.n,
        n_below=int(np.searchsorted(spec.singular_values, edge, side="right")),
        row_variances=variances.mean(axis=1), column_variances=variances.mean(axis=0),
        n=spec.n, p=spec.p, method=method, draws=draws, note=note,
    )  # fmt: skip


def _format(dtype: Any) -> np.dtype[Any]:
    """Return a floating dtype, by its name if need be."""
    import ml_dtypes

    if isinstance(dtype, str) and hasattr(ml_dtypes, dtype):
        dtype = getattr(ml_dtypes, dtype)
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind.kind in "iu":
        raise InvalidTypeError(
            f"`W` has dtype {kind}, whole numbers, which are exact; expected a floating dtype. "
            "Pass the weights themselves (codes times scales), and the scales as `step`."
        )
    if not _checks.is_float(kind) or kind.name.startswith(("int", "uint")):
        expected = "the name of a floating format, such as 'bfloat16'"
        raise InvalidOptionTypeError(f"`dtype` is {dtype!r}", expected)
    return kind  # type: ignore[no-any-return]


def gaps(values: Float64Array, kind: np.dtype[Any]) -> tuple[Float64Array, Float64Array]:
    """Return the distances to the next larger and to the next smaller size in the format."""
    import ml_dtypes

    limits = ml_dtypes.finfo(kind)  # type: ignore[no-untyped-call]  # it knows those of NumPy too
    most = float(limits.max)
    size = np.abs(values)
    last = math.ldexp(float(limits.eps), math.frexp(most)[1] - 1)
    if size.max() - most >= 0.5 * last:
        i, j = np.unravel_index(int(size.argmax()), size.shape)
        raise InvalidValueError(
            f"`W` is {values[i, j]:.6g} at [{i}, {j}]; expected at most {most:.6g}, the largest "
            f"{kind}. Divide it by its scale first."
        )
    eps, smallest = _checks.resolution(kind)
    mantissa, exponent = np.frexp(size)
    above = np.maximum(np.ldexp(eps, exponent - 1), smallest)
    below = np.where((mantissa == 0.5) & (above > smallest), 0.5 * above, above)
    return above, below


def product_steps(product: NDArray[Any], dtype: np.dtype[Any]) -> Float64Array:
    """Return, for each entry of a product, a step that covers the rounding of its factors.

    Each factor adds about as much as rounding the product would, on fewer singular values, which
    reach further.
    """
    steps: Float64Array = math.sqrt(6.0) * gaps(product.astype(np.float64), dtype)[0]
    return steps


def _steps(step: ArrayLike, shape: tuple[int, ...]) -> Float64Array:
    """Return the step at each entry."""
    steps = _checks.floats(step, "step")
    if not (np.isfinite(steps).all() and (steps >= 0.0).all()):
        raise InvalidOptionError("`step` has entries that are negative, nan or infinite", "sizes")
    if steps.ndim == 2 and all(
        given and side % given == 0 for side, given in zip(shape, steps.shape, strict=True)
    ):
        blocks = [side // given for side, given in zip(shape, steps.shape, strict=True)]
        steps = steps.repeat(blocks[0], axis=0).repeat(blocks[1], axis=1)
    try:
        return np.broadcast_to(steps, shape)
    except ValueError:
        problem = f"`step` has shape {steps.shape}, and `W` {shape}"
        expected = "a number, an array of the shape of `W`, or one value per block of equal size"
        raise InvalidOptionError(problem, expected) from None


def _unused_digits(values: Float64Array, above: Float64Array, kind: np.dtype[Any]) -> str:
    """Return why the entries look exact or more coarsely rounded, or ""."""
    stored = values != 0.0
    last_digits = np.abs(values[stored]) / above[stored]
    if not last_digits.size or (last_digits % 1.0).any():  # not rounded to this format yet
        return ""
    share = float(np.mean(last_digits % 2.0 == 1.0))
    if share >= _LEAST_USE:
        return ""
    hint = "they may be exact, or pass the `dtype` or `step` that rounded them"
    for name in _COARSE:
        coarse = _format(name)
        with np.errstate(over="ignore", invalid="ignore"):
            held = coarse != kind and bool((values.astype(coarse).astype(float) == values).all())
        if held:
            hint = f"all fit {name}, so pass dtype='{name}' unless they are exact"
            break
    return Why.UNUSED_DIGITS.words(dtype=kind, share=share, hint=hint)


def _largest(errors: NDArray[Any]) -> float:
    """Return the largest singular value, to about 1e-4."""
    from scipy.sparse.linalg import svds

    if min(errors.shape) < 3 or not errors.any():
        return float(np.linalg.norm(errors, 2))
    scale = math.sqrt(float(np.mean(errors * errors)))
    start = np.ones(min(errors.shape))
    values = svds(errors / scale, k=1, tol=1e-4, v0=start, return_singular_vectors=False)
    return scale * float(values[0])
