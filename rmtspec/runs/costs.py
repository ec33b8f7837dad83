"""What the analysis of a matrix costs, from its sides: operations, memory, time on this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Bytes of one float64 block of rows; the eigenvalues' module reads in these (a test compares).
_BLOCK_BYTES = 2**24
#: Sides at which the reduction is timed: in the core's cache, in the shared one, in memory.
_SIDES = (256, 1024, 3072)
#: Columns that LAPACK reduces before it updates the rest of the matrix.
_PANEL = 32
#: Seconds beside the eigenvalues, the same at any side: calls, fit, test, rank.
_OVERHEAD = 5e-4
#: Time to convert and check an entry of so many bytes over that of one of 4 bytes. One byte is an
#: 8-bit float, which is converted in software; of 8 bytes the range is looked at instead.
_CONVERSION = {1: 6.0, 2: 1.5, 8: 1.25}


@dataclass(frozen=True, slots=True)
class Cost:
    """What the analysis of one matrix needs on any machine.

    Attributes
    ----------
    operations : int
        Floating-point operations: Gram matrix and eigenvalues.
    memory : int
        Peak, in bytes, beyond the matrix itself: the Gram matrix and a block of rows in float64.
        A float64 matrix may need less, its blocks being no copies.
    """

    operations: int
    memory: int


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast this machine is, with the BLAS threads it was measured with.

    Attributes
    ----------
    gram : float
        Operations per second of the Gram matrix (dsyrk).
    reduction : tuple of (side, float)
        Operations per second, at several sides ascending, of the reduction to tridiagonal form:
        half are matrix-vector products (dsymv), bound by memory once the matrix has left the
        cache, half updates of rank 2k (dsyr2k).
    rest : float
        Seconds per squared side of what is left of the eigenvalues: the reduction within panels,
        and the tridiagonal matrix.
    read : float
        Entries per second of 4 bytes, converted to float64 and checked, from memory.
    """

    gram: float
    reduction: tuple[tuple[int, float], ...]
    rest: float
    read: float


def cost(rows: int, columns: int) -> Cost:
    """Return what the analysis of a matrix needs.

    With n the larger side and p the smaller: n p^2 operations make the Gram matrix, 4/3 p^3
    reduce it to tridiagonal form; lower powers are left out. The SVD route, which is taken where
    few eigenvalues dwarf the others, costs several times as much.

    Parameters
    ----------
    rows, columns : int
        Of the matrix, in either order.

    Returns
    -------
    Cost

    Examples
    --------
    >>> cost(4096, 1024)
    Cost(operations=5726623061, memory=25165824)
    """
    n, p = max(rows, columns), min(rows, columns)
    block = min(n, max(1, _BLOCK_BYTES // (8 * max(p, 1))))
    return Cost(n * p**2 + 4 * p**3 // 3, 8 * p * (p + block))


def seconds(rows: int, columns: int, speed: Speed, itemsize: int = 4) -> float:
    """Return the estimated time of the analysis of a matrix on this machine.

    Parameters
    ----------
    rows, columns : int
        Of the matrix, in either order.
    speed : Speed
        Of `calibrate`.
    itemsize : int
        Bytes of an entry.

    Returns
    -------
    float
        Seconds, reading from memory: what a disk or a network adds is not known beforehand.

    Examples
    --------
    >>> speed = Speed(gram=4e10, reduction=((256, 2e10), (3072, 1e10)), rest=3e-8, read=1e9)
    >>> f"{seconds(4096, 1024, speed):.2f}"
    '0.25'
    """
    n, p = max(rows, columns), min(rows, columns)
    reading = n * p / speed.read * _CONVERSION.get(itemsize, 1.0)
    solving = _eigenvalues(p, speed.reduction, speed.rest)
    return _OVERHEAD + reading + n * p**2 / speed.gram + solving


def calibrate() -> Speed:
    """Return the speed of this machine with as many BLAS threads as are set now.

    Takes about 0.3 s and 110 MB. The fastest of a few repetitions counts, as if no other process
    wanted the core: where one does, an analysis takes longer than its estimate.

    Returns
    -------
    Speed
    """
    from scipy.linalg import eigvalsh
    from scipy.linalg.blas import dsyrk

    # Ones, not zeros: pages that were never written are all the same one, in the cache.
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
    whole = _fastest(lambda: eigvalsh(small, lower=False, check_finite=False, driver="evd"))
    rest = max(0.0, whole - _eigenvalues(side, reduction, 0.0)) / side**2
    return Speed(sample.size * 1024 / gram, reduction, rest, stored.size / _fastest(read))


def _eigenvalues(side: int, reduction: tuple[tuple[int, float], ...], rest: float) -> float:
    """Return the seconds of the eigenvalues of a symmetric matrix.

    The reduction goes through all sides j from the matrix's own to 1, with 4 j^2 operations each,
    at the speed the machine has at that side.
    """
    if side < 1:
        return 0.0
    steps = 128
    j = (np.arange(steps) + 0.5) * (side / steps)
    sides, speeds = np.array(reduction).T
    time_each = np.interp(np.log(j), np.log(sides), 1.0 / speeds)
    return float(np.sum(4.0 * j**2 * time_each)) * side / steps + rest * side**2


def _reduction(side: int, memory: NDArray[np.float64]) -> float:
    """Return the operations per second of one column's share of the reduction."""
    from scipy.linalg.blas import dsymv, dsyr2k

    matrix = memory[: side**2].reshape((side, side), order="F")
    panel, vector = np.ones((side, _PANEL), order="F"), np.ones(side)
    product = _fastest(lambda: dsymv(1.0, matrix, vector))
    update = _fastest(lambda: dsyr2k(1.0, panel, panel, beta=1.0, c=matrix, overwrite_c=1))
    return 4 * side**2 / (product + update / _PANEL)


def _fastest(call: Callable[[], object], budget: float = 0.02) -> float:
    """Return the least seconds of several calls: three, and more while the budget lasts.

    On one thread the processor's time counts, which runs only while this process has the core. On
    several theirs add up, and the wall's is less. (A coarse clock may show none at all.)
    """
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < budget:
        wall, own = time.perf_counter(), time.process_time()
        call()
        wall, own = time.perf_counter() - wall, time.process_time() - own
        times.append(min(wall, own or wall))
    return min(times)
