"""Pruning while training: the paper's algorithm 4.4 for any training loop."""

import dataclasses
import math
import numbers
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._layers.split_layer import SplitLayer
from rmtspec.adapters.torch._pruning.carry_out import carry_out
from rmtspec.adapters.torch._pruning.task import PruningTask
from rmtspec.adapters.torch._training.file import read_training, write_training
from rmtspec.adapters.torch._training.optimizer import FactorOptimizer
from rmtspec.adapters.torch._training.replicas import (
    decided_once,
    made_equal,
    replicas,
    shared_gradient,
)
from rmtspec.adapters.torch._training.state import Rebuilt, fingerprint
from rmtspec.adapters.torch._weights.layer_kinds import ROOT
from rmtspec.adapters.torch._weights.matrices import check_model, weight_matrices
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import (
    Action,
    Every,
    NothingToAnalyzeError,
    PathLike,
    Pattern,
    Plan,
    PlanOptions,
    Progress,
    Report,
    Schedule,
    SplitFactors,
    Why,
    checks,
    versions,
)
from rmtspec.errors import InvalidTypeError, InvalidValueError, RmtspecWarning

#: Version of what `state_dict` returns.
SCHEMA = 1
DECAYS = ("factors", "weight")


class RMTPruner:
    """Split a model's layers while it trains (the paper, algorithm 4.4).

    Call `step` once per epoch. At the end of each cycle every weight matrix is analysed; where
    the fit is accepted and the split saves parameters, the layer is replaced in the model by two
    thinner ones, and its weight in the optimizer by their factors: group, learning rate, order
    and schedulers stay, and the optimizer's state is mapped to the factors.

    Parameters
    ----------
    model : torch.nn.Module
        The model itself, not its wrapper; changed in place.
    optimizer : torch.optim.Optimizer
        Over the model's parameters; changed in place. State is carried through a split for SGD,
        Adam and AdamW; others start the factors afresh, with a warning. LBFGS cannot be used.
    every : int, iterable of int, or callable
        Epochs in a cycle: a number; the lengths of the first, second, ... cycle, after which no
        more layers are split; or a function of the cycle (0, 1, ...) that returns its length, None
        for no further one.
    bulk_keep : float
        Share of the bulk that is kept beside the spikes; by default 0.45 as in the paper.
        0 removes the whole bulk.
    fit_cutoff : float or None
        The paper's gamma: split only where the fit statistic is at most this. None for any fit.
    match_step : bool or str
        Shorten the steps on the factors so that they move the product about as far as the
        optimizer moved the weight. True takes the rule that did best; see Notes.
    decay : {"factors", "weight"}
        What the optimizer's weight decay shrinks after a split: each factor, which on the product
        acts like a nuclear norm; or the product, as before the split (of a factor that is split
        again: the product of its two). Decay that the optimizer adds to the gradient (SGD, Adam)
        is shortened with the step; AdamW's is not.
    rule, keep, include, exclude, min_saving, mode, budget, ranks, device, n_jobs, progress
        As for `prune`. Patterns are met with the names of the model as it is: a factor that may be
        split again is "fc.inner" or "fc.outer". `ranks` counts for the layers it names, once; so
        does `budget`, for all layers whose fit is accepted when the first of them is split.
    **options
        Of `rmtspec.analyze`: `alpha`, `beta`, ...

    Attributes
    ----------
    epoch : int
        Epochs counted so far.
    next_epoch : int or None
        The epoch after which layers may be split next.
    history : list of Report
        What was decided at the end of each cycle, without the spectra.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        A wrapped model, a weight that is trained and not in the optimizer, nonsense in an option;
        before anything is trained.

    Notes
    -----
    With W = B A and gradient G, a step of length lr on the factors moves W by
    ``-lr (B B^T G + G A^T A)``, up to 2 s_1 times as far as a step on W: enough to lose a point of
    accuracy for an epoch. Rules of `match_step`, as the share of its step that a factor takes, with
    ``e_i = |column i of B|^2 + |row i of A|^2``, twice the singular value at the split:

    =================  ===========================================================
    "largest"          1 / max e; what True means
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
        fit_cutoff: float | None = 0.1,
        match_step: bool | str = True,
        decay: str = "factors",
        rule: str | None = None,
        include: Pattern | None = None,
        exclude: Pattern | None = None,
        min_saving: float = 0.0,
        mode: str = "split",
        budget: float | None = None,
        ranks: Mapping[str, int] | None = None,
        device: str | torch.device | None = None,
        n_jobs: int | None = 1,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        check_model(model)
        checks.choice(decay, "decay", DECAYS)
        self._schedule = Schedule(every)
        self.model = model
        self._asked = PlanOptions(
            rule=rule, bulk_keep=bulk_keep, fit_cutoff=fit_cutoff, include=include,
            exclude=exclude, min_saving=min_saving, mode=mode, budget=budget, ranks=ranks,
            n_jobs=n_jobs, progress=progress, more=options,
        )  # fmt: skip
        self._device = device
        self._ranks = dict(ranks or {})
        targets = PruningTask(model, self._asked, device).subject.targets.values()
        if any(t.layer == ROOT and not t.refusal(mode) for t in targets) and mode == Action.SPLIT:
            raise InvalidValueError(
                f"`model` is itself a layer to be split, a {type(model).__name__}, which cannot be "
                "done in place. Put it into a module: torch.nn.Sequential(layer)."
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
        """The epoch after which layers may be split next; None for no further one."""
        return self._schedule.next

    def step(self, loss: Any = None) -> Report | None:
        """Count an epoch, and at the end of a cycle split what can be split.

        Call it after the epoch's last step of the optimizer. In a distributed run call it in every
        process, and wrap the model again whenever it returns a report.

        Parameters
        ----------
        loss : float or scalar tensor, optional
            Of the epoch. Where it is nan or infinite nothing is split, and a warning says so; nan
            in the weights does the same.

        Returns
        -------
        Report or None
            What was decided for each matrix, and why; None within a cycle or where the split was
            left out.

        Raises
        ------
        InvalidValueError, InvalidTypeError
            `loss` is no number, or the schedule returns nonsense; nothing is counted then.
        """
        trouble = _trouble(loss)
        if not self._schedule.advance():
            return None
        trouble = trouble or _nan_weight(self.model)
        if decided_once(lambda: trouble):
            warnings.warn(
                f"No layer is split after epoch {self.epoch}: "
                f"{trouble or 'the first process found nan'}. Training goes on with the layers as "
                "they are; a lower learning rate may help.",
                RmtspecWarning,
                stacklevel=2,
            )
            return None
        report = self._split()
        self.history.append(dataclasses.replace(report, matrices={}))
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs beside the states of model and optimizer.

        Plain numbers, text and lists: `torch.load` reads it with ``weights_only=True``.
        """
        return {
            "schema": SCHEMA,
            "start": self._start,
            "schedule": self._schedule.state_dict(),
            "splits": [dict(entry) for entry in self._splits],
            "history": [report.to_dict() for report in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Split the layers that were split, and stand where the state was taken.

        Call it on a pruner of a freshly built model, before the states of model and optimizer are
        loaded: these need the layers and factors that it makes. `resume` does all three.

        Raises
        ------
        InvalidTypeError, InvalidValueError
            No state of a pruner, or one of another model; nothing is changed then.
        """
        rebuilt = Rebuilt(state, self.model, self._start, SCHEMA)
        for path, weight, layer, entry in rebuilt.layers():
            self._optimizer.adopt(path, weight, layer, entry["share"])
            self._splits.append(entry)
        self._unproved = bool(self._splits) and replicas() > 1
        self._schedule.load_state_dict(rebuilt.schedule)
        self.history = rebuilt.history

    def save(self, path: PathLike, **others: Any) -> None:
        """Write model, optimizer, pruner and the random state of torch into one file.

        A file that was there is replaced in one step: whatever interrupts, one of them is whole.

        Parameters
        ----------
        path : path
        **others
            What else is to be resumed, by name: anything with `state_dict` and `load_state_dict`,
            as schedulers and gradient scalers.

        Raises
        ------
        FileError
            It cannot be written; what was there is unchanged.
        """
        write_training(path, self._parts(others))

    def resume(self, path: PathLike, **others: Any) -> None:
        """Go on from a file that `save` wrote, with a freshly built model, optimizer and pruner.

        On the CPU the training goes on exactly as if it had not been interrupted, given the same
        batches.

        Parameters
        ----------
        path : path
        **others
            The same names as were saved.

        Raises
        ------
        FileError
            No such file, or none that `save` wrote.
        InvalidValueError
            A file of another model, or with other names; nothing is changed then.
        """
        read_training(path, self._parts(others))

    def _parts(self, others: dict[str, Any]) -> dict[str, Any]:
        """Return what a file holds, in the order in which it is loaded."""
        own: dict[str, Any] = {
            "pruner": self,
            "model": self.model,
            "optimizer": self._optimizer.optimizer,
        }
        for name, part in others.items():
            if name in own:
                raise InvalidValueError(f"{name!r} is saved anyway; leave it out.")
            if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
                raise InvalidTypeError(
                    f"{name!r} is a {type(part).__name__}; expected something with state_dict and "
                    "load_state_dict, as a scheduler."
                )
        return own | others

    def _leave(self, matrix: WeightMatrix) -> str:
        """Return why the training has a matrix left alone, or ""."""
        parameter = matrix.parameter
        if matrix.reason or parameter is None:
            return ""
        if self._asked.budget is not None and self._splits:
            return Why.BUDGET_SPENT.words()
        return "" if parameter.requires_grad else Why.FROZEN.words()

    def _split(self) -> Report:
        plan = decided_once(self._plan)
        matrices = dict(weight_matrices(self.model))
        by_layer: dict[str, list[WeightMatrix]] = {}
        changed: list[torch.Tensor] = []
        for row in plan.rows:
            matrix = matrices[row["name"]]
            if row["action"] == Action.SPLIT:
                by_layer.setdefault(matrix.layer, []).append(matrix)
            elif row["action"] == Action.TRUNCATE:
                changed.append(matrix.parameter)
        made: list[SplitLayer] = []

        def tell(path: str, layer: SplitLayer, parts: list[SplitFactors]) -> None:
            members = by_layer.pop(path)
            # In the order of their rows in the weight, as `parts` are.
            members.sort(key=lambda m: m.part.start if isinstance(m.part, slice) else 0)
            share = self._optimizer.replace(path, members, parts, layer)
            self._splits.append({"name": path, "rank": layer.rank, "share": share})
            made.append(layer)

        _, report = carry_out(self.model, plan, matrices, moments={}, inplace=True, tell=tell)
        changed += [tensor for layer in made for tensor in self._optimizer.tensors_of(layer)]
        made_equal(changed)
        if made and replicas() > 1:
            self._unproved = True
        return report

    def _plan(self) -> Plan:
        known = [m for _, m in weight_matrices(self.model) if m.kind and not self._leave(m)]
        names = {name for matrix in known for name in matrix.names}
        ranks = {name: rank for name, rank in self._ranks.items() if name in names}
        asked = dataclasses.replace(self._asked, ranks=ranks)
        try:
            task = PruningTask(self.model, asked, self._device, self._leave)
        except NothingToAnalyzeError as nothing:
            # All is frozen, or the patterns meet no factor of what was split.
            return Plan(
                rows=[], skipped=nothing.skipped, settings={}, versions=versions("torch"),
                matrices={},
            )  # fmt: skip
        return task.plan_for(task.analyze(), {})

    def _check_replicas(self, *_: Any) -> None:
        """Make sure at the first step after a split that the gradients are those of all."""
        if self._unproved:
            newest = self._optimizer.newest
            self._unproved = not shared_gradient(newest.grad, newest.device)


def _trouble(loss: Any) -> str:
    """Return why a loss is none to go on from, or ""."""
    if loss is None:
        return ""
    value = loss.item() if isinstance(loss, torch.Tensor) and loss.numel() == 1 else loss
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(
            f"`loss` is a {type(loss).__name__}; expected the loss of the epoch, a number. "
            "Leave it out if there is none."
        )
    return "" if math.isfinite(value) else f"the loss is {float(value)}"


@torch.no_grad()
def _nan_weight(model: nn.Module) -> str:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            return f"{name} has nan or infinite entries"
    return ""
