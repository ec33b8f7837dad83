"""The functional noise test: signs of the bulk flipped, and the user's figure measured."""

import dataclasses
import numbers
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._weights.subject import subject_of
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import (
    FlipOptions,
    Float64Array,
    NoiseTest,
    Pattern,
    Progress,
    Selection,
    run_noise_test,
    versions,
)
from rmtspec.errors import InvalidTypeError

#: Returns the figure of a model, higher for a better one.
Evaluate = Callable[[Any], Any]


def noise_test(
    model: nn.Module,
    evaluate: Evaluate,
    *,
    draws: int = 10,
    ranks: Mapping[str, int] | None = None,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    together: bool | str = True,
    tolerance: float | None = None,
    rng: Any = 0,
    progress: Progress | None = None,
) -> NoiseTest:
    """Measure whether a model needs the bulk of its weight matrices.

    The bulk is what lies beyond the leading components that stand above the noise. The signs of its
    entries are flipped at random, which keeps the size of every entry and destroys what they say
    together, and `evaluate` is called: for one matrix at a time, then for all at once. The shape of
    a spectrum cannot replace this test: matrices whose bulk looks like noise may be needed.

    Parameters
    ----------
    model : torch.nn.Module
        Restored after each draw and whatever happens: weights to the last bit, buffers, gradients,
        training flags. Torch's random state is the same at every call of `evaluate`, and afterwards
        what it was before.
    evaluate : callable
        Takes the model and returns a number, higher for a better model: an accuracy, minus a loss,
        a cosine with the outputs of the unchanged model. Its errors pass through.
    draws : int
        Number of random flips of each matrix, at least 2. `evaluate` is called ``draws`` times for
        each matrix, and at least twice for the unchanged model.
    ranks : mapping of str to int, optional
        Number of leading components that stay, by name; for the other matrices it is computed.
    include, exclude : str, pattern, predicate on (name, module), or several
        Which matrices, as for `analyze`. Those with a smaller side below 16, where no count can be
        relied on, are tested only if `include` or `ranks` names them.
    together : bool or "only"
        Flip all these matrices at once as well, or only all at once.
    tolerance : float, optional
        The loss of the figure that you would not mind: it decides the verdict. By default a
        hundredth of the absolute figure of the unchanged model.
    rng : int, numpy.random.Generator or None
        Seed of the flips.
    progress : callable, optional
        Called after each matrix with (done, total, name).

    Returns
    -------
    NoiseTest
        A row for each matrix: the change of the figure with its 95 % interval over the draws, and
        the verdict (`rmtspec.terms.Need`): "needs the bulk" if the interval lies below minus the
        tolerance, "does without the bulk" if it lies above, else "cannot tell".

    Raises
    ------
    InvalidTypeError
        `model` is not a module, or is wrapped; `evaluate` is not callable, or returns something
        else than a number.
    InvalidValueError
        No matrix can be tested, an option is wrong, or `evaluate` returns nan or inf for the
        unchanged model.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> _ = torch.manual_seed(0)
    >>> model, x = rt.MLP([64, 100, 50, 10]), torch.randn(200, 64)
    >>> before = model(x).detach()
    >>> def evaluate(model):
    ...     with torch.no_grad():
    ...         return torch.cosine_similarity(model(x), before, dim=1).mean()
    >>> report = rt.noise_test(model, evaluate, draws=4)
    >>> report.row("layers.0")["verdict"], report.together["verdict"]
    ('needs the bulk', 'needs the bulk')
    """
    options = FlipOptions(
        draws=draws, ranks=ranks, together=together, tolerance=tolerance, rng=rng,
        progress=progress,
    )  # fmt: skip
    subject = subject_of(model, Selection(include, exclude))
    if not callable(evaluate):
        raise InvalidTypeError(
            f"`evaluate` is {evaluate!r}; expected a function that takes the model and returns a "
            "number. Pass the function itself, not its result."
        )
    with _as_it_was(model) as again:
        bench = _Bench(model, evaluate, subject.matrices, again)
        try:
            report = run_noise_test(subject, bench, options)
        finally:
            bench.restore()
    return dataclasses.replace(report, versions=versions("torch"))


class _Bench:
    """The model under test: see `rmtspec.planning.flips.Bench`."""

    def __init__(
        self,
        model: nn.Module,
        evaluate: Evaluate,
        matrices: Mapping[str, WeightMatrix],
        again: Callable[[], None],
    ) -> None:
        self._model, self._evaluate = model, evaluate
        self._matrices, self._again = matrices, again
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def figure(self) -> float:
        """Return the figure of the model as it is now."""
        self._again()
        return _number(self._evaluate(self._model))

    def replace(self, name: str, values: Float64Array) -> None:
        """Overwrite a matrix; its weight is kept until `restore`."""
        matrix = self._matrices[name]
        weight = matrix.parameter
        if id(weight) not in self._kept:
            self._kept[id(weight)] = (weight, weight.detach().to("cpu", copy=True))
        matrix.write(values)

    @torch.no_grad()
    def restore(self) -> None:
        """Put all weights back as they were."""
        for weight, copy in self._kept.values():
            weight.copy_(copy)
        self._kept.clear()


def _number(value: Any) -> float:
    """Return what `evaluate` returned as a float."""
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.detach().item()
    elif getattr(value, "size", None) == 1 and hasattr(value, "item"):  # of NumPy
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise InvalidTypeError(
            f"`evaluate` returned a {type(value).__name__}{shape}; expected one real number, "
            "higher for a better model. Average over the samples; for a loss, return its negative."
        )
    return float(value)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Yield a function that resets all of a model but its weights; it is reset at the end too."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer.is_meta else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    places = {parameter.device for parameter, _ in gradients if parameter.is_cuda}
    random = torch.get_rng_state()
    on_devices = [(device, torch.cuda.get_rng_state(device)) for device in places]

    @torch.no_grad()
    def again() -> None:
        for module, mode in modes:
            module.training = mode
        for module, name, buffer, values in buffers:
            module._buffers[name] = buffer
            if values is not None:
                buffer.copy_(values)
        for parameter, _ in gradients:  # what `evaluate` accumulates is dropped
            parameter.grad = None
        torch.set_rng_state(random)
        for device, state in on_devices:
            torch.cuda.set_rng_state(state, device)

    try:
        yield again
    finally:
        again()
        for parameter, gradient in gradients:
            parameter.grad = gradient
