"""What may be done to each matrix of a checkpoint, which tells names and shapes, not layers."""

from pathlib import Path

from rmtspec.checkpoint.manifest import MANIFEST
from rmtspec.checkpoint.stored import Checkpoint, StoredMatrix
from rmtspec.errors import FileError
from rmtspec.planning.selection import Chosen
from rmtspec.planning.target import Target


def refuse_factors(listed: Checkpoint) -> None:
    """Raise where the checkpoint is a model that was split already."""
    for folder in {Path(file).parent for file in listed.files}:
        if (folder / MANIFEST).exists() and any(f.name.startswith("rmtspec") for f in listed.files):
            raise FileError(
                f"{listed.path} holds the factors of a model that was split, as {MANIFEST} beside "
                "it says; expected dense weights. Prune the original again, or undo the split "
                "first: rmtspec merge."
            )


def targets_of(listed: Checkpoint, chosen: Chosen[StoredMatrix]) -> dict[str, Target]:
    """Return what may be done to each chosen matrix, by name and dtype."""
    return {
        name: _target(listed, matrix, name in chosen.named)
        for name, matrix in chosen.matrices.items()
    }


def _target(listed: Checkpoint, matrix: StoredMatrix, named: bool) -> Target:
    tensor, layer = matrix.tensor, matrix.layer
    prefix = f"{layer}." if layer else ""
    taken = [f"{prefix}{new}" for new in ("outer.weight", "outer.bias", "inner.weight")]
    taken = [new for new in taken if new in listed.tensors]
    fixed = unsplittable = on_request = ""
    if matrix.itemsize == 1:
        fixed = f"dtype {tensor.dtype} is too coarse for factors; convert it to BF16"
    if matrix.part is not None:
        unsplittable = "part of a tensor that holds several matrices"
    elif layer == tensor.name:
        unsplittable = "its name does not end in .weight, so its layer is not known"
    elif taken:
        unsplittable = f"the file has a tensor {taken[0]!r} already"
    if matrix.kind == "conv":
        on_request = "convolution, groups not in the file: cut only where `include` names it"
    elif matrix.kind == "embedding":
        on_request = "embedding: cut only where `include` names it"
    elif matrix.part is None and "weight" not in tensor.name.rpartition(".")[2]:
        on_request = "not called a weight: cut only where `include` names it"
    elif matrix.kind in ("parameter", "recurrent"):
        on_request = f"{matrix.kind}: cut only where `include` names it"
    return Target(
        layer=layer if matrix.part is None else matrix.name,
        kind=matrix.kind,
        shape=matrix.sides,
        itemsize=matrix.itemsize,
        fixed=fixed,
        unsplittable=unsplittable,
        on_request=on_request,
        named=named,
    )
