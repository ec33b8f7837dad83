"""The columns that metrics add to the rows of a report, and where initial weights come from."""

import copy
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import rmtspec
from rmtspec import ensembles
from rmtspec.errors import FileError
from rmtspec.report import Report
from rmtspec.report.initial import InitialWeights
from rmtspec.report.metric_columns import METRIC_NUMBERS, METRIC_REASON
from rmtspec.terms import Why

SOURCE = {
    "planted.weight": ensembles.spiked(120, 90, [5, 9], rng=0),
    "conv.weight": ensembles.wishart(16, 36, rng=1),
}
INIT = {name: W + 0.1 for name, W in SOURCE.items()}


@pytest.fixture(scope="module")
def report():
    return rmtspec.analyze_many(SOURCE, metrics=True, init=INIT)


def test_without_metrics_nothing_changes(report):
    plain = rmtspec.analyze_many(SOURCE)
    assert not {*METRIC_NUMBERS, METRIC_REASON} & set(plain.rows[0])
    assert not {"metrics", "init"} & set(plain.settings)
    for row, more in zip(plain.rows, report.rows, strict=True):
        assert list(more)[: len(row)] == list(row)
        same = {key for key in row if key != "seconds"}
        assert {key: more[key] for key in same} == {key: row[key] for key in same}


def test_columns(report):
    row = report.rows[0]
    assert list(row)[-len(METRIC_NUMBERS) - 1 :] == [*METRIC_NUMBERS, METRIC_REASON]
    assert row["distance_to_init"] == pytest.approx(0.1 * np.sqrt(120 * 90))
    assert row["metrics_reason"] == ""
    assert row["alpha"] == report.matrices["planted.weight"].metrics.alpha
    assert (report.settings["metrics"], report.settings["init"]) == (True, "2 matrices")


def test_files_hold_them(report, tmp_path):
    report.to_json(tmp_path / "r.json")
    assert Report.from_json(tmp_path / "r.json").rows == report.rows
    assert report.to_csv().splitlines()[0].endswith("relative_distance_to_init,metrics_reason")
    assert "log_alpha_norm" in report.to_html()
    assert report.to_pandas()["stable_rank"].min() >= 1


@pytest.mark.parametrize("column", [*METRIC_NUMBERS, METRIC_REASON])
def test_a_damaged_column_is_told(report, column):
    content = copy.deepcopy(report.to_dict())
    content["rows"][1][column] = [1]
    with pytest.raises(FileError, match=rf"{column}' is \[1\]; expected"):
        Report.from_dict(content)


def test_init_from_a_file(tmp_path, report):
    path = tmp_path / "init.safetensors"
    save_file(INIT, path)
    found = rmtspec.analyze_many(SOURCE, metrics=True, init=path)
    assert [row["distance_to_init"] for row in found.rows] == [
        row["distance_to_init"] for row in report.rows
    ]
    assert found.settings["init"] == str(path)
    with pytest.raises(FileError, match="does not exist"):
        rmtspec.analyze_many(SOURCE, metrics=True, init=tmp_path / "gone.safetensors")
    json.dumps(found.to_dict())


def test_init_of_some_matrices_only():
    init = {
        "planted.weight": lambda: INIT["planted.weight"][:50],
        "other.weight": np.zeros((3, 3)),
    }
    rows = rmtspec.analyze_many(SOURCE, metrics=True, init=init).rows
    assert [Why.of(row["metrics_reason"]) for row in rows] == [(Why.INIT_SHAPE,), (Why.INIT_LACKS,)]
    assert [row["distance_to_init"] for row in rows] == [None, None]
    assert rows[0]["alpha"] is not None


def test_init_as_a_kernel_and_by_another_name():
    kernel = INIT["conv.weight"].reshape(16, 4, 3, 3)
    named = InitialWeights.of({"conv.weight": kernel})
    found = rmtspec.analyze_many(
        {"conv.weight": SOURCE["conv.weight"]}, metrics=True, init=named
    ).rows[0]
    assert found["distance_to_init"] == pytest.approx(0.1 * 24)

    class Layer:
        names = ("fc", "fc.weight")

        def __call__(self):
            return SOURCE["conv.weight"]

    rows = rmtspec.analyze_many(
        {"fc": Layer()}, metrics=True, init={"fc.weight": INIT["conv.weight"]}
    ).rows
    assert rows[0]["distance_to_init"] == pytest.approx(0.1 * 24)


def test_init_that_cannot_be_read_is_a_failure_to_be_tried_again():
    def gone():
        raise FileError("init cannot be read: gone.")

    skipped = rmtspec.analyze_many(SOURCE, metrics=True, init=dict.fromkeys(SOURCE, gone)).skipped
    assert {Why.of(entry["reason"]) for entry in skipped} == {(Why.UNREAD,)}


def test_a_spectrum_has_the_metrics_of_its_values():
    spec = rmtspec.spectrum(SOURCE["planted.weight"])
    row = rmtspec.analyze_many({"s": spec}, metrics=True).rows[0]
    assert row["left_participation"] is None
    assert row["stable_rank"] > 1
    assert Why.of(row["metrics_reason"]) == (Why.ENTRIES_UNKNOWN,)
