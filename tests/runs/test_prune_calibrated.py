"""A checkpoint pruned by what calibration says of its layers: as the adapter does in memory."""

import json

import numpy as np
import pytest

from rmtspec import prune_checkpoint
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError, InvalidValueError
from rmtspec.matrix.split import split
from rmtspec.planning.calibration import Calibration

RNG = np.random.default_rng(0)
SHAPES = {"a": (64, 48), "b": (48, 64), "head": (30, 48)}
WEIGHTS = {name: RNG.standard_normal(shape) for name, shape in SHAPES.items()}


def moment(side):
    x = RNG.standard_normal((300, side)) * np.geomspace(0.1, 3.0, side)
    return x.T @ x / 300


MOMENTS = {name: moment(columns) for name, (_, columns) in SHAPES.items()}
MATTER = {name: np.geomspace(1e-3, 1.0, rows) for name, (rows, _) in SHAPES.items()}


def calibration(names=("a", "b"), **more):
    return Calibration(
        **{
            "objective": "loss", "gradient": "the given loss", "inputs": {n: n for n in names},
            "input_moments": {n: [MOMENTS[n]] for n in names},
            "input_rows": dict.fromkeys(names, 300),
            "output_weights": {n: [MATTER[n]] for n in names}, "losses": 300, **more,
        }
    )  # fmt: skip


@pytest.fixture
def model(tmp_path):
    from safetensors.numpy import save_file

    stored = {f"{name}.weight": W.astype(np.float32) for name, W in WEIGHTS.items()}
    save_file(stored, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def tensors(folder):
    from safetensors.numpy import load_file

    return load_file(next(folder.glob("*.safetensors")))


def test_matrices_are_split_by_inputs_and_outputs(model, tmp_path):
    done = prune_checkpoint(
        model, tmp_path / "out", calibration=calibration(), ranks={"a": 9, "b": 7}
    )
    found = tensors(tmp_path / "out")
    for name, rank in (("a", 9), ("b", 7)):
        parts = split(
            WEIGHTS[name].astype(np.float32), rank,
            input_moment=MOMENTS[name], output_weight=MATTER[name],
        )  # fmt: skip
        product = found[f"{name}.outer.weight"] @ found[f"{name}.inner.weight"]
        np.testing.assert_allclose(product, parts.outer @ parts.inner, atol=1e-5)
        row = done.row(f"{name}.weight")
        assert row["predicted_loss"] == pytest.approx(parts.predicted_loss)
        assert row["output_error"] == pytest.approx(parts.output_error)


def test_a_budget_goes_by_the_loss_into_pivot_rows(model, tmp_path):
    done = prune_checkpoint(model, tmp_path / "out", calibration=calibration(), budget=0.5)
    found = tensors(tmp_path / "out")
    cut = {row["name"]: row for row in done.cut}
    assert cut["a.weight"]["form"] == "pivoted"
    kept, mixing = found["a.inner.weight"], found["a.outer.mixing.weight"]
    rows = np.vstack([kept, mixing @ kept])[found["a.outer.place"]]
    parts = split(
        WEIGHTS["a"].astype(np.float32), cut["a.weight"]["rank"], input_moment=MOMENTS["a"],
        output_weight=MATTER["a"],
    )  # fmt: skip
    np.testing.assert_allclose(rows, parts.outer @ parts.inner, atol=1e-4)
    sizes = sum(v.size for n, v in found.items() if "place" not in n)
    assert sizes == sum(row["parameters_after"] for row in done.rows)
    assert done.row("head.weight")["form"] == "plain"  # not known: by its weight alone
    assert "inputs not known: weight only" in done.row("head.weight").get("note", "")
    splits = json.loads((tmp_path / "out/rmtspec.json").read_text())["splits"]
    assert {entry["form"] for entry in splits} == {"plain", "pivoted"}


def test_pivot_rows_are_merged_again(model, tmp_path):
    from rmtspec import merge_checkpoint

    prune_checkpoint(model, tmp_path / "out", calibration=calibration(), budget=0.5)
    dense = prune_checkpoint(
        model, tmp_path / "dense", calibration=calibration(), mode="truncate",
        ranks={"a": 20, "b": 20},
    )  # fmt: skip
    assert dense.row("a.weight")["predicted_loss"] > 0
    merge_checkpoint(tmp_path / "out", tmp_path / "merged")
    merged = tensors(tmp_path / "merged")
    assert {name: value.shape for name, value in merged.items()} == {
        f"{name}.weight": shape for name, shape in SHAPES.items()
    }


def test_another_calibration_is_other_work(model, tmp_path):
    first = prune_checkpoint(model, None, dry_run=True, calibration=calibration(), budget=0.5)
    other = calibration(output_weights={"a": [MATTER["a"][::-1]], "b": [MATTER["b"] * 1e-6]})
    second = prune_checkpoint(model, None, dry_run=True, calibration=other, budget=0.5)
    assert first.row("b.weight")["rank"] > second.row("b.weight")["rank"]
    assert calibration().digest() == calibration().digest() != other.digest()


def test_saved_and_loaded(model, tmp_path):
    calibration().save(tmp_path / "stats.safetensors")
    loaded = Calibration.load(tmp_path / "stats.safetensors")
    assert loaded.digest() == calibration().digest()
    one, two = (
        prune_checkpoint(model, None, dry_run=True, calibration=stats, budget=0.5)
        for stats in (calibration(), loaded)
    )
    assert [row["rank"] for row in one.rows] == [row["rank"] for row in two.rows]


@pytest.mark.parametrize(
    ("options", "message", "kind"),
    [
        (
            {"calibration": 3},
            "`calibration` is a int; expected",
            InvalidOptionTypeError,
        ),
        ({"objective": "loss"}, "`objective` is given without `calibration`", InvalidOptionError),
        (
            {"calibration": calibration(inputs={"x": "x"})},
            "`calibration` knows x and others, none of which",
            InvalidValueError,
        ),
        (
            {"calibration": calibration(transposed=["a"])},
            "holds 'a' transposed .*Prune the model in memory",
            InvalidValueError,
        ),
        (
            {
                "calibration": calibration(
                    inputs={"a": "b"}, input_moments={"b": [MOMENTS["b"]]}, input_rows={"b": 3}
                )
            },
            "has 'a' with 64 inputs and 64 outputs; here it is 64 x 48",
            InvalidValueError,
        ),
    ],
    ids=["number", "no data", "another model", "transposed", "another shape"],
)
def test_calibrations_that_do_not_fit(model, tmp_path, options, message, kind):
    with pytest.raises(kind, match=message):
        prune_checkpoint(model, tmp_path / "out", budget=0.5, **options)
    assert not (tmp_path / "out").exists()
