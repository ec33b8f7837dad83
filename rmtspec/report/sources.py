"""The source given to `analyze_many`, one name and value at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from rmtspec._arrays import call_for, is_model
from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.matrix.spectrum import Spectrum


def named_items(source: Any) -> tuple[int | None, Iterator[tuple[str, Any]]]:
    """Return the length of the source, if it has one, and an iterator of named matrices."""
    expected = "expected a mapping {name: matrix} or an iterable of (name, matrix) pairs"
    if isinstance(source, Spectrum) or (
        hasattr(source, "__array__") and not isinstance(source, Mapping)
    ):
        raise InvalidTypeError(
            f"`source` is one {type(source).__name__}; {expected}. For one matrix call "
            "rmtspec.analyze(W); for a stack of matrices pass list(stack)."
        )
    if is_model(source):  # nn.Sequential is iterable
        raise InvalidTypeError(
            f"`source` is a {type(source).__name__}; {expected}. {call_for(source)}"
        )
    if isinstance(source, str | bytes) or hasattr(source, "__fspath__"):
        raise InvalidTypeError(
            f"`source` is {source!r}; {expected}. To read a file, pass "
            "rmtspec.checkpoint.matrices_in(path).matrices."
        )
    if not isinstance(source, Iterable):
        raise InvalidTypeError(f"`source` is a {type(source).__name__}; {expected}.")
    total = len(source) if isinstance(source, Sized) else None
    return total, _named(source)


def _named(source: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    mapping = isinstance(source, Mapping)
    for index, item in enumerate(source.items() if isinstance(source, Mapping) else source):
        name, value = str(index), item
        pair = isinstance(item, tuple) and len(item) == 2
        if mapping or (pair and isinstance(item[0], str | int | bytes | None)):
            name, value = item
            if not isinstance(name, str):
                raise InvalidTypeError(
                    f"`source` names a matrix {name!r} ({type(name).__name__}); expected text."
                )
        if name in seen:
            raise InvalidValueError(
                f"`source` has two matrices named {name!r}; expected different names. Rename one."
            )
        seen.add(name)
        yield name, value
