"""How others count the components of a matrix, each under its own name.

Where a peer is on PyPI, its own package does the work at its own defaults (`make bench` installs
them); where it is not, its published formula is written out here, with the place it is from. No
function is ours, and none is used by rmtspec.

What they really do:

========================= =========================================================================
WeightWatcher             fits sigma of the Marchenko-Pastur density to a kernel density of the
                          rescaled eigenvalues on a grid; counts beyond the edge plus
                          sqrt(edge^(2/3) M^(-2/3) / sqrt(Q)), which it calls Tracy-Widom's range
laserRMT, Spectrum        the edge sigma (1 + sqrt(ratio)) on the singular values, without
                          sqrt(n); sigma is the interquartile range of singular values over 1.349:
                          the spread of the spectrum, taken for the deviation of the entries
dyson-equalizer           scales rows and columns by the Dyson equation, once; counts beyond
                          sqrt(m) + sqrt(n)
brine-equalizer           the same, repeated in one direction at a time
screenot                  threshold of least squared error; needs a bound on the rank, here p // 4
entroptics                whitens each column, folds smooth axes, counts beyond the edge of noise:
                          by shuffled columns, or Tracy-Widom's law
diffract-core             the edge from the standard deviation of all entries, signal included, less
                          the squares of what stands out in the shuffled matrix; as edge, or with
                          the Tracy-Widom quantile at 0.005
========================= =========================================================================
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Peer(NamedTuple):
    """How a peer counts, and what its function rests on."""

    count: Callable[[Any], int]
    source: str


def weightwatcher(W: Any) -> int:
    """Return `num_spikes` of WeightWatcher's fit, as `analyze(mp_fit=True)` does it."""
    from weightwatcher import WeightWatcher

    squares = np.sort(np.linalg.svd(W, compute_uv=False) ** 2)
    n, m = max(W.shape), min(W.shape)
    ours_to_say = {"layer_name": "W", "layer_id": 0, "plot_id": "0", "color": "", "hist_alpha": 1.0}
    silent = {"plot": False, "savefig": False, "savedir": ""}
    fit = WeightWatcher.mp_fit(
        None, squares, n, m, 1, **ours_to_say, **silent, rescale=True, orig_evals=squares
    )
    return int(fit[0])


def laser_rmt(W: Any) -> int:
    """Return the rank that laserRMT cuts to (rmt_laser.py, cognitivecomputations/laserRMT)."""
    s = np.linalg.svd(W, compute_uv=False)
    upper, lower = np.quantile(s, [0.75, 0.25])
    ratio = min(W.shape) / max(W.shape)
    return int(np.count_nonzero(s > (upper - lower) / 1.349 * (1.0 + math.sqrt(ratio))))


def dyson_equalizer(W: Any) -> int:
    """Return the rank of Landa and Kluger's equalizer; rows are its shorter side."""
    from dyson_equalizer.dyson_equalizer import DysonEqualizer

    return int(DysonEqualizer(_wide(W)).compute().r_hat)


def brine_equalizer(W: Any) -> int:
    """Return the rank of the iterated equalizer."""
    from brine import BRINE

    return int(BRINE(_wide(W)).run().r_hat)


def screenot(W: Any) -> int:
    """Return the rank of Donoho, Gavish and Romanov's adaptive threshold."""
    from screenot import adaptiveHardThresholding

    return int(adaptiveHardThresholding(np.asarray(W, dtype=float), min(W.shape) // 4)[2])


def entroptics(W: Any) -> int:
    """Return the count above the noise; its records are the rows of the longer side."""
    from entroptics import Aperture

    return int(Aperture(_wide(W).T.copy()).projection().K_signal)


def diffract(W: Any) -> int:
    """Return `mp_num_spikes` (kernels/marchenko_pastur.py, Risk-AI-Research/diffract)."""
    squares, deviation = _diffract_fit(W)
    ratio = min(W.shape) / max(W.shape)
    edge = min(deviation**2 * (1.0 + math.sqrt(ratio)) ** 2, squares.max())
    return int(np.count_nonzero(squares > edge))


def diffract_tracy_widom(W: Any) -> int:
    """Return `tw_num_spikes` (kernels/tracy_widom.py), with the quantile from rmtspec."""
    from rmtspec import TracyWidom

    squares, deviation = _diffract_fit(W)
    n, p = max(W.shape), min(W.shape)
    place = math.sqrt(n - 1) + math.sqrt(p)
    inverse = 1.0 / math.sqrt(n - 1) + 1.0 / math.sqrt(p)
    margin = TracyWidom(1).isf(0.005) * place * inverse ** (1.0 / 3.0)
    return int(np.count_nonzero(squares > deviation**2 / n * (place**2 + margin)))


def _diffract_fit(W: Any) -> tuple[Any, float]:
    """Return the eigenvalues s^2 / n and the corrected standard deviation of the noise."""
    n, p = max(W.shape), min(W.shape)
    squares = np.linalg.svd(W, compute_uv=False) ** 2 / n
    shuffled = np.random.default_rng(42).permutation(np.asarray(W).ravel()).reshape(W.shape)
    flat = np.linalg.svd(shuffled, compute_uv=False) ** 2 / n
    variance = float(np.std(W)) ** 2
    beyond = flat[flat > variance * (1.0 + math.sqrt(p / n)) ** 2]
    return squares, math.sqrt(max(variance - float(beyond.sum()) / p, 0.0))


def _wide(W: Any) -> Any:
    array = np.asarray(W, dtype=float)
    return array if array.shape[0] <= array.shape[1] else array.T.copy()


PEERS = {
    "WeightWatcher": Peer(weightwatcher, "package weightwatcher"),
    "laserRMT": Peer(laser_rmt, "formula: not on PyPI"),
    "Spectrum": Peer(laser_rmt, "formula, the same as laserRMT's: not on PyPI"),
    "dyson-equalizer": Peer(dyson_equalizer, "package dyson-equalizer"),
    "brine-equalizer": Peer(brine_equalizer, "package brine-equalizer"),
    "screenot": Peer(screenot, "package screenot"),
    "entroptics": Peer(entroptics, "package entroptics"),
    "diffract-core": Peer(diffract, "formula: not on PyPI"),
    "diffract-core, Tracy-Widom": Peer(diffract_tracy_widom, "formula: not on PyPI"),
}
