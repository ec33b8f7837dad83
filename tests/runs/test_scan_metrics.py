"""Metrics of a checkpoint: in the journal, from several processes, against initial weights."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import rmtspec
from rmtspec import ensembles
from rmtspec.errors import FileError, InvalidOptionError
from rmtspec.report import many
from rmtspec.report.metric_columns import METRIC_NUMBERS
from rmtspec.runs import analyze as _scan

TENSORS = {
    f"layers.{k}.weight": ensembles.spiked(60, 40, [6 + k], rng=k).astype("f4") for k in range(3)
}


@pytest.fixture
def places(tmp_path):
    save_file(TENSORS, tmp_path / "m.safetensors")
    save_file({name: W * 0.9 for name, W in TENSORS.items()}, tmp_path / "init.safetensors")
    return tmp_path / "m.safetensors", tmp_path / "init.safetensors", tmp_path / "j"


def rows(report):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in report.rows]


@pytest.mark.parametrize("noise", ["mp", "auto"])
def test_a_journal_holds_them(places, monkeypatch, noise):
    model, init, journal = places
    options = {"metrics": True, "init": init, "noise": noise}
    whole = rmtspec.analyze_checkpoint(model, **options)
    assert all(set(METRIC_NUMBERS) <= set(row) for row in whole.rows)
    assert whole.rows[0]["relative_distance_to_init"] == pytest.approx(1 / 9, rel=1e-5)
    rmtspec.analyze_checkpoint(model, journal=journal, **options)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]))  # as a kill during the last leaves it
    calls = []
    usual = many.outcome_of
    monkeypatch.setattr(many, "outcome_of", lambda *a: calls.append(a) or usual(*a))
    resumed = rmtspec.analyze_checkpoint(model, journal=journal, **options)
    assert len(calls) == 1
    assert rows(resumed) == rows(whole)
    calls.clear()
    assert rows(rmtspec.analyze_checkpoint(model, journal=journal, **options)) == rows(whole)
    assert not calls


@pytest.mark.slow  # processes start
def test_processes(places):
    model, init, _ = places
    one = rmtspec.analyze_checkpoint(model, metrics=True, init=init)
    assert rows(rmtspec.analyze_checkpoint(model, metrics=True, init=init, n_jobs=2)) == rows(one)


def test_a_journal_of_another_run_is_refused(places):
    model, init, journal = places
    rmtspec.analyze_checkpoint(model, journal=journal)
    with pytest.raises(FileError, match=r"journal of other options \(metrics was None"):
        rmtspec.analyze_checkpoint(model, journal=journal, metrics=True)
    journal.unlink()
    rmtspec.analyze_checkpoint(model, journal=journal, metrics=True, init=init)
    save_file(TENSORS, init)
    with pytest.raises(FileError, match=r"journal of other options \(init was"):
        rmtspec.analyze_checkpoint(model, journal=journal, metrics=True, init=init)
    with pytest.raises(InvalidOptionError, match="`init` is a mapping and `journal` is given"):
        rmtspec.analyze_checkpoint(model, journal=journal, metrics=True, init=TENSORS)


def test_a_damaged_line_is_told(places):
    model, _, journal = places
    rmtspec.analyze_checkpoint(model, journal=journal, metrics=True)
    with _scan.open_journal(journal, _header(model)) as opened:
        entry = dict(opened.entries[0])
        del entry["metrics"]
        opened.add(entry)
    with pytest.raises(FileError, match="is damaged"):
        rmtspec.analyze_checkpoint(model, journal=journal, metrics=True)


def _header(model):
    options = _scan.AnalysisOptions(metrics=True)
    return {
        "command": "analyze", "checkpoint": _scan.fingerprint(_scan.matrices_in(model)),
        "settings": options.settings | _scan.Selection(None, None).settings,
        "versions": _scan.versions(),
    }  # fmt: skip


def test_a_plan_has_them_too(places):
    plan = rmtspec.prune_checkpoint(places[0], None, dry_run=True, metrics=True)
    assert np.isfinite([row["stable_rank"] for row in plan.rows]).all()
