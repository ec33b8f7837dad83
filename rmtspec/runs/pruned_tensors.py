"""The tensors of a pruned checkpoint, each made when it is written."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.listing import Checkpoint
from rmtspec.checkpoint.safetensors_reader import DTYPES
from rmtspec.checkpoint.safetensors_writer import Outgoing, format_dtype
from rmtspec.checkpoint.stored import StoredMatrix, StoredTensor, named_dtype
from rmtspec.errors import FileError, InvalidTypeError
from rmtspec.matrix.split import split, truncate

#: Largest file that is made of tensors which came in files of their own.
SHARD_BYTES = 5_000_000_000


def outgoing_files(
    listed: Checkpoint, rows: Iterable[Mapping[str, Any]], errors: dict[str, float]
) -> list[list[Outgoing]]:
    """Return what each new file holds: the tensors of the old one, cut as the rows of a plan say.

    A file of one tensor (.npy) goes together with others. Loading a tensor that is cut puts the
    measured relative error of each of its matrices into `errors`.
    """
    cut = {row["name"]: row for row in rows if row["action"] != "keep"}
    by_tensor: dict[str, list[StoredMatrix]] = {}
    renamed: dict[str, str] = {}
    for name, row in cut.items():
        matrix = listed.matrices[name]
        by_tensor.setdefault(matrix.tensor.name, []).append(matrix)
        if row["action"] == "split":
            prefix = matrix.tensor.name.removesuffix("weight")
            renamed[f"{prefix}bias"] = f"{prefix}outer.bias"
    files: dict[str, list[Outgoing]] = {}
    for name, tensor in listed.tensors.items():
        matrices = by_tensor.get(name, [])
        if not matrices:
            made = [_copied(tensor, renamed.get(name, name))]
        elif cut[matrices[0].name]["action"] == "split":
            made = _factors(matrices[0], cut[matrices[0].name]["rank"], errors)
        else:
            ranks = [(matrix, cut[matrix.name]["rank"]) for matrix in matrices]
            load = partial(_truncated, tensor, ranks, errors)
            made = [Outgoing(name, tensor_dtype(tensor), tensor.shape, load, costly=True)]
        files.setdefault(tensor.path, []).extend(made)
    if any(path.endswith(".npy") for path in files):
        return _packed([tensor for each in files.values() for tensor in each])
    return list(files.values())


def check_holdable(tensor: StoredTensor) -> None:
    """Raise where a .safetensors file cannot hold a tensor, by its name or dtype."""
    tensor_dtype(tensor)
    try:
        tensor.name.encode("utf-8")
    except UnicodeEncodeError:
        raise FileError(
            f"{tensor.path} holds {tensor.name!a}, a name that UTF-8 lacks and "
            ".safetensors files cannot have. Rename it."
        ) from None


def tensor_dtype(tensor: StoredTensor) -> str:
    """Return the dtype of a tensor as .safetensors calls it; as stored where numpy lacks it."""
    if not tensor.numpy_name or tensor.dtype in DTYPES:
        return tensor.dtype
    dtype = named_dtype(tensor.numpy_name)
    try:
        return format_dtype(dtype.newbyteorder("<"))
    except InvalidTypeError:
        raise FileError(
            f"{tensor.path} holds {tensor.name!r} of dtype {dtype}, which .safetensors files do "
            "not have. Leave it out or convert it, and save the file again."
        ) from None


def _copied(tensor: StoredTensor, name: str) -> Outgoing:
    dtype = tensor_dtype(tensor)
    load = partial(_little_endian, tensor)
    return Outgoing(name, dtype, tensor.shape, load, tensor.nbytes)


def _little_endian(tensor: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    array = tensor()
    return array if array.dtype.byteorder != ">" else array.astype(array.dtype.newbyteorder("<"))


def _factors(matrix: StoredMatrix, rank: int, errors: dict[str, float]) -> list[Outgoing]:
    prefix, dtype = matrix.tensor.name.removesuffix("weight"), tensor_dtype(matrix.tensor)
    factors = _Factors(matrix, rank, errors)
    # A kernel: the inner convolution has its extent, the outer one is pointwise.
    outer = (matrix.shape[0], rank, *(1 for _ in matrix.shape[2:]))
    inner = (rank, *matrix.shape[1:])
    return [
        Outgoing(f"{prefix}{side}.weight", dtype, shape, partial(factors.take, side), costly=True)
        for side, shape in (("outer", outer), ("inner", inner))
    ]


class _Factors:
    """The two factors of a matrix, computed when the first is called for, kept until taken."""

    def __init__(self, matrix: StoredMatrix, rank: int, errors: dict[str, float]) -> None:
        self._matrix, self._rank, self._errors = matrix, rank, errors
        self._waiting: dict[str, NDArray[Any]] = {}

    def take(self, side: str) -> NDArray[Any]:
        if side not in self._waiting:
            parts = split(_little_endian(self._matrix), self._rank)
            self._errors[self._matrix.name] = parts.error
            self._waiting = {"outer": parts.outer, "inner": parts.inner}
        return self._waiting.pop(side)


def _truncated(
    tensor: StoredTensor, ranks: list[tuple[StoredMatrix, int]], errors: dict[str, float]
) -> Iterator[NDArray[Any]]:
    """Yield a tensor, its matrices at lower ranks; a stack of them one after the other."""
    whole = _little_endian(tensor)
    first = ranks[0][0].part
    if first is None:
        found = truncate(_little_endian(ranks[0][0]), ranks[0][1])
        errors[ranks[0][0].name] = found.error
        yield found.matrix
        return
    stacked = len({matrix.part.view for matrix, _ in ranks if matrix.part}) == 1
    spans = {matrix.part.box[0] for matrix, _ in ranks if matrix.part} if stacked else {None}
    length = first.view[0]
    cuts = {0, length} if None in spans else {0, length, *(end for s in spans if s for end in s)}
    edges = sorted(cuts)
    for start, stop in itertools.pairwise(edges):
        # Parts that overlap in their spans cannot be told apart by rows: then all at once.
        piece = whole.reshape(first.view)[start:stop] if stacked else whole
        piece = np.array(piece, copy=True)
        for matrix, rank in ranks:
            part = matrix.part
            if part is None:
                continue
            if stacked:
                span = part.box[0] or (0, length)
                if not start <= span[0] < stop:
                    continue
                box = ((span[0] - start, span[1] - start), *part.box[1:])
                place = piece[tuple(slice(*s) if s else slice(None) for s in box)]
            else:
                place = part.box_of(piece)
            found = truncate(place.reshape(part.shape), rank)
            errors[matrix.name] = found.error
            place[...] = found.matrix.reshape(place.shape)
        yield piece


def _packed(tensors: list[Outgoing]) -> list[list[Outgoing]]:
    """Return the tensors in files of at most `SHARD_BYTES`, or of one tensor that is larger."""
    files: list[list[Outgoing]] = []
    size = 0
    for tensor in tensors:
        if not files or size + tensor.nbytes > SHARD_BYTES:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.nbytes
    return files
