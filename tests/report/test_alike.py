"""Small matrices analysed together: the report is that of each alone."""

import math

import numpy as np
import pytest

import rmtspec
from rmtspec.errors import FileError
from rmtspec.report import alike


def normal(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def away():
    raise FileError("the disk is away")


class Stored:
    kind = "conv"

    def __init__(self, W, sides=None):
        self.sides = sides or W.shape
        self._W = W

    def __call__(self):
        return self._W


def a_source():
    bad, padded = normal((20, 16), 90), normal((20, 16), 91)
    bad[2, 3], padded[4] = np.nan, 0.0
    source = {f"head.{i}": normal((24, 16), i) for i in range(5)}
    source |= {f"turned.{i}": normal((16, 24), i) for i in range(3)}
    source |= {
        "bad": bad, "padded": padded, "large": normal((300, 200), 92),
        "tall": normal((1100, 20), 93), "vector": np.ones(7), "spiked": spiked(),
        "known": rmtspec.spectrum(normal((30, 20), 94)), "away": away,
        "called": lambda: normal((24, 16), 95), "stored": Stored(normal((24, 16), 96)),
        "stored spectrum": Stored(rmtspec.spectrum(normal((24, 16), 98)), (24, 16)),
        "huge": 1e100 * normal((24, 16), 97, np.float64), "list": [[1.0, 2.0], [3.0, 5.0]],
    }  # fmt: skip
    return source | {f"last.{i}": normal((24, 16), i, np.float64) for i in range(3)}


def spiked():
    return normal((24, 16), 1) + 3.0 * np.outer(normal(24, 2), normal(16, 3))


def rows(report):
    return [{**row, "seconds": None} for row in report.rows]


@pytest.mark.parametrize(
    "options",
    [{}, {"bulk_keep": 0.3, "refine": False}, {"method": "gram"}, {"noise": "auto"},
     {"noise": "equalized", "rule": "bema"}, {"n_jobs": 2}, {"n_jobs": 2, "noise": "auto"}],
)  # fmt: skip
@pytest.mark.parametrize("most", [1, 3, 256])
def test_the_report_is_that_of_one_after_the_other(monkeypatch, most, options):
    source, options = a_source(), {"noise": "mp", **options}
    one_by_one = {**options, "n_jobs": 1}
    single = [rmtspec.analyze_many({k: v}, **one_by_one) for k, v in source.items()]
    monkeypatch.setattr(alike, "_MOST", most)
    told = []
    together = rmtspec.analyze_many(source, progress=lambda *given: told.append(given), **options)
    assert rows(together) == [row for one in single for row in rows(one)]
    assert together.skipped == [entry for one in single for entry in one.skipped]
    if "n_jobs" not in options:  # else they finish in any order
        assert told == [(i + 1, len(source), name) for i, name in enumerate(source)]
    assert sorted(name for _, _, name in told) == sorted(source)


def test_matrices_are_solved_together(monkeypatch):
    sizes = []
    plain = alike.stacked_spectra
    monkeypatch.setattr(
        alike, "stacked_spectra", lambda arrays: sizes.append(len(arrays)) or plain(arrays)
    )
    report = rmtspec.analyze_many([normal((20, 10), i) for i in range(600)], noise="mp")
    assert sizes == [256, 256, 88]
    assert all(0.0 < row["seconds"] < math.inf for row in report.rows)


def test_a_spectrum_that_is_called_for_is_taken():
    known = rmtspec.spectrum(normal((24, 16), 98))
    report = rmtspec.analyze_many({"a": Stored(known, (24, 16)), "b": spiked()}, noise="mp")
    assert report.skipped == []
    assert report.matrices["a"].spectrum is known


def test_not_more_is_in_memory_than_is_said(monkeypatch):
    sizes = []
    plain = alike.stacked_spectra
    monkeypatch.setattr(alike, "_BYTES", 8 * 7 * 200)
    monkeypatch.setattr(
        alike, "stacked_spectra", lambda arrays: sizes.append(len(arrays)) or plain(arrays)
    )
    rmtspec.analyze_many([normal((20, 10), i) for i in range(20)], noise="mp")
    assert sizes == [7, 7, 6]


def test_a_source_that_writes_into_one_array():
    def source():
        buffer = np.empty((20, 10))
        for i in range(4):
            buffer[:] = normal((20, 10), i)
            yield f"{i}", buffer

    found = rmtspec.analyze_many(source(), noise="mp")
    expected = rmtspec.analyze_many({f"{i}": normal((20, 10), i) for i in range(4)}, noise="mp")
    for mine, theirs in zip(found.rows, expected.rows, strict=True):
        assert mine["largest_eigenvalue"] == pytest.approx(theirs["largest_eigenvalue"], rel=1e-6)


@pytest.mark.parametrize("options", [{"method": "svd"}, {"precision": "float32"}])
def test_what_needs_the_entries_gets_them(monkeypatch, options):
    monkeypatch.setattr(alike, "stacked_spectra", lambda arrays: pytest.fail("solved together"))
    matrices = [normal((30, 20), i) for i in range(3)]
    assert len(rmtspec.analyze_many(matrices, noise="mp", **options).rows) == 3
