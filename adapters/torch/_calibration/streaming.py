"""Calibration of a language model that is never in memory: its blocks run one after the other.

All sequences go through one block before the next is read: forwards for the inputs of the layers,
then, for the sequences whose loss is differentiated, backwards for the gradients at their outputs.
Each block is run again on the hidden states that entered it, which were kept. What flows between
two blocks lies in files; so do the moments of each block once it is done.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from rmtspec.adapters.torch._calibration.batches import with_holdout
from rmtspec.adapters.torch._calibration.calibrate import can_be_calibrated
from rmtspec.adapters.torch._calibration.gathering import Gathering, InputsDivergedError
from rmtspec.adapters.torch._calibration.gradients import Gradients
from rmtspec.adapters.torch._calibration.hidden_states import HiddenStates
from rmtspec.adapters.torch._calibration.hidden_units import HiddenUnits
from rmtspec.adapters.torch._calibration.options import CalibrationOptions
from rmtspec.adapters.torch._calibration.passes import (
    Pass,
    output_weights,
    random_state_kept,
    short_cut,
)
from rmtspec.adapters.torch._calibration.skeleton import (
    Call,
    NotInBlocksError,
    Skeleton,
    same_calls,
)
from rmtspec.adapters.torch._outputs import visible_positions
from rmtspec.adapters.torch._weights.layer_kinds import path_of
from rmtspec.adapters.torch._weights.matrices import weight_matrices
from rmtspec.adapting import Calibration, check_space
from rmtspec.errors import InvalidValueError

Batch = Mapping[str, Any]


class Journal(Protocol):
    """What was done: lines that survive a kill, and a way to add one."""

    @property
    def entries(self) -> Sequence[Mapping[str, Any]]:
        """The lines of earlier runs."""

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add a line."""


class Work(Protocol):
    """Where the work is kept, so that it can be resumed, and who is told about it."""

    @property
    def place(self) -> Path:
        """A folder for what is between two blocks, and for the moments, which stay there."""

    @property
    def journal(self) -> Journal:
        """What an earlier run with the same place did is not done again."""

    @property
    def say(self) -> Callable[[str], object]:
        """Called with a line that tells which way was taken, and why."""


class Streamed:
    """The calibration of a model on batches, block by block.

    Parameters
    ----------
    skeleton : Skeleton
    batches : sequence of mappings
        The arguments of the model, of the same shapes in each; without masks.
    options : CalibrationOptions
        Without a loss of the user's.
    work : Work

    Raises
    ------
    NotInBlocksError
        The model cannot be run this way; nothing has been done.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        batches: Sequence[Batch],
        options: CalibrationOptions,
        work: Work,
    ) -> None:
        self._skeleton, self._options = skeleton, options
        self._place, self._journal = work.place, work.journal
        self._names = list(skeleton.blocks)
        self._batches, self._held_out = [], []
        for _, batch, held_out in with_holdout(batches, options.holdout):
            self._batches.append(batch)
            self._held_out.append(held_out)
        self._differentiated = self._to_differentiate()
        self._visible = visible_positions(skeleton.model, {})
        self._done = 0
        runs = len(self._batches) + len(self._differentiated)
        self._all = runs * len(self._names)
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.float32
        with _undisturbed():
            self._calls = self._begin()

    def run(self) -> Calibration:
        """Return the moments of all blocks, which stay in their files until they are used."""
        with _undisturbed():
            for number in range(len(self._names)):
                self._forward(number)
            head = self._head() if self._differentiated else {}
            for number in reversed(range(len(self._names))):
                if head.get("losses"):
                    self._backward(number, head)
        return Calibration.joined([self._part(n, head) for n in self._with_layers()])

    def _to_differentiate(self) -> list[int]:
        """Return the numbers of the batches whose loss is differentiated."""
        if self._options.objective == "outputs":
            return []
        chosen, losses = [], 0
        for number, batch in enumerate(self._batches):
            if not self._held_out[number] and losses < self._options.gradient_tokens:
                chosen.append(number)
                losses += batch["input_ids"].numel()
        return chosen

    def _begin(self) -> list[Call]:
        """Write what enters the first block; return what each is passed besides."""
        first, calls = self._skeleton.calls(self._batches[0])
        self._shape, self._dtype = tuple(first.shape), first.dtype
        if self._entry("begun") is not None:
            return calls
        if self._differentiated:
            self._skeleton.check_outputs(self._batches[0], first)
        states = self._states(0)
        moved = states.nbytes * (2 * len(self._batches) + 2 * len(self._differentiated))
        kept = states.nbytes * len(self._differentiated) * len(self._names)
        check_space(self._place, moved + kept)
        for number, batch in enumerate(self._batches):
            hidden, passed = self._skeleton.calls(batch)
            if tuple(hidden.shape) != self._shape or not same_calls(calls, passed):
                raise NotInBlocksError("what its blocks are passed depends on the text")
            states.write(number, hidden)
        states.sync()
        self._journal.add({"begun": len(self._batches)})
        return calls

    def _forward(self, number: int) -> None:
        """Run all batches through a block; write what its layers saw, and what comes out."""
        name = self._names[number]
        if self._entry("forward", name) is not None:
            self._count(len(self._batches))
            return
        with self._skeleton.loaded(name) as block:
            layers = _layers_of(block, name)
            within = {n.removeprefix(f"{name}."): of for n, of in layers.items() if n != name}
            hidden = HiddenUnits(block, within)
            with hidden.watched():
                gathering = self._gathered(block, number, layers)
            if layers:
                without = Gradients(block, self._options)
                part = Pass(block, layers, self._options).result(gathering, without)
                del gathering
                if self._differentiated:
                    units = {
                        f"{name}.{reader}": [f"{name}.{maker}" for maker in makers]
                        for reader, makers in hidden.found().items()
                    }
                    part = dataclasses.replace(part, hidden_units=units)
                if number == 0:
                    check_space(self._place, part.nbytes * (len(self._names) - 1))
                part.save(self._file("inputs", number))
        self._count(len(self._batches))
        self._states(number + 1).sync()
        if self._differentiated:
            self._entering(number).sync()
        self._journal.add({"forward": name, "layers": len(layers)})

    def _gathered(
        self, block: nn.Module, number: int, layers: Mapping[str, nn.Module]
    ) -> Gathering:
        """Run all batches through a block; return what its layers saw."""
        before, after = self._states(number), self._states(number + 1)
        kept = self._entering(number)
        for shared in (True, False):
            gathering = Gathering(layers, self._options, shared=shared)
            try:
                with gathering.hooked(block), torch.no_grad(), short_cut(True):
                    for place, held_out in enumerate(self._held_out):
                        hidden = before.read(place)
                        if place in self._differentiated:
                            kept.write(self._differentiated.index(place), hidden)
                        gathering.prepare(self._visible, held_out=held_out, differentiated=False)
                        after.write(place, self._out_of(block, number, hidden))
                        gathering.finish_batch()
                break
            except InputsDivergedError:
                continue
        return gathering

    def _head(self) -> dict[str, Any]:
        """Differentiate the loss of each batch by the hidden states after the last block."""
        earlier = self._entry("head")
        if earlier is not None:
            return dict(earlier)
        gradients = Gradients(self._skeleton.model, self._options)
        last, slopes = self._states(len(self._names)), self._slopes(len(self._names))
        with gradients.prepared(), torch.enable_grad(), short_cut(False):
            for place, index in enumerate(self._differentiated):
                hidden = last.read(index).requires_grad_()
                batch = self._batches[index]
                output = self._skeleton.outputs(batch, hidden)
                if gradients.wanted:
                    gradients.take(output, batch, self._visible, index)
                del output
                slope = torch.zeros_like(hidden) if hidden.grad is None else hidden.grad
                slopes.write(place, slope)
        if gradients.problem:
            raise InvalidValueError(
                f"`calibration`: {gradients.problem}; expected finite numbers. Check the text "
                "and the model's dtype."
            )
        slopes.sync()
        found = {"head": True, "losses": gradients.losses, "words": gradients.words}
        self._journal.add(found)
        return found

    def _backward(self, number: int, head: Mapping[str, Any]) -> None:
        """Take the gradients back through a block, and write what arrives at its layers."""
        name = self._names[number]
        if self._entry("backward", name) is not None:
            self._count(len(self._differentiated))
            return
        entering, after, before = (
            self._entering(number), self._slopes(number + 1), self._slopes(number)
        )  # fmt: skip
        with self._skeleton.loaded(name) as block:
            layers = _layers_of(block, name)
            gathering = Gathering(layers, self._options, shared=True, inputs=False)
            with gathering.hooked(block), torch.enable_grad(), short_cut(False):
                for place in range(len(self._differentiated)):
                    hidden = entering.read(place).requires_grad_(number > 0)
                    gathering.prepare(self._visible, held_out=False, differentiated=True)
                    output = self._out_of(block, number, hidden)
                    if output.requires_grad:
                        torch.autograd.backward(output, after.read(place))
                    if number > 0:
                        grad = hidden.grad
                        before.write(place, torch.zeros_like(hidden) if grad is None else grad)
                    del output
            if layers:
                weights, without = output_weights(layers, gathering, head["losses"])
                Calibration(
                    objective="loss", gradient=head["words"], inputs={}, input_moments={},
                    input_rows={}, output_weights=weights, losses=head["losses"],
                    without_gradient=without,
                ).save(self._file("outputs", number))  # fmt: skip
        self._count(len(self._differentiated))
        if number > 0:
            before.sync()
        self._journal.add({"backward": name})
        entering.remove()

    def _part(self, number: int, head: Mapping[str, Any]) -> Calibration:
        """Return what is known about the layers of a block."""
        part = Calibration.load(self._file("inputs", number))
        if not head.get("losses"):
            return dataclasses.replace(part, hidden_units={})
        found = Calibration.load(self._file("outputs", number))
        names = ("objective", "gradient", "output_weights", "losses", "without_gradient")
        return dataclasses.replace(part, **{name: getattr(found, name) for name in names})

    def _out_of(self, block: nn.Module, number: int, hidden: torch.Tensor) -> torch.Tensor:
        args, kwargs = self._calls[number]
        output = block(hidden, *args, **kwargs)
        result: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
        return result

    def _with_layers(self) -> list[int]:
        return [n for n in range(len(self._names)) if self._file("inputs", n).exists()]

    def _entry(self, key: str, value: Any = None) -> Mapping[str, Any] | None:
        lines = (line for line in self._journal.entries if key in line)
        return next((line for line in lines if value is None or line[key] == value), None)

    def _count(self, runs: int) -> None:
        self._done += runs
        if self._options.progress is not None:
            self._options.progress(self._done, self._all, "calibrate")

    def _file(self, what: str, number: int) -> Path:
        return self._place / f"{what}-{number}.safetensors"

    def _states(self, number: int) -> HiddenStates:
        """Return what enters the block of that number; only two of these files exist."""
        return self._between(f"states-{number % 2}")

    def _entering(self, number: int) -> HiddenStates:
        return self._between(f"entering-{number}")

    def _slopes(self, number: int) -> HiddenStates:
        return self._between(f"slopes-{number % 2}")

    def _between(self, name: str) -> HiddenStates:
        return HiddenStates(self._place / name, self._shape, self._dtype)


def _layers_of(block: nn.Module, name: str) -> dict[str, nn.Module]:
    """Return the layers of a block that can be calibrated, by their names in the model."""
    found: dict[str, nn.Module] = {}
    for _, matrix in weight_matrices(block):
        if can_be_calibrated(matrix) and not matrix.on_request:
            path = path_of(matrix)
            found[f"{name}.{path}" if path else name] = block.get_submodule(path)
    return found


@contextmanager
def _undisturbed() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad(), random_state_kept():
        yield
