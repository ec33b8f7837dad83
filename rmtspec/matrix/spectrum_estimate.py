"""An estimated spectrum: distribution, noise edge and spikes, with their errors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._records import plain
from rmtspec._text import Readable, aligned
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.matrix.eigenvalues import EntryMoments
from rmtspec.matrix.probes import Probes
from rmtspec.matrix.screen import doubt_about
from rmtspec.terms import Why


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SpectrumEstimate(Readable):
    """What `estimate_spectrum` found: an estimate with its errors, no spectrum.

    Everything is in the units of the eigenvalues s^2 / n. No fit test is made: an estimated
    distribution cannot tell noise from what is nearly noise.

    Attributes
    ----------
    n, p : int
        Larger and smaller side, without zero rows and columns.
    shape : tuple of int
        (rows, columns) of the matrix as given.
    dtype : str
        Of the array as given.
    variance, variance_error : float
        Variance of the noise entries, and its standard error.
    source : str
        "trace" if the variance is that of the trace without the spikes, "quantiles" if the bulk
        does not agree with that and its quantiles were used, as `rmtspec.bema` does.
    bulk_edge, bulk_edge_error : float
        Upper edge of the bulk, and its standard error.
    threshold : float
        `bulk_edge` plus the Tracy-Widom margin at `beta`.
    trace : float
        Sum of all eigenvalues, exact but for rounding.
    moments : EntryMoments
        How unequal rows and columns are, and the kurtosis of the entries, as in a `Spectrum`.
    n_spikes, n_spikes_low, n_spikes_high : int
        Number of eigenvalues above the threshold; and of those that are above it, or may be, within
        their residuals and two standard errors of the threshold.
    largest, residuals : ndarray of shape (k,)
        The largest eigenvalues found, descending; one of the matrix lies within the residual of
        each.
    nodes, weights : ndarray of shape (probes, steps)
        Eigenvalue estimates of each probe and their weights, which sum to 1: of all eigenvalues
        but the `n_removed` largest.
    n_removed : int
        How many of `largest` were left out of the probes, so that these tell more of the others; 0
        unless there are many spikes.
    alpha, beta : float
        As given.
    rng : int
        The seed as given.
    seconds : float
        Wall time.
    """

    #: The fields that are arrays.
    ARRAYS: ClassVar[tuple[str, ...]] = ("largest", "residuals", "nodes", "weights")

    n: int
    p: int
    shape: tuple[int, int]
    dtype: str
    variance: float
    variance_error: float
    source: str
    bulk_edge: float
    bulk_edge_error: float
    threshold: float
    trace: float
    moments: EntryMoments
    n_spikes: int
    n_spikes_low: int
    n_spikes_high: int
    largest: Float64Array
    residuals: Float64Array
    nodes: Float64Array
    weights: Float64Array
    n_removed: int
    alpha: float
    beta: float
    rng: int
    seconds: float

    def cdf(self, x: ArrayLike) -> Any:
        """Return the estimated share of eigenvalues at or below `x`.

        Parameters
        ----------
        x : array_like
            Points, in the units of the eigenvalues.

        Returns
        -------
        float or ndarray
            In the shape of `x`; nan where `x` is nan.
        """
        return _shaped(self._shares(x).mean(axis=0), x)

    def cdf_error(self, x: ArrayLike) -> Any:
        """Return the standard error of `cdf`, from the spread of the probes.

        Parameters
        ----------
        x : array_like
            Points, in the units of the eigenvalues.

        Returns
        -------
        float or ndarray
            In the shape of `x`.
        """
        return _shaped(self._shares(x).std(axis=0, ddof=1) / math.sqrt(len(self.nodes)), x)

    def density(self, edges: ArrayLike) -> tuple[Float64Array, Float64Array]:
        """Return the estimated density of eigenvalues between edges, and its standard error.

        Parameters
        ----------
        edges : array_like of shape (m + 1,)
            Increasing, in the units of the eigenvalues.

        Returns
        -------
        tuple of two ndarrays of shape (m,)
        """
        each = np.diff(self._shares(edges), axis=1) / np.diff(_checks.floats(edges, "edges"))
        return each.mean(axis=0), each.std(axis=0, ddof=1) / math.sqrt(len(each))

    def _shares(self, x: ArrayLike) -> Float64Array:
        return self._probes.shares(_checks.floats(x, "x").ravel())

    @property
    def _probes(self) -> Probes:
        removed, n, p = self.n_removed, self.n, self.p
        return Probes(self.nodes, self.weights, self.largest, n_removed=removed, n=n, p=p)

    @property
    def spikes(self) -> Float64Array:
        """The eigenvalues above the threshold, descending.

        Where there are more than were found, the rest are quantiles of the distribution.
        """
        found, k = self.largest, self.n_spikes
        if k <= len(found):
            return found[:k]
        levels = 1.0 - (np.arange(len(found), k) + 0.5) / self.p
        rest = np.clip(self._probes.quantiles(levels), self.threshold, found[-1])
        return np.concatenate([found, rest])

    @property
    def law(self) -> MarchenkoPastur:
        """The law of the lowest ``p - n_spikes`` eigenvalues, as that of a `rmtspec.BulkFit`."""
        n, p = self.n - self.n_spikes, self.p - self.n_spikes
        return MarchenkoPastur(p / n, self.variance * n / self.n)

    @property
    def doubt(self) -> str:
        """Why the count of spikes is not safe; empty if nothing speaks against it.

        The moments of the entries do, as with a `Spectrum`, or the estimate itself.
        """
        unit, n = self.variance / self.n, self.n
        rows, columns = self.shape
        words = doubt_about(
            self.moments, self.spikes / unit, (n, self.p),
            energy=self.trace / unit, tall=rows >= columns,
        )  # fmt: skip
        if words:
            return words
        if self.variance < 2.0 * self.variance_error:
            return Why.NOISE_UNKNOWN.words(variance=self.variance, error=self.variance_error)
        if self.source == "trace":
            return ""
        if self.n_spikes > len(self.largest):
            return Why.MANY_SPIKES.words(count=self.n_spikes)
        return Why.TRACE_DIFFERS.words()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values, with "method" "stochastic"."""
        values = {name: plain(getattr(self, name)) for name in self.__slots__}
        return values | {"method": "stochastic"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SpectrumEstimate":
        """Return the estimate that gave this `to_dict`, the same to the last bit.

        Arrays may be arrays, those of nodes and weights flat.
        """
        known = {name: values[name] for name in cls.__slots__}
        known["shape"], known["moments"] = tuple(values["shape"]), EntryMoments(*values["moments"])
        for name in cls.ARRAYS:
            known[name] = np.array(values[name], dtype=np.float64)
        nodes = known["nodes"]
        if nodes.ndim == 1:
            shape = -1, int(values["steps"])
            known["nodes"], known["weights"] = nodes.reshape(shape), known["weights"].reshape(shape)
        return cls(**known)

    def __repr__(self) -> str:
        spikes = f"{self.n_spikes}, from {self.n_spikes_low} to {self.n_spikes_high}"
        pairs: list[tuple[str, object]] = [
            ("matrix", f"{self.shape[0]} x {self.shape[1]} {self.dtype}"),
            ("noise variance", f"{self.variance:.6g} +- {self.variance_error:.2g} ({self.source})"),
            ("noise edge", f"{self.bulk_edge:.6g} +- {self.bulk_edge_error:.2g}"),
            ("spikes", spikes),
            ("largest", f"{self.largest[0]:.6g} +- {self.residuals[0]:.2g}"),
            ("method", f"stochastic, {len(self.nodes)} probes of {self.nodes.shape[1]} steps"),
            ("fit", "not tested: this is an estimate"),
        ]
        return aligned("SpectrumEstimate", pairs)


def _shaped(values: Float64Array, x: ArrayLike) -> Any:
    result = values.reshape(np.shape(x))
    return float(result) if result.ndim == 0 else result
