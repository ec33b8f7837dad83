"""Flip test: whether what is left of a matrix has the spectrum of its own random sign flips."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec._kernels.bulk import pool_distances
from rmtspec.matrix.sign_flips import flipped_spectra
from rmtspec.matrix.window import Window, bulk_window

N_FLIPS = 19
#: The share of the spectrum left out at each end, as in `rmtspec.bema`.
ALPHA = 0.2
#: Flips whose spectra agree to this share say nothing.
_SAME = 1e-6


@dataclass(frozen=True, slots=True)
class FlipTest:
    """Result of the flip test.

    Attributes
    ----------
    pvalue : float
        (1 + the number of flips at least as far from the others) / 20; nan for a bulk of one or
        two eigenvalues.
    distance : float
        Largest distance between the distribution functions of the bulk and of its flips.
    informative : bool
        False if the flips all have the same spectrum, as those of a diagonal matrix do.
    quantiles : ndarray of shape (p - k,)
        Mean of the flips' sorted values, in the units of the spectrum given, for drawing.
    """

    pvalue: float
    distance: float
    informative: bool
    quantiles: Float64Array


def flip_test(bulk: Float64Array, residual: NDArray[np.float32], n: int, seed: int) -> FlipTest:
    """Compare the eigenvalues of a bulk with those of sign flips of its residual.

    Parameters
    ----------
    bulk : ndarray of shape (p - k,)
        The lowest eigenvalues s^2 / n, ascending, without the k components.
    residual : ndarray of shape (n, p)
        The entries without the components.
    n : int
        The larger side.
    seed : int
        Of the flips.

    Notes
    -----
    Each flip leaves out k random rows and columns. All spectra are scaled to one size over the
    window of `rmtspec.bema`, and each to the others by least squares there, so that only their
    shapes are compared.
    """
    p = residual.shape[1]
    k = p - bulk.size
    generator = np.random.default_rng([seed, k, N_FLIPS])
    spectra = np.vstack([bulk, flipped_spectra(residual, k, N_FLIPS, generator) / n])
    window = bulk_window(bulk.size, ALPHA)
    if window.n_ranks == 0:
        return FlipTest(math.nan, math.nan, informative=False, quantiles=spectra[1:].mean(axis=0))
    mean = spectra[1:].mean(axis=0)
    spread = float(np.abs(spectra[1:] - mean).max())
    sizes = np.linalg.norm(spectra[:, window.first - 1 : window.last], axis=1)
    shapes = spectra / np.where(sizes > 0.0, sizes, 1.0)[:, None]
    distances = _distances(shapes, window)
    further = int(np.count_nonzero(distances[1:] >= distances[0]))
    return FlipTest(
        pvalue=(1 + further) / (N_FLIPS + 1),
        distance=float(distances[0]),
        informative=spread > _SAME * float(mean[-1]),
        quantiles=mean,
    )


def _distances(spectra: Float64Array, window: Window) -> Float64Array:
    """Return how far each spectrum is from the pool of the others, scaled to it."""
    distances = np.empty(len(spectra))
    levels = window.levels("midpoint")
    pool_distances(spectra, np.sort(spectra, axis=None), window.first - 1, levels, out=distances)
    return distances
