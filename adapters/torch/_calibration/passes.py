"""One pass of a model over calibration batches, for a group of its layers."""

import contextlib
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._pytree import tree_map_only

from rmtspec.adapters.torch._calibration.batches import (
    Batches,
    call,
    device_of,
    on_device,
    with_holdout,
)
from rmtspec.adapters.torch._calibration.gathering import (
    FULL_UP_TO,
    Gathering,
    InputsDivergedError,
)
from rmtspec.adapters.torch._calibration.gradients import Gradients
from rmtspec.adapters.torch._calibration.options import CalibrationOptions
from rmtspec.adapters.torch._calibration.rows import groups_of, layer_sides
from rmtspec.adapters.torch._outputs import visible_positions
from rmtspec.adapting import Calibration, listed
from rmtspec.errors import InvalidTypeError, InvalidValueError


def bytes_of(layer: Any, options: CalibrationOptions) -> int:
    """Return how many bytes the sums of a layer take."""
    rows, columns = layer_sides(layer)
    groups = groups_of(layer)
    if isinstance(layer, nn.Embedding):  # counts, and its matrix is stored transposed
        moment = 8 * layer.num_embeddings * (2 if options.holdout else 1)
    else:
        moment = columns * columns * (8 + (4 if options.holdout else 0))
    full = options.output_moment == "full" and rows <= FULL_UP_TO
    return groups * (moment + 8 * rows * (rows if full else 1))


def groups_within(needed: Mapping[str, int], memory: float) -> list[list[str]]:
    """Return the layers in order, in groups that take at most that many bytes each."""
    groups: list[list[str]] = [[]]
    taken = 0
    for name, size in needed.items():
        if groups[-1] and taken + size > memory:
            groups.append([])
            taken = 0
        groups[-1].append(name)
        taken += size
    return groups


def shared_memory(model: nn.Module) -> float:
    """Return half the memory of the device that the model is on, in bytes."""
    device = device_of(model)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    return float("inf")


class Pass:
    """One pass over the batches: it runs the model, and returns what its layers saw."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        options: CalibrationOptions,
        where: str = "calibrate",
    ) -> None:
        self._model, self._layers, self._options = model, layers, options
        self._where = where

    def run(self, batches: Batches) -> Calibration:
        """Return the moments; layers that read the same input share one."""
        for shared in (True, False):
            gathering = Gathering(self._layers, self._options, shared=shared)
            gradients = Gradients(self._model, self._options)
            try:
                with gathering.hooked(self._model), gradients.prepared(), random_state_kept():
                    if isinstance(batches, Iterable):
                        self._run_batches(batches, gathering, gradients)
                    else:
                        self._run_callable(batches, gathering, gradients)
                break
            except InputsDivergedError:
                continue
        return self.result(gathering, gradients)

    def _run_batches(
        self, batches: Iterable[Any], gathering: Gathering, gradients: Gradients
    ) -> None:
        options, device = self._options, device_of(self._model)
        total = len(batches) if isinstance(batches, Sized) else None
        for index, given, held_out in with_holdout(batches, options.holdout):
            batch = on_device(given, device)
            visible = visible_positions(self._model, batch)
            wanted = gradients.wanted and not held_out
            gathering.prepare(visible, held_out=held_out, differentiated=wanted)
            with (
                torch.inference_mode(False),
                torch.set_grad_enabled(wanted),
                short_cut(not wanted),
            ):
                if options.loss is not None:
                    gradients.run_loss(batch, index)
                else:
                    output = call(self._model, batch, index, given)
                    if wanted:
                        gradients.take(output, batch, visible, index)
                    del output
            gathering.finish_batch()
            if options.progress is not None:
                options.progress(index + 1, total, self._where)

    def _run_callable(self, calibration: Any, gathering: Gathering, gradients: Gradients) -> None:
        """Let the user's function run the model; each call of the model is a batch."""
        share, index, before = self._options.holdout, 0, (False, False)
        batch: Any = None
        if self._options.loss is not None:
            raise InvalidTypeError(
                "`loss` is given, and `calibration` is a function that runs the model; expected "
                "batches to call the loss with. Pass an iterable of batches."
            )

        def start(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal before, batch
            batch = _by_name(model, args, kwargs)
            held_out = int((index + 1) * share) > int(index * share)
            wanted = gradients.wanted and not held_out and not torch.is_inference_mode_enabled()
            visible = visible_positions(model, batch)
            gathering.prepare(visible, held_out=held_out, differentiated=wanted)
            before = torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()
            torch.set_grad_enabled(wanted)
            torch.backends.mha.set_fastpath_enabled(before[1] and not wanted)

        def finish(model: Any, args: Any, kwargs: Any, output: Any) -> Any:
            nonlocal index
            if gathering.differentiated:
                gradients.take(output, batch, visible_positions(model, batch), index)
                output = tree_map_only(torch.Tensor, torch.Tensor.detach, output)
            torch.set_grad_enabled(before[0])
            torch.backends.mha.set_fastpath_enabled(before[1])
            gathering.finish_batch()
            index += 1
            if self._options.progress is not None:
                self._options.progress(index, None, self._where)
            return output

        handles = [
            self._model.register_forward_pre_hook(start, with_kwargs=True),
            self._model.register_forward_hook(finish, with_kwargs=True),
        ]
        try:
            with torch.no_grad(), short_cut(True):
                calibration(self._model)
        finally:
            for handle in handles:
                handle.remove()

    def result(self, gathering: Gathering, gradients: Gradients) -> Calibration:
        """Return what was gathered, checked."""
        seen: dict[str, Any] = {name: gathering.inputs.get(name) for name in self._layers}
        unreached = [n for n, sums in seen.items() if sums is None or not sums.fitted[0].rows]
        if unreached:
            raise InvalidValueError(
                f"`calibration` never reaches {len(unreached)} of {len(seen)} layers: "
                f"{listed(map(repr, unreached), most=5)}. Their inputs are not known: pass batches "
                "that use them, or leave these layers out with `exclude`."
            )
        first: dict[int, str] = {}
        inputs = {name: first.setdefault(id(sums), name) for name, sums in seen.items()}
        moments, held_out = {}, {}
        for key in dict.fromkeys(inputs.values()):
            sums = seen[key]
            if isinstance(self._layers[key], nn.Embedding):
                continue
            moments[key] = [_checked(total.mean(), key) for total in sums.fitted]
            if sums.held_out[0].rows:
                held_out[key] = [_checked(total.mean(), key) for total in sums.held_out]
        if gradients.problem:
            raise InvalidValueError(
                f"`calibration`: {gradients.problem}; expected finite numbers. Check the batches "
                "and the model's dtype."
            )
        weights, without = output_weights(self._layers, gathering, gradients.losses)
        rows = {key: seen[key].fitted[0].rows for key in moments}
        for name, layer in self._layers.items():
            if isinstance(layer, nn.Embedding):
                # The rows of its matrix are looked up, its columns put out: the sides are swapped.
                del inputs[name]
                if name in weights:
                    (found,) = weights[name]
                    moments[name] = [np.diag(found) if found.ndim == 1 else found]
                    weights[name] = [seen[name].fitted[0].mean()]
                    inputs[name], rows[name] = name, seen[name].fitted[0].rows
        return Calibration(
            objective="loss" if weights else "outputs",
            gradient=gradients.words if weights else "",
            inputs=inputs, input_moments=moments, held_out=held_out,
            input_rows=rows,
            held_out_rows={key: seen[key].held_out[0].rows for key in held_out},
            output_weights=weights, losses=gradients.losses,
            without_gradient=without if weights else {},
            transposed=[name for name, layer in self._layers.items() if _is_transposed(layer)],
            settings=self._options.record(),
        )  # fmt: skip


def _is_transposed(layer: nn.Module) -> bool:
    """Tell whether a layer is transformers' Conv1D, which stores its weight transposed."""
    torch_own = nn.Linear | nn.Embedding | nn.modules.conv._ConvNd
    return not isinstance(layer, torch_own)


def _checked(mean: NDArray[Any], name: str) -> NDArray[Any]:
    """Return the moment of a layer's inputs, or raise if nothing can be learnt from it."""
    if not np.isfinite(mean).all():
        raise InvalidValueError(
            f"`calibration` yields nan or inf at the inputs of {name!r}; expected finite "
            "numbers. Check the batches and the model's dtype."
        )
    if not mean.any():
        raise InvalidValueError(
            f"`calibration` yields only zeros at the inputs of {name!r}, which say nothing "
            "about its weight. Pass other batches, or leave it out with `exclude`."
        )
    mean.setflags(write=False)
    return mean


def output_weights(
    layers: Mapping[str, nn.Module], gathering: Gathering, losses: int
) -> tuple[dict[str, list[NDArray[Any]]], dict[str, str]]:
    """Return the weights of the outputs by layer, and why others have none."""
    weights, without = {}, {}
    for name in layers:
        if not losses or name not in gathering.outputs:
            without[name] = "no gradient reaches it"
            continue
        found = [total.mean(losses) for total in gathering.outputs[name]]
        if not all(np.isfinite(each).all() for each in found):
            raise InvalidValueError(
                f"`calibration` yields gradients that are nan or infinite at the outputs of "
                f"{name!r}; expected finite numbers. Check the batches, the loss and the dtype."
            )
        if all(each.any() for each in found):
            weights[name] = found
        else:
            without[name] = "its gradient is zero"
    return weights, without


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the arguments of a call as a batch: a mapping by name where there are names."""
    try:
        return inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return kwargs or args


@contextlib.contextmanager
def short_cut(allowed: bool) -> Iterator[None]:
    """Let nn.TransformerEncoder take its short cut, which has no gradient, only where allowed."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(before and allowed)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the global random number generators of torch afterwards."""
    with torch.random.fork_rng():
        yield
