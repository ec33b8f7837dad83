"""Undoing a split on disk: the factors in a folder are multiplied into a plain checkpoint."""

import dataclasses
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec._files.writing import (
    PathLike,
    check_outside,
    check_space,
    empty_folder,
    finished_folder,
)
from rmtspec._text import listed
from rmtspec.checkpoint.companions import check_companions, companions, copy_companions
from rmtspec.checkpoint.index_writer import DENSE_METADATA, DENSE_WEIGHTS, file_names, write_index
from rmtspec.checkpoint.manifest import MANIFEST, Manifest, SplitEntry, damaged
from rmtspec.checkpoint.safetensors_reader import stored_metadata
from rmtspec.checkpoint.safetensors_writer import Outgoing, write_safetensors
from rmtspec.checkpoint.stored import MappedTensor, check_unchanged, named_dtype
from rmtspec.errors import FileError, InvalidTypeError, RmtspecWarning
from rmtspec.runs.dequantised import dequantised, quantised_in
from rmtspec.runs.stored_forms import Computed, decode, joined_kernel, pivoted_outer, widened
from rmtspec.terms import Form

#: Number of entries of a product that are in memory before they are rounded.
_ENTRIES = 2**23
#: Kinds of layers whose weight is inputs x outputs, and all kinds that can be split.
_TURNED = ("embedding", "transposed linear")
_KINDS = ("tensor", "linear", "conv1d", "conv2d", "conv3d", *_TURNED)


def merge_checkpoint(folder: PathLike, out: PathLike) -> list[str]:
    """Undo a split on disk: multiply the factors in a folder into dense weights in a new one.

    Each layer gets its weight and bias back under their original names; everything else is copied.
    Hidden units that left come back as zeros, so that every tensor has its original shape.
    Tied tensors, which `folder` stores once, are written under each of their names, so that any
    loader finds them. One matrix is in memory at a time, and torch is not needed.

    Parameters
    ----------
    folder : path
        A folder written by `rmtspec.prune_checkpoint` with factors, or by `save` of the torch
        adapter, with or without splits; or a GGUF file, whose weights are dequantised, under their
        names in transformers if it is of the family of Llama or Qwen; or a .safetensors file or
        folder of quantised weights, which get the dtype that its config names. It is only read.
    out : path
        A folder that does not exist yet or is empty. It receives ``model.safetensors``, or as many
        shards as `folder` has and their index, and the other files of `folder` (configs,
        tokenizers). It appears under its name only when it is complete.

    Returns
    -------
    list of str
        Names of the tensors that were multiplied out, or dequantised.

    Raises
    ------
    FileError
        `folder` does not exist, has no manifest, or is not as it was written (a file has changed, a
        factor is missing or has another shape); its dtype has no room for a product; or `out` is in
        it, is not empty, or cannot be written. In each case nothing is left in `out`.
    InvalidTypeError
        `folder` or `out` is not a path.

    Notes
    -----
    The product is that of the stored factors, rounded once to their dtype. It is computed in
    float64, or in float32 if an entry has at most 16 bits. A layer that was split twice becomes one
    layer again.

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
        given = type(folder).__name__
        raise InvalidTypeError(f"`folder` is a {given}; expected the path of a folder.")
    place = Path(folder)
    quantised = quantised_in(place)
    if quantised is not None:
        return dequantised(quantised, out)
    manifest = Manifest.read(place)
    empty_folder(out)
    check_outside(out, place)
    check_companions(place)
    stored = manifest.tensors(place)
    tensors, products = dense_tensors(place, manifest, stored)
    old = [place / name for name in manifest.weight_files]
    files: dict[Path, list[Outgoing]] = {file: [] for file in old}
    for name, tensor in tensors.items():
        load = tensor.rounded if isinstance(tensor, _Product) else tensor
        outgoing = Outgoing(name, tensor.dtype, tensor.shape, load, stored_bytes=tensor.nbytes)
        files[Path(tensor.path)].append(outgoing)
    # A file that held only a factor is no longer needed.
    files = {file: each for file, each in files.items() if each} or {old[0]: []}
    size = sum(tensor.nbytes for each in files.values() for tensor in each)
    check_space(out, size + sum(file.stat().st_size for file in companions(place)[0]))
    manifest.check_files(place)  # last, because it reads everything
    if manifest.extra_states:
        warnings.warn(
            f"{place} has extra states of modules that are no tensors, which a file of dense "
            f"weights cannot hold: {listed(sorted(manifest.extra_states), most=3)} are left out.",
            RmtspecWarning,
            stacklevel=2,
        )
    named = dict(zip(file_names(DENSE_WEIGHTS, len(files)), files, strict=True))
    with finished_folder(out) as work:
        for name, file in named.items():
            write_safetensors(work / name, files[file], stored_metadata(file) or DENSE_METADATA)
        write_index(work, DENSE_WEIGHTS, {name: files[file] for name, file in named.items()})
        copy_companions(place, work)
        check_unchanged(stored.values())
    return products


@dataclass(frozen=True, slots=True)
class _Product:
    """The weight of a layer that was split, multiplied out on demand.

    A factor is a tensor in a file or, if it was split again, another product. The other fields are
    as in `StoredTensor`; file and dtype are those of the outer factor.
    """

    entry: SplitEntry
    outer: "_Tensor"
    inner: "_Tensor"
    path: str
    dtype: str
    numpy_name: str
    shape: tuple[int, ...]

    nbytes: None = None  # follows from the dtype and the shape

    def rounded(self) -> Iterator[NDArray[Any]]:
        """Yield the weight in its dtype, some rows at a time."""
        dtype = named_dtype(self.numpy_name)
        wide = np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)
        for rows in self.rows(wide):
            with np.errstate(over="ignore", invalid="ignore"):  # non-finite entries stay so
                rounded = rows.astype(dtype)
            if not np.isfinite(rounded).all() and self._finite():
                raise FileError(
                    f"{Path(self.path).parent} cannot be merged: the product of the factors of "
                    f"{self.entry.name!r} has entries beyond the largest {dtype.name}. Convert the "
                    "factors to a wider dtype first."
                )
            del rows  # before the next rows are computed
            yield rounded

    def _finite(self) -> bool:
        """Tell whether all entries of the factors are finite."""
        wide = np.dtype(np.float64)
        return all(bool(np.isfinite(whole(f, wide)).all()) for f in (self.outer, self.inner))

    def rows(self, wide: np.dtype[Any]) -> Iterator[NDArray[Any]]:
        """Yield the weight, read as a matrix, some rows at a time in a wider dtype."""
        outer, inner = whole(self.outer, wide), whole(self.inner, wide)
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
                with np.errstate(over="ignore", invalid="ignore"):  # non-finite entries stay so
                    rows = left[start : start + step].astype(wide) @ columns
                yield rows
                del rows


_Tensor = MappedTensor | _Product | Computed
#: What a weight is put together from.
Multiplied = _Product | Computed


def whole(factor: _Tensor, wide: np.dtype[Any]) -> NDArray[Any]:
    """Return a weight or a factor, in its stored dtype unless it is a product."""
    if isinstance(factor, MappedTensor | Computed):
        return factor()
    return np.concatenate(list(factor.rows(wide))).reshape(factor.shape)


def dense_tensors(
    folder: Path, manifest: Manifest, stored: Mapping[str, MappedTensor]
) -> tuple[dict[str, _Tensor], list[str]]:
    """Return the tensors of the model before the split, and the names of the products."""
    tensors: dict[str, _Tensor] = dict(stored)
    for name, holder in manifest.tied.items():
        if holder not in stored:
            raise damaged(folder, f"{name!r} shares the values of {holder!r}, which no file holds")
        if name in stored:
            raise damaged(folder, f"{name!r} shares the values of {holder!r}, and has its own")
        tensors[name] = stored[holder]
    splits = [*manifest.splits, *_further_names(manifest, tensors)]
    # The innermost first, because a factor may have been split again.
    for entry in sorted(splits, key=lambda e: (e.name.count("."), e.name != ""), reverse=True):
        prefix = f"{entry.name}." if entry.name else ""
        merged: dict[str, _Tensor]
        if Form(entry.form).narrow:
            merged = widened(folder, entry, prefix, tensors)
        elif entry.form == Form.SPATIAL:
            merged = {f"{prefix}weight": joined_kernel(folder, entry, prefix, tensors)}
        else:
            merged = {f"{prefix}weight": _product(folder, entry, prefix, tensors)}
        if entry.kind != "embedding" and f"{prefix}outer.bias" in tensors:
            merged[f"{prefix}bias"] = tensors.pop(f"{prefix}outer.bias")
        for name, tensor in merged.items():
            if name in tensors:
                raise damaged(folder, f"it holds both {name!r} and its factors")
            tensors[name] = tensor
    _check_nothing_left(folder, {e.name for e in splits if e.kind != "tensor"}, tensors)
    names = [f"{entry.name}.weight" if entry.name else "weight" for entry in splits]
    return tensors, [name for name in names if name in tensors]


def _product(folder: Path, entry: SplitEntry, prefix: str, tensors: dict[str, _Tensor]) -> _Product:
    """Remove the factors of a layer from the tensors, check them, and return their product."""
    if entry.stored:
        decode(folder, entry, prefix, tensors)
    if entry.form == "pivoted":
        tensors[f"{prefix}outer.weight"] = pivoted_outer(
            folder, entry, prefix, tensors, outer=_factor_shapes(folder, entry)[0]
        )
    factors = []
    for side in ("outer", "inner"):
        name = f"{prefix}{side}.weight"
        factor = tensors.pop(name, None)
        if factor is None:
            other = next((other for other in tensors if other.startswith(f"{prefix}{side}.")), "")
            if other:
                raise _altered(folder, entry.name, side, other)
            raise damaged(folder, f"no file holds {name!r}, a factor that {MANIFEST} requires")
        if not (factor.numpy_name and _checks.is_float(named_dtype(factor.numpy_name))):
            raise damaged(folder, f"the factor {name!r} has dtype {factor.dtype}, not floats")
        factors.append(factor)
    outer, inner = factors
    expected = _factor_shapes(folder, entry)
    if (outer.shape, inner.shape) != expected:
        raise damaged(
            folder,
            f"the factors of {entry.name!r} are {outer.shape} and {inner.shape}; for kind "
            f"{entry.kind!r}, shape {entry.shape} and rank {entry.rank}, expected "
            f"{expected[0]} and {expected[1]}",
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
            f"{folder / MANIFEST} gives {entry.name!r} the kind {entry.kind!r}, which this "
            "version of rmtspec does not know. Update rmtspec: pip install --upgrade rmtspec."
        )
    if entry.kind in _TURNED and len(shape) == 2 and groups == 1:
        outer, inner = (shape[1], rank), (rank, shape[0])
        return outer, inner if entry.kind == "transposed linear" else inner[::-1]
    if entry.kind in _TURNED or shape[0] % groups:
        layer = f"{entry.name!r} as {entry.kind} of shape {shape} and {groups} groups"
        raise damaged(folder, f"{MANIFEST} lists {layer}")
    return (shape[0], rank, *(1 for _ in shape[2:])), (rank * groups, *shape[1:])


def _further_names(manifest: Manifest, names: Iterable[str]) -> list[SplitEntry]:
    """Return entries for the further names of split layers that a model uses in several places.

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
    return [
        dataclasses.replace(listed[frozenset(held)], name=layer)
        for layer, held in factors.items()
        if frozenset(held) in listed and layer not in known
    ]


def _factors_in(name: str) -> Iterator[tuple[str, str]]:
    """Yield each way to divide a name into a layer and a tensor within one of its factors."""
    words = name.split(".")
    for i, word in enumerate(words):
        if word in ("outer", "inner"):
            yield ".".join(words[:i]), ".".join(words[i:])


def _check_nothing_left(folder: Path, layers: set[str], names: Iterable[str]) -> None:
    """Raise if a factor has more than its weight: the product would lose the rest."""
    for name in names:
        for layer, factor in _factors_in(name):
            if layer in layers:
                raise _altered(folder, layer, factor.partition(".")[0], name)


def _altered(folder: Path, layer: str, side: str, name: str) -> FileError:
    return FileError(
        f"{folder} has {name!r}, so the factor {side!r} of {layer!r} has been changed since the "
        "split. Merge what was added into the factor, and save the model again."
    )
