"""The reduction of a symmetric matrix in two stages, called in a library of LAPACK routines."""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Real = NDArray[Any]

#: How the names of routines are spelled: with SciPy's prefix or none, 64-bit integers or 32.
_SPELLINGS = ("scipy_{}_64_", "scipy_{}_", "{}_64_", "{}_")
#: Width of the band, by what was fastest for sides up to so many: more rows at a time in the first
#: stage, against a longer second one.
_BANDS = ((6000, 48), (12_000, 64))
_WIDEST_BAND = 96
_PREFIX = {"float64": "d", "float32": "s"}
_NEEDED = ("gemm", "geqrt", "symm", "syr2k", "sytrd_sb2st", "sterf")
_WITHOUT_INFO = ("gemm", "symm", "syr2k")
_TRIED_SIDE = 160


class UnusableError(Exception):
    """Why a library cannot be used; an end of a sentence."""


class Library:
    """A shared library with ``?sytrd_sb2st``, the second stage, and other routines of LAPACK.

    Parameters
    ----------
    path : str
        Of the file; it is loaded for this object alone.
    name : str
        Name and version, for people.
    follows : bool
        Whether its number of threads is set to that of the other BLAS libraries at each call; one
        that NumPy or SciPy uses has its own number already.

    Raises
    ------
    UnusableError
        It has no such routines.
    OSError
        It cannot be loaded.
    """

    def __init__(self, path: str, name: str, *, follows: bool = False) -> None:
        self.name = name
        self._path = path
        self._follows = follows
        self._loaded = ctypes.CDLL(path, mode=ctypes.RTLD_LOCAL)
        self._spelling = next(
            (each for each in _SPELLINGS if hasattr(self._loaded, each.format("dsytrd_sb2st"))), ""
        )
        needed = [kind + name for kind in _PREFIX.values() for name in _NEEDED]
        if not self._spelling or not all(hasattr(self._loaded, self._named(n)) for n in needed):
            raise UnusableError("it has no two-stage reduction")
        self._ours = _controllers(path)[0] if follows else None
        self._own_threads = 1 if self._ours is None else int(self._ours.num_threads)

    def threads(self) -> int:
        """Return the number of threads that `eigenvalues` would take now."""
        ours, others = _controllers(self._path)
        if self._follows and others:
            return int(min(pool.num_threads for pool in others))
        return 1 if ours is None else int(ours.num_threads)

    def check(self) -> None:
        """Raise UnusableError unless known eigenvalues are found."""
        side = _TRIED_SIDE
        known = np.linspace(1.0, 2.0, side)
        # I - 2 v v^T is orthogonal for a v of length 1.
        v = np.cos(np.arange(side, dtype=np.float64))
        v /= np.sqrt(v @ v)
        turn = np.eye(side) - 2.0 * np.outer(v, v)
        for dtype in (np.float64, np.float32):
            matrix = np.asfortranarray(turn * known @ turn, dtype=dtype)
            apart = np.abs(self.eigenvalues(matrix) - known).max()
            if not apart <= 100.0 * np.finfo(dtype).eps:
                raise UnusableError(f"its eigenvalues of a known matrix are off by {apart:.2g}")

    def eigenvalues(self, matrix: Real) -> Real:
        """Return the eigenvalues of a matrix in Fortran order, ascending; it is destroyed.

        Only the upper triangle is read. Its sides are at least 100, and the squares of its entries
        within the range of its dtype.
        """
        if self._ours is None:
            return self._found(matrix)
        self._ours.set_num_threads(self.threads())
        try:
            return self._found(matrix)
        finally:  # a limit of all libraries would take the lower number for one that was set
            self._ours.set_num_threads(self._own_threads)

    def _found(self, matrix: Real) -> Real:
        """Do what `eigenvalues` does, with the threads that the library has."""
        side = len(matrix)
        width = next((width for most, width in _BANDS if side <= most), _WIDEST_BAND)
        band = self._band(matrix, width)
        diagonal, beside = self._tridiagonal(band, width)
        kept = diagonal.copy(), beside.copy()
        values = diagonal
        try:
            self._call("sterf", [side, values, beside])
        except ArithmeticError:  # another way to the same
            from scipy.linalg import eigvalsh_tridiagonal

            values = np.asarray(eigvalsh_tridiagonal(*kept, check_finite=False))
        return values

    def _band(self, matrix: Real, width: int) -> Real:
        """Return the band of a matrix with the same eigenvalues, as LAPACK stores one.

        As ``?sytrd_sy2sb`` does it, but with panels that are together in memory and a recursive QR
        of each. With Q = I - V T V^T of a panel and W = A V T, the rest of the matrix becomes
        ``Q^T A Q = A - V X^T - X V^T`` where ``X = W - V T^T V^T W / 2``.
        """
        side, dtype = len(matrix), matrix.dtype
        for start in range(0, side - width, width):
            after = start + width
            rest = matrix[after:, after:]
            m, k = side - after, min(side - after, width)
            panel = np.asfortranarray(matrix[start:after, after:].T)
            triangle, work = np.zeros((k, k), dtype=dtype, order="F"), np.empty(width * k, dtype)
            self._call("geqrt", [m, width, k, panel, m, triangle, k, work])
            matrix[start:after, after : after + k] = np.triu(panel[:k]).T
            V = panel[:, :k]
            V[:k] = np.tril(V[:k], -1)
            np.fill_diagonal(V, 1.0)
            product = np.empty((m, k), dtype=dtype, order="F")
            self._call("symm", [b"L", b"U", m, k, 1.0, rest, side, V, m, 0.0, product, m])
            weighted = np.empty((m, k), dtype=dtype, order="F")
            self._call(
                "gemm", [b"N", b"N", m, k, k, 1.0, product, m, triangle, k, 0.0, weighted, m]
            )
            inner = np.empty((k, k), dtype=dtype, order="F")
            self._call("gemm", [b"T", b"N", k, k, m, 1.0, V, m, weighted, m, 0.0, inner, k])
            inner = np.asfortranarray(triangle.T @ inner)
            self._call("gemm", [b"N", b"N", m, k, k, -0.5, V, m, inner, k, 1.0, weighted, m])
            self._call("syr2k", [b"U", b"N", m, k, -1.0, V, m, weighted, m, 1.0, rest, side])
        band = np.zeros((width + 1, side), dtype=dtype, order="F")
        for above in range(width + 1):
            band[width - above, above:] = np.diagonal(matrix, above)
        return band

    def _tridiagonal(self, band: Real, width: int) -> tuple[Real, Real]:
        """Return diagonal and off-diagonal of a tridiagonal matrix with the eigenvalues."""
        side, dtype = band.shape[1], band.dtype
        diagonal, beside = np.zeros(side, dtype=dtype), np.zeros(side, dtype=dtype)
        given = [b"Y", b"N", b"U", side, width, band, width + 1, diagonal, beside]
        sizes = np.zeros(1, dtype=dtype), np.zeros(1, dtype=dtype)
        self._call("sytrd_sb2st", [*given, sizes[0], -1, sizes[1], -1])
        reflectors, work = (np.empty(_size(size), dtype=dtype) for size in sizes)
        self._call("sytrd_sb2st", [*given, reflectors, len(reflectors), work, len(work)])
        return diagonal, beside[:-1]

    def _named(self, routine: str) -> str:
        return self._spelling.format(routine)

    def _call(self, routine: str, arguments: Sequence[bytes | int | float | Real]) -> None:
        """Call a routine; raise ArithmeticError if it says that it failed.

        Integers are passed as 64 bits, of which a routine with integers of 32 reads the lower half.
        """
        dtype = next(each.dtype for each in arguments if isinstance(each, np.ndarray))
        call = self._loaded[self._named(_PREFIX[dtype.name] + routine)]
        call.restype = None
        info = ctypes.c_int64(0)
        real = ctypes.c_double if dtype == np.float64 else ctypes.c_float
        passed: list[Any] = []
        for each in arguments:
            if isinstance(each, bytes):
                passed.append(ctypes.c_char_p(each))
            elif isinstance(each, int):
                passed.append(ctypes.byref(ctypes.c_int64(each)))
            elif isinstance(each, float):
                passed.append(ctypes.byref(real(each)))
            else:
                passed.append(ctypes.c_void_p(each.ctypes.data))
        if routine not in _WITHOUT_INFO:
            passed.append(ctypes.byref(info))
        lengths = [ctypes.c_size_t(1) for each in arguments if isinstance(each, bytes)]
        call(*passed, *lengths)
        if info.value:
            raise ArithmeticError(f"{routine} failed: info {info.value}")


def _size(found: Real) -> int:
    """Return the size of a workspace; in float32 it may have been rounded down."""
    return int(float(found[0]) * (1.0 + float(np.finfo(found.dtype).eps))) + 1


@functools.cache
def _controllers(path: str) -> tuple[Any, list[Any]]:
    """Return what controls the threads of this library, and of the others."""
    from threadpoolctl import ThreadpoolController

    pools = ThreadpoolController().select(user_api="blas").lib_controllers
    ours = [pool for pool in pools if Path(pool.filepath).samefile(path)]
    return ours[0] if ours else None, [pool for pool in pools if pool not in ours]
