"""Tables of the noise pages, computed from the records."""

from pathlib import Path
from typing import Any

import pandas as pd
from figures import RESULTS, rows

MODELS = ("mp", "equalized", "signflip", "auto")


def levels(folder: Path = RESULTS) -> pd.DataFrame:
    """Return the share of false alarms on 300 x 200 noise, by kind, model and level."""
    shown = [row for row in rows("level", folder) if (row["n"], row["p"]) == (300, 200)]
    return pd.DataFrame(
        {
            "noise": row["kind"],
            **{f"{m}, {b}": row[f"{m} {b}"] for b in (0.1, 0.01) for m in MODELS},
        }
        for row in shown
    )


def levels_by_size(model: str, folder: Path = RESULTS) -> pd.DataFrame:
    """Return the share of false alarms of one model at .1, by kind and size."""
    found = rows("level", folder)
    sizes = sorted({(row["n"] * row["p"], row["n"], row["p"]) for row in found})
    kinds = list(dict.fromkeys(row["kind"] for row in found))
    shares = {(row["kind"], row["n"], row["p"]): row[f"{model} 0.1"] for row in found}
    return pd.DataFrame(
        {"noise": kind, **{f"{n} x {p}": shares[kind, n, p] for _, n, p in sizes}} for kind in kinds
    )


def screened(folder: Path = RESULTS) -> pd.DataFrame:
    """Return, on 300 x 200 noise, what the acceptance of the fit and the screen let through."""
    shown = [row for row in rows("level", folder) if (row["n"], row["p"]) == (300, 200)]
    return pd.DataFrame(
        {
            "noise": row["kind"], "any component": row["mp 0.1"],
            "fit accepted": row["mp accepted"], "both": row["mp 0.1 and accepted"],
            "marked": row["mp screened"],
            "component, not marked": row["mp 0.1 and not screened"],
        }
        for row in shown
    )  # fmt: skip


def flips(folder: Path = RESULTS) -> pd.DataFrame:
    """Return how often the tests reject the bulk of pure noise, and the verdict "noise-like"."""
    return pd.DataFrame(
        {
            "noise": row["kind"], "law rejected": row["law rejected"],
            "flip test rejects": row["flip test rejects"],
            "auto: noise-like bulk": row["verdict"].get("noise-like bulk", 0) / row["draws"],
        }
        for row in rows("flips", folder)
    )  # fmt: skip


def power(folder: Path = RESULTS, signal: str = "five at 2") -> pd.DataFrame:
    """Return the share of exact counts by kind of noise, model and level, for one signal."""
    return pd.DataFrame(
        {
            "noise": row["kind"],
            **{f"{m}, {b}": row[f"{m} {b}"]["exact"] for b in (0.1, 0.01) for m in MODELS},
        }
        for row in rows("power", folder)
        if row["signal"] == signal
    )


def correlated(folder: Path = RESULTS) -> pd.DataFrame:
    """Return what "auto" counts in noise that is correlated along its rows."""
    return pd.DataFrame(
        {
            "correlation of neighbours": row["correlation"], "least": row["least"],
            "median": row["median"], "most": row["most"],
            "no noise-like bulk": row["verdict"].get("no noise-like bulk", 0) / row["draws"],
        }
        for row in rows("correlated", folder)
    )  # fmt: skip


def cost(folder: Path = RESULTS) -> pd.DataFrame:
    """Return the cost of counting in units of eigvalsh of the Gram matrix."""
    return pd.DataFrame(
        {
            "matrix": f"{row['n']} x {row['p']}", "noise": row["kind"],
            "components": row["components"],
            "eigvalsh, ms": 1e3 * row["eigvalsh seconds"],
            **{name: row[f"{name} / eigvalsh"] for name in (*MODELS, "flip test")},
        }
        for row in rows("cost", folder)
    )  # fmt: skip


def layers(folder: Path = RESULTS, *, shown: bool = True) -> pd.DataFrame:
    """Return the layers of the figures, or all."""
    names = {(row["model"], row["layer"]) for row in rows("spectra", folder)}
    return pd.DataFrame(
        _layer(row)
        for row in rows("layers", folder)
        if not shown or (row["model"], row["layer"]) in names
    )


def _layer(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": row["model"], "layer": row["layer"],
        "shape": f"{row['rows']} x {row['columns']}",
        "MP": _whole(row["mp 0.1"]), "MP fit": "accepted" if _accepted(row) else "rejected",
        "equalized": _pair(row, "equalized"), "auto": _pair(row, "auto"),
        "share": row["share"], "KS": row["ks"], "verdict": row["verdict"],
    }  # fmt: skip


def _accepted(row: dict[str, Any]) -> bool:
    return row["mp p-value"] is not None and row["mp p-value"] >= 0.05


def _pair(row: dict[str, Any], model: str) -> str:
    return f"{_whole(row[f'{model} 0.01'])}, {_whole(row[f'{model} 0.1'])}"


def _whole(count: Any) -> str:
    return "nan" if count is None else str(int(count))


def by_model(folder: Path = RESULTS) -> pd.DataFrame:
    """Return, for each model, how many layers have which verdict, and the medians."""
    found = pd.DataFrame(rows("layers", folder))
    found["accepted"] = found["mp p-value"].fillna(0.0) >= 0.05
    grouped = found.groupby("model", sort=False)
    verdicts = grouped["verdict"].value_counts().unstack(fill_value=0)
    table = pd.DataFrame({"layers": grouped.size(), "MP fit accepted": grouped["accepted"].sum()})
    table = table.join(verdicts)
    table["median KS"], table["median share"] = grouped["ks"].median(), grouped["share"].median()
    return table.reset_index()


def known_nets(folder: Path = RESULTS) -> pd.DataFrame:
    """Return the counts in nets whose initialisation is known."""
    return pd.DataFrame(
        {
            "optimizer": row["optimizer"], "layer": f"{row['rows']} x {row['columns']}",
            "survives": row["survives"], "truth": row["truth"], "MP": row["mp 0.1"],
            "equalized": row["equalized 0.1"], "signflip": row["signflip 0.1"],
            "auto": row["auto 0.1"], "KS": row["ks"], "verdict": row["verdict"],
            "accuracy": row["test accuracy"],
        }
        for row in rows("known_nets", folder)
    )  # fmt: skip
