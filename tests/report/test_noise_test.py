"""The figures of a noise test: interval, verdict, table, file."""

import json

import numpy as np
import pytest
from scipy import stats

import rmtspec
from rmtspec.errors import InvalidValueError
from rmtspec.report.noise_test import Change, NoiseTest, change_of, components_of, measured, need_of
from rmtspec.terms import Need

rng = np.random.default_rng(0)


def test_the_interval_is_students():
    values = list(rng.normal(0.9, 0.01, 8))
    change = change_of(values, [0.95, 0.95])
    low, high = stats.t.interval(0.95, 7, loc=np.mean(values) - 0.95, scale=stats.sem(values))
    assert change.mean == pytest.approx(np.mean(values))
    assert change.standard_error == pytest.approx(stats.sem(values))
    assert (change.low, change.high) == (pytest.approx(low), pytest.approx(high))


def test_a_baseline_that_varies_widens_it():
    values, baseline = rng.normal(0.9, 0.01, 8), rng.normal(0.95, 0.02, 8)
    change = change_of(list(values), list(baseline))
    expected = stats.ttest_ind(values, baseline, equal_var=False).confidence_interval(0.95)
    assert (change.low, change.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_it_covers():
    """Nominal .95; of 2000 sets of 5 draws, .95 +- .015 (three standard errors)."""
    draws = rng.normal(0.0, 1.0, (2000, 5))
    changes = [change_of(list(each), [0.0, 0.0]) for each in draws]
    assert np.mean([c.low <= 0.0 <= c.high for c in changes]) == pytest.approx(0.95, abs=0.015)


def test_equal_figures_have_a_point_for_an_interval():
    assert change_of([0.5, 0.5], [0.75, 0.75]) == Change(0.5, -0.25, 0.0, -0.25, -0.25)


@pytest.mark.parametrize(
    ("low", "high", "need"),
    [
        (-0.5, -0.02, Need.NEEDED),
        (-0.5, -0.01, Need.CANNOT_TELL),
        (-0.02, 0.5, Need.CANNOT_TELL),
        (-0.01, 0.5, Need.NOT_NEEDED),
        (0.2, 0.5, Need.NOT_NEEDED),
    ],
)
def test_the_verdict_goes_by_the_tolerance(low, high, need):
    assert need_of(Change(0.0, 0.0, 0.0, low, high), 0.01) is need
    assert type(need.value) is str


ROW = {
    "name": "fc", "kind": "linear", "rows": 30, "columns": 20, "n_components": 3,
    "bulk_share": 0.25, "reason": "",
}  # fmt: skip


def test_figures_that_are_not_finite_give_no_number():
    row = measured(ROW, [0.5, float("nan"), float("-inf")], [0.5, 0.5], 0.1)
    assert [row[key] for key in ("mean", "change", "low", "high")] == [None] * 4
    assert row["values"] == [0.5, None, None]
    assert (row["verdict"], row["reason"]) == (
        "cannot tell", "the figure is not finite in 2 of 3 draws"
    )  # fmt: skip


def report():
    rows = [measured(ROW, [0.4, 0.5], [0.9, 0.9], 0.01), measured(ROW, [np.nan] * 2, [0.9] * 2, 0)]
    together = {**rows[0], "name": "all together", "rows": None, "columns": None}
    return NoiseTest(
        0.9, [0.9, 0.9], rows, together, tolerance=0.01, settings={"draws": 2}, versions={},
        skipped=[{"name": "fc.bias", "reason": "1 dimension: a vector has no spectrum"}],
    )  # fmt: skip


def test_the_table_and_the_file(tmp_path):
    made = report()
    lines = repr(made).splitlines()
    assert lines[0].startswith(
        "NoiseTest: 2 tested in 2 draws each, 1 skipped; the unchanged model"
    )
    assert lines[1].split() == [
        "name",
        "size",
        "components",
        "flipped",
        "change",
        "95",
        "%",
        "verdict",
    ]
    assert lines[2].split()[:7] == ["fc", "30", "x", "20", "3", "25.0%", "-0.45"]
    assert lines[2].endswith("cannot tell")  # two draws: the interval is -1.1 to 0.2
    assert "the figure is not finite in 2 of 2 draws" in lines[3]
    assert lines[4].split()[:3] == ["all", "together", "3"]
    assert "skipped 1 (fc.bias): 1 dimension" in lines[5]
    text = made.to_json(tmp_path / "t.json")
    assert (tmp_path / "t.json").read_text("utf-8") == text
    assert json.loads(text) == made.to_dict()
    assert made.to_dict()["schema"] == 1
    with pytest.raises(InvalidValueError, match="No row is named 'x'; the first ones are 'fc'"):
        made.row("x")


def test_components():
    W = rmtspec.ensembles.spiked(200, 120, [5, 9], rng=0)
    assert components_of(W) == (2, "")
    low = W[:, :20] @ W[:20, :20] @ rng.standard_normal((20, 120))
    assert components_of(low) == (0, "only rounding is left beyond rank 20")
