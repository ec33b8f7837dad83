"""What may be done to each matrix of a model, whatever its spectrum says."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rmtspec import _checks
from rmtspec.errors import InvalidOptionError
from rmtspec.planning.options import PlanOptions
from rmtspec.terms import Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What may be done to a matrix, whatever its spectrum says.

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
    unread : str
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
    unread: str = ""
    fixed: str = ""
    unsplittable: str = ""
    on_request: str = ""
    named: bool = False
    aliases: tuple[str, ...] = ()

    def refusal(self, action: str) -> str:
        """Return why an action is not possible, or ""."""
        return self.unread or self.fixed or (self.unsplittable if action == Action.SPLIT else "")

    def is_called(self, name: str) -> bool:
        """Tell whether a name stands for the matrix, beside its own."""
        return name == self.layer or name in self.aliases


def nearest(name: object, known: Iterable[str]) -> str:
    """Return a hint that names what comes close to a name that is not known, or ""."""
    near = difflib.get_close_matches(str(name), list(known), n=3)
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
        names = [name for name, t in targets.items() if key == name or t.is_called(key)]
        if not names:
            raise InvalidOptionError(
                f"`ranks` names {key!r}, which is no matrix among the {len(targets)} chosen."
                f"{nearest(key, targets)}"
            )
        for name in names:
            target = targets[name]
            unread = target.unread or (skipped or {}).get(name, "")
            if unread:
                raise InvalidOptionError(f"`ranks` names {key!r}, which was skipped: {unread}.")
            refusal = target.refusal(options.mode)
            if refusal:
                raise InvalidOptionError(
                    f"`ranks` names {name!r}, which stays as it is: {refusal}."
                )
            found[name] = _checks.integer(rank, f"ranks[{key!r}]", 1, min(target.shape))
    return found
