"""Files of torch.save as checkpoints: mapped, sharded, damaged, and never run."""

import json
import pickle
import re
import warnings
import zipfile

import numpy as np
import pytest
import torch
from checkpoints import noise, planted, write_index, write_safetensors
from numpy.testing import assert_array_equal
from safetensors.torch import load_file
from torch import nn

import rmtspec
from rmtspec.adapters.torch._storage import pickled as _pickled
from rmtspec.checkpoint import matrices_in
from rmtspec.errors import FileError
from rmtspec.runs.fingerprint import fingerprint

STATE = {
    "fc.weight": torch.from_numpy(planted()),
    "fc.bias": torch.from_numpy(noise(120)),
    "half.weight": torch.from_numpy(noise(40, 30)).to(torch.bfloat16),
    "fp8.weight": torch.from_numpy(noise(40, 30)).to(torch.float8_e4m3fn),
    "turned.weight": torch.from_numpy(noise(30, 40)).T,
    "steps": torch.tensor(3),
    "empty": torch.ones(0, 3),
}
INDEX = "pytorch_model.bin.index.json"


class Bomb:
    """Says so when unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


@pytest.fixture(autouse=True)
def nothing_open():
    _pickled._opened.cache_clear()


def check(checkpoint, names=tuple(STATE)):
    assert list(checkpoint.tensors) == list(names)
    for name, tensor in checkpoint.tensors.items():
        array, expected = tensor(), STATE[name]
        assert array.shape == tuple(expected.shape) == tensor.shape
        assert_array_equal(array.astype(np.float64), expected.to(torch.float64).numpy())
        assert array.nbytes == tensor.nbytes


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".PT"])
def test_a_state_dict(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    torch.save(STATE, path)
    checkpoint = matrices_in(path)
    check(checkpoint)
    dtypes = {name: matrix().dtype.name for name, matrix in checkpoint}
    assert dtypes == {
        "fc.weight": "float32",
        "half.weight": "bfloat16",
        "fp8.weight": "float8_e4m3fn",
        "turned.weight": "float32",
    }
    assert checkpoint.tensors["half.weight"].dtype == "BF16"
    assert {entry["name"] for entry in checkpoint.skipped} == {"fc.bias", "steps", "empty"}


def test_it_is_mapped_not_loaded(tmp_path, monkeypatch):
    given = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: given.append(k) or load(*a, **k))
    torch.save(STATE, tmp_path / "m.pt")
    checkpoint = matrices_in(tmp_path / "m.pt")
    for _, matrix in checkpoint:
        matrix()
    assert given == [{"map_location": "cpu", "weights_only": True, "mmap": True}]  # once


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_old_format_and_a_training_loops(tmp_path, wrapped):
    path = tmp_path / "m.ckpt"
    state = {name: value for name, value in STATE.items() if name != "fp8.weight"}  # it had none
    content = {"state_dict": state, "epoch": 3} if wrapped else state
    torch.save(content, path, _use_new_zipfile_serialization=wrapped)
    check(matrices_in(path), state)


def bombs(tmp_path):
    """Files that would run code when unpickled."""
    bomb = {"fc.weight": torch.ones(20, 20), "code": Bomb()}
    torch.save(bomb, tmp_path / "new.pt")
    torch.save(bomb, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": {"w": torch.ones(3, 3)}, "callbacks": Bomb()}, tmp_path / "loop.ckpt")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Bomb()))
    torch.save(nn.Linear(3, 3), tmp_path / "module.pt")
    return ["new.pt", "old.pt", "loop.ckpt", "plain.bin", "module.pt"]


def test_code_is_never_run(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = bombs(tmp_path)
    for name in names:
        message = (
            rf"{name} cannot be read without running code .*, which is never done here \((.*)\)\."
        )
        with pytest.raises(FileError, match=message) as caught:
            matrices_in(tmp_path / name)
        asked = {"module.pt": "torch.nn.modules.linear.Linear", "plain.bin": "149"}  # an operation
        expected = asked.get(name, "_pytest.outcomes._Fail")
        assert re.search(message, str(caught.value))[1] == f"it asks for {expected}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(3, 3)], "holds a list, not a state dict of tensors"),
        ({"epoch": 3, "loss": torch.tensor(0.3)}, "holds a dict, not a state dict of tensors"),
        ({"model": {"epoch": 3}}, "holds a dict, not a state dict of tensors"),
        ({0: torch.ones(3, 3)}, "not a state dict of tensors"),
        (torch.ones(3, 3), "holds a Tensor, not a state dict"),
    ],
)
def test_what_is_not_a_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(FileError, match=message):
        matrices_in(tmp_path / "m.pt")


def test_damaged_files(tmp_path):
    path = tmp_path / "m.pt"
    torch.save(STATE, path)
    whole = path.read_bytes()
    for content in (b"", b"x", whole[:1000], whole[:-100], whole[200:]):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"m\.pt (is damaged|cannot be read without running)"):
            matrices_in(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\n")
    with pytest.raises(FileError, match=r"not a file of torch\.save: it is a Git LFS pointer"):
        matrices_in(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(FileError, match=r"m\.pt is damaged or not a file of torch\.save"):
        matrices_in(path)


@pytest.mark.parametrize("new", [True, False])
def test_bytes_that_fell_over(tmp_path, new):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(8, 6)}, path, _use_new_zipfile_serialization=new)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            matrices_in(path)
        except FileError:
            refused += 1
    assert refused > 20


def test_a_file_that_changes_after_listing(tmp_path):
    path = tmp_path / "m.pt"
    torch.save(STATE, path)
    load = matrices_in(path).matrices["fc.weight"]
    torch.save({"fc.weight": torch.ones(3, 3)}, path)
    with pytest.raises(FileError, match=r"was rewritten while it was being read"):
        load()
    path.unlink()
    with pytest.raises(FileError, match=r"cannot be read: no such file"):
        load()


def test_tensors_that_are_not_dense(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8)
    odd = {
        "sparse": torch.eye(20).to_sparse(),
        "waves": torch.ones(3, 3, dtype=torch.complex64),
        "flags": torch.ones(3, 3, dtype=torch.bool),
        "quantised": quantised,
        "meta": torch.ones(3, 3, device="meta"),
        "w": torch.ones(20, 16),
    }
    torch.save(odd, tmp_path / "m.pt")
    checkpoint = matrices_in(tmp_path / "m.pt")
    assert list(checkpoint.matrices) == ["w"]
    why = {entry["name"]: entry["reason"] for entry in checkpoint.skipped}
    assert why["sparse"].startswith("sparse")
    assert "complex64" in why["waves"]
    assert why["flags"].startswith("dtype bool")
    assert why["quantised"].startswith("quantised")
    assert "meta" in why["meta"]


@pytest.fixture
def folder(tmp_path):
    """Shards and an index as transformers wrote them."""
    folder = tmp_path / "model"
    folder.mkdir()
    names = list(STATE)
    places = {}
    for number, some in enumerate((names[:3], names[3:]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: STATE[name] for name in some}, folder / file)
        places |= dict.fromkeys(some, file)
    write_index(folder, places, INDEX)
    torch.save({"lr": 0.1}, folder / "training_args.bin")
    return folder


def test_shards_with_an_index(folder):
    check(matrices_in(folder))
    check(matrices_in(folder / INDEX))
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FileError, match="incomplete"):
        matrices_in(folder)


def test_a_shard_with_code_is_not_run(folder):
    torch.save({"fp8.weight": Bomb()}, folder / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(FileError, match=r"00002-of-00002\.bin cannot be read without running code"):
        matrices_in(folder)


def test_of_two_formats_the_one_without_pickle_is_read(folder, monkeypatch):
    monkeypatch.setattr(_pickled, "stored_state", lambda *_: pytest.fail("it was opened"))
    write_safetensors(folder / "model.safetensors", {"w": noise(20, 16)})
    assert list(matrices_in(folder).matrices) == ["w"]


def test_a_folder_with_one_file(folder):
    torch.save(STATE, folder / "pytorch_model.bin")
    (folder / INDEX).unlink()
    check(matrices_in(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(FileError, match=r"has 2 .bin files and no index"):
        matrices_in(folder)


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*os.fork:DeprecationWarning")
def test_scan_with_a_journal(folder, tmp_path, n_jobs):
    done = rmtspec.analyze_checkpoint(folder, n_jobs=n_jobs, threads=1, journal=tmp_path / "j")
    assert [row["name"] for row in done.rows] == [
        "fc.weight", "half.weight", "fp8.weight", "turned.weight"
    ]  # fmt: skip
    expected = rmtspec.analyze(
        STATE["fc.weight"].numpy(), kind="matrix", name="fc.weight", noise="mp"
    )
    assert {**done.rows[0], "seconds": 0} == {**expected.to_dict(), "seconds": 0}
    again = rmtspec.analyze_checkpoint(folder, n_jobs=n_jobs, threads=1, journal=tmp_path / "j")
    assert again.rows == done.rows


@pytest.mark.parametrize("form", ["factors", "dense"])
def test_prune(folder, tmp_path, form):
    (folder / "config.json").write_text(json.dumps({"model_type": "none"}))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    done = rmtspec.prune_checkpoint(
        folder,
        tmp_path / "out",
        mode={"factors": "split", "dense": "truncate"}[form],
        bulk_keep=0.0,
    )
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    stem = "model" if form == "dense" else "rmtspec"
    names = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    out = {p.name for p in (tmp_path / "out").iterdir()}
    assert out == {*names, f"{stem}.safetensors.index.json", "config.json"} | (
        {"rmtspec.json"} if form == "factors" else set()
    )
    tensors = load_file(tmp_path / "out" / names[0]) | load_file(tmp_path / "out" / names[1])
    rank = done.row("fc.weight")["rank"]
    if form == "factors":
        product = tensors.pop("fc.outer.weight") @ tensors.pop("fc.inner.weight")
        bias = tensors.pop("fc.outer.bias")
    else:
        product, bias = tensors.pop("fc.weight"), tensors.pop("fc.bias")
    assert np.linalg.matrix_rank(product.numpy(), tol=1e-3) == rank == 2
    assert torch.equal(bias, STATE["fc.bias"])
    for name, tensor in tensors.items():
        assert tensor.dtype == STATE[name].dtype
        assert torch.equal(tensor.float(), STATE[name].float())
    assert len(tensors) == len(STATE) - 2


def test_fingerprint_goes_by_content(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    torch.save(dict(reversed(STATE.items())), tmp_path / "b.bin")
    torch.save({**STATE, "steps": torch.tensor(4)}, tmp_path / "c.pt")
    a, b, c = (fingerprint(matrices_in(tmp_path / name)) for name in ("a.pt", "b.bin", "c.pt"))
    assert a == b != c
