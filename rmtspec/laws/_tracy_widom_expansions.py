"""Logs of the Tracy-Widom tails far out, where F or 1 - F is below the smallest float.

These are for points beyond the table, where the first terms are accurate to 1e-12 or better.
Everything is in t, which for beta = 4 is sqrt(2) s. With x = -t, and E the integral of the
Hastings-McLeod function over (t, inf),

    log F2 = -x^3 / 12 - log(x) / 8 + zeta'(-1) + log(2) / 24 + 3 / (64 x^3) + 2025 / (8192 x^6)
    E = sqrt(2) x^1.5 / 3 + log(2) / 2 + x^-1.5 / (12 sqrt 2) + 73 x^-4.5 / (576 sqrt 2)

(Deift, Its, Krasovsky 2008; Baik, Buckingham, DiFranco 2008), F+ = sqrt(F2) exp(-E / 2),
F- = sqrt(F2) exp(E / 2), and F4 = F- / 2, since F+ is negligible there. On the right, the first
term of the determinants gives 1 - F1 = I / 2, 1 - F2 = K and 1 - F4 = (K - I^2 / 4) / 2, where I is
the integral of Ai over (t, inf) and K that of (y - t) Ai(y)^2; all are computed by their series in
z = t^-1.5. The slopes are the derivatives of these and are finite everywhere.
"""

import numpy as np
from numpy.polynomial.polynomial import polyder, polyval

from rmtspec._checks import Float64Array

_ZETA_PRIME = -0.16542114370045092  # zeta'(-1)
_ROOT2 = float(np.sqrt(2.0))
#: beta: (c, k, n, series) of log(1 - F) = -c t^1.5 - log(k) + n log(z) + log(series in z)
_RIGHT = {
    1: (2 / 3, 4 * np.sqrt(np.pi), 0.5,
        (1.0, -41 / 48, 9241 / 4608, -5075225 / 663552, 5153008945 / 127401984)),
    2: (4 / 3, 16 * np.pi, 1.0,
        (1.0, -35 / 24, 3745 / 1152, -805805 / 82944, 289554265 / 7962624)),
    4: (4 / 3, 128 * np.pi, 2.0,
        (1.0, -143 / 24, 41509 / 1152, -20443229 / 82944, 15418569025 / 7962624)),
}  # fmt: skip


def log_cdf(t: Float64Array, beta: int) -> tuple[Float64Array, Float64Array]:
    """Return log F and its slope for `t` far to the left; -inf beyond the floats."""
    x = np.minimum(-t, 1e60)  # beyond, only the leading term counts; avoids the log of inf
    cube = x**-3
    unitary = -1 / 12 + cube * (
        -np.log(x) / 8 + _ZETA_PRIME + np.log(2.0) / 24 + cube * (3 / 64 + cube * 2025 / 8192)
    )
    root = x**-1.5
    odd = root * (_ROOT2 / 3 + root * np.log(2.0) / 2 + cube * (1 + cube * 73 / 48) / (12 * _ROOT2))
    # derivatives with respect to t, divided by x^2
    unitary_slope = 1 / 4 + cube * (1 / 8 + cube * (9 / 64 + cube * 6075 / 4096))
    odd_slope = -root / _ROOT2 * (1 - cube * (1 / 8 + cube * 73 / 128))
    share, slope = {
        1: ((unitary - odd) / 2, (unitary_slope - odd_slope) / 2),
        2: (unitary, unitary_slope),
        4: ((unitary + odd) / 2 - cube * np.log(2.0), (unitary_slope + odd_slope) / 2),
    }[beta]
    with np.errstate(over="ignore"):
        return np.asarray((-t) ** 3 * share), np.asarray(x**2 * slope)


def log_sf(t: Float64Array, beta: int) -> tuple[Float64Array, Float64Array]:
    """Return log(1 - F) and its slope for `t` far to the right; -inf beyond the floats."""
    rate, constant, power, series = _RIGHT[beta]
    with np.errstate(over="ignore"):
        size = t**1.5
    near = np.minimum(t, 1e200)
    z = near**-1.5
    value, change = polyval(z, series), polyval(z, polyder(series))
    slope = -1.5 / near * (rate / z + power + z * change / value)
    return np.asarray(-rate * size + power * np.log(z) + np.log(value / constant)), slope
