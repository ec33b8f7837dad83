"""Pruning a weight file: what is written, what is left as it was, and nothing when it fails."""

import dataclasses
import json

import ml_dtypes
import naive
import numpy as np
import pytest
import safetensors
from numpy.testing import assert_allclose
from safetensors.numpy import load_file, save_file

import rmtspec
from rmtspec import ensembles
from rmtspec.checkpoint.index_writer import DENSE_WEIGHTS
from rmtspec.checkpoint.manifest import MANIFEST, WEIGHTS, Manifest, SplitEntry
from rmtspec.checkpoint.safetensors_reader import stored_metadata, stored_tensors
from rmtspec.checkpoint.safetensors_writer import Outgoing, format_dtype, write_safetensors
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError, RmtspecWarning
from rmtspec.report import Report
from rmtspec.runs import prune as _prune_checkpoint
from rmtspec.runs.prune import prune_checkpoint


def planted(rows=120, columns=90, seed=0, dtype="float32"):
    return ensembles.spiked(rows, columns, [5, 20], rng=seed).astype(dtype)


def noise(*shape):
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


KERNEL = planted(60, 48, seed=4).reshape(60, 16, 3)
TENSORS = {
    "fc.weight": planted(),
    "fc.bias": noise(120),
    "token_embed.weight": planted(seed=2),
    "conv.weight": KERNEL,
    "conv.bias": noise(60),
    "in_proj_weight": planted(seed=5),
    "A_log": planted(seed=6),
    "head.weight": noise(10, 120),
    "bn.num_batches_tracked": np.array(9),
}


def write(path, tensors, metadata=None):
    outgoing = [
        Outgoing(name, format_dtype(array.dtype), array.shape, lambda array=array: array)
        for name, array in tensors.items()
    ]
    write_safetensors(path, outgoing, metadata)
    return path


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def truncated(W, k):
    U, s, Vt = np.linalg.svd(np.asarray(W, dtype=np.float64), full_matrices=False)
    return (U[:, :k] * s[:k]) @ Vt[:k]


def raw(path):
    return {t.name: (t.dtype, t.shape, t().tobytes()) for t in stored_tensors(path)}


def actions(report):
    return {row["name"]: row["action"] for row in report.rows}


def test_factors(model, tmp_path):
    before = model.read_bytes()
    done = prune_checkpoint(model, tmp_path / "out", bulk_keep=0.0)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [MANIFEST, WEIGHTS]
    assert [name for name, action in actions(done).items() if action == "split"] == ["fc.weight"]
    weights = tmp_path / "out" / WEIGHTS
    found = load_file(weights)
    row = done.row("fc.weight")
    assert row["rank"] == 2
    assert found["fc.outer.weight"].shape == (120, 2)
    assert found["fc.inner.weight"].shape == (2, 90)
    product = found["fc.outer.weight"] @ found["fc.inner.weight"]
    W = TENSORS["fc.weight"]
    assert_allclose(product, truncated(W, 2), atol=1e-5 * np.abs(W).max())  # float32
    assert_allclose(row["weight_error"], np.linalg.norm(W - product) / np.linalg.norm(W), rtol=1e-5)
    assert found["fc.outer.bias"].tobytes() == TENSORS["fc.bias"].tobytes()
    # Everything else is as it was, and the file was not touched.
    assert found.keys() == {
        *(TENSORS.keys() - {"fc.weight", "fc.bias"}),
        "fc.outer.weight",
        "fc.inner.weight",
        "fc.outer.bias",
    }
    old, new = raw(model), raw(weights)
    assert all(new[name] == old[name] for name in old if not name.startswith("fc."))
    assert model.read_bytes() == before
    assert stored_metadata(weights) == {"format": "pt"}
    manifest = Manifest.read(tmp_path / "out")
    manifest.check_files(tmp_path / "out")
    assert manifest.splits == (SplitEntry("fc", "tensor", 2, (120, 90)),)


def test_totals_are_those_of_the_files(model, tmp_path):
    done = prune_checkpoint(model, tmp_path / "out", bulk_keep=0.0)
    sizes = {
        name: sum(len(content) for _, _, content in raw(path).values())
        for name, path in (("before", model), ("after", tmp_path / "out" / WEIGHTS))
    }
    assert done.totals == {
        "parameters_before": sum(array.size for array in TENSORS.values()),
        "parameters_after": sum(array.size for array in TENSORS.values()) - 120 * 90 + 2 * 210,
        "bytes_before": sizes["before"],
        "bytes_after": sizes["after"],
    }
    row = done.row("fc.weight")
    assert (row["bytes_before"], row["bytes_after"]) == (4 * 120 * 90, 4 * 2 * 210)
    assert done.settings["form"] == "factors"
    assert {"name": "fc.bias", "reason": "1 dimension: a vector has no spectrum"} in done.skipped


def test_dense(model, tmp_path):
    done = prune_checkpoint(model, tmp_path / "out", mode="truncate", bulk_keep=0.0)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [DENSE_WEIGHTS]
    found = load_file(tmp_path / "out" / DENSE_WEIGHTS)
    assert {name: array.shape for name, array in found.items()} == {
        name: array.shape for name, array in TENSORS.items()
    }
    cut = [name for name, action in actions(done).items() if action == "truncate"]
    assert sorted(cut) == ["fc.weight", "in_proj_weight"]
    for name in cut:
        W, k = TENSORS[name], done.row(name)["rank"]
        assert np.linalg.matrix_rank(found[name], tol=1e-4) == k
        assert_allclose(found[name], truncated(W, k), atol=1e-5 * np.abs(W).max())
        error = np.linalg.norm(W - found[name]) / np.linalg.norm(W)
        assert_allclose(done.row(name)["weight_error"], error, rtol=1e-5)
    assert all(np.array_equal(found[n], TENSORS[n]) for n in TENSORS if n not in cut)
    assert done.totals["bytes_after"] == done.totals["bytes_before"]
    assert stored_metadata(tmp_path / "out" / DENSE_WEIGHTS) == {"format": "pt"}


def test_what_is_left_alone_and_why(model):
    done = prune_checkpoint(model, None, dry_run=True, bulk_keep=0.0)
    reasons = {row["name"]: row["reason"] for row in done.rows}
    assert reasons == {
        "fc.weight": "",
        "token_embed.weight": "embedding: cut only where `include` names it",
        "conv.weight": "convolution, groups not in the file: cut only where `include` names it",
        "in_proj_weight": "its name does not end in .weight, so its layer is not known",
        "A_log": "its name does not end in .weight, so its layer is not known",
        "head.weight": "smaller side 10 is below 16",
    }
    done = prune_checkpoint(model, None, dry_run=True, mode="truncate", bulk_keep=0.0)
    assert done.row("A_log")["reason"] == "not called a weight: cut only where `include` names it"
    assert done.row("token_embed.weight")["kind"] == "embedding"


@pytest.mark.parametrize(
    ("name", "embedding"),
    [
        ("model.embed_tokens.weight", True),
        ("transformer.wte.weight", True),
        ("wpe.weight", True),
        ("tok_embeddings.weight", True),
        ("bert.embeddings.word_embeddings.weight", True),
        ("shared.weight", True),
        ("emb.weight", True),
        ("pos_emb.weight", True),
        ("patch_embed.proj.weight", False),
        ("member.weight", False),
        ("shared_expert.weight", False),
    ],
)
def test_embeddings_are_known_by_their_names(tmp_path, name, embedding):
    path = write(tmp_path / "m.safetensors", {name: planted()})
    row = prune_checkpoint(path, None, dry_run=True, bulk_keep=0.0).rows[0]
    assert (row["kind"] == "embedding") == embedding
    assert row["action"] == ("keep" if embedding else "split")
    if embedding:
        row = prune_checkpoint(path, None, dry_run=True, bulk_keep=0.0, include=name).rows[0]
        assert row["action"] == "split"
        assert row["multiply_adds_after"] == row["rank"] * 90


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_out.weight", "output.weight"])
def test_an_output_head_is_cut_only_if_it_is_named(tmp_path, name):
    path = write(tmp_path / "m.safetensors", {name: planted()})
    row = prune_checkpoint(path, None, dry_run=True, bulk_keep=0.0).rows[0]
    assert row["kind"] == "matrix"
    assert row["reason"] == "the output head: cut only where `include` names it"
    row = prune_checkpoint(path, None, dry_run=True, bulk_keep=0.0, include=name).rows[0]
    assert row["action"] == "split"


def test_a_kernel_that_is_named(model, tmp_path):
    done = prune_checkpoint(model, tmp_path / "out", include="^conv$", bulk_keep=0.0)
    assert actions(done) == {"conv.weight": "split"}
    k = done.rows[0]["rank"]
    found = load_file(tmp_path / "out" / WEIGHTS)
    outer, inner = found["conv.outer.weight"], found["conv.inner.weight"]
    assert (outer.shape, inner.shape) == ((60, k, 1), (k, 16, 3))
    assert_allclose(
        np.einsum("okx,kix->oix", np.broadcast_to(outer, (60, k, 3)), inner).reshape(60, -1),
        truncated(KERNEL.reshape(60, -1), k),
        atol=1e-5 * np.abs(KERNEL).max(),
    )
    assert "conv.outer.bias" in found
    assert Manifest.read(tmp_path / "out").splits[0].shape == (60, 16, 3)
    reasons = {entry["name"]: entry["reason"] for entry in done.skipped}
    assert reasons["fc.weight"] == "not in `include`"


def test_a_model_that_is_one_layer(tmp_path):
    path = write(tmp_path / "m.safetensors", {"weight": planted(), "bias": noise(120)})
    prune_checkpoint(path, tmp_path / "out", bulk_keep=0.0)
    names = ["inner.weight", "outer.bias", "outer.weight"]
    assert sorted(load_file(tmp_path / "out" / WEIGHTS)) == names
    assert Manifest.read(tmp_path / "out").splits[0].name == ""


@pytest.mark.parametrize("form", ["factors", "dense"])
def test_bfloat16_and_dtypes_that_numpy_lacks(tmp_path, form):
    W = planted(dtype=ml_dtypes.bfloat16)
    half = np.arange(8, dtype=np.uint8)
    path = tmp_path / "m.safetensors"
    outgoing = [
        Outgoing("fc.weight", "BF16", W.shape, lambda: W),
        Outgoing("packed", "F4", (4, 4), lambda: half, stored_bytes=8),
    ]
    write_safetensors(path, outgoing)
    done = prune_checkpoint(
        path, tmp_path / "out", mode={"factors": "split", "dense": "truncate"}[form], bulk_keep=0.0
    )
    file = tmp_path / "out" / (WEIGHTS if form == "factors" else DENSE_WEIGHTS)
    found = dict(safetensors.deserialize(file.read_bytes()))
    assert bytes(found.pop("packed")["data"]) == half.tobytes()
    assert {entry["dtype"] for entry in found.values()} == {"BF16"}
    parts = [
        np.frombuffer(bytes(entry["data"]), ml_dtypes.bfloat16)
        .reshape(entry["shape"])
        .astype(np.float64)
        for _, entry in sorted(found.items(), reverse=True)
    ]
    product = parts[0] if form == "dense" else parts[0] @ parts[1]
    wide = W.astype(np.float64)
    error = np.linalg.norm(wide - product) / np.linalg.norm(wide)
    assert_allclose(done.rows[0]["weight_error"], error, rtol=1e-5)
    if form == "dense":  # rounded once
        best_at_all = truncated(W, done.rows[0]["rank"]).astype(ml_dtypes.bfloat16)
        assert np.mean(product == best_at_all.astype(np.float64)) > 0.999
    best = np.linalg.norm(wide - truncated(W, done.rows[0]["rank"])) / np.linalg.norm(wide)
    assert abs(error - best) < 0.004  # eight bits
    assert done.totals["bytes_before"] == 2 * W.size + 8


def test_float8_is_not_split(tmp_path):
    path = write(tmp_path / "m.safetensors", {"fc.weight": planted(dtype=ml_dtypes.float8_e4m3fn)})
    with pytest.raises(InvalidValueError, match="dtype F8_E4M3 is too coarse for factors"):
        prune_checkpoint(path, tmp_path / "out")


def test_trained_mlp(data_folder, tmp_path):
    path = data_folder / "models" / "mlp-784-1000-10-mnist.safetensors"
    old = load_file(path)
    done = prune_checkpoint(path, tmp_path / "out")
    row = done.row("0.weight")
    assert (row["verdict"], row["rule"]) == ("noise-like bulk", "noise")
    count = row["n_components"]
    assert count == pytest.approx(64, abs=2)
    assert (row["action"], row["rank"]) == ("split", count + int(0.45 * (784 - count)))
    plain = prune_checkpoint(path, None, dry_run=True, gate=0.1).row("0.weight")
    assert (plain["rule"], plain["n_spikes"]) == ("bema", 70)
    assert (plain["action"], plain["rank"]) == ("split", 70 + int(0.45 * (784 - 70)))
    new = load_file(tmp_path / "out" / WEIGHTS)
    product = new["0.outer.weight"] @ new["0.inner.weight"]
    error = np.linalg.norm(old["0.weight"] - product) / np.linalg.norm(old["0.weight"])
    assert_allclose(row["weight_error"], error, rtol=1e-4)  # float32 sums here
    assert new["0.outer.bias"].tobytes() == old["0.bias"].tobytes()
    assert new["2.weight"].tobytes() == old["2.weight"].tobytes()
    assert done.totals["bytes_after"] == sum(array.nbytes for array in new.values())
    Manifest.read(tmp_path / "out").check_files(tmp_path / "out")


def test_trained_resnet(data_folder, tmp_path):
    path = data_folder / "models" / "resnet20-cifar10.safetensors"
    with pytest.raises(InvalidValueError, match="convolution, groups not in the file"):
        prune_checkpoint(path, tmp_path / "out")
    # No bulk of these kernels is noise, as far as one can tell: they stay, and the words say why.
    options = {"include": "layer3.*conv", "bulk_keep": 0.0}
    with pytest.raises(InvalidValueError, match=r"no noise-like bulk: let data decide .*: 6 "):
        prune_checkpoint(path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    done = prune_checkpoint(path, tmp_path / "out", gate=None, **options)
    cut = {name.removesuffix(".weight") for name, a in actions(done).items() if a == "split"}
    assert len(cut) == 6
    old, new = raw(path), raw(tmp_path / "out" / WEIGHTS)
    for name, content in old.items():
        if name.removesuffix(".weight") not in cut:
            assert new[name] == content
    assert len(new) == len(old) + len(cut)


def test_ranks_budget_cutoff_and_saving(model):
    done = prune_checkpoint(model, None, dry_run=True, ranks={"head": 3, "fc.weight": 80})
    assert (done.row("head.weight")["action"], done.row("head.weight")["rank"]) == ("split", 3)
    assert done.row("fc.weight")["rank"] == 80
    done = prune_checkpoint(model, None, dry_run=True, budget=0.2)
    assert done.row("fc.weight")["rank"] == int(0.2 * 120 * 90 / 210)
    assert (done.settings["budget"], "bulk_keep" in done.settings) == (0.2, False)
    assert prune_checkpoint(model, None, dry_run=True).settings["bulk_keep"] == 0.45


@pytest.mark.parametrize(("rule", "share"), [("energy", 0.9), ("fraction", 0.3)])
def test_rules_without_a_law_decide_the_ranks(model, tmp_path, rule, share):
    done = prune_checkpoint(model, tmp_path / "out", rule=rule, keep=share)
    row = done.row("fc.weight")
    squares = np.linalg.svd(TENSORS["fc.weight"].astype(np.float64), compute_uv=False) ** 2
    expected = naive.energy_rank(squares, share) if rule == "energy" else 27
    assert (row["action"], row["rank"], row["rule"], row["keep"]) == (
        "split",
        expected,
        rule,
        share,
    )
    if rule == "energy":
        assert row["weight_error"] <= (1 - share) ** 0.5
    settings = done.settings
    assert (settings["rule"], settings["keep"], settings["bulk_keep"]) == (rule, share, 0.0)
    inner = load_file(tmp_path / "out" / WEIGHTS)["fc.inner.weight"]
    assert inner.shape == (expected, 90)


def test_a_given_rank_or_a_budget_has_no_share(model):
    options = {"rule": "energy", "keep": 0.3, "ranks": {"fc": 4}}
    done = prune_checkpoint(model, None, dry_run=True, **options)
    assert (done.row("fc.weight")["rule"], done.row("fc.weight")["keep"]) == ("given", None)
    assert done.row("head.weight")["keep"] == 0.3
    done = prune_checkpoint(model, None, dry_run=True, budget=0.2)
    assert {row["keep"] for row in done.rows} == {None}
    assert "keep" not in done.settings
    done = prune_checkpoint(model, None, dry_run=True, fit_cutoff=1e-4)
    assert done.row("fc.weight")["reason"].startswith("fit rejected: statistic")
    done = prune_checkpoint(model, None, dry_run=True, min_saving=0.999)
    assert "less than min_saving 99.9%" in done.row("fc.weight")["reason"]
    done = prune_checkpoint(model, None, dry_run=True, exclude="fc|conv", bulk_keep=0.0)
    assert {entry["name"]: entry["reason"] for entry in done.skipped}["fc.weight"] == "in `exclude`"


def test_a_dry_run_writes_nothing_and_foretells_the_sizes(model, tmp_path):
    before = sorted(tmp_path.iterdir())
    planned = prune_checkpoint(model, tmp_path / "out", dry_run=True, bulk_keep=0.0)
    assert sorted(tmp_path.iterdir()) == before
    done = prune_checkpoint(model, tmp_path / "out", bulk_keep=0.0)
    assert planned.totals == done.totals
    assert_allclose(
        planned.row("fc.weight")["weight_error"], done.row("fc.weight")["weight_error"], rtol=1e-5
    )


def edited(model, tmp_path, **changes):
    """A plan as read from JSON, with changes to the row of fc.weight."""
    planned = prune_checkpoint(model, None, dry_run=True, bulk_keep=0.0)
    planned.to_json(tmp_path / "plan.json")
    plan = Report.from_json(tmp_path / "plan.json")
    plan.row("fc.weight").update(changes)
    return plan


def test_an_edited_plan_is_carried_out(model, tmp_path):
    plan = edited(model, tmp_path, rank=7)
    plan.row("head.weight").update(action="split", rank=4)
    plan.row("in_proj_weight").update(action="truncate", rank=5)
    done = prune_checkpoint(model, tmp_path / "out", plan=plan)
    found = load_file(tmp_path / "out" / WEIGHTS)
    assert found["fc.outer.weight"].shape == (120, 7)
    assert found["head.inner.weight"].shape == (4, 120)
    assert np.linalg.matrix_rank(found["in_proj_weight"], tol=1e-4) == 5
    assert done.row("head.weight")["reason"] == ""
    assert done.row("head.weight")["parameters_after"] == 4 * 130
    assert done.totals["bytes_after"] == sum(array.nbytes for array in found.values())
    assert [entry.name for entry in Manifest.read(tmp_path / "out").splits] == ["fc", "head"]
    assert plan.row("fc.weight")["weight_error"] != done.row("fc.weight")["weight_error"]


def test_what_a_plan_says_of_sizes_and_errors_is_not_believed(model, tmp_path):
    plan = edited(model, tmp_path, rank=7, bytes_before=10**9, kind="embedding", layer="other")
    row = prune_checkpoint(model, None, plan=plan, dry_run=True).row("fc.weight")
    assert row["weight_error"] is None  # of rank 7 it is not known yet
    assert (row["bytes_before"], row["kind"], row["layer"]) == (4 * 120 * 90, "matrix", "fc")
    assert row["bytes_after"] == 4 * 7 * 210


def test_a_plan_of_splits_made_dense(model, tmp_path):
    done = prune_checkpoint(model, tmp_path / "out", plan=edited(model, tmp_path), mode="truncate")
    found = load_file(tmp_path / "out" / DENSE_WEIGHTS)
    assert np.linalg.matrix_rank(found["fc.weight"], tol=1e-4) == 2
    assert done.row("fc.weight")["action"] == "truncate"
    assert done.row("fc.weight")["parameters_after"] == 120 * 90


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": "cut"}, "action of 'fc.weight' is 'cut'"),
        ({"rank": 91}, "from 1 to 90"),
        ({"rank": 0}, "from 1 to 90"),
        ({"rank": "7"}, "expected a whole number"),
        ({"name": "fd.weight"}, r"names 'fd\.weight', which is not .* Did you mean 'fc\.weight'"),
        ({"name": "head.weight"}, r"two rows named|as 120 x 90"),
        ({"columns": 91}, r"as 120 x 91; in .* it is 120 x 90"),
    ],
)
def test_plans_that_cannot_be_carried_out(model, tmp_path, changes, message):
    plan = edited(model, tmp_path, **changes)
    with pytest.raises((InvalidValueError, InvalidTypeError), match=message):
        prune_checkpoint(model, tmp_path / "out", plan=plan)
    assert not (tmp_path / "out").exists()


def test_plans_that_are_none_or_not_alone(model, tmp_path):
    plan = edited(model, tmp_path)
    plan.row("in_proj_weight").update(action="split", rank=3)
    with pytest.raises(InvalidValueError, match=r"must stay as it is: its name does not end in"):
        prune_checkpoint(model, tmp_path / "out", plan=plan)
    report = dataclasses.replace(plan, rows=[{"name": "fc.weight", "rows": 120, "columns": 90}])
    with pytest.raises(InvalidValueError, match="this is a report, not a plan"):
        prune_checkpoint(model, tmp_path / "out", plan=report)
    twice = dataclasses.replace(plan, rows=[plan.rows[0], plan.rows[0]])
    with pytest.raises(InvalidValueError, match="two rows named"):
        prune_checkpoint(model, tmp_path / "out", plan=twice)
    for given in (
        {"bulk_keep": 0.1}, {"ranks": {"fc": 3}}, {"include": "fc"}, {"alpha": 0.2},
        {"rule": "energy", "keep": 0.9}, {"keep": 0.9},
    ):  # fmt: skip
        with pytest.raises(InvalidValueError, match=f"`plan` and `{next(iter(given))}` are both"):
            prune_checkpoint(model, tmp_path / "out", plan=edited(model, tmp_path), **given)
    kept = edited(model, tmp_path, action="keep")
    with pytest.raises(InvalidValueError, match=r"nothing was written: .*kept by the plan: 1"):
        prune_checkpoint(model, tmp_path / "out", plan=kept)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"form": "thin"}, InvalidValueError, "`form` is 'thin'"),
        ({"mode": "thin"}, InvalidValueError, "`mode` is 'thin'"),
        ({"bulk_keep": 2}, InvalidValueError, "`bulk_keep` is 2"),
        ({"fit_cutoff": 7}, InvalidValueError, "`fit_cutoff` is 7"),
        ({"min_saving": 2}, InvalidValueError, "`min_saving` is 2"),
        ({"budget": 0}, InvalidValueError, "`budget` is 0"),
        ({"budget": 0.5, "mode": "truncate"}, InvalidValueError, "mode='truncate' saves none"),
        ({"budget": 0.5, "bulk_keep": 0.1}, InvalidValueError, "`budget` and `bulk_keep` are both"),
        ({"budget": 0.5, "rule": "bema"}, InvalidValueError, "`budget` and `rule` are both"),
        ({"budget": 0.5, "keep": 0.9}, InvalidValueError, "`budget` and `keep` are both"),
        ({"rule": "energy"}, InvalidValueError, "`rule` is 'energy' and `keep` is not given"),
        ({"keep": 0.9}, InvalidValueError, "`keep` is 0.9 and `rule` 'noise'"),
        (
            {"rule": "energy", "keep": 0.9, "bulk_keep": 0},
            InvalidValueError,
            "`bulk_keep` is 0 and `rule` 'energy'; `bulk_keep` belongs to the rules",
        ),
        ({"rule": "magic", "bulk_keep": 0}, InvalidValueError, "`rule` is 'magic'"),
        ({"include": "("}, InvalidValueError, "not a regular expression"),
        ({"exclude": 3}, InvalidTypeError, "`exclude` is 3"),
        ({"n_jobs": 0}, InvalidValueError, "`n_jobs` is 0"),
        ({"threads": 0}, InvalidValueError, "`threads` is 0"),
        ({"progress": 3}, InvalidTypeError, "`progress` is 3"),
        ({"alpha": 0.7}, InvalidValueError, "`alpha` is 0.7"),
        ({"cutoff": 0.1}, InvalidTypeError, "`cutoff` is called `gate` here"),
        ({"gate": "auto"}, InvalidValueError, "`gate` is 'auto'; expected 'noise', None, or a n"),
        ({"gate": 0.1, "fit_cutoff": 0.2}, InvalidValueError, "`gate` is 0.1 and `fit_cutoff` 0.2"),
        ({"unheard": 1}, InvalidTypeError, "`unheard` is not an option"),
        ({"out": None}, InvalidTypeError, "`out` is None; expected a folder"),
        ({"ranks": {"fd": 3}}, InvalidValueError, "`ranks` names 'fd'"),
        ({"ranks": {"fc": 91}}, InvalidValueError, "from 1 to 90"),
        ({"ranks": {"conv.bias": 3}}, InvalidValueError, "not among the 6 chosen"),
    ],
)
def test_wrong_options_are_said_before_any_work(
    model, tmp_path, monkeypatch, options, error, message
):
    monkeypatch.setattr(_prune_checkpoint, "outcomes", lambda *_, **__: pytest.fail("it worked"))
    with pytest.raises(error, match=message):
        prune_checkpoint(model, **{"out": tmp_path / "out", **options})
    assert list(tmp_path.iterdir()) == [model]


def test_the_old_name_of_mode_warns_and_works(model, tmp_path):
    for form, mode in (("factors", "split"), ("dense", "truncate")):
        with pytest.warns(RmtspecWarning, match=f"`form` is now called `mode`: pass mode='{mode}'"):
            old = prune_checkpoint(model, tmp_path / form, form=form, bulk_keep=0.0)
        new = prune_checkpoint(model, tmp_path / mode, mode=mode, bulk_keep=0.0)
        assert type(old) is type(new) is rmtspec.Plan
        assert [r["rank"] for r in old.rows] == [r["rank"] for r in new.rows]
        files = [sorted(f.name for f in (tmp_path / name).iterdir()) for name in (form, mode)]
        assert files[0] == files[1]
    with pytest.raises(InvalidValueError, match="`form` is 'factors' and `mode` 'truncate'"):
        prune_checkpoint(model, tmp_path / "both", form="factors", mode="truncate")


def test_a_rank_of_what_must_stay(model, tmp_path):
    with pytest.raises(InvalidValueError, match="'in_proj_weight', which stays as it is"):
        prune_checkpoint(model, tmp_path / "out", ranks={"in_proj_weight": 3})


def test_nothing_to_cut(model, tmp_path):
    with pytest.raises(InvalidValueError) as caught:
        prune_checkpoint(
            model, tmp_path / "out", include="^(head.weight|nowhere)$", exclude=["x", "he"]
        )
    shown = str(caught.value)
    assert "would be cut, so nothing was written: no name matches exclude='x'; " in shown
    assert "in `exclude`: 1 (head.weight)" in shown
    with pytest.raises(InvalidValueError, match="no name matches include='nowhere'; "):
        prune_checkpoint(model, tmp_path / "out", include="nowhere", dry_run=True)
    empty = write(tmp_path / "empty.safetensors", {})
    with pytest.raises(InvalidValueError, match=r"nothing was written: it holds no tensors\."):
        prune_checkpoint(empty, tmp_path / "out")
    broken = write(tmp_path / "nan.safetensors", {"fc.weight": np.full((40, 30), np.nan)})
    with pytest.raises(InvalidValueError, match="nan"):
        prune_checkpoint(broken, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([model, empty, broken])


def test_inputs_that_cannot_be_used(model, tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        prune_checkpoint(tmp_path / "missing.safetensors", tmp_path / "out")
    (tmp_path / "cut.safetensors").write_bytes(model.read_bytes()[:-10])
    with pytest.raises(FileError, match="truncated"):
        prune_checkpoint(tmp_path / "cut.safetensors", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.safetensors", "m.safetensors"]
    prune_checkpoint(model, tmp_path / "out")
    with pytest.raises(FileError, match="holds the factors of a split model"):
        prune_checkpoint(tmp_path / "out" / WEIGHTS, tmp_path / "again")
    (tmp_path / "out" / MANIFEST).unlink()
    report = prune_checkpoint(tmp_path / "out" / WEIGHTS, None, dry_run=True)
    assert "fc.outer.weight" in actions(report)


def test_names_that_the_factors_need(tmp_path):
    tensors = {"fc.weight": planted(), "fc.outer.weight": noise(3, 3), "b.weight": planted()}
    path = write(tmp_path / "m.safetensors", tensors)
    done = prune_checkpoint(path, tmp_path / "out", bulk_keep=0.0)
    assert done.row("fc.weight")["reason"] == "the file has a tensor 'fc.outer.weight' already"
    assert actions(done)["b.weight"] == "split"


def test_out_that_cannot_be_written_is_said_before_any_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(_prune_checkpoint, "outcomes", lambda *_, **__: pytest.fail("it worked"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    cases = {
        full: "is not empty",
        full / "mine": "is a file",
        tmp_path / "no" / "out": "does not exist",
    }
    for out, message in cases.items():
        for dry_run in (False, True):
            with pytest.raises(FileError, match=message):
                prune_checkpoint(model, out, dry_run=dry_run)
    assert (full / "mine").read_text() == "x"
    monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as root
    with pytest.raises(FileError, match="write-protected"):
        prune_checkpoint(model, tmp_path / "out")


def test_an_empty_folder_is_filled(model, tmp_path):
    (tmp_path / "out").mkdir()
    prune_checkpoint(model, tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).is_file()


def test_the_report_is_json_ready(model, tmp_path):
    done = prune_checkpoint(model, tmp_path / "out", bulk_keep=0.0)
    content = json.loads(done.to_json(), parse_constant=pytest.fail)
    assert content["totals"] == done.totals
    assert "split" in repr(done)
    done.to_csv()
    done.to_html()
