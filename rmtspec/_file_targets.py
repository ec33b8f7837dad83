"""What may be done to each tensor of a weight file, which tells names and shapes, not layers."""

import dataclasses
import math
import re
from collections.abc import Mapping

from rmtspec._files import PathLike
from rmtspec._manifest import MANIFEST, WEIGHTS
from rmtspec._plan import Target
from rmtspec._safetensors import StoredTensor, stored_tensors
from rmtspec._selection import Selection, layer_of
from rmtspec.checkpoint import Checkpoint, StoredMatrix, matrices_in
from rmtspec.errors import FileError

#: The last part of the name of a layer that looks rows up.
_EMBEDDING = re.compile(
    r"embed(?!_out)|(^|_)(emb|wte|wpe)(_|$)|^shared$|^relative_attention_bias$", re.IGNORECASE
)


def tensors_in(path: PathLike) -> tuple[Checkpoint, dict[str, StoredTensor]]:
    """Return the matrices and all tensors of the file, embeddings recognised by their names."""
    listed = matrices_in(path)
    if listed.path.suffix.lower() != ".safetensors":
        raise FileError(
            f"{listed.path} is a {listed.path.suffix} file; expected a .safetensors file. Convert "
            'it: safetensors.numpy.save_file(dict(numpy.load("w.npz")), "model.safetensors").'
        )
    if listed.path.name == WEIGHTS and (listed.path.parent / MANIFEST).exists():
        raise FileError(
            f"{listed.path} holds the factors of a model that was split, as {MANIFEST} beside it "
            "says; expected dense weights. Prune the original file again."
        )
    matrices = {
        name: dataclasses.replace(matrix, kind="embedding")
        if len(matrix.shape) == 2 and _EMBEDDING.search(layer_of(name).rpartition(".")[2])
        else matrix
        for name, matrix in listed.matrices.items()
    }
    tensors = {tensor.name: tensor for tensor in stored_tensors(listed.path)}
    return dataclasses.replace(listed, matrices=matrices), tensors


def targets_of(
    listed: Checkpoint, tensors: Mapping[str, StoredTensor], selection: Selection
) -> dict[str, Target]:
    """Return what may be done to each matrix of the file, by name and dtype."""
    targets = {}
    for name, matrix in listed.matrices.items():
        dtype, layer = tensors[name].dtype, layer_of(name)
        prefix = f"{layer}." if layer else ""
        taken = [f"{prefix}{new}" for new in ("outer.weight", "outer.bias", "inner.weight")]
        taken = [new for new in taken if new in tensors]
        tied = whole = on_request = ""
        if dtype.startswith("F8"):
            tied = f"dtype {dtype} is too coarse for factors; convert it to BF16"
        if layer == name:
            whole = "its name does not end in .weight, so its layer is not known"
        elif taken:
            whole = f"the file has a tensor {taken[0]!r} already"
        if matrix.kind == "conv":
            on_request = "convolution, groups not in the file: cut only where `include` names it"
        elif matrix.kind == "embedding":
            on_request = "embedding: cut only where `include` names it"
        elif "weight" not in name.rpartition(".")[2]:
            on_request = "not called a weight: cut only where `include` names it"
        targets[name] = Target(
            layer=layer,
            itemsize=tensors[name].numpy_dtype.itemsize,
            tied=tied,
            whole=whole,
            on_request=on_request,
            named=selection.named({name, layer}, matrix),
        )
    return targets


def sides_of(matrix: StoredMatrix) -> tuple[int, int]:
    return matrix.shape[0], math.prod(matrix.shape[1:])
