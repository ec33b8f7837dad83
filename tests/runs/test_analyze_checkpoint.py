"""Analysing a checkpoint: the report of analyze_many, whole or gone on with, here or elsewhere."""

import itertools
import json

import joblib
import numpy as np
import pytest
from checkpoints import file_limit, noise, planted, write_safetensors, write_sharded
from threadpoolctl import ThreadpoolController, threadpool_limits

import rmtspec
from rmtspec.checkpoint import matrices_in
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError
from rmtspec.report.many import Skipped
from rmtspec.runs import analyze as _scan
from rmtspec.runs import fingerprint as _fingerprint
from rmtspec.runs import journal as _journal

BAD = noise(40, 30)
BAD[3, 4] = np.nan
SHARDS = {
    "m-00001-of-00002.safetensors": {
        "small.weight": noise(20, 16),
        "fc.weight": planted(),
        "fc.bias": noise(120),
        "bad.weight": BAD,
    },
    "m-00002-of-00002.safetensors": {
        "conv.weight": planted(60, 48, seed=3).reshape(60, 16, 3),
        "low.weight": np.outer(np.arange(1.0, 31.0), np.arange(1.0, 21.0)),
        "wide.weight": noise(40, 200, seed=2),
        "h.0.attn.bias": noise(1, 1, 8, 8),
    },
}
NAMES = ["conv.weight", "fc.weight", "low.weight", "small.weight", "wide.weight"]
LARGEST_FIRST = [
    "fc.weight",
    "wide.weight",
    "conv.weight",
    "bad.weight",
    "low.weight",
    "small.weight",
]


@pytest.fixture
def folder(tmp_path):
    return write_sharded(tmp_path / "model", SHARDS)


def timeless(report):
    """All that is reported but the seconds and the place, to the last digit."""
    content = report.to_dict()
    content.pop("source", None)
    for row in content["rows"]:
        assert row.pop("seconds") >= 0
    return json.dumps(content)


def scan(path, **options):
    return rmtspec.analyze_checkpoint(path, **options)


def lines(journal):
    return journal.read_bytes().splitlines(keepends=True)


def test_the_report_is_that_of_analyze_many(folder, tmp_path):
    matrices = matrices_in(folder)
    expected = rmtspec.analyze_many(matrices.matrices, beta=0.01)
    expected.skipped.extend(matrices.skipped)
    for options in ({}, {"journal": tmp_path / "j"}, {"journal": tmp_path / "j"}):
        found = scan(folder, beta=0.01, **options)
        assert timeless(found) == timeless(expected)
        assert [row["name"] for row in found.rows] == NAMES
        assert list(found.matrices) == NAMES
        for name, matrix in found.matrices.items():
            same = expected.matrices[name].spectrum.eigenvalues
            np.testing.assert_array_equal(matrix.spectrum.eigenvalues, same)
    assert timeless(scan(matrices, beta=0.01)) == timeless(expected)


def test_gone_on_with_after_any_number_of_lines(folder, tmp_path):
    whole = tmp_path / "whole"
    expected = scan(folder, journal=whole)
    all_lines = lines(whole)
    assert len(all_lines) == 7
    calls = []
    for count in range(8):
        journal = tmp_path / f"cut{count}"
        journal.write_bytes(b"".join(all_lines[:count]))
        found = scan(folder, journal=journal, progress=lambda *given: calls.append(given))
        assert timeless(found) == timeless(expected)
        assert len(lines(journal)) == 7
        assert len(calls) == 6
        assert [total for _, total, _ in calls] == [6] * 6
        assert [name for *_, name in calls] == LARGEST_FIRST
        seconds = {row["name"]: row["seconds"] for row in expected.rows}
        for name in LARGEST_FIRST[: max(0, count - 1)]:
            if name != "bad.weight":
                assert found.row(name)["seconds"] == seconds[name]
        calls.clear()


def test_what_is_done_is_not_done_again(folder, tmp_path, monkeypatch):
    first = scan(folder, journal=tmp_path / "j")
    monkeypatch.setattr(
        "rmtspec.checkpoint.stored.MappedTensor.__call__", lambda _: pytest.fail("it was read")
    )
    monkeypatch.setattr(
        _fingerprint, "fingerprint", lambda _: json.loads(lines(tmp_path / "j")[0])["checkpoint"]
    )
    again = scan(folder, journal=tmp_path / "j")
    assert again.to_json() == first.to_json()  # the seconds too


def test_the_costliest_first(folder):
    told = []
    scan(folder, progress=lambda *given: told.append(given))
    assert told == [(i, 6, name) for i, name in enumerate(LARGEST_FIRST, 1)]


def test_what_cannot_be_analysed_is_in_the_journal_too(folder, tmp_path):
    found = scan(folder, journal=tmp_path / "j")
    entries = [json.loads(line) for line in lines(tmp_path / "j")[1:]]
    assert [entry["name"] for entry in entries] == LARGEST_FIRST
    (skipped,) = [entry for entry in entries if "skipped" in entry]
    assert "nan" in skipped["skipped"]
    assert {"name": "bad.weight", "reason": skipped["skipped"]} in found.skipped
    assert [entry["name"] for entry in found.skipped] == ["bad.weight", "fc.bias", "h.0.attn.bias"]
    for entry in entries:
        assert entry is skipped or entry["row"]["n_spikes"] == found.row(entry["name"])["n_spikes"]


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*os.fork:DeprecationWarning")
def test_a_disk_that_was_away_for_a_while(folder, tmp_path, monkeypatch, n_jobs):
    monkeypatch.setattr("rmtspec.report.alike._MOST", 1)  # else all are read together
    expected, file = timeless(scan(folder, threads=1)), folder / "m-00002-of-00002.safetensors"
    listed = matrices_in(folder)
    options = {"journal": tmp_path / "j", "n_jobs": n_jobs, "threads": 1}
    content = file.read_bytes()

    def away(done, *_):
        file.unlink(missing_ok=True)

    found = scan(listed, **options, progress=away)
    gone = [entry for entry in found.skipped if "cannot be read" in entry["reason"]]
    assert gone
    file.write_bytes(content)
    assert timeless(scan(folder, **options)) == expected


def test_include_and_exclude(folder, tmp_path):
    options = {"include": [r"weight$", "nowhere"], "exclude": lambda name, m: m.kind == "conv"}
    found = scan(folder, journal=tmp_path / "j", **options)
    assert [row["name"] for row in found.rows] == [n for n in NAMES if n != "conv.weight"]
    assert {"name": "conv.weight", "reason": "in `exclude`"} in found.skipped
    assert found.settings["include"] == ["'weight$'", "'nowhere'"]
    assert scan(folder, journal=tmp_path / "j", **options).rows == found.rows
    with pytest.raises(FileError, match=r"of other options \(exclude was .*, is now None\)"):
        scan(folder, journal=tmp_path / "j", include=options["include"])


def test_other_options_and_another_checkpoint_are_refused(folder, tmp_path):
    journal = tmp_path / "j"
    scan(folder, journal=journal)
    before = journal.read_bytes()
    with pytest.raises(FileError, match=r"of other options \(alpha was 0\.2, is now 0\.3\)"):
        scan(folder, journal=journal, alpha=0.3)
    write_safetensors(
        folder / "m-00001-of-00002.safetensors",
        {**SHARDS["m-00001-of-00002.safetensors"], "small.weight": noise(20, 16, seed=9)},
    )
    with pytest.raises(FileError, match=r"is the journal of another checkpoint\. Run the same"):
        scan(folder, journal=journal)
    assert journal.read_bytes() == before


def test_a_checkpoint_that_was_moved_goes_on(folder, tmp_path):
    expected = scan(folder, journal=tmp_path / "j")
    (tmp_path / "j").write_bytes(b"".join(lines(tmp_path / "j")[:3]))
    moved = write_sharded(
        tmp_path / "moved",
        {f"z{len(f)}-{i}.safetensors": t for i, (f, t) in enumerate(SHARDS.items())},
    )
    assert timeless(scan(moved, journal=tmp_path / "j")) == timeless(expected)


@pytest.mark.parametrize(
    "change", [{"row": {}}, {"spectrum": {}}, {"spectrum": {"eigenvalues": 3}}]
)
def test_a_line_that_lacks_something(folder, tmp_path, change):
    journal = tmp_path / "j"
    scan(folder, journal=journal)
    first, second, *rest = lines(journal)
    line = {key: value for key, value in json.loads(second).items() if key != "crc32"}
    changed = _journal._line({**line, **change})
    journal.write_bytes(b"".join([first, changed, *rest]))
    with pytest.raises(
        FileError, match=r"line of 'fc\.weight' in the journal is damaged .*Delete that"
    ):
        scan(folder, journal=journal)


@pytest.mark.parametrize("largest", [1e153, 1e300])
def test_a_line_with_numbers_that_no_matrix_has(folder, tmp_path, largest):
    """Journals of earlier versions have no checksums; squares of these overflow."""
    journal = tmp_path / "j"
    scan(folder, journal=journal)
    first, second, *rest = lines(journal)
    line = {key: value for key, value in json.loads(second).items() if key != "crc32"}
    values = _scan._array(line["spectrum"]["eigenvalues"])
    values[-1] = largest
    line["spectrum"] |= _scan._packed({"eigenvalues": values})
    journal.write_bytes(b"".join([first, _journal._line(line), *rest]))
    with pytest.raises(FileError, match=r"journal is damaged \(overflow"):
        scan(folder, journal=journal)


@pytest.mark.filterwarnings("ignore:.*os.fork:DeprecationWarning")
def test_two_processes_give_the_same_to_the_last_digit(folder, tmp_path):
    expected = scan(folder, threads=1)
    told = []
    found = scan(
        folder, threads=1, n_jobs=2, journal=tmp_path / "j", progress=lambda *g: told.append(g)
    )
    assert timeless(found) == timeless(expected)
    assert [counts for *counts, _ in told] == [[i, 6] for i in range(1, 7)]
    assert sorted(name for *_, name in told) == sorted(LARGEST_FIRST)
    assert [json.loads(line)["name"] for line in lines(tmp_path / "j")[1:]] == [n for *_, n in told]
    # And here with what they left.
    (tmp_path / "j").write_bytes(b"".join(lines(tmp_path / "j")[:4]))
    assert timeless(scan(folder, threads=1, journal=tmp_path / "j")) == timeless(expected)


@pytest.mark.filterwarnings("ignore:.*os.fork:DeprecationWarning")
def test_no_more_processes_than_matrices(folder, monkeypatch):
    started = []
    parallel = joblib.Parallel
    monkeypatch.setattr(
        joblib, "Parallel", lambda **o: started.append(o["n_jobs"]) or parallel(**o)
    )
    options = {"include": ["^fc.weight", "^conv"], "threads": 1}
    assert len(scan(folder, n_jobs=10**15, **options).rows) == 2
    assert started == [2]


def test_threads_are_those_asked_for(folder, monkeypatch):
    seen = []

    def note(options, item):
        pools = ThreadpoolController().select(user_api="blas").info()
        seen.append(max(pool["num_threads"] for pool in pools))
        return Skipped("not looked at")

    monkeypatch.setattr("rmtspec.report.many.outcome_of", note)
    with threadpool_limits(2, user_api="blas"):
        for threads in (1, 2, None):
            scan(folder, threads=threads)
    assert seen == [1] * 6 + [2] * 12


def test_on_a_device_the_spikes_are_the_same(folder, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    read = []
    ahead = _scan.read_ahead
    monkeypatch.setattr(
        _scan, "read_ahead", lambda items: read.extend(n for n, _ in items) or ahead(items)
    )
    expected = scan(folder)
    assert read == []
    found = scan(folder, device="cpu", journal=tmp_path / "j")
    assert read == LARGEST_FIRST
    assert [row["name"] for row in found.rows] == NAMES
    assert found.skipped == expected.skipped
    for here, there in zip(found.rows, expected.rows, strict=True):
        assert here["n_spikes"] == there["n_spikes"]
        if there["variance"] is not None:
            assert here["variance"] == pytest.approx(there["variance"], rel=1e-8)
    assert scan(folder, device="cpu", journal=tmp_path / "j").rows == found.rows
    with pytest.raises(FileError, match=r"other options \(device was cpu, is now None\)"):
        scan(folder, journal=tmp_path / "j")
    with pytest.raises(InvalidValueError, match=r"`device` 'cpu' and `n_jobs` 2 are both given"):
        scan(folder, device="cpu", n_jobs=2)
    with pytest.raises(InvalidValueError, match=r"`device` 'nowhere' cannot be used in float64"):
        scan(folder, device="nowhere")


@pytest.mark.filterwarnings("ignore:.*os.fork:DeprecationWarning")
def test_a_solver_of_ones_own_in_two_processes_reads_there(folder, monkeypatch):
    monkeypatch.setattr(_scan, "read_ahead", lambda _: pytest.fail("all would be in memory here"))
    found = scan(folder, eigensolver=np.linalg.eigvalsh, n_jobs=2, threads=1)
    assert [row["n_spikes"] for row in found.rows] == [row["n_spikes"] for row in scan(folder).rows]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_jobs": 0}, InvalidValueError, "`n_jobs` is 0"),
        ({"threads": 0}, InvalidValueError, "`threads` is 0"),
        ({"threads": 1.5}, InvalidTypeError, "`threads` is 1.5"),
        ({"progress": 3}, InvalidTypeError, "`progress` is 3"),
        ({"alpha": 0.9}, InvalidValueError, "`alpha` is 0.9"),
        ({"name": "w"}, InvalidTypeError, "`name` is not an option"),
        ({"include": "("}, InvalidValueError, "not a regular expression"),
        (
            {"include": "nowhere"},
            InvalidValueError,
            r"(?s)could be analysed.*no name matches include=",
        ),
    ],
)
def test_wrong_options_leave_no_journal(folder, tmp_path, monkeypatch, options, error, message):
    monkeypatch.setattr(_scan, "outcomes", lambda *_, **__: pytest.fail("it worked"))
    with pytest.raises(error, match=message):
        scan(folder, journal=tmp_path / "j", **options)
    assert list(tmp_path.iterdir()) == [folder]


def test_nothing_to_analyse(tmp_path):
    path = write_safetensors(tmp_path / "m.safetensors", {"a": noise(3), "b": noise(4)})
    with pytest.raises(InvalidValueError, match=r"(?s)Nothing in .* skipped 2 \(a, b\): 1 dimensi"):
        scan(path, journal=tmp_path / "j")
    path = write_safetensors(tmp_path / "m.safetensors", {})
    with pytest.raises(InvalidValueError, match="holds no tensors"):
        scan(path)
    with pytest.raises(FileError, match="does not exist"):
        scan(tmp_path / "nowhere")


def test_an_interrupt_keeps_what_was_done(folder, tmp_path):
    expected, journal = timeless(scan(folder)), tmp_path / "j"
    for count in itertools.count(1):  # one matrix more each time

        def stop(done, *_, count=count):
            if done == count:
                raise KeyboardInterrupt

        if count > 6:
            break
        with pytest.raises(KeyboardInterrupt):
            scan(folder, journal=journal, progress=stop)
        assert len(lines(journal)) == count + 1
    assert timeless(scan(folder, journal=journal)) == expected


def test_a_full_disk_keeps_what_was_done(folder, tmp_path):
    expected, journal = timeless(scan(folder)), tmp_path / "j"
    with file_limit(4_000), pytest.raises(FileError, match=r"j cannot be written: file too large"):
        scan(folder, journal=journal)
    assert journal.stat().st_size == 4_000
    assert timeless(scan(folder, journal=journal)) == expected


def test_names_that_utf8_lacks(tmp_path):
    for name in (b"\xff.npy", "größe.npy".encode()):
        np.save(tmp_path / "x.npy", noise(20, 16))
        (tmp_path / "x.npy").rename(tmp_path / name.decode("utf-8", "surrogateescape"))
    found = scan(tmp_path, journal=tmp_path / "j")
    assert scan(tmp_path, journal=tmp_path / "j").rows == found.rows
    names = ["größe", "\udcff"]
    assert sorted(row["name"] for row in found.rows) == names
    for suffix in ("json", "csv", "html"):
        found.save(tmp_path / f"r.{suffix}")
    again = rmtspec.Report.from_json(tmp_path / "r.json")
    assert sorted(row["name"] for row in again.rows) == names
