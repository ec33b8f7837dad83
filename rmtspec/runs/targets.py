"""What may be done to each matrix of a checkpoint, which tells names and shapes, not layers."""

from pathlib import Path

from rmtspec.checkpoint.manifest import MANIFEST
from rmtspec.checkpoint.stored import Checkpoint, layer_of
from rmtspec.errors import FileError
from rmtspec.planning.plan import Target
from rmtspec.planning.selection import Selection
from rmtspec.terms import Kind, Why


def refuse_factors(listed: Checkpoint) -> None:
    """Raise where the checkpoint is a model that was split already."""
    for folder in {Path(file).parent for file in listed.files}:
        if (folder / MANIFEST).exists() and any(f.name.startswith("rmtspec") for f in listed.files):
            raise FileError(
                f"{listed.path} holds the factors of a model that was split, as {MANIFEST} beside "
                "it says; expected dense weights. Prune the original again, or undo the split "
                "first: rmtspec merge."
            )


def targets_of(listed: Checkpoint, selection: Selection) -> dict[str, Target]:
    """Return what may be done to each matrix, by name and dtype."""
    targets = {}
    for name, matrix in listed.matrices.items():
        tensor = matrix.tensor
        layer = layer_of(tensor.name)
        prefix = f"{layer}." if layer else ""
        taken = [f"{prefix}{new}" for new in ("outer.weight", "outer.bias", "inner.weight")]
        taken = [new for new in taken if new in listed.tensors]
        tied = whole = what = ""
        if matrix.itemsize == 1:
            tied = Why.TOO_COARSE.words(dtype=tensor.dtype)
        if matrix.part is not None:
            whole = Why.PART_OF_TENSOR.words()
        elif layer == tensor.name:
            whole = Why.LAYER_UNKNOWN.words()
        elif taken:
            whole = Why.NAME_TAKEN.words(name=taken[0])
        if matrix.kind == Kind.CONV:
            what = "convolution, groups not in the file"
        elif matrix.kind == Kind.EMBEDDING:
            what = matrix.kind
        elif matrix.part is None and "weight" not in tensor.name.rpartition(".")[2]:
            what = "not called a weight"
        elif matrix.kind in (Kind.PARAMETER, Kind.RECURRENT):
            what = matrix.kind
        targets[name] = Target(
            layer=layer if matrix.part is None else name,
            itemsize=matrix.itemsize,
            tied=tied,
            whole=whole,
            on_request=what and Why.NOT_NAMED.words(what=what, options="`include`"),
            named=selection.named({name, layer}, matrix),
        )
    return targets
