"""The options of a plan as one value, checked before any work."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rmtspec import _checks
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError
from rmtspec.matrix.rank import RULES, refuse_bulk_keep
from rmtspec.matrix.rules.options import BULK_RULES
from rmtspec.planning.costs import Costs
from rmtspec.planning.gate import UNSET, gate_of
from rmtspec.planning.selection import Pattern, Selection
from rmtspec.report.options import AnalysisOptions, Progress, check_jobs, check_progress
from rmtspec.report.report import Report
from rmtspec.terms import LOW_RANK_FORMS, Action

MODES = (Action.SPLIT.value, Action.TRUNCATE.value)
#: Default share of the bulk that a plan keeps besides what it counts, from the paper.
BULK_KEEP = 0.45
#: What a budget may be a share of.
SIZES = ("parameters", "bytes", "latency")
#: From this smaller side on, "auto" asks for ranks in multiples of 16.
_WIDE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The options of a plan, described at `rmtspec.adapters.torch.prune`; a wrong one raises here.

    Attributes
    ----------
    plan : Report, optional
        A plan to carry out; of the other options only `mode` may be given with it.
    gate : "noise", number or None
        Settled from the two spellings `gate` and `fit_cutoff`: see `rmtspec.planning.gate`.
    calibrated : bool
        Whether calibration data are there, which decide together with a budget.
    rank_multiple : int or "auto"
        Ranks that a budget or a rule chooses are multiples of it; see `multiple_of`.
    form : str, optional
        The `rmtspec.terms.Form` of linear layers that are split; by default "pivoted" where a
        budget goes by predicted losses, else "plain". Without it, hidden units may leave as well.
    size : {"parameters", "bytes", "latency"}
        What a budget is a share of: parameters, bytes as stored, or the seconds that `costs` tell.
    costs : Costs, optional
        Measured costs, for the size "latency".
    more : mapping
        Further options of `rmtspec.analyze`, by name.
    analysis : AnalysisOptions
        The analysis that the plan needs; its `cutoff` is the gate, if that is a number, and its
        noise model "mp" unless the gate or the rule asks for another.
    """

    rule: str | None = None
    bulk_keep: float | None = None
    gate: Any = UNSET
    fit_cutoff: Any = UNSET
    include: Pattern | None = None
    exclude: Pattern | None = None
    min_saving: float = 0.0
    mode: str = "split"
    budget: float | None = None
    ranks: Mapping[str, int] | None = None
    n_jobs: int | None = 1
    progress: Progress | None = None
    plan: Report | None = None
    calibrated: bool = False
    rank_multiple: int | str = 1
    form: str | None = None
    size: str = "parameters"
    costs: Costs | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    analysis: AnalysisOptions = field(init=False)

    def __post_init__(self) -> None:
        _checks.choice(self.mode, "mode", MODES)
        if self.plan is not None:
            self._check_alone()
        hint = "It is a share of the parameters."
        _checks.inside(self.min_saving, "min_saving", 0.0, 1.0, closed=True, hint=hint)
        if "rank" in self.more:
            hint = 'Pass ranks={"name": 8}.'
            raise InvalidOptionTypeError("`rank` is given", "`ranks`, a rank for each name", hint)
        if "cutoff" in self.more:
            raise InvalidOptionTypeError("`cutoff` is called `gate` here: pass that.")
        if self.budget is not None:
            self._check_budget()
        if not isinstance(self.ranks, Mapping | None):
            given = type(self.ranks).__name__
            raise InvalidOptionTypeError(f"`ranks` is a {given}", "a mapping {name: rank}")
        if self.rank_multiple != "auto":
            hint = 'Pass "auto" for multiples of 16, or of 8 where the smaller side is below 256.'
            _checks.integer(self.rank_multiple, "rank_multiple", 1, hint=hint)
        if self.form is not None:
            _checks.choice(self.form, "form", LOW_RANK_FORMS)
        self._check_size()
        check_jobs(self.n_jobs)
        check_progress(self.progress)
        self.selection()
        decided = self.plan is not None or (self.calibrated and self.budget is not None)
        object.__setattr__(self, "gate", gate_of(self.gate, self.fit_cutoff, decided=decided))
        object.__setattr__(self, "fit_cutoff", UNSET)
        object.__setattr__(self, "analysis", self._analysis())

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "PlanOptions":
        """Return options from a mapping by name, which may include those of the analysis."""
        own = {f.name for f in fields(cls) if f.init} - {"plan", "more"}
        more = {name: value for name, value in given.items() if name not in own}
        return cls(**{name: given[name] for name in given if name in own}, more=more)

    def selection(self) -> Selection:
        """Return the user's choice of matrices, which records the patterns that match nothing."""
        return Selection(self.include, self.exclude)

    def multiple_of(self, smaller_side: int) -> int:
        """Return what the rank of a matrix is to be a multiple of."""
        if self.rank_multiple == "auto":
            return 16 if smaller_side >= _WIDE else 8
        return int(self.rank_multiple)

    @property
    def may_narrow(self) -> bool:
        """Whether a budget may take hidden units as well as ranks."""
        return self.form is None and self.size != "latency" and self.mode == Action.SPLIT

    def _analysis(self) -> AnalysisOptions:
        asked = "auto" if self.gate == "noise" or self.rule == "noise" else "mp"
        noise = self.more.get("noise", asked)
        rule = ("bema" if noise == "mp" else "noise") if self.rule is None else self.rule
        bulk_keep = self.bulk_keep
        if bulk_keep is None:
            bulk_keep = BULK_KEEP if rule in BULK_RULES else 0.0
        elif rule in RULES and rule not in BULK_RULES:
            refuse_bulk_keep(rule, bulk_keep)
        cutoff = None if self.gate == "noise" else self.gate
        decided = {"cutoff": cutoff, "noise": noise, "rule": rule, "bulk_keep": bulk_keep}
        return AnalysisOptions.of({**self.more, **decided}, spectra_for="pruning")

    def _check_alone(self) -> None:
        """Raise if anything else is given besides a plan."""
        names = ("rule", "bulk_keep", "include", "exclude", "budget")
        given = {name: getattr(self, name) for name in names} | dict(self.more)
        for name in ("gate", "fit_cutoff"):
            given[name] = None if getattr(self, name) is UNSET else str(getattr(self, name))
        given |= {"min_saving": self.min_saving or None, "ranks": self.ranks or None}
        given["form"] = self.form
        given["rank_multiple"] = None if self.rank_multiple == 1 else self.rank_multiple
        other = next((name for name, value in given.items() if value is not None), None)
        if other is not None:
            raise InvalidOptionError(
                f"`plan` and `{other}` are both given",
                "one of them, because the plan states what is done to each matrix",
                "Edit the plan, or make a new one.",
            )

    def _check_size(self) -> None:
        _checks.choice(self.size, "size", SIZES)
        if self.costs is not None and not isinstance(self.costs, Costs):
            kind = type(self.costs).__name__
            raise InvalidOptionTypeError(f"`costs` is a {kind}", "what `measure_costs` returned")
        timed = self.size == "latency"
        if timed != (self.costs is not None):
            given = "is 'latency' without" if timed else f"is {self.size!r}, and there are"
            raise InvalidOptionError(
                f"`size` {given} `costs`", "both for a budget of time, or neither",
                "Measure: costs = rt.measure_costs(model).",
            )  # fmt: skip
        if timed and self.budget is None:
            raise InvalidOptionError(
                "`size` is 'latency' without `budget`", "a share of the seconds to keep"
            )

    def _check_budget(self) -> None:
        """Raise unless `budget` is a share in (0, 1], alone, and the mode saves parameters."""
        if self.mode != Action.SPLIT:
            raise InvalidOptionError(
                "`budget` is a share of parameters, and mode='truncate' saves none",
                "mode='split'",
                "Truncate with `rule`, `bulk_keep` or `ranks`.",
            )
        hint = "It is the share of parameters to keep."
        if _checks.inside(self.budget, "budget", 0.0, 1.0, closed=True, hint=hint) == 0.0:
            raise InvalidOptionError("`budget` is 0", "a share above 0 to keep, such as 0.5")
        given = {"rule": self.rule, "bulk_keep": self.bulk_keep, "keep": self.more.get("keep")}
        for name, value in given.items():
            if value is not None:
                raise InvalidOptionError(
                    f"`budget` and `{name}` are both given",
                    "one of them, because each decides the ranks",
                    "Leave one out.",
                )
