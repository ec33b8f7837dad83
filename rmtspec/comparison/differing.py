"""Comparing one couple of matrices: their difference, its noise, its rank, what it touches."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.checkpoint.difference import difference
from rmtspec.comparison.change import MatrixChange
from rmtspec.comparison.matching import Couple
from rmtspec.comparison.rounded import (
    ROUNDING,
    Errors,
    beyond_rounding,
    is_recast,
    within_rounding,
)
from rmtspec.comparison.sides import Entry
from rmtspec.errors import InvalidValueError
from rmtspec.matrix.eigenvalues import check_finite
from rmtspec.matrix.noise import noise_of
from rmtspec.matrix.noise_fit import LAW_LEVEL, Bulk
from rmtspec.matrix.product import product_spectrum
from rmtspec.matrix.spectrum import Spectrum, spectrum
from rmtspec.matrix.subspaces import (
    leading_vectors,
    lies_within,
    principal_angles,
    product_vectors,
)
from rmtspec.report.many import Skipped, attempt
from rmtspec.report.matrix_report import MatrixReport, report_on
from rmtspec.report.options import AnalysisOptions
from rmtspec.terms import Change, Verdict, Why

#: The noise model "mp" where the entries allow it, else "auto".
SCREENED = "screened"
#: Singular values below this share of the largest are rounding of factors in float32.
_FACTORS = float(np.finfo(np.float32).eps)
#: At most so many spikes are tried for being touched, and so many directions of the change.
_MOST = 64
#: The analysis of the matrices themselves: that of `rmtspec.analyze`.
_PLAIN = AnalysisOptions()

#: The k leading left and right singular vectors of a change.
_Vectors = Callable[[int], tuple[Float64Array, Float64Array]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeOptions:
    """The options of `rmtspec.compare` that concern one couple of matrices.

    Attributes
    ----------
    components : int
        The most leading singular vectors whose subspaces are compared.
    noise : str
        "screened", or a model of `rmtspec.fit_noise`.
    beta : float
    rng : int
        As for `rmtspec.fit_noise`.
    places : tuple of str
        What messages call the two sides.
    """

    components: int
    noise: str
    beta: float
    rng: int
    places: tuple[str, str]


def changed(options: ChangeOptions, item: tuple[str, Couple]) -> MatrixChange | Skipped:
    """Return what changed in a couple of matrices, or the reason why that is not known."""
    name, couple = item
    sides = couple.after.sides or (0, 0)
    needed = 8 * (sides[0] * sides[-1] + min(sides) ** 2)
    return attempt(name, functools.partial(_timed, options, couple), needed=needed)


def _timed(options: ChangeOptions, couple: Couple) -> MatrixChange | Skipped:
    start = time.perf_counter()
    done = _compared(options, couple)
    if isinstance(done, Skipped):
        return done
    return dataclasses.replace(done, seconds=time.perf_counter() - start)


def _compared(options: ChangeOptions, couple: Couple) -> MatrixChange | Skipped:
    before, after = couple.before, couple.after
    if after.pair is not None:
        return _by_factors(options, couple)
    if before is None:
        raise InvalidValueError(f"{couple.name!r} has no partner; expected two matrices.")
    old, new = (
        _read(entry, place) for entry, place in zip((before, after), options.places, strict=True)
    )
    if old.shape != new.shape:
        return Skipped(Why.OTHER_SHAPE.words(before=old.shape, after=new.shape))
    dtypes = str(old.dtype), str(new.dtype)
    if np.array_equal(old, new):
        norm = math.sqrt(float(np.sum(np.square(new.astype(np.float64)))))
        return MatrixChange(
            couple=couple, state=Change.UNCHANGED, norms=(norm, norm, 0.0), dtypes=dtypes
        )
    delta = difference(old, new)
    errors = Errors.of(before, old) + Errors.of(after, new)
    spec = spectrum(delta)
    recast = old.dtype != new.dtype and (is_recast(old, new) or within_rounding(old, new, delta))
    beyond = None if recast else beyond_rounding(spec, errors)
    if recast:
        report = _analysed(options, couple, spec)
    elif beyond is not None:
        report = _analysed(options, couple, beyond.spectrum)
        left = Verdict.NO_BULK_LEFT, Why.ONLY_ROUNDING.words(count=beyond.rank)
        report = dataclasses.replace(report, noise=dataclasses.replace(report.noise, settled=left))
    else:
        report = _analysed(options, couple, delta, spec)
    small = beyond is not None or _left(report, delta.size) <= ROUNDING * errors.variance
    made = MatrixChange(
        couple=couple, state=Change.CANNOT_TELL, change=report, dtypes=dtypes,
        rounding_variance=errors.variance, bulk_is_rounding=recast or small,
    )  # fmt: skip
    made = dataclasses.replace(made, state=Change.ROUNDING if recast else _state(made))
    return _with_sides(options, made, (old, new), functools.partial(leading_vectors, delta))


def _by_factors(options: ChangeOptions, couple: Couple) -> MatrixChange | Skipped:
    """Return what an adapter changes, from its factors: they are not multiplied out."""
    before, after = couple.before, couple.after
    outer, inner = after.factors()
    stored = str(after.pair.reading.dtype) if after.pair is not None else ""
    spec = _product(outer, inner)
    old: NDArray[Any] | Spectrum | None = None
    new: NDArray[Any] | Spectrum | None = None
    if before is not None and before.pair is not None:  # two adapters
        first, second = before.factors()
        old, new = _product(first, second), spec
        if old.shape != new.shape:
            return Skipped(Why.OTHER_SHAPE.words(before=old.shape, after=new.shape))
        outer, inner = np.hstack([outer, -first]), np.vstack([inner, second])
        spec = _product(outer, inner)
    elif before is not None:
        old = _read(before, options.places[0])
        if old.shape != spec.shape:
            return Skipped(Why.OTHER_SHAPE.words(before=old.shape, after=spec.shape))
        new = old.astype(np.float64) + outer @ inner
    dtypes = "" if old is None else str(old.dtype), stored
    if not spec.eigenvalues[-1] > 0.0:
        return MatrixChange(
            couple=couple, state=Change.UNCHANGED, norms=(math.nan, math.nan, 0.0), dtypes=dtypes
        )
    full = 2 * spec.numerical_rank > spec.p
    report = _analysed(options, couple, outer @ inner if full else spec)
    made = MatrixChange(
        couple=couple, state=Change.CANNOT_TELL, change=report, dtypes=dtypes,
        rounding_variance=0.0,
    )  # fmt: skip
    made = dataclasses.replace(made, state=_state(made))
    return _with_sides(options, made, (old, new), functools.partial(product_vectors, outer, inner))


def _read(entry: Entry, place: str) -> NDArray[Any]:
    """Return a matrix whose entries are finite; raise `InvalidValueError` if some are not."""
    array = _checks.matrix(entry.load())
    try:
        check_finite(array)
    except InvalidValueError as error:
        raise InvalidValueError(Why.OF_ONE.words(place=place, reason=error)) from None
    return array


def _product(outer: NDArray[Any], inner: NDArray[Any]) -> Spectrum:
    """Return the spectrum of a product whose numerical rank is that of its float32 factors."""
    spec = product_spectrum(outer, inner)
    rounding = _FACTORS**2 * float(spec.eigenvalues[-1])
    return Spectrum.from_dict(
        {**spec.to_dict(), "dtype": "float32", "rounding_variance": rounding, "moments": None}
    )


def _analysed(
    options: ChangeOptions, couple: Couple, delta: NDArray[Any] | Spectrum,
    spec: Spectrum | None = None,
) -> MatrixReport:  # fmt: skip
    """Return the analysis of a change by the noise model asked for; `spec` is its spectrum."""
    name, kind = couple.name, couple.after.kind
    common: dict[str, Any] = {"beta": options.beta, "rng": options.rng}
    plain = AnalysisOptions(noise="mp", **common)
    if isinstance(delta, Spectrum):
        return report_on(delta, name, kind, plain)
    spec = spectrum(delta) if spec is None else spec
    if options.noise in ("mp", SCREENED):
        report = report_on(spec, name, kind, plain)
        fits = report.noise.count_is_safe and report.noise.verdict == Verdict.NOISE_LIKE
        if fits or options.noise == "mp":
            return report
    model = "auto" if options.noise == SCREENED else options.noise
    noise = noise_of(delta, model, options.beta, options.rng)
    if noise.settled or noise.law_pvalue >= LAW_LEVEL:  # 19 spectra would tell nothing more
        noise = dataclasses.replace(noise, bulk=Bulk.tested(None))
    noise.bulk_pvalue  # noqa: B018  made now, so that the entries need not be kept
    asked = AnalysisOptions(noise=model, **common)
    return report_on(spec, name, kind, asked, known=(noise, None))


def _left(report: MatrixReport, size: int) -> float:
    """Return the mean square of the entries of a change without its components."""
    share = report.noise.energy_share
    energy = float(report.spectrum.eigenvalues.sum()) * report.spectrum.n
    return energy * (1.0 - (0.0 if math.isnan(share) else share)) / size


def _state(made: MatrixChange) -> Change:
    """Return what kind of change it is, unless it is one of the dtype alone."""
    report = made.change
    if report is None:
        return Change.UNCHANGED
    verdict, count = report.noise.verdict, report.noise.n_components
    if made.exact:
        if not made.numerical_rank:
            return Change.ROUNDING
        return Change.STRUCTURED if made.mostly else Change.LOW_RANK
    if made.bulk_is_rounding and not 2 * count > report.spectrum.p:
        return Change.LOW_RANK if count > 0 else Change.ROUNDING
    if verdict == Verdict.NOISE_LIKE:
        return Change.LOW_RANK_AND_NOISE if count else Change.NOISE
    return Change.CANNOT_TELL if verdict == Verdict.CANNOT_TELL else Change.STRUCTURED


def _with_sides(
    options: ChangeOptions,
    made: MatrixChange,
    sides: tuple[NDArray[Any] | Spectrum | None, NDArray[Any] | Spectrum | None],
    vectors_of_change: _Vectors,
) -> MatrixChange:
    """Complete what is known of a change by the matrices before and after, where they are given."""
    old, new = sides
    report = made.change
    if report is None:
        return made
    moved = _norm(report.spectrum)
    if old is None or new is None:
        return dataclasses.replace(made, norms=(math.nan, math.nan, moved))
    name, kind = made.couple.name, made.couple.after.kind
    before, after = (report_on(side, name, kind, _PLAIN) for side in (old, new))
    made = dataclasses.replace(
        made, before=before, after=after,
        norms=(_norm(before.spectrum), _norm(after.spectrum), moved),
    )  # fmt: skip
    if isinstance(old, Spectrum) or isinstance(new, Spectrum):
        return made
    spikes = [_spikes(each) for each in (before, after)]
    k = min(options.components, *spikes)
    tried = min(spikes[0], _MOST) if made.rank[0] > 0 else 0
    if not max(k, tried):
        return made
    left, right = leading_vectors(old, max(k, tried))
    if k:
        others = leading_vectors(new, k)
        made = dataclasses.replace(
            made, left_angles=principal_angles(left[:, :k], others[0]),
            right_angles=principal_angles(right[:, :k], others[1]),
        )  # fmt: skip
    if tried:
        span = vectors_of_change(min(_count(made.rank[0]), _MOST))
        leans = lies_within(left[:, :tried], span[0]) | lies_within(right[:, :tried], span[1])
        touched = tuple(np.flatnonzero(leans).tolist())
        made = dataclasses.replace(made, touched=touched, tried=tried)
    return made


def _spikes(report: MatrixReport) -> int:
    """Return the number of spikes, or the numerical rank of a matrix without a bulk."""
    spec = report.spectrum
    if report.fit.reason and spec.numerical_rank < spec.p:
        return spec.numerical_rank
    return _count(report.fit.n_spikes)


def _norm(spec: Spectrum) -> float:
    return math.sqrt(float(spec.eigenvalues.sum()) * spec.n)


def _count(number: float) -> int:
    return 0 if math.isnan(number) else int(number)
