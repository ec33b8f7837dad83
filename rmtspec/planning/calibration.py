"""What data say about the layers of a model: which inputs come, which outputs matter."""

import hashlib
import json
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec._files.writing import PathLike, file_target, finished_file
from rmtspec._text import Readable, aligned, counted
from rmtspec.checkpoint.safetensors_reader import stored_metadata, stored_tensors
from rmtspec.checkpoint.safetensors_writer import Outgoing, format_dtype, write_safetensors
from rmtspec.checkpoint.stored import MappedTensor
from rmtspec.errors import FileError, InvalidOptionError, InvalidValueError
from rmtspec.planning.stored_moments import OpenFile, StoredMoments
from rmtspec.terms import Why

OBJECTIVES = ("loss", "outputs")
#: Key of the metadata in the file, and the number that changes with its meaning.
_RECORD, _SCHEMA = "rmtspec.calibration", 1
#: Below this many rows for each column, a second moment says little beyond the rows it was made of.
_ROWS_PER_COLUMN = 4


class Weights(NamedTuple):
    """What calibration says about one matrix; `rmtspec.split` takes the first two.

    Attributes
    ----------
    input_moment : ndarray of shape (columns, columns)
        E[x x^T] of the inputs x.
    output_weight : ndarray of shape (rows,) or (rows, rows), or None
        The diagonal of E[g g^T] for gradients g of the loss at the outputs, or the whole; None if
        the outputs are to be kept as they are.
    held_out : ndarray of shape (columns, columns), or None
        E[x x^T] of inputs that `input_moment` has not seen, to measure errors by.
    note : str
        What is to be said of it in a report, or "".
    rows : int
        Number of inputs behind `input_moment`.
    """

    input_moment: Float64Array
    output_weight: Float64Array | None
    held_out: NDArray[Any] | None
    note: str
    rows: int


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class Calibration(Readable):
    """Second moments of the inputs of a model's layers, and of the loss's gradients at its outputs.

    Made by an adapter (`rmtspec.adapters.torch.calibrate`), saved, loaded, and used for any number
    of plans and prunings of the same model.

    Attributes
    ----------
    objective : {"loss", "outputs"}
        Whether the gradients of a loss are known.
    gradient : str
        Where these gradients come from, in words; "" without.
    inputs : dict of str to str
        The name of its input by name of the layer: the first layer that reads it.
    input_moments : dict of str to list of ndarray of shape (columns, columns)
        E[x x^T] by name of the input, one per group of a convolution, in float64.
    input_rows : dict of str to int
        Number of rows x behind each.
    held_out, held_out_rows
        The same of batches that were held out, in float32.
    output_weights : dict of str to list of ndarray of shape (rows,) or (rows, rows)
        Sum of g^2, or of g g^T, over all rows, divided by the number of losses, by name of the
        layer, one per group.
    losses : int
        Number of tokens, or samples, whose loss was differentiated.
    without_gradient : dict of str to str
        Why the gradients at a layer are not known, by its name.
    transposed : list of str
        Layers that a file holds transposed (the Conv1D of transformers).
    hidden_units : dict of str to list of str
        Where hidden units can leave: the layers that make them, by name of the layer that reads
        them.
    settings : dict
        The options it was made with.
    """

    objective: str
    gradient: str
    inputs: Mapping[str, str]
    input_moments: Mapping[str, list[Float64Array]]
    input_rows: Mapping[str, int]
    held_out: Mapping[str, list[NDArray[Any]]] = field(default_factory=dict)
    held_out_rows: Mapping[str, int] = field(default_factory=dict)
    output_weights: Mapping[str, list[Float64Array]] = field(default_factory=dict)
    losses: int = 0
    without_gradient: Mapping[str, str] = field(default_factory=dict)
    transposed: Sequence[str] = ()
    hidden_units: Mapping[str, Sequence[str]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __contains__(self, layer: object) -> bool:
        return layer in self.inputs

    def check_objective(self, objective: str | None) -> str:
        """Return the objective to prune by; raise if this calibration cannot serve it."""
        if objective == "loss" and self.objective != "loss":
            raise InvalidOptionError(
                "`objective` is 'loss', and `calibration` holds no gradients",
                "'outputs', or a calibration made with objective='loss'",
            )
        return objective or self.objective

    def weights(
        self, layer: str, shape: tuple[int, ...], group: int = 0, objective: str | None = None
    ) -> Weights:
        """Return what is known about a matrix of that shape: that of a group of a layer.

        With the objective "outputs" its `output_weight` is None.
        """
        key = self.inputs[layer]
        moment = self.input_moments[key][group]
        weight = None
        if (objective or self.objective) == "loss" and layer in self.output_weights:
            weight = self.output_weights[layer][group]
        sides = (shape[0] if weight is None else len(weight), len(moment))
        if sides != tuple(shape):
            raise InvalidValueError(
                f"`calibration` has {layer!r} with {sides[1]} inputs and {sides[0]} outputs; here "
                f"it is {shape[0]} x {shape[1]}. Calibrate this model, before it is pruned."
            )
        held_out = self.held_out.get(key)
        rows, columns = self.input_rows[key], shape[1]
        note = ""
        if rows < _ROWS_PER_COLUMN * columns:
            note = Why.FEW_ROWS.words(rows=rows, columns=columns)
        other = None if held_out is None else held_out[group]
        return Weights(moment, weight, other, note=note, rows=rows)

    @classmethod
    def joined(cls, parts: Sequence["Calibration"]) -> "Calibration":
        """Return calibrations of different layers of one model, from the same batches, as one."""
        together: dict[str, Any] = {}
        for name in _PARTS:  # looked up where they are, so that none is read here
            together[name] = ChainMap(*(getattr(part, name) for part in reversed(parts)))
        for name in _NAMED:
            together[name] = {k: v for part in parts for k, v in getattr(part, name).items()}
        together["transposed"] = [name for part in parts for name in part.transposed]
        found = max(parts, key=lambda part: part.losses)
        same = {n: getattr(found, n) for n in ("objective", "gradient", "losses", "settings")}
        return cls(**together, **same)

    def digest(self) -> str:
        """Return what identifies the moments, in hexadecimal."""
        found = hashlib.sha256()
        found.update(
            json.dumps(sorted((k, list(v)) for k, v in self.hidden_units.items())).encode()
        )
        for part in _PARTS:
            moments = getattr(self, part)
            for name in sorted(moments):  # one in memory at a time
                for array in moments[name]:
                    found.update(f"{part} {name} {array.shape}".encode())
                    found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of all moments and weights."""
        every = (self.input_moments, self.held_out, self.output_weights)
        return sum(array.nbytes for of in every for arrays in of.values() for array in arrays)

    def save(self, path: PathLike) -> None:
        """Write it to a .safetensors file, from which `load` reads it.

        Raises
        ------
        FileError
            The file cannot be written.
        """
        tensors = [
            _outgoing(f"{part}/{index}/{name}", getattr(self, part), name)
            for part in _PARTS
            for name, arrays in getattr(self, part).items()
            for index in range(len(arrays))
        ]
        record = {"schema": _SCHEMA} | {name: getattr(self, name) for name in _FIELDS}
        with finished_file(file_target(path)) as unfinished:
            write_safetensors(unfinished, tensors, {_RECORD: json.dumps(record)})

    @classmethod
    def load(cls, path: PathLike) -> "Calibration":
        """Read it from a file that `save` wrote; the moments stay in the file until they are used.

        Raises
        ------
        FileError
            The file cannot be read, is damaged, or holds something else.
        """
        file = Path(path)
        try:
            record = json.loads(stored_metadata(file).get(_RECORD, "null"))
            tensors = stored_tensors(file)
        except OSError as error:
            raise FileError(f"{file} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"{file} is damaged: {error}. Calibrate again.") from error
        if not isinstance(record, dict) or record.get("schema") != _SCHEMA:
            raise FileError(
                f"{file.name} holds no calibration of this version; expected a file that "
                "Calibration.save wrote."
            )
        parts: dict[str, dict[str, dict[int, MappedTensor]]] = {part: {} for part in _PARTS}
        for tensor in tensors:
            part, _, rest = tensor.name.partition("/")
            index, _, name = rest.partition("/")
            if part not in parts or not index.isdigit():
                raise FileError(
                    f"{file.name} has an unknown tensor {tensor.name!r}. Calibrate again."
                )
            parts[part].setdefault(name, {})[int(index)] = tensor
        shared = OpenFile(file)
        arrays = {
            part: StoredMoments(shared, {n: [of[i] for i in sorted(of)] for n, of in named.items()})
            for part, named in parts.items()
        }
        missing = [name for name in _FIELDS if name not in record]
        inputs = record.get("inputs", {})
        unknown = [key for key in inputs.values() if key not in arrays["input_moments"]]
        if missing or unknown:
            lost = repr(missing[0]) if missing else f"the moment of {unknown[0]!r}"
            raise FileError(f"{file.name} is damaged: {lost} is missing. Calibrate again.")
        return cls(**{name: record[name] for name in _FIELDS}, **arrays)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        rows = list(self.input_rows.values())
        pairs: list[tuple[str, object]] = [
            ("objective", self.objective),
            ("layers", f"{len(self.inputs)}, with {len(self.input_moments)} different inputs"),
        ]
        if rows:
            span = f"{min(rows):,}" if min(rows) == max(rows) else f"{min(rows):,} to {max(rows):,}"
            pairs.append(("rows", f"{span} of each input"))
        if self.held_out_rows:
            held = list(self.held_out_rows.values())
            span = f"{min(held):,}" if min(held) == max(held) else f"{min(held):,} to {max(held):,}"
            pairs.append(("held out", f"{span} rows of each input"))
        if self.gradient:
            losses = counted(self.losses, "loss", "losses")
            layers = counted(len(self.output_weights), "layer")
            pairs.append(("gradients", f"{self.gradient}, {losses}, {layers}"))
        if self.hidden_units:
            words = f"can leave; hidden layers: {len(self.hidden_units)}"
            pairs.append(("hidden units", words))
        if self.without_gradient:
            pairs.append(("without gradient", counted(len(self.without_gradient), "layer")))
        pairs.append(("size", f"{self.nbytes / 2**20:,.1f} MiB"))
        return aligned("Calibration", pairs)


def _outgoing(key: str, moments: Mapping[str, list[NDArray[Any]]], name: str) -> Outgoing:
    """Return a matrix as a tensor of a file; it is looked up again when it is written."""
    index = int(key.split("/")[1])
    array = np.asarray(moments[name][index])
    dtype, shape = format_dtype(array.dtype), array.shape
    return Outgoing(key, dtype, shape, lambda: np.asarray(moments[name][index]))


#: Attributes by name of a layer or an input that are no moments.
_NAMED = ("inputs", "input_rows", "held_out_rows", "without_gradient", "hidden_units")
_PARTS = ("input_moments", "held_out", "output_weights")
_FIELDS = (
    "objective", "gradient", "inputs", "input_rows", "held_out_rows", "losses", "without_gradient",
    "transposed", "hidden_units", "settings",
)  # fmt: skip
