"""Weight files: what is read, what is skipped, what is refused."""

import json
import pickle

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import save_file

import rmtspec
from rmtspec.checkpoint import matrices_in

W = np.random.default_rng(0).standard_normal((30, 20))


@pytest.fixture
def tensors():
    return {
        "a.weight": W.astype(np.float32),
        "b.kernel": np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5).astype(np.float16),
        "c.bias": np.ones(7),
        "d.steps": np.ones((3, 3), dtype=np.int64),
        "e.scale": np.array(3.0),
        "f.none": np.ones((0, 4)),
    }


def check(path, tensors):
    listed = matrices_in(path)
    matrices, skipped = listed.matrices, listed.skipped
    assert len(listed) == 2
    assert dict(listed) == matrices
    assert set(matrices) == {"a.weight", "b.kernel"}
    assert_array_equal(matrices["a.weight"](), tensors["a.weight"])
    kernel = matrices["b.kernel"]
    assert (kernel.kind, kernel().shape, kernel().dtype) == ("conv", (2, 60), np.float16)
    reasons = {item["name"]: item["reason"] for item in skipped}
    assert set(reasons) == {"c.bias", "d.steps", "e.scale", "f.none"}
    assert "vector" in reasons["c.bias"]
    assert "int64" in reasons["d.steps"]
    assert "empty" in reasons["f.none"]


def test_npz(tmp_path, tensors):
    np.savez(tmp_path / "w.npz", **tensors)
    check(tmp_path / "w.npz", tensors)


def test_safetensors(tmp_path, tensors):
    save_file(tensors, tmp_path / "w.safetensors")
    check(tmp_path / "w.safetensors", tensors)


def test_npy(tmp_path):
    np.save(tmp_path / "w.npy", np.asfortranarray(W))
    listed = matrices_in(tmp_path / "w.npy")
    assert_array_equal(listed.matrices["w"](), W)
    assert listed.skipped == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16"])
def test_low_precision_safetensors(tmp_path, dtype):
    low = W.astype(getattr(ml_dtypes, dtype, dtype))
    codes = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float16": "F16"}
    write_raw(
        tmp_path / "w.safetensors", {"w": entry(codes[dtype], [30, 20], 0, low.nbytes)},
        low.tobytes(),
    )  # fmt: skip
    found = matrices_in(tmp_path / "w.safetensors").matrices["w"]()
    assert found.dtype == low.dtype
    assert_array_equal(found.astype(float), low.astype(float))


def entry(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def write_raw(path, header, data, length=None):
    raw = json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)


@pytest.mark.parametrize(
    ("header", "data", "length", "words"),
    [
        ({"w": entry("F32", [2, 2], 0, 16)}, b"\0" * 15, None, "truncated"),
        ({"w": entry("F32", [2, 2], 0, 16)}, b"\0" * 16, 10**9, "no .safetensors file"),
        ({"w": entry("F32", [2, 2], 0, 12)}, b"\0" * 16, None, "needs 16"),
        ({"w": entry("F32", [2, 2], -4, 12)}, b"\0" * 16, None, "offsets"),
        (
            {"v": entry("F32", [2, 2], 0, 16), "w": entry("F32", [2, 2], 8, 24)},
            b"\0" * 24,
            None,
            "overlap",
        ),
        ({"w": {"dtype": "F32"}}, b"", None, "header"),
        (["w"], b"", None, "header"),
    ],
)
def test_broken_safetensors(tmp_path, header, data, length, words):
    path = tmp_path / "w.safetensors"
    write_raw(path, header, data, length)
    with pytest.raises(rmtspec.RmtspecError, match=words):
        matrices_in(path)


def test_unknown_safetensors_type_is_skipped(tmp_path):
    write_raw(tmp_path / "w.safetensors", {"w": entry("F4", [2, 2], 0, 2)}, b"\0\0")
    assert "F4" in matrices_in(tmp_path / "w.safetensors").skipped[0]["reason"]


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "object.npy", np.array([[Bomb()]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "object.npz", w=np.array([[Bomb()]], dtype=object))
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(Bomb()))
    assert "pickled" in matrices_in(tmp_path / "object.npz").skipped[0]["reason"]
    for name in ("object.npy", "bare.npy", "weights.pt"):
        with pytest.raises(rmtspec.RmtspecError, match="pickle"):
            matrices_in(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path):
    np.save(tmp_path / "whole.npy", W)
    np.savez(tmp_path / "whole.npz", w=W)
    for suffix in (".npy", ".npz"):
        raw = (tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"half{suffix}").write_bytes(raw[: len(raw) // 2])
        (tmp_path / f"none{suffix}").write_bytes(b"")
        for name, words in [("half", "truncated"), ("none", f"no {suffix} file")]:
            with pytest.raises(OSError, match=words):
                matrices_in(tmp_path / f"{name}{suffix}")
    (tmp_path / "text.npy").write_text("1 2 3\n")
    with pytest.raises(rmtspec.RmtspecError, match=r"no \.npy file"):
        matrices_in(tmp_path / "text.npy")
    (tmp_path / "w.txt").write_text("1 2 3\n")
    with pytest.raises(
        rmtspec.RmtspecError, match=r"expected a \.safetensors, \.npz or \.npy file"
    ):
        matrices_in(tmp_path / "w.txt")
    with pytest.raises(rmtspec.RmtspecError, match="does not exist"):
        matrices_in(tmp_path / "missing.npy")
    with pytest.raises(rmtspec.RmtspecError, match="is a folder"):
        matrices_in(tmp_path)


def test_damaged_member_is_a_skipped_matrix(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, w=W)
    raw = bytearray(path.read_bytes())
    raw[400] ^= 0xFF
    path.write_bytes(raw)
    report = rmtspec.analyze_many(matrices_in(path).matrices)
    assert "CRC" in report.skipped[0]["reason"]
