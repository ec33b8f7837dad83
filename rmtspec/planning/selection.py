"""Which matrices a user chooses: `include` and `exclude`, patterns on names or predicates."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from rmtspec._text import grouped, printable
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError
from rmtspec.terms import Why

Predicate = Callable[[str, Any], bool]
#: What `include` and `exclude` take.
Pattern = str | re.Pattern[str] | Predicate | Iterable[str | re.Pattern[str] | Predicate]


class Named(Protocol):
    """An object that can be chosen: it has further names besides its own."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names that patterns may match."""


M = TypeVar("M", bound=Named)


class Chosen(NamedTuple, Generic[M]):
    """What a selection leaves of the matrices of a model."""

    matrices: dict[str, M]
    left_out: list[dict[str, str]]  # "name" and "reason" of the others
    named: set[str]  # the matrices that `include` asks for


class Selection:
    """Names that match `include` and not `exclude`; records which patterns matched nothing.

    Parameters
    ----------
    include, exclude : str, compiled pattern, predicate, several of these, or None
        A regular expression to be found anywhere in the name (`re.search`), or a callable of
        (name, object) that returns a truth value. Without `include` all names pass.
    """

    def __init__(self, include: Pattern | None = None, exclude: Pattern | None = None) -> None:
        self._include = _tests(include, "include")
        self._exclude = _tests(exclude, "exclude")
        self._met: set[int] = set()

    def refusal(self, names: Iterable[str], value: Any = None) -> str:
        """Return why the object known by `names` is left out, or "" if it is not."""
        listed = list(names)
        # Every pattern is tried: one that another made superfluous still counts as matched.
        included = self._include is None or self._any(self._include, listed, value)
        excluded = self._exclude is not None and self._any(self._exclude, listed, value)
        if not included:
            return Why.NOT_INCLUDED.words()
        return Why.EXCLUDED.words() if excluded else ""

    def named(self, names: Iterable[str], value: Any = None) -> bool:
        """Tell whether `include` was given and matches: the user asked for the object."""
        return self._include is not None and self._any(self._include, list(names), value)

    def choose(
        self,
        matrices: Mapping[str, M],
        owner_of: Callable[[M], Any] | None = None,
        leave: Callable[[M], str] | None = None,
    ) -> "Chosen[M]":
        """Return the matrices that pass, and why the others are left out.

        Predicates are given the matrix, or what `owner_of` returns for it. `leave` may return a
        reason to leave out a matrix that passes.
        """
        chosen: Chosen[M] = Chosen({}, [], set())
        for name, matrix in matrices.items():
            owner = matrix if owner_of is None else owner_of(matrix)
            names = tuple(dict.fromkeys((name, *matrix.names)))
            reason = self.refusal(names, owner) or (leave(matrix) if leave else "")
            if reason:
                chosen.left_out.append({"name": name, "reason": reason})
                continue
            chosen.matrices[name] = matrix
            if self.named(names, owner):
                chosen.named.add(name)
        return chosen

    @property
    def settings(self) -> dict[str, list[str]]:
        """The patterns as the user wrote them, for the settings of a report."""
        pairs = (("include", self._include), ("exclude", self._exclude))
        return {
            name: [shown.removeprefix(f"{name}=") for shown, _ in tests]
            for name, tests in pairs
            if tests is not None
        }

    @property
    def unmet(self) -> list[str]:
        """The patterns that have matched no name so far, as the user wrote them."""
        listed = [*(self._include or []), *(self._exclude or [])]
        return [shown for shown, test in listed if id(test) not in self._met]

    def _any(self, tests: list[tuple[str, Predicate]], names: list[str], value: Any) -> bool:
        met = {id(test) for _, test in tests if any(test(name, value) for name in names)}
        self._met |= met
        return bool(met)


def _tests(given: Pattern | None, name: str) -> list[tuple[str, Predicate]] | None:
    """Return (text to show, predicate) for each pattern; None if no pattern was given."""
    if given is None:
        return None
    if isinstance(given, Iterable) and not isinstance(given, str | re.Pattern):
        return [_test(one, name) for one in given]
    return [_test(given, name)]


def _test(one: Any, name: str) -> tuple[str, Predicate]:
    if isinstance(one, str):
        try:
            one = re.compile(one)
        except re.error as error:
            raise InvalidOptionError(
                f"`{name}` {one!r} is not a regular expression: {error}.",
                hint="Escape special characters with a backslash, or pass a predicate on (name, "
                "module).",
                command_hint="Escape special characters with a backslash.",
            ) from None
    if isinstance(one, re.Pattern):
        pattern = one
        return f"{name}={pattern.pattern!r}", lambda text, _: pattern.search(text) is not None
    if callable(one) and not isinstance(one, type):
        shown = getattr(one, "__qualname__", type(one).__name__)
        return f"{name}={shown}", lambda text, value: bool(one(text, value))
    expected = "a regular expression, or a predicate on (name, module)"
    if isinstance(one, type):
        lambda_of = f"lambda name, module: isinstance(module, {one.__name__})"
        raise InvalidOptionTypeError(
            f"`{name}` is the class {one.__name__}", f"{expected}, such as {lambda_of}"
        )
    raise InvalidOptionTypeError(f"`{name}` is {one!r} ({type(one).__name__})", expected)


def nothing_in(path: object, skipped: list[dict[str, str]], unmet: Iterable[str]) -> str:
    """Return the message for a checkpoint in which nothing can be analysed."""
    lines = [f"  skipped {names}: {reason}" for reason, names in grouped(skipped)]
    if not lines:
        return f"{path} holds no tensors; expected at least one matrix."
    lines += [f"  no name matches {printable(pattern)}" for pattern in unmet]
    return "\n".join([f"Nothing in {path} could be analysed.", *lines])
