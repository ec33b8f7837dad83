"""What may be done to each matrix of a model, whatever its spectrum says."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rmtspec import _checks
from rmtspec._text import listed, nearest
from rmtspec.errors import InvalidOptionError
from rmtspec.planning.options import PlanOptions
from rmtspec.report.matrix_report import RELIABLE_FROM
from rmtspec.terms import Action

#: What such a layer is called in a reason.
HEAD = "the output head"
#: Names of layers that put out one number for each word of the vocabulary.
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)$|^output$")


def is_head(layer: str) -> bool:
    """Tell whether a layer is, by its name, the output head of a language model."""
    return _HEAD.search(layer) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What may be done to a matrix, whatever its spectrum says.

    A subclass that returns the array when called is a `Matrix`.

    Attributes
    ----------
    layer : str
        The layer it belongs to. Matrices of one layer are split at the same rank.
    kind : str
        A `rmtspec.terms.Kind`.
    shape : tuple of int
        (rows, columns).
    itemsize : int
        Bytes per entry as stored.
    reason : str
        Why it cannot be read at all; empty if it can.
    fixed : str
        Why it can be neither split nor truncated; empty if either is possible.
    unsplittable : str
        Why it can only be truncated; empty if it can be split.
    on_request : str
        Why it is left alone unless the user names it; empty if it is not.
    named : bool
        Whether the user named it with `include`.
    aliases : tuple of str
        Other names that `ranks` and plans may use for it.
    kernel : tuple of int
        Height and width of a kernel that can become two, along one axis each; else empty.
    present_rank : int
        The rank at which it is split already, so that it is the product of two factors; 0 if it is
        not split. Its rank can only be lowered.
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
    kernel: tuple[int, ...] = ()
    present_rank: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """All names that `include`, `exclude` and `ranks` may use, besides its own."""
        return (self.layer, *self.aliases)

    def refusal(self, action: str) -> str:
        """Return why an action is not possible, or "" if it is."""
        return self.reason or self.fixed or (self.unsplittable if action == Action.SPLIT else "")

    def held(self, action: str) -> str:
        """Return why it stays as it is, whatever its size and spectrum, or "" if these decide."""
        return self.refusal(action) or ("" if self.named else self.on_request)


def given_ranks(
    options: PlanOptions, targets: Mapping[str, Target], skipped: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Return the ranks given, checked, by matrix; a layer's name stands for all its matrices.

    `skipped` tells why matrices could not be analysed, by name.
    """
    ranks: dict[str, int] = {}
    for key, rank in (options.ranks or {}).items():
        names = [name for name, t in targets.items() if key in (name, *t.names)]
        if not names:
            raise InvalidOptionError(
                f"`ranks` names {key!r}, which is not among the {len(targets)} chosen matrices."
                f"{nearest(key, targets) or f' They are {listed(targets, most=5)}.'}"
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
            most = target.present_rank or min(target.shape)
            ranks[name] = _checks.integer(rank, f"ranks[{key!r}]", 1, most)
    return ranks


def settled(options: PlanOptions, targets: Mapping[str, Target]) -> frozenset[str]:
    """Return the names of the matrices whose noise decides nothing about them.

    They are kept whatever it is, or `ranks` names them. If the user chose the noise model, none.
    """
    given = given_ranks(options, targets)
    if "noise" in options.more:
        return frozenset()
    return frozenset(
        name
        for name, target in targets.items()
        if name in given
        or target.held(options.mode)
        or (min(target.shape) < RELIABLE_FROM and not target.named)
    )
