"""Pruning while training: the paper's algorithm 4.4, for any training loop."""

import contextlib
import dataclasses
import math
import numbers
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._layers.product_matrix import ProductMatrix, matrices_with_products
from rmtspec.adapters.torch._layers.replace import model_sizes, totals
from rmtspec.adapters.torch._layers.split_layer import SplitLayer
from rmtspec.adapters.torch._pruning.carry_out import carry_out
from rmtspec.adapters.torch._pruning.task import PruningTask
from rmtspec.adapters.torch._training import replicas
from rmtspec.adapters.torch._training.file import read_training, write_training
from rmtspec.adapters.torch._training.optimizer import FactorOptimizer
from rmtspec.adapters.torch._training.state import SCHEMA, Rebuilt, fingerprint
from rmtspec.adapters.torch._training.transaction import Merged, together
from rmtspec.adapters.torch._weights.layer_kinds import ROOT
from rmtspec.adapters.torch._weights.matrices import check_model, weight_matrices
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import (
    UNSET,
    Action,
    Every,
    Gate,
    NothingToAnalyzeError,
    PathLike,
    Pattern,
    Plan,
    PlanOptions,
    Progress,
    Report,
    Schedule,
    SplitFactors,
    Unset,
    Why,
    checks,
    versions,
)
from rmtspec.errors import InvalidOptionError, InvalidTypeError, InvalidValueError, RmtspecWarning

DECAYS = ("factors", "weight")
#: The default of the gate: the paper's gamma.
_CUTOFF = 0.1


class RMTPruner:
    """Split a model's layers while it trains (the paper, algorithm 4.4).

    Call `step` once per epoch. At the end of each cycle every weight matrix is analysed. If the
    fit is accepted and a split saves parameters, the layer is replaced in the model by two thinner
    ones, and its weight in the optimizer by their factors: group, learning rate, order and
    schedulers are kept, and the optimizer's state is mapped to the factors.

    Parameters
    ----------
    model : torch.nn.Module
        The model itself, not its wrapper; changed in place.
    optimizer : torch.optim.Optimizer
        Over the model's parameters; changed in place. The state of SGD, Adam and AdamW is carried
        through a split; other optimizers start the factors with an empty state, and a warning is
        given. LBFGS cannot be used.
    every : int, iterable of int, or callable
        Epochs per cycle: one number for all; the lengths of the first, second, ... cycle, after
        which no more layers are split; or a function of the cycle (0, 1, ...) that returns its
        length, or None to stop.
    bulk_keep, rule, keep, include, exclude, min_saving, mode, device, n_jobs, progress
        As for `prune`. Patterns are
        matched against the names of the layers.
    fit_cutoff, gate
        Two spellings of the gate, as for `prune`: by default the paper's gamma, 0.1. None accepts
        any fit.
    match_step : bool or str
        Shorten the steps on the factors so that they move the product about as far as the
        optimizer moved the weight. True takes the rule that did best; see Notes.
    decay : {"factors", "weight"}
        What the optimizer's weight decay shrinks after a split: each factor, which on the product
        acts like a nuclear norm; or the product, as before the split (for a factor that is split
        again, the product of its own factors). Decay that the optimizer adds to the gradient (SGD,
        Adam) is shortened with the step; AdamW's is not.
    recut : {False, "factors"}
        What a split layer is at later cycles. By default one matrix, the product of its factors: it
        is left, or its rank is lowered, by the rules for any layer, if the spectrum of the product
        has a bulk (only where the rank is at least ``1 - alpha``, 80 %, of the smaller side). With
        "factors", as published, each factor is a layer of its own, "fc.inner" and "fc.outer", and
        may be split again. A factor is not signal plus noise: one whose spectrum happens to pass
        the gate is cut through its signal, which has cost 5 to 12 points of accuracy.
    budget, ranks
        As for `prune`, but each applies once: `ranks` to the layers that it names, `budget` to all
        layers whose fit is accepted when the first of them is split.
    **options
        Of `rmtspec.analyze`: `alpha`, `beta`, ...

    Attributes
    ----------
    history : list of Report
        What was decided at the end of each cycle, without the spectra.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        The model is wrapped, a trained weight is not in the optimizer, or an option is wrong;
        raised before anything is trained.

    Notes
    -----
    With W = B A and gradient G, a step of length lr on the factors moves W by
    ``-lr (B B^T G + G A^T A)``, up to 2 s_1 times as far as a step on W: enough to lose a point of
    accuracy for an epoch. The rules of `match_step` give the share of its step that a factor takes,
    with ``e_i = |column i of B|^2 + |row i of A|^2``, twice the singular value at the split:

    =================  ===========================================================
    "largest"          1 / max e; the meaning of True
    "geometric mean"   1 / geometric mean of e
    "each direction"   1 / e_i for direction i
    "root of largest"  1 / sqrt(2 max e)
    =================  ===========================================================

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> _ = torch.manual_seed(0)
    >>> model = rt.MLP([64, 100, 50, 10])
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> pruner = rt.RMTPruner(model, optimizer, every=2, bulk_keep=0.2)
    >>> for epoch in range(4):
    ...     loss = model(torch.ones(8, 64)).square().mean()
    ...     optimizer.zero_grad(); loss.backward(); optimizer.step()
    ...     report = pruner.step(loss)
    ...     if report is not None:
    ...         print(pruner.epoch, rt.layer_dims(model))
    2 [64, 12, 100, 10, 50, 10]
    4 [64, 12, 100, 10, 50, 10]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        every: Every = 3,
        bulk_keep: float | None = None,
        fit_cutoff: float | None = _CUTOFF,
        gate: Gate | Unset = UNSET,
        match_step: bool | str = True,
        decay: str = "factors",
        rule: str | None = None,
        include: Pattern | None = None,
        exclude: Pattern | None = None,
        min_saving: float = 0.0,
        mode: str = "split",
        budget: float | None = None,
        ranks: Mapping[str, int] | None = None,
        recut: bool | str = False,
        device: str | torch.device | None = None,
        n_jobs: int | None = 1,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        check_model(model)
        checks.choice(decay, "decay", DECAYS)
        if recut is not False and recut != "factors":
            raise InvalidOptionError(f"`recut` is {recut!r}", "False or 'factors'")
        self._recut = recut
        self._schedule = Schedule(every)
        self.model = model
        self._asked = PlanOptions(
            rule=rule, bulk_keep=bulk_keep, gate=gate,
            fit_cutoff=UNSET if gate is not UNSET and fit_cutoff == _CUTOFF else fit_cutoff,
            include=include, exclude=exclude, min_saving=min_saving, mode=mode, budget=budget,
            ranks=ranks, n_jobs=n_jobs, progress=progress, more=options,
        )  # fmt: skip
        self._device = device
        self._ranks = dict(ranks or {})
        task = PruningTask(model, self._asked, device, matrices=self._matrices())
        targets = task.subject.targets.values()
        if any(t.layer == ROOT and not t.refusal(mode) for t in targets) and mode == Action.SPLIT:
            raise InvalidValueError(
                f"`model` is itself a layer to be split, a {type(model).__name__}, which cannot be "
                "done in place. Wrap it in a module: torch.nn.Sequential(layer)."
            )
        self._optimizer = FactorOptimizer(optimizer, match_step, decay)
        self._optimizer.check_holds(model)
        self._start = fingerprint(model, optimizer)
        self.history: list[Report] = []
        self._splits: list[dict[str, Any]] = []
        self._unproved = False
        self._optimizer.watch()
        optimizer.register_step_pre_hook(self._check_replicas)

    @property
    def epoch(self) -> int:
        """Epochs counted so far."""
        return self._schedule.epoch

    @property
    def next_epoch(self) -> int | None:
        """The epoch after which layers may be split next; None after the last cycle."""
        return self._schedule.next

    def step(self, loss: Any = None) -> Report | None:
        """Count an epoch, and at the end of a cycle split the layers that can be split.

        Call it after the optimizer's last step of the epoch. In a distributed run call it in every
        process, and wrap the model again whenever it returns a report.

        Parameters
        ----------
        loss : float or scalar tensor, optional
            The epoch's loss. If it is nan or infinite, or if a weight has such entries, nothing is
            split, and a warning says so.

        Returns
        -------
        Report or None
            What was decided for each matrix, and why; None within a cycle, or if nothing was to be
            split because of nan.

        Raises
        ------
        InvalidValueError, InvalidTypeError
            `loss` is not a number, or the schedule returns a wrong length; no epoch is counted.
        """
        trouble = _trouble(loss)
        if not self._schedule.advance():
            return None
        trouble = trouble or _nan_weight(self.model)
        if replicas.decided_once(lambda: trouble):
            warnings.warn(
                f"No layer is split after epoch {self.epoch}: "
                f"{trouble or 'the first process found nan'}. Training continues with the layers "
                "as they are; a lower learning rate may help.",
                RmtspecWarning,
                stacklevel=2,
            )
            return None
        report = self._split()
        self.history.append(dataclasses.replace(report, matrices={}))
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs besides the states of model and optimizer.

        It has plain numbers, text and lists: `torch.load` reads it with ``weights_only=True``.
        """
        return {
            "schema": SCHEMA,
            "start": self._start,
            "recut": self._recut,
            "schedule": self._schedule.state_dict(),
            "splits": [dict(entry) for entry in self._splits],
            "history": [report.to_dict() for report in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Split the layers that were split, and continue from where the state was taken.

        Call it on the pruner of a freshly built model, before the states of model and optimizer
        are loaded: they need the layers and factors that it makes. `resume` does all three.
        A state from before there was `recut`, when factors could always be cut again, is accepted
        with either value; with recut="factors" the training goes on as it was.

        Raises
        ------
        InvalidTypeError, InvalidValueError
            The state is not that of a pruner, or of another model or `recut`; nothing is changed.
        """
        rebuilt = Rebuilt(state, self.model, self._start, self._recut)
        for path, weight, layer, entry in rebuilt.layers():
            self._optimizer.adopt(path, weight, layer, entry["share"])
        self._splits = rebuilt.splits
        self._unproved = bool(self._splits) and replicas.count() > 1
        self._schedule.load_state_dict(rebuilt.schedule)
        self.history = rebuilt.history

    def save(self, path: PathLike, **others: Any) -> None:
        """Write model, optimizer, pruner and torch's random state into one file.

        An existing file is replaced in one step: after an interruption either the old or the new
        one is complete.

        Parameters
        ----------
        path : path
        **others
            What else is to be resumed, by name: anything with `state_dict` and `load_state_dict`,
            such as schedulers and gradient scalers.

        Raises
        ------
        FileError
            The file cannot be written; an existing one is unchanged.
        """
        write_training(path, self._parts(others))

    def resume(self, path: PathLike, **others: Any) -> None:
        """Resume from a file that `save` wrote, with a freshly built model, optimizer and pruner.

        On the CPU, given the same batches, the training continues exactly as if it had not been
        interrupted.

        Parameters
        ----------
        path : path
        **others
            The names that were saved, each with a freshly built object.

        Raises
        ------
        FileError
            The file does not exist, or was not written by `save`.
        InvalidValueError
            The file is of another model, or has other names; nothing is changed.
        """
        read_training(path, self._parts(others))

    def _parts(self, others: dict[str, Any]) -> dict[str, Any]:
        """Return the contents of a file, in the order in which they are loaded."""
        own = {"pruner": self, "model": self.model, "optimizer": self._optimizer.optimizer}
        for name, part in others.items():
            if name in own:
                raise InvalidValueError(f"{name!r} is saved anyway; leave it out.")
            if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
                raise InvalidTypeError(
                    f"{name!r} is a {type(part).__name__}; expected an object with state_dict and "
                    "load_state_dict, such as a scheduler."
                )
        return own | others

    def _leave(self, matrix: WeightMatrix) -> str:
        """Return why a matrix is left alone at this stage of the training, or ""."""
        parameter = matrix.parameter
        if matrix.reason or parameter is None:
            return ""
        if self._asked.budget is not None and self._splits:
            return Why.BUDGET_SPENT.words()
        trained = parameter.requires_grad
        if isinstance(matrix, ProductMatrix):
            trained = matrix.trained
            if self._asked.mode == Action.TRUNCATE:
                return Why.SPLIT_BEFORE.words(present=matrix.present_rank)
        return "" if trained else Why.FROZEN.words()

    def _matrices(self) -> dict[str, WeightMatrix]:
        """Return what may be cut: a split layer is one matrix, or else each of its factors."""
        if self._recut == "factors":
            return {
                name: dataclasses.replace(matrix, factor_of="")
                for name, matrix in weight_matrices(self.model)
            }
        return matrices_with_products(self.model)

    def _split(self) -> Report:
        plan = replicas.decided_once(self._plan)
        sizes = model_sizes(self.model)
        merged = self._merged(plan)
        matrices = self._matrices()
        by_layer: dict[str, list[WeightMatrix]] = {}
        changed: list[torch.Tensor] = []
        for row in plan.rows:
            matrix = matrices[row["name"]]
            if row["action"] == Action.SPLIT:
                by_layer.setdefault(matrix.layer, []).append(matrix)
            elif row["action"] == Action.TRUNCATE:
                changed.append(matrix.parameter)
        made: list[SplitLayer] = []

        @contextlib.contextmanager
        def tell(path: str, layer: SplitLayer, parts: list[SplitFactors]) -> Iterator[None]:
            members = by_layer.pop(path)
            # In the order of their rows in the weight, like `parts`.
            members.sort(key=lambda m: m.part.start if isinstance(m.part, slice) else 0)
            with together(self.model, self._optimizer):
                if path in merged.layers:
                    share = self._optimizer.lower(path, merged.layers[path], parts, layer)
                else:
                    share = self._optimizer.replace(path, members, parts, layer)
                yield
            self._splits.append({"name": path, "rank": layer.rank, "share": share})
            merged.done(path)
            made.append(layer)

        try:
            _, report = carry_out(self.model, plan, matrices, inplace=True, tell=tell)
        finally:
            merged.put_back()
        changed += [tensor for layer in made for tensor in self._optimizer.tensors_of(layer)]
        replicas.made_equal(changed)
        self._unproved |= bool(made) and replicas.count() > 1
        return dataclasses.replace(report, totals=totals(sizes, model_sizes(self.model)))

    def _merged(self, plan: Plan) -> Merged:
        """Merge the split layers whose rank a plan lowers; return them as they were."""
        known = self._matrices()
        held = [known[row["name"]] for row in plan.cut]
        layers = {m.layer: m.split_layer for m in held if isinstance(m, ProductMatrix)}
        return Merged(self.model, layers)

    def _plan(self) -> Plan:
        matrices = self._matrices()
        split = {entry["name"] for entry in self._splits}  # ranks apply once
        known = [m for m in matrices.values() if m.kind and not self._leave(m)]
        names = {name for m in known if m.layer not in split for name in m.names}
        ranks = {name: rank for name, rank in self._ranks.items() if name in names}
        asked = dataclasses.replace(self._asked, ranks=ranks)
        try:
            task = PruningTask(
                self.model, asked, self._device, leave=self._leave, matrices=matrices
            )
        except NothingToAnalyzeError as nothing:
            # Everything is frozen, or the patterns match no factor of the layers that were split.
            return Plan(
                rows=[], skipped=nothing.skipped, settings={}, versions=versions("torch"),
                matrices={},
            )  # fmt: skip
        return task.run()

    def _check_replicas(self, *_: Any) -> None:
        """Check at the first step after a split that all processes share the gradients."""
        if self._unproved:
            newest = self._optimizer.newest
            self._unproved = not replicas.shared_gradient(newest.grad, newest.device)


def _trouble(loss: Any) -> str:
    """Return why a split must not follow this loss, or ""."""
    if loss is None:
        return ""
    value = loss.item() if isinstance(loss, torch.Tensor) and loss.numel() == 1 else loss
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(
            f"`loss` is a {type(loss).__name__}; expected the loss of the epoch, a number. "
            "Omit it if there is none."
        )
    return "" if math.isfinite(value) else f"the loss is {float(value)}"


@torch.no_grad()
def _nan_weight(model: nn.Module) -> str:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            return f"{name} has nan or infinite entries"
    return ""
