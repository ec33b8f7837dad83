"""analyze_many and its Report: the order, what is skipped, the formats, the files."""

import csv
import dataclasses
import inspect
import io
import json
import math
import os
import sys

import joblib
import numpy as np
import pytest

import rmtspec
from rmtspec import ensembles
from rmtspec._files import writing
from rmtspec._files.writing import output_folder, write_atomically
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError, MissingDependencyError

NOISE = ensembles.wishart(80, 50, rng=1)
PLANTED = ensembles.spiked(120, 90, [5, 20], rng=0)
SOURCE = {"planted": PLANTED, "noise": NOISE}


def broken():
    bad = NOISE.copy()
    bad[3, 4] = np.nan
    return {
        "first": PLANTED,
        "nan": bad,
        "vector": np.ones(5),
        "text": np.array([["a", "b"]]),
        "last": NOISE,
    }


class Stored:
    """A callable with a kind, as the readers of files give."""

    kind = "conv"

    def __call__(self):
        return NOISE


@pytest.fixture(scope="module")
def report():
    return rmtspec.analyze_many(broken())


def without_seconds(report):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in report.rows]


def test_rows_are_those_of_analyze_in_order():
    report = rmtspec.analyze_many(SOURCE, beta=0.01)
    assert [row["name"] for row in report.rows] == ["planted", "noise"]
    assert list(report.matrices) == ["planted", "noise"]
    assert len(report) == 2
    alone = rmtspec.analyze(PLANTED, name="planted", beta=0.01, noise="mp").to_dict()
    assert without_seconds(report)[0] == {k: v for k, v in alone.items() if k != "seconds"}
    assert report.skipped == []
    assert report.rows[0]["n_spikes"] == 2
    assert report.settings["beta"] == 0.01
    defaults = inspect.signature(rmtspec.analyze).parameters
    assert report.settings["alpha"] == defaults["alpha"].default
    given_only = {"metrics", "init"}  # in the settings where they are asked for
    assert set(report.settings) == set(defaults) - {"W", "name", "kind"} - given_only
    assert set(report.versions) == {
        "rmtspec", "numpy", "scipy", "numba", "python", "eigenvalues"
    }  # fmt: skip
    assert report.parameters_before == 120 * 90 + 80 * 50
    assert report.parameters_after == 2 * (120 + 90) + 80 * 50


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (list(SOURCE.items()), ["planted", "noise"]),
        ([NOISE, PLANTED], ["0", "1"]),
        ((W for W in [NOISE, PLANTED]), ["0", "1"]),
        ({"lazy": lambda: NOISE, "spectrum": rmtspec.spectrum(NOISE)}, ["lazy", "spectrum"]),
    ],
)
def test_sources(source, names):
    assert [row["name"] for row in rmtspec.analyze_many(source).rows] == names


def test_what_cannot_be_analysed_is_skipped_with_its_reason(report):
    assert [row["name"] for row in report.rows] == ["first", "last"]
    reasons = {entry["name"]: entry["reason"] for entry in report.skipped}
    assert list(reasons) == ["nan", "vector", "text"]
    assert "nan" in reasons["nan"]
    assert "has shape (5,)" in reasons["vector"]
    assert "dtype" in reasons["text"]


def test_kind_comes_from_the_value_unless_given():
    assert rmtspec.analyze_many({"k": Stored()}).rows[0]["kind"] == "conv"
    assert rmtspec.analyze_many({"k": Stored()}, kind="mine").rows[0]["kind"] == "mine"


def test_other_errors_name_the_matrix_and_are_not_swallowed():
    def fails():
        raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError) as caught:
        rmtspec.analyze_many({"culprit": fails})
    assert caught.value.__notes__ == ["This happened with the matrix 'culprit'."]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (NOISE, InvalidTypeError, r"is one ndarray; .* rmtspec.analyze\(W\)"),
        (rmtspec.spectrum(NOISE), InvalidTypeError, r"is one Spectrum"),
        ("model.npz", InvalidTypeError, r"'model.npz'; .*checkpoint.matrices_in"),
        (5, InvalidTypeError, r"is a int; expected a mapping"),
        ({}, InvalidValueError, r"is empty; expected at least one matrix"),
        (iter(()), InvalidValueError, r"is empty"),
        ([("a", NOISE), ("a", NOISE)], InvalidValueError, r"two matrices named 'a'"),
        ([("1", NOISE), NOISE], InvalidValueError, r"two matrices named '1'"),
        ({3: NOISE}, InvalidTypeError, r"names a matrix 3 \(int\); expected text"),
        ([(3, NOISE)], InvalidTypeError, r"names a matrix 3 \(int\); expected text"),
    ],
)
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_unusable_source(source, error, message, n_jobs):
    with pytest.raises(error, match=message):
        rmtspec.analyze_many(source, n_jobs=n_jobs)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 0.9}, InvalidValueError, r"`alpha` is 0.9"),
        ({"beta": "x"}, InvalidTypeError, r"`beta` is 'x'"),
        ({"quantiles": "?"}, InvalidValueError, r"`quantiles` is '\?'"),
        ({"cutoff": 2}, InvalidValueError, r"`cutoff` is 2"),
        ({"level": 0}, InvalidValueError, r"`level` is 0"),
        ({"rule": "none"}, InvalidValueError, r"`rule` is 'none'"),
        ({"bulk_keep": 1.5}, InvalidValueError, r"`bulk_keep` is 1.5"),
        ({"rule": "energy"}, InvalidValueError, "`rule` is 'energy' and `keep` is not given"),
        ({"keep": 0.9}, InvalidValueError, "`keep` belongs to the rules 'energy' and 'fraction'"),
        ({"min_rank": -1}, InvalidValueError, r"`min_rank` is -1"),
        ({"method": "qr"}, InvalidValueError, r"`method` is 'qr'"),
        ({"precision": "half"}, InvalidValueError, r"`precision` is 'half'"),
        ({"eigensolver": 3}, InvalidTypeError, r"`eigensolver` is 3; expected a callable"),
        ({"kind": 3}, InvalidTypeError, r"`kind` is 3"),
        (
            {"gamma": 3},
            InvalidTypeError,
            r"`gamma` is not an option .* expected one of alpha, beta",
        ),
        ({"name": "x"}, InvalidTypeError, r"`name` is not an option"),
        ({"n_jobs": 0}, InvalidValueError, r"`n_jobs` is 0; expected a whole number other than 0"),
        ({"n_jobs": 1.5}, InvalidTypeError, r"`n_jobs` is 1.5"),
        ({"progress": 3}, InvalidTypeError, r"`progress` is 3; expected a callable"),
    ],
)
def test_wrong_options_are_refused_before_any_work(options, error, message):
    called = []
    with pytest.raises(error, match=message):
        rmtspec.analyze_many({"a": lambda: called.append(1)}, **options)
    assert called == []


def test_keep_is_in_settings_and_rows(tmp_path):
    report = rmtspec.analyze_many(SOURCE, rule="fraction", keep=0.1)
    assert [row["rank"] for row in report.rows] == [row["p"] // 10 for row in report.rows]
    assert {(row["rule"], row["keep"]) for row in report.rows} == {("fraction", 0.1)}
    assert (report.settings["rule"], report.settings["keep"]) == ("fraction", 0.1)
    report.to_json(tmp_path / "r.json")
    assert rmtspec.Report.from_json(tmp_path / "r.json").rows == report.rows
    assert rmtspec.analyze_many(SOURCE).settings["keep"] is None


def test_min_rank_beyond_one_matrix_skips_that_one():
    report = rmtspec.analyze_many(SOURCE, min_rank=60)
    assert [row["rank"] for row in report.rows] == [60]
    assert "`min_rank` is 60" in report.skipped[0]["reason"]


def test_eigensolver_is_used_and_named():
    sizes = []

    def solver(gram):
        sizes.append(gram.shape)
        return np.linalg.eigvalsh(gram)

    report = rmtspec.analyze_many([NOISE], eigensolver=solver)
    assert sizes == [(50, 50)]
    assert report.settings["eigensolver"].endswith("solver")
    json.loads(report.to_json())


def test_progress_tells_each_matrix():
    told = []
    rmtspec.analyze_many(SOURCE, progress=lambda *args: told.append(args))
    assert told == [(1, 2, "planted"), (2, 2, "noise")]
    told.clear()
    rmtspec.analyze_many(iter(SOURCE.items()), progress=lambda *args: told.append(args))
    assert told == [(1, None, "planted"), (2, None, "noise")]


def test_lazy_values_are_made_one_at_a_time():
    events = []

    def make():
        events.append("made")
        return NOISE

    source = ((name, make) for name in "ab")
    rmtspec.analyze_many(source, progress=lambda *args: events.append("done"))
    assert events == ["made", "done", "made", "done"]


def close(here, there):
    # Another number of BLAS threads adds up in another order: a few last digits.
    assert here.keys() == there.keys()
    for key, value in here.items():
        if isinstance(value, float):
            assert value == pytest.approx(there[key], rel=1e-8), key
        else:
            assert value == there[key], key


@pytest.mark.filterwarnings("ignore:.*os.fork:DeprecationWarning")
def test_two_processes_give_the_same_report(report):
    told = []
    again = rmtspec.analyze_many(broken(), n_jobs=2, progress=lambda *args: told.append(args))
    for here, there in zip(without_seconds(report), without_seconds(again), strict=True):
        close(here, there)
    assert again.skipped == report.skipped
    assert [counts for *counts, _ in told] == [[i, 5] for i in range(1, 6)]
    assert sorted(name for *_, name in told) == sorted(broken())  # in the order they end
    assert again.matrices["first"].spectrum.eigenvalues.size != 0


def test_backend_of_parallel_config_is_used(report):
    with joblib.parallel_config(backend="threading", n_jobs=2):
        lazy = {name: (lambda W=W: W) for name, W in broken().items()}
        again = rmtspec.analyze_many(lazy, n_jobs=None)
    for here, there in zip(without_seconds(report), without_seconds(again), strict=True):
        close(here, there)


def test_backend_that_cannot_stream_still_reports_progress(report):
    from joblib.parallel import ThreadingBackend, register_parallel_backend

    class AllAtOnce(ThreadingBackend):
        supports_return_generator = False

    register_parallel_backend("all-at-once", AllAtOnce)
    told = []
    with joblib.parallel_config(backend="all-at-once"):
        again = rmtspec.analyze_many(
            broken(), n_jobs=2, progress=lambda *args: told.append(args[0])
        )
    assert told == [1, 2, 3, 4, 5]
    assert again.skipped == report.skipped


@pytest.fixture
def with_gaps():
    """A report with a matrix that has no bulk, so no numbers."""
    low = np.outer(np.arange(1.0, 31.0), np.arange(1.0, 21.0))
    return rmtspec.analyze_many({"noise": NOISE, "<b>low</b>, \x1b[1m": low, "vector": np.ones(3)})


def test_json_has_null_and_never_nan(with_gaps, tmp_path):
    def refuse(word):
        raise AssertionError(word)

    content = with_gaps.to_json(tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text("utf-8") == content
    found = json.loads(content, parse_constant=refuse)
    assert list(found) == ["schema", "rows", "skipped", "settings", "versions"]
    assert found["schema"] == 1
    assert found["rows"][1]["variance"] is None
    assert "no bulk" in found["rows"][1]["reason"]
    assert found["rows"] == with_gaps.rows
    assert found["skipped"][0]["name"] == "vector"


def test_pandas_has_nan_and_number_columns(with_gaps):
    frame = with_gaps.to_pandas()
    assert list(frame.columns) == list(with_gaps.rows[0])
    assert frame["variance"].dtype == np.float64
    assert math.isnan(frame["variance"][1])
    assert math.isnan(frame["n_spikes"][1])
    assert frame["rows"].dtype.kind == "i"
    empty = rmtspec.analyze_many({"v": np.ones(3)}).to_pandas()
    assert list(empty.columns) == list(frame.columns)
    assert len(empty) == 0


def test_missing_pandas_says_what_to_install(with_gaps, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "rmtspec\[pandas\]"'):
        with_gaps.to_pandas()


def test_csv_reads_back(with_gaps, tmp_path):
    content = with_gaps.to_csv(tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text("utf-8") == content
    rows = list(csv.DictReader(io.StringIO(content)))
    assert [row["name"] for row in rows] == [row["name"] for row in with_gaps.rows]
    assert rows[1]["variance"] == ""
    assert float(rows[0]["variance"]) == with_gaps.rows[0]["variance"]


def test_repr_is_an_aligned_table(with_gaps):
    lines = repr(with_gaps).splitlines()
    assert lines[0].startswith("Report: 2 analysed, 1 skipped, ")
    assert lines[1].split() == [
        "name", "size", "spikes", "fit", "verdict", "rank", "kept", "reason",
    ]  # fmt: skip

    assert [line.index(" x ") for line in lines[2:4]] == [lines[2].index("80 x 50") + 2] * 2
    assert "\x1b" not in repr(with_gaps)
    assert "no bulk" in lines[3]
    assert lines[4].startswith("  skipped 1 (vector): ")
    many = rmtspec.analyze_many([rmtspec.Spectrum([1.0, 2.0], n=3)] * 70)
    assert repr(many).splitlines()[-1] == "  ... 10 more; `rows` and to_pandas() have all"
    assert repr(rmtspec.analyze_many([np.ones(3)])).startswith("Report: 0 analysed, 1 skipped\n")


def test_report_is_frozen(with_gaps):
    with pytest.raises(dataclasses.FrozenInstanceError):
        with_gaps.rows = []


@pytest.mark.parametrize("name", ["r.csv", "r.json", "r.html", "r.HTML"])
def test_save_chooses_by_suffix(with_gaps, tmp_path, name):
    path = with_gaps.save(tmp_path / name)
    assert path == tmp_path / name
    begins = {"csv": "name,", "json": "{", "html": "<!DOCTYPE"}[name[2:].lower()]
    assert path.read_text("utf-8").startswith(begins)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_save_refuses_other_suffixes(with_gaps, tmp_path):
    with pytest.raises(InvalidValueError, match=r"suffix '.txt'; expected one of .csv, .json"):
        with_gaps.save(tmp_path / "r.txt")


def test_save_refuses_places_it_cannot_write(with_gaps, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(FileError, match=r"the folder .*missing does not exist"):
        with_gaps.save(tmp_path / "missing" / "r.csv")
    with pytest.raises(FileError, match=r"cannot be written: .*file"):
        with_gaps.save(tmp_path / "file" / "r.csv")
    with pytest.raises(FileError, match=r"is a folder; expected a file name"):
        with_gaps.save(tmp_path / "folder.csv")
    with pytest.raises(FileError, match=r"too long"):
        with_gaps.save(tmp_path / ("x" * 300 + ".csv"))
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(FileError, match=r"not a regular file"):
        with_gaps.save(tmp_path / "pipe.csv")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failure_leaves_the_old_file_whole(tmp_path, monkeypatch):
    target = tmp_path / "r.txt"
    target.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "fsync", full)
        with pytest.raises(FileError, match=r"no space left on device.*unchanged"):
            write_atomically(target, "new")
        patch.setattr(writing.os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_atomically(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_writing_keeps_links_and_permissions(tmp_path):
    target, link = tmp_path / "real.txt", tmp_path / "link.txt"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    fresh = write_atomically(tmp_path / "fresh.txt", "x")
    plain = tmp_path / "plain.txt"
    plain.write_text("x")
    assert fresh.stat().st_mode == plain.stat().st_mode


def test_output_folder(tmp_path):
    assert output_folder(tmp_path / "new").is_dir()
    assert output_folder(tmp_path / "new").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"is a file; expected a folder"):
        output_folder(tmp_path / "file")
    with pytest.raises(FileError, match=r"Make that folder first"):
        output_folder(tmp_path / "a" / "b")
    with pytest.raises(FileError, match=r"cannot be made"):
        output_folder(tmp_path / "file" / "b")
    with pytest.raises(InvalidTypeError, match=r"The path is 3; expected text"):
        output_folder(3)
