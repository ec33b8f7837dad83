"""Which files a folder means, and every way a sharded checkpoint can be wrong."""

import os
import shutil

import ml_dtypes
import numpy as np
import pytest
from checkpoints import (
    INDEX,
    as_in_a_hub_cache,
    noise,
    write_index,
    write_safetensors,
    write_sharded,
)
from numpy.testing import assert_array_equal

from rmtspec.checkpoint import matrices_in
from rmtspec.errors import FileError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS = {
    FIRST: {"a.weight": noise(6, 4), "a.bias": noise(6)},
    SECOND: {"b.weight": noise(5, 7, seed=1, dtype=ml_dtypes.bfloat16)},
}
ALL = {name: array for tensors in SHARDS.values() for name, array in tensors.items()}


@pytest.fixture
def folder(tmp_path):
    return write_sharded(tmp_path / "model", SHARDS)


def check(found):
    assert list(found.tensors) == ["a.weight", "a.bias", "b.weight"]
    assert list(found.matrices) == ["a.weight", "b.weight"]
    for name, tensor in found.tensors.items():
        assert tensor().dtype == ALL[name].dtype
        assert_array_equal(tensor(), ALL[name])
    assert found.skipped == [{"name": "a.bias", "reason": "1 dimension: a vector has no spectrum"}]
    assert [file.name for file in found.files] == [FIRST, SECOND]
    assert found.metadata == {"format": "pt"}


def test_a_folder_with_an_index(folder):
    found = matrices_in(folder)
    check(found)
    assert found.path == folder
    assert repr(found).splitlines() == [
        "Checkpoint model", "  matrices  2", "  skipped   1", "  files     2"
    ]  # fmt: skip
    check(matrices_in(str(folder)))
    check(matrices_in(folder / INDEX))


def test_without_an_index_all_numbered_files(folder):
    (folder / INDEX).unlink()
    check(matrices_in(folder))
    (folder / FIRST).unlink()
    message = r"incomplete: of the 2 files of 'model', 1 are missing, the first of them number 1\."
    with pytest.raises(FileError, match=message):
        matrices_in(folder)


def test_links_as_in_a_hub_cache(folder, tmp_path):
    snapshot = as_in_a_hub_cache(folder, tmp_path / "hub")
    check(matrices_in(snapshot))
    check(matrices_in(snapshot / INDEX))
    (snapshot / SECOND).resolve().unlink()
    with pytest.raises(FileError, match=rf"incomplete: .* but {SECOND} is missing"):
        matrices_in(snapshot)


def test_shards_in_a_folder_below(folder):
    (folder / "parts").mkdir()
    for name in SHARDS:
        (folder / name).rename(folder / "parts" / name)
    write_index(folder, {name: f"parts/{f}" for f, each in SHARDS.items() for name in each})
    check(matrices_in(folder))


@pytest.mark.parametrize(
    "place",
    ["../other/w.safetensors", "a/../../w.safetensors", "/etc/w.safetensors", "..\\w.safetensors",
     "C:\\w.safetensors", "C:w.safetensors", ".."],
)  # fmt: skip
def test_an_index_that_leaves_its_folder_is_refused(folder, place, monkeypatch):
    (folder.parent / "other").mkdir()
    for target in (folder.parent / "other" / "w.safetensors", folder.parent / "w.safetensors"):
        write_safetensors(target, {"a.weight": noise(6, 4)})  # it would be there to be read
    write_index(folder, {"a.weight": place})
    monkeypatch.setattr(
        "rmtspec.checkpoint.listing.stored_tensors", lambda _: pytest.fail("it was read")
    )
    for path in (folder, folder / INDEX):
        with pytest.raises(FileError, match=r"is refused: .*'a.weight', which is outside"):
            matrices_in(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is not JSON"),
        ("{", "it is not JSON"),
        ("\udcff", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "it has no 'weight_map'"),
        ('{"weight_map": {}}', "it has no 'weight_map'"),
        ('{"weight_map": [1]}', "it has no 'weight_map'"),
        ('{"weight_map": {"a": 3}}', "it names 3 as the file of 'a'"),
        ('{"weight_map": {"a": ""}}', "it names '' as the file of 'a'"),
        ('{"weight_map": {"a": "readme.md"}}', "it lists 'readme.md'; expected .safetensors"),
    ],
)
def test_a_damaged_index(folder, content, message):
    (folder / "readme.md").write_text("x")
    (folder / INDEX).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(FileError, match=f"{INDEX} is damaged: {message}.*again"):
        matrices_in(folder)


def test_shards_that_the_index_lists_and_are_not_there(folder):
    (folder / SECOND).unlink()
    message = rf"is incomplete: {INDEX} lists 2 files, but {SECOND} is missing. Download"
    with pytest.raises(FileError, match=message):
        matrices_in(folder)
    many = {f"w{i}": f"m-{i:05d}-of-00007.safetensors" for i in range(1, 8)}
    write_index(folder, many)
    with pytest.raises(FileError, match=r"m-00004-of-00007.safetensors and 3 more are missing"):
        matrices_in(folder)
    (folder / SECOND).mkdir()
    write_index(folder, {"b.weight": SECOND})
    with pytest.raises(FileError, match=f"{SECOND} is missing"):
        matrices_in(folder)


def test_an_index_that_disagrees_with_its_shards(folder):
    write_index(folder, {"a.weight": SECOND, "a.bias": FIRST, "b.weight": SECOND})
    message = rf"damaged: its index says that 'a.weight' is in {SECOND}, but it is in {FIRST}\."
    with pytest.raises(FileError, match=message):
        matrices_in(folder)
    write_index(folder, {"a.weight": FIRST, "c.weight": SECOND})
    with pytest.raises(FileError, match=rf"'c.weight' is in {SECOND}, but no file has it"):
        matrices_in(folder)
    write_index(folder, {"a.weight": FIRST, "b.weight": SECOND})  # a.bias is left out: read anyway
    assert "a.bias" in matrices_in(folder).tensors


def test_a_shard_that_is_damaged(folder):
    whole = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(whole[:-1])
    with pytest.raises(FileError, match=rf"{SECOND} is truncated: the tensor 'b.weight'"):
        matrices_in(folder)
    (folder / SECOND).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    message = rf"{SECOND} is not a .safetensors file: it is a Git LFS pointer.*git lfs pull"
    with pytest.raises(FileError, match=message):
        matrices_in(folder)


@pytest.mark.parametrize("index", [True, False])
def test_two_shards_with_one_name(folder, index):
    write_safetensors(folder / SECOND, {"b.weight": noise(3, 3), "a.weight": noise(6, 4)})
    if not index:
        (folder / INDEX).unlink()
    message = rf"{SECOND} and {FIRST} both hold a tensor named 'a.weight'; expected each name once"
    with pytest.raises(FileError, match=message):
        matrices_in(folder)


def test_one_shard_under_two_spellings_is_one(folder):
    write_index(folder, {"a.weight": FIRST, "a.bias": f"./{FIRST}", "b.weight": SECOND})
    check(matrices_in(folder))


def test_files_beside_the_index_are_not_read(folder):
    write_safetensors(folder / "adapter_model.safetensors", {"a.weight": noise(2, 2)})
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    check(matrices_in(folder))


def test_several_indices(folder):
    shutil.copy(folder / INDEX, folder / "model.fp16.safetensors.index.json")
    check(matrices_in(folder))  # the usual one
    (folder / INDEX).rename(folder / "big.safetensors.index.json")
    message = r"has 2 indices: big.safetensors.index.json, model.fp16.*Name the index instead of"
    with pytest.raises(FileError, match=message):
        matrices_in(folder)
    check(matrices_in(folder / "big.safetensors.index.json"))


def test_what_is_no_file(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    (tmp_path / f"x.{INDEX}").mkdir()
    with pytest.raises(FileError, match=r"is a folder without weight files"):
        matrices_in(tmp_path)
    np.save(tmp_path / "w.npy", noise(4, 3))
    assert list(matrices_in(tmp_path).matrices) == ["w"]
    (tmp_path / "model.safetensors").symlink_to("nowhere")  # not passed over
    with pytest.raises(FileError, match=r"cannot be read: no such file"):
        matrices_in(tmp_path)
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(FileError, match=r"pipe\.npy is not a regular file"):
        matrices_in(tmp_path / "pipe.npy")


def test_a_folder_with_one_file(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"w": noise(4, 3)})
    (tmp_path / "pytorch_model.bin").write_bytes(b"the same in another format, not looked at")
    (tmp_path / "._model.safetensors").write_bytes(b"what some systems leave")
    assert list(matrices_in(tmp_path).matrices) == ["w"]
    write_safetensors(tmp_path / "adapter.safetensors", {"w": noise(4, 3)})  # the usual name counts
    assert [f.name for f in matrices_in(tmp_path).files] == ["model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    assert [f.name for f in matrices_in(tmp_path).files] == ["adapter.safetensors"]


def test_a_folder_of_arrays(tmp_path):
    for name, order in (("layer.weight", "C"), ("other", "F")):
        np.save(tmp_path / f"{name}.npy", np.asarray(noise(4, 3), order=order))
    np.save(tmp_path / "bias.npy", noise(3))
    (tmp_path / "readme.txt").write_text("x")
    found = matrices_in(tmp_path)
    assert list(found.matrices) == ["layer.weight", "other"]
    assert [s["name"] for s in found.skipped] == ["bias"]
    for _, load in found:
        assert_array_equal(load(), noise(4, 3))
    np.save(tmp_path / "bad.npy", np.array([{}], dtype=object), allow_pickle=True)
    (bad,) = matrices_in(tmp_path).unread
    assert bad["name"] == "bad"
    assert "bad.npy holds pickled Python objects" in bad["reason"]


def test_files_of_which_one_must_be_named(tmp_path):
    for name in ("one.npz", "two.npz"):
        np.savez(tmp_path / name, w=noise(4, 3))
    with pytest.raises(FileError, match=r"2 .npz files and no index: one.npz, two.npz. Name one"):
        matrices_in(tmp_path)
    (tmp_path / "two.npz").unlink()
    assert list(matrices_in(tmp_path).matrices) == ["w"]


def test_folders_without_weights(tmp_path, folder):
    (tmp_path / "training_args.bin").write_bytes(b"never opened")
    (tmp_path / "optimizer.pt").write_bytes(b"never opened")
    (tmp_path / "empty").mkdir()
    message = r"is a folder without weight files; expected .*There are some in model: name one of"
    with pytest.raises(FileError, match=message):
        matrices_in(tmp_path)
    with pytest.raises(FileError, match=r"empty is a folder without weight files.*of them\.$"):
        matrices_in(tmp_path / "empty")


def test_what_the_config_beside_the_weights_holds_does_no_harm(folder):
    for content in (b"{", b"[1]", b"\xff", b"", b'{"model_type": 3}', b"[" * 100_000):
        (folder / "config.json").write_bytes(content)
        check(matrices_in(folder))
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    check(matrices_in(folder))


# A folder of the Hugging Face cache, and files of other formats.


@pytest.fixture
def cached(tmp_path):
    """A folder as the Hub's client keeps it, with two snapshots."""
    place = tmp_path / "models--someone--model"
    for name in ("aaa", "bbb"):
        (place / "snapshots").mkdir(parents=True, exist_ok=True)
        write_sharded(place / "snapshots" / name, SHARDS)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("bbb\n")
    return place


def test_the_snapshot_that_main_names(cached):
    found = matrices_in(cached)
    check(found)
    assert {file.parent.name for file in found.files} == {"bbb"}
    (cached / "refs/main").write_text("gone")
    with pytest.raises(FileError, match=r"with 2 snapshots, aaa, bbb; expected one"):
        matrices_in(cached)
    shutil.rmtree(cached / "snapshots/bbb")
    check(matrices_in(cached))
    shutil.rmtree(cached / "snapshots/aaa")
    with pytest.raises(FileError, match="with 0 snapshots, none"):
        matrices_in(cached)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("m.onnx", "exported from"),
        ("m.zip", "Unpack it"), ("m.pkl", "never run"), ("config.json", "an index of shards"),
    ],
)  # fmt: skip
def test_what_to_do_with_files_that_are_not_read(tmp_path, name, hint):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FileError, match=f"has the suffix .*{hint}"):
        matrices_in(tmp_path / name)


def test_layers_are_in_the_order_in_which_people_count(tmp_path):
    names = [f"layers.{k}.{part}.weight" for k in (0, 1, 2, 10, 100) for part in ("down", "up")]
    mixed = [names[i] for i in (4, 9, 0, 7, 2, 1, 5, 3, 8, 6)]
    first, second = dict.fromkeys(mixed[:5], noise(3, 2)), dict.fromkeys(mixed[5:], noise(3, 2))
    folder = write_sharded(tmp_path / "model", {FIRST: first, SECOND: second})
    listed = matrices_in(folder)
    assert list(listed.matrices) == names
    assert list(listed.with_parts(False).matrices) == names
    assert list(listed.with_parts(False).with_parts(True).matrices) == names
    single = tmp_path / "arrays"
    single.mkdir()
    for name in mixed:
        np.save(single / f"{name}.npy", noise(3, 2))
    assert list(matrices_in(single).matrices) == names
    np.savez(tmp_path / "m.npz", **{name: noise(3, 2) for name in mixed})
    assert list(matrices_in(tmp_path / "m.npz").matrices) == mixed  # its own order


def test_numbers_in_names_of_any_length(tmp_path):
    names = ["w9" + "0" * 5000, "w10", "w" + "1" * 5000, "w\u0663", "w"]
    listed = matrices_in(
        write_safetensors(tmp_path / "m.safetensors", dict.fromkeys(names, noise(3, 2)))
    )
    assert set(listed.matrices) == set(names)
