"""Lower end of a spectrum: the values that noise does not make so small."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._records import plain
from rmtspec._text import Readable, aligned, counted
from rmtspec.errors import InvalidOptionError, InvalidTypeError, InvalidValueError
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.laws.tracy_widom import upper_quantile
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.fit_test import check_fit
from rmtspec.matrix.spectrum import Spectrum, check_spectrum
from rmtspec.terms import Why


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class LowerEnd(Readable):
    """Result of `below_bulk`: the eigenvalues below the noise, without the numerically zero ones.

    Everything is in the units of the spectrum, s^2 / n. Without a law, or without a lower edge, the
    threshold and the count are nan, and `reason` says why.

    Attributes
    ----------
    threshold : float
        The smallest eigenvalue of noise lies below it with probability `beta`.
    n_below : int
        Number of eigenvalues below the threshold that stand above rounding.
    values : ndarray of shape (n_below,)
        These eigenvalues, ascending.
    n_zero : int
        Number of eigenvalues that are zero to rounding, ``p - numerical_rank``: the matrix has a
        lower rank, which is another thing than a small value. They are not in `n_below`.
    n_components : int
        Number of values at the upper end that the law leaves out.
    beta : float
        The level of the threshold.
    n, p : int
        Larger and smaller side of the matrix.
    reason : str
        Why there is no threshold; empty if there is one.
    """

    threshold: float
    n_below: int
    values: Float64Array
    n_zero: int
    n_components: int
    beta: float
    n: int
    p: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values (nan as None)."""
        return {name: plain(getattr(self, name)) for name in self.__slots__}

    def __repr__(self) -> str:
        zero = ("zero to rounding", f"{self.n_zero} of {self.p}")
        if self.reason:
            return aligned("LowerEnd", [("reason", self.reason), zero])
        pairs: list[tuple[str, object]] = [
            ("threshold", self.threshold),
            ("below", f"{self.n_below} of {self.p}"),
            zero,
            ("options", f"beta {self.beta:g}, {counted(self.n_components, 'component')} left out"),
        ]
        return aligned("LowerEnd", pairs)


def below_bulk(
    spec: Spectrum,
    fit: BulkFit | MarchenkoPastur,
    beta: float = 0.1,
    *,
    n_components: int | None = None,
) -> LowerEnd:
    """Count the eigenvalues that are smaller than noise makes them.

    Let N = n - k - 1/2 and P = p - k - 1/2 for k components left out. The logarithm of the smallest
    eigenvalue of a Wishart matrix, less ``log m + w^2 / 8`` and divided by ``-w``, follows the
    Tracy-Widom law (beta = 1) up to terms of order p^(-2/3), where ``m = (sqrt N - sqrt P)^2`` and
    ``w = (1 / sqrt P - 1 / sqrt N)^(1/3) / (sqrt N - sqrt P)`` [1]_. The threshold is that of the
    1 - beta quantile t, ``variance / (n - k) * m exp(w^2 / 8 - w t)``. On Gaussian noise it holds
    its level for all sides but equal ones: .085 to .107 at beta .1, .007 to .012 at .01 (2000
    draws), from 20 x 16 to 2000 x 40, 1000 x 784 and 300 x 299 among them. A square matrix of noise
    has eigenvalues down to 0 (the hard edge); then nothing is counted.

    The smallest singular values of trained weights can matter as much as the largest [2]_. Like
    the count of spikes, this one believes the law that it is given.

    Parameters
    ----------
    spec : Spectrum
        The spectrum.
    fit : BulkFit or MarchenkoPastur
        From `bema` on that spectrum, or the law of its lowest ``p - n_components`` eigenvalues.
    beta : float
        Probability that a matrix of pure noise shows any value below the threshold, in (0, 1).
    n_components : int, optional
        Number of the largest values that the law leaves out, 0 by default. A BulkFit knows it.

    Returns
    -------
    LowerEnd

    Raises
    ------
    InvalidTypeError
        `spec` is not a Spectrum, or `fit` neither a BulkFit nor a law.
    InvalidValueError
        The fit or the law is of another size, or an option is outside its range.

    References
    ----------
    .. [1] Z. Ma, Accuracy of the Tracy-Widom limits for the extreme eigenvalues in white Wishart
       matrices, Bernoulli (2012).
    .. [2] M. Staats, M. Thamm, B. Rosenow, Small singular values matter: a random matrix analysis
       of transformer models, arXiv:2410.17770 (2024).

    Examples
    --------
    >>> import numpy as np
    >>> import rmtspec
    >>> W = rmtspec.ensembles.wishart(600, 300, rng=0)
    >>> W[:, 0] = 0.1 * W[:, 0] + W[:, 1]  # two columns that are almost the same
    >>> spec = rmtspec.spectrum(W)
    >>> rmtspec.below_bulk(spec, rmtspec.bema(spec))
    LowerEnd
      threshold         0.0846332
      below             1 of 300
      zero to rounding  0 of 300
      options           beta 0.1, 1 component left out
    """
    check_spectrum(spec)
    hint = "It is the probability of a false small value on pure noise."
    beta = _checks.inside(beta, "beta", 0.0, 1.0, hint=hint)
    law, removed, reason = _law_of(spec, fit, n_components)
    n_zero = spec.p - spec.numerical_rank
    threshold, n_below, values = math.nan, math.nan, np.empty(0)
    if law is not None and spec.n == spec.p:
        reason = Why.SQUARE.words()
    elif law is not None:
        n, p = spec.n - removed, spec.p - removed
        threshold = law.variance / n * _smallest(n, p, beta)
        end = int(spec.eigenvalues.searchsorted(threshold, side="left"))
        values = spec.eigenvalues[n_zero : max(end, n_zero)]
        n_below = values.size
    return LowerEnd(
        threshold=threshold,
        n_below=n_below,  # type: ignore[arg-type]  # an undefined number is nan
        values=values, n_zero=n_zero, n_components=removed, beta=beta, n=spec.n, p=spec.p,
        reason=reason,
    )  # fmt: skip


def _smallest(n: int, p: int, beta: float) -> float:
    """Return the beta quantile of the smallest eigenvalue of W^T W, W of white noise, n > p."""
    long, short = math.sqrt(n - 0.5), math.sqrt(p - 0.5)
    gap = long - short
    width = (1.0 / short - 1.0 / long) ** (1.0 / 3.0) / gap
    t = upper_quantile(beta)
    return gap * gap * math.exp(width * (width / 8.0 - t))


def _law_of(
    spec: Spectrum, fit: object, n_components: int | None
) -> tuple[MarchenkoPastur | None, int, str]:
    """Return the law, the number of values that it leaves out, and why there is no law."""
    if isinstance(fit, BulkFit):
        check_fit(spec, fit)
        if n_components is not None:
            problem = f"`n_components` is {n_components!r} and `fit` is a BulkFit"
            raise InvalidOptionError(problem, "one of the two", "A BulkFit knows its number.")
        return fit.law, fit.n_removed, fit.reason
    if not isinstance(fit, MarchenkoPastur):
        raise InvalidTypeError(
            f"`fit` is a {type(fit).__name__}; expected a BulkFit or a MarchenkoPastur law. Call "
            "rmtspec.bema(spec), or pass the law of the noise."
        )
    hint = "It is the number of the largest values that the law leaves out."
    removed = _checks.integer(n_components or 0, "n_components", 0, spec.p - 1, hint=hint)
    ratio = (spec.p - removed) / (spec.n - removed)
    if not math.isclose(fit.ratio, ratio, rel_tol=1e-9):
        raise InvalidValueError(
            f"`fit` is a law of ratio {fit.ratio:.6g}, and without "
            f"{counted(removed, 'component')} `spec` has "
            f"({spec.p} - {removed}) / ({spec.n} - {removed}) = {ratio:.6g}; expected the law of "
            "these eigenvalues. Pass its number of components as `n_components`."
        )
    return fit, removed, ""
