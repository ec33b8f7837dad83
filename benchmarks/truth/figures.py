"""Figures of the noise pages, drawn from the records alone.

    python benchmarks/truth/figures.py --out FOLDER [--dark]

The spectra need ``spectra.json``, the levels ``level.json``, the power ``power.json``.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
#: Colours on a light and on a dark page; the lines also differ in dashes and markers.
LIGHT = {
    "page": "#ffffff", "text": "#222222", "grid": "#dddddd", "bars": "#a9bfd3",
    "flips": "#cc3311", "edge": "#555555", "components": "#7a2a63",
    "equalized": "#0077bb", "signflip": "#cc3311", "auto": "#222222", "mp": "#7a7a7a",
}  # fmt: skip
DARK = {
    "page": "#121212", "text": "#e4e4e4", "grid": "#3a3a3a", "bars": "#5d7d9a",
    "flips": "#ff8a5c", "edge": "#b0b0b0", "components": "#f0a0d8",
    "equalized": "#58b4ef", "signflip": "#ff8a5c", "auto": "#ffffff", "mp": "#9a9a9a",
}  # fmt: skip
MARKERS = {"mp": "x:", "equalized": "s--", "signflip": "^-.", "auto": "o-"}
Row = dict[str, Any]
Colours = Mapping[str, str]


def rows(part: str, folder: Path = RESULTS) -> list[Row]:
    """Return the rows of a record."""
    found: list[Row] = json.loads((folder / f"{part}.json").read_text("utf-8"))["rows"]
    return found


def spectra(found: Iterable[Row], colours: Colours = LIGHT, columns: int = 2) -> Figure:
    """Draw spectra of real layers, each with that of its own sign flips over it."""
    shown = list(found)
    lines = -(-len(shown) // columns)
    size = (4.0 * columns, 2.7 * lines + 0.5)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for ax, row in zip(axes.flat, shown, strict=False):
        one_spectrum(ax, row, colours)
    for ax in axes.flat[len(shown) :]:
        ax.remove()
    for ax in axes.flat[: len(shown)][-columns:]:
        ax.set_xlabel("singular value / √n, equalized")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    place = {"loc": "outside upper center", "ncols": 3, "frameon": False}
    figure.legend(handles, labels, labelcolor=colours["text"], fontsize=10, **place)
    return _painted(figure, colours)


def one_spectrum(ax: Axes, row: Row, colours: Colours = LIGHT) -> None:
    """Draw the singular values of an equalized layer, in units of sqrt(n), and those of its flips.

    The bars and the line count singular values in the same intervals.
    """
    values, flips = (np.sqrt(row[name]) for name in ("eigenvalues", "flips"))
    edge = float(np.sqrt(row["threshold"]))
    end = 1.45 * edge
    bins = np.linspace(0.0, end, int(np.clip(1.6 * np.sqrt(row["p"]), 14, 40)) + 1)
    ax.hist(values, bins, color=colours["bars"], label="the layer")
    heights = np.histogram(flips, bins)[0]
    ax.stairs(heights, bins, color=colours["flips"], lw=1.8, label="its sign flips")
    ax.axvline(edge, color=colours["edge"], ls="--", lw=1.2, label="threshold")
    beyond = int(np.sum(values > end))
    if beyond:
        said = f"{beyond} more, up to {values[-1]:.2g} →"
        ax.text(0.99, 0.98, said, transform=ax.transAxes, ha="right", va="top",
                fontsize=9, color=colours["components"],
                bbox={"facecolor": colours["page"], "edgecolor": "none", "pad": 1})  # fmt: skip
    noun = "component" if row["components"] == 1 else "components"
    words = f"{row['components']} {noun} of {row['p']}; {row['verdict']}, KS {row['ks']:.3f}"
    ax.set_title(f"{row['model']} {row['layer']}\n{words}", fontsize=9.5, loc="left",
                 color=colours["text"])  # fmt: skip
    ax.set_ylim(0.0, 1.16 * ax.get_ylim()[1])
    ax.set_xlim(0.0, end)


def levels(found: Iterable[Row], colours: Colours = LIGHT) -> Figure:
    """Draw the share of false alarms on 300 x 200 noise by kind, for each model, at .1."""
    shown = [row for row in found if (row["n"], row["p"]) == (300, 200)]
    names = [row["kind"] for row in shown]
    figure, ax = plt.subplots(figsize=(7.0, 4.2), layout="constrained")
    places = np.arange(len(shown))[::-1]
    for model, style in MARKERS.items():
        shares = [row[f"{model} 0.1"] for row in shown]
        ax.plot(shares, places, style[0], ms=7, color=colours[model], label=f'"{model}"')
    ax.axvline(0.1, color=colours["edge"], ls="--", lw=1.2, label="asked for")
    ax.set_yticks(places, names)
    ax.set(xlabel="share of draws of pure noise with a component", xlim=(-0.03, 1.03))
    place: Row = {"loc": "outside upper center", "ncols": 5, "frameon": False, "fontsize": 9}
    figure.legend(labelcolor=colours["text"], handletextpad=0.2, columnspacing=1.2, **place)
    return _painted(figure, colours)


def power(found: Iterable[Row], colours: Colours = LIGHT) -> Figure:
    """Draw the share of exact counts by strength, for each kind of noise, at .1."""
    every = [row for row in found if row["signal"].startswith("five at ")]
    kinds = list(dict.fromkeys(row["kind"] for row in every))
    figure, axes = plt.subplots(
        2, 2, figsize=(7.4, 5.6), sharex=True, sharey=True, layout="constrained"
    )
    for ax, kind in zip(axes.flat, kinds, strict=False):
        shown = sorted((_strength(row), row) for row in every if row["kind"] == kind)
        for model, style in MARKERS.items():
            shares = [row[f"{model} 0.1"]["exact"] for _, row in shown]
            strengths = [strength for strength, _ in shown]
            ax.plot(strengths, shares, style, ms=5, color=colours[model], label=f'"{model}"')
        ax.set_title(kind, fontsize=10)
    for ax in axes[1]:
        ax.set_xlabel("strength / detection limit")
    for ax in axes[:, 0]:
        ax.set_ylabel("share of exact counts")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    place = {"loc": "outside upper center", "ncols": 4, "frameon": False}
    figure.legend(handles, labels, labelcolor=colours["text"], **place)
    return _painted(figure, colours)


def _strength(row: Row) -> float:
    return float(row["signal"].removeprefix("five at "))


def _painted(figure: Figure, colours: Colours) -> Figure:
    """Give a figure the colours of its page."""
    figure.set_facecolor(colours["page"])
    for ax in figure.axes:
        ax.set_facecolor(colours["page"])
        ax.tick_params(colors=colours["text"], labelsize=9)
        for words in (ax.title, ax.xaxis.label, ax.yaxis.label):
            words.set_color(colours["text"])
        for side, spine in ax.spines.items():
            spine.set_color(colours["grid"])
            spine.set_visible(side in ("left", "bottom"))
    return figure


def two_layers(found: Iterable[Row], colours: Colours = LIGHT) -> Figure:
    """Draw a layer whose bulk is noise beside one whose bulk is not."""
    wanted = (("MNIST MLP", "0"), ("MiniLM", "2 q"))
    by_name = {(row["model"], row["layer"]): row for row in found}
    return spectra([by_name[name] for name in wanted], colours)


DRAWN: dict[str, tuple[str, Callable[..., Figure]]] = {
    "spectra": ("spectra", spectra), "two-layers": ("spectra", two_layers),
    "levels": ("level", levels), "power": ("power", power),
}  # fmt: skip


def main() -> None:
    """Draw what the records allow."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dark", action="store_true", help="for a dark page")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name, (part, draw) in DRAWN.items():
        if not (given.results / f"{part}.json").is_file():
            print(f"{name}: left out, no {part}.json in {given.results}")
            continue
        figure = draw(rows(part, given.results), DARK if given.dark else LIGHT)
        for suffix in (".png", ".svg"):
            file = given.out / f"{name}{'-dark' if given.dark else ''}{suffix}"
            figure.savefig(file, dpi=120, metadata={"Date": None} if suffix == ".svg" else None)
        plt.close(figure)
        print(file)


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main()
