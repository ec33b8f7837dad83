"""The two sides of a comparison: the named matrices of a file, of a mapping, or one array."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec._arrays import is_model
from rmtspec._text import printable
from rmtspec.checkpoint.listing import Checkpoint, matrices_in
from rmtspec.checkpoint.lora import PREFIX, Pair, adapter_config
from rmtspec.checkpoint.stored import StoredMatrix
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError, RmtspecError
from rmtspec.runs.products import with_products
from rmtspec.terms import Kind

#: Name of the matrix where two arrays are compared.
LONE = "W"
_EXPECTED = (
    "a path, what rmtspec.checkpoint.matrices_in returns, a mapping {name: matrix}, or one matrix"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A matrix of one side.

    Attributes
    ----------
    name, kind : str
    load : callable
        Returns the array.
    sides : tuple of int, or None
        Rows and columns; None if they are known only when it is loaded.
    reason : str
        Why it cannot be read; empty if it can.
    names : tuple of str
        All names that `include` and `exclude` may use.
    rounding : callable or None
        Returns how it was quantised and the steps, or None; see `StoredMatrix.rounding`.
    pair : Pair or None
        The factors of an adapter: then it is not a weight, but what is added to one.
    turned : bool
        Whether the adapter belongs to a weight that is stored as inputs x outputs.
    """

    name: str
    kind: str
    load: Callable[[], NDArray[Any]]
    sides: tuple[int, ...] | None
    reason: str = ""
    names: tuple[str, ...] = ()
    rounding: Callable[[], tuple[str, NDArray[Any]] | None] | None = None
    pair: Pair | None = None
    turned: bool = False

    def factors(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return two matrices whose product is the change, laid out as the weight is."""
        if self.pair is None:
            raise InvalidValueError(f"{self.name!r} is a weight; expected factors of an adapter.")
        outer, inner = self.pair.factors()
        return (inner.T, outer.T) if self.turned else (outer, inner)


@dataclass(frozen=True, slots=True)
class Side:
    """One side: its matrices by name, and why other tensors are none.

    Attributes
    ----------
    label : str
        What messages call it.
    listed : Checkpoint or None
        The files that it comes from.
    """

    label: str
    entries: dict[str, Entry]
    skipped: list[dict[str, str]] = field(default_factory=list)
    listed: Checkpoint | None = None

    @property
    def adapter(self) -> bool:
        """Whether it is an adapter of LoRA: changes, not weights."""
        return any(entry.pair is not None for entry in self.entries.values())

    def check_unchanged(self) -> None:
        """Raise `FileError` if a file was rewritten since it was listed."""
        if self.listed is not None:
            self.listed.check_unchanged()


def side_of(given: Any, name: str, *, key: str | None = None, parts: bool = True) -> Side:
    """Return the matrices of an argument called `name`; `parts` as for `matrices_in`."""
    if isinstance(given, str | os.PathLike):
        given = matrices_in(given, parts=parts, key=key)
    if isinstance(given, Checkpoint):
        return _of_files(given.with_parts(parts))
    if is_model(given):
        raise InvalidTypeError(
            f"`{name}` is a {type(given).__name__}; expected {_EXPECTED}. For models of torch call "
            "rmtspec.adapters.torch.compare(a, b)."
        )
    if isinstance(given, Mapping):
        for key_ in given:
            if not isinstance(key_, str):
                raise InvalidTypeError(
                    f"`{name}` names a matrix {key_!r} ({type(key_).__name__}); expected text."
                )
        if not given:
            raise InvalidValueError(f"`{name}` is empty; expected at least one named matrix.")
        return Side(name, {key_: _entry(key_, value) for key_, value in given.items()})
    if given is None or callable(given) or isinstance(given, bytes):
        raise InvalidTypeError(f"`{name}` is {given!r}; expected {_EXPECTED}.")
    array = _checks.matrix(given, name)
    return Side(name, {LONE: _entry(LONE, array)})


def labels(a: Side, b: Side) -> tuple[str, str]:
    """Return short names for two sides that tell them apart."""
    if a.listed is None or b.listed is None:
        return a.label, b.label
    full = [side.listed.path for side in (a, b) if side.listed is not None]
    short = [path.absolute().name for path in full]
    first, second = short if short[0] != short[1] else map(str, full)
    return printable(first), printable(second)


def same_place(a: Side, b: Side) -> bool:
    """Tell whether two sides are the same files."""
    if a.listed is None or b.listed is None:
        return False
    mine, other = (tuple(Path(os.path.realpath(f)) for f in s.listed.files) for s in (a, b))  # type: ignore[union-attr]
    return mine == other


def _of_files(listed: Checkpoint) -> Side:
    source = with_products(listed)
    turned = False
    if listed.pairs:
        turned = adapter_config(listed.files[0].parent).get("fan_in_fan_out") is True
    pairs = {f"{pair.layer}.weight": pair for pair in listed.pairs.values()}
    entries = {}
    for name, matrix in source.matrices.items():
        pair = pairs.get(name)
        if listed.pairs and pair is None:  # a weight that was trained whole, beside the factors
            name = name.removeprefix(PREFIX)
        entries[name] = _stored(name, matrix, pair, turned)
    return Side(listed.path.name, entries, source.skipped, listed)


def _stored(name: str, matrix: StoredMatrix, pair: Pair | None, turned: bool) -> Entry:
    turned = turned and pair is not None and not pair.embedding
    load: Callable[[], NDArray[Any]] = partial(_turned, matrix) if turned else matrix
    sides = matrix.sides[::-1] if turned else matrix.sides
    names = tuple(dict.fromkeys((name, *matrix.names)))
    return Entry(
        name, matrix.kind, load, sides, names=names, rounding=matrix.rounding, pair=pair,
        turned=turned,
    )  # fmt: skip


def _turned(matrix: StoredMatrix) -> NDArray[Any]:
    return matrix().T


def _entry(name: str, value: Any) -> Entry:
    """Return a matrix of a mapping: an array, or a callable that returns one."""
    kind = getattr(value, "kind", None)
    reason = getattr(value, "reason", "")
    lazy = callable(value) and not is_model(value)
    shape = getattr(value, "sides", None) or getattr(value, "shape", None)
    sides = tuple(int(side) for side in shape) if isinstance(shape, tuple) else None
    more = getattr(value, "names", ())
    return Entry(
        name, kind if isinstance(kind, str) else Kind.MATRIX.value,
        value if lazy else partial(_given, value), sides,
        reason=reason if isinstance(reason, str) else "",
        names=tuple(dict.fromkeys((name, *more))) if isinstance(more, tuple) else (name,),
        rounding=getattr(value, "rounding", None),
    )  # fmt: skip


def _given(value: Any) -> Any:
    return value


def not_an_adapter(side: Side) -> RmtspecError:
    """Return the error for a whole model that is given alone."""
    if side.listed is None:
        return InvalidTypeError(f"`b` is None; expected {_EXPECTED}.")
    return FileError(
        f"{side.listed.path} is given alone and is no adapter of LoRA; expected two checkpoints, "
        "or an adapter. Name what it is to be compared with."
    )
