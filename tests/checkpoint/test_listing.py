"""Reading weight files: what is found, what is skipped, and every way a file can be bad."""

import io
import json
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import rmtspec
from rmtspec.checkpoint import matrices_in
from rmtspec.errors import FileError, InvalidTypeError

RNG_SEED = 5


def noise(*shape):
    return np.random.default_rng(RNG_SEED).standard_normal(shape)


def write_safetensors(path, tensors, data=None, raw_header=None):
    """Write the format by hand: tensors is name -> (dtype name, array)."""
    header, blob = {}, b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(blob), len(blob) + len(raw)],
        }
        blob += raw
    text = raw_header if raw_header is not None else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + (blob if data is None else data))
    return path


def reasons(checkpoint):
    return {entry["name"]: entry["reason"] for entry in checkpoint.skipped}


class Bomb:
    """Says so when unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, dtype, order):
    W = np.asarray(noise(7, 5), dtype=dtype, order=order)
    np.save(tmp_path / "w.npy", W)
    found = matrices_in(tmp_path / "w.npy")
    ((name, load),) = found
    assert (name, load.kind, load.shape, len(found)) == ("w", "matrix", (7, 5), 1)
    np.testing.assert_array_equal(load(), W)
    assert load().dtype == W.dtype


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_kernel_is_out_by_the_rest(tmp_path, order):
    W = np.asarray(noise(4, 3, 2, 2), order=order)
    np.save(tmp_path / "w.npy", W)
    load = matrices_in(tmp_path / "w.npy").matrices["w"]
    assert load.kind == "conv"
    np.testing.assert_array_equal(load(), W.reshape(4, -1))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_versions(tmp_path, version):
    with (tmp_path / "w.npy").open("wb") as stream:
        np.lib.format.write_array(stream, noise(3, 4), version=version)
    np.testing.assert_array_equal(matrices_in(tmp_path / "w.npy").matrices["w"](), noise(3, 4))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_member_by_member(tmp_path, save):
    path = tmp_path / "w.npz"
    save(
        path,
        a=noise(6, 4),
        conv=noise(4, 3, 3).astype("float32"),
        bias=noise(6),
        number=np.float64(3),
        codes=np.ones((3, 3), dtype=int),
        empty=np.ones((0, 3)),
        six=np.ones((1,) * 6),
        waves=np.ones((3, 3), dtype=complex),
        bf16=noise(3, 3).astype(ml_dtypes.bfloat16),
        objects=np.array([Bomb()], dtype=object),
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "x")
    found = matrices_in(path)
    assert list(found.matrices) == ["a", "conv"]
    np.testing.assert_array_equal(found.matrices["a"](), noise(6, 4))
    assert found.matrices["conv"]().shape == (4, 9)
    why = reasons(found)
    assert why["bias"] == "1 dimension: a vector has no spectrum"
    assert why["number"] == "0 dimensions: a number has no spectrum"
    assert why["codes"].startswith("dtype int64: whole numbers")
    assert why["empty"] == "empty"
    assert why["six"].startswith("6 dimensions")
    assert why["waves"].startswith("dtype complex128 is not")
    assert why["bf16"].endswith("numpy's formats lose bfloat16, use safetensors")
    assert why["objects"] == "pickled Python objects are never opened"
    assert why["readme.txt"] == "not in .npy format"
    assert "matrices" in repr(found)


def test_safetensors_matches_its_own_library(tmp_path):
    tensors = {
        "w": noise(6, 4).astype("float32"),
        "half": noise(5, 7).astype("float16"),
        "double": noise(3, 3),
        "conv": noise(4, 3, 2, 2).astype("float32"),
        "conv1d": noise(4, 3, 2).astype("float32"),
        "bias": noise(6).astype("float32"),
        "steps": np.array(3, dtype=np.int64),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "np"})
    found = matrices_in(tmp_path / "m.safetensors")
    assert sorted(found.matrices) == ["conv", "conv1d", "double", "half", "w"]
    for name, load in found:
        np.testing.assert_array_equal(load(), tensors[name].reshape(len(tensors[name]), -1))
        assert load().dtype == tensors[name].dtype
        assert load.kind == ("conv" if "conv" in name else "matrix")
    assert sorted(reasons(found)) == ["bias", "steps"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("BF16", ml_dtypes.bfloat16),
        ("F16", np.float16),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
    ],
)
def test_safetensors_short_floats_are_analysed(tmp_path, name, dtype):
    W = noise(60, 40).astype(dtype)
    odd = np.ones(3, dtype=np.uint8)  # so that what follows is not aligned
    path = write_safetensors(tmp_path / "m.safetensors", {"odd": ("U8", odd), "w": (name, W)})
    load = matrices_in(path).matrices["w"]
    assert load().dtype == W.dtype
    assert load().flags.aligned
    np.testing.assert_array_equal(load().astype(float), W.astype(float))
    report = rmtspec.analyze_many(matrices_in(path).matrices)
    assert report.rows[0]["dtype"] == str(np.dtype(dtype))
    assert report.rows[0]["variance"] == pytest.approx(1.0, rel=0.1)  # 2400 entries of variance 1


def test_safetensors_float8_e5m2_is_read(tmp_path):
    W = noise(6, 4).astype(ml_dtypes.float8_e5m2)
    path = write_safetensors(tmp_path / "m.safetensors", {"w": ("F8_E5M2", W)})
    load = matrices_in(path).matrices["w"]
    assert load().dtype == W.dtype
    np.testing.assert_array_equal(load().astype(float), W.astype(float))


def test_safetensors_unknown_dtype_is_skipped(tmp_path):
    header = {"q": {"dtype": "F4", "shape": [4, 4], "data_offsets": [0, 8]}}
    path = write_safetensors(tmp_path / "m.safetensors", {}, bytes(8), json.dumps(header).encode())
    assert "F4 is not supported" in reasons(matrices_in(path))["q"]


def entry(**changes):
    good = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    return json.dumps({"w": {**good, **changes}}).encode()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (entry(), bytes(15), r"truncated: the tensor 'w' ends at byte"),
        (entry(), b"", r"truncated: the tensor 'w' ends at byte"),
        (entry(shape=[2, 3]), bytes(16), r"'w' has 16 bytes, but its shape \[2, 3\] of F32 needs"),
        (entry(shape=[-2, 2]), bytes(16), r"entry of 'w' in its header is"),
        (entry(shape=[2.0, 2]), bytes(16), r"entry of 'w' in its header is"),
        (entry(shape="22"), bytes(16), r"entry of 'w' in its header is"),
        (entry(shape=[2**61, 2**61]), bytes(16), r"'w' has 16 bytes"),
        (entry(dtype=3), bytes(16), r"entry of 'w' in its header is"),
        (
            entry(shape=[0, 2]),
            bytes(16),
            r"'w' has 16 bytes, but its shape \[0, 2\] of F32 needs 0",
        ),
        (entry(shape=[True, 4]), bytes(16), r"entry of 'w' in its header is"),
        (entry(shape=[1] * 65), bytes(16), r"'w' has 16 bytes, but its shape"),
        (entry(data_offsets=[16, 32]), bytes(16), r"truncated: the tensor 'w' ends at byte"),
        (entry(data_offsets=[2**61, 2**61 + 16]), bytes(16), r"truncated: the tensor 'w' ends"),
        (entry(data_offsets=[0, 2**62]), bytes(16), r"entry of 'w' in its header is"),
        (entry(data_offsets=[16, 0]), bytes(16), r"entry of 'w' in its header is"),
        (entry(data_offsets=[-16, 0]), bytes(16), r"entry of 'w' in its header is"),
        (entry(data_offsets=[0]), bytes(16), r"entry of 'w' in its header is"),
        (b'{"w": 3}', b"", r"entry of 'w' in its header is 3"),
        (b"[1]", b"", r"not a JSON object"),
        (b"{x}", b"", r"its header is not JSON"),
        (b"\xff\xfe", b"", r"its header is not JSON"),
        (b"[" * 100_000, b"", r"its header is not JSON"),
        (b'{"w": 1, "w": 2}', b"", r"entry of 'w' in its header is 2"),
        (
            json.dumps(
                {
                    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
                    "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [12, 28]},
                }
            ).encode(),
            bytes(28),
            r"'a' and 'b' overlap",
        ),
    ],
)
def test_safetensors_bad_headers(tmp_path, header, data, message):
    path = write_safetensors(tmp_path / "m.safetensors", {}, data, header)
    with pytest.raises(FileError, match=message):
        matrices_in(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"it is empty"),
        (b"\x08\x00", r"match no known format"),
        (b"PK\x03\x04" + bytes(20), r"it is a zip archive"),
        (b"\x93NUMPY" + bytes(20), r"it is a .npy file"),
        (pickle.dumps({"a": 1}), r"it is a pickle, which is never opened"),
        ((10_000).to_bytes(8, "little") + b"{}", r"truncated or not a .safetensors file"),
        (b"hello, this is text", r"match no known format"),
    ],
)
def test_safetensors_wrong_formats(tmp_path, content, message):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(FileError, match=message):
        matrices_in(tmp_path / "m.safetensors")


def test_safetensors_headers_longer_than_the_file(tmp_path):
    path = write_safetensors(tmp_path / "m.safetensors", {"w": ("F32", np.float32(noise(4, 3)))})
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    for cut in (8, 9, 8 + length - 1):
        path.write_bytes(whole[:cut])
        message = f"not a .safetensors file: it has {cut} bytes, but its header alone announces"
        with pytest.raises(FileError, match=message):
            matrices_in(path)
    for size in (len(whole) - 7, 10**8, 2**63, 2**64 - 1):
        path.write_bytes(size.to_bytes(8, "little") + whole[8:])
        with pytest.raises(FileError, match=r"not a .safetensors file"):
            matrices_in(path)


def test_safetensors_of_zero_size(tmp_path):
    tensors = {
        "empty": ("F32", np.ones((0, 3), np.float32)),
        "w": ("F32", np.float32(noise(4, 3))),
        "none": ("F4", np.ones((0,), np.uint8)),
    }
    found = matrices_in(write_safetensors(tmp_path / "m.safetensors", tensors))
    assert list(found.matrices) == ["w"]
    assert reasons(found) == {
        "empty": "empty",
        "none": "dtype F4 is not supported; convert it to F32",
    }
    assert found.tensors["empty"]().shape == (0, 3)
    assert found.tensors["none"]().shape == (0,)
    assert found.tensors["empty"]().dtype == np.float32
    found = matrices_in(write_safetensors(tmp_path / "m.safetensors", {}))
    assert (len(found), found.skipped, found.tensors) == (0, [], {})


def test_npy_bad_files(tmp_path):
    path = tmp_path / "w.npy"
    np.save(path, noise(30, 20))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(FileError, match=rf"truncated: {len(whole) - 1} bytes.* {len(whole)}"):
        matrices_in(path)
    path.write_bytes(whole[:40])
    with pytest.raises(FileError, match=r"damaged header"):
        matrices_in(path)
    path.write_bytes(b"")
    with pytest.raises(FileError, match=r"is not a .npy file: it is empty"):
        matrices_in(path)
    np.save(path, np.array([[Bomb()]], dtype=object), allow_pickle=True)
    with pytest.raises(FileError, match=r"pickled Python objects, which are never opened"):
        matrices_in(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileError, match=r"it is a pickle, which is never opened"):
        matrices_in(path)
    np.savez(tmp_path / "z.npz", a=noise(3, 3))
    path.write_bytes((tmp_path / "z.npz").read_bytes())
    with pytest.raises(FileError, match=r"name it .npz"):
        matrices_in(path)
    np.save(path, noise(3))
    assert reasons(matrices_in(path)) == {"w": "1 dimension: a vector has no spectrum"}


def test_npz_bad_files(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, a=noise(30, 20), b=noise(10, 10))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(FileError, match=r"truncated or damaged"):
        matrices_in(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(FileError, match=r"is not an .npz file"):
        matrices_in(path)
    np.save(tmp_path / "w.npy", noise(3, 3))
    path.write_bytes((tmp_path / "w.npy").read_bytes())
    with pytest.raises(FileError, match=r"it is a .npy file"):
        matrices_in(path)
    damaged = bytearray(whole)
    damaged[1000] ^= 0xFF  # an entry of `a`: the header reads, the checksum does not
    path.write_bytes(damaged)
    found = matrices_in(path)
    with pytest.raises(FileError, match=r"damaged at 'a'"):
        found.matrices["a"]()
    report = rmtspec.analyze_many(found.matrices)
    assert [row["name"] for row in report.rows] == ["b"]
    assert "damaged at 'a'" in report.skipped[0]["reason"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"garbage")
    assert reasons(matrices_in(path))["a"].startswith("damaged: ")


def test_a_listing_regrouped_is_the_other_listing(tmp_path, monkeypatch):
    W = {"h.0.attn.c_attn.weight": noise(32, 96), "b": noise(3)}
    save_file(W, tmp_path / "m.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_embd": 32, "n_head": 4}')
    np.savez(tmp_path / "w.npz", **W, words=np.array([{}], dtype=object))
    for file in ("m.safetensors", "w.npz"):
        apart, whole = (matrices_in(tmp_path / file, parts=parts) for parts in (True, False))
        with monkeypatch.context() as patch:
            patch.setattr(type(tmp_path), "open", lambda *_: pytest.fail("read again"))
            assert (apart.with_parts(False), whole.with_parts(True)) == (whole, apart)
        assert apart.with_parts(True) is apart
        assert (len(apart), len(whole)) == (3, 1)


def test_npz_two_members_of_one_name(tmp_path):
    content = io.BytesIO()
    np.save(content, noise(3, 3))
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("a.npy", content.getvalue())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", content.getvalue())
    found = matrices_in(tmp_path / "w.npz")
    assert list(found.matrices) == ["a"]
    assert reasons(found) == {"a": "a second array of this name"}


def test_paths_that_are_no_weight_file(tmp_path):
    expected = (
        r"expected a .safetensors, .npz, .npy, .gguf, .h5, .keras, .msgpack, .pt, .pth, .bin, "
        r".ckpt, .jit file or a folder"
    )
    with pytest.raises(FileError, match=f"does not exist; {expected} of them. Check the path"):
        matrices_in(tmp_path / "missing.npy")
    with pytest.raises(FileError, match=f"is a folder without weight files; {expected}"):
        matrices_in(tmp_path)
    (tmp_path / "m.txt").write_text("x")
    with pytest.raises(FileError, match=f"suffix '.txt'; {expected}"):
        matrices_in(str(tmp_path / "m.txt"))
    with pytest.raises(FileError, match=r"suffix ''; expected"):
        matrices_in("/dev/null")
    with pytest.raises(FileError, match=r"cannot be read|does not exist"):
        matrices_in(tmp_path / ("x" * 300 + ".npy"))
    with pytest.raises(InvalidTypeError, match=r"`path` is a int; expected the path"):
        matrices_in(3)


def test_a_file_that_shrinks_after_listing(tmp_path):
    path = tmp_path / "w.npy"
    np.save(path, noise(30, 20))
    load = matrices_in(path).matrices["w"]
    path.write_bytes(b"")
    with pytest.raises(FileError, match=r"was rewritten .*it had 4928 bytes, and has 0"):
        load()
    path.unlink()
    with pytest.raises(FileError, match=r"cannot be read at 'w'"):
        load()


def test_a_file_one_may_not_read(tmp_path, monkeypatch):
    path = tmp_path / "w.npy"
    np.save(path, noise(3, 3))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(FileError, match=r"cannot be read: permission denied"):
        matrices_in(path)


def test_stored_matrices_travel_to_other_processes(tmp_path):
    np.savez(tmp_path / "w.npz", a=noise(40, 30), b=noise(30, 40))
    found = matrices_in(tmp_path / "w.npz").matrices
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize(
    ("name", "matrices"),
    [("mlp-784-1000-10-mnist", 2), ("resnet20-cifar10", 20), ("resnet56-cifar10", 56)],
)
def test_trained_models(data_folder, name, matrices):
    from safetensors import safe_open

    path = data_folder / "models" / f"{name}.safetensors"
    found = matrices_in(path)
    assert len(found) == matrices
    with safe_open(path, framework="numpy") as reader:
        names = set(reader.keys())
        for tensor, load in found:
            expected = reader.get_tensor(tensor)
            np.testing.assert_array_equal(load(), expected.reshape(len(expected), -1))
    assert set(found.matrices) | set(reasons(found)) == names
