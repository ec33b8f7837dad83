"""What may be done to each matrix of a checkpoint, which tells names and shapes, not layers."""

from pathlib import Path

from rmtspec.checkpoint.listing import Checkpoint
from rmtspec.checkpoint.manifest import MANIFEST
from rmtspec.checkpoint.stored import layer_of
from rmtspec.errors import FileError
from rmtspec.planning.plan import Target
from rmtspec.planning.selection import Selection


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
        tied = whole = on_request = ""
        if matrix.itemsize == 1:
            tied = f"dtype {tensor.dtype} is too coarse for factors; convert it to BF16"
        if matrix.part is not None:
            whole = "part of a tensor that holds several matrices"
        elif layer == tensor.name:
            whole = "its name does not end in .weight, so its layer is not known"
        elif taken:
            whole = f"the file has a tensor {taken[0]!r} already"
        if matrix.kind == "conv":
            on_request = "convolution, groups not in the file: cut only where `include` names it"
        elif matrix.kind == "embedding":
            on_request = "embedding: cut only where `include` names it"
        elif matrix.part is None and "weight" not in tensor.name.rpartition(".")[2]:
            on_request = "not called a weight: cut only where `include` names it"
        elif matrix.kind in ("parameter", "recurrent"):
            on_request = f"{matrix.kind}: cut only where `include` names it"
        targets[name] = Target(
            layer=layer if matrix.part is None else name,
            itemsize=matrix.itemsize,
            tied=tied,
            whole=whole,
            on_request=on_request,
            named=selection.named({name, layer}, matrix),
        )
    return targets
