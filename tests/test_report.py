"""Many matrices: rows, skips, files."""

import csv
import io
import json
import math

import numpy as np
import pytest

import rmtspec
from rmtspec import ensembles


@pytest.fixture(scope="module")
def source():
    broken = ensembles.wishart(40, 30, rng=1)
    broken[3, 4] = np.nan
    return {
        "spikes": ensembles.spiked(200, 120, [4.0, 9.0], rng=0),
        "nan": broken,
        "flat": np.ones((60, 40)),
        "vector": np.ones(5),
        "<noise>": ensembles.wishart(90, 60, rng=2),
    }


@pytest.fixture(scope="module")
def report(source):
    return rmtspec.analyze_many(source, beta=0.01)


def test_rows_and_skips(report, source):
    assert [row["name"] for row in report.rows] == ["spikes", "flat", "<noise>"]
    assert len(report) == 3
    assert report.rows[0]["n_spikes"] == 2
    assert {item["name"] for item in report.skipped} == {"nan", "vector"}
    assert "[3, 4]" in report.skipped[0]["reason"]
    single = rmtspec.analyze(source["spikes"], name="spikes", beta=0.01).to_dict()
    assert {**report.rows[0], "seconds": 0} == {**single, "seconds": 0}
    assert report.matrices["spikes"].fit.n_spikes == 2
    assert report.settings["beta"] == 0.01
    assert report.versions["rmtspec"] == rmtspec.__version__


def test_json(report, tmp_path):
    path = tmp_path / "r.json"
    data = json.loads(report.to_json(path))
    assert data == json.loads(path.read_text())
    assert set(data) == {"schema", "rows", "skipped", "settings", "versions"}
    assert data["schema"] == 1
    assert data["rows"][1]["variance"] is None
    assert "NaN" not in path.read_text()


def test_csv(report):
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [row["name"] for row in rows] == ["spikes", "flat", "<noise>"]
    assert rows[1]["variance"] == ""
    assert float(rows[0]["variance"]) == report.rows[0]["variance"]


def test_html_is_escaped_and_self_contained(report):
    page = report.to_html()
    assert "&lt;noise&gt;" in page
    assert "<noise>" not in page
    for word in ("Skipped", "no bulk", "beta", "http"):
        assert (word in page) is (word != "http")


def test_pandas(report):
    frame = report.to_pandas()
    assert list(frame["name"]) == ["spikes", "flat", "<noise>"]
    assert math.isnan(frame["n_spikes"][1])
    assert len(frame) == 3


def test_missing_pandas_names_the_extra(report, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match=r"rmtspec\[pandas\]"):
        report.to_pandas()


def test_repr(report):
    shown = repr(report)
    assert "3 analysed, 2 skipped" in shown.splitlines()[0]
    assert "skipped 1 (nan): " in shown


def test_two_processes_give_the_same_rows(report, source):
    other = rmtspec.analyze_many(source, n_jobs=2, beta=0.01)
    drop = {"seconds": 0}
    assert [{**row, **drop} for row in other.rows] == [{**row, **drop} for row in report.rows]
    assert other.skipped == report.skipped


def test_iterables_functions_and_progress():
    W = ensembles.wishart(60, 40, rng=0)
    seen = []
    report = rmtspec.analyze_many(
        (item for item in [W, ("named", lambda: W), rmtspec.spectrum(W)]),
        progress=lambda *call: seen.append(call),
    )
    assert [row["name"] for row in report.rows] == ["0", "named", "2"]
    assert seen == [(1, None, "0"), (2, None, "named"), (3, None, "2")]


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        (np.ones((30, 20)), {}, "rmtspec.analyze"),
        ("weights.npz", {}, "matrices_in"),
        ([], {}, "empty"),
        ({}, {}, "empty"),
        ([np.ones((30, 20))], {"alpha": 2}, "alpha"),
        ([np.ones((30, 20))], {"alhpa": 0.2}, "`alhpa` is no option"),
        ([np.ones((30, 20))], {"n_jobs": 0}, "n_jobs"),
        ([("a", np.ones((3, 3))), ("a", np.ones((3, 3)))], {}, "named 'a'"),
    ],
)
def test_bad_calls(source, options, words):
    with pytest.raises(rmtspec.RmtspecError, match=words):
        rmtspec.analyze_many(source, **options)


def test_bad_places(report, tmp_path):
    with pytest.raises(ValueError, match=r"expected one of .csv, .json, .html"):
        report.save(tmp_path / "r.xlsx")
    with pytest.raises(OSError, match="does not exist"):
        report.save(tmp_path / "missing" / "r.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OSError, match="is a folder"):
        report.save(tmp_path / "folder.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    from rmtspec._files import write_atomically

    path = tmp_path / "r.json"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(rmtspec.RmtspecError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
