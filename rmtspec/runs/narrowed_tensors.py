"""The tensors of a hidden layer from which units leave, each computed when it is written."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from numpy.typing import NDArray

from rmtspec.checkpoint.listing import Checkpoint
from rmtspec.checkpoint.safetensors_writer import Outgoing
from rmtspec.checkpoint.stored import StoredTensor
from rmtspec.errors import InvalidValueError
from rmtspec.planning.calibration import Weights
from rmtspec.planning.cut import Narrowed, narrowed
from rmtspec.planning.hidden_units import HiddenLayer
from rmtspec.runs.copied_tensors import little_endian, tensor_dtype
from rmtspec.terms import Form


def unfit(name: str, reason: str) -> InvalidValueError:
    """Return the error for a matrix whose cut was begun, and cannot be stored."""
    return InvalidValueError(
        f"{name!r} cannot be cut: {reason}. Or leave it out with `exclude`, or by the action "
        "'keep' in a plan."
    )


class NarrowedTensors:
    """A hidden layer of a checkpoint with fewer units.

    Parameters
    ----------
    listed : Checkpoint
    rows : mapping of str to dict
        The rows of the plan, by name of the matrix.
    weights : mapping of str to Weights
        What calibration says about the matrices, by name; looked up when it is needed.
    hidden : HiddenLayer or None
    """

    def __init__(
        self,
        listed: Checkpoint,
        rows: Mapping[str, dict[str, Any]],
        weights: Mapping[str, Weights],
        hidden: HiddenLayer | None,
    ) -> None:
        self._listed, self._rows = listed, rows
        self._weights, self._hidden = weights, hidden
        (self._reader,) = {row["reader"] for row in rows.values()}
        self._made: dict[str, Narrowed] = {}
        self._errors: dict[str, Any] = {}

    def outgoing(self) -> dict[str, list[Outgoing]]:
        """Return what takes the place of each tensor, by its name."""
        found: dict[str, list[Outgoing]] = {}
        for name, row in self._rows.items():
            matrix = self._listed.matrices[name]
            tensor, units = matrix.tensor, int(row["rank"])
            prefix = tensor.name.removesuffix("weight")
            rows, columns = matrix.sides
            fewer = row["form"] == Form.FEWER_OUTPUTS
            weight = Outgoing(
                name=tensor.name, dtype=tensor_dtype(tensor),
                shape=(units, columns) if fewer else (rows, units),
                load=partial(self._weight, name), costly=True, errors=self._errors,
            )  # fmt: skip
            places = Outgoing(
                name=f"{prefix}units", dtype="I64", shape=(units,),
                load=partial(self._units, name), costly=True, errors=self._errors,
            )  # fmt: skip
            found[tensor.name] = [weight, places]
            bias = self._listed.tensors.get(f"{prefix}bias")
            if fewer and bias is not None:
                part = partial(self._bias, name, bias)
                dtype = tensor_dtype(bias)
                found[bias.name] = [
                    Outgoing(bias.name, dtype, (units,), part, costly=True, errors=self._errors)
                ]
        return found

    def _weight(self, name: str) -> NDArray[Any]:
        made = self._of(name).matrix
        del self._made[name]  # it is written once
        return made

    def _units(self, name: str) -> NDArray[Any]:
        known = self._weights.get(self._reader)
        if self._hidden is None or known is None:
            return self._of(name).units  # raises
        order = self._hidden.order(little_endian(self._listed.matrices[self._reader]), known)
        return order.kept(int(self._rows[name]["rank"]))

    def _bias(self, name: str, bias: StoredTensor) -> NDArray[Any]:
        part: NDArray[Any] = little_endian(bias)[self._units(name)]
        return part

    def _of(self, name: str) -> Narrowed:
        """Return what is left of a matrix; those of the layer are made together."""
        if name not in self._made:
            rows = {key: dict(row) for key, row in self._rows.items()}
            matrices = {
                key: partial(little_endian, self._listed.matrices[key]) for key in self._rows
            }
            known = self._weights.get(self._reader)
            self._made = narrowed(rows, matrices, known, self._hidden)
            if not self._made:  # the header, which lists fewer units, is on disk already
                raise unfit(name, rows[name]["reason"])
            keys = ("weight_error", "output_error", "predicted_loss", "note")
            for key, row in rows.items():
                measured = {k: row[k] for k in keys if row.get(k) is not None}
                self._errors[key] = measured
        return self._made[name]
