"""MatrixChange: what changed between two matrices, and what kind of change it is."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec.comparison.matching import Couple
from rmtspec.report.matrix_report import MatrixReport
from rmtspec.terms import Change, Verdict

_NOTHING = np.empty(0)
_UNKNOWN = (math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatrixChange:
    """What changed between two matrices.

    Attributes
    ----------
    couple : Couple
    state : Change
        What kind of change it is.
    change : MatrixReport or None
        The analysis of after - before; None if nothing changed.
    before, after : MatrixReport or None
        The analyses of the two matrices; None if nothing changed, or if only the change is known.
    norms : tuple of float
        Frobenius norms of the matrix before, after, and of the change; nan where not known.
    rounding_variance : float
        Variance of the entries of the change that rounding to the dtypes of both would make.
    bulk_is_rounding : bool
        Whether what is left of the change without its components is no larger than that.
    left_angles, right_angles : ndarray of shape (k,)
        Principal angles between the subspaces of the k leading left (right) singular vectors before
        and after, in degrees, ascending.
    touched : tuple of int
        Which of the `tried` leading spikes before lean into the directions of the change, by index.
    tried : int
    dtypes : tuple of str
        Before and after.
    seconds : float
    """

    couple: Couple
    state: Change
    change: MatrixReport | None = None
    before: MatrixReport | None = None
    after: MatrixReport | None = None
    norms: tuple[float, float, float] = _UNKNOWN
    rounding_variance: float = math.nan
    bulk_is_rounding: bool = False
    left_angles: Float64Array = dataclasses.field(default_factory=_NOTHING.copy)
    right_angles: Float64Array = dataclasses.field(default_factory=_NOTHING.copy)
    touched: tuple[int, ...] = ()
    tried: int = 0
    dtypes: tuple[str, str] = ("", "")
    seconds: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether the rank is that of the numbers themselves, and not a count beyond noise."""
        change = self.change
        if change is None or change.noise.exact:
            return True
        spectrum = change.spectrum
        none_left = change.noise.verdict == Verdict.NO_BULK_LEFT
        return none_left and spectrum.numerical_rank < spectrum.p

    @property
    def numerical_rank(self) -> int:
        """Number of singular values of the change beyond rounding."""
        if self.change is None:
            return 0
        noise = self.change.noise
        return (noise if noise.exact else self.change).spectrum.numerical_rank

    @property
    def mostly(self) -> bool:
        """Whether these are more than half of all, so that no low rank is left to speak of."""
        return self.change is not None and 2 * self.numerical_rank > self.change.spectrum.p

    @property
    def rank(self) -> tuple[float, float, float]:
        """The rank of the change, and the ends of its interval; nan if it is not known."""
        if self.change is None or self.state is Change.ROUNDING:
            return 0, 0, 0
        noise = self.change.noise
        if self.exact:
            if self.mostly:
                return _UNKNOWN
            return self.numerical_rank, self.numerical_rank, self.numerical_rank
        return noise.n_components, noise.components_low, noise.components_high
