"""Components: how strong each is without the noise, and how true its singular vectors are."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._records import plain
from rmtspec._text import Readable, aligned
from rmtspec.errors import InvalidTypeError
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.spectrum import Spectrum, check_spectrum
from rmtspec.matrix.spiked_model import detection_limit, overlaps, residual_variance, strengths

#: Components at this multiple of the detection limit or more are found by a count at level .01.
SEPARABLE = 1.5
#: What a count of components means, for reports and pages.
WHAT_IS_COUNTED = (
    "separable components: one that is weaker than 1.5 times the detection limit may be invisible "
    "and is then not counted; how many there are of these is not known"
)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Components(Readable):
    """The leading components of a matrix as they are without the noise.

    All arrays have shape (n_components,), strongest first. A component that does not stand beyond
    the edge of the noise has strength nan and overlaps 0; where no noise is left, all are nan.

    Attributes
    ----------
    strengths : ndarray
        Singular values of the signal divided by ``sqrt(n variance)``, as in `ensembles.spiked`.
    left_overlaps, right_overlaps : ndarray
        Estimates of the absolute value of <u, u'>, from 0 to 1, between each left singular vector
        (length rows) of the matrix and that of the signal, and between the right ones (length
        columns). Components of nearly equal strength mix with each other; then it is the overlap
        with their span.
    singular_values : ndarray
        Those of the matrix, as observed.
    detection_limit : float
        (p / n)^(1/4), in the units of `strengths`.
    variance : float
        Variance of the noise entries; nan if the components leave no noise.
    n_components : int
        Number of components, as given.
    n, p : int
        Larger and smaller side of the matrix.
    """

    strengths: Float64Array
    left_overlaps: Float64Array
    right_overlaps: Float64Array
    singular_values: Float64Array
    detection_limit: float
    variance: float
    n_components: int
    n: int
    p: int

    @property
    def n_separable(self) -> int:
        """Number of components at 1.5 times the detection limit or more."""
        return int(np.sum(self.strengths >= SEPARABLE * self.detection_limit))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `n_separable` as JSON-ready values (nan as None)."""
        fields = {name: plain(getattr(self, name)) for name in self.__slots__}
        return {**fields, "n_separable": self.n_separable}

    def __repr__(self) -> str:
        def shown(values: Float64Array) -> str:
            more = ", ..." if len(values) > 6 else ""
            return ", ".join(f"{value:.3g}" for value in values[:6]) + more

        pairs: list[tuple[str, object]] = [
            ("strengths", shown(self.strengths) or "none"),
            ("left overlaps", shown(self.left_overlaps) or "none"),
            ("right overlaps", shown(self.right_overlaps) or "none"),
            ("separable", f"{self.n_separable} of {self.n_components}"),
            ("limit", f"{self.detection_limit:.6g} in units of sqrt(n variance)"),
            ("variance", self.variance),
        ]
        return aligned("Components", pairs)


def components(
    spec: Spectrum, n_components: int | BulkFit, *, variance: float | None = None
) -> Components:
    """Estimate the strengths and overlaps of the leading components of a matrix.

    For white noise, with theta the strength, y = s / sqrt(n variance) and g = p / n [1]_::

        y^2 = (1 + theta^2) (g + theta^2) / theta^2
        <u, u'>^2 = (theta^4 - g) / (theta^4 + theta^2)        side of length n
        <v, v'>^2 = (theta^4 - g) / (theta^4 + g theta^2)      side of length p

    For noise whose rows and columns differ in variance pass the spectrum of the equalized matrix:
    strengths and overlaps are then those of its components.

    Parameters
    ----------
    spec : Spectrum
        From `spectrum`.
    n_components : int or BulkFit
        Number of components, from 0 to the smaller side; a fit gives its spikes and its variance.
    variance : float, optional
        Of the noise entries. By default that of the fit, or, with a number, an estimate from the
        eigenvalues beyond the components (see `noise_variance`).

    Returns
    -------
    Components

    Raises
    ------
    InvalidTypeError
        `spec` is not a Spectrum, or `n_components` neither a whole number nor a fit with numbers.
    InvalidValueError
        The number or the variance is outside its range.

    References
    ----------
    .. [1] F. Benaych-Georges, R. R. Nadakuditi, The singular values and vectors of low rank
       perturbations of large rectangular random matrices, J. Multivariate Anal. 111 (2012).

    Examples
    --------
    >>> import rmtspec
    >>> W = rmtspec.ensembles.spiked(400, 300, [1.2, 3, 20], rng=0)
    >>> rmtspec.components(rmtspec.spectrum(W), 3)
    Components
      strengths       20, 3.05, 1.09
      left overlaps   0.999, 0.946, 0.5
      right overlaps  0.999, 0.958, 0.532
      separable       2 of 3
      limit           0.930605 in units of sqrt(n variance)
      variance        1.00345
    """
    check_spectrum(spec)
    if isinstance(n_components, BulkFit):
        if n_components.reason:
            raise InvalidTypeError(
                f"`n_components` is a fit without numbers ({n_components.reason}); expected a fit "
                "of a bulk, or a whole number."
            )
        variance = n_components.variance if variance is None else variance
        n_components = n_components.n_spikes
    k = _checks.integer(n_components, "n_components", 0, spec.p)
    squares = spec.n * spec.eigenvalues[::-1]
    if variance is None:
        value = _estimated(squares, k, spec)
    else:
        value = _checks.positive(variance, "variance", "Pass the variance of the noise entries.")
    theta = strengths(squares[:k] / (spec.n * value), spec.n, spec.p)
    longer, shorter = overlaps(theta, spec.n, spec.p)
    if math.isnan(value):
        longer = shorter = np.full(k, math.nan)
    rows, columns = spec.shape[0] - spec.dropped_rows, spec.shape[1] - spec.dropped_columns
    left, right = (shorter, longer) if rows < columns else (longer, shorter)
    return Components(
        strengths=np.where(theta > 0.0, theta, math.nan), left_overlaps=left, right_overlaps=right,
        singular_values=np.sqrt(squares[:k]), detection_limit=detection_limit(spec.n, spec.p),
        variance=value, n_components=k, n=spec.n, p=spec.p,
    )  # fmt: skip


def _estimated(squares: Float64Array, k: int, spec: Spectrum) -> float:
    """Return the variance of the noise beyond the k largest s^2, or nan if there is none."""
    if k >= spec.numerical_rank:
        return math.nan
    return residual_variance(float(squares[k:].sum()), squares[:k], n=spec.n, p=spec.p)
