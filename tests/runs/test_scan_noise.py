"""A scan that fits the noise, resumed from its journal; journals from before there was noise."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoints import noise, planted, write_safetensors, write_sharded
from numpy.testing import assert_array_equal

import rmtspec
from rmtspec.errors import FileError
from rmtspec.report import many
from rmtspec.runs import journal as _journal

RNG = np.random.default_rng(8)
SHARDS = {
    "m-00001-of-00002.safetensors": {
        "planted.weight": planted(),
        "heavy.weight": RNG.standard_t(3, (90, 120)).astype(np.float32),
        "rows.weight": (noise(100, 80).T * np.exp(RNG.normal(size=100))).T.astype(np.float32),
        "bias": noise(7),
    },
    "m-00002-of-00002.safetensors": {
        "orthogonal.weight": np.linalg.qr(RNG.standard_normal((90, 70)))[0].astype(np.float32),
        "low.weight": np.outer(np.arange(1.0, 31.0), np.arange(1.0, 21.0)),
        "zero.weight": np.zeros((40, 30), np.float32),
        "small.weight": noise(40, 9),
        "nan.weight": np.full((30, 20), np.nan, np.float32),
    },
}


@pytest.fixture
def folder(tmp_path):
    return write_sharded(tmp_path / "model", SHARDS)


def lines(journal):
    return journal.read_bytes().splitlines(keepends=True)


def timeless(report):
    content = report.to_dict()
    for row in content["rows"]:
        assert row.pop("seconds") >= 0
    return json.dumps(content)  # equal text: numbers are equal to the last bit


def assert_same(one, other):
    """Two reports are the same but for seconds, with all that their noise fits hold."""
    assert timeless(one) == timeless(other)
    assert one.matrices.keys() == other.matrices.keys()
    for name, matrix in one.matrices.items():
        assert repr(matrix) == repr(other.matrices[name])  # with intervals, strengths and ends
        first, second = matrix.noise, other.matrices[name].noise
        assert first.to_dict() == second.to_dict(), name
        assert repr(first) == repr(second)
        assert_array_equal(first.row_scales, second.row_scales)
        assert_array_equal(first.column_scales, second.column_scales)
        assert (first.flip_quantiles is None) == (second.flip_quantiles is None), name
        if first.flip_quantiles is not None:
            assert_array_equal(first.flip_quantiles, second.flip_quantiles)
        assert_array_equal(first.spectrum.eigenvalues, second.spectrum.eigenvalues)
        assert (first.law is None) == (second.law is None)
        assert (first.exact, first.settled) == (second.exact, second.settled)
        assert_array_equal(matrix.spectrum.eigenvalues, other.matrices[name].spectrum.eigenvalues)


@pytest.mark.parametrize("model", ["auto", "equalized", "signflip"])
def test_resumed_after_any_number_of_lines_it_is_the_same_report(folder, tmp_path, model):
    whole = tmp_path / "whole"
    expected = rmtspec.analyze_checkpoint(folder, journal=whole, noise=model, rng=3)
    assert_same(rmtspec.analyze_checkpoint(folder, noise=model, rng=3), expected)
    models = {row["noise_model"] for row in expected.rows}
    assert models == {"mp", "equalized", "signflip"} if model == "auto" else {"mp", model}
    assert any(m.noise.flip_quantiles is not None for m in expected.matrices.values())
    content = lines(whole)
    for count in range(len(content) + 1):
        journal = tmp_path / f"cut{count}"
        journal.write_bytes(b"".join(content[:count]))
        resumed = rmtspec.analyze_checkpoint(folder, journal=journal, noise=model, rng=3)
        assert_same(resumed, expected)


def test_what_the_journal_holds_is_not_read_again(folder, tmp_path, monkeypatch):
    options = {"journal": tmp_path / "j", "noise": "auto"}
    expected = rmtspec.analyze_checkpoint(folder, **options)
    monkeypatch.setattr(many, "outcome_of", lambda *_: pytest.fail("analysed again"))
    again = rmtspec.analyze_checkpoint(folder, **options)
    assert_same(again, expected)
    assert again.to_json() == expected.to_json()  # the seconds too


@pytest.mark.skipif(os.name != "posix", reason="needs a signal that nothing catches")
def test_killed_in_the_middle_it_goes_on(folder, tmp_path):
    expected = rmtspec.analyze_checkpoint(folder, noise="auto", threads=1)
    journal = tmp_path / "j"
    code = (
        "import rmtspec, time\n"
        f"rmtspec.analyze_checkpoint({str(folder)!r}, journal={str(journal)!r}, noise='auto',\n"
        "    threads=1, progress=lambda done, *_: time.sleep(60) if done == 3 else None)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(rmtspec.__file__).parents[1])},
    )
    try:
        deadline = time.monotonic() + 120
        while not (journal.exists() and len(lines(journal)) == 4):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        run.kill()
        run.wait()
    resumed = rmtspec.analyze_checkpoint(folder, noise="auto", threads=1, journal=journal)
    assert_same(resumed, expected)
    assert len(lines(journal)) == 1 + 8


def test_another_model_or_seed_is_another_run(folder, tmp_path):
    rmtspec.analyze_checkpoint(folder, journal=tmp_path / "j", noise="auto")
    with pytest.raises(FileError, match=r"other options \(noise was auto, is now mp\)"):
        rmtspec.analyze_checkpoint(folder, journal=tmp_path / "j")
    with pytest.raises(FileError, match=r"other options \(rng was 0, is now 1\)"):
        rmtspec.analyze_checkpoint(folder, journal=tmp_path / "j", noise="auto", rng=1)


@pytest.mark.parametrize(
    "change", [{"noise": {}}, {"noise": {"spectrum": 3}}, {"noise": [1]}], ids=str
)
def test_a_line_whose_noise_is_damaged_is_told(folder, tmp_path, change):
    rmtspec.analyze_checkpoint(folder, journal=tmp_path / "j", noise="auto")
    first, second, *rest = lines(tmp_path / "j")
    line = {key: value for key, value in json.loads(second).items() if key != "crc32"}
    changed = _journal._line({**line, **change})
    (tmp_path / "j").write_bytes(b"".join([first, changed, *rest]))
    with pytest.raises(FileError, match=r"line of '.*\.weight' in the journal is damaged .*Delete"):
        rmtspec.analyze_checkpoint(folder, journal=tmp_path / "j", noise="auto")


def as_before_there_was_noise(journal):
    """Rewrite a journal of noise="mp" as versions without noise models wrote it."""
    header, *entries = (json.loads(line) for line in lines(journal))
    header["schema"] = 1
    for entry in (header, *entries):
        del entry["crc32"]
    for name in ("noise", "rng"):
        del header["settings"][name]
    for entry in entries:
        if "spectrum" in entry:
            del entry["spectrum"]["moments"]
            old = ("noise_", "n_comp", "at_least", "components", "verdict", "bulk_p", "bulk_k",
                   "count_is", "energy_share")  # fmt: skip
            entry["row"] = {k: v for k, v in entry["row"].items() if not k.startswith(old)}
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in (header, *entries))
    journal.write_text(text)


def test_a_journal_from_before_there_was_noise_is_continued(folder, tmp_path):
    journal = tmp_path / "j"
    expected = rmtspec.analyze_checkpoint(folder, journal=journal)
    as_before_there_was_noise(journal)
    kept = lines(journal)[:5]
    journal.write_bytes(b"".join(kept))
    resumed = rmtspec.analyze_checkpoint(folder, journal=journal)
    assert lines(journal)[:5] == kept
    old = [json.loads(line)["name"] for line in kept[1:]]
    assert len(old) == 4
    for row in resumed.rows:
        same = expected.row(row["name"])
        for key in ("variance", "bulk_edge", "n_spikes", "fit_statistic", "fit_pvalue", "rank"):
            assert row[key] == same[key], row["name"]
        if row["name"] in old:
            assert row["verdict"] == "cannot tell"
            assert row["verdict_reason"] == "the entries are not known, only eigenvalues"
            assert row["count_is_safe"] is False
        else:
            assert {**row, "seconds": 0} == {**same, "seconds": 0}
    assert resumed.settings == expected.settings
    assert resumed.parameters_after >= expected.parameters_after
    assert rmtspec.analyze_checkpoint(folder, journal=journal).rows == resumed.rows
    with pytest.raises(FileError, match=r"other options \(noise was mp, is now auto\)"):
        rmtspec.analyze_checkpoint(folder, journal=journal, noise="auto")


def test_a_plain_scan_of_one_matrix_has_the_screen_in_its_journal(tmp_path):
    path = tmp_path / "m.safetensors"
    write_safetensors(
        path, {"heavy.weight": SHARDS["m-00001-of-00002.safetensors"]["heavy.weight"]}
    )
    for _ in range(2):
        row = rmtspec.analyze_checkpoint(path, journal=tmp_path / "j").rows[0]
        assert row["verdict"] == "cannot tell"
        assert row["verdict_reason"].startswith("heavy tails: kurtosis")
