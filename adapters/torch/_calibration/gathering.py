"""What layers see while their model runs: second moments of inputs and of gradients at outputs."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import nn

from rmtspec.adapters.torch._calibration.options import CalibrationOptions
from rmtspec.adapters.torch._calibration.rows import (
    groups_of,
    input_rows,
    layer_sides,
    output_rows,
)
from rmtspec.adapters.torch._calibration.sums import MomentSum
from rmtspec.adapters.torch._outputs import Visible

#: Layers of more outputs keep the diagonal of G even where all of it is asked for: 2 GiB.
FULL_UP_TO = 16_384


class InputsDivergedError(Exception):
    """Layers that read the same input in some calls read different ones in another."""


class Gathering:
    """Hooks on layers, and the sums that they fill while the model runs.

    With `inputs` False only gradients are gathered.

    Attributes
    ----------
    inputs : dict of str to InputSums
        By name of the layer; layers that always read the same tensor share one.
    outputs : dict of str to list of MomentSum
        Of the gradients at the outputs of the layers that any reached, one per group.
    differentiated : bool
        Whether gradients at the outputs are gathered from the present batch.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        options: CalibrationOptions,
        *,
        shared: bool,
        inputs: bool = True,
    ) -> None:
        self.inputs: dict[str, InputSums] = {}
        self.outputs: dict[str, list[MomentSum]] = {}
        self.differentiated = self._held_out = False
        self._visible: Visible | None = None
        self._layers, self._shared, self._sees_inputs = layers, shared, inputs
        self._clip, self._full = options.clip, options.output_moment == "full"
        self._seen: dict[int, _Seen] = {}

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Keep hooks on the layers, in evaluation mode; afterwards all is as before.

        No parameter takes part in a gradient meanwhile, so that none gets one.
        """
        modes = [(module, module.training) for module in model.modules()]
        trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        handles: list[Any] = []
        try:
            for name, layer in self._layers.items():
                before, after = partial(self._before, name), partial(self._after, name)
                if self._sees_inputs:
                    handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(layer.register_forward_hook(after, prepend=True))
            model.eval()
            for parameter, _ in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes:
                module.training = mode
            for parameter, flag in trained:
                parameter.requires_grad_(flag)
            self._seen.clear()

    def prepare(self, visible: Visible, *, held_out: bool, differentiated: bool) -> None:
        """Say what the batch that comes is for, and which of its positions count."""
        self._visible, self._held_out = visible, held_out
        self.differentiated = differentiated

    def finish_batch(self) -> None:
        """Check that layers which share a sum have read the same tensors; raise if not."""
        self._seen.clear()
        for name, sums in self.inputs.items():
            if sums.reads[name] != sums.calls:
                raise InputsDivergedError(name)

    def _before(self, name: str, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = args[0] if args else next(iter(kwargs.values()))
        plain = not isinstance(layer, nn.modules.conv._ConvNd | nn.Embedding)
        known = self._seen.get(id(inputs)) if self._shared and plain else None
        if known is not None and known.tensor() is inputs and known.version == _version(inputs):
            own = self.inputs.get(name)
            if own is None and known.sums.calls == 1:  # it has seen nothing but this tensor
                own = self.inputs[name] = known.sums
            if own is known.sums:
                own.reads[name] = own.reads.get(name, 0) + 1
                return
        sums = self.inputs.get(name)
        if sums is None:
            sums = self.inputs[name] = InputSums(layer, self._clip)
        sums.reads[name] = sums.reads.get(name, 0) + 1
        sums.calls += 1
        if self._shared and plain:
            self._seen[id(inputs)] = _Seen(weakref.ref(inputs), _version(inputs), sums)
        positions = inputs[..., None] if isinstance(layer, nn.Embedding) else inputs
        visible = None if self._visible is None else self._visible(name, positions)
        for rows in input_rows(layer, inputs.detach(), visible):
            sums.add(rows, held_out=self._held_out)

    def _after(self, name: str, layer: Any, args: tuple[Any, ...], output: Any) -> Any:
        if not (self.differentiated and torch.is_grad_enabled()):
            return None
        if not (isinstance(output, torch.Tensor) and output.is_floating_point()):
            return None
        starts = not output.requires_grad  # gradients reach no further back than here
        if starts:
            output = output.detach().requires_grad_()
        visible = None if self._visible is None else self._visible(name, output)
        output.register_hook(partial(self._gradient, name, layer, visible))
        return output.clone() if starts else output  # a leaf could not be changed in place

    def _gradient(self, name: str, layer: Any, visible: Any, gradient: torch.Tensor) -> None:
        groups = groups_of(layer)
        if name not in self.outputs:
            diagonal = not (self._full and layer_sides(layer)[0] <= FULL_UP_TO)
            self.outputs[name] = [MomentSum(diagonal=diagonal) for _ in range(groups)]
        sums = self.outputs[name]
        for rows in output_rows(layer, gradient, visible):
            for group in range(groups):
                sums[group].add(rows[:, group])


class InputSums:
    """The sums over the inputs of one or more layers: to fit by, and to measure errors by.

    Attributes
    ----------
    fitted, held_out : list of MomentSum or Counts
        One per group; sums of the rows held out are in float32. Of an embedding, how often each
        row was looked up.
    calls : int
        Number of tensors seen.
    reads : dict of str to int
        How many of them each layer read.
    """

    def __init__(self, layer: Any, clip: float | None) -> None:
        self.fitted: list[Any]
        self.held_out: list[Any]
        if isinstance(layer, nn.Embedding):
            self.fitted, self.held_out = [Counts(layer)], [Counts(layer)]
            clip = None
        else:
            groups = range(groups_of(layer))
            self.fitted = [MomentSum() for _ in groups]
            self.held_out = [MomentSum(single=True) for _ in groups]
        self.calls = 0
        self.reads: dict[str, int] = {}
        self._clip = clip

    def add(self, rows: torch.Tensor, *, held_out: bool) -> None:
        """Add rows of shape (count, groups, columns)."""
        for group, total in enumerate(self.held_out if held_out else self.fitted):
            part = rows[:, group]
            total.add(part if held_out or self._clip is None else clipped(part, self._clip))


class Counts:
    """How often each row of an embedding was looked up."""

    def __init__(self, layer: nn.Embedding) -> None:
        self.rows = 0
        self._total = torch.zeros(layer.num_embeddings, dtype=torch.int64)

    def add(self, indices: torch.Tensor) -> None:
        """Add indices, of shape (count, 1)."""
        self._total += torch.bincount(indices.reshape(-1).cpu(), minlength=len(self._total))
        self.rows += len(indices)

    def mean(self) -> NDArray[Any]:
        """Return the share of each row."""
        shares: NDArray[Any] = self._total.numpy() / max(self.rows, 1)
        return shares


def clipped(rows: torch.Tensor, most: float) -> torch.Tensor:
    """Return rows whose norms are at most a multiple of their median."""
    norms = rows.float().norm(dim=-1, keepdim=True)
    if not norms.numel():
        return rows
    bound = most * norms.median()
    return torch.where(norms > bound, rows * (bound / norms.clamp_min(1e-30)).to(rows.dtype), rows)


class _Seen(NamedTuple):
    tensor: Any  # a weak reference
    version: int
    sums: InputSums


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else int(tensor._version)
