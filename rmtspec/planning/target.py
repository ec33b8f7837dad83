"""What may be done to each matrix of a model, whatever its spectrum says."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rmtspec import _checks
from rmtspec.errors import InvalidOptionError
from rmtspec.planning.options import PlanOptions
from rmtspec.terms import Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What may be done to a matrix, whatever its spectrum says.

    A subclass that returns the array when called is a `Matrix`, all that a model's weight needs.

    Attributes
    ----------
    layer : str
        The layer it belongs to. Matrices of one layer that are split get one rank.
    kind : str
        A `rmtspec.terms.Kind`.
    shape : tuple of int
        (rows, columns).
    itemsize : int
        Bytes of an entry as stored.
    reason : str
        Why it cannot be read at all; empty where it can.
    fixed : str
        Why it can neither be split nor truncated; empty where one is possible.
    unsplittable : str
        Why it can only be truncated; empty where it can be split.
    on_request : str
        Why it is left alone unless the user names it; empty where it is not.
    named : bool
        Whether the user named it (`include`).
    aliases : tuple of str
        Other names that `ranks` and plans may use for it.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    itemsize: int
    reason: str = ""
    fixed: str = ""
    unsplittable: str = ""
    on_request: str = ""
    named: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names that `include`, `exclude` and `ranks` may use, beside its own."""
        return (self.layer, *self.aliases)

    def refusal(self, action: str) -> str:
        """Return why an action is not possible, or ""."""
        return self.reason or self.fixed or (self.unsplittable if action == Action.SPLIT else "")


def nearest(name: object, known: Iterable[str], meant: Sequence[str] = ()) -> str:
    """Return a hint that names what may be meant, or comes close to a name, or ""."""
    near = meant or difflib.get_close_matches(str(name), list(known), n=3)
    return f" Did you mean {', '.join(map(repr, near))}?" if near else ""


def given_ranks(
    options: PlanOptions, targets: Mapping[str, Target], skipped: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Return `ranks` by name of the matrix (a layer's name stands for all its matrices), checked.

    Parameters
    ----------
    options : PlanOptions
    targets : mapping of str to Target
    skipped : mapping of str to str, optional
        Why matrices could not be analysed, by name.

    Raises
    ------
    InvalidValueError
        A name that is not known, or a rank that is not possible.
    """
    found: dict[str, int] = {}
    for key, rank in (options.ranks or {}).items():
        names = [name for name, t in targets.items() if key in (name, *t.names)]
        if not names:
            raise InvalidOptionError(
                f"`ranks` names {key!r}, which is no matrix among the {len(targets)} chosen."
                f"{nearest(key, targets)}"
            )
        for name in names:
            target = targets[name]
            unread = target.reason or (skipped or {}).get(name, "")
            if unread:
                raise InvalidOptionError(f"`ranks` names {key!r}, which was skipped: {unread}.")
            refusal = target.refusal(options.mode)
            if refusal:
                raise InvalidOptionError(
                    f"`ranks` names {name!r}, which stays as it is: {refusal}."
                )
            found[name] = _checks.integer(rank, f"ranks[{key!r}]", 1, min(target.shape))
    return found
