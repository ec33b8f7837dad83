"""Hard thresholds of least squared error: Gavish and Donoho's, and ScreeNOT.

Both keep the singular values above a threshold that makes the squared error of the truncated matrix
smallest in the limit of large matrices. That lies above the edge of the noise: a component just
beyond the edge is kept too inaccurately to be worth its place.
"""

import math

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.matrix.spectrum import Spectrum

#: ScreeNOT: bound on the rank of the signal, as a share of the smaller side.
RANK_BOUND = 0.25


def gavish_donoho(spec: Spectrum, noise_variance: float | None) -> tuple[float, float]:
    """Return the threshold of Gavish and Donoho and the variance of the noise that it used.

    The threshold, in the units of the spectrum (s^2 / n), is ``variance * lambda(ratio)^2`` with
    ``lambda(b)^2 = 2 (b + 1) + 8 b / (b + 1 + sqrt(b^2 + 14 b + 1))`` (M. Gavish, D. L. Donoho, The
    optimal hard threshold for singular values is 4 / sqrt(3), IEEE Trans. Inf. Theory 60, 2014,
    eq. 11). A variance that is not known is estimated as the squared median singular value over the
    median of the Marchenko-Pastur law (their eq. 20), in place of the cubic that approximates it.
    """
    b = spec.ratio
    coefficient = 2.0 * (b + 1.0) + 8.0 * b / (b + 1.0 + math.sqrt(b * b + 14.0 * b + 1.0))
    if noise_variance is None:
        median = float(np.median(spec.singular_values)) ** 2 / spec.n
        noise_variance = median / MarchenkoPastur(b).median()
    return coefficient * noise_variance, noise_variance


def screenot(spec: Spectrum, bound: int) -> float:
    """Return ScreeNOT's threshold in the units of the spectrum, for a signal of rank <= `bound`.

    The largest `bound` singular values are replaced by a tail that continues the others as the edge
    of a bulk does (`pseudo_noise`); the threshold is where the function of `screenot_function`
    reaches -4 (D. L. Donoho, M. Gavish, E. Romanov, ScreeNOT: exact MSE-optimal singular value
    thresholding in correlated noise, Annals of Statistics 51, 2023, eq. 1.7 and algorithm 1). It is
    found to rounding, in a bracket that scales with the matrix.
    """
    from scipy.optimize import brentq

    noise = pseudo_noise(spec.singular_values, bound)
    top = float(noise[-1])
    if top == 0.0:
        return 0.0
    noise = noise / top
    high = 2.0
    while screenot_function(high, noise, spec.ratio) < -4.0:
        high *= 2.0

    def gap(y: float) -> float:  # F without its poles at the top: has the sign of F + 4
        return screenot_function(y, noise, spec.ratio) + 4.0

    low = 1.0 + 1e-9
    if gap(low) >= 0.0:  # a lone value far above the others: the threshold is at it
        return top**2 / spec.n
    root = float(brentq(gap, low, high, xtol=1e-15, rtol=1e-14))
    return (root * top) ** 2 / spec.n


def pseudo_noise(values: Float64Array, bound: int) -> Float64Array:
    """Return ascending singular values with the largest `bound` imputed from the rest."""
    noise = np.sort(values)
    if bound:
        size = noise.size
        base, below = noise[size - bound - 1], noise[size - 2 * bound - 1]
        steps = (1.0 - (np.arange(bound)[::-1] / bound) ** (2 / 3)) / (2 ** (2 / 3) - 1.0)
        noise[size - bound :] = base + steps * (base - below)
    return noise


def screenot_function(y: float, noise: Float64Array, ratio: float) -> float:
    """Return y D'(y) / D(y), D the D-transform of a distribution of singular values.

    It rises from -inf at the largest of them to -2 at infinity.
    """
    gap = (y - noise) * (y + noise)
    phi = float(np.mean(y / gap))
    slope = -float(np.mean((y * y + noise * noise) / (gap * gap)))
    other = ratio * phi + (1.0 - ratio) / y
    return y * (slope / phi + (ratio * slope - (1.0 - ratio) / (y * y)) / other)
