"""Undoing a split on disk: the factors in a folder multiplied out into a plain checkpoint."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec._files import (
    PathLike,
    check_outside,
    check_space,
    empty_folder,
    finished_folder,
)
from rmtspec.checkpoint.companions import companions, copy_companions
from rmtspec.checkpoint.index_writer import DENSE_METADATA, DENSE_WEIGHTS, file_names, write_index
from rmtspec.checkpoint.manifest import MANIFEST, Manifest, SplitEntry, damaged
from rmtspec.checkpoint.safetensors_reader import stored_metadata
from rmtspec.checkpoint.safetensors_writer import Outgoing, write_safetensors
from rmtspec.checkpoint.stored import MappedTensor, named_dtype
from rmtspec.errors import FileError, InvalidTypeError

#: Entries of a product that are in memory before they are rounded.
_ENTRIES = 2**23
#: Of layers whose weight has the inputs first, and of all that can be split.
_TURNED = ("embedding", "transposed linear")
_KINDS = ("tensor", "linear", "conv1d", "conv2d", "conv3d", *_TURNED)


def merge_checkpoint(folder: PathLike, out: PathLike) -> list[str]:
    """Undo a split on disk: multiply the factors in a folder into dense weights in a new one.

    Every layer gets its weight and bias under their original names; all else is copied as it is.
    Tied tensors, which `folder` has once, are written under each of their names, so that any
    loader finds them. One matrix is in memory at a time, and torch is not needed.

    Parameters
    ----------
    folder : path
        Written by `rmtspec.prune_checkpoint` with factors, or by the torch adapter's `save`, with
        or without splits in it. It is only read.
    out : path
        A folder that does not exist yet or is empty. It gets ``model.safetensors``, or as many
        shards as `folder` has and their index, and the other files of `folder` (configs,
        tokenizers). It appears under its name only when it is whole.

    Returns
    -------
    list of str
        Names of the tensors that were multiplied out.

    Raises
    ------
    FileError
        `folder` does not exist, has no manifest, or is not as it was written (a file changed, a
        factor missing or of another shape); `out` is in it, is not empty, or cannot be written.
        Nothing is left there then.
    InvalidTypeError
        `folder` or `out` is no path.

    Notes
    -----
    The product is that of the factors as stored, rounded once to their dtype. It is summed in
    float64, and in float32 where an entry has 16 bits or less. A layer that was split twice
    becomes one again.

    Examples
    --------
    >>> import tempfile
    >>> import rmtspec
    >>> from safetensors.numpy import load_file, save_file
    >>> W = rmtspec.ensembles.spiked(80, 60, [9], rng=0).astype("float32")
    >>> with tempfile.TemporaryDirectory() as place:
    ...     save_file({"fc.weight": W}, f"{place}/model.safetensors")
    ...     done = rmtspec.prune_checkpoint(
    ...         f"{place}/model.safetensors", f"{place}/small", ranks={"fc": 5}
    ...     )
    ...     merged = rmtspec.merge_checkpoint(f"{place}/small", f"{place}/dense")
    ...     dense = load_file(f"{place}/dense/model.safetensors")
    >>> merged, dense["fc.weight"].shape
    (['fc.weight'], (80, 60))
    """
    if not isinstance(folder, str | os.PathLike):
        raise InvalidTypeError(
            f"`folder` is a {type(folder).__name__}; expected the path of a folder."
        )
    place = Path(folder)
    manifest = Manifest.read(place)
    empty_folder(out)
    check_outside(out, place)
    stored = manifest.tensors(place)
    tensors, products = _dense(place, manifest, stored)
    old = [place / name for name in manifest.weight_files]
    files: dict[Path, list[Outgoing]] = {file: [] for file in old}
    for name, tensor in tensors.items():
        files[Path(tensor.path)].append(_outgoing(name, tensor))
    # A factor may have been alone in its file: that one is not needed any more.
    files = {file: each for file, each in files.items() if each} or {old[0]: []}
    size = sum(tensor.nbytes for each in files.values() for tensor in each)
    beside = sum(file.stat().st_size for file in companions(place)[0])
    check_space(out, size + beside)
    manifest.check_files(place)  # reads everything, so it comes last
    names = file_names(DENSE_WEIGHTS, len(files))
    with finished_folder(out) as work:
        for name, (file, each) in zip(names, files.items(), strict=True):
            write_safetensors(work / name, each, stored_metadata(file) or DENSE_METADATA)
        write_index(work, DENSE_WEIGHTS, dict(zip(names, files.values(), strict=True)))
        copy_companions(place, work)
    return products


@dataclass(frozen=True, slots=True)
class _Product:
    """The weight of a layer that was split, multiplied out when it is asked for.

    A factor is a tensor in a file or, where it was split again, a product itself. The rest is as
    in `MappedTensor`: file and dtype are those of the outer factor.
    """

    entry: SplitEntry
    outer: "MappedTensor | _Product"
    inner: "MappedTensor | _Product"
    path: str
    dtype: str
    numpy_name: str
    shape: tuple[int, ...]

    def rounded(self) -> Iterator[NDArray[Any]]:
        """Yield the weight in its dtype, some rows at a time."""
        dtype = named_dtype(self.numpy_name)
        wide = np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)
        for rows in self.rows(wide):
            with np.errstate(over="ignore", invalid="ignore"):  # it stays not finite
                rounded = rows.astype(dtype)
            del rows  # before the next ones are made
            yield rounded

    def rows(self, wide: np.dtype[Any]) -> Iterator[NDArray[Any]]:
        """Yield the weight, read as a matrix, some rows at a time in a wider dtype."""
        outer, inner = _factor(self.outer, wide), _factor(self.inner, wide)
        rank, groups = self.entry.rank, self.entry.groups
        if self.entry.kind == "embedding":
            pairs = [(inner, outer.T)]
        elif self.entry.kind == "transposed linear":
            pairs = [(inner.T, outer.T)]
        else:
            lefts, rights = outer.reshape(groups, -1, rank), inner.reshape(groups, rank, -1)
            pairs = list(zip(lefts, rights, strict=True))
        for left, right in pairs:
            columns = right.astype(wide)
            step = max(1, _ENTRIES // columns.shape[1])
            for start in range(0, len(left), step):
                with np.errstate(over="ignore", invalid="ignore"):  # it stays not finite
                    rows = left[start : start + step].astype(wide) @ columns
                yield rows
                del rows


def _factor(factor: MappedTensor | _Product, wide: np.dtype[Any]) -> NDArray[Any]:
    """Return a factor, in its own dtype where it is stored as such."""
    if isinstance(factor, MappedTensor):
        return factor()
    return np.concatenate(list(factor.rows(wide))).reshape(factor.shape)


def _dense(
    folder: Path, manifest: Manifest, stored: Mapping[str, MappedTensor]
) -> tuple[dict[str, MappedTensor | _Product], list[str]]:
    """Return the tensors of the model before the split, and the names of those multiplied out."""
    tensors: dict[str, MappedTensor | _Product] = dict(stored)
    for name, holder in manifest.tied.items():
        if holder not in stored:
            raise damaged(folder, f"{name!r} has the values of {holder!r}, which no file has")
        if name in stored:
            raise damaged(folder, f"{name!r} has the values of {holder!r}, and values of its own")
        tensors[name] = stored[holder]
    splits = [*manifest.splits, *_further_names(manifest, tensors)]
    # The innermost first: a factor may have been split again.
    for entry in sorted(splits, key=lambda e: (e.name.count("."), e.name != ""), reverse=True):
        prefix = f"{entry.name}." if entry.name else ""
        made: dict[str, MappedTensor | _Product] = {
            "weight": _product(folder, entry, prefix, tensors)
        }
        if entry.kind != "embedding" and f"{prefix}outer.bias" in tensors:
            made["bias"] = tensors.pop(f"{prefix}outer.bias")
        for short, tensor in made.items():
            if prefix + short in tensors:
                raise damaged(folder, f"{prefix + short!r} is in it beside its factors")
            tensors[prefix + short] = tensor
    _check_nothing_left(folder, {e.name for e in splits if e.kind != "tensor"}, tensors)
    names = [f"{entry.name}.weight" if entry.name else "weight" for entry in splits]
    return tensors, [name for name in names if name in tensors]


def _product(
    folder: Path, entry: SplitEntry, prefix: str, tensors: dict[str, MappedTensor | _Product]
) -> _Product:
    """Take the factors of a layer out of the tensors, if they fit, and return their product."""
    factors = []
    for side in ("outer", "inner"):
        name = f"{prefix}{side}.weight"
        factor = tensors.pop(name, None)
        if factor is None:
            altered = next((other for other in tensors if other.startswith(f"{prefix}{side}.")), "")
            if altered:
                raise _altered(folder, entry.name, side, altered)
            raise damaged(folder, f"no file has {name!r}, a factor that {MANIFEST} speaks of")
        if not (factor.numpy_name and _checks.is_float(named_dtype(factor.numpy_name))):
            raise damaged(folder, f"the factor {name!r} is of dtype {factor.dtype}, no floats")
        factors.append(factor)
    outer, inner = factors
    expected = _factor_shapes(folder, entry)
    if (outer.shape, inner.shape) != expected:
        raise damaged(
            folder,
            f"the factors of {entry.name!r} are {outer.shape} and {inner.shape}; those of a "
            f"{entry.kind} of shape {entry.shape} and rank {entry.rank} are {expected[0]} and "
            f"{expected[1]}",
        )
    return _Product(
        entry, outer, inner, path=outer.path, dtype=outer.dtype, numpy_name=outer.numpy_name,
        shape=entry.shape,
    )  # fmt: skip


def _factor_shapes(folder: Path, entry: SplitEntry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes that the outer and the inner factor must have."""
    shape, rank, groups = entry.shape, entry.rank, entry.groups
    if entry.kind not in _KINDS:
        raise FileError(
            f"{folder / MANIFEST} has the layer {entry.name!r} as {entry.kind!r}, which this "
            "version of rmtspec does not know. Update rmtspec: pip install --upgrade rmtspec."
        )
    if entry.kind in _TURNED and len(shape) == 2 and groups == 1:
        outer, inner = (shape[1], rank), (rank, shape[0])
        return outer, inner if entry.kind == "transposed linear" else inner[::-1]
    if entry.kind in _TURNED or shape[0] % groups:
        raise damaged(
            folder, f"{MANIFEST} has {entry.name!r} as {entry.kind} {shape} of {groups} groups"
        )
    return (shape[0], rank, *(1 for _ in shape[2:])), (rank * groups, *shape[1:])


def _further_names(manifest: Manifest, names: Iterable[str]) -> list[SplitEntry]:
    """Return entries for the other names of split layers that a model has in several places.

    The manifest lists such a layer once, and ties the factors under its other names.
    """
    if not manifest.tied:
        return []
    known = {entry.name: entry for entry in manifest.splits}
    factors: dict[str, set[tuple[str, str]]] = {}
    for name in names:
        for layer, factor in _factors_in(name):
            factors.setdefault(layer, set()).add((factor, manifest.tied.get(name, name)))
    listed = {
        frozenset(factors[layer]): entry for layer, entry in known.items() if layer in factors
    }
    found = {layer: listed.get(frozenset(held)) for layer, held in factors.items()}
    return [
        dataclasses.replace(entry, name=layer)
        for layer, entry in found.items()
        if entry is not None and layer not in known
    ]


def _factors_in(name: str) -> Iterator[tuple[str, str]]:
    """Yield each way to read a name as that of a layer and that of a tensor in its factors."""
    words = name.split(".")
    for i, word in enumerate(words):
        if word in ("outer", "inner"):
            yield ".".join(words[:i]), ".".join(words[i:])


def _check_nothing_left(folder: Path, layers: set[str], names: Iterable[str]) -> None:
    """Raise where a factor was more than its weight: the product would lose the rest."""
    for name in names:
        for layer, factor in _factors_in(name):
            if layer in layers:
                raise _altered(folder, layer, factor.partition(".")[0], name)


def _outgoing(name: str, tensor: MappedTensor | _Product) -> Outgoing:
    if isinstance(tensor, _Product):
        return Outgoing(name, tensor.dtype, tensor.shape, tensor.rounded)
    return Outgoing(name, tensor.dtype, tensor.shape, tensor, stored_bytes=tensor.nbytes)


def _altered(folder: Path, layer: str, side: str, name: str) -> FileError:
    return FileError(
        f"{folder} has {name!r}, so the factor {side!r} of {layer!r} is not as the split made it. "
        "Merge what was added into it, and save the model again."
    )
