"""Kinds, actions and reasons: what a program may ask of a report."""

import json
import string

import ml_dtypes
import numpy as np
import pytest
from checkpoints import noise, planted, write_safetensors

import rmtspec
from rmtspec.report import Report
from rmtspec.terms import Action, Kind, Why

SAMPLES = {
    "pvalue": 0.03,
    "distance": 0.011,
    "dispersion": 0.2,
    "null": 0.01,
    "kurtosis": 9.0,
    "statistic": 0.25,
    "cutoff": 0.1,
    "break_even": 61.25,
    "saving": 0.031,
    "least": 0.5,
    "share": 0.03,
    "variance": 0.01,
    "error": 0.02,
}


def sample(why):
    fields = [field for _, field, _, _ in string.Formatter().parse(why) if field]
    return why.words(**{field: SAMPLES.get(field, f"a.{field}[0]") for field in fields})


def unknown(*reports):
    """Return the reasons of reports that are not among the enumerated ones."""
    reasons = {entry["reason"] for report in reports for entry in (*report.rows, *report.skipped)}
    return [reason for reason in sorted(reasons) if Why.OTHER in Why.of(reason)]


def whys(report, part="rows"):
    return {entry["name"]: Why.of(entry["reason"]) for entry in getattr(report, part)}


@pytest.mark.parametrize("why", Why)
def test_a_reason_is_found_in_its_own_words(why):
    assert Why.of(sample(why)) == (why,)
    assert type(sample(why)) is str


@pytest.mark.parametrize("why", [why for why in Why if why is not Why.OTHER])
def test_a_reason_is_found_beside_others(why):
    both = f"{Why.NO_BULK}; {sample(why)}"
    assert Why.of(both) == (Why.NO_BULK, why)
    assert Why.of(f"{sample(Why.UNRELIABLE)}; {both}") == (Why.UNRELIABLE, Why.NO_BULK, why)


def test_words_that_are_no_reason():
    assert Why.of("") == ()
    assert Why.of("no bulky goods") == (Why.OTHER,)
    assert Why.of("m.safetensors cannot be read at 'w': gone. Read it again.") == (Why.OTHER,)
    # The words within a name or an error are not taken for a reason.
    assert Why.of("tied to no bulk") == (Why.TIED,)
    assert Why.of("damaged: that compression is not supported") == (Why.DAMAGED,)
    assert Why.of("a\nb of the same layer was skipped") == (Why.LAYER_SKIPPED,)


def test_kinds_of_one_family():
    assert Kind.LINEAR.family is Kind.TRANSPOSED_LINEAR.family is Kind.MATRIX.family is Kind.MATRIX
    convolutions = {Kind.CONV1D, Kind.CONV2D, Kind.CONV3D, Kind.TRANSPOSED_CONV, Kind.CONV}
    assert {kind for kind in Kind if kind.family is Kind.CONV} == convolutions
    others = set(Kind) - convolutions - {Kind.LINEAR, Kind.TRANSPOSED_LINEAR}
    assert all(kind.family is kind for kind in others)


def test_actions_as_files_have_them():
    assert [Action(word) for word in ("split", "narrow", "truncate", "keep")] == list(Action)
    assert Action("leave") is Action.LEAVE == "keep"
    with pytest.raises(ValueError, match="'drop' is not a valid Action"):
        Action("drop")


def test_rows_hold_plain_strings(tmp_path):
    report = rmtspec.analyze_many({"w": noise(20, 20)}, kind=Kind.EXPERT)
    row = report.rows[0]
    assert (row["kind"], type(row["kind"]), type(row["reason"])) == ("expert", str, str)
    report.to_json(tmp_path / "r.json")
    assert Report.from_json(tmp_path / "r.json").rows == report.rows


def test_reasons_of_an_analysis(tmp_path):
    noisy, broken = noise(60, 50, seed=1), noise(60, 50)
    broken[3, 4] = np.nan
    flat = np.outer(np.arange(60.0), np.arange(50.0))
    source = {"noise": noisy, "nan": broken, "flat": flat, "thin": noise(60, 10), "row": noise(5)}
    report = rmtspec.analyze_many(source, beta=0.001)
    assert whys(report) == {
        "noise": (Why.NO_SIGNAL,),
        "flat": (Why.NO_BULK,),
        "thin": (Why.UNRELIABLE, Why.NO_SIGNAL),
    }
    assert whys(report, "skipped") == {"nan": (Why.NOT_FINITE,), "row": (Why.OTHER,)}
    half = rmtspec.analyze_many(source, rule="fraction", keep=0.9)
    assert whys(half)["noise"] == (Why.SAVES_NOTHING,)
    # And read back from a file.
    report.to_json(tmp_path / "r.json")
    assert whys(Report.from_json(tmp_path / "r.json")) == whys(report)


TENSORS = {
    "fc.weight": planted(),
    "fc.bias": noise(120),
    "steps": np.array(9),
    "scale": np.array(1.0, np.float32),
    "none.weight": noise(0, 4),
    "five.weight": np.zeros((2, 1, 1, 1, 1, 2), np.float32),
    "ids.weight": np.ones((20, 20), np.int64),
    "attn.mask": noise(20, 20),
    "attn.pos_bias": noise(20, 20),
    "fc.scales": noise(20, 20),
    "fp8.weight": noise(40, 30, dtype=ml_dtypes.float8_e4m3fn),
    "fp8.weight_scale": noise(40, 1),
    "byte.weight": noise(40, 30, dtype=ml_dtypes.float8_e4m3fn),
    "embed.weight": planted(seed=1),
    "conv.weight": noise(40, 10, 3, 3),
    "A_log": planted(seed=2),
    "rnn.weight_ih_l0": noise(80, 20),
    "rnn.weight_hh_l0": noise(80, 20),
    "in_proj_weight": noise(96, 32),
    "mlp.experts.w1": noise(2, 40, 30),
    "mlp.experts.w1[0]": noise(40, 30),
    "twice.weight": planted(seed=3),
    "twice.outer.weight": noise(30, 30),
    "head.weight": noise(10, 60),
    "zero.weight": np.zeros((40, 30), np.float32),
    "full.weight": noise(50, 40),
}


def test_every_reason_of_a_file_is_known(tmp_path):
    path = write_safetensors(tmp_path / "m.safetensors", TENSORS)
    given = (
        {"bulk_keep": 0.0},
        {"rule": "fraction", "keep": 0.8},
        {"rule": "fraction", "keep": 1.0, "mode": "truncate"},
        {"rule": "fraction", "keep": 0.2, "min_saving": 0.9},
        {"bulk_keep": 0.3, "fit_cutoff": 1e-9},
        {"budget": 0.9, "mode": "split"},
        {"bulk_keep": 0.0, "include": "fc|conv"},
    )
    reports = [rmtspec.prune_checkpoint(path, None, dry_run=True, **options) for options in given]
    reports.append(rmtspec.analyze_checkpoint(path, exclude="^full"))
    assert unknown(*reports) == []
    met = {why for report in reports for part in ("rows", "skipped")
           for found in whys(report, part).values() for why in found}  # fmt: skip
    assert met == {
        Why.NO_BULK, Why.NO_SIGNAL, Why.ALL_ZERO, Why.TOO_SMALL, Why.UNRELIABLE, Why.FIT_REJECTED,
        Why.SAVES_NOTHING, Why.SAVES_LITTLE, Why.FULL_RANK, Why.STAYS_DENSE, Why.NOT_INCLUDED,
        Why.EXCLUDED, Why.NOT_NAMED, Why.EMPTY, Why.NUMBER, Why.VECTOR, Why.DIMENSIONS, Why.BIAS,
        Why.BUFFER, Why.SCALES, Why.SCALED, Why.WHOLE_NUMBERS, Why.SECOND_MATRIX, Why.TOO_COARSE,
        Why.PART_OF_TENSOR, Why.LAYER_UNKNOWN, Why.NAME_TAKEN,
    }  # fmt: skip


def test_every_reason_of_an_archive_is_known(tmp_path):
    path = tmp_path / "m.npz"
    structured = np.zeros((4, 4), [("a", "<f4")])
    arrays = {"w": noise(30, 20), "pair": structured, "object": np.array([[None]])}
    np.savez(path, **arrays, complex=np.ones((4, 4), complex))
    report = rmtspec.analyze_checkpoint(path)
    assert whys(report, "skipped") == {
        "object": (Why.PICKLED,), "pair": (Why.NOT_REAL,), "complex": (Why.NOT_REAL,)
    }  # fmt: skip


def test_a_plan_carried_out(tmp_path):
    path = write_safetensors(tmp_path / "m.safetensors", TENSORS)
    plan = rmtspec.prune_checkpoint(path, None, dry_run=True, bulk_keep=0.0)
    rows = json.loads(plan.to_json())["rows"]
    for row in rows:
        if row["name"] == "head.weight":
            row["reason"] = ""
    given = Report(rows, plan.skipped, plan.settings, plan.versions, {})
    done = rmtspec.prune_checkpoint(path, None, plan=given, dry_run=True)
    assert unknown(done) == []
    assert whys(done)["head.weight"] == (Why.KEPT_BY_PLAN,)
