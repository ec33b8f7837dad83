"""Figures of models: by depth, before and after, over reports, against the size."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

import rmtspec
from rmtspec import ensembles
from rmtspec.errors import InvalidOptionError, InvalidTypeError, InvalidValueError
from rmtspec.plot import plot_before_after, plot_drift, plot_overview, plot_trade_off

KINDS = ("self_attn.q_proj", "mlp.up_proj")


@pytest.fixture(scope="module")
def report():
    """Twelve blocks, in the order of text, with one spike more each."""
    names = [f"model.layers.{i}.{kind}.weight" for i in range(12) for kind in KINDS]
    matrices = {}
    for name in sorted(names):
        number = int(name.split(".")[2])
        spikes = np.linspace(4.0, 9.0, number + 1)
        matrices[name] = ensembles.spiked(100, 60, spikes, rng=number)
    matrices["embed_tokens.weight"] = ensembles.wishart(100, 10, rng=99)  # too small to be judged
    return rmtspec.analyze_many(matrices, noise="auto", beta=0.01)


def axes(size=(7.0, 4.2)):
    return Figure(figsize=size, layout="constrained").subplots()


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def labels(ax):
    return [text.get_text() for text in ax.get_xticklabels()]


def test_overview_has_a_line_for_each_kind_in_natural_order(report):
    ax = report.plot(axes((12.0, 4.0)), kind="spikes")
    ax.figure.draw_without_rendering()
    assert sorted(legend(ax)) == ["embedding", "query", "up"]
    assert labels(ax) == ["embedding", *map(str, range(12))]
    dots = [line for line in ax.get_lines() if line.get_linestyle() == "None"]
    drawn = {(x, y) for line in dots for x, y in zip(*line.get_data(), strict=True)}
    for i in range(12):
        for kind in KINDS:
            row = report.row(f"model.layers.{i}.{kind}.weight")
            assert (i + 1, row["n_components"]) in drawn
    assert len({line.get_marker() for line in dots}) == 3


def test_overview_draws_what_counts_filled(report):
    ax = report.plot(axes(), kind="saving")
    paper = ax.get_facecolor()
    hollow = [
        line for line in ax.get_lines()
        if line.get_linestyle() == "None" and line.get_markerfacecolor() == paper
    ]  # fmt: skip
    failing = sum(not report.passes(row) for row in report.rows)
    assert failing
    assert sum(len(line.get_xdata()) for line in hollow) == failing
    assert ax.get_legend().get_title().get_text() == "filled: noise-like bulk"


def test_overview_thins_the_blocks_where_there_is_no_room(report):
    ax = report.plot(axes((3.0, 2.0)), kind="noise")
    assert 1 < len(labels(ax)) <= 4


def test_overview_says_what_is_not_known(report, tmp_path):
    rows = [{**row, "energy_share": None} for row in report.rows]
    bare = rmtspec.Report(rows, [], {}, versions={}, matrices={})
    ax = bare.plot(axes(), kind="noise")
    assert [text.get_text() for text in ax.texts] == ["not known in this report"]
    three = bare.plot(Figure().subplots(1, 3))
    assert [ax.get_legend() is None for ax in three] == [True, True, False]
    report.to_json(tmp_path / "r.json")
    assert rmtspec.Report.from_json(tmp_path / "r.json").plot(axes(), kind="spikes").lines


def test_rare_kinds_share_a_line():
    points = [
        {"depth": 0, "block": "0", "role": f"kind {i}", "passes": True, "spikes": i}
        for i in range(30)
    ]
    ax = plot_overview(points, ax=axes())
    assert legend(ax)[-1] == "other kinds"
    assert len(legend(ax)) == 8


def test_wrong_kinds_teach(report):
    with pytest.raises(InvalidOptionError, match=r"`kind` is 'drift'.*plot_drift"):
        report.plot(kind="drift")
    with pytest.raises(InvalidTypeError, match=r"three Axes, for spikes, noise and saving"):
        report.plot(axes())
    with pytest.raises(InvalidOptionError, match=r"`quantity` is 'rank'"):
        plot_overview([], "rank")
    with pytest.raises(InvalidValueError, match=r"no matrices"):
        report.filter("nothing").plot()
    assert plot_overview([], ax=axes()).texts


def test_before_after_draws_what_counts(report):
    few = report.filter(r"layers\.[01]\.")
    ax = few.plot(axes(), kind="before-after")
    before, after = ax.get_lines()
    assert list(before.get_xdata()) == [row["parameters_before"] for row in few.rows]
    expected = [
        row["parameters_after" if few.passes(row) else "parameters_before"] for row in few.rows
    ]
    assert list(after.get_xdata()) == expected
    total = f"{few.parameters_after:,} of {few.parameters_before:,} parameters kept"
    assert " ".join(ax.get_legend().get_title().get_text().split()).startswith(total)
    assert [t.get_text().replace("\n", "") for t in ax.get_yticklabels()] == [
        row["name"] for row in few.rows
    ]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first at the top


def test_before_after_sums_many_by_kind(report):
    rows = report.rows * 2
    ax = rmtspec.Report(rows, [], report.settings, versions={}, matrices={}).plot(
        axes(), kind="before-after"
    )
    names = {text.get_text() for text in ax.get_yticklabels()}
    assert names == {"query (24)", "up (24)", "embedding (2)"}
    with pytest.raises(InvalidValueError, match=r"`rows` is empty"):
        plot_before_after([])


def test_drift_follows_each_name_and_leaves_gaps():
    reports = [
        [{"name": "a_$b$", "n_spikes": 1}, {"name": "c", "n_spikes": 5}],
        [{"name": "c", "n_spikes": None}, {"name": "a_$b$", "n_spikes": 2}],
        [{"name": "c", "n_spikes": 7}],
    ]
    ax = plot_drift(reports, steps=[1, 5, 9], ax=axes())
    a, c = ax.get_lines()
    assert_allclose(a.get_ydata(), [1, 2, np.nan])
    assert_allclose(c.get_ydata(), [5, np.nan, 7])
    assert list(a.get_xdata()) == [1, 5, 9]
    ax.figure.draw_without_rendering()
    assert legend(ax) == [r"a_\$b\$", "c"]
    assert ax.get_ylabel() == "n spikes"


def test_drift_of_many_shows_their_median():
    reports = [[{"name": str(i), "rank": i + k} for i in range(21)] for k in range(3)]
    ax = plot_drift(reports, "rank", ax=axes())
    assert_allclose(ax.get_lines()[-1].get_ydata(), [10, 11, 12])
    assert legend(ax) == ["each of 21 matrices", "their median"]


def test_wrong_drifts_teach(report):
    with pytest.raises(InvalidValueError, match=r"`reports` is empty"):
        plot_drift([])
    with pytest.raises(InvalidOptionError, match=r"`column` is 'n_spike'.*Did you mean 'n_spikes'"):
        plot_drift([report], "n_spike")
    with pytest.raises(InvalidValueError, match=r"`steps` has shape \(2,\)"):
        plot_drift([report], steps=[1, 2])


def test_trade_off_marks_the_plans():
    rows = [{"kept": k, "measured": 1 - k * k, "budget": k} for k in (0.8, 0.6)]
    rows.append({"kept": 0.4, "measured": None, "budget": 0.4})
    base = {"kept": 1.0, "measured": 0.9, "budget": 1.0}
    ax = plot_trade_off(rows, base, measure="accuracy_$", ax=axes(), legend="outside")
    ax.figure.draw_without_rendering()
    assert ax.get_ylabel() == "accuracy_$"
    assert [text.get_text() for text in ax.texts] == ["budget 0.8", "budget 0.6"]
    assert ax.get_xlim()[0] > ax.get_xlim()[1]
