"""A report as a container of rows: iterated, indexed, sorted and filtered."""

import re

import numpy as np
import pytest

import rmtspec
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError, InvalidValueError
from rmtspec.report import Report


@pytest.fixture(scope="module")
def report():
    planted = {
        f"layers.{i}.fc": rmtspec.ensembles.spiked(60 + i, 40, [5.0, 9.0, 20.0][:count], rng=i)
        for i, count in ((2, 1), (10, 3), (1, 0))
    }
    return rmtspec.analyze_many({**planted, "zero": np.zeros((30, 20)), "v": np.ones(3)}, beta=0.01)


def names(report):
    return [row["name"] for row in report]


def test_rows_by_name_and_number(report):
    assert names(report) == ["layers.2.fc", "layers.10.fc", "layers.1.fc", "zero"]
    assert report["zero"] is report.rows[3]
    assert report[0] is report.rows[0]
    assert "zero" in report
    assert "none" not in report
    with pytest.raises(InvalidValueError, match=r"Did you mean 'layers\.2\.fc'"):
        report["layers.2.f"]


def test_a_slice_is_a_report(report):
    part = report[1:3]
    assert isinstance(part, Report)
    assert list(part.matrices) == names(part) == ["layers.10.fc", "layers.1.fc"]
    assert part.parameters_before == (70 + 61) * 40
    assert part.skipped == report.skipped


@pytest.mark.parametrize("by", ["n_spikes", "spikes"])
def test_sorted_by_number_with_what_is_missing_last(report, by):
    assert names(report.sort(by)) == ["layers.1.fc", "layers.2.fc", "layers.10.fc", "zero"]
    found = names(report.sort(by, descending=True))
    assert found == ["layers.10.fc", "layers.2.fc", "layers.1.fc", "zero"]


def test_sorted_by_name_and_share(report):
    assert names(report.sort("name"))[:3] == ["layers.1.fc", "layers.2.fc", "layers.10.fc"]
    kept = [r["parameters_after"] / r["parameters_before"] for r in report.sort("kept")]
    assert kept == sorted(kept)


@pytest.mark.parametrize(
    ("by", "words"), [("spykes", r"Did you mean 'spikes'"), (3, "a key of the rows, as text")]
)
def test_a_key_that_is_none(report, by, words):
    with pytest.raises((InvalidOptionError, InvalidOptionTypeError), match=words):
        report.sort(by)


def test_filtered(report):
    assert names(report.filter(r"layers\.1\.|^zero")) == ["layers.1.fc", "zero"]
    assert names(report.filter(re.compile("ZERO", re.IGNORECASE))) == ["zero"]
    assert names(report.filter(lambda row: (row["n_spikes"] or 0) > 2)) == ["layers.10.fc"]
    verdict = report["layers.2.fc"]["verdict"]
    assert "layers.2.fc" in names(report.filter(f"^{verdict}$"))
    assert len(report.filter("nothing")) == 0


@pytest.mark.parametrize("where", ["(", 3, None])
def test_a_filter_that_is_none(report, where):
    with pytest.raises((InvalidOptionError, InvalidOptionTypeError), match="`where` is"):
        report.filter(where)


def test_what_is_chosen_can_be_shown(report):
    for part in (report[:0], report[1:2], report.sort("rank"), report.filter("x")):
        assert all([repr(part), part.to_csv(), part.to_html(), part.to_markdown()])
        assert part._repr_html_().startswith("<div")


def test_markdown_is_escaped():
    names = ["a|b", "c_d*e", "<b>", "line\nend"]
    matrices = {name: rmtspec.ensembles.wishart(40, 30, rng=0) for name in names}
    lines = rmtspec.analyze_many(matrices).to_markdown().splitlines()
    assert len(lines) == 2 + len(names)
    assert lines[1] == "|" + "---|" * (len(re.split(r"(?<!\\)\|", lines[0])) - 2)
    assert lines[2].startswith(r"| a\|b |")
    assert lines[4].startswith(r"| \<b\> |")


def test_every_result_is_a_table_in_a_notebook(report):
    W = rmtspec.ensembles.spiked(60, 40, [6.0], rng=0)
    matrix = rmtspec.analyze(W, name="<b>")
    results = [
        matrix, matrix.spectrum, matrix.fit, matrix.test, matrix.rank, matrix.noise,
        matrix.noise_variance, matrix.components, matrix.lower_end, rmtspec.split(W, 3),
        rmtspec.compare_rules(W), report,
    ]  # fmt: skip
    for result in results:
        page = result._repr_html_()
        assert page.count("<table") == page.count("</table>") == 1
        assert "<b>" not in page
        assert page.count("<tr>") >= 2
    assert "&lt;b&gt;" in matrix._repr_html_()
    assert "variance" in matrix.fit._repr_html_()
    assert '<img alt="its spectrum"' in matrix._repr_html_()
