"""Figures 4 to 10 and Tables 1 and 2 of the paper, redrawn from the records of the runs.

    python benchmarks/paper/figures.py --out FOLDER

Also draws what the published baseline loses against its dead outputs. A figure whose runs are
missing is left out, and said.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rmtspec
from rmtspec.plot import plot_esd

RESULTS = Path(__file__).parent / "results"
#: Figure of the paper and its example. The paper's text has Fig. 7 for both 4.4 and 4.5.
CURVES = {"6": "4.3", "7": "4.4", "8": "4.5", "9": "4.6", "10": "4.7"}
#: Runs without any split are those of the same net.
SAME_NET = {"4.5": "4.4"}
COLOURS = {"unsplit": "#555555", "paper": "#d55e00", "edge": "#0072b2"}
NAMES = {
    "unsplit": "not split",
    "paper": "split as in the paper",
    "edge": "all of the bulk removed once",
}
Record = dict[str, Any]


class MissingRunsError(Exception):
    """A figure's runs are not among the records."""


def records(folder: Path = RESULTS, *, device: str = "cpu") -> list[Record]:
    """Return all records of runs on a device, by example, method and seed."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    found = [record for record in found if record["setup"]["device"] == device]
    if not found:
        raise MissingRunsError(f"no record of a {device} in {folder}; run the examples first")
    return found


def of(found: Iterable[Record], example: str, method: str, *, output_relu: bool) -> list[Record]:
    """Return the records of an example's method, one per seed."""
    if method == "unsplit":
        example = SAME_NET.get(example, example)
    wanted = (example, method, output_relu)
    chosen = [
        record
        for record in found
        if (record["setup"]["example"], record["setup"]["method"], record["setup"]["output_relu"])
        == wanted
    ]
    return sorted(chosen, key=lambda record: int(record["setup"]["seed"]))


def accuracy_curves(found: list[Record], example: str) -> Figure:
    """Draw test accuracy by epoch (Fig. 6 to 10), as published and with sound outputs."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    drawn = False
    for ax, relu in zip(axes, (True, False), strict=True):
        for method, colour in COLOURS.items():
            for index, record in enumerate(of(found, example, method, output_relu=relu)):
                rows = record["epochs"]
                label = NAMES[method] if index == 0 else None
                epochs = [row["epoch"] for row in rows]
                values = [row["test_accuracy"] for row in rows]
                ax.plot(epochs, values, color=colour, marker="o", ms=3, lw=1.2, label=label)
                drawn = True
        outputs = "with ReLU on the outputs, as published" if relu else "without it"
        ax.set(title=f"Example {example}, {outputs}", xlabel="epoch", ylabel="test accuracy, %")
        if ax.lines:
            ax.legend(fontsize=8, loc="lower right")
        else:
            ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center")
    if not drawn:
        plt.close(figure)
        raise MissingRunsError(f"no run of Example {example}")
    return figure


def full_length(found: list[Record]) -> Figure:
    """Draw Fig. 6 to 10 from runs of the paper's length, with its ReLU on the outputs."""
    figure, grid = plt.subplots(2, 3, figsize=(12, 6.4), sharey=True, layout="constrained")
    *axes, last = grid.flat
    for ax, example in zip(axes, CURVES.values(), strict=True):
        for method in ("unsplit", "paper"):
            for record in of(found, example, method, output_relu=True):
                values = [row["test_accuracy"] for row in record["epochs"]]
                epochs = range(1, len(values) + 1)
                ax.plot(epochs, values, color=COLOURS[method], lw=1, label=NAMES[method])
        ax.set(title=f"Example {example}", xlabel="epoch")
        ax.grid(axis="y", lw=0.3)
    labels = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    last.axis("off")
    last.legend(labels.values(), labels, loc="center")
    for ax in grid[:, 0]:
        ax.set_ylabel("test accuracy, %")
    return figure


def first_layer(found: list[Record]) -> Figure:
    """Draw Fig. 4: the spectrum of the first layer of Example 4.1 and its law."""
    record = _example_4_1(found)
    spec = rmtspec.Spectrum(record["spectrum"]["eigenvalues"], n=record["spectrum"]["n"])
    figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    plot_esd(spec, rmtspec.bema(spec), ax=ax)
    ax.set_title("Example 4.1: the first layer after training")
    return figure


def accuracy_by_rank(found: list[Record]) -> Figure:
    """Draw Fig. 5: test accuracy by the number of singular values that are kept."""
    record = _example_4_1(found)
    figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    ax.semilogx(record["ranks"], record["accuracy"], "o-", ms=3, color="#0072b2", label="split")
    ax.semilogx(
        record["ranks"], record["accuracy_with_data"], "s-", ms=3, color="#009e73",
        label="split, data-aware",
    )  # fmt: skip
    edge = record["edge"]["paper's settings"]["n_spikes"]
    ax.axvline(edge, color="#d55e00", label=f"the edge: {edge}")
    ax.set(xlabel="singular values kept", ylabel="test accuracy, %", title="Example 4.1")
    ax.legend(fontsize=8)
    return figure


def spectra(found: list[Record], *, accepted: bool) -> Figure:
    """Draw Table 1 (fit rejected) or Table 2 (accepted): the ESDs of Example 4.4, second cycle."""
    runs = of(found, "4.4", "paper", output_relu=True)
    change = next((c for r in runs for c in _changes(r) if c.get("spectra")), None)
    if change is None:
        raise MissingRunsError("no run of Example 4.4 with two cycles")
    cutoff = runs[0]["setup"]["options"]["fit_cutoff"]
    # A layer that cannot be judged has no statistic: it did not fit.
    shown = [
        row
        for row in change["matrices"]
        if (row["fit_statistic"] is not None and row["fit_statistic"] <= cutoff) is accepted
    ]
    if not shown:
        raise MissingRunsError(f"no layer was {'accepted' if accepted else 'rejected'}")
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    size = (4.2 * columns, 3.2 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for ax, row in zip(axes.flat, shown, strict=False):
        _one_spectrum(ax, row, change["spectra"][row["name"]])
    for ax in axes.flat[len(shown) :]:
        ax.remove()
    return figure


def dead_outputs(found: list[Record]) -> Figure:
    """Draw what the baseline loses against the classes it never predicts, a point per run."""
    figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    markers = dict(zip(("4.1", "4.3", "4.4", "4.6", "4.7"), "osD^v", strict=True))
    drawn = False
    for example, marker in markers.items():
        runs = of(found, example, "unsplit", output_relu=True)
        sound = of(found, example, "unsplit", output_relu=False)
        if not runs or not sound:
            continue
        for index, record in enumerate(runs):
            epochs = len(record["epochs"])
            rows = [r["epochs"][min(epochs, len(r["epochs"])) - 1] for r in sound]
            level = sum(row["test_accuracy"] for row in rows) / len(rows)
            last = record["epochs"][-1]
            lost = level - last["test_accuracy"]
            label = f"Example {example}" if index == 0 else None
            ax.plot(last["classes_never_predicted"], lost, marker, color="#0072b2", label=label)
            drawn = True
    if not drawn:
        plt.close(figure)
        raise MissingRunsError("no baseline with and without ReLU on its outputs")
    most = int(ax.get_xlim()[1] + 1)
    ax.plot([0, most], [0, 9.8 * most], color="#999999", lw=1, label="9.8 points a class")
    ax.set(
        xlabel="classes never predicted on the test images",
        ylabel="accuracy lost, points",
        title="The published baseline against the same net without ReLU on its outputs",
    )
    ax.title.set_fontsize(9)
    ax.legend(fontsize=8)
    return figure


def _example_4_1(found: list[Record]) -> Record:
    runs = [r for r in of(found, "4.1", "unsplit", output_relu=False) if "ranks" in r]
    if not runs:
        raise MissingRunsError("no run of Example 4.1")
    return runs[0]


def _changes(record: Record) -> list[dict[str, Any]]:
    return [row["change"] for row in record["epochs"] if "change" in row]


def _one_spectrum(ax: Axes, row: dict[str, Any], stored: dict[str, Any]) -> None:
    spec = rmtspec.Spectrum(stored["eigenvalues"], n=stored["n"])
    fit = rmtspec.bema(spec)
    plot_esd(spec, None if fit.reason else fit, ax=ax)
    statistic = row["fit_statistic"]
    fitted = "no fit" if statistic is None else f"statistic {statistic:.3g}"
    ax.set_title(f"{row['name']}: {fitted}, {row['action']}", fontsize=9)


DRAWN: dict[str, Callable[[list[Record]], Figure]] = {
    "figure-4": first_layer,
    "figure-5": accuracy_by_rank,
    **{
        f"figure-{number}": lambda found, example=example: accuracy_curves(found, example)
        for number, example in CURVES.items()
    },
    "table-1": lambda found: spectra(found, accepted=False),
    "table-2": lambda found: spectra(found, accepted=True),
    "dead-outputs": dead_outputs,
}


def main() -> None:
    """Draw all that can be drawn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found = records(given.results)
    for name, draw in DRAWN.items():
        try:
            figure = draw(found)
        except MissingRunsError as missing:
            print(f"{name}: left out, {missing}")
            continue
        figure.savefig(given.out / f"{name}.png", dpi=120)
        plt.close(figure)
        print(given.out / f"{name}.png")


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main()
