"""Sign flips of the bulk: a matrix whose leading components stay while the rest loses its order.

A sign flip keeps the size of every entry of the bulk, and so its rows, columns and tails, and
destroys whatever its signs say together. If what a network computes survives that, it does not need
what the bulk says.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.matrix.eigenvalues import gram_matrix
from rmtspec.matrix.split import split


def flipped_bulk(W: ArrayLike, n_components: int, rng: Any = 0) -> Float64Array:
    """Return a matrix with the signs of its bulk flipped at random, entry by entry.

    With L the sum of the `n_components` leading singular components, the bulk is W - L, and the
    result L + (W - L) * signs: entries whose sign stays are those of `W` to the last bit.

    Parameters
    ----------
    W : array_like of shape (rows, columns)
        Real, of any floating dtype; not changed.
    n_components : int
        From 0, where the whole matrix is the bulk, to the smaller side, where there is no bulk.
    rng : int or numpy.random.Generator
        Seed; the same gives the same result.

    Returns
    -------
    ndarray of shape (rows, columns)
        In float64.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        `W` is not a real matrix of finite numbers, or another argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import rmtspec
    >>> from rmtspec.matrix.flip import flipped_bulk
    >>> W = rmtspec.ensembles.spiked(400, 300, [5, 20], rng=0)
    >>> flipped = flipped_bulk(W, 2, rng=1)
    >>> bool(np.isclose((flipped == W).mean(), 0.5, atol=0.01))
    True
    >>> rmtspec.bema(rmtspec.spectrum(flipped)).n_spikes
    2
    """
    generator = _checks.generator(rng)
    array = _checks.matrix(W)
    return BulkFlip.of(array, n_components).draw(array, generator)


@dataclass(frozen=True, slots=True, eq=False)
class BulkFlip:
    """What sign flips of a matrix's bulk need: its leading components, as two thin factors.

    Attributes
    ----------
    n_components : int
        Number of leading components.
    bulk_share : float
        Share of ||W||^2 in the bulk.
    leading : tuple of two ndarrays, or None
        Factors whose product is the sum of the leading components, float64; None without any.
    """

    n_components: int
    bulk_share: float
    leading: tuple[Float64Array, Float64Array] | None

    @classmethod
    def of(cls, W: ArrayLike, n_components: int) -> Self:
        """Return the flip of a matrix; see `flipped_bulk`."""
        array = _checks.matrix(W)
        hint = f"`W` is {array.shape[0]} x {array.shape[1]}. The bulk is what lies beyond these."
        k = _checks.integer(n_components, "n_components", 0, min(array.shape), hint=hint)
        if k == 0:
            gram_matrix(array)  # which raises for entries that are not finite
            return cls(0, 1.0, None)
        parts = split(np.asarray(array, dtype=np.float64), k)
        share = 0.0 if k == min(array.shape) else parts.discarded_energy
        return cls(k, share, (parts.outer, parts.inner))

    def draw(self, W: ArrayLike, generator: np.random.Generator) -> Float64Array:
        """Return the matrix with newly drawn signs of its bulk, in float64."""
        array = np.asarray(W, dtype=np.float64)
        flips: NDArray[np.bool_] = generator.integers(0, 2, array.shape, dtype=np.bool_)
        if self.leading is None:
            return np.where(flips, -array, array)
        turned = 2.0 * (self.leading[0] @ self.leading[1])
        turned -= array
        return np.where(flips, turned, array)
