"""Comparing files: names matched, adapters of LoRA, pruned folders, the command."""

import json

import numpy as np
import pytest
from checkpoints import noise, planted, write_safetensors, write_sharded
from click.testing import CliRunner
from numpy.testing import assert_allclose
from safetensors.numpy import load_file, save_file

import rmtspec
from rmtspec import cli
from rmtspec.checkpoint import matrices_in
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError
from rmtspec.terms import Why

PEFT = "base_model.model."


def adapter(folder, layers, config=None):
    """Write a folder of PEFT: by layer, its factors A (rank x inputs) and B (outputs x rank)."""
    folder.mkdir()
    tensors = {}
    for layer, (A, B) in layers.items():
        tensors[f"{PEFT}{layer}.lora_A.weight"] = A.astype("float32")
        tensors[f"{PEFT}{layer}.lora_B.weight"] = B.astype("float32")
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "lora_alpha": 16, "r": 8} | (config or {})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def factors(rank, rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rank, columns)), 0.1 * rng.standard_normal((rows, rank))


def run(*words):
    return CliRunner().invoke(cli.main, ["compare", *map(str, words)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("", "module.", "'module.' before those of b"),
        ("model.", "", "'model.' before those of a"),
        ("transformer.", "", "'transformer.' before those of a"),
        ("module._orig_mod.", "model.", "'module._orig_mod.' before those of a and 'model.'"),
    ],
)
def test_names_that_differ_by_one_prefix(before, after, words):
    W = {f"h.{i}.fc.weight": planted(seed=i) for i in range(3)}
    done = rmtspec.compare({before + n: m for n, m in W.items()},
                           {after + n: m for n, m in W.items()})  # fmt: skip
    assert done.counts == {"unchanged": 3}
    assert words in done.settings["names"]
    assert [(row["name"], row["name_after"]) for row in done] == [
        (f"{before}{name}", f"{after}{name}") for name in W
    ]
    assert f"names are the same without {words}" in repr(done)
    assert f"{before}h.0.fc.weight = {after}h.0.fc.weight" in repr(done)


def test_other_differences_of_names_are_not_guessed():
    W = planted()
    with pytest.raises(InvalidValueError, match="could be compared"):
        rmtspec.compare({"layers.0.fc.weight": W}, {"layers.1.fc.weight": W})
    with pytest.raises(InvalidValueError, match="could be compared"):  # two are as good
        rmtspec.compare({"a.fc.weight": W, "b.fc.weight": W}, {"fc.weight": W})
    done = rmtspec.compare({"a.x": W, "a.y": W, "b.x": W, "z": W}, {"x": W, "y": W, "z": W})
    pairs = {row["name"]: row["name_after"] for row in done}
    assert pairs == {"a.x": "x", "a.y": "y", "z": "z"}
    assert done.skipped == [{"name": "b.x", "reason": "only in a"}]


def test_a_file_against_itself_and_a_copy(tmp_path):
    path = write_safetensors(tmp_path / "m.safetensors", {"fc.weight": planted()})
    done = rmtspec.compare(path, matrices_in(path))
    assert done.note.startswith("a and b are the same files")
    assert done.counts == {"unchanged": 1}
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    assert "the same files" in rmtspec.compare(path, link).note
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    done = rmtspec.compare(path, copy)
    assert (done.note, done.counts) == ("", {"unchanged": 1})
    said = run(path, path)
    assert said.exit_code == 0
    assert "a and b are the same files" in said.stdout


def test_other_architectures(data_folder):
    models = data_folder / "models"
    small, large = (models / f"resnet{n}-cifar10.safetensors" for n in (20, 56))
    done = rmtspec.compare(small, large, include="conv2")
    assert len(done) == 9
    assert all(row["right_overlap"] < 0.2 for row in done)
    reasons = {entry["name"]: entry["reason"] for entry in done.skipped}
    assert reasons["layer1.3.conv1.weight"] == f"only in {large.name}"
    assert reasons["conv1.weight"] == "not in `include`"
    with pytest.raises(InvalidValueError, match="only in mlp-784-1000-10-mnist"):
        rmtspec.compare(models / "mlp-784-1000-10-mnist.safetensors", small)


def test_half_precision_of_a_trained_net_is_rounding(data_folder, tmp_path):
    path = data_folder / "models" / "resnet20-cifar10.safetensors"
    save_file(
        {n: t.astype("float16") for n, t in load_file(path).items()}, tmp_path / "h.safetensors"
    )
    done = rmtspec.compare(path, tmp_path / "h.safetensors")
    assert done.counts == {"rounding": 20}
    assert all(0 < row["relative_change"] < 1e-3 for row in done)


@pytest.mark.parametrize("rank", [20, 200, 388])
def test_a_pruned_folder_stands_for_its_products(data_folder, tmp_path, rank):
    path = data_folder / "models" / "mlp-784-1000-10-mnist.safetensors"
    report = rmtspec.prune_checkpoint(path, tmp_path / "small", ranks={"0": rank}, gate=None)
    done = rmtspec.compare(path, tmp_path / "small")
    row = done.row("0.weight")
    assert_allclose(row["relative_change"], report.row("0.weight")["weight_error"], rtol=1e-5)
    assert row["numerical_rank_after"] == rank
    assert (row["change"], row["components"]) == ("structured", 8)
    assert row["left_angle"] < 0.01
    words = Why.MOSTLY_COMPONENTS.words(count=784 - rank, p=784)  # what was cut away
    assert row["reason"] == f"{words}; in the matrix after: no bulk"
    assert done.row("2.weight")["change"] == "unchanged"
    file = tmp_path / "small" / "rmtspec.safetensors"
    assert rmtspec.compare(path, file).row("0.weight")["numerical_rank_after"] == rank


def test_fused_tensors_are_divided_alike(tmp_path):
    qkv = {"h.0.attn.c_attn.weight": noise(24, 72), "h.0.mlp.fc.weight": noise(24, 30)}
    config = {"model_type": "gpt2", "n_embd": 24, "n_head": 2}
    for name, tensors in (
        ("a", qkv),
        ("b", {n: t + noise(*t.shape, seed=1) for n, t in qkv.items()}),
    ):
        write_sharded(tmp_path / name, {"model.safetensors": tensors})
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    assert len(matrices_in(tmp_path / "a")) == 4
    names = [row["name"] for row in rmtspec.compare(tmp_path / "a", tmp_path / "b")]
    assert names == ["h.0.attn.c_attn.weight", "h.0.mlp.fc.weight"]
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    assert len(rmtspec.compare(tmp_path / "a", tmp_path / "b")) == 4


def test_an_adapter_alone(tmp_path):
    A, B = factors(8, 90, 60)
    B[:, 3:] = 0.0
    folder = adapter(tmp_path / "lora", {"m.fc": (A, B), "m.none": (A, 0 * B)})
    done = rmtspec.compare(folder)
    row = done.row("m.fc.weight")
    assert (row["change"], row["rank"], row["rank_is_exact"], row["adapter_rank"]) == (
        "low rank", 3, True, 8,
    )  # fmt: skip
    product = 2.0 * B @ A
    assert_allclose(row["norm_of_change"], np.linalg.norm(product), rtol=1e-5)
    assert 1 < row["stable_rank"] < row["effective_rank"] < 3.001
    assert row["relative_change"] is row["n_spikes_before"] is None
    assert done.row("m.none.weight")["change"] == "unchanged"
    assert (done.settings["a"], done.settings["b"]) == ("", "lora")
    path = write_safetensors(tmp_path / "m.safetensors", {"fc.weight": planted()})
    with pytest.raises(FileError, match="given alone and is no adapter of LoRA"):
        rmtspec.compare(path)


def test_an_adapter_against_its_base(tmp_path):
    W = planted(90, 60)
    u, _, vt = np.linalg.svd(W, full_matrices=False)
    A, B = factors(4, 90, 60)
    A[0], B[:, 0] = vt[0], 30 * u[:, 0]  # it touches the first of the two spikes
    base = write_safetensors(tmp_path / "base.safetensors", {"m.fc.weight": W, "m.x.weight": W})
    folder = adapter(tmp_path / "lora", {"m.fc": (A, B)}, {"r": 4, "lora_alpha": 4})
    done = rmtspec.compare(base, folder)
    row = done.row("m.fc.weight")
    assert (row["rank"], row["rank_is_exact"], row["adapter_rank"]) == (4, True, 4)
    assert_allclose(row["relative_change"], np.linalg.norm(B @ A) / np.linalg.norm(W), rtol=1e-5)
    assert done.matrices["m.fc.weight"].touched == (0,)
    merged = write_safetensors(
        tmp_path / "merged.safetensors", {"m.fc.weight": (W + B @ A).astype("f4")}
    )
    again = rmtspec.compare(base, merged).row("m.fc.weight")
    for key in ("rank", "change", "n_spikes_after", "spikes_touched"):
        assert again[key] == row[key]
    assert_allclose(again["norm_of_change"], row["norm_of_change"], rtol=1e-5)
    assert_allclose(again["bulk_edge_after"], row["bulk_edge_after"], rtol=1e-4)
    assert {"name": "m.x.weight", "reason": "only in base.safetensors"} in done.skipped
    with pytest.raises(InvalidValueError, match=r"is an adapter of LoRA and `b`.*Swap them"):
        rmtspec.compare(folder, base)


def test_an_adapter_of_turned_weights(tmp_path):
    """GPT-2 stores inputs x outputs, and PEFT turns the product."""
    W = planted(60, 90)
    A, B = factors(3, 90, 60)
    base = write_safetensors(tmp_path / "base.safetensors", {"h.0.fc.weight": W})
    config = {"r": 3, "lora_alpha": 3, "fan_in_fan_out": True}
    folder = adapter(tmp_path / "lora", {"transformer.h.0.fc": (A, B)}, config)
    row = rmtspec.compare(base, folder).row("h.0.fc.weight")
    merged = {"h.0.fc.weight": W + (B @ A).T}
    again = rmtspec.compare({"h.0.fc.weight": W}, merged).row("h.0.fc.weight")
    assert (row["rows"], row["columns"], row["rank"]) == (60, 90, 3)
    assert_allclose(row["norm_after"], again["norm_after"], rtol=1e-5)


def test_two_adapters(tmp_path):
    A, B = factors(4, 90, 60)
    C, D = factors(2, 90, 60, seed=1)
    one = adapter(tmp_path / "one", {"fc": (A, B)}, {"r": 4, "lora_alpha": 4})
    more = adapter(tmp_path / "more", {"fc": (np.vstack([A, C]), np.hstack([B, D]))},
                   {"r": 6, "lora_alpha": 6})  # fmt: skip
    row = rmtspec.compare(one, more).row("fc.weight")
    assert (row["rank"], row["change"]) == (2, "low rank")
    assert_allclose(row["norm_of_change"], np.linalg.norm(D @ C), rtol=1e-5)
    same = rmtspec.compare(one, tmp_path / "one" / "adapter_model.safetensors")
    assert same.counts == {"unchanged": 1}


def test_a_file_that_is_rewritten_meanwhile(tmp_path):
    paths = [
        write_safetensors(tmp_path / f"{n}.safetensors", {"fc.weight": planted(seed=n)})
        for n in (1, 2)
    ]
    listed = matrices_in(paths[0])
    write_safetensors(paths[0], {"fc.weight": planted(seed=3), "more.weight": planted()})
    with pytest.raises((FileError, InvalidValueError), match=r"changed|rewritten"):
        rmtspec.compare(listed, paths[1])

    def rewrite(done, total, name):
        write_safetensors(paths[1], {"fc.weight": planted(seed=5), "more.weight": planted()})

    with pytest.raises(FileError, match="was rewritten while"):
        rmtspec.compare(*paths, progress=rewrite)


def test_a_model_is_sent_elsewhere():
    torch = pytest.importorskip("torch")
    with pytest.raises(InvalidTypeError, match=r"rmtspec\.adapters\.torch\.compare"):
        rmtspec.compare(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    W = torch.nn.Linear(20, 30).weight
    assert rmtspec.compare(W, W.detach().clone()).counts == {"unchanged": 1}


def test_the_command(tmp_path):
    W = planted()
    a = write_safetensors(tmp_path / "a.safetensors", {"fc.weight": W, "fc.bias": noise(9)})
    b = write_safetensors(
        tmp_path / "b.safetensors", {"model.fc.weight": W + 1e-3 * noise(*W.shape, seed=1)}
    )
    out = tmp_path / "c.json"
    done = run(a, b, "--out", out)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert "1 matrix compared: 1 noise" in lines
    assert "names are the same without 'model.' before those of b.safetensors" in lines
    assert any(line.startswith("skipped 1 (fc.bias)") for line in lines)
    assert lines[-1] == f"Comparison written to {out}"
    assert json.loads(out.read_text())["rows"][0]["change"] == "noise"
    for suffix in (".json", ".csv", ".html"):  # its own files may be replaced
        for _ in range(2):
            assert run(a, b, "--out", tmp_path / f"c{suffix}").exit_code == 0
    alone = run(a)
    assert alone.exit_code == 1
    assert "given alone and is no adapter" in alone.stderr
    (tmp_path / "notes.json").write_text("{}")
    assert run(a, b, "--out", tmp_path / "notes.json").exit_code == 2
    assert run(a, b, "--out", a).exit_code == 2
    assert run(a, b, "--include", "nothing").exit_code == 1
