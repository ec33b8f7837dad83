"""What may be done to each matrix of a checkpoint, judged by names and shapes alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rmtspec._text import counted
from rmtspec.checkpoint.listing import Checkpoint
from rmtspec.checkpoint.manifest import MANIFEST
from rmtspec.checkpoint.quantised.tensor import QuantisedTensor
from rmtspec.checkpoint.stored import StoredMatrix
from rmtspec.errors import (
    FileError,
    InvalidOptionError,
    InvalidOptionTypeError,
    InvalidValueError,
)
from rmtspec.planning.calibration import Calibration, Weights
from rmtspec.planning.hidden_units import HiddenLayer, hidden_layers
from rmtspec.planning.selection import Chosen
from rmtspec.planning.target import HEAD, Target, is_head
from rmtspec.terms import Kind, Why

_ON_REQUEST = (Kind.PARAMETER, Kind.RECURRENT)


def refuse_factors(listed: Checkpoint) -> None:
    """Raise if the checkpoint is quantised, an adapter, split, or cannot be written again."""
    if any(file.suffix.lower() in (".h5", ".keras", ".msgpack") for file in listed.files):
        raise FileError(
            f"{listed.path} is read for analysis only, since Keras and Flax load no factors; "
            "expected weights of another format. Prune the model in PyTorch or as an .onnx file."
        )
    quantised = [n for n, t in listed.tensors.items() if isinstance(t, QuantisedTensor)]
    if quantised:
        raise FileError(
            f"{listed.path} has {counted(len(quantised), 'quantised weight')}, the first of them "
            f"{quantised[0]!r}; expected plain numbers, since quantised weights are never pruned. "
            "Write it as plain numbers first, and prune that: rmtspec merge IN OUT."
        )
    if listed.pairs:
        raise FileError(
            f"{listed.path} is an adapter of LoRA, whose matrices are products of factors already; "
            "expected a model. Lower its ranks with rmtspec resize-lora, or merge it into its "
            "model and prune that."
        )
    for folder in {Path(file).parent for file in listed.files}:
        if (folder / MANIFEST).exists() and any(f.name.startswith("rmtspec") for f in listed.files):
            raise FileError(
                f"{listed.path} holds the factors of a split model, according to its {MANIFEST}; "
                "expected dense weights. Prune the original model, or undo the split first: "
                "rmtspec merge."
            )


def targets_of(listed: Checkpoint, chosen: Chosen[StoredMatrix]) -> dict[str, Target]:
    """Return what may be done to each chosen matrix, by name and dtype."""
    named, matrices = chosen.named, chosen.matrices
    return {name: _target(listed, matrix, name in named) for name, matrix in matrices.items()}


def weights_in(
    listed: Checkpoint, calibration: Calibration | None, objective: str | None
) -> Mapping[str, Weights]:
    """Return what calibration says about the matrices of a checkpoint, by name.

    It is looked up when it is asked for: a calibration in a file stays there.

    Raises
    ------
    InvalidValueError
        It is of another model, or of layers that the file holds transposed.
    """
    if calibration is None:
        if objective is not None:
            raise InvalidOptionError(
                "`objective` is given without `calibration`", "both or neither"
            )
        return {}
    if not isinstance(calibration, Calibration):
        kind = type(calibration).__name__
        raise InvalidOptionTypeError(
            f"`calibration` is a {kind}", "a Calibration",
            "Only an adapter can run a model on data: make one there, and save it.",
        )  # fmt: skip
    chosen = calibration.check_objective(objective)
    known = {
        name: matrix for name, matrix in listed.matrices.items() if matrix.layer in calibration
    }
    if not known:
        layers = ", ".join(list(calibration.inputs)[:3])
        raise InvalidValueError(
            f"`calibration` knows {layers} and others, none of which is a layer of {listed.path}; "
            "expected the calibration of this model."
        )
    turned = next((m.layer for m in known.values() if m.layer in calibration.transposed), None)
    if turned is not None:
        raise InvalidValueError(
            f"{listed.path} holds {turned!r} transposed (transformers' Conv1D), which calibration "
            "in a file cannot take yet. Prune the model in memory."
        )
    weights = _Known(calibration, known, chosen)
    for name in weights:
        weights[name]  # raises if it is of another model
    return weights


class _Known(Mapping[str, Weights]):
    """What calibration says about the matrices that it knows, by name."""

    def __init__(
        self, calibration: Calibration, matrices: Mapping[str, StoredMatrix], objective: str
    ) -> None:
        self._calibration, self._matrices, self._objective = calibration, matrices, objective

    def __getitem__(self, name: str) -> Weights:
        matrix = self._matrices[name]
        return self._calibration.weights(matrix.layer, matrix.sides, objective=self._objective)

    def __iter__(self) -> Iterator[str]:
        return iter(self._matrices)

    def __len__(self) -> int:
        return len(self._matrices)


def hidden_in(
    listed: Checkpoint, calibration: Calibration | None, weights: Mapping[str, Weights]
) -> dict[str, HiddenLayer]:
    """Return the hidden layers of a checkpoint by the name of the matrix that reads the units.

    `weights` are what calibration says about the matrices, by name.
    """
    if calibration is None:
        return {}
    names = {listed.matrices[name].layer: name for name in weights}
    return hidden_layers(calibration.hidden_units, names, weights)


def _target(listed: Checkpoint, matrix: StoredMatrix, named: bool) -> Target:
    tensor, layer = matrix.tensor, matrix.layer
    prefix = f"{layer}." if layer else ""
    factors = [f"{prefix}{new}" for new in ("outer.weight", "outer.bias", "inner.weight")]
    taken = [factor for factor in factors if factor in listed.tensors]
    fixed = unsplittable = what = ""
    if matrix.itemsize == 1:
        fixed = Why.TOO_COARSE.words(dtype=tensor.dtype)
    if matrix.part is not None:
        unsplittable = Why.PART_OF_TENSOR.words()
    elif layer == tensor.name:
        unsplittable = Why.LAYER_UNKNOWN.words()
    elif taken:
        unsplittable = Why.NAME_TAKEN.words(name=taken[0])
    if matrix.kind == Kind.CONV:
        what = "convolution, groups not in the file"
    elif matrix.part is None and "weight" not in tensor.name.rpartition(".")[2]:
        what = "not called a weight"
    if matrix.kind == Kind.EMBEDDING or (not what and matrix.kind in _ON_REQUEST):
        what = matrix.kind
    if not what and matrix.kind == Kind.MATRIX and is_head(layer):
        what = HEAD
    return Target(
        layer=layer if matrix.part is None else matrix.name, kind=matrix.kind, shape=matrix.sides,
        itemsize=matrix.itemsize, fixed=fixed, unsplittable=unsplittable, named=named,
        on_request=what and Why.NOT_NAMED.words(what=what, options="`include`"),
    )  # fmt: skip
