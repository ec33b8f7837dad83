"""Which matrices a user means: `include` and `exclude`, patterns on names or predicates."""

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
    """What can be chosen: it tells the names by which it is known beside its own."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names that patterns may meet."""


M = TypeVar("M", bound=Named)


class Chosen(NamedTuple, Generic[M]):
    """What a selection leaves of the matrices of a model.

    Attributes
    ----------
    matrices : dict
        The chosen ones by name.
    left_out : list of dict
        "name" and "reason" of the others.
    named : set of str
        Names of matrices that `include` asks for.
    """

    matrices: dict[str, M]
    left_out: list[dict[str, str]]
    named: set[str]


class Selection:
    """Names that pass `include` and do not meet `exclude`; remembers which patterns met nothing.

    Parameters
    ----------
    include, exclude : str, compiled pattern, predicate, several of these, or None
        A regular expression found anywhere in the name (`re.search`), or a callable of
        (name, object) that returns a truth value. No `include` admits all.
    """

    def __init__(self, include: Pattern | None = None, exclude: Pattern | None = None) -> None:
        self._include = _tests(include, "include")
        self._exclude = _tests(exclude, "exclude")
        self._met: set[int] = set()

    def refusal(self, names: Iterable[str], value: Any = None) -> str:
        """Return why the object known under `names` is left out, or "" where it is not."""
        listed = list(names)
        # Every pattern is asked, so that one which another made superfluous still counts as met.
        included = self._include is None or self._any(self._include, listed, value)
        excluded = self._exclude is not None and self._any(self._exclude, listed, value)
        if not included:
            return Why.NOT_INCLUDED.words()
        return Why.EXCLUDED.words() if excluded else ""

    def named(self, names: Iterable[str], value: Any = None) -> bool:
        """Tell whether `include` was given and names the object: the user asked for it."""
        return self._include is not None and self._any(self._include, list(names), value)

    def choose(
        self,
        matrices: Mapping[str, M],
        owner_of: Callable[[M], Any] | None = None,
        leave: Callable[[M], str] | None = None,
    ) -> "Chosen[M]":
        """Return the matrices that pass, and why the others are left out.

        Predicates are given the matrix, or what `owner_of` returns for it. `leave` may tell of a
        matrix that passes why it is left out all the same.
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
        """The patterns that have met no name so far, as the user wrote them."""
        listed = [*(self._include or []), *(self._exclude or [])]
        return [shown for shown, test in listed if id(test) not in self._met]

    def _any(self, tests: list[tuple[str, Predicate]], names: list[str], value: Any) -> bool:
        found = False
        for _, test in tests:
            if any(test(name, value) for name in names):
                self._met.add(id(test))
                found = True
        return found


def _tests(given: Pattern | None, name: str) -> list[tuple[str, Predicate]] | None:
    """Return (how to show it, predicate) of each pattern; None where none was given."""
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
                f"`{name}` {one!r} is no regular expression: {error}.",
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
            f"`{name}` is the class {one.__name__}", f"{expected}, as {lambda_of}"
        )
    raise InvalidOptionTypeError(f"`{name}` is {one!r} ({type(one).__name__})", expected)


def nothing_in(path: object, skipped: list[dict[str, str]], unmet: Iterable[str]) -> str:
    """Return the message for a checkpoint in which nothing can be analysed.

    `unmet` are the patterns that met no name.
    """
    lines = [f"  skipped {names}: {reason}" for reason, names in grouped(skipped)]
    if not lines:
        return f"{path} holds no tensors; expected at least one matrix."
    lines += [f"  no name meets {printable(pattern)}" for pattern in unmet]
    return "\n".join([f"Nothing in {path} could be analysed.", *lines])
