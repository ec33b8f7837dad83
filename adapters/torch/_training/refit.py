"""Refit: the factors of a pruned model trained a little, towards the outputs of the original."""

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._calibration.batches import (
    check_batches,
    device_of,
    on_device,
    with_holdout,
)
from rmtspec.adapters.torch._layers.narrowed_linear import NarrowedLinear
from rmtspec.adapters.torch._layers.split_layer import SplitLayer
from rmtspec.adapters.torch._training.distillation import Distillation, Loss
from rmtspec.adapters.torch._training.refit_state import RefitState
from rmtspec.adapters.torch._weights.matrices import check_model
from rmtspec.adapting import PathLike, Progress, Refit, checks, versions
from rmtspec.errors import (
    InvalidOptionTypeError,
    InvalidTypeError,
    InvalidValueError,
    RmtspecWarning,
)

PRECISIONS = ("float32", "bfloat16")
#: Share of the steps in which the learning rate rises.
_RISING = 0.1


def refit(
    model: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int = 80,
    norms: bool = False,
    biases: bool = False,
    loss: Loss | None = None,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    learning_rate: float = 5e-5,
    max_norm: float | None = 1.0,
    precision: str = "float32",
    holdout: float = 0.1,
    state: PathLike | None = None,
    save_every: int = 20,
    inplace: bool = False,
    progress: Progress | None = None,
) -> tuple[Any, Refit]:
    """Repair a pruned model: train its factors towards the outputs of the original.

    No labels are needed. Each step takes one batch, in order, beginning anew after the last. Both
    models run in evaluation mode, so that there is no dropout.

    Parameters
    ----------
    model : torch.nn.Module
        With split layers, from `prune`.
    teacher : torch.nn.Module
        The original; it is not changed, whatever it shares with `model`.
    batches : iterable of model inputs
        As for `calibrate`, but no function. Positions that a mask hides do not count.
    steps : int
        Number of steps: 80 to 500 are usual.
    norms, biases : bool
        Train the parameters of normalisation layers, and biases, too.
    loss : callable, optional
        ``loss(model, teacher, batch)`` returns the loss. By default the Kullback-Leibler divergence
        where the output has logits; else the squared distance of the outputs, relative to the
        teacher's.
    optimizer : callable, optional
        Takes the list of parameters and returns an optimizer; by default AdamW without weight
        decay. The learning rates of its groups rise over the first tenth of the steps, and fall to
        0 along a cosine.
    learning_rate : float
        Of the default optimizer. Factors far from the original bear more (3e-4); near it, more
        makes the model worse.
    max_norm : float, optional
        Largest norm of a gradient; longer ones are shortened to it. None for no limit.
    precision : {"float32", "bfloat16"}
        "bfloat16" runs both models under autocast; weights and steps stay as they are. Several
        times as fast on hardware that multiplies bfloat16.
    holdout : float
        Share of the batches, at least one where there are two, that the loss is measured on before
        and after.
    state : path, optional
        File that the training is saved to every `save_every` steps and at the end, and continued
        from if it is there; it ends with the same result.
    save_every : int
        Steps between two savings.
    inplace : bool
        Train `model` itself. Otherwise the result shares with it what is not trained.
    progress : callable, optional
        Called with the number of steps done, of all, and the loss in words.

    Returns
    -------
    model : torch.nn.Module
    curve : Refit

    Raises
    ------
    InvalidTypeError, InvalidValueError
        There is nothing to train, the batches or outputs cannot be used, the loss became nan, or
        `state` belongs to another training. `model` is then as it was.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> _ = torch.manual_seed(0)
    >>> model, batches = rt.MLP([64, 100, 50, 10]), [torch.randn(100, 64) for _ in range(4)]
    >>> smaller, _ = rt.prune(model, calibration=batches, budget=0.4)
    >>> better, curve = rt.refit(smaller, model, batches, steps=20)
    >>> curve.held_out_after < curve.held_out_before
    True
    """
    start = time.perf_counter()
    settings = _checked(
        steps=steps, norms=norms, biases=biases, learning_rate=learning_rate, max_norm=max_norm,
        precision=precision, holdout=holdout, save_every=save_every,
    )  # fmt: skip
    check_model(model)
    if not isinstance(teacher, nn.Module):
        kind = type(teacher).__name__
        raise InvalidTypeError(f"`teacher` is a {kind}; expected the original torch.nn.Module.")
    if callable(batches) and not isinstance(batches, Iterable):
        raise InvalidTypeError("`batches` is a function; expected an iterable of model inputs.")
    if optimizer is not None and not callable(optimizer):
        raise InvalidOptionTypeError(
            f"`optimizer` is a {type(optimizer).__name__}",
            "a function that takes the list of parameters and returns an optimizer",
        )
    names = trained_names(model, norms=norms, biases=biases)
    student = _own(model, teacher, names, inplace=inplace)
    parameters = [student.get_parameter(name) for name in names]
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with _prepared(student, teacher, parameters):
            made = (optimizer or _adamw(learning_rate))(parameters)
            saved = RefitState(state, names, before, settings=settings, optimizer=made)
            trainer = _Trainer(student, teacher, loss, settings)
            curve = trainer.train(batches, parameters, made, saved=saved, progress=progress)
    except BaseException:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        raise
    before_it, after_it = curve["held_out_before"], curve["held_out_after"]
    if after_it > before_it:
        warnings.warn(
            f"The refit made the model worse: on batches held out its loss went from "
            f"{before_it:.4g} to {after_it:.4g}. Lower `learning_rate`, or pass more batches.",
            RmtspecWarning,
            stacklevel=2,
        )
    return student, Refit(
        **curve, trained=sum(p.numel() for p in parameters),
        seconds=saved.seconds + time.perf_counter() - start,
        settings=settings, versions=versions("torch"),
    )  # fmt: skip


def trained_names(model: nn.Module, *, norms: bool, biases: bool) -> list[str]:
    """Return the names of the parameters that a refit trains."""
    names = []
    inside: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, SplitLayer | NarrowedLinear):
            inside.append(f"{path}." if path else "")
        norm = norms and "norm" in type(module).__name__.lower()
        for short, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{short}" if path else short
            factor = short != "bias" and name.startswith(tuple(inside)) and bool(inside)
            wanted = factor or norm or (biases and short == "bias")
            if wanted and parameter.is_floating_point():
                names.append(name)
    if not inside:
        raise InvalidValueError(
            f"This {type(model).__name__} has no split layer, so there is nothing to refit; "
            "expected a model from `prune`."
        )
    if not names:
        raise InvalidValueError(
            f"The factors of this {type(model).__name__} are stored as codes, which cannot be "
            "trained; expected those that `prune` makes. Refit first, then `quantize_factors`."
        )
    return names


class _Trainer:
    """The loop over the steps."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, loss: Loss | None, settings: dict[str, Any]
    ) -> None:
        self._distillation = Distillation(student, teacher, loss)
        self._settings, self._device = settings, device_of(student)

    def train(
        self,
        batches: Iterable[Any],
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        saved: RefitState,
        progress: Progress | None,
    ) -> dict[str, Any]:
        """Return what the curve holds."""
        steps, most = self._settings["steps"], self._settings["max_norm"]
        fitted, held_out = self._divided(batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_share, steps))
        with self._distillation.prepared():
            measured = saved.read(parameters, schedule)
            if measured is None:
                measured = self._mean(held_out)
            for step in range(len(saved.losses), steps):
                optimizer.zero_grad(set_to_none=True)
                value, count = self._loss(fitted[step % len(fitted)], step, step % len(fitted))
                torch.autograd.backward(value)
                if most is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, most)
                rate = optimizer.param_groups[0]["lr"]
                optimizer.step()
                schedule.step()
                saved.note(float(value.detach()), rate, count)
                if (step + 1) % self._settings["save_every"] == 0 or step + 1 == steps:
                    saved.write(parameters, schedule, measured)
                if progress is not None:
                    progress(step + 1, steps, f"loss {saved.losses[-1]:.4g}")
            after = self._mean(held_out)
        return {
            "losses": saved.losses, "learning_rates": saved.rates, "tokens": saved.tokens,
            "held_out_before": measured, "held_out_after": after,
        }  # fmt: skip

    def _divided(self, batches: Iterable[Any]) -> tuple[list[Any], list[Any]]:
        fitted: list[Any] = []
        held_out: list[Any] = []
        listed: Any = check_batches(batches, "batches")
        for _, batch, held in with_holdout(listed, self._settings["holdout"], "batches"):
            (held_out if held else fitted).append(batch)
        return fitted, held_out

    def _loss(self, given: Any, step: int, number: int) -> tuple[torch.Tensor, int]:
        batch = on_device(given, self._device)
        half = self._settings["precision"] == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            value, count = self._distillation(batch, number, given)
        if not torch.isfinite(value.detach()):
            raise InvalidValueError(
                f"The loss is {float(value.detach())} at step {step + 1}; expected a finite "
                "number. Lower `learning_rate`, or look at the batches. The model is as it was."
            )
        return value, count

    @torch.no_grad()
    def _mean(self, batches: list[Any]) -> float:
        if not batches:
            return math.nan
        found = [self._loss(batch, -1, number) for number, batch in enumerate(batches)]
        return sum(float(value) * count for value, count in found) / sum(c for _, c in found)


def _checked(**given: Any) -> dict[str, Any]:
    """Return the options, checked."""
    checks.integer(given["steps"], "steps", 1)
    checks.integer(given["save_every"], "save_every", 1)
    checks.positive(given["learning_rate"], "learning_rate")
    if given["max_norm"] is not None:
        checks.positive(given["max_norm"], "max_norm", "None for no limit.")
    checks.choice(given["precision"], "precision", PRECISIONS)
    checks.inside(given["holdout"], "holdout", 0.0, 0.9, closed=True)
    return given


def _share(steps: int, step: int) -> float:
    """Return the share of the learning rate at a step."""
    rising = min(1.0, (step + 1) / max(1.0, _RISING * steps))
    return rising * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _adamw(learning_rate: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0)


def _own(model: nn.Module, teacher: nn.Module, names: list[str], *, inplace: bool) -> Any:
    """Return the model whose named parameters can be trained without changing any other."""
    if inplace:
        others = {id(parameter) for parameter in teacher.parameters()}
        for name in names:
            path, _, short = name.rpartition(".")
            module = model.get_submodule(path)
            parameter: Any = module._parameters[short]
            if id(parameter) in others:
                flag = parameter.requires_grad
                module._parameters[short] = nn.Parameter(parameter.detach().clone(), flag)
        return model
    trained = {id(model.get_parameter(name)) for name in names}
    kept = [p for p in (*model.parameters(), *model.buffers()) if id(p) not in trained]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in kept})


@contextlib.contextmanager
def _prepared(
    student: nn.Module, teacher: nn.Module, parameters: list[nn.Parameter]
) -> Iterator[None]:
    """Train only these parameters, both models in evaluation mode; restore all of it."""
    modes = [(m, m.training) for model in (student, teacher) for m in model.modules()]
    flags = [(p, p.requires_grad, p.grad) for m in (student, teacher) for p in m.parameters()]
    try:
        student.eval()
        teacher.eval()
        for parameter, _, _ in flags:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
            parameter.grad = None
        with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag, gradient in flags:
            parameter.requires_grad_(flag)
            parameter.grad = gradient
