"""The functional noise test on the matrices of a model, whatever framework holds them."""

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._records import versions
from rmtspec._text import listed, nearest
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError, InvalidValueError
from rmtspec.matrix.flip import BulkFlip
from rmtspec.planning.task import Matrix, Subject
from rmtspec.report.matrix_report import RELIABLE_FROM
from rmtspec.report.noise_test import (
    TOGETHER,
    TOLERATED,
    NoiseTest,
    components_of,
    measured,
)
from rmtspec.report.options import Progress, check_progress
from rmtspec.terms import Why


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipOptions:
    """The options of a noise test, described at `rmtspec.adapters.torch.noise_test`."""

    draws: int = 10
    ranks: Mapping[str, int] | None = None
    together: bool | str = True
    tolerance: float | None = None
    rng: Any = 0
    progress: Progress | None = None
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        hint = "The interval comes from the spread of the draws."
        _checks.integer(self.draws, "draws", 2, hint=hint)
        if not isinstance(self.ranks, Mapping | None):
            given = type(self.ranks).__name__
            raise InvalidOptionTypeError(f"`ranks` is a {given}", "a mapping {name: components}")
        if not (isinstance(self.together, bool) or self.together == "only"):
            raise InvalidOptionError(f"`together` is {self.together!r}", "True, False or 'only'")
        if self.tolerance is not None:
            hint = "It is the loss of the figure that you would not mind."
            _checks.inside(self.tolerance, "tolerance", 0.0, math.inf, closed=True, hint=hint)
        check_progress(self.progress)
        object.__setattr__(self, "seed", _checks.seed(self.rng, "rng"))


class Bench(Protocol):
    """A model on which matrices can be replaced for a while, as a framework supplies it."""

    def figure(self) -> float:
        """Return the user's figure of the model as it is now."""

    def replace(self, name: str, values: Float64Array) -> None:
        """Overwrite a matrix."""

    def restore(self) -> None:
        """Put all matrices back as they were."""


def run_noise_test(subject: Subject[Any], bench: Bench, options: FlipOptions) -> NoiseTest:
    """Return what flips of the bulks of the chosen matrices do to the user's figure."""
    flips, rows, skipped = _flips(subject, options)
    chosen = list(flips)
    alone = [] if options.together == "only" else chosen
    groups = [[name] for name in alone]
    if options.together is not False:
        groups.append(chosen)
    baseline = _baseline(bench, options.draws)
    mean = float(np.mean(baseline))
    tolerance = TOLERATED * abs(mean) if options.tolerance is None else float(options.tolerance)
    made: list[dict[str, Any]] = []
    for done, names in enumerate(groups, 1):
        alone_now = done <= len(alone)
        name = names[0] if alone_now else TOGETHER
        values = list(_figures(subject, bench, {n: flips[n] for n in names}, options, name=name))
        row = rows[name] if alone_now else _whole(rows, flips, subject)
        made.append(measured(row, values, baseline, tolerance))
        if options.progress is not None:
            options.progress(done, len(groups), name)
    return NoiseTest(
        baseline=mean, baseline_values=baseline, rows=made[: len(alone)],
        together=made[-1] if len(made) > len(alone) else None, tolerance=tolerance,
        skipped=[*skipped, *subject.left_out], versions=versions(),
        settings={
            "draws": options.draws, "ranks": dict(options.ranks or {}),
            "together": options.together, "tolerance": options.tolerance, "seed": options.seed,
        },
    )  # fmt: skip


def _flips(
    subject: Subject[Any], options: FlipOptions
) -> tuple[dict[str, BulkFlip], dict[str, dict[str, Any]], list[dict[str, str]]]:
    """Return the flips that can be made, the rows to fill, and what is skipped."""
    given = _given(options.ranks or {}, subject.matrices)
    flips: dict[str, BulkFlip] = {}
    rows: dict[str, dict[str, Any]] = {}
    skipped: list[dict[str, str]] = []
    for name, matrix in subject.matrices.items():
        try:
            named = name in subject.targets and subject.targets[name].named
            flip, reason = _flip(matrix, given.get(name), named)
        except InvalidValueError as error:  # it cannot be read, or has nan
            flip, reason = None, str(error)
        if flip is None:
            skipped.append({"name": name, "reason": reason})
            continue
        flips[name] = flip
        rows[name] = {
            "name": name, "kind": str(matrix.kind), "rows": matrix.shape[0],
            "columns": matrix.shape[1], "n_components": flip.n_components,
            "bulk_share": flip.bulk_share, "reason": reason,
        }  # fmt: skip
    if not flips:
        reasons = [f"  {entry['name']}: {entry['reason']}" for entry in skipped]
        advice = "No weight matrix can be tested; `ranks` gives the number of components by name."
        raise InvalidValueError("\n".join([advice, *reasons]))
    return flips, rows, skipped


def _flip(matrix: Matrix, given: int | None, named: bool) -> tuple[BulkFlip | None, str]:
    """Return the flip of a matrix; or None, and why there is none, or why its count says little."""
    if matrix.reason:
        return None, matrix.reason
    values: NDArray[Any] = matrix()
    count, small = given, ""
    if count is None:
        p = min(matrix.shape)
        if p < RELIABLE_FROM:  # no count can be relied on
            if not named:
                return None, Why.TOO_SMALL.words(p=p, least=RELIABLE_FROM)
            small = Why.UNRELIABLE.words(p=p, least=RELIABLE_FROM)
        count, reason = components_of(values)
        if reason:
            return None, reason
    if count >= min(matrix.shape):
        return None, Why.NOTHING_BEYOND.words(count=count)
    return BulkFlip.of(values, count), small


def _given(ranks: Mapping[str, int], matrices: Mapping[str, Matrix]) -> dict[str, int]:
    """Return the numbers of components given, checked, by matrix."""
    given: dict[str, int] = {}
    for key, count in ranks.items():
        names = [name for name, m in matrices.items() if m.kind and key in (name, *m.names)]
        if not names:
            raise InvalidOptionError(
                f"`ranks` names {key!r}, which is not among the chosen matrices."
                f"{nearest(key, matrices) or f' They are {listed(matrices, most=5)}.'}"
            )
        for name in names:
            if matrices[name].reason:
                raise InvalidOptionError(
                    f"`ranks` names {key!r}, which is skipped: {matrices[name].reason}."
                )
            most = min(matrices[name].shape)
            given[name] = _checks.integer(count, f"ranks[{key!r}]", 0, most)
    return given


def _baseline(bench: Bench, draws: int) -> list[float]:
    """Return the figures of the unchanged model: two that agree, or one for each draw."""
    values: list[float] = []
    while len(values) < 2 or (len(values) < draws and len(set(values)) > 1):
        value = bench.figure()
        if not math.isfinite(value):
            raise InvalidValueError(
                f"`evaluate` returned {value} for the unchanged model; expected a finite number, "
                "higher for a better model. Check its data, and the weights."
            )
        values.append(value)
    return values


def _figures(
    subject: Subject[Any],
    bench: Bench,
    flips: Mapping[str, BulkFlip],
    options: FlipOptions,
    *,
    name: str,
) -> Iterator[float]:
    """Yield the figure of each draw; the model is restored after each, whatever happens."""
    # The draws of a matrix do not depend on which others are tested.
    generator = np.random.default_rng([options.seed, zlib.crc32(name.encode())])
    for _ in range(options.draws):
        try:
            for each, flip in flips.items():
                bench.replace(each, flip.draw(subject.matrices[each](), generator))
            yield bench.figure()
        finally:
            bench.restore()


def _whole(
    rows: Mapping[str, Mapping[str, Any]], flips: Mapping[str, BulkFlip], subject: Subject[Any]
) -> dict[str, Any]:
    """Return the row, yet to be filled, on all matrices at once."""
    energies = {
        name: float(np.square(np.asarray(subject.matrices[name](), dtype=np.float64)).sum())
        for name in flips
    }
    flipped = sum(flips[name].bulk_share * energy for name, energy in energies.items())
    return {
        "name": TOGETHER, "kind": "", "rows": None, "columns": None,
        "n_components": sum(row["n_components"] for row in rows.values()),
        "bulk_share": flipped / (sum(energies.values()) or 1.0), "reason": "",
    }  # fmt: skip
