"""The options of an analysis as one value, checked before any work."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rmtspec import _checks
from rmtspec._records import plain
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError
from rmtspec.matrix.bema import check_levels
from rmtspec.matrix.eigenvalues import Eigensolver
from rmtspec.matrix.fit_test import check_decision
from rmtspec.matrix.noise_fit import MODELS
from rmtspec.matrix.power_law import powerlaw_package
from rmtspec.matrix.rank import RankOptions, check_shares
from rmtspec.matrix.spectrum import check_route
from rmtspec.report.initial import InitialWeights

Progress = Callable[[int, int | None, str], object]
#: The method that estimates large spectra; the others are those of `rmtspec.spectrum`.
STOCHASTIC = "stochastic"
#: What an estimate cannot honour: the option, and the values that leave it out.
_EXACT_ONLY: dict[str, tuple[Any, ...]] = {
    "precision": ("float64",), "eigensolver": (None,), "quantiles": ("midpoint",),
    "refine": (True,), "cutoff": (None,), "noise": ("auto", "mp"), "rule": (None, "bema", "noise"),
    "metrics": (False,),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisOptions:
    """The options of `rmtspec.analyze`, which describes them; a wrong one raises here.

    `kind` is None if each matrix states its own, and `init` holds the initial weights of all.
    `rule` is None for "bema" with the noise model "mp" and "noise" with the others.
    """

    kind: str | None = None
    method: str = "auto"
    precision: str = "float64"
    eigensolver: Eigensolver | None = None
    alpha: float = 0.2
    beta: float = 0.1
    quantiles: str = "midpoint"
    refine: bool = True
    cutoff: float | None = None
    level: float = 0.05
    noise: str = "mp"
    rng: int = 0
    rule: str | None = None
    bulk_keep: float = 0.0
    keep: float | None = None
    min_rank: int = 0
    metrics: bool = False
    init: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str | None):
            raise InvalidOptionTypeError(f"`kind` is {self.kind!r}", "text")
        if self.estimates:
            self._check_estimated()
        check_route(self.route, self.precision, self.eigensolver)
        check_levels(self.alpha, self.beta, self.quantiles)
        check_decision(self.cutoff, self.level)
        _checks.choice(self.noise, "noise", MODELS)
        object.__setattr__(self, "rng", _checks.seed(self.rng, "rng"))
        if self.rule is None:
            object.__setattr__(self, "rule", "bema" if self.noise == "mp" else "noise")
        check_shares(str(self.rule), self.bulk_keep, self.keep)
        _checks.integer(self.min_rank, "min_rank", 0)  # the upper bound depends on the matrix
        check_metrics(self.metrics, self.init)
        if self.init is not None:
            object.__setattr__(self, "init", InitialWeights.of(self.init))

    def _check_estimated(self) -> None:
        """Raise for an option that an estimated spectrum cannot honour."""
        for name, without in _EXACT_ONLY.items():
            value = getattr(self, name)
            if value not in without:
                raise InvalidOptionError(
                    f"`{name}` is {value!r} and `method` {STOCHASTIC!r}, which estimates the "
                    f"spectra of large matrices. `{name}` needs all eigenvalues, or the entries.",
                    hint=f"Leave out `{name}`, or `method`.",
                )

    def check_device(self, device: Any) -> None:
        """Raise if spectra are estimated and a device is given, where that is not done."""
        if self.estimates and device is not None:
            raise InvalidOptionError(
                f"`device` is {str(device)!r} and `method` {STOCHASTIC!r}, which works on the CPU",
                "one of the two", "Leave `device` out.",
            )  # fmt: skip

    @property
    def estimates(self) -> bool:
        """Whether the spectra of large matrices are estimated."""
        return self.method == STOCHASTIC

    @property
    def route(self) -> str:
        """The method of `rmtspec.spectrum` by which a matrix is analysed that is not estimated."""
        return "auto" if self.estimates else self.method

    @classmethod
    def of(cls, given: Mapping[str, Any], *, spectra_for: str = "") -> "AnalysisOptions":
        """Return options from a mapping by name; raise for an unknown one.

        If a purpose is named that spectra are needed for, raise too where these are estimated.
        """
        if spectra_for and given.get("method") == STOCHASTIC:
            raise InvalidOptionError(
                f"`method` is {STOCHASTIC!r}, and {spectra_for} needs singular values and vectors, "
                "which an estimate does not have.",
                hint="Leave `method` out.",
            )
        known = sorted(field.name for field in fields(cls))
        for name in given:
            if name not in known:
                raise InvalidOptionTypeError(
                    f"`{name}` is not an option of the analysis", f"one of {', '.join(known)}"
                )
        return cls(**given)

    @property
    def of_rank(self) -> RankOptions:
        """The options of `choose_rank` among them."""
        return _of_rank(self.rule, self.bulk_keep, self.keep, self.min_rank)

    @property
    def settings(self) -> dict[str, Any]:
        """The options as a report holds them."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.kind is None:
            del options["kind"]
        if not self.metrics:
            del options["metrics"]
        del options["init"]
        if self.init is not None:
            options["init"] = self.init.description
        solver = self.eigensolver
        if solver is not None:
            options["eigensolver"] = getattr(solver, "__qualname__", type(solver).__name__)
        return dict(plain(options))


@functools.lru_cache(maxsize=64)
def _of_rank(rule: str, bulk_keep: float, keep: float | None, min_rank: int) -> RankOptions:
    return RankOptions(rule=rule, bulk_keep=bulk_keep, keep=keep, min_rank=min_rank)


def check_metrics(metrics: Any, init: Any) -> None:
    """Raise unless `metrics` is true or false and can be served; true where `init` is given."""
    if not isinstance(metrics, bool):
        raise InvalidOptionTypeError(f"`metrics` is {metrics!r}", "True or False")
    if metrics:
        powerlaw_package()
    elif init is not None:
        hint = "The distance to the initial weights is one of the metrics: ask for them."
        raise InvalidOptionError("`init` is given without `metrics`", "both or neither", hint)


def check_jobs(n_jobs: Any) -> int | None:
    """Return `n_jobs` if joblib accepts it: a whole number other than 0, or None."""
    if n_jobs is None:
        return None
    hint = "1 works in this process, -1 uses all cores."
    number = _checks.integer(n_jobs, "n_jobs", -(2**31), hint=hint)
    if number == 0:
        raise InvalidOptionError("`n_jobs` is 0", "a whole number other than 0", hint)
    return number


def check_progress(progress: Any) -> None:
    """Raise unless `progress` is callable or None."""
    if progress is not None and not callable(progress):
        raise InvalidOptionTypeError(f"`progress` is {progress!r}", "a callable, or None")
