"""The power law of a tail: its exponent, where it begins, and how far the tail is from it."""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec.errors import MissingDependencyError
from rmtspec.terms import Why

#: With fewer values no tail is fitted.
LEAST_VALUES = 8
#: Exponents that a fit may have. The package's own limit is 3, which spectra exceed.
_EXPONENTS = (1.0, 1e6)


class PowerLaw(NamedTuple):
    """The fit of ``x^-alpha`` for x from `xmin` on; nan with a reason where there is none.

    `distance` is the Kolmogorov-Smirnov distance of the tail from the law, `error` the standard
    error of the exponent, and `tail` how many values the tail has.
    """

    alpha: float
    xmin: float
    distance: float
    error: float
    tail: float
    reason: str


def powerlaw_package() -> Any:
    """Return the package `powerlaw`; raise MissingDependencyError without one that serves."""
    wanted = 'which comes with pip install "rmtspec[metrics]"'
    try:
        import powerlaw
    except ImportError:
        raise MissingDependencyError(
            f"`metrics` needs the package powerlaw, {wanted}; it is not installed."
        ) from None
    if not hasattr(powerlaw.Power_Law, "DEFAULT_PARAMETER_RANGES"):
        raise MissingDependencyError(
            f"`metrics` needs the package powerlaw 2.0 or later, {wanted}; an earlier one is "
            "installed."
        )
    return powerlaw


def fit_power_law(values: Float64Array) -> PowerLaw:
    """Fit the tail of positive values, by likelihood, from the xmin of the least distance [1]_.

    References
    ----------
    .. [1] A. Clauset, C. R. Shalizi, M. E. J. Newman, Power-law distributions in empirical data,
       SIAM Review 51 (2009), equations 3.1 and 3.9.
    """
    package = powerlaw_package()
    if values.size < LEAST_VALUES:
        return _without(Why.FEW_FOR_A_TAIL.words(count=values.size, least=LEAST_VALUES))
    if np.unique(values).size < LEAST_VALUES:
        return _without(Why.NO_TAIL.words(why="too few different eigenvalues"))
    unit = float(values.max())  # powers of large numbers would overflow
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            fit = package.Fit(values / unit, verbose=0, parameter_ranges={"alpha": [*_EXPONENTS]})
        except (ValueError, ArithmeticError, LookupError) as error:
            return _without(Why.NO_TAIL.words(why=error))
    alpha, xmin, distance = float(fit.alpha), float(fit.xmin), float(fit.D)
    if fit.noise_flag or not np.isfinite([alpha, xmin, distance]).all():
        return _without(Why.NO_TAIL.words(why="no beginning of a tail gives a fit"))
    tail = int(np.count_nonzero(values / unit >= xmin))
    standard = (alpha - 1.0) / math.sqrt(tail)
    return PowerLaw(alpha, xmin * unit, distance, error=standard, tail=tail, reason="")


def _without(reason: str) -> PowerLaw:
    nan = math.nan
    return PowerLaw(nan, nan, nan, error=nan, tail=nan, reason=reason)
