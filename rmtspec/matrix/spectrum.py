"""Spectrum: the eigenvalues of a matrix, its sides, and the rounding level."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rmtspec import _checks
from rmtspec._arrays import as_array
from rmtspec._checks import Float64Array
from rmtspec._text import Readable, aligned
from rmtspec.errors import (
    InvalidOptionError,
    InvalidOptionTypeError,
    InvalidTypeError,
    InvalidValueError,
)
from rmtspec.matrix.eigenvalues import (
    Eigensolver,
    Eigenvalues,
    EntryMoments,
    Matrix,
    matrix_eigenvalues,
)
from rmtspec.matrix.stacked import is_small, stacked_eigenvalues

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True, init=False, repr=False, eq=False)
class Spectrum(Readable):
    """Eigenvalues s^2 / n of a matrix, ascending, where s are its singular values.

    `spectrum` computes one from a matrix; the constructor takes eigenvalues that are known already.

    Parameters
    ----------
    eigenvalues : array_like of shape (p,)
        Eigenvalues of ``W.T @ W / n``, in any order. Values that are negative only by rounding are
        set to zero.
    n : int
        The larger side of the matrix, at least p.

    Attributes
    ----------
    eigenvalues : ndarray of shape (p,)
        Ascending, float64, read-only.
    n, p : int
        Larger and smaller side, not counting zero rows and columns.
    shape : tuple of int
        (rows, columns) of the matrix as given; (n, p) if only eigenvalues were given.
    method : str
        "gram" or "svd" (with "32" when computed in float32), "given" for given eigenvalues.
    dtype : str
        Dtype of the array as given.
    numerical_rank : int
        Number of eigenvalues above the largest that rounding alone can produce.
    rounding_variance : float
        Variance, in the units of the eigenvalues, of a bulk produced by rounding alone.
    dropped_rows, dropped_columns : int
        Number of zero rows and columns, which carry no information and were left out.
    moments : EntryMoments or None
        How unequal rows and columns are, and the kurtosis of the entries; None if only eigenvalues
        are known.

    Raises
    ------
    InvalidValueError
        There are no eigenvalues, one is nan, inf or negative beyond rounding, or n is below p.
    InvalidTypeError
        The eigenvalues are not real numbers, or n is not a whole number.

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
    moments: EntryMoments | None

    def __init__(self, eigenvalues: ArrayLike, n: int) -> None:
        given = as_array(eigenvalues, "eigenvalues")
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
        hint = f"n is the larger side of the matrix, and there are {p} eigenvalues."
        n = _checks.integer(n, "n", p, hint=hint)
        eps = _checks.resolution(given.dtype)[0]
        floor = p * eps * float(np.abs(values).max())
        lowest = float(values.min())
        if lowest < -floor:
            raise InvalidValueError(
                f"`eigenvalues` has a negative value {lowest:.6g}, beyond rounding "
                f"({floor:.2g}); those of W.T @ W / n are never negative."
            )
        values = np.sort(np.maximum(values, 0.0))
        # Given eigenvalues usually come from a Gram matrix, whose rounding error is eps * largest.
        self._fill(
            values, n, shape=(n, p), method="given", dtype=str(given.dtype),
            rounding_variance=floor, dropped_rows=0, dropped_columns=0, moments=None,
        )  # fmt: skip

    def _fill(
        self, eigenvalues: Float64Array, n: int, *, rounding_variance: float, **others: Any
    ) -> None:
        """Set all fields, those given and those that follow from them."""
        eigenvalues.flags.writeable = False
        p = eigenvalues.size
        rounding_edge = rounding_variance * (1.0 + math.sqrt(p / n)) ** 2
        fields = {
            "eigenvalues": eigenvalues,
            "n": int(n),
            "p": p,
            "numerical_rank": p - int(eigenvalues.searchsorted(rounding_edge, side="right")),
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
        """Return the share of eigenvalues at or below `x` (the distribution function of the ESD).

        Parameters
        ----------
        x : array_like
            Points, in the units of the eigenvalues.

        Returns
        -------
        float or ndarray
            In the shape of `x`; nan where `x` is nan.
        """
        points = _checks.floats(x, "x")
        share = np.searchsorted(self.eigenvalues, points, side="right") / self.p
        result = np.where(np.isnan(points), np.nan, share)
        return float(result) if result.ndim == 0 else result

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values, the eigenvalues as a list."""
        names = ("n", "p", "ratio", *self.__slots__[3:])
        values = {name: getattr(self, name) for name in names}
        values |= {"shape": list(self.shape), "eigenvalues": self.eigenvalues.tolist()}
        return values | {"moments": None if self.moments is None else list(self.moments)}

    @classmethod
    def of_eigenvalues(
        cls, eigenvalues: Eigenvalues, *, shape: tuple[int, int], dtype: np.dtype[Any]
    ) -> "Spectrum":
        """Return the spectrum of a matrix of this shape and dtype from its eigenvalues."""
        spec = object.__new__(cls)
        spec._fill(
            eigenvalues.values, eigenvalues.n, shape=shape, method=eigenvalues.method,
            dtype=_name_of(dtype), rounding_variance=_rounding_variance(eigenvalues, dtype),
            dropped_rows=eigenvalues.dropped_rows, dropped_columns=eigenvalues.dropped_columns,
            moments=eigenvalues.moments,
        )  # fmt: skip
        return spec

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Spectrum":
        """Return the spectrum that gave this `to_dict`, the same to the last bit.

        The eigenvalues may be an array.
        """
        spec = object.__new__(cls)
        rows, columns = values["shape"]
        names = ("method", "dtype", "rounding_variance", "dropped_rows", "dropped_columns")
        spec._fill(
            np.array(values["eigenvalues"], dtype=np.float64),
            values["n"],
            shape=(rows, columns),
            moments=EntryMoments(*values["moments"]) if values.get("moments") else None,
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

    n is the larger side and p the smaller, so `W` and its transpose give the same result. Zero rows
    and columns are left out (and n and p reduced), because padding is not noise. The matrix is read
    in blocks along its larger side: this takes the memory of a p x p matrix plus one block of
    16 MiB (a few on the SVD route), for a memory-mapped array too.

    Parameters
    ----------
    W : array_like of shape (rows, columns)
        Real, of any floating dtype (including float16 and bfloat16) and memory layout. Integers
        are converted.
    method : {"auto", "gram", "svd"}
        "gram" takes the eigenvalues of the smaller Gram matrix, at a third to a seventh of the cost
        of an SVD for values only, with an error of about 1e-16 times the largest eigenvalue. "auto"
        tries it, and takes the SVD if the largest eigenvalue is more than 1e10 times the bulk.
    precision : {"float64", "float32"}
        "float32" halves time and memory. The result is checked, and computed again in float64 if
        the bulk would be rounding noise.
    eigensolver : callable, optional
        Takes the symmetric float64 Gram matrix (p, p) and returns its p eigenvalues in any order,
        for another library or device; on the Gram route only. If it has a method `gram`, that
        computes the Gram matrix too: it takes the array (n, p) and returns the product (p, p). A
        method `gram_with_sums(array, unit)` returns that, the sum of squares of each row (n,), and
        the sum of all (w / unit)^4, so that the host need not read the entries.

    Returns
    -------
    Spectrum

    Raises
    ------
    InvalidTypeError
        `W` is complex, boolean, text or an object array.
    InvalidValueError
        `W` does not have two dimensions, is empty, or has nan or inf (the message says where) or
        entries whose squares leave the range of float64; or an option is unknown.

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
        raise InvalidTypeError("`W` is a Spectrum already; expected a matrix. Use it as it is.")
    array = _checks.matrix(W)
    check_route(method, precision, eigensolver)
    return spectrum_of(array, method, precision, eigensolver)


def spectrum_of(
    array: Matrix, method: str, precision: str, eigensolver: Eigensolver | None
) -> Spectrum:
    """Do what `spectrum` does, with a checked matrix and options."""
    if is_small(array.shape) and is_usual(method, precision, eigensolver):
        (found,) = stacked_spectra([array])
        if found is not None:
            return found
    eigenvalues = matrix_eigenvalues(array, method, precision, eigensolver)
    rows, columns = array.shape
    return Spectrum.of_eigenvalues(eigenvalues, shape=(rows, columns), dtype=array.dtype)


def is_usual(method: str, precision: str, eigensolver: Eigensolver | None) -> bool:
    """Tell whether eigenvalues are found as `stacked_spectra` finds them."""
    return method != "svd" and precision == "float64" and eigensolver is None


def stacked_spectra(arrays: Sequence[Matrix]) -> list[Spectrum | None]:
    """Return the spectra of small checked matrices of one shape and dtype, in one call.

    Each is to the last digit what it is alone; None for those that must be computed alone.
    """
    rows, columns = arrays[0].shape
    dtype = arrays[0].dtype
    return [
        found and Spectrum.of_eigenvalues(found, shape=(rows, columns), dtype=dtype)
        for found in stacked_eigenvalues(arrays)
    ]


def check_route(method: str, precision: str, eigensolver: Eigensolver | None) -> None:
    """Raise if an option of `spectrum` is wrong for every matrix."""
    if method == "stochastic":
        problem = "`method` is 'stochastic', and an estimate is no spectrum"
        hint = "Call rmtspec.estimate_spectrum(W) for what can be estimated."
        raise InvalidOptionError(problem, "'auto', 'gram' or 'svd'", hint)
    _checks.choice(method, "method", ("auto", "gram", "svd"))
    _checks.choice(precision, "precision", ("float64", "float32"))
    if eigensolver is not None and not callable(eigensolver):
        raise InvalidOptionTypeError(f"`eigensolver` is {eigensolver!r}", "a callable, or None")
    if eigensolver is not None and method == "svd":
        problem = "`eigensolver` needs the Gram matrix, and `method` is 'svd'"
        raise InvalidOptionError(problem, "one of the two", "Leave `method` at 'auto'.")


def check_spectrum(value: object, name: str = "spec", instead: str = "analyze(W)") -> None:
    """Raise unless `value`, given as `name`, is a Spectrum; `instead` is the call for a matrix."""
    if not isinstance(value, Spectrum):
        raise InvalidTypeError(
            f"`{name}` is a {type(value).__name__}; expected a Spectrum. "
            f"Make one with rmtspec.spectrum(W), or call rmtspec.{instead}."
        )


_name_of = functools.lru_cache(maxsize=32)(str)  # which NumPy makes up each time


def _rounding_variance(eigenvalues: Eigenvalues, dtype: np.dtype[Any]) -> float:
    """Return an upper bound on the variance of a bulk that rounding alone produces.

    It has three parts. Storage: an entry is off by up to half a unit in its last place, a variance
    of at most eps^2 w^2 / 12, doubled to be safe. Arithmetic: the matrix may be a product that
    summed up to n terms in float32 or better. The solver: the Gram route is off by about eps times
    the largest eigenvalue, the SVD by eps times its square root.
    """
    eps, smallest = _checks.resolution(dtype)
    arithmetic = _EPS if dtype.itemsize > 4 else float(np.finfo(np.float32).eps)
    values, solver_eps = eigenvalues.values, eigenvalues.eps
    terms = 2.0 * eps**2 + eigenvalues.n * arithmetic**2
    mean = float(values.sum()) / values.size
    stored = terms / 12.0 * mean + smallest**2 / 12.0
    share = 4.0 * solver_eps if "gram" in eigenvalues.method else 100.0 * solver_eps**2
    return stored + share * float(values[-1])
