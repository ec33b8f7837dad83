"""Pruning a folder: shards, index, configs; stacks and fused tensors; other formats."""

import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
from checkpoints import (
    INDEX,
    as_in_a_hub_cache,
    contents,
    noise,
    planted,
    write_safetensors,
    write_sharded,
)
from click.testing import CliRunner
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file

from rmtspec import analyze_checkpoint, cli
from rmtspec.checkpoint import matrices_in
from rmtspec.checkpoint.companions import companions
from rmtspec.checkpoint.manifest import MANIFEST, WEIGHTS, Manifest
from rmtspec.errors import FileError
from rmtspec.runs import pruned_tensors as _outgoing
from rmtspec.runs.prune import prune_checkpoint

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS = {
    FIRST: {"a.weight": planted(), "b.bias": noise(60, seed=7), "norm.weight": noise(90)},
    SECOND: {
        "b.weight": planted(60, 80, seed=1),
        "a.bias": noise(120),
        "embed_tokens.weight": planted(seed=2),
        "steps": np.array(9, "int64"),
    },
}
ALL = {name: array for tensors in SHARDS.values() for name, array in tensors.items()}


@pytest.fixture
def folder(tmp_path):
    folder = write_sharded(tmp_path / "model", SHARDS)
    (folder / "config.json").write_text('{"model_type": "none"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "LICENSE").write_text("free")
    for name in ("pytorch_model.bin", "model.gguf", "model.onnx", "tf_model.h5", "extra.PT"):
        (folder / name).write_bytes(b"the same weights in another format")
    (folder / ".hidden").write_text("x")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "decoder.onnx").write_bytes(b"x")
    return folder


def tensors_in(folder):
    """Every tensor by name, and the file that has it; the index must say the same."""
    found, places = {}, {}
    for file in sorted(folder.glob("*.safetensors")):
        here = load_file(file)
        assert not here.keys() & found.keys()
        found |= here
        places |= dict.fromkeys(here, file.name)
    indices = list(folder.glob("*.index.json"))
    if len(set(places.values())) > 1:
        (index,) = indices
        content = json.loads(index.read_text())
        assert content["weight_map"] == places
        assert content["metadata"]["total_size"] == sum(a.nbytes for a in found.values())
    else:
        assert indices == []
    return found, places


def test_factors_of_shards(folder, tmp_path):
    before = contents(folder)
    done = prune_checkpoint(folder, tmp_path / "out", bulk_keep=0.0)
    assert contents(folder) == before
    names = [f"rmtspec-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        [*names, f"{WEIGHTS}.index.json", MANIFEST, "config.json", "tokenizer.json", "LICENSE"]
    )
    found, places = tensors_in(tmp_path / "out")
    # What came from a shard is in the shard of its number, the bias under the name of its layer.
    assert places == {
        "a.inner.weight": names[0], "a.outer.weight": names[0], "b.outer.bias": names[0],
        "norm.weight": names[0], "b.inner.weight": names[1], "b.outer.weight": names[1],
        "a.outer.bias": names[1], "embed_tokens.weight": names[1], "steps": names[1],
    }  # fmt: skip
    for layer in "ab":
        W = ALL[f"{layer}.weight"]
        product = found[f"{layer}.outer.weight"] @ found[f"{layer}.inner.weight"]
        error = np.linalg.norm(W - product) / np.linalg.norm(W)
        assert_allclose(done.row(f"{layer}.weight")["weight_error"], error, rtol=1e-4)
        assert_array_equal(found[f"{layer}.outer.bias"], ALL[f"{layer}.bias"])
    for name in ("norm.weight", "embed_tokens.weight", "steps"):
        assert_array_equal(found[name], ALL[name])
    manifest = Manifest.read(tmp_path / "out")
    assert [entry.name for entry in manifest.splits] == ["a", "b"]
    assert sorted(manifest.files) == names
    manifest.check_files(tmp_path / "out")
    assert done.totals["bytes_after"] == sum(array.nbytes for array in found.values())


def test_dense_shards(folder, tmp_path):
    done = prune_checkpoint(folder, tmp_path / "out", mode="truncate", bulk_keep=0.0)
    found, places = tensors_in(tmp_path / "out")
    assert places == {name: file for file, tensors in SHARDS.items() for name in tensors}
    assert not (tmp_path / "out" / MANIFEST).exists()
    assert (tmp_path / "out" / INDEX).exists()
    for name, array in ALL.items():
        cut = name in ("a.weight", "b.weight")
        assert np.array_equal(found[name], array) == (not cut)
        if cut:
            rank = np.linalg.matrix_rank(found[name], tol=1e-3)
            assert rank == done.row(name)["rank"] == 2


def test_names_of_what_stays_behind_do_not_reach_the_terminal_raw(folder, tmp_path):
    (folder / "red\x1b[31m.onnx").write_bytes(b"")
    words = ["prune", str(folder), str(tmp_path / "out"), "--bulk-keep", "0"]
    done = CliRunner().invoke(cli.main, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "red\\x1b[31m.onnx" in done.stdout
    assert "\x1b" not in done.stdout


def test_links_become_files(folder, tmp_path):
    prune_checkpoint(folder, tmp_path / "plain", bulk_keep=0.0)
    for name in ("onnx/decoder.onnx", "pytorch_model.bin"):
        (folder / name).unlink()
    (folder / "onnx").rmdir()
    snapshot = as_in_a_hub_cache(folder, tmp_path / "hub")
    before = contents(tmp_path / "hub")
    prune_checkpoint(snapshot, tmp_path / "out", bulk_keep=0.0)
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")
    assert contents(tmp_path / "hub") == before


def test_what_is_copied_and_what_is_not(folder, tmp_path):
    (folder / "gone.json").symlink_to("nowhere")
    listed = matrices_in(folder)
    copied, left = companions(listed.path, listed.files)
    assert [path.name for path in copied] == ["LICENSE", "config.json", "tokenizer.json"]
    assert left == [
        "extra.PT", "gone.json", "model.gguf", "model.onnx", "onnx/", "pytorch_model.bin",
        "tf_model.h5",
    ]  # fmt: skip
    assert companions(folder / FIRST) == ([], [])
    words = ["prune", folder, tmp_path / "out", "--bulk-keep", "0"]
    done = CliRunner().invoke(cli.main, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"Not copied: {', '.join(left)}" in done.stdout
    for name in ("LICENSE", "config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_an_index_given_as_a_file(folder, tmp_path):
    prune_checkpoint(folder / INDEX, tmp_path / "out", bulk_keep=0.0)
    assert sorted(tensors_in(tmp_path / "out")[0])[:2] == ["a.inner.weight", "a.outer.bias"]
    assert not (tmp_path / "out" / "config.json").exists()  # the other files are not its


@pytest.mark.parametrize("place", ["out", "onnx/out", "."])
def test_out_inside_in_is_refused(folder, tmp_path, place):
    before = contents(tmp_path)
    with pytest.raises(FileError, match=r"is in .*expected a folder elsewhere|is not empty"):
        prune_checkpoint(folder, folder / place)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(FileError, match=r"is in .*expected a folder elsewhere|is not empty"):
        prune_checkpoint(folder, tmp_path / "link" / place)
    (tmp_path / "link").unlink()
    assert contents(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_one_shard_of_its_folder_may_be_pruned_into_it(folder):
    before = contents(folder)
    prune_checkpoint(folder / FIRST, folder / "out", bulk_keep=0.0)
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys()) == [f"out/{MANIFEST}", f"out/{WEIGHTS}"]


EXPERTS = np.stack([planted(60, 48, seed=i) for i in range(3)])


@pytest.mark.parametrize("dtype", [">f4", "bfloat16"])
def test_a_stack_of_experts(tmp_path, dtype):
    name = "layers.0.mlp.experts.w1"
    if dtype == "bfloat16":
        experts = EXPERTS.astype(ml_dtypes.bfloat16)
        path = write_safetensors(
            tmp_path / "m.safetensors", {name: experts, "fc.weight": planted()}
        )
    else:
        experts = EXPERTS.astype(dtype)
        path = tmp_path / "m.npz"
        np.savez(path, **{name: experts, "fc.weight": planted()})
    done = prune_checkpoint(path, tmp_path / "factors", bulk_keep=0.0)
    assert done.row(f"{name}[0]")["reason"] == "part of a tensor that holds several matrices"
    assert_array_equal(matrices_in(tmp_path / "factors").tensors[name](), experts)
    done = prune_checkpoint(
        path, tmp_path / "dense", mode="truncate", bulk_keep=0.0, ranks={f"{name}[2]": 5},
        exclude=r"w1\[1\]",
    )  # fmt: skip
    found = np.float64(matrices_in(tmp_path / "dense").tensors[name]())
    experts = np.float64(experts)
    if dtype != "bfloat16":  # which has rounding of full rank
        assert [np.linalg.matrix_rank(expert, tol=1e-3) for expert in found] == [2, 48, 5]
    assert_array_equal(found[1], experts[1])
    for index in (0, 2):
        error = np.linalg.norm(experts[index] - found[index]) / np.linalg.norm(experts[index])
        row = done.row(f"{name}[{index}]")
        assert_allclose(row["weight_error"], error, rtol=1e-6)  # as measured, rounding included
        assert row["action"] == "truncate"


@pytest.mark.parametrize("across", [False, True])
def test_a_fused_tensor(tmp_path, across):
    """Split as the one layer it is; made dense part by part, also where parts are columns."""
    if across:  # GPT-2's layers are stored transposed
        config = {"model_type": "gpt2", "n_embd": 48, "n_head": 4}
        name = "h.0.attn.c_attn.weight"
        W = np.concatenate([planted(48, 48, seed=i) for i in range(3)], axis=1)
        pieces = [np.s_[:, 48 * i : 48 * (i + 1)] for i in range(3)]
    else:
        config = {
            "model_type": "phi3", "hidden_size": 48, "num_attention_heads": 3,
            "num_key_value_heads": 3, "intermediate_size": 64,
        }  # fmt: skip
        name = "model.layers.0.self_attn.qkv_proj.weight"
        W = np.concatenate([planted(48, 48, seed=i) for i in range(3)])
        pieces = [np.s_[48 * i : 48 * (i + 1)] for i in range(3)]
    folder = tmp_path / "model"
    write_sharded(folder, {"model.safetensors": {name: W, "x.weight": noise(20, 16)}}, index=None)
    (folder / "config.json").write_text(json.dumps(config))
    done = prune_checkpoint(folder, tmp_path / "factors", ranks={name: 7})
    assert (done.row(name)["action"], done.row(name)["rank"]) == ("split", 7)
    layer = name.removesuffix(".weight")
    found = load_file(tmp_path / "factors" / WEIGHTS)
    assert found[f"{layer}.inner.weight"].shape == (7, W.shape[1])
    parts = [f"{name}[{part}]" for part in "qkv"]
    done = prune_checkpoint(
        folder, tmp_path / "dense", mode="truncate", ranks=dict(zip(parts, (3, 4, 5), strict=True)),
        include=name,
    )  # fmt: skip
    found = load_file(tmp_path / "dense" / "model.safetensors")[name]
    for part, piece, rank in zip(parts, pieces, (3, 4, 5), strict=True):
        U, s, Vt = np.linalg.svd(np.float64(W[piece]))
        assert_allclose(found[piece], (U[:, :rank] * s[:rank]) @ Vt[:rank], atol=1e-4)
        error = np.linalg.norm(W[piece] - found[piece]) / np.linalg.norm(W[piece])
        assert_allclose(done.row(part)["weight_error"], error, rtol=1e-4)
    only = prune_checkpoint(
        folder, tmp_path / "one", mode="truncate", include=r"\[k\]", ranks={parts[1]: 2}
    )
    assert [row["name"] for row in only.rows] == [parts[1]]
    found = load_file(tmp_path / "one" / "model.safetensors")[name]
    assert np.linalg.matrix_rank(found[pieces[1]], tol=1e-3) == 2
    for piece in (pieces[0], pieces[2]):
        assert_array_equal(found[piece], W[piece])


def gpt2(folder):
    """A folder with the fused layer of a GPT-2 and a plain one."""
    W = np.concatenate([planted(48, 48, seed=i) for i in range(3)], axis=1)
    tensors = {"h.0.attn.c_attn.weight": W, "h.0.mlp.c_fc.weight": planted(48, 60)}
    write_sharded(folder, {"model.safetensors": tensors}, index=None)
    (folder / "config.json").write_text('{"model_type": "gpt2", "n_embd": 48, "n_head": 4}')
    return folder


@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize("form", ["factors", "dense"])
def test_a_checkpoint_is_pruned_as_its_path_is(tmp_path, form, parts):
    folder = gpt2(tmp_path / "model")
    listed = matrices_in(folder, parts=parts)
    expected = prune_checkpoint(
        folder,
        tmp_path / "path",
        mode={"factors": "split", "dense": "truncate"}[form],
        bulk_keep=0.1,
    )
    done = prune_checkpoint(
        listed,
        tmp_path / "listed",
        mode={"factors": "split", "dense": "truncate"}[form],
        bulk_keep=0.1,
    )
    names = [row["name"] for row in done.rows if row["action"] != "keep"]
    assert ("h.0.attn.c_attn.weight" in names) == (form == "factors")
    assert names == [row["name"] for row in expected.rows if row["action"] != "keep"]
    assert contents(tmp_path / "listed") == contents(tmp_path / "path")
    assert len(listed) == (4 if parts else 2)  # it is as it was


@pytest.mark.parametrize("parts", [True, False])
def test_a_checkpoint_is_analysed_as_it_was_listed(tmp_path, parts):
    listed = matrices_in(gpt2(tmp_path / "model"), parts=parts)
    assert [row["name"] for row in analyze_checkpoint(listed).rows] == list(listed.matrices)
    assert len(listed) == (4 if parts else 2)


@pytest.mark.parametrize("form", ["factors", "dense"])
@pytest.mark.parametrize("kind", ["npz", "npy", "folder"])
def test_numpys_formats(tmp_path, form, kind):
    tensors = {
        "fc.weight": np.asfortranarray(planted(dtype=">f8")),
        "fc.bias": noise(120, dtype=">f4"),
        "other.weight": np.asfortranarray(noise(20, 16)),
        "steps": np.array(9, ">i2"),
    }
    if kind == "npz":
        np.savez(tmp_path / "m.npz", **tensors)
        path = tmp_path / "m.npz"
    else:
        path = tmp_path / "model"
        path.mkdir()
        for name, array in tensors.items():
            np.save(path / f"{name}.npy", array)
        (path / "readme.md").write_text("x")
        if kind == "npy":
            path, tensors = path / "fc.weight.npy", {"fc.weight": tensors["fc.weight"]}
    done = prune_checkpoint(
        path, tmp_path / "out", mode={"factors": "split", "dense": "truncate"}[form], bulk_keep=0.0
    )
    assert (tmp_path / "out" / "readme.md").exists() == (kind == "folder")
    found, _ = tensors_in(tmp_path / "out")
    W, rank = tensors.pop("fc.weight"), done.row("fc.weight")["rank"]
    if form == "factors":
        product = found.pop("fc.outer.weight") @ found.pop("fc.inner.weight")
        if kind != "npy":
            found["fc.bias"] = found.pop("fc.outer.bias")
    else:
        product = found.pop("fc.weight")
    assert product.dtype == np.float64
    U, s, Vt = np.linalg.svd(np.float64(W))
    assert_allclose(product, (U[:, :rank] * s[:rank]) @ Vt[:rank], atol=1e-9)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype.newbyteorder("<")
        assert_array_equal(found[name], array)


def test_many_arrays_go_into_a_few_files(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    for i in range(5):
        np.save(folder / f"w{i}.weight.npy", planted(seed=i))
    monkeypatch.setattr(_outgoing, "SHARD_BYTES", 2 * 120 * 90 * 4)
    prune_checkpoint(folder, tmp_path / "out", mode="truncate", bulk_keep=0.0)
    _, places = tensors_in(tmp_path / "out")
    assert sorted(places.values()) == [
        "model-00001-of-00003.safetensors", "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors", "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ]  # fmt: skip


def test_what_the_new_format_cannot_hold_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("rmtspec.runs.prune.outcomes", lambda *_, **__: pytest.fail("it worked"))
    for odd in (np.ones((3, 3), complex), np.array(["a"]), np.ones(3, "longdouble")):
        np.savez(tmp_path / "m.npz", **{"fc.weight": planted(), "odd": odd})
        with pytest.raises(
            FileError, match=r"holds 'odd' of dtype .*which \.safetensors files cannot hold"
        ):
            prune_checkpoint(tmp_path / "m.npz", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]


def test_names_that_utf8_lacks_are_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    np.save(folder / "größe.weight.npy", planted())
    prune_checkpoint(folder, tmp_path / "out", mode="truncate", bulk_keep=0.0)
    assert list(load_file(tmp_path / "out" / "model.safetensors")) == ["größe.weight"]
    (folder / "größe.weight.npy").rename(folder / "gr\udcf6\udcdfe.weight.npy")  # of latin-1
    with pytest.raises(FileError, match=r"'gr\\udcf6\\udcdfe\.weight', a name that cannot be"):
        prune_checkpoint(folder, tmp_path / "new", mode="truncate", bulk_keep=0.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]


def test_bfloat16_shards(tmp_path):
    shards = {
        file: {n: a.astype(ml_dtypes.bfloat16) if a.ndim == 2 else a for n, a in tensors.items()}
        for file, tensors in SHARDS.items()
    }
    folder = write_sharded(tmp_path / "model", shards)
    prune_checkpoint(folder, tmp_path / "out", bulk_keep=0.0)
    dtypes = {name: tensor.dtype for name, tensor in matrices_in(tmp_path / "out").tensors.items()}
    assert dtypes["a.outer.weight"] == dtypes["b.inner.weight"] == "BF16"
    assert dtypes["a.outer.bias"] == "F32"


def test_factors_in_shards_are_not_split_again(folder, tmp_path):
    prune_checkpoint(folder, tmp_path / "out", bulk_keep=0.0)
    for path in (tmp_path / "out", tmp_path / "out" / f"{WEIGHTS}.index.json"):
        with pytest.raises(FileError, match=r"undo the split first: rmtspec merge"):
            prune_checkpoint(path, tmp_path / "again")


def test_a_tensor_that_cannot_be_listed_is_not_dropped(tmp_path):
    np.savez(tmp_path / "m.npz", **{"fc.weight": planted()}, words=np.array([{}], dtype=object))
    with pytest.raises(FileError, match="holds 'words', which cannot be copied to the new files"):
        prune_checkpoint(tmp_path / "m.npz", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.npz"]
    np.savez(tmp_path / "m.npz", **{"fc.weight": planted()})
    with (
        zipfile.ZipFile(tmp_path / "m.npz", "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("fc.weight.npy", archive.read("fc.weight.npy"))
    with pytest.raises(FileError, match=r"holds 'fc\.weight', .*: a second array of this name"):
        prune_checkpoint(tmp_path / "m.npz", tmp_path / "out")
