"""What a file holds of a matrix, read as the matrix: codes, pivot rows, or a part of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.manifest import MANIFEST, SplitEntry, damaged
from rmtspec.checkpoint.stored import MappedTensor, named_dtype
from rmtspec.matrix.in_dtype import in_dtype
from rmtspec.terms import Form


@dataclass(frozen=True, slots=True)
class Computed:
    """A factor that is stored in parts; the other fields are as in `StoredTensor`."""

    load: Callable[[], NDArray[Any]]
    path: str
    dtype: str
    numpy_name: str
    shape: tuple[int, ...]

    nbytes: None = None  # it is never written itself

    def __call__(self) -> NDArray[Any]:
        """Return the values."""
        return self.load()


def _decoded(codes: MappedTensor, scale: MappedTensor) -> NDArray[Any]:
    """Return a factor that is stored as codes with a scale for each row."""
    wide: NDArray[Any] = codes().astype(np.float32) * scale().astype(np.float32)[:, None]
    return wide


def _ordered(mixing: "MappedTensor | Computed", place: MappedTensor) -> NDArray[Any]:
    """Return the outer factor of pivot rows: the identity and the mixing below it, in order."""
    values = mixing()
    rows = np.vstack([np.eye(values.shape[1], dtype=values.dtype), values])
    ordered: NDArray[Any] = rows[place()]
    return ordered


def widened(
    folder: Path, entry: SplitEntry, prefix: str, tensors: dict[str, Any]
) -> dict[str, Any]:
    """Remove a layer with fewer units from the tensors, and return it with zeros for the others."""
    weight, units = (tensors.pop(f"{prefix}{part}", None) for part in ("weight", "units"))
    outputs = entry.form == Form.FEWER_OUTPUTS
    shape, rank = entry.shape, entry.rank
    turned = entry.kind == "transposed linear"
    full = shape[0 if outputs != turned else 1] if len(shape) == 2 else 0
    rows, columns = shape[::-1] if turned else (shape[0], shape[-1])
    expected = (rank, columns) if outputs else (rows, rank)
    places = np.empty(0, np.int64)
    if isinstance(units, MappedTensor) and units.dtype in ("I64", "I32"):
        places = units()
    fits = isinstance(weight, MappedTensor) and weight.shape == expected
    if not fits or places.shape != (rank,) or not _ascending(places, full):
        found = "no tensor" if weight is None else weight.shape
        raise damaged(
            folder,
            f"{entry.name!r} is {found}, its units {places.shape}; for {entry.form}, shape {shape} "
            f"and {rank} units, expected {expected} and an ascending list of units below {full}",
        )
    axis = 0 if outputs else 1
    wide = {f"{prefix}weight": (weight, partial(_spread, weight, places, full, axis=axis))}
    bias = tensors.get(f"{prefix}bias")
    if outputs and isinstance(bias, MappedTensor):
        wide[f"{prefix}bias"] = (tensors.pop(f"{prefix}bias"), partial(_spread, bias, places, full))
    merged: dict[str, Any] = {}
    for name, (narrow, load) in wide.items():
        sides = shape if name.endswith("weight") else (full,)
        merged[name] = Computed(
            partial(_turned, load) if turned and len(sides) == 2 else load,
            narrow.path, narrow.dtype, numpy_name=narrow.numpy_name, shape=sides,
        )  # fmt: skip
    return merged


def _ascending(places: NDArray[Any], full: int) -> bool:
    """Tell whether places are different ones from 0 to full - 1, in order."""
    inside = len(places) > 0 and places[0] >= 0 and places[-1] < full
    return bool(inside and (np.diff(places) > 0).all())


def _spread(narrow: MappedTensor, places: NDArray[Any], full: int, axis: int = 0) -> NDArray[Any]:
    """Return values at their places among zeros."""
    values = narrow()
    shape = list(values.shape)
    shape[axis] = full
    wide = np.zeros(shape, dtype=values.dtype)
    wide[places if axis == 0 else (slice(None), places)] = values
    return wide


def _turned(load: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    return np.ascontiguousarray(load().T)


def joined_kernel(
    folder: Path, entry: SplitEntry, prefix: str, tensors: dict[str, Any]
) -> Computed:
    """Remove the two kernels of a layer from the tensors, and return the one that they make."""
    outer, inner = (tensors.pop(f"{prefix}{side}.weight", None) for side in ("outer", "inner"))
    shape, rank = entry.shape, entry.rank
    fits = len(shape) == 4 and entry.groups == 1
    expected = [(shape[0], rank, 1, shape[-1]), (rank, *shape[1:3], 1)]
    found = [each.shape if isinstance(each, MappedTensor) else None for each in (outer, inner)]
    if not fits or found != expected:
        raise damaged(
            folder,
            f"the kernels of {entry.name!r} are {found[0]} and {found[1]}; for shape {shape} and "
            f"{rank} channels between them, expected {expected[0]} and {expected[1]}",
        )
    return Computed(
        partial(_one_kernel, outer, inner), outer.path, outer.dtype,
        numpy_name=outer.numpy_name, shape=shape,
    )  # fmt: skip


def _one_kernel(outer: MappedTensor, inner: MappedTensor) -> NDArray[Any]:
    """Return the kernel that a 1 x l and a k x 1 kernel make, rounded once to their dtype."""
    second, first = (each().astype(np.float64) for each in (outer, inner))
    made: NDArray[Any] = np.einsum("orb,ria->oiab", second[:, :, 0], first[..., 0])
    return in_dtype(made, named_dtype(outer.numpy_name))


def decode(folder: Path, entry: SplitEntry, prefix: str, tensors: dict[str, Any]) -> None:
    """Put the factors of a layer in the place of their codes and scales."""
    outer = "outer.mixing" if entry.form == "pivoted" else "outer"
    for side in ("inner", outer):
        parts = [tensors.pop(f"{prefix}{side}.{part}", None) for part in ("codes", "scale")]
        codes, scale = parts
        if not (isinstance(codes, MappedTensor) and isinstance(scale, MappedTensor)):
            words = f"no file holds the codes of {entry.name!r}, which {MANIFEST} requires"
            raise damaged(folder, words)
        if scale.shape != codes.shape[:1] or codes.dtype not in ("I8", "BF16"):
            words = f"{codes.shape} {codes.dtype} with scales {scale.shape}"
            raise damaged(folder, f"the codes of {entry.name!r} are {words}")
        tensors[f"{prefix}{side}.weight"] = Computed(
            partial(_decoded, codes, scale), codes.path, scale.dtype,
            numpy_name=scale.numpy_name, shape=codes.shape,
        )  # fmt: skip


def pivoted_outer(
    folder: Path,
    entry: SplitEntry,
    prefix: str,
    tensors: dict[str, Any],
    *,
    outer: tuple[int, ...],
) -> Computed:
    """Remove the parts of a pivoted outer factor of that shape from the tensors; return it."""
    parts = [tensors.pop(f"{prefix}outer.{part}", None) for part in ("mixing.weight", "place")]
    mixing, place = parts
    if not (isinstance(mixing, MappedTensor | Computed) and isinstance(place, MappedTensor)):
        words = f"no file holds the pivots of {entry.name!r}, which {MANIFEST} requires"
        raise damaged(folder, words)
    if len(outer) > 2:
        raise damaged(folder, f"{MANIFEST} lists {entry.name!r} as pivoted {entry.kind}")
    rows, rank = outer
    order = np.sort(place()) if place.dtype in ("I64", "I32") else np.empty(0)
    if mixing.shape != (rows - rank, rank) or not np.array_equal(order, np.arange(rows)):
        raise damaged(
            folder,
            f"the pivots of {entry.name!r} are {mixing.shape} and {place.shape} {place.dtype}; for "
            f"shape {entry.shape} and rank {entry.rank}, expected {(rows - rank, rank)} and an "
            f"order of {rows} rows",
        )
    return Computed(
        partial(_ordered, mixing, place), mixing.path, mixing.dtype,
        numpy_name=mixing.numpy_name, shape=outer,
    )  # fmt: skip
