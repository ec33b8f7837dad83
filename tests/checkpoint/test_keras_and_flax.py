"""Weights of Keras and Flax: layouts as they write them, and files that cannot be trusted."""

import sys
import zipfile
from pathlib import Path

import h5py
import ml_dtypes
import msgpack
import pytest
from checkpoints import noise
from numpy.testing import assert_array_equal

import rmtspec
from rmtspec.checkpoint import matrices_in
from rmtspec.errors import FileError, MissingDependencyError

CORPUS = Path(__file__).parents[1] / "fuzz/corpus"
DENSE, KERNEL, TABLE = noise(40, 30), noise(3, 3, 5, 12), noise(50, 20)


def keras3(path, optimizer=True):
    """As Keras 3.15 writes a Sequential of Conv2D, Dense called head, Embedding and LSTM."""
    with h5py.File(path, "w") as file:
        for layer, name, arrays in (
            ("conv2d", "conv2d", [KERNEL, noise(12)]), ("dense_1", "head", [DENSE, noise(30)]),
            ("embedding", "embedding", [TABLE]), ("lstm/cell", "lstm_cell",
             [noise(20, 32), noise(8, 32), noise(32)]),
            ("depthwise_conv2d", "depthwise_conv2d", [noise(3, 3, 4, 1)]),
        ):  # fmt: skip
            group = file.create_group(f"layers/{layer}/vars")
            group.attrs["name"] = name
            for index, array in enumerate(arrays):
                group.create_dataset(str(index), data=array, compression="gzip")
        if optimizer:
            file.create_dataset("optimizer/vars/2", data=DENSE)
    return path


def legacy(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("model_weights/head/head/kernel:0", data=DENSE)
        file.create_dataset("model_weights/head/head/bias:0", data=noise(30))
    return path


def archive(path, tmp_path):
    with zipfile.ZipFile(path, "w") as made:
        made.write(keras3(tmp_path / "inner.h5"), "model.weights.h5")
        made.writestr("config.json", "{}")
    return path


@pytest.mark.parametrize("name", ["m.weights.h5", "m.keras"])
def test_keras_3(tmp_path, name):
    path = tmp_path / name
    archive(path, tmp_path) if name.endswith("keras") else keras3(path)
    found = matrices_in(path)
    assert set(found.matrices) == {
        "conv2d.kernel", "head.kernel", "embedding.embeddings", "lstm.lstm_cell.kernel",
        "lstm.lstm_cell.recurrent_kernel",
    }  # fmt: skip
    assert_array_equal(found.matrices["head.kernel"](), DENSE.T)
    assert_array_equal(found.matrices["conv2d.kernel"](), KERNEL.reshape(45, 12).T)
    assert_array_equal(found.matrices["embedding.embeddings"](), TABLE)
    assert found.matrices["embedding.embeddings"].kind == "embedding"
    assert found.matrices["lstm.lstm_cell.kernel"].shape == (32, 20)
    reasons = {entry["name"]: entry["reason"] for entry in found.skipped}
    assert reasons["optimizer"] == "state of the optimizer, not weights"
    assert reasons["depthwise_conv2d.depthwise_kernel"].startswith("depthwise")
    with pytest.raises(FileError, match=r"is read for analysis only"):
        rmtspec.prune_checkpoint(path, tmp_path / "out")


def layers(path, *layers):
    """Write layers of (path, own name, arrays) as Keras 3 does."""
    with h5py.File(path, "w") as file:
        for place, own, *arrays in layers:
            group = file.create_group(f"layers/{place}/vars")
            group.attrs["name"] = own
            for index, array in enumerate(arrays):
                group.create_dataset(str(index), data=array)
    return matrices_in(path)


def test_layers_have_the_names_that_keras_shows(tmp_path):
    """Of Keras 3.15: a path of attributes, whose layers have names of their own."""
    found = layers(
        tmp_path / "m.weights.h5",
        ("bidirectional", "bi"),
        ("bidirectional/forward_layer", "forward_inner"),
        ("bidirectional/forward_layer/cell", "lstm_cell", noise(16, 24), noise(6, 24), noise(24)),
        ("time_distributed", "steps"),
        ("time_distributed/layer", "fc", noise(7, 9), noise(9)),
        ("sequential", "sub"),
        ("sequential/layers/dense", "deep", noise(10, 11)),
        ("twins", "twins"),
        ("twins/a", "same", noise(5, 6)),
        ("twins/b", "same", noise(5, 6)),
    )
    assert list(found.matrices) == [
        "bi.forward_inner.lstm_cell.kernel", "bi.forward_inner.lstm_cell.recurrent_kernel",
        "steps.fc.kernel", "sub.deep.kernel", "twins.a.kernel", "twins.b.kernel",
    ]  # fmt: skip


@pytest.mark.parametrize("own", [True, False])
def test_attention_of_keras(tmp_path, own):
    """Projections have the heads as an axis: (inputs, heads, size), and (heads, size, outputs)."""
    into, out = noise(16, 2, 4), noise(2, 4, 16, seed=1)
    found = layers(
        tmp_path / "m.weights.h5",
        ("mha/query_dense", "query" if own else "", into, noise(2, 4)),
        ("mha/output_dense", "attention_output" if own else "", out, noise(16)),
    )
    from_heads, to_heads = found.matrices.values()
    assert_array_equal(to_heads(), into.reshape(16, 8).T)
    assert_array_equal(from_heads(), out.reshape(8, 16).T)
    assert len(found.matrices) == 2  # the bias of two dimensions is none


def test_kernels_of_one_channel_each(tmp_path):
    """Told by the number of biases, or by the pointwise kernel beside it, whatever the name."""
    found = layers(
        tmp_path / "m.weights.h5",
        ("conv_a", "a", noise(3, 3, 8, 2), noise(16)),
        ("conv_b", "b", noise(3, 8, 2), noise(1, 16, 5), noise(5)),
    )
    assert list(found.matrices) == ["b.pointwise_kernel"]
    reasons = {entry["name"]: entry["reason"] for entry in found.skipped}
    assert reasons["a.depthwise_kernel"].startswith("depthwise")
    assert reasons["b.depthwise_kernel"].startswith("depthwise")


def test_older_files_of_keras(tmp_path):
    found = matrices_in(legacy(tmp_path / "m.h5"))
    assert list(found.matrices) == ["head.kernel"]
    assert_array_equal(found.matrices["head.kernel"](), DENSE.T)


def linked(file, tmp_path):
    file["w"] = h5py.ExternalLink("/etc/passwd", "x")


def external(file, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4800))
    place = [(str(tmp_path / "secret"), 0, 4800)]
    file.create_dataset("w/kernel", (40, 30), "f4", external=place)


def virtual(file, tmp_path):
    layout = h5py.VirtualLayout((40, 30), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "w", (40, 30))
    file.create_virtual_dataset("w", layout)


@pytest.mark.parametrize("make", [linked, external, virtual])
def test_numbers_in_other_files_are_refused(tmp_path, make):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        make(file, tmp_path)
    with pytest.raises(FileError, match=r"is refused: .*another file"):
        matrices_in(tmp_path / "m.h5")


def test_odd_things_in_a_file_are_named(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("a/kernel", data=DENSE)
        file["b"] = file["a"]  # the same group again
        file["a/loop"] = file["/"]
        file["soft"] = h5py.SoftLink("/a/kernel")
        file.create_dataset("words", data=["x"])
        file.create_dataset("bomb", (10**7, 10**6), "f4", chunks=(1000, 1000))
    found = matrices_in(tmp_path / "m.h5")
    assert list(found.matrices) in (["a.kernel"], ["b.kernel"])
    reasons = {entry["name"]: entry["reason"] for entry in found.skipped}
    assert reasons["soft"] == "a link to /a/kernel"
    assert "is not of real floating numbers" in reasons["words"]
    assert "announces 40000000000000 bytes and stores" in reasons["bomb"]


@pytest.mark.parametrize("seed", [618, 3546, 3554])
def test_damage_that_the_hdf5_library_does_not_survive(tmp_path, seed):
    """Two mutants that it never returns from, and one that it crashes on: lists of names."""
    path = tmp_path / "m.weights.h5"
    path.write_bytes((CORPUS / f"keras-{seed}.h5").read_bytes())
    with pytest.raises(FileError, match=r"damaged: the HDF5 library does not get through it"):
        matrices_in(path)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_damage_that_takes_memory_for_ever(tmp_path):
    """The text of an attribute that is sought in a heap that leads to itself: .5 GB a second."""
    path = tmp_path / "m.weights.h5"
    path.write_bytes((CORPUS / "keras-1049696.h5").read_bytes())
    with pytest.raises(FileError, match=r"is damaged: .*memory allocation failed"):
        matrices_in(path)


def test_files_of_keras_that_are_damaged(tmp_path, monkeypatch):
    whole = keras3(tmp_path / "m.h5").read_bytes()
    for content, message in (
        (b"", "is empty"),
        (whole[:900], "damaged"),
        (b"PK" + whole, "not a file of Keras"),
    ):
        (tmp_path / "bad.h5").write_bytes(content)
        with pytest.raises(FileError, match=message):
            matrices_in(tmp_path / "bad.h5")
    (tmp_path / "bad.keras").write_bytes(whole)
    with pytest.raises(FileError, match=r"damaged, or no archive of Keras"):
        matrices_in(tmp_path / "bad.keras")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rmtspec\[keras\]'"):
        matrices_in(tmp_path / "m.h5")


# Flax.


def packed(array):
    """An array as flax.serialization packs it."""
    content = (array.shape, str(array.dtype), array.tobytes())
    return msgpack.ExtType(1, msgpack.packb(content, use_bin_type=True))


def flax(path, tree):
    path.write_bytes(msgpack.packb(tree, use_bin_type=True))
    return path


def test_flax(tmp_path):
    heads, back, half = noise(24, 4, 6), noise(4, 6, 24), noise(30, 20, dtype=ml_dtypes.bfloat16)
    pieces = {"0": packed(DENSE.reshape(-1)[:700]), "1": packed(DENSE.reshape(-1)[700:])}
    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 40, "1": 30}, "chunks": pieces}
    layers = {
        "Dense_0": {"kernel": packed(half), "bias": packed(noise(20))},
        "Conv_0": {"kernel": packed(KERNEL)}, "Embed_0": {"embedding": packed(TABLE)},
        "attn": {"query": {"kernel": packed(heads)}, "out": {"kernel": packed(back)}},
        "big": {"kernel": chunked}, "wide": {"kernel": packed(noise(16, 2, 5, seed=4)),
                                            "bias": packed(noise(2, 5))},
    }  # fmt: skip
    tree = {"step": 7, "name": "x", "list": [1, {"a": None}, 2.5, b"b"], "params": layers,
            "opt_state": {"0": {"mu": {"kernel": packed(DENSE)}}}}  # fmt: skip
    found = matrices_in(flax(tmp_path / "m.msgpack", tree))
    expected = {
        "params.Dense_0.kernel": half.T, "params.Conv_0.kernel": KERNEL.reshape(45, 12).T,
        "params.Embed_0.embedding": TABLE, "params.attn.query.kernel": heads.reshape(24, 24).T,
        "params.attn.out.kernel": back.reshape(24, 24).T, "params.big.kernel": DENSE.T,
        "params.wide.kernel": noise(16, 2, 5, seed=4).reshape(16, 10).T,
    }  # fmt: skip
    assert set(found.matrices) == set(expected)
    for name, array in expected.items():
        assert_array_equal(found.matrices[name](), array)
    reasons = {entry["name"]: entry["reason"] for entry in found.skipped}
    assert reasons["opt_state"] == "state of the optimizer, not weights"
    assert not [name for name in reasons if name.startswith("opt_state.")]


HOSTILE = {
    "empty": (b"", "is empty"),
    "text": (b"hello", "is not a file of Flax"),
    "count": (b"\xdf\xff\xff\xff\xff", "announces 4294967295 entries"),
    "deep": (b"\x81\xa1a" * 5000 + b"\xc0", "nested more than"),
    "lists": (b"\x81\xa1a" + b"\x91" * 5000 + b"\xc0", "too deep"),
    "length": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "truncated or damaged"),
    "key": (b"\x81\x05\x05", "which is not expected"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_of_flax(tmp_path, case):
    content, message = HOSTILE[case]
    (tmp_path / "m.msgpack").write_bytes(content)
    with pytest.raises(FileError, match=message):
        matrices_in(tmp_path / "m.msgpack")


def test_every_cut_of_a_file_of_flax_is_named(tmp_path):
    whole = flax(tmp_path / "m.msgpack", {"a": {"kernel": packed(noise(4, 3))}, "n": 3})
    content = whole.read_bytes()
    for length in range(1, len(content)):
        whole.write_bytes(content[:length])
        with pytest.raises(FileError):
            matrices_in(whole)


def test_an_array_that_does_not_add_up(tmp_path):
    for content in (((4, 4), "float32", bytes(12)), ((4, 4), "float32"), ("x", "float32", b"")):
        wrong = msgpack.ExtType(1, msgpack.packb(content))
        with pytest.raises(FileError, match=r"damaged"):
            matrices_in(flax(tmp_path / "m.msgpack", {"a": wrong}))


def test_a_folder_of_orbax_is_named(tmp_path):
    (tmp_path / "manifest.ocdbt").write_bytes(b"x")
    with pytest.raises(FileError, match=r"is a checkpoint of Orbax"):
        matrices_in(tmp_path)
