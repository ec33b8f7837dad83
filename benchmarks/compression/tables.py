"""Tables and the figure of the compression benchmark, computed from its records.

python benchmarks/compression/tables.py
"""

import json
import statistics
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
SHARES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
#: What each method is called in tables, in their order.
NAMES = {
    "svd": "plain SVD, uniform ranks",
    "asvd": "ASVD, uniform ranks",
    "fwsvd": "FWSVD, uniform ranks",
    "svd-llm": "SVD-LLM, whitening, uniform ranks",
    "svd-llm-sequential": "SVD-LLM, sequential update",
    "modegpt": "MoDeGPT",
    "data-free": "rmtspec, budget without data",
    "outputs": "rmtspec, objective outputs",
    "loss-plain": "rmtspec, plain factors",
    "loss-pivoted": "rmtspec, pivot rows only",
    "loss-4-gradients": "rmtspec, gradients of 4 sequences",
    "loss-8-sequences": "rmtspec, 8 calibration sequences",
    "loss-multiple-16": "rmtspec, ranks in multiples of 16",
    "loss-plain-int8": "rmtspec, plain factors in int8",
    "loss-int8": "rmtspec, factors in int8",
    "loss-bfloat16": "rmtspec, factors in bfloat16",
    "loss-full": "rmtspec, full G",
    "loss": "rmtspec",
    "refit": "rmtspec, 80 steps of refit",
}


def cells():
    """Return the records by (method, share)."""
    found = {}
    for file in sorted((RESULTS / "cells").glob("*.json")):
        record = json.loads(file.read_text("utf-8"))
        found.setdefault((record["method"], record["budget"]), []).append(record)
    return found


def dense():
    """Return the perplexities of the model as it is."""
    return json.loads((RESULTS / "dense.json").read_text("utf-8"))["perplexity"]


def ratio(records, text):
    """Return the mean ratio of the perplexity to that of the model as it is, and the spread."""
    values = [record["perplexity"][text] / dense()[text] for record in records]
    return statistics.mean(values), min(values), max(values)


def perplexities(text="wiki"):
    """Yield the header and the rows of a table: perplexity by method and size, means over draws."""
    found = cells()
    yield ["", *(f"{share:g}" for share in SHARES)]
    for method, name in NAMES.items():
        line = []
        for share in SHARES:
            records = found.get((method, share))
            mean = records and statistics.mean(r["perplexity"][text] for r in records)
            line.append(f"{mean:,.1f}" if mean and mean < 1e4 else f"{mean:.1e}" if mean else "")
        if any(line):
            yield [name, *line]


def four_bits():
    """Return in words what rounding to 4 bits costs, or "" if that was not run."""
    for record in cells().get(("4-bit", 0.25), []):
        found = record["perplexity"]["wiki"]
        return f"{record['bits']:.2f} bits an entry, perplexity {found:.2f}"
    return ""


def draws():
    """Yield the header and the rows of a table: perplexity over that of the model as it is."""
    found = cells()
    yield ["method", "kept", "mean", "smallest", "largest", "draws"]
    for method in NAMES:
        for share in SHARES:
            records = found.get((method, share), [])
            if len(records) > 1:
                figures = (f"{value:.3f}" for value in ratio(records, "wiki"))
                yield [NAMES[method], f"{share:g}", *figures, str(len(records))]


def figure():
    """Return a matplotlib figure: perplexity over that of the model as it is, by size."""
    from matplotlib import pyplot as plt

    styles = {
        "svd-llm": ("#999933", "s", ":"), "modegpt": ("#882255", "^", "-."),
        "loss-plain": ("#88ccee", "v", "--"), "loss": ("#0077bb", "o", "-"),
        "refit": ("#cc3311", "D", "-"),
    }  # fmt: skip
    found = cells()
    picture, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for method, (colour, marker, dash) in styles.items():
        points = [(s, ratio(found[method, s], "wiki")[0]) for s in SHARES if (method, s) in found]
        if points:
            ax.plot(
                *zip(*points, strict=True), dash, color=colour, marker=marker, label=NAMES[method]
            )
    ax.axhline(1.0, color="#777777", linewidth=0.8)
    ax.set_yscale("log")
    ax.invert_xaxis()
    ax.set_xlabel("share of the blocks' linear parameters kept")
    ax.set_ylabel("perplexity / that of the model as it is")
    ax.legend(frameon=False)
    return picture


def small_models():
    """Yield the header and the rows of a table of the small models."""
    record = json.loads((RESULTS / "small_models.json").read_text("utf-8"))
    yield ["model", "way", *(f"{share:g}" for share in SHARES)]
    by_way = {}
    for row in record["rows"]:
        by_way.setdefault((row["model"], row["way"]), {})[row["budget"]] = row["figure"]
    for (model, way), figures in by_way.items():
        if way != "as it is":
            yield [model, way, *(f"{figures[share]:.3f}" for share in SHARES)]


def noise_counts():
    """Yield the header and the rows of a table: counts of components against ranks by the loss."""
    file = RESULTS.parent / "research" / "results" / "noise_counts.json"
    found = json.loads(file.read_text("utf-8"))
    yield [f"of {len(found['rows'])} layers", "correlation"]
    for what, value in found["conditions"]["correlations"].items():
        yield [what, f"{value:.2f}"]


def shown(rows):
    """Return a table as a data frame, for a page."""
    import pandas as pd

    header, *lines = rows
    return pd.DataFrame(lines, columns=header).style.hide(axis="index")


def main():
    """Print the tables."""
    for text in ("wiki", "news"):
        print(f"{text}: {dense()[text]:.2f} as it is")
        printed(perplexities(text))
    printed(draws())
    printed(small_models())


def printed(rows):
    """Print a table in Markdown."""
    for number, row in enumerate(rows):
        print("| " + " | ".join(row) + " |")
        if not number:
            print("|---" * len(row) + "|")
    print()


if __name__ == "__main__":
    main()
