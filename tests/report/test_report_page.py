"""The page of a report as text; in a browser it is tested under tests/browser."""

import json
import re

import numpy as np
import pytest

import rmtspec
from rmtspec.report import Report

HOSTILE = '</script><script>alert(1)</script>"&<b>\u202e\x1b[31m'


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture(scope="module")
def report():
    rng = np.random.default_rng(0)
    matrices = {
        f"layers.{i}.{part}": rmtspec.ensembles.spiked(90, 60, [4, 30], rng=i)
        for i in range(3)
        for part in ("q_proj.weight", "up_proj.weight")
    }
    matrices[HOSTILE] = rng.standard_t(2, (80, 50))
    return rmtspec.analyze_many({**matrices, "vector<i>": np.ones(3)}, beta=0.01)


def test_one_file_that_asks_for_nothing(report, tmp_path):
    page = report.to_html(tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text("utf-8") == page
    assert page.startswith("<!DOCTYPE html>")
    own = re.sub(r"<script>// .*?</script>", "", page, flags=re.DOTALL)  # the libraries
    for outside in ("http:", "https:", "src=", "@import", "url("):
        assert outside not in own
    assert "fetch(" not in own


def test_names_stay_text(report):
    page = report.to_html()
    assert "<script>alert" not in page
    assert '"&<b>' not in page
    assert "vector&lt;i&gt;" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "alert(1)</script>" in data_of(page)["rows"][-1]["name"]


def test_numbers_of_the_curves(report):
    rows = data_of(report.to_html())["rows"]
    assert [row["depth"] for row in rows[:6]] == [0, 0, 1, 1, 2, 2]
    assert [row["role"] for row in rows[:2]] == ["query", "up"]
    for row, matrix in zip(rows, report.matrices.values(), strict=True):
        decides, *others = row["curves"]
        assert decides["n_spikes"] == matrix.noise.n_components
        assert len(decides["spikes"]) == decides["n_spikes"]
        assert len(others) == (matrix.noise.model != "mp")
        plain = row["curves"][-1]
        low, high = plain["view"]
        values = matrix.spectrum.eigenvalues
        inside = np.count_nonzero((values >= low) & (values <= high)) / values.size
        width = (high - low) / len(plain["bars"])
        assert sum(plain["bars"]) * width == pytest.approx(inside, abs=2e-3)
        assert plain["law"]["threshold"] == pytest.approx(matrix.fit.threshold, rel=1e-3)


def test_long_spectra_are_thinned():
    values = np.linspace(1.0, 2.0, 8000)
    report = rmtspec.analyze_many({"W": rmtspec.Spectrum(values, n=9000)})
    (row,) = data_of(report.to_html())["rows"]
    points = sum(len(found) for found in row["curves"][0].values() if isinstance(found, list))
    assert points < 400
    assert len(json.dumps(row["curves"])) < 8000


def test_gap_is_the_statistic():
    W = rmtspec.ensembles.wishart(300, 200, rng=0)
    matrix = rmtspec.analyze(W, noise="mp")
    (row,) = data_of(matrix.to_html())["rows"]
    gap = row["curves"][0]["gap"]
    assert abs(gap["bulk"] - gap["law"]) == pytest.approx(matrix.test.statistic, abs=2e-4)


def test_a_report_from_numbers_says_what_it_lacks(report, tmp_path):
    report.to_json(tmp_path / "r.json")
    rows = data_of(Report.from_json(tmp_path / "r.json").to_html())["rows"]
    assert all(row["curves"] == [] for row in rows)


def test_nothing_but_skipped():
    page = rmtspec.analyze_many({"v": np.ones(3), "w": np.ones(3)}).to_html()
    assert "No matrix could be analysed." in page
    assert "2 entries" in page


def test_copies_are_those_of_the_report(report):
    data = data_of(report.to_html())
    assert "\n".join([data["csv"], *(row["csv"] for row in data["rows"]), ""]) == report.to_csv()
    lines = "\n".join([data["markdown"], *(row["markdown"] for row in data["rows"]), ""])
    assert lines == report.to_markdown()


def test_source_is_shown_and_kept(tmp_path):
    np.save(tmp_path / "fc.npy", rmtspec.ensembles.wishart(60, 40, rng=0))
    report = rmtspec.analyze_checkpoint(tmp_path / "fc.npy")
    assert report.source["parameters"] == 2400
    assert '<h1 dir="auto">fc.npy</h1>' in report.to_html()
    report.to_json(tmp_path / "r.json")
    assert Report.from_json(tmp_path / "r.json").source == report.source


@pytest.mark.parametrize("wrong", [{"name": 3}, {"bytes": "x"}, []])
def test_a_wrong_source_is_refused(report, wrong):
    content = report.to_dict() | {"source": wrong}
    with pytest.raises(rmtspec.errors.FileError, match="'source'"):
        Report.from_dict(content)
