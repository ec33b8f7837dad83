"""Far rows: what to do with tokens whose input, or gradient, is many times the usual size.

python clipping.py FOLDER [first word of the trials]
"""

import sys
import time
from pathlib import Path
from typing import Any

import cuts
import subject
import torch

TOKENS = 32 * subject.LENGTH


class Moments:
    """Input moments under a rule for far rows, from what ``moments.py`` kept."""

    def __init__(self, folder: Path) -> None:
        self.inputs: dict[str, Any] = torch.load(folder / "inputs.pt")
        self.gradients: dict[str, Any] = torch.load(folder / "gradients.pt")
        self.firsts: dict[str, torch.Tensor] = torch.load(folder / "firsts.pt")

    def scaled(self, name: str, scale: torch.Tensor) -> torch.Tensor:
        """Near rows as they are, far rows times ``scale``."""
        at = self.inputs[name]
        rows = (at["far"] * scale[:, None]).double()
        return (at["near"] + rows.T @ rows) / TOKENS

    def ratios(self, name: str, median: str = "sequence") -> torch.Tensor:
        """Norms of the far rows, in medians."""
        at = self.inputs[name]
        norm, where = at["norm"], at["where"]
        own = norm.median(1).values[where[:, 0]] if median == "sequence" else norm.median()
        return norm[where[:, 0], where[:, 1]] / own

    def clip(self, threshold: float, target: float, median: str = "sequence") -> Any:
        """Rows beyond ``threshold`` medians brought to ``target`` medians."""

        def moment(layer: str) -> torch.Tensor:
            name = subject.input_of(layer)
            ratio = self.ratios(name, median)
            return self.scaled(name, torch.where(ratio > threshold, target / ratio, 1.0))

        return moment

    def first_weighted(self, moment: Any, weight: Any = None) -> Any:
        """The moment with the first rows times ``weight``.

        By default the mean square of the gradients there over that of the others.
        """

        def weighted(layer: str) -> torch.Tensor:
            square = self.gradients[layer]["square"]
            ratio = float(square[:, 0].mean() / square[:, 1:].mean()) if weight is None else weight
            rows = self.firsts[subject.input_of(layer)].double()
            return moment(layer) + (ratio - 1) * (rows.T @ rows) / TOKENS

        return weighted

    def diagonal(self, sequences: int = 16, key: str = "D") -> Any:
        return lambda layer: (
            self.gradients[layer][key][:sequences].sum(0) / (sequences * subject.LENGTH)
        )

    def smoothed(self, power: float) -> Any:
        """D to a power, its mean kept."""

        def weight(layer: str) -> torch.Tensor:
            own = self.diagonal()(layer).double()
            return own**power * own.mean() / (own**power).mean()

        return weight

    def best_moment(self) -> Any:
        return self.clip(1e9, 1)

    def best_weight(self) -> Any:
        return self.diagonal()

    def full(self, layer: str) -> torch.Tensor:
        return self.gradients[layer]["G"] / (16 * subject.LENGTH)


def describe(moments: Moments) -> list[dict[str, Any]]:
    """How many rows are far, how far, and how large their gradients are."""
    rows = []
    for name, at in moments.inputs.items():
        ratio, where = moments.ratios(name), at["where"]
        norm = at["norm"]
        energy = norm.square().sum()
        row: dict[str, Any] = {"input": name}
        for t in (3, 10, 30, 100):
            far = ratio > t
            row[f"share > {t}"] = round(float(far.sum()) / TOKENS, 6)
            row[f"energy > {t}"] = round(
                float(norm[where[far, 0], where[far, 1]].square().sum() / energy), 4
            )
        row["largest"] = round(float(ratio.max()), 1) if len(ratio) else 0.0
        row["first, in medians"] = round(float((norm[:, 0] / norm.median(1).values).mean()), 1)
        layers = [k for k in moments.gradients if subject.input_of(k) == name]
        for layer in layers:
            square = moments.gradients[layer]["square"]
            inside = where[(ratio > 10) & (where[:, 0] < len(square))]
            if len(inside):
                of_far = square[inside[:, 0], inside[:, 1]].mean()
                row[f"|g|^2 of far {layer.split('.')[2]}"] = float(of_far / square.mean())
            row[f"|g|^2 first {layer.split('.')[2]}"] = float(square[:, 0].mean() / square.mean())
        rows.append(row)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    folder, stage = Path(sys.argv[1]), sys.argv[2]
    model, _ = subject.load()
    trial = cuts.Trial(model, torch.load(folder / "ids.pt"))
    m = Moments(folder)
    if stage == "describe":
        subject.record("far_rows", describe(m))
        return
    plans = {
        "first": [
            ("none", m.clip(1e9, 1), m.diagonal()),
            ("clip > 10 to 1", m.clip(10, 1), m.diagonal()),
            ("clip > 3 to 3", m.clip(3, 3), m.diagonal()),
            ("clip > 2 to 2", m.clip(2, 2), m.diagonal()),
            ("clip > 2 to 1", m.clip(2, 1), m.diagonal()),
            ("drop > 10", m.clip(10, 0), m.diagonal()),
            ("clip > 10 to 10", m.clip(10, 10), m.diagonal()),
        ],
        "second": [
            ("none", m.clip(1e9, 1), m.diagonal()),
            ("none, D without the first", m.clip(1e9, 1), m.diagonal(16, "D without the first")),
            (
                "none, first rows weighed by their gradients, D without the first",
                m.first_weighted(m.clip(1e9, 1)),
                m.diagonal(16, "D without the first"),
            ),
            (
                "clip > 10 to 1, D without the first",
                m.clip(10, 1),
                m.diagonal(16, "D without the first"),
            ),
            (
                "first rows dropped, D without the first",
                m.first_weighted(m.clip(1e9, 1), 0.0),
                m.diagonal(16, "D without the first"),
            ),
            ("clip > 10 to 1, D clipped at 3", m.clip(10, 1), m.diagonal(16, "D clipped at 3")),
            ("none, ridge 1e-6", m.clip(1e9, 1), m.diagonal(), 1e-6),
        ],
        "third": [
            ("full G", m.clip(1e9, 1), m.full),
            ("clip > 10 to 1", m.clip(10, 1), m.diagonal()),
            ("clip > 10 to 10", m.clip(10, 10), m.diagonal()),
            ("clip > 3 to 1", m.clip(3, 1), m.diagonal()),
            ("D of 4 sequences", m.clip(1e9, 1), m.diagonal(4)),
            ("D of 8 sequences", m.clip(1e9, 1), m.diagonal(8)),
            ("D to the power .5", m.clip(1e9, 1), m.smoothed(0.5)),
            ("D to the power .75", m.clip(1e9, 1), m.smoothed(0.75)),
        ],
    }
    for what, moment, weight, *ridge in plans[stage]:
        start = time.time()
        factors = trial.factors(moment, weight, *ridge)
        print(f"{time.time() - start:.0f} s of decompositions")
        torch.save({k: f.tail for k, f in factors.items()}, folder / f"tails {what}.pt")
        trial.run(what, factors)
        if what in ("none", "full G"):
            trial.run(what + ", pivoted", factors, pivoted=True)
        del factors
        subject.record(f"clipping_{stage}", trial.rows, gradients="16 sequences, diagonal")


if __name__ == "__main__":
    main()
