"""The tensors of a pruned checkpoint, each computed when it is written."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.listing import Checkpoint
from rmtspec.checkpoint.safetensors_writer import Outgoing
from rmtspec.checkpoint.stored import Part, StoredMatrix, StoredTensor
from rmtspec.matrix.pivots import pivoted
from rmtspec.planning.calibration import Weights
from rmtspec.planning.cut import cut
from rmtspec.planning.hidden_units import HiddenLayer
from rmtspec.runs.copied_tensors import copied, little_endian, tensor_dtype
from rmtspec.runs.narrowed_tensors import NarrowedTensors, unfit
from rmtspec.terms import Form

#: Largest size of a file that collects tensors from files of one tensor each.
SHARD_BYTES = 5_000_000_000


def outgoing_files(
    listed: Checkpoint,
    rows: Iterable[dict[str, Any]],
    weights: Mapping[str, Weights] | None = None,
    hidden: Mapping[str, HiddenLayer] | None = None,
) -> list[list[Outgoing]]:
    """Return the tensors of each new file: those of the old file, cut as a plan's rows say.

    `weights` are what calibration says about the matrices, by name, and `hidden` the layers from
    which units can leave, by the matrix that reads them. Files of one tensor (.npy) are merged.
    """
    cuts: dict[str, list[_Cut]] = {}
    factored: set[str] = set()
    layers: dict[str, dict[str, dict[str, Any]]] = {}  # of hidden units, by the reader
    renamed: dict[str, str] = {}
    for row in rows:
        if row["action"] == "keep":
            continue
        if row["action"] == "narrow":
            layers.setdefault(row["reader"], {})[row["name"]] = row
            continue
        matrix = listed.matrices[row["name"]]
        done = _Cut(matrix, row, weights or {})
        cuts.setdefault(matrix.tensor.name, []).append(done)
        if row["action"] == "split":
            factored.add(matrix.tensor.name)
            prefix = matrix.tensor.name.removesuffix("weight")
            renamed[f"{prefix}bias"] = f"{prefix}outer.bias"
    smaller: dict[str, list[Outgoing]] = {}
    for reader, members in layers.items():
        layer = (hidden or {}).get(reader)
        smaller |= NarrowedTensors(listed, members, weights or {}, layer).outgoing()
    files: dict[str, list[Outgoing]] = {}
    for name, tensor in listed.tensors.items():
        outgoing = files.setdefault(tensor.path, [])
        if name in smaller:
            outgoing += smaller[name]
        elif name not in cuts:
            outgoing.append(copied(tensor, renamed.get(name, name)))
        elif name in factored:
            outgoing += _factors(cuts[name][0])
        else:
            outgoing.append(_truncated(tensor, cuts[name]))
    if any(path.endswith((".npy", ".gguf")) for path in files):
        return in_shards([tensor for each in files.values() for tensor in each])
    return list(files.values())


#: What changes in the row of a matrix that stays after all.
_LEFT = ("action", "reason", "weight_error", "output_error", "predicted_loss")


class _Cut(NamedTuple):
    """A matrix with the row of the plan that cuts it, and what calibration says by name."""

    matrix: StoredMatrix
    row: dict[str, Any]
    weights: Mapping[str, Weights]

    def made(self, array: NDArray[Any], errors: dict[str, Any]) -> Any:
        """Return the factors or the truncation; note the errors by name of the matrix.

        None if it stays as it is after all; what its row says then is noted.
        """
        row = dict(self.row)
        known = self.weights.get(self.matrix.name)  # kept no longer than it takes
        by_loss = known is not None and known.output_weight is not None
        made = cut(row, array, known, calibrated=bool(self.weights), by_loss=by_loss)
        if made is None:
            errors[self.matrix.name] = {key: row[key] for key in _LEFT}
            return None
        keys = ("weight_error", "output_error", "predicted_loss", "note")
        errors[self.matrix.name] = {key: row[key] for key in keys if row.get(key) is not None}
        return made


def _factors(one: _Cut) -> list[Outgoing]:
    """Return the factors, computed when the first is loaded, each kept until it is loaded."""
    matrix, rank = one.matrix, int(one.row["rank"])
    waiting: dict[str, NDArray[Any]] = {}
    errors: dict[str, Any] = {}

    def take(side: str) -> NDArray[Any]:
        if side not in waiting:
            parts = one.made(little_endian(matrix), errors)
            if parts is None:  # the header, which lists its factors, is on disk already
                raise unfit(matrix.name, errors[matrix.name]["reason"])
            if one.row.get("form") == Form.PIVOTED:
                kept, mixing, place = pivoted(parts.outer, parts.inner)
                dtype = parts.outer.dtype
                waiting["inner.weight"], waiting["outer.place"] = kept.astype(dtype), place
                waiting["outer.mixing.weight"] = mixing.astype(dtype)
            else:
                waiting.update({"outer.weight": parts.outer, "inner.weight": parts.inner})
        return waiting.pop(side)

    prefix, dtype = matrix.tensor.name.removesuffix("weight"), tensor_dtype(matrix.tensor)
    # Of a kernel: the inner convolution has its extent, the outer one is pointwise.
    outer = (matrix.shape[0], rank, *(1 for _ in matrix.shape[2:]))
    sides: dict[str, tuple[int, ...]] = {
        "outer.weight": outer, "inner.weight": (rank, *matrix.shape[1:])
    }  # fmt: skip
    if one.row.get("form") == Form.PIVOTED:
        del sides["outer.weight"]
        sides |= {"outer.mixing.weight": (matrix.shape[0] - rank, rank)}
        sides |= {"outer.place": (matrix.shape[0],)}
    return [
        Outgoing(
            name=f"{prefix}{side}", dtype="I64" if side == "outer.place" else dtype, shape=shape,
            load=partial(take, side), costly=True, errors=errors,
        )
        for side, shape in sides.items()
    ]  # fmt: skip


def _truncated(tensor: StoredTensor, cuts: list[_Cut]) -> Outgoing:
    """Return a tensor with its matrices at lower ranks; those of a stack one at a time."""
    errors: dict[str, Any] = {}

    def lowered(one: _Cut, values: NDArray[Any]) -> Any:
        made = one.made(values.reshape(one.matrix.sides), errors)
        return values if made is None else made.matrix

    def pieces() -> Iterator[NDArray[Any]]:
        whole = little_endian(tensor)
        spans: dict[tuple[int, int], list[tuple[Part, _Cut]]] = {}
        for one in cuts:
            part = one.matrix.part
            if part is None:
                yield lowered(one, whole).reshape(whole.shape)
                return
            whole = whole.reshape(part.view)
            spans.setdefault(part.box[0] or (0, len(whole)), []).append((part, one))
        end = 0
        for start, stop in sorted(spans):
            yield whole[end:start]
            piece = np.array(whole[start:stop], copy=True)
            for part, one in spans[start, stop]:
                within = dataclasses.replace(part, view=piece.shape, box=(None, *part.box[1:]))
                place = within.box_of(piece)
                place[...] = lowered(one, place).reshape(place.shape)
            yield piece
            end = stop
        yield whole[end:]

    return Outgoing(
        name=tensor.name, dtype=tensor_dtype(tensor), shape=tensor.shape, load=pieces, costly=True,
        errors=errors,
    )  # fmt: skip


def in_shards(tensors: list[Outgoing]) -> list[list[Outgoing]]:
    """Return files of at most `SHARD_BYTES`, or of a single tensor that is larger."""
    files: list[list[Outgoing]] = []
    size = 0
    for tensor in tensors:
        if not files or size + tensor.nbytes > SHARD_BYTES:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.nbytes
    return files
