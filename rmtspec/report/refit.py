"""What a refit did: the loss at each step, and on batches that it did not train on."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rmtspec._files.writing import PathLike, json_text
from rmtspec._records import plain
from rmtspec._text import Readable, aligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Version of the JSON format.
SCHEMA = 1


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Refit(Readable):
    """What `refit` of an adapter did.

    Attributes
    ----------
    losses, learning_rates : list of float
        One for each step: the loss before it, and the rate of the step.
    held_out_before, held_out_after : float
        Mean loss on the batches held out; nan without any.
    trained : int
        Number of parameters trained.
    tokens : int
        Number of tokens, or samples, seen.
    seconds : float
        Of this call; of all calls together if it was resumed.
    settings, versions : dict
        The options, and the versions of the packages that the numbers depend on.
    """

    losses: list[float]
    learning_rates: list[float]
    held_out_before: float
    held_out_after: float
    trained: int
    tokens: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values, None for nan."""
        return {"schema": SCHEMA, **{name: plain(getattr(self, name)) for name in self.__slots__}}

    def to_json(self, path: PathLike | None = None) -> str:
        """Return `to_dict` as JSON; write it to `path` if given."""
        return json_text(self.to_dict(), path)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the loss against the step, on `ax` or a new figure; return the Axes."""
        from rmtspec.plot.losses import plot_losses

        return plot_losses(self.losses, self.held_out_before, self.held_out_after, ax=ax)

    def __repr__(self) -> str:
        first, last = self.losses[0], self.losses[-1]
        pairs: list[tuple[str, object]] = [
            ("steps", f"{len(self.losses):,}, {self.tokens:,} tokens in {self.seconds:.3g} s"),
            ("trained", f"{self.trained:,} parameters"),
            ("loss", f"{first:.4g} at the first step, {last:.4g} at the last"),
        ]
        if not math.isnan(self.held_out_after):
            pairs.append(("held out", f"{self.held_out_before:.4g} -> {self.held_out_after:.4g}"))
        return aligned("Refit", pairs)
