"""Where hidden units of a model can leave: found by structure, and tried on what the model saw."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from rmtspec.adapters.torch._calibration.rows import layer_sides

#: Rows of the input that a module is tried on, where it takes a single tensor.
_ROWS = 16
#: Largest relative difference of outputs that are the same but for rounding, by bytes of a number.
_SAME = {8: 1e-9, 4: 1e-3, 2: 5e-2}


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A module within which some layers may make hidden units for another, by name."""

    owner: str
    makers: tuple[str, ...]
    reader: str
    units: int


class HiddenUnits:
    """The hidden layers of a model, as far as they can be told.

    A candidate is a module in which exactly one linear layer reads as many features as one or two
    others put out. It is one if the module without half of these units computes what it computes
    where they are zeros at the layer that reads them. The arguments to try it with are those of its
    first call.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self._model = model
        linear = {
            name: layer
            for name, layer in layers.items()
            if not isinstance(layer, nn.modules.conv._ConvNd | nn.Embedding)
        }
        self._candidates = list(_candidates(model, linear))
        self._seen: dict[str, tuple[Any, Any]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the arguments of the first call of each module that is a candidate."""
        handles = []
        try:
            for owner in {each.owner for each in self._candidates}:
                module = self._model.get_submodule(owner)

                def keep(module: Any, args: Any, kwargs: Any, owner: str = owner) -> None:
                    if owner not in self._seen:
                        self._seen[owner] = _kept(args, kwargs)

                handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def found(self) -> dict[str, list[str]]:
        """Return the layers that make hidden units by the layer that reads them, by name."""
        result: dict[str, list[str]] = {}
        taken: set[str] = set()  # a layer is in one hidden layer only
        modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()
        try:
            for each in self._candidates:
                members = {*each.makers, each.reader}
                if each.owner in self._seen and not taken & members and self._is_one(each):
                    result[each.reader] = list(each.makers)
                    taken |= members
        finally:
            for module, mode in modes:
                module.training = mode
            self._seen.clear()
        return result

    def _is_one(self, candidate: _Candidate) -> bool:
        owner = self._model.get_submodule(candidate.owner)
        args, kwargs = self._seen[candidate.owner]
        generator = torch.Generator().manual_seed(0)
        stays = torch.randperm(candidate.units, generator=generator)[: -(-candidate.units // 2)]
        try:
            with torch.inference_mode(), torch.random.fork_rng():
                whole = _tensors(owner(*args, **kwargs))
                with self._masked(candidate, stays) as calls:
                    masked = _tensors(owner(*args, **kwargs))
                with self._narrowed(candidate, stays):
                    narrow = _tensors(owner(*args, **kwargs))
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError):
            return False  # it does not work with fewer units
        return calls == [1] and not _same(whole, masked) and _same(masked, narrow)

    @contextmanager
    def _masked(self, candidate: _Candidate, stays: torch.Tensor) -> Iterator[list[int]]:
        """Put zeros for the other units before they are read; the list counts the calls."""
        calls = [0]

        def mask(layer: Any, args: Any) -> Any:
            calls[0] += 1
            zeros = torch.zeros_like(args[0])
            zeros[..., stays] = args[0][..., stays]
            return (zeros, *args[1:])

        handle = self._model.get_submodule(candidate.reader).register_forward_pre_hook(mask)
        try:
            yield calls
        finally:
            handle.remove()

    @contextmanager
    def _narrowed(self, candidate: _Candidate, stays: torch.Tensor) -> Iterator[None]:
        """Put layers without the other units in the place of those of the candidate."""
        places = []
        for name in (*candidate.makers, candidate.reader):
            parent, _, short = name.rpartition(".")
            held = self._model.get_submodule(parent)._modules
            places.append((held, short, held[short]))
        try:
            for (held, short, layer), name in zip(places, (*candidate.makers, ""), strict=True):
                held[short] = _without(layer, stays, outputs=bool(name))
            yield
        finally:
            for held, short, layer in places:
                held[short] = layer


def _candidates(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[_Candidate]:
    """Yield the modules that look like one, the innermost first."""
    owners: dict[str, list[str]] = {}
    for name in layers:
        words = name.split(".")
        for depth in (1, 2):  # its children, and theirs
            if depth <= len(words):
                owners.setdefault(".".join(words[: len(words) - depth]), []).append(name)
    for owner in sorted(owners, key=lambda path: -path.count(".")):
        sides = {name: layer_sides(layers[name]) for name in owners[owner]}
        for units in dict.fromkeys(columns for _, columns in sides.values()):
            readers = [name for name, (_, columns) in sides.items() if columns == units]
            makers = [name for name, (rows, _) in sides.items() if rows == units]
            apart = not {*readers} & {*makers}
            if units > 1 and len(readers) == 1 and len(makers) in (1, 2) and apart:
                yield _Candidate(owner, tuple(makers), readers[0], units)


def _kept(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments of a call, detached; of a single tensor, some rows."""
    if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
        rows = args[0].detach()
        if rows.ndim >= 2:
            rows = rows.reshape(-1, *rows.shape[-2:])[:1, :_ROWS] if rows.ndim > 2 else rows[:_ROWS]
        return (rows.clone(),), {}
    kept: tuple[Any, Any] = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs))
    return kept


def _without(layer: Any, stays: torch.Tensor, *, outputs: bool) -> nn.Module:
    """Return a copy of a layer with only some of its outputs, or of its inputs."""
    made: nn.Module = copy.copy(layer)
    made._parameters = dict(layer._parameters)
    turned = not isinstance(layer, nn.Linear)  # transformers' Conv1D
    weight = layer.weight
    made._parameters["weight"] = weight[:, stays] if outputs == turned else weight[stays]
    if outputs:
        bias = layer._parameters.get("bias")
        made._parameters["bias"] = None if bias is None else bias[stays]
        if turned:
            made.nf = len(stays)  # type: ignore[assignment]
    return made


def _tensors(output: Any) -> list[torch.Tensor]:
    """Return the floating tensors of an output."""
    found: list[torch.Tensor] = []

    def take(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            found.append(tensor)
        return tensor

    tree_map_only(torch.Tensor, take, output)
    return found


def _same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Tell whether outputs are the same but for rounding."""
    if [each.shape for each in one] != [each.shape for each in other]:
        return False
    for a, b in zip(one, other, strict=True):
        gap = (a.double() - b.double()).norm()
        if not gap <= _SAME.get(a.element_size(), 5e-2) * a.double().norm():
            return False
    return True
