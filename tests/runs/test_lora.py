"""Adapters of LoRA: taken out of two checkpoints, resized, analysed; on folders of arrays."""

import json

import ml_dtypes
import numpy as np
import pytest
from checkpoints import noise, planted, write_safetensors
from click.testing import CliRunner
from numpy.testing import assert_allclose
from safetensors.numpy import load_file

import rmtspec
from rmtspec import cli
from rmtspec.checkpoint import matrices_in
from rmtspec.errors import FileError, InvalidValueError

OUTPUTS, INPUTS = 160, 120


def low_rank(rank, strength, seed=0, shape=(OUTPUTS, INPUTS)):
    """A matrix with `rank` equal singular values: strength times the detection limit of noise 1."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((side, rank)))[0] for side in shape)
    return strength * (shape[0] * shape[1]) ** 0.25 * left @ right.T


def two(tmp_path, changes, base=None, dtype="float32"):
    """Write two checkpoints, which differ by `changes`; return their paths."""
    base = {name: noise(*change.shape, seed=7) for name, change in changes.items()} | (base or {})
    tuned = dict(base)
    for name, change in changes.items():
        tuned[name] = base[name].astype("float64") + change
    kind = getattr(ml_dtypes, dtype, dtype)
    for name, tensors in (("base", base), ("tuned", tuned)):
        kept = {n: t if t.dtype.kind in "iu" else t.astype(kind) for n, t in tensors.items()}
        write_safetensors(tmp_path / f"{name}.safetensors", kept)
    return tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"


def deltas(folder):
    """The changes that an adapter makes, as PEFT multiplies them, by layer."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors, found = load_file(folder / "adapter_model.safetensors"), {}
    for name, A in tensors.items():
        if name.endswith("lora_A.weight"):
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            B = tensors[name.replace("lora_A", "lora_B")]
            key = f"^{layer}".replace(".", r"\.")
            assert config["rank_pattern"][key] == config["alpha_pattern"][key] == len(A)
            found[layer] = B.reshape(len(B), -1) @ A.reshape(len(A), -1)
    return found


@pytest.mark.parametrize("seed", range(10))
def test_a_change_under_noise_has_its_rank(tmp_path, seed):
    rng = np.random.default_rng(100 + seed)
    change = low_rank(16, 2.0, seed) + rng.standard_normal((OUTPUTS, INPUTS))
    base, tuned = two(tmp_path, {"m.fc.weight": 1e-3 * change})
    done = rmtspec.extract_lora(base, tuned, tmp_path / "out", beta=0.01)
    row = done.row("m.fc.weight")
    assert row["rank"] == 16
    made = deltas(tmp_path / "out")["m.fc"]
    difference = load_file(tuned)["m.fc.weight"].astype(float) - load_file(base)["m.fc.weight"]
    u, s, vt = np.linalg.svd(difference)
    assert_allclose(made, (u[:, :16] * s[:16]) @ vt[:16], atol=1e-6)
    assert_allclose(row["weight_error"], np.linalg.norm(made - difference) / np.linalg.norm(s),
                    rtol=1e-4)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_merged_adapter_is_found_again(tmp_path, dtype):
    """Only the rounding of the sum is beside the change."""
    strength = {"float64": 1e-3, "float32": 1e-3, "bfloat16": 0.05}[dtype]
    base, tuned = two(tmp_path, {"fc.weight": low_rank(6, strength)}, dtype=dtype)
    assert rmtspec.extract_lora(base, tuned, None).row("fc.weight")["rank"] == 6


def test_what_does_not_become_factors_is_named(tmp_path):
    same = {"same.weight": noise(40, 30), "norm.weight": noise(9), "steps": np.arange(3)}
    base, tuned = two(
        tmp_path,
        {"fc.weight": low_rank(2, 0.1), "fc.bias": np.ones(9), "embed_tokens.weight":
         low_rank(2, 0.1, shape=(90, 40)), "p.matrix": low_rank(2, 0.1, shape=(40, 40))},
        same,
    )  # fmt: skip
    more = load_file(tuned) | {"new.weight": noise(3, 2), "norm.weight": noise(8)}
    write_safetensors(tuned, more)
    write_safetensors(base, load_file(base) | {"old.weight": noise(3, 2)})
    done = rmtspec.extract_lora(base, tuned, None)
    assert [row["name"] for row in done.rows] == ["fc.weight"]
    reasons = {entry["name"]: entry["reason"] for entry in done.skipped}
    assert reasons.pop("p.matrix").startswith("its name does not end in .weight")
    assert reasons == {
        "same.weight": "unchanged", "steps": "unchanged", "new.weight": "only in tuned.safetensors",
        "old.weight": "only in base.safetensors", "norm.weight": "its shape was (9,) and is (8,)",
        "embed_tokens.weight": "a changed embedding: cut only where `include` names it",
        "fc.bias": "changed, but no matrix of a layer: an adapter of LoRA cannot hold it",
    }  # fmt: skip
    named = rmtspec.extract_lora(base, tuned, None, include="embed|fc")
    assert sorted(row["name"] for row in named.rows) == ["embed_tokens.weight", "fc.weight"]


def test_by_rank_and_by_budget(tmp_path):
    strong, weak = low_rank(4, 0.3), low_rank(4, 0.1, seed=3)
    base, tuned = two(tmp_path, {"a.weight": strong, "b.weight": weak})
    by_rank = rmtspec.extract_lora(base, tuned, tmp_path / "r", rank=3)
    assert [row["rank"] for row in by_rank.rows] == [3, 3]
    share = 5 * (OUTPUTS + INPUTS) / (2 * OUTPUTS * INPUTS)
    by_budget = rmtspec.extract_lora(base, tuned, tmp_path / "b", budget=share)
    assert [row["rank"] for row in by_budget.rows] == [4, 1]
    assert by_budget.parameters_after <= share * by_budget.parameters_before
    assert np.linalg.matrix_rank(deltas(tmp_path / "b")["a"], tol=1e-5) == 4


def test_convolutions_and_inputs_first(tmp_path):
    kernel = low_rank(3, 0.2, shape=(60, 54)).reshape(60, 6, 3, 3)
    base, tuned = two(tmp_path, {"conv.weight": kernel, "h.c_attn.weight": low_rank(2, 0.1)})
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "architectures": ["X"]}')
    rmtspec.extract_lora(base, tuned, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    shapes = {name.removeprefix("base_model.model."): t.shape for name, t in tensors.items()}
    assert shapes == {
        "conv.lora_A.weight": (3, 6, 3, 3), "conv.lora_B.weight": (60, 3, 1, 1),
        "h.c_attn.lora_A.weight": (2, OUTPUTS), "h.c_attn.lora_B.weight": (INPUTS, 2),
    }  # fmt: skip
    found = deltas(tmp_path / "out")
    assert_allclose(found["h.c_attn"].T, low_rank(2, 0.1), atol=1e-5)
    assert_allclose(found["conv"], kernel.reshape(60, -1), atol=1e-5)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["fan_in_fan_out"]


def test_extractions_that_cannot_be_done(tmp_path):
    base, tuned = two(tmp_path, {"fc.weight": np.zeros((40, 30))})
    with pytest.raises(InvalidValueError, match=r"(?s)Nothing in .*1 \(fc\.weight\): unchanged"):
        rmtspec.extract_lora(base, tuned, tmp_path / "out")
    base, tuned = two(tmp_path, {"fc.weight": 1e-3 * noise(90, 60, seed=3)})
    with pytest.raises(InvalidValueError, match=r"stands beyond its noise"):
        rmtspec.extract_lora(base, tuned, tmp_path / "out", beta=0.001)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidValueError, match=r"`rank` is 3 and `budget` 0.1"):
        rmtspec.extract_lora(base, tuned, None, rank=3, budget=0.1)
    adapter(tmp_path / "lora")
    with pytest.raises(FileError, match=r"is an adapter of LoRA; expected a whole model"):
        rmtspec.extract_lora(tmp_path / "lora", tuned, None)


# Adapters.

LAYER = "base_model.model.m.fc"


def adapter(folder, used=3, rank=8, **config):
    """Write an adapter as PEFT does, of which only some directions are used."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    A = rng.standard_normal((rank, INPUTS)).astype("float32")
    B = np.zeros((OUTPUTS, rank), "float32")
    B[:, :used] = rng.standard_normal((OUTPUTS, used))
    tensors = {f"{LAYER}.lora_A.weight": A, f"{LAYER}.lora_B.weight": B}
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    content = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return B @ A


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 16 / np.sqrt(8)),
        ({"alpha_pattern": {"fc": 4}}, 0.5),
        ({"alpha_pattern": {r"^m\.fc": 4, "other": 99}}, 0.5),
        ({"alpha_pattern": {"m": 4, "c": 3, "^fc": 5}}, 2.0),
        ({"alpha_pattern": {r"m\-x": 4, r"^m\.fc$": 4}}, 0.5),
    ],
)
def test_a_pair_of_factors_is_one_matrix(tmp_path, config, scale):
    product = adapter(tmp_path / "lora", **config)
    listed = matrices_in(tmp_path / "lora")
    assert list(listed.matrices) == ["m.fc.weight"]
    assert_allclose(listed.matrices["m.fc.weight"](), scale * product, rtol=1e-4, atol=1e-4)
    assert listed.skipped == []
    report = rmtspec.analyze_checkpoint(tmp_path / "lora", journal=tmp_path / "j")
    assert report.row("m.fc.weight")["numerical_rank"] == 3
    assert list(listed.with_parts(False).matrices) == ["m.fc.weight"]


def test_the_names_of_kohya(tmp_path):
    rng = np.random.default_rng(0)
    down, up = rng.standard_normal((4, 30)), rng.standard_normal((50, 4))
    write_safetensors(tmp_path / "k.safetensors", {
        "lora_unet_to_q.lora_down.weight": down, "lora_unet_to_q.lora_up.weight": up,
        "lora_unet_to_q.alpha": np.array(2.0),
    })  # fmt: skip
    listed = matrices_in(tmp_path / "k.safetensors")
    assert_allclose(listed.matrices["lora_unet_to_q.weight"](), 0.5 * up @ down, rtol=1e-5)


def test_resized_to_its_own_rank(tmp_path):
    product = adapter(tmp_path / "lora")
    done = rmtspec.resize_lora(tmp_path / "lora", tmp_path / "out")
    row = done.row("m.fc.weight")
    assert (row["rank_before"], row["rank"], row["action"]) == (8, 3, "resize")
    assert row["weight_error"] < 1e-6
    assert_allclose(deltas(tmp_path / "out")["m.fc"], 2.0 * product, atol=1e-4)
    s = np.linalg.svd(product, compute_uv=False)[:3]
    keep = 1.001 * s[0] ** 2 / (s**2).sum()
    for options, rank in (({"rank": 2}, 2), ({"keep": keep}, 2), ({"keep": 0.1}, 1)):
        row = rmtspec.resize_lora(tmp_path / "lora", None, **options).row("m.fc.weight")
        assert row["rank"] == rank
        error = np.sqrt((s[rank:] ** 2).sum() / (s**2).sum())
        assert_allclose(row["weight_error"], error, rtol=1e-4)


def test_adapters_that_cannot_be_used(tmp_path):
    adapter(tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    B = tensors.pop(f"{LAYER}.lora_B.weight")
    write_safetensors(file, tensors)
    with pytest.raises(FileError, match=r"without '.*lora_B\.weight'; expected both factors"):
        matrices_in(tmp_path / "lora")
    write_safetensors(file, tensors | {f"{LAYER}.lora_B.weight": B[:, :5]})
    with pytest.raises(FileError, match=r"is \(8, 120\) and .* \(160, 5\)"):
        matrices_in(tmp_path / "lora")
    write_safetensors(file, {"fc.weight": planted()})
    with pytest.raises(FileError, match=r"has no pairs of lora_A and lora_B"):
        rmtspec.resize_lora(tmp_path / "lora", tmp_path / "out")
    write_safetensors(file, tensors | {f"{LAYER}.lora_B.weight": B})
    with pytest.raises(FileError, match=r"Lower its ranks with rmtspec resize-lora"):
        rmtspec.prune_checkpoint(tmp_path / "lora", tmp_path / "out")


def test_patterns_that_are_no_names(tmp_path):
    """A regular expression of a stranger could keep the process busy for ever."""
    layer = "a" * 40 + "!"
    A, B = np.ones((2, 9)), np.ones((8, 2))
    adapter(tmp_path / "lora", alpha_pattern={"(a+)+": 4})
    file = tmp_path / "lora" / "adapter_model.safetensors"
    write_safetensors(file, {f"{layer}.lora_A.weight": A, f"{layer}.lora_B.weight": B})
    with pytest.raises(FileError, match=r"alpha_pattern in .* has '\(a\+\)\+'; expected names"):
        matrices_in(tmp_path / "lora")


def test_adapters_of_more_than_a_pair(tmp_path):
    file, A, B = tmp_path / "a.safetensors", np.ones((2, 9)), np.ones((8, 2))
    two_of_one = {
        f"fc.lora_{factor}.{name}.weight": tensor
        for name in ("default", "other")
        for factor, tensor in (("A", A), ("B", B))
    }
    write_safetensors(file, two_of_one)
    with pytest.raises(FileError, match=r"holds two adapters of 'fc': .*default.* and .*other"):
        matrices_in(file)
    kohya = {"c.lora_down.weight": A, "c.lora_up.weight": B, "c.alpha": np.array(2.0)}
    write_safetensors(file, kohya | {"c.lora_mid.weight": np.ones((2, 2, 3, 3))})
    with pytest.raises(FileError, match=r"holds 'c\.lora_mid\.weight', a third factor"):
        matrices_in(file)
    write_safetensors(file, kohya | {"c.alpha": np.ones(3)})
    with pytest.raises(FileError, match=r"'c\.alpha' has the shape \(3,\); expected one number"):
        matrices_in(file)


@pytest.mark.parametrize(("entry", "alpha"), [(np.nan, 8), (np.inf, 8), (1, 1e300), (1e30, 1e20)])
def test_a_change_that_is_not_finite(tmp_path, entry, alpha):
    adapter(tmp_path / "lora", lora_alpha=alpha)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = {name: factor.copy() for name, factor in load_file(file).items()}
    for factor in tensors.values():
        factor[0, 0] = entry
    write_safetensors(file, tensors)
    (skipped,) = rmtspec.analyze_checkpoint(tmp_path / "lora", journal=tmp_path / "j").skipped
    assert "expected finite numbers" in skipped["reason"]
    with pytest.raises(FileError, match=r"changes 'm\.fc' by numbers that are not finite"):
        rmtspec.resize_lora(tmp_path / "lora", None)


def test_an_embedding_whose_scale_is_zero(tmp_path):
    adapter(tmp_path / "lora", lora_alpha=0)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    A, B = np.ones((2, 50)), np.ones((8, 2))
    write_safetensors(file, {"e.lora_embedding_A": A, "e.lora_embedding_B": B})
    change = matrices_in(tmp_path / "lora").matrices["e.weight"]
    assert change().shape == (50, 8)
    assert not change().any()


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args], catch_exceptions=False)


def test_the_commands(tmp_path):
    base, tuned = two(tmp_path, {"fc.weight": low_rank(5, 0.1)})
    words = ["extract-lora", base, tuned]
    done = run(*words, tmp_path / "out", "--report", tmp_path / "r.csv", "--noise", "auto")
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"Written to {tmp_path / 'out'}" in done.stdout
    assert "fc.weight" in (tmp_path / "r.csv").read_text()
    assert "Nothing written" in run(*words, "--dry-run", "--rank", 2).stdout
    assert run(*words).exit_code == 2
    assert "is not empty" in run(*words, tmp_path / "out").stderr
    adapter(tmp_path / "lora")
    done = run(
        "resize-lora", tmp_path / "lora", tmp_path / "small", "--report", tmp_path / "r.html"
    )
    assert (done.exit_code, done.stderr) == (0, "")
    assert "fc.weight" in (tmp_path / "r.html").read_text()
    done = run("resize-lora", tmp_path / "lora", "--dry-run", "--keep", "1.5")
    assert (done.exit_code, "--keep is 1.5; expected" in done.stderr) == (2, True)
