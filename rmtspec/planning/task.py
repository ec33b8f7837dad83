"""One task on a model: the matrices chosen, their analysis, and the plan that follows."""

# ruff: noqa: D102  the members of Matrix are described by Target

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, Protocol, TypeVar

from numpy.typing import NDArray

from rmtspec._text import grouped
from rmtspec.errors import InvalidValueError
from rmtspec.planning.calibration import Weights
from rmtspec.planning.curves import Curves, curves_of
from rmtspec.planning.hidden_units import HiddenLayer
from rmtspec.planning.options import PlanOptions
from rmtspec.planning.plan import Plan, candidates, make_plan
from rmtspec.planning.selection import Chosen, Named, Selection
from rmtspec.planning.target import Target, settled
from rmtspec.report.many import report_on_many
from rmtspec.report.options import AnalysisOptions, Progress
from rmtspec.report.report import Report
from rmtspec.terms import Why


class Matrix(Named, Protocol):
    """A weight as a framework supplies it; calling it returns the array (rows x columns).

    Its attributes are those of `Target` of the same names. It is called only where `reason` is
    empty.
    """

    @property
    def kind(self) -> str: ...
    @property
    def layer(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def fixed(self) -> str: ...
    @property
    def unsplittable(self) -> str: ...
    @property
    def on_request(self) -> str: ...
    @property
    def kernel(self) -> tuple[int, ...]: ...
    @property
    def present_rank(self) -> int: ...
    def __call__(self) -> NDArray[Any]: ...


M = TypeVar("M", bound=Matrix)


class NothingToAnalyzeError(InvalidValueError):
    """None of the chosen matrices is left; `skipped` says why, as in a report."""

    def __init__(self, message: str, skipped: list[dict[str, str]]) -> None:
        super().__init__(message)
        self.skipped = skipped


class Subject(Generic[M]):
    """The matrices of a model that a user chose, and what may be done to them.

    Parameters
    ----------
    matrices : mapping of str to Matrix
        All matrices of the model by name, including those that cannot be read, with the reason.
    selection : Selection
    owner : str
        What the matrices belong to, for messages: "this MLP".
    owner_of, leave : callable, optional
        See `Selection.choose`.
    hint : str
        Advice on names, for the message about patterns that match nothing.

    Attributes
    ----------
    matrices : dict of str to Matrix
        The chosen matrices, including those that cannot be read.
    left_out : list of dict
        "name" and "reason" of the others, and of patterns that match nothing.
    targets : dict of str to Target
        What may be done to each chosen matrix.

    Raises
    ------
    NothingToAnalyzeError
        No chosen matrix can be read.
    """

    def __init__(
        self,
        matrices: Mapping[str, M],
        selection: Selection,
        owner: str,
        owner_of: Callable[[M], Any] | None = None,
        leave: Callable[[M], str] | None = None,
        hint: str = "",
    ) -> None:
        chosen: Chosen[M] = selection.choose(matrices, owner_of, leave)
        self.matrices = chosen.matrices
        self.left_out = list(chosen.left_out)
        self._owner, self._settings = owner, selection.settings
        unmet = selection.unmet
        self.left_out += [{"name": p, "reason": Why.NO_MATRIX_MEETS.words()} for p in unmet]
        if all(matrix.reason for matrix in self.matrices.values()):
            unread = [{"name": n, "reason": m.reason} for n, m in self.matrices.items()]
            message = f"No weight matrix of {owner} is left to analyse"
            if unmet:
                message += f"; no name matches {', '.join(unmet)}"
            skipped = [*unread, *chosen.left_out]
            message += "" if skipped else ": it has no parameters"
            message = f"{message}. {hint}".rstrip()
            raise NothingToAnalyzeError(_with_reasons(message, skipped), [*unread, *self.left_out])
        apart = {
            matrices[entry["name"]].layer: Why.LAYER_LEFT.words(**entry)
            for entry in chosen.left_out
            if matrices[entry["name"]].kind
        }
        self.targets = {
            name: Target(
                layer=matrix.layer, kind=matrix.kind, shape=matrix.shape, itemsize=matrix.itemsize,
                reason=matrix.reason, fixed=matrix.fixed, on_request=matrix.on_request,
                unsplittable=matrix.unsplittable or apart.get(matrix.layer, ""),
                named=name in chosen.named, aliases=matrix.names,
                kernel=matrix.kernel, present_rank=matrix.present_rank,
            )
            for name, matrix in self.matrices.items()
            if matrix.kind
        }  # fmt: skip

    def analyze(
        self,
        options: AnalysisOptions,
        n_jobs: int | None = 1,
        progress: Progress | None = None,
        *,
        plain: Collection[str] = (),
    ) -> Report:
        """Return the report on the chosen matrices; raise if none can be analysed.

        `plain` names matrices that need no other noise model than "mp", which costs least.
        """
        reasons = {name: matrix.reason for name, matrix in self.matrices.items() if matrix.reason}
        readable = {name: m for name, m in self.matrices.items() if name not in reasons}
        report = report_on_many(readable, options, n_jobs, progress, plain=plain)
        reasons |= {entry["name"]: entry["reason"] for entry in report.skipped}
        skipped = [{"name": n, "reason": reasons[n]} for n in self.matrices if n in reasons]
        if not report.rows:
            message = f"No weight matrix of {self._owner} could be analysed."
            raise InvalidValueError(_with_reasons(message, skipped))
        settings = {**report.settings, **self._settings}
        return dataclasses.replace(report, skipped=[*skipped, *self.left_out], settings=settings)


class Task(Generic[M]):
    """One pruning: the options, the matrices, and the plan that follows.

    Attributes
    ----------
    settled : frozenset of str
        Names of the matrices whose noise decides nothing about them: see `Subject.analyze`.

    Raises
    ------
    InvalidValueError
        A given rank is not possible; this is checked before any work.
    """

    def __init__(self, subject: Subject[M], options: PlanOptions) -> None:
        self.subject, self.options = subject, options
        self.settled = settled(options, subject.targets)

    def analyze(self) -> Report:
        """Return the report that `plan` needs."""
        asked = self.options
        return self.subject.analyze(
            asked.analysis, asked.n_jobs, asked.progress, plain=self.settled
        )

    def candidates(self, report: Report) -> list[str]:
        """Return the names of the matrices that the plan may split or truncate."""
        return candidates(report, self.subject.targets, self.options)

    def plan(
        self, report: Report, curves: Curves | None = None, *, budget: float | None = None
    ) -> Plan:
        """Return what is done to each matrix.

        `curves` are those of `curves`; `budget` takes the place of that of the options. Without a
        budget curves do not matter for the ranks; then only losses are predicted.
        """
        options = self.options
        if budget is not None:
            options = dataclasses.replace(options, budget=budget)
        return make_plan(report, self.subject.targets, options, curves)

    def curves(
        self,
        report: Report,
        weights: Mapping[str, Weights],
        hidden: Mapping[str, HiddenLayer] | None = None,
    ) -> Curves:
        """Return what each rank buys, by what calibration says about the matrices, by name.

        `hidden` layers, by the name of the matrix that reads them, may lose units.
        """
        layers = (hidden or {}).values() if self.options.may_narrow else ()
        kernels = {n: target.kernel for n, target in self.subject.targets.items() if target.kernel}
        names = self.candidates(report)
        return curves_of(
            names, self.subject.matrices, weights, hidden=layers,
            kernels=kernels if self.options.may_narrow else {},
        )  # fmt: skip


def _with_reasons(message: str, skipped: list[dict[str, str]]) -> str:
    return "\n".join([message, *(f"  {names}: {reason}" for reason, names in grouped(skipped))])
