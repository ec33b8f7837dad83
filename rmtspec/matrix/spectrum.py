"""Spectrum: the eigenvalues of a matrix, with what is needed to read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._text import aligned
from rmtspec.errors import (
    InvalidOptionError,
    InvalidOptionTypeError,
    InvalidTypeError,
    InvalidValueError,
)
from rmtspec.matrix.eigenvalues import Eigensolver, Eigenvalues, matrix_eigenvalues

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True, init=False, repr=False, eq=False)
class Spectrum:
    """Eigenvalues s^2 / n of a matrix, ascending, s being its singular values.

    `spectrum` makes one from a matrix; the constructor makes one from eigenvalues already known.

    Parameters
    ----------
    eigenvalues : array_like of shape (p,)
        Eigenvalues of ``W.T @ W / n``, in any order. Values negative by no more than rounding
        are set to zero.
    n : int
        The larger side of the matrix, at least p.

    Attributes
    ----------
    eigenvalues : ndarray of shape (p,)
        Ascending, float64, read-only.
    n, p : int
        Larger and smaller side, zero rows and columns not counted.
    shape : tuple of int
        (rows, columns) of the matrix as given; (n, p) where only eigenvalues were given.
    method : str
        "gram" or "svd" (with "32" when computed in float32), "given" for given eigenvalues.
    dtype : str
        Of the array that was given.
    numerical_rank : int
        How many eigenvalues stand above what rounding alone can produce.
    rounding_variance : float
        Variance, in the units of the eigenvalues, of a bulk made by rounding alone.
    dropped_rows, dropped_columns : int
        Zero rows and columns, which carry no information and were left out.

    Raises
    ------
    InvalidValueError
        No eigenvalues, nan or inf among them, negative ones beyond rounding, or n below p.
    InvalidTypeError
        Eigenvalues that are not real numbers, or n not a whole number.

    Examples
    --------
    >>> import rmtspec
    >>> spec = rmtspec.Spectrum([0.5, 2.0, 1.0], n=4)
    >>> spec.eigenvalues
    array([0.5, 1. , 2. ])
    >>> spec.ratio
    0.75
    >>> spec.cdf(1.5)
    0.6666666666666666
    """

    eigenvalues: Float64Array
    n: int
    p: int
    shape: tuple[int, int]
    method: str
    dtype: str
    numerical_rank: int
    rounding_variance: float
    dropped_rows: int
    dropped_columns: int

    def __init__(self, eigenvalues: ArrayLike, n: int) -> None:
        given = np.asarray(eigenvalues)
        values = _checks.floats(given, "eigenvalues")
        if values.ndim != 1 or values.size == 0:
            raise InvalidValueError(
                f"`eigenvalues` has shape {values.shape}; expected a non-empty array of one "
                "dimension. For a matrix call rmtspec.spectrum(W)."
            )
        if not np.isfinite(values).all():
            bad = np.flatnonzero(~np.isfinite(values))
            raise InvalidValueError(
                f"`eigenvalues` has {bad.size} nan or infinite values, the first at index "
                f"{bad[0]}; expected finite numbers."
            )
        p = values.size
        n = _checks.integer(
            n, "n", p, hint=f"n is the larger side of the matrix, and there are {p} eigenvalues."
        )
        eps = _checks.resolution(given.dtype)[0]
        floor = p * eps * float(np.abs(values).max())
        lowest = float(values.min())
        if lowest < -floor:
            raise InvalidValueError(
                f"`eigenvalues` has a negative value {lowest:.6g}, beyond rounding "
                f"({floor:.2g}); those of W.T @ W / n are never negative."
            )
        values = np.sort(np.maximum(values, 0.0))
        # Who gives eigenvalues most often made them from a Gram matrix: its error is eps * largest.
        self._fill(
            values,
            n,
            shape=(n, p),
            method="given",
            dtype=str(given.dtype),
            rounding_variance=floor,
            dropped_rows=0,
            dropped_columns=0,
        )

    def _fill(
        self, eigenvalues: Float64Array, n: int, *, rounding_variance: float, **others: Any
    ) -> None:
        """Set all fields: those given, and what follows from them."""
        eigenvalues.flags.writeable = False
        p = eigenvalues.size
        rounding_edge = rounding_variance * (1.0 + np.sqrt(p / n)) ** 2
        fields = {
            "eigenvalues": eigenvalues,
            "n": int(n),
            "p": p,
            "numerical_rank": int(np.count_nonzero(eigenvalues > rounding_edge)),
            "rounding_variance": float(rounding_variance),
            **others,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def ratio(self) -> float:
        """The aspect ratio p / n, at most 1."""
        return self.p / self.n

    @property
    def singular_values(self) -> Float64Array:
        """Singular values ``sqrt(n * eigenvalues)``, ascending, shape (p,)."""
        return np.sqrt(self.n * self.eigenvalues)

    def cdf(self, x: ArrayLike) -> Any:
        """Return the share of eigenvalues at or below `x` (the ESD's distribution function).

        Parameters
        ----------
        x : array_like
            In the units of the eigenvalues.

        Returns
        -------
        float or ndarray
            Of the shape of `x`; nan where `x` is nan.
        """
        points = _checks.floats(x, "x")
        share = np.searchsorted(self.eigenvalues, points, side="right") / self.p
        result = np.where(np.isnan(points), np.nan, share)
        return float(result) if result.ndim == 0 else result

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values, the eigenvalues as a list."""
        return {
            "n": self.n,
            "p": self.p,
            "ratio": self.ratio,
            "shape": list(self.shape),
            "method": self.method,
            "dtype": self.dtype,
            "numerical_rank": self.numerical_rank,
            "rounding_variance": self.rounding_variance,
            "dropped_rows": self.dropped_rows,
            "dropped_columns": self.dropped_columns,
            "eigenvalues": self.eigenvalues.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Spectrum":
        """Return the spectrum whose `to_dict` is given, the same to the last bit.

        The eigenvalues may be an array.
        """
        spec = object.__new__(cls)
        rows, columns = values["shape"]
        names = ("method", "dtype", "rounding_variance", "dropped_rows", "dropped_columns")
        spec._fill(
            np.array(values["eigenvalues"], dtype=np.float64),
            values["n"],
            shape=(rows, columns),
            **{name: values[name] for name in names},
        )
        return spec

    def __repr__(self) -> str:
        low, high = self.eigenvalues[0], self.eigenvalues[-1]
        pairs: list[tuple[str, object]] = [
            ("matrix", f"{self.shape[0]} x {self.shape[1]} {self.dtype}"),
            ("n, p, ratio", f"{self.n}, {self.p}, {self.ratio:.6g}"),
            ("eigenvalues", f"{low:.6g} to {high:.6g}"),
            ("numerical rank", f"{self.numerical_rank} of {self.p}"),
            ("method", self.method),
        ]
        if self.dropped_rows or self.dropped_columns:
            dropped = f"{self.dropped_rows} zero rows, {self.dropped_columns} zero columns"
            pairs.append(("left out", dropped))
        return aligned("Spectrum", pairs)


def spectrum(
    W: ArrayLike,
    method: str = "auto",
    *,
    precision: str = "float64",
    eigensolver: Eigensolver | None = None,
) -> Spectrum:
    """Return the eigenvalues s^2 / n of a matrix, by the cheapest safe route.

    n is the larger side and p the smaller, so that `W` and its transpose give the same result.
    Zero rows and columns are left out (and n and p reduced), because padding is no noise. The
    matrix is read in blocks along its larger side: memory is the smaller side squared plus one
    block of 16 MiB (a few on the SVD route), also for a memory-mapped array.

    Parameters
    ----------
    W : array_like of shape (rows, columns)
        Real: any floating dtype (float16 and bfloat16 too), any memory layout. Integers are
        converted.
    method : {"auto", "gram", "svd"}
        "gram" takes the eigenvalues of the smaller Gram matrix, a third to a seventh of the cost
        of a values-only SVD, but wrong by about 1e-16 times the largest eigenvalue. "auto" takes
        it, looks at what came out, and takes the SVD where the largest eigenvalue is more than
        1e10 times the bulk.
    precision : {"float64", "float32"}
        "float32" halves time and memory where the result can bear it; checked afterwards, and
        done again in float64 where the bulk would be rounding noise.
    eigensolver : callable, optional
        Takes the symmetric float64 Gram matrix (p, p), returns its p eigenvalues in any order.
        For another library or device; only with the Gram route. Where it has a method `gram`,
        that makes the Gram matrix too: it is given the array (n, p) and returns (p, p).

    Returns
    -------
    Spectrum

    Raises
    ------
    InvalidTypeError
        Complex, boolean, text or object arrays.
    InvalidValueError
        Not two dimensions, empty, nan or inf (the message says where), entries whose squares
        leave the range of float64, or an unknown option.

    Examples
    --------
    >>> import numpy as np
    >>> import rmtspec
    >>> W = np.random.default_rng(0).standard_normal((300, 200))
    >>> rmtspec.spectrum(W)
    Spectrum
      matrix          300 x 200 float64
      n, p, ratio     300, 200, 0.666667
      eigenvalues     0.0409683 to 3.23398
      numerical rank  200 of 200
      method          gram
    """
    if isinstance(W, Spectrum):
        raise InvalidTypeError("`W` is a Spectrum already; expected a matrix. Pass it on as it is.")
    array = _checks.matrix(W)
    check_route(method, precision, eigensolver)
    found = matrix_eigenvalues(array, method, precision, eigensolver)
    spec = object.__new__(Spectrum)
    rows, columns = array.shape
    spec._fill(
        found.values,
        found.n,
        shape=(rows, columns),
        method=found.method,
        dtype=str(array.dtype),
        rounding_variance=_rounding_variance(found, array.dtype),
        dropped_rows=found.dropped_rows,
        dropped_columns=found.dropped_columns,
    )
    return spec


def check_route(method: str, precision: str, eigensolver: Eigensolver | None) -> None:
    """Raise for an option of `spectrum` that is wrong, whatever the matrix."""
    _checks.choice(method, "method", ("auto", "gram", "svd"))
    _checks.choice(precision, "precision", ("float64", "float32"))
    if eigensolver is not None and not callable(eigensolver):
        raise InvalidOptionTypeError(f"`eigensolver` is {eigensolver!r}", "a callable, or None")
    if eigensolver is not None and method == "svd":
        raise InvalidOptionError(
            "`eigensolver` needs the Gram matrix, and `method` is 'svd'",
            "one of the two",
            "Leave `method` at 'auto'.",
        )


def check_spectrum(value: object, name: str = "spec", instead: str = "analyze(W)") -> None:
    """Raise unless `value`, given as `name`, is a Spectrum; `instead` is the call for a matrix."""
    if not isinstance(value, Spectrum):
        raise InvalidTypeError(
            f"`{name}` is a {type(value).__name__}; expected a Spectrum. "
            f"Make one with rmtspec.spectrum(W), or call rmtspec.{instead}."
        )


def _rounding_variance(found: Eigenvalues, dtype: np.dtype[Any]) -> float:
    """Return the variance of a bulk that rounding alone makes (an upper bound, not a guess).

    Three sources. Storage: an entry is off by up to half a unit in its last place, variance at
    most eps^2 w^2 / 12, twice that to be safe. Arithmetic: who made the matrix as a product summed
    up to n terms in float32 or better. The solver: Gram and SVD are off by about eps times the
    largest eigenvalue, or its root.
    """
    eps, smallest = _checks.resolution(dtype)
    arithmetic = _EPS if dtype.itemsize > 4 else float(np.finfo(np.float32).eps)
    mean_square = float(found.values.mean()) if found.values.size else 0.0
    stored = (2.0 * eps**2 + found.n * arithmetic**2) / 12.0 * mean_square + smallest**2 / 12.0
    largest = float(found.values[-1])
    solver_eps = found.eps
    solver = (4.0 * solver_eps if "gram" in found.method else 100.0 * solver_eps**2) * largest
    return stored + solver
