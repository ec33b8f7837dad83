"""NoiseFit: how many components stand out of the noise, and whether the rest is noise."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec._records import plain
from rmtspec._text import Readable, aligned, listed
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.matrix.flip_test import FlipTest, flip_test
from rmtspec.matrix.spectrum import Spectrum
from rmtspec.terms import Verdict, Why

MODELS = ("auto", "mp", "equalized", "signflip")
#: The law is taken to fit from this p-value on.
LAW_LEVEL = 0.05
#: The flip test rejects at this p-value, if the distance is also larger than this.
_LEVEL, _DISTANCE = 0.05, 0.008
_FEW_ENTRIES = 8
_FIELDS = (
    "n_components", "at_least", "components_low", "components_high", "count_is_safe", "verdict",
    "reason",
    "bulk_pvalue", "bulk_ks", "model", "why_model", "threshold", "energy_share", "beta", "rng",
    "rounds", "n", "p", "absorbed_rows", "absorbed_columns", "note",
)  # fmt: skip


class Bulk:
    """What is left of a matrix, held until the flip test is made, and then its result."""

    def __init__(
        self, eigenvalues: Float64Array, residual: NDArray[np.float32] | None, n: int, seed: int
    ) -> None:
        self._given: tuple[Float64Array, NDArray[np.float32], int, int] | None = None
        self._test: FlipTest | None = None
        if residual is not None:
            self._given = eigenvalues, residual, n, seed

    @classmethod
    def tested(cls, test: FlipTest | None) -> "Bulk":
        """Return a bulk whose flip test was made before."""
        bulk = cls(np.empty(0), None, 0, 0)
        bulk._test = test
        return bulk

    @property
    def test(self) -> FlipTest | None:
        """The flip test, made when it is first read; None if nothing is left to test."""
        if self._given is not None:
            self._test, self._given = flip_test(*self._given), None
        return self._test


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class NoiseFit(Readable):
    """Result of `rmtspec.fit_noise`: components, and what the rest is.

    The count is of separable components. Those weaker than about 1.5 times the detection limit,
    (n p)^(1/4) times the standard deviation of the noise, are rarely seen and are not counted.

    Attributes
    ----------
    n_components : int
        Number of singular values that exceed the noise; nan if no bulk is left or known.
    at_least : int
        The count of the first round, which exceeds the truth with probability about `beta`; later
        rounds find the components that stronger ones hid.
    components_low, components_high : int
        The count at the levels 0.01 and 0.5 instead of `beta`.
    threshold : float
        In the units of `spectrum`; an eigenvalue above it is a component.
    scales : tuple of two ndarrays, or None
        `row_scales` and `column_scales`; None for the model "mp".
    spectrum : Spectrum
        Of the equalized matrix.
    law : MarchenkoPastur or None
        Law of its lowest ``p - n_components`` eigenvalues; None if there are none.
    energy_share : float
        Share of ||W||^2 that the components explain; nan if it is not known, because there is no
        count, or no scales equalize the matrix.
    model : str
        The model that was used: "mp", "equalized" or "signflip".
    why_model : str
        Why it was, if that was not asked for.
    rounds : int
        Number of rounds (fits, for "mp").
    absorbed_rows, absorbed_columns : tuple of int
        Rows and columns so much larger than the others that they were taken as noise of a larger
        variance, where one could also see a component.
    beta : float
        Probability that pure noise shows any component.
    rng : int
        Seed of the sign flips.
    note : str
        What else to know; empty if nothing.
    exact : bool
        Whether only rounding is left beyond a low rank.
    law_pvalue, law_distance : float
        The fit test of the shape of `law` on the bulk; nan if there is none.
    doubt : str
        Why the count of the model "mp" has not its stated level; empty if nothing speaks against
        it, and for the other models.
    settled : tuple of (Verdict, str), or None
        Verdict and reason where they do not depend on a test of the bulk.
    bulk : Bulk
        What is left of the matrix, for the flip test.
    """

    n_components: int
    at_least: int
    components_low: int
    components_high: int
    threshold: float
    scales: tuple[Float64Array, Float64Array] | None
    spectrum: Spectrum
    law: MarchenkoPastur | None
    energy_share: float
    model: str
    why_model: str
    rounds: int
    absorbed_rows: tuple[int, ...]
    absorbed_columns: tuple[int, ...]
    beta: float
    rng: int
    note: str
    exact: bool
    law_pvalue: float
    law_distance: float
    doubt: str
    settled: tuple[Verdict, str] | None
    bulk: Bulk

    @property
    def row_scales(self) -> Float64Array:
        """Scales of the rows, shape (rows,); 0 for zero rows.

        ``W / (row_scales[:, None] * column_scales)`` is the equalized matrix. All 1 for "mp".
        """
        return np.ones(self.spectrum.shape[0]) if self.scales is None else self.scales[0]

    @property
    def column_scales(self) -> Float64Array:
        """Scales of the columns, shape (columns,); 0 for zero columns."""
        return np.ones(self.spectrum.shape[1]) if self.scales is None else self.scales[1]

    @property
    def n(self) -> int:
        """Larger side of the matrix, without zero rows and columns."""
        return self.spectrum.n

    @property
    def p(self) -> int:
        """Smaller side of the matrix, without zero rows and columns."""
        return self.spectrum.p

    @property
    def bulk_pvalue(self) -> float:
        """P-value of the bulk against its own sign flips (against the law, for the model "mp").

        The 19 flips are made when this, `bulk_ks`, `verdict` or `reason` is first read.
        """
        return self._tested[0]

    @property
    def bulk_ks(self) -> float:
        """Largest distance of the bulk's distribution function from that of its flips (the law)."""
        return self._tested[1]

    @property
    def verdict(self) -> Verdict:
        """What the bulk is: a `rmtspec.terms.Verdict`."""
        return self._judgement[0]

    @property
    def count_is_safe(self) -> bool:
        """Whether the count has its stated level, as far as the entries tell.

        Always for the models "equalized" and "signflip"; for "mp" only where the entries look like
        noise of one variance with light tails (see `verdict` and `reason` otherwise).
        """
        return self.model != "mp" or not self.doubt

    @property
    def reason(self) -> str:
        """Why the verdict is what it is."""
        return self._judgement[1]

    @property
    def remarks(self) -> str:
        """What a reader of the count should know: why this model, what it absorbed, `note`."""
        parts = [f"{self.model} used: {self.why_model}" if self.why_model else ""]
        parts += [
            f"large {what} taken as noise, by index: {which}" for what, which in self._absorbed()
        ]
        parts.append("" if self.model == "mp" else self.note)  # else it is the note of the fit
        return "; ".join(filter(None, parts))

    def _absorbed(self) -> list[tuple[str, str]]:
        """Return the absorbed rows and columns in words, where there are any."""
        sides = (("rows", self.absorbed_rows), ("columns", self.absorbed_columns))
        return [(what, listed(map(str, which), most=8)) for what, which in sides if which]

    @property
    def flip_test(self) -> FlipTest | None:
        """The flip test of the bulk, made when it is first read; None if there is none."""
        return self.bulk.test

    @property
    def flip_quantiles(self) -> Float64Array | None:
        """Mean sorted eigenvalues of the sign flips of the bulk, shape (p - n_components,)."""
        test = self.bulk.test
        return None if test is None else test.quantiles

    @property
    def _tested(self) -> tuple[float, float]:
        if self.model == "mp":
            return self.law_pvalue, self.law_distance
        test = self.bulk.test
        return (math.nan, math.nan) if test is None else (test.pvalue, test.distance)

    @property
    def _judgement(self) -> tuple[Verdict, str]:
        if self.settled is not None:
            return self.settled
        k, p = self.n_components, self.p
        if self.law_pvalue >= LAW_LEVEL:
            agrees, words = True, Why.LAW_FITS.words(pvalue=self.law_pvalue)
        elif self.model == "mp":
            agrees, words = False, Why.LAW_FAILS.words(pvalue=self.law_pvalue)
        else:
            test = self.bulk.test
            if test is None or not test.informative:
                return Verdict.CANNOT_TELL, Why.FLIPS_TELL_NOTHING.words()
            agrees, why = True, Why.FLIPS_AGREE
            if test.pvalue <= _LEVEL:
                agrees = test.distance <= _DISTANCE
                why = Why.FLIPS_CLOSE if agrees else Why.FLIPS_DIFFER
            words = why.words(pvalue=test.pvalue, distance=test.distance)
        if agrees and 2 * k > p:
            return Verdict.NOT_NOISE_LIKE, Why.MOSTLY_COMPONENTS.words(count=k, p=p)
        return (Verdict.NOISE_LIKE if agrees else Verdict.NOT_NOISE_LIKE), words

    def to_dict(self) -> dict[str, Any]:
        """Return numbers and words as JSON-ready values (nan as None), without the arrays."""
        return {name: plain(getattr(self, name)) for name in _FIELDS}

    def __repr__(self) -> str:
        span = f"{self.components_low} to {self.components_high}, at least {self.at_least}"
        pairs: list[tuple[str, object]] = [
            ("components", f"{self.n_components} of {self.p} ({span})"),
            ("share", f"{self.energy_share:.1%} of ||W||^2".replace("nan% of", "not known, of")),
            ("model", self.model + (f": {self.why_model}" if self.why_model else "")),
            ("verdict", f"{self.verdict}: {self.reason}"),
            ("options", f"beta {self.beta:g}, rng {self.rng}"),
        ]  # fmt: skip
        if math.isnan(self.n_components):
            pairs[:2] = [("components", f"not known, at least {self.at_least}")]
        pairs += [(f"large {what}", which) for what, which in self._absorbed()]
        if self.note:
            pairs.append(("note", self.note))
        return aligned("NoiseFit", pairs)


def settled_without_test(p: int, typical: float, least: int) -> tuple[Verdict, str] | None:
    """Return the verdict on a matrix too small or too sparse for any test of its bulk."""
    if p < least:
        return Verdict.CANNOT_TELL, Why.UNRELIABLE.words(p=p, least=least)
    if typical < _FEW_ENTRIES:
        return Verdict.CANNOT_TELL, Why.FEW_ENTRIES.words(least=_FEW_ENTRIES)
    return None
