"""Gamma fit: a bulk of columns that differ in variance, described by one more number."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._kernels.bulk import largest_gap, scale_through_origin
from rmtspec._lapack import eigvalsh
from rmtspec._records import plain
from rmtspec._text import Readable, aligned
from rmtspec.laws.gamma_bulk import GammaMarchenkoPastur
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.matrix.spectrum import Spectrum, check_spectrum
from rmtspec.matrix.window import Window, bulk_window
from rmtspec.terms import Why

Bulk = GammaMarchenkoPastur | MarchenkoPastur

#: Shapes tried. Above the last, the law is that of Marchenko and Pastur to the eye and to the test.
_SHAPES = (0.2, 2000.0)
_TOLERANCE = 1e-3  # of log(shape)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class GammaFit(Readable):
    """Result of `fit_gamma`: how far the variances of the columns spread, as a bulk shows it.

    A description of the bulk. It counts nothing, since it takes weak signal for differences in
    variance. If nothing could be fitted, the numbers are nan, `law` is None, and `reason` says why.

    Attributes
    ----------
    shape : float
        Shape of the gamma law of the variances: 1 / shape is the variance of the variances over
        their squared mean. It is inf where equal variances fit best.
    variance : float
        Mean variance of the entries, in the units of the spectrum.
    statistic : float
        Largest distance over the bulk between the empirical distribution function (at midpoints)
        and that of the law, as in `fit_test`; `p` times it is comparable between sizes.
    pvalue : float
        Share of simulated matrices whose own gamma fit is at least as far off, this one counted:
        (1 + exceedances) / (1 + draws); nan without draws.
    law : GammaMarchenkoPastur, MarchenkoPastur or None
        The fitted law, of the whole spectrum; Marchenko and Pastur's where the shape is inf.
    n, p : int
        Larger and smaller side of the matrix.
    alpha : float
        Share of the spectrum left out at each end.
    draws : int
        Number of simulated matrices.
    reason : str
        Why there are no numbers ("no bulk"); empty if there are.
    """

    shape: float
    variance: float
    statistic: float
    pvalue: float
    law: Bulk | None
    n: int
    p: int
    alpha: float
    draws: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values (nan and inf as None)."""
        return {name: plain(getattr(self, name)) for name in self.__slots__ if name != "law"}

    def __repr__(self) -> str:
        sides = ("n, p", f"{self.n}, {self.p}")
        if self.reason:
            return aligned("GammaFit", [("reason", self.reason), sides])
        tested = f"{self.pvalue:.3g} ({self.draws} draws)" if self.draws else "not asked for"
        pairs: list[tuple[str, object]] = [
            ("shape", self.shape),
            ("variance", self.variance),
            ("statistic", f"{self.statistic:.4g} ({self.p * self.statistic:.3g} / p)"),
            ("pvalue", tested),
            sides,
        ]
        return aligned("GammaFit", pairs)


def fit_gamma(spec: Spectrum, alpha: float = 0.2, *, draws: int = 19, rng: Any = 0) -> GammaFit:
    """Fit the bulk of a matrix whose columns have gamma-distributed variances.

    The model of Ke, Ma and Lin [1]_: independent entries, and p variances, those of the columns if
    the matrix is taller than wide, of the rows otherwise, that are independent draws of a gamma
    law. The shape minimises the squared distance between the eigenvalues and the quantiles of the
    law (`GammaMarchenkoPastur`) over the ranks alpha p to (1 - alpha) p; at each shape the variance
    is the least-squares one, as in `bema`.

    Use it to say what a bulk looks like, beside the fit of the Marchenko-Pastur law. Do not count
    spikes beyond it: a matrix with many weak components has a long upper tail, which the fit takes
    for a small shape.

    Parameters
    ----------
    spec : Spectrum
        From `spectrum`, or made from eigenvalues.
    alpha : float
        Share of the spectrum left out at each end, in (0, 1/2).
    draws : int
        Matrices simulated from the fitted law, variances drawn anew, and fitted in the same way,
        for the p-value; 0 leaves it out. A draw costs about as much as a spectrum and a fit.
    rng : int or numpy.random.Generator
        Seed; the same gives the same result.

    Returns
    -------
    GammaFit

    Raises
    ------
    InvalidTypeError
        `spec` is not a Spectrum, or an option is of the wrong type.
    InvalidValueError
        An option is outside its range.

    References
    ----------
    .. [1] Z. T. Ke, Y. Ma, X. Lin, Estimation of the number of spiked eigenvalues in a covariance
       matrix by bulk eigenvalue matching analysis, JASA (2021).

    Examples
    --------
    >>> import numpy as np
    >>> import rmtspec
    >>> rng = np.random.default_rng(0)
    >>> W = rng.standard_normal((600, 400)) * np.sqrt(rng.gamma(2.0, 0.5, 400))
    >>> fit = rmtspec.fit_gamma(rmtspec.spectrum(W), draws=0)
    >>> print(f"{fit.shape:.1f}")
    2.0
    """
    check_spectrum(spec)
    hint = "It is the share of the spectrum left out at each end; 0.2 suits most matrices."
    alpha = _checks.inside(alpha, "alpha", 0.0, 0.5, hint=hint)
    draws = _checks.integer(draws, "draws", 0, hint="19 allow a p-value of 0.05; 0 leaves it out.")
    generator = _checks.generator(rng)
    window = bulk_window(spec.p, alpha)
    law = None
    if window.n_ranks and window.first > spec.p - spec.numerical_rank:
        law = _closest(spec.eigenvalues, spec.n, window)
    if law is None or law.variance <= spec.rounding_variance:
        nan = math.nan
        return GammaFit(
            shape=nan, variance=nan, statistic=nan, pvalue=nan, law=None, n=spec.n, p=spec.p,
            alpha=alpha, draws=0, reason=Why.NO_BULK.words(),
        )  # fmt: skip
    s = _distance(spec.eigenvalues, law, window)
    pvalue = _pvalue(s, law, spec, window=window, draws=draws, generator=generator)
    return GammaFit(
        shape=_shape(law), variance=law.variance, statistic=s, pvalue=pvalue, law=law,
        n=spec.n, p=spec.p, alpha=alpha, draws=draws, reason="",
    )  # fmt: skip


def _closest(eigenvalues: Float64Array, n: int, window: Window) -> Bulk:
    """Return the law whose quantiles are nearest to the eigenvalues of the window."""
    from scipy.optimize import minimize_scalar

    largest = float(eigenvalues[-1])  # the unit here: squares of eigenvalues may overflow
    values, levels = window.of(eigenvalues) / largest, window.levels("midpoint")
    ratio = window.size / n

    def scale_and_rest(unit: Float64Array) -> tuple[float, float]:
        scale = float(scale_through_origin(unit, values))
        rest = values - scale * unit
        return scale, float(rest @ rest)

    def misfit(log_shape: float) -> float:
        law = GammaMarchenkoPastur(ratio, math.exp(log_shape))
        return scale_and_rest(law.rough_ppf(levels))[1]

    bounds = [math.log(shape) for shape in _SHAPES]
    options = {"xatol": _TOLERANCE}
    best = minimize_scalar(misfit, bounds=bounds, method="bounded", options=options)
    scale, rest = scale_and_rest(MarchenkoPastur(ratio).ppf(levels))
    if rest <= float(best.fun):
        return MarchenkoPastur(ratio, scale * largest)
    shape = math.exp(float(best.x))
    unit = GammaMarchenkoPastur(ratio, shape).ppf(levels)
    return GammaMarchenkoPastur(ratio, shape, scale_and_rest(unit)[0] * largest)


def _shape(law: Bulk) -> float:
    return law.shape if isinstance(law, GammaMarchenkoPastur) else math.inf


def _distance(eigenvalues: Float64Array, law: Bulk, window: Window) -> float:
    return float(largest_gap(law.cdf(window.of(eigenvalues)), window.first, window.size))


def _pvalue(
    s: float, law: Bulk, spec: Spectrum, *, window: Window, draws: int, generator: Any
) -> float:
    """Return the share of draws of the law, each fitted anew, that are at least `s` off."""
    if not draws:
        return math.nan
    further = 0
    for _ in range(draws):
        eigenvalues = _noise_eigenvalues(spec.n, spec.p, _shape(law), generator)
        further += _distance(eigenvalues, _closest(eigenvalues, spec.n, window), window) >= s
    return (1 + further) / (1 + draws)


def _noise_eigenvalues(n: int, p: int, shape: float, generator: Any) -> Float64Array:
    """Return eigenvalues of W^T W / n for Gaussian noise of gamma variances, by its QR factor."""
    factor = np.triu(generator.standard_normal((p, p)), 1)
    np.fill_diagonal(factor, np.sqrt(generator.chisquare(np.arange(n, n - p, -1))))
    if math.isfinite(shape):
        factor *= np.sqrt(generator.gamma(shape, 1.0 / shape, p))
    values: Float64Array = eigvalsh(factor.T @ factor, overwrite=True) / n
    return np.maximum(values, 0.0)
