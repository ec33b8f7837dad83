"""The cost of analysing a matrix of given sides: operations, memory, time on this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmtspec._lapack import eigvalsh, in_two_stages
from rmtspec.matrix.estimate_spectrum import FROM, PROBES, STEPS, memory_of_estimate
from rmtspec.report.options import STOCHASTIC

#: Bytes of one float64 block of rows, as in matrix/eigenvalues.py (a test compares them).
_BLOCK_BYTES = 2**24
#: Sides at which the reduction is timed: in the cache of a core, the shared cache, and memory.
_SIDES = (256, 1024, 3072)
#: Number of columns that LAPACK reduces before it updates the rest of the matrix.
_PANEL = 32
#: The same for the reduction to a band, where there are two stages; its products with the matrix
#: are a little slower than that update.
_WIDE_PANEL, _OF_UPDATE = 64, 0.85
#: Operations per squared side for the rest of two stages, at the speed of the Gram matrix: band to
#: tridiagonal matrix, and its eigenvalues.
_BAND = 2000.0
#: Seconds besides those for the eigenvalues, independent of the sides: calls, fit, test, rank.
_OVERHEAD = 5e-4
#: Fitting the noise of any variances: typical rounds, each a Gram matrix and its eigenvalues, and
#: sign flips, which do the same in float32, at this share of the time.
_ROUNDS, _FLIPS, _SINGLE = 4, 19, 0.6
#: Of an estimate: products with the matrix (one for each step, 20 for the largest values, and two
#: passes for the sums), and how much longer one of their operations takes than one of the Gram
#: matrix, because they are with few vectors at a time: in float32, and in float64.
_PRODUCTS, _THIN = STEPS + 22, (1.5, 3.0)
#: Time to convert and check an entry of so many bytes, relative to one of 4 bytes. 8-bit floats are
#: converted in software; float64 is not converted, but its range is checked.
_CONVERSION = {1: 6.0, 2: 1.5, 8: 1.25}


@dataclass(frozen=True, slots=True)
class Cost:
    """What the analysis of one matrix needs on any machine.

    `operations` counts the floating-point operations of the Gram matrix and the eigenvalues.
    `memory` is the peak in bytes, besides the matrix itself: the Gram matrix and a block of rows in
    float64. A float64 matrix may need less, because its blocks are not copied.
    """

    operations: int
    memory: int


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast this machine is, with the number of BLAS threads used for the measurement.

    Attributes
    ----------
    gram : float
        Operations per second of the Gram matrix (dsyrk).
    reduction : tuple of (side, float)
        Operations per second of the reduction to tridiagonal form, at several ascending sides. Half
        of them are matrix-vector products (dsymv), limited by memory once the matrix does not fit
        the cache, and half updates of rank 2k (dsyr2k).
    rest : float
        Seconds per squared side for the rest of the eigenvalue computation: the reduction within
        panels, and the tridiagonal matrix.
    update : float or None
        Operations per second of the reduction to a band, the first of two stages; None if no
        library here has two stages.
    read : float
        Entries of 4 bytes per second, converted from memory to float64 and checked.
    """

    gram: float
    reduction: tuple[tuple[int, float], ...]
    rest: float
    read: float
    update: float | None = None


def cost(rows: int, columns: int, noise: str = "mp", method: str = "auto") -> Cost:
    """Return what the analysis of a matrix with these sides, in either order, needs.

    With n the larger side and p the smaller, the Gram matrix takes n p^2 operations, and its
    reduction to tridiagonal form 4/3 p^3; lower powers are neglected. The SVD, which is used if a
    few eigenvalues dwarf the others, costs several times as much. A noise model other than "mp"
    adds its rounds and sign flips, which need the matrix in float64 and twice in float32. With the
    method "stochastic" a large matrix takes products with a few vectors.

    Examples
    --------
    >>> cost(4096, 1024)
    Cost(operations=5726623061, memory=25165824)
    """
    p, n = sorted((rows, columns))
    if method == STOCHASTIC and p >= FROM:
        return Cost(4 * n * p * PROBES * _PRODUCTS, memory_of_estimate(p) + _BLOCK_BYTES)
    block = min(n, max(1, _BLOCK_BYTES // (8 * max(p, 1))))
    operations, memory = n * p**2 + 4 * p**3 // 3, 8 * p * (p + block)
    if noise == "mp":
        return Cost(operations, memory)
    return Cost(operations * (1 + _ROUNDS + _FLIPS), memory + 16 * n * p + 24 * p**2)


def seconds(
    rows: int,
    columns: int,
    speed: Speed,
    itemsize: int = 4,
    *,
    noise: str = "mp",
    method: str = "auto",
) -> float:
    """Return the estimated seconds that the analysis of a matrix takes at this speed.

    The matrix is assumed to be in memory; what a disk or a network adds is not known in advance.

    Examples
    --------
    >>> speed = Speed(gram=4e10, reduction=((256, 2e10), (3072, 1e10)), rest=3e-8, read=1e9)
    >>> f"{seconds(4096, 1024, speed):.2f}"
    '0.25'
    """
    p, n = sorted((rows, columns))
    reading = n * p / speed.read * _CONVERSION.get(itemsize, 1.0)
    if method == STOCHASTIC and p >= FROM:
        passes = 2 if itemsize in (4, 8) else _PRODUCTS  # else each product converts the entries
        products = cost(rows, columns, method=method).operations / speed.gram
        return _OVERHEAD + passes * reading + _THIN[itemsize >= 8] * products
    if speed.update is not None and in_two_stages(p):
        solving = 4.0 / 3.0 * p**3 / speed.update + _BAND * p**2 / speed.gram
    else:
        solving = _eigenvalues(p, speed.reduction, speed.rest)
    once = n * p**2 / speed.gram + solving
    times = 1.0 if noise == "mp" else 1.0 + _ROUNDS + _FLIPS * _SINGLE
    return _OVERHEAD + reading + once * times


def calibrate() -> Speed:
    """Return the speed of this machine with the current number of BLAS threads.

    Takes about 0.3 s and 110 MB. The fastest of a few repetitions counts, so an analysis that
    shares its cores with other processes takes longer than the estimate.
    """
    from scipy.linalg.blas import dsyrk

    # Ones, not zeros: pages that were never written would all map to one page, in the cache.
    memory = np.ones(max(_SIDES) ** 2)
    reduction = tuple((side, _reduction(side, memory)) for side in _SIDES)

    sample, product = memory[: 256 * 1024].reshape(256, 1024), np.zeros((1024, 1024), order="F")
    gram = _fastest(lambda: dsyrk(1.0, sample.T, beta=1.0, c=product, trans=0, overwrite_c=1))

    stored = np.ones((1024, 2048), dtype=np.float32)

    def read() -> None:
        block = stored.astype(np.float64)
        np.einsum("ij,ij->i", block, block)

    side = _SIDES[0]
    noise = np.random.default_rng(0).standard_normal((side, side))
    small = np.asfortranarray(noise.T @ noise)
    whole = _fastest(lambda: eigvalsh(small))
    rest = max(0.0, whole - _eigenvalues(side, reduction, 0.0)) / side**2
    update = _update(memory) if in_two_stages(max(_SIDES)) else None
    return Speed(
        gram=sample.size * 1024 / gram, reduction=reduction, rest=rest,
        read=stored.size / _fastest(read), update=update,
    )  # fmt: skip


def _eigenvalues(side: int, reduction: tuple[tuple[int, float], ...], rest: float) -> float:
    """Return the seconds that the eigenvalues of a symmetric matrix take.

    The reduction passes through all sides j from that of the matrix down to 1, with 4 j^2
    operations each, at the speed of the machine at that side.
    """
    if side < 1:
        return 0.0
    steps = 128
    j = (np.arange(steps) + 0.5) * (side / steps)
    sides, speeds = np.array(reduction).T
    time_each = np.interp(np.log(j), np.log(sides), 1.0 / speeds)
    return float(np.sum(4.0 * j**2 * time_each)) * side / steps + rest * side**2


def _reduction(side: int, memory: NDArray[np.float64]) -> float:
    """Return the operations per second of the reduction of one column."""
    from scipy.linalg.blas import dsymv, dsyr2k

    matrix = memory[: side**2].reshape((side, side), order="F")
    panel, vector = np.ones((side, _PANEL), order="F"), np.ones(side)
    product = _fastest(lambda: dsymv(1.0, matrix, vector))
    update = _fastest(lambda: dsyr2k(1.0, panel, panel, beta=1.0, c=matrix, overwrite_c=1))
    return 4 * side**2 / (product + update / _PANEL)


def _update(memory: NDArray[np.float64]) -> float:
    """Return the operations per second of the reduction to a band."""
    from scipy.linalg.blas import dsyr2k

    side = max(_SIDES)
    matrix = memory[: side**2].reshape((side, side), order="F")
    panel = np.ones((side, _WIDE_PANEL), order="F")
    took = _fastest(lambda: dsyr2k(1.0, panel, panel, beta=1.0, c=matrix, overwrite_c=1))
    return _OF_UPDATE * 2 * side**2 * _WIDE_PANEL / took


def _fastest(call: Callable[[], object], budget: float = 0.02) -> float:
    """Return the shortest time of at least three calls, more while the budget lasts.

    With one thread, processor time is used, which excludes other processes. With several threads it
    adds up, and wall time is shorter. (A coarse clock may show no processor time at all.)
    """
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < budget:
        wall, own = time.perf_counter(), time.process_time()
        call()
        wall, own = time.perf_counter() - wall, time.process_time() - own
        times.append(min(wall, own or wall))
    return min(times)
