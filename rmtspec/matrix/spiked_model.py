"""Components in white noise: what noise does to singular values and vectors, and how to undo it.

Let W = S + N be n x p with n >= p, noise of variance v, and a signal S of low rank whose singular
values are ``theta sqrt(n v)``. With g = p / n, each theta above the detection limit ``g^(1/4)``
shows as a singular value s beyond the bulk (Benaych-Georges and Nadakuditi, 2012)::

    s^2 / (n v) = (1 + theta^2) (g + theta^2) / theta^2
    <u, u'>^2   = (theta^4 - g) / (theta^4 + theta^2)      on the side of length n
    <v, v'>^2   = (theta^4 - g) / (theta^4 + g theta^2)    on the side of length p

A weaker one leaves the largest singular value at the edge, ``s^2 / (n v) = (1 + sqrt g)^2``.
"""

import math

import numpy as np

from rmtspec._checks import Float64Array

#: The fixed point is reached when the variance moves by less than this share of itself.
_SETTLED = 1e-10
_MAX_ITERATIONS = 1000


def detection_limit(n: int, p: int) -> float:
    """Return the strength, in units of sqrt(n v), below which a component leaves no outlier."""
    return float((p / n) ** 0.25)


def strengths(squares: Float64Array, n: int, p: int) -> Float64Array:
    """Return theta of each s^2 / (n v); 0 where it does not stand beyond the edge of the noise."""
    ratio = p / n
    centred = squares - 1.0 - ratio
    visible = squares > (1.0 + np.sqrt(ratio)) ** 2
    # The larger root of theta^4 - centred theta^2 + ratio = 0.
    product = (centred - 2.0 * np.sqrt(ratio)) * (centred + 2.0 * np.sqrt(ratio))
    root = np.sqrt(np.where(visible, product, 0.0))
    theta: Float64Array = np.where(visible, np.sqrt(np.abs(centred + root) / 2.0), 0.0)
    return theta


def overlaps(theta: Float64Array, n: int, p: int) -> tuple[Float64Array, Float64Array]:
    """Return |<u, u'>| (side of length n) and |<v, v'>| (of length p); 0 where hidden."""
    ratio = p / n
    square = np.square(theta)
    visible = theta > detection_limit(n, p)
    safe = np.where(visible, square, 1.0)  # in the hidden places nothing below is used
    share = np.maximum(1.0 - (ratio / safe) / safe, 0.0)
    longer = np.where(visible, np.sqrt(share / (1.0 + 1.0 / safe)), 0.0)
    shorter = np.where(visible, np.sqrt(share / (1.0 + ratio / safe)), 0.0)
    return longer, shorter


def residual_variance(
    energy: float, squares: Float64Array, *, n: int, p: int, all_real: bool = False
) -> float:
    """Return the variance of white noise from what k components leave of the squares of a matrix.

    `energy` is that of the entries beyond the k components, `squares` are their s^2. Leading
    singular vectors lean towards the noise, and each takes ``v (p - k) / theta^2`` more of it than
    (n - k)(p - k) says, which is added back. Components lift each other: theta is that of
    ``s^2 - k v`` in an (n - k) x (p - k) matrix. With v on both sides, this is iterated, upwards
    from no addition. A component that does not stand beyond the edge counts as noise, which bears
    a k that is too large; with `all_real` it counts as one at the detection limit, which bears
    components near it.
    """
    k = count = len(squares)
    variance = energy / float((n - k) * (p - k))
    if variance <= 0.0:
        return 0.0
    for _ in range(_MAX_ITERATIONS):
        longer, shorter = n - count, p - count
        shifted = (squares - count * variance) / (longer * variance)
        theta = strengths(shifted, longer, shorter)
        visible = theta > 0.0
        lost = float(np.sum(shorter / np.square(theta[visible])))
        if all_real:  # the signal's share of the others
            lost -= float(np.sum(~visible)) * math.sqrt(longer * shorter)
        count = int(np.sum(visible))
        noise = energy + float(np.sum(squares[~visible])) + variance * lost
        longer, shorter = n - count, p - count
        following = noise / float(longer * shorter)
        if abs(following - variance) <= _SETTLED * following:
            return following
        variance = following
    return variance
