"""The records of the runs as tables.

    python benchmarks/paper/summary.py

One row per example, outputs and method, with means over the seeds. First the runs on the CPU, of
few epochs, then those of full length on a GPU.
"""

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from comparison import changed, worst_fall
from figures import (
    CURVES,
    NAMES,
    RESULTS,
    SAME_NET,
    MissingRunsError,
    Record,
    of,
    records,
)

EXAMPLES = ("4.1", *CURVES.values())


def example_rows(found: list[Record], example: str, *, output_relu: bool) -> list[dict[str, Any]]:
    """Return a row for each method that was run, with means over its seeds."""
    rows = []
    for method, name in NAMES.items():
        runs = of(found, example, method, output_relu=output_relu)
        if runs:
            rows.append({"training": name, **_means(runs)})
    return rows


def seed_rows(found: list[Record], example: str) -> list[dict[str, Any]]:
    """Return a row for each published baseline: what it loses, and how many outputs are dead."""
    sound = of(found, example, "unsplit", output_relu=False)
    rows = []
    for record in of(found, example, "unsplit", output_relu=True):
        last = record["epochs"][-1]
        level = [
            run["epochs"][min(last["epoch"], len(run["epochs"])) - 1]["test_accuracy"]
            for run in sound
        ]
        rows.append(
            {
                "example": example,
                "seed": record["setup"]["seed"],
                "epochs": last["epoch"],
                "test accuracy, %": round(last["test_accuracy"], 2),
                "points lost": round(statistics.mean(level) - last["test_accuracy"], 1)
                if level
                else None,
                "dead outputs, each epoch": _listed(record, "dead_outputs"),
                "classes never predicted, each epoch": _listed(record, "classes_never_predicted"),
            }
        )
    return rows


def revived_rows(found: list[Record], example: str) -> list[dict[str, Any]]:
    """Return for each run of the published algorithm how its lost classes and accuracy went."""
    rows = []
    for record in of(found, example, "paper", output_relu=True):
        epochs = record["epochs"]
        rows.append(
            {
                "example": example,
                "seed": record["setup"]["seed"],
                "test accuracy, each epoch, %": " ".join(
                    f"{row['test_accuracy']:.1f}" for row in epochs
                ),
                "classes never predicted": _listed(record, "classes_never_predicted"),
                "split after epoch": " ".join(str(row["epoch"]) for row in epochs if changed(row)),
            }
        )
    return rows


def paired(found: list[Record], example: str, method: str, *, output_relu: bool) -> dict[str, Any]:
    """Return how a method does against the unsplit net of the same seeds and epochs."""
    unsplit = {
        run["setup"]["seed"]: run for run in of(found, example, "unsplit", output_relu=output_relu)
    }
    pairs = [
        (run, unsplit[run["setup"]["seed"]])
        for run in of(found, example, method, output_relu=output_relu)
        if run["setup"]["seed"] in unsplit
    ]
    at = [
        (cut, dense["epochs"][len(cut["epochs"]) - 1])
        for cut, dense in pairs
        if len(dense["epochs"]) >= len(cut["epochs"])
    ]
    if not at:
        return {}
    gains = [cut["test_accuracy"] - row["test_accuracy"] for cut, row in at]
    dense_seconds = [
        sum(r["seconds"] for r in dense["epochs"][: len(cut["epochs"])]) for cut, dense in pairs
    ]
    return {
        "example": example,
        "seeds": len(at),
        "epochs": len(at[0][0]["epochs"]),
        "times fewer parameters": round(
            statistics.mean(row["parameters"] / cut["parameters"] for cut, row in at), 1
        ),
        "test accuracy, points more": round(statistics.mean(gains), 2),
        "by seed": ", ".join(f"{gain:+.2f}" for gain in gains),
        "worst fall after the split": round(max(worst_fall(cut) for cut, _ in at), 2),
        "share of the time": round(sum(cut["seconds"] for cut, _ in at) / sum(dense_seconds), 2),
    }


def full_length_rows(found: list[Record], *, output_relu: bool) -> list[dict[str, Any]]:
    """Return a row for each example and method: what every seed comes to after the last epoch."""
    rows = []
    for example in CURVES.values():
        for method, name in NAMES.items():
            runs = of(found, example, method, output_relu=output_relu)
            if not runs or (method == "unsplit" and example in SAME_NET):
                continue
            lost = [[row["classes_never_predicted"] for row in run["epochs"]] for run in runs]
            rows.append(
                {
                    "example": example,
                    "training": name,
                    "seeds": " ".join(str(run["setup"]["seed"]) for run in runs),
                    "epochs": " ".join(sorted({str(len(run["epochs"])) for run in runs})),
                    "test accuracy, %": " ".join(f"{run['test_accuracy']:.1f}" for run in runs),
                    "train accuracy, %": " ".join(f"{run['train_accuracy']:.1f}" for run in runs),
                    "classes lost, first to last epoch": ", ".join(
                        f"{each[0]} to {each[-1]}" for each in lost
                    ),
                    "parameters": " ".join(
                        f"{count:,}" for count in dict.fromkeys(r["paper_parameters"] for r in runs)
                    ),
                    "epochs with a split": _split_epochs(runs),
                }
            )
    return rows


def unfinished_rows(found: list[Record]) -> list[dict[str, Any]]:
    """Return a row for each run that did not reach its last epoch."""
    return [
        {
            "example": record["setup"]["example"],
            "outputs": "ReLU" if record["setup"]["output_relu"] else "linear",
            "training": NAMES[record["setup"]["method"]],
            "seed": record["setup"]["seed"],
            "epochs": f"{len(record['epochs'])} of {record['setup']['epochs']}",
            "test accuracy, %": round(record["test_accuracy"], 1),
            "classes lost": record["epochs"][-1]["classes_never_predicted"],
        }
        for record in found
    ]


def _split_epochs(runs: list[Record]) -> str:
    epochs = sorted({row["epoch"] for run in runs for row in run["epochs"] if changed(row)})
    return " ".join(map(str, epochs))


def _means(runs: list[Record]) -> dict[str, Any]:
    epochs = sorted({len(run["epochs"]) for run in runs})
    return {
        "seeds": len(runs),
        "epochs": "-".join(map(str, {epochs[0]: 0, epochs[-1]: 0})),
        "layers (first seed)": str(runs[0]["dims"]),
        "parameters": f"{statistics.mean(run['parameters'] for run in runs):,.0f}",
        "test accuracy, %": _mean_and_span(run["test_accuracy"] for run in runs),
        "peak, %": _mean_and_span(run["peak_test_accuracy"] for run in runs),
        "train accuracy, %": _mean_and_span(run["train_accuracy"] for run in runs),
        "seconds": round(statistics.mean(run["seconds"] for run in runs)),
    }


def _mean_and_span(values: Iterable[float]) -> str:
    listed = list(values)
    mean = f"{statistics.mean(listed):.2f}"
    return mean if len(listed) == 1 else f"{mean} ({min(listed):.2f} to {max(listed):.2f})"


def _listed(record: Record, key: str) -> str:
    return " ".join(str(row[key]) for row in record["epochs"])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    folder = parser.parse_args().results
    found = records(folder)
    for example in EXAMPLES:
        for relu in (True, False):
            for row in example_rows(found, example, output_relu=relu):
                print(example, "ReLU on outputs" if relu else "linear outputs", row)
        for method in ("paper", "edge"):
            for relu in (True, False):
                compared = paired(found, example, method, output_relu=relu)
                if compared:
                    print(method, "ReLU on outputs" if relu else "linear outputs", compared)
        for row in seed_rows(found, example):
            print(row)
    _print_full_length(folder)


def _print_full_length(folder: Path) -> None:
    try:
        full = records(folder, device="cuda")
    except MissingRunsError as missing:
        print(missing)
        return
    print(f"{len(full)} runs of full length on a GPU")
    for relu in (True, False):
        for row in full_length_rows(full, output_relu=relu):
            print("ReLU on outputs" if relu else "linear outputs", row)
    for number in ("4.3", "4.4", "4.6", "4.7"):
        print(paired(full, number, "edge", output_relu=False))


if __name__ == "__main__":
    main()
