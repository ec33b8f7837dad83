"""What may be done to each tensor of a weight file, which tells names and shapes, not layers."""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping

from rmtspec._files import PathLike
from rmtspec._manifest import MANIFEST, WEIGHTS
from rmtspec._plan import Target, check_rows
from rmtspec._safetensors import StoredTensor, stored_tensors
from rmtspec._selection import Selection, layer_of
from rmtspec.checkpoint import Checkpoint, StoredMatrix, matrices_in
from rmtspec.errors import FileError, InvalidValueError
from rmtspec.report import Report

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
            on_request = "convolution, groups not in the file: split only where `include` names it"
        elif matrix.kind == "embedding":
            on_request = "embedding: split only where `include` names it"
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


def adopted(plan: Report, listed: Checkpoint, targets: Mapping[str, Target], form: str) -> Report:
    """Return a plan that was given, checked against the file."""
    rows = [dict(row) for row in plan.rows]
    seen: set[str] = set()
    for row in rows:
        name = str(row.get("name"))
        if name not in listed.matrices:
            near = difflib.get_close_matches(name, list(listed.matrices), n=3)
            hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
            raise InvalidValueError(
                f"The plan names {name!r}, which is no matrix in {listed.path}; expected a plan of "
                f"this file.{hint}"
            )
        if name in seen:
            raise InvalidValueError(f"The plan has two rows named {name!r}. Leave one out.")
        seen.add(name)
        matrix, target = listed.matrices[name], targets[name]
        sides = _sides(matrix)
        if (row.get("rows"), row.get("columns")) != sides:
            raise InvalidValueError(
                f"The plan has {name!r} as {row.get('rows')} x {row.get('columns')}, and in "
                f"{listed.path} it is {sides[0]} x {sides[1]}. Make a plan of this file."
            )
        row["bytes_before"], row["kind"] = math.prod(sides) * target.itemsize, matrix.kind
        if form == "dense" and row.get("action") == "split":
            row["action"] = "truncate"
        refusal = target.tied or (target.whole if row.get("action") == "split" else "")
        if refusal and row.get("action") != "keep":
            raise InvalidValueError(
                f"The plan's action of {name!r} is {row.get('action')!r}, and it must stay as it "
                f'is: {refusal}. Set its action to "keep".'
            )
    check_rows(rows)
    for row in rows:
        row["layer"] = targets[row["name"]].layer
        cut = row["action"] != "keep"
        row["reason"] = "" if cut else row.get("reason") or "kept by the plan"
        row["weight_error"] = row["output_error"] = None  # of the ranks before they were edited
    return dataclasses.replace(plan, rows=rows)


def _sides(matrix: StoredMatrix) -> tuple[int, int]:
    return matrix.shape[0], math.prod(matrix.shape[1:])


def sides_only(matrices: Mapping[str, StoredMatrix]) -> Report:
    """Return a report that knows the sizes of the matrices and nothing else."""
    rows = [
        dict(zip(("name", "rows", "columns"), (name, *_sides(matrix)), strict=True))
        for name, matrix in matrices.items()
    ]
    return Report(rows, [], {}, {}, {})
