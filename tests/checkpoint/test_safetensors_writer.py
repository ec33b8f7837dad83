"""Writing .safetensors files: read back by the official package, one tensor in memory at a time."""

import hashlib
import json
import weakref

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file

from rmtspec.checkpoint.safetensors_reader import DTYPES, stored_metadata, stored_tensors
from rmtspec.checkpoint.safetensors_writer import Outgoing, format_dtype, write_safetensors
from rmtspec.checkpoint.stored import named_dtype
from rmtspec.errors import InvalidTypeError, InvalidValueError


def noise(*shape, dtype="float32", seed=5):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def outgoing(name, array):
    return Outgoing(name, format_dtype(array.dtype), array.shape, lambda: array)


TENSORS = {
    "z": noise(3, 4),
    "a": noise(5, dtype="float16"),
    "double": noise(2, 2, dtype="float64"),
    "steps": np.array(7, dtype=np.int64),
    "mask": np.array([True, False, True]),
    "empty": np.ones((0, 3), dtype=np.float32),
    "kernel": noise(2, 3, 1, 2),
    "größe": noise(1, 1),
    "turned": noise(4, 3).T,
}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "m.safetensors"
    write_safetensors(path, [outgoing(*item) for item in TENSORS.items()], {"format": "pt"})
    return path


def test_the_official_package_reads_what_was_written(written):
    found = load_file(written)
    assert found.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    with safetensors.safe_open(written, "np") as file:
        assert file.metadata() == {"format": "pt"}
    assert stored_metadata(written) == {"format": "pt"}


def test_tensors_are_aligned_in_descending_order_then_by_name(written):
    tensors = sorted(stored_tensors(written), key=lambda t: (t.begin, t.end))
    for tensor in tensors:
        assert tensor.begin % named_dtype(tensor.numpy_name).itemsize == 0
    wide = [t.name for t in tensors if named_dtype(t.numpy_name).itemsize == 8]
    assert wide == ["double", "steps"]
    assert [t.name for t in tensors][-2:] == ["a", "mask"]
    raw = written.read_bytes()
    assert int.from_bytes(raw[:8], "little") % 8 == 0


def test_the_digest_is_that_of_the_file(tmp_path):
    path = tmp_path / "m.safetensors"
    digest = write_safetensors(path, [outgoing("w", noise(30, 20))])
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "__metadata__" not in json.loads(path.read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert stored_metadata(path) == {}


def test_nothing_at_all_is_a_file_too(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", [])
    assert load_file(tmp_path / "m.safetensors") == {}


def test_every_dtype_of_the_format_has_its_name():
    for name, numpy_name in DTYPES.items():
        assert format_dtype(named_dtype(numpy_name)) == name
    assert format_dtype(np.dtype(ml_dtypes.bfloat16)) == "BF16"
    for dtype in ("complex128", ">f4", object, ml_dtypes.float8_e4m3b11fnuz):
        with pytest.raises(InvalidTypeError, match=r"cannot hold; expected one of .*<f8"):
            format_dtype(np.dtype(dtype))


def test_short_floats(tmp_path):
    path = tmp_path / "m.safetensors"
    tensors = {
        "w": noise(6, 5, dtype=ml_dtypes.bfloat16),
        "q": noise(3, 3, dtype=ml_dtypes.float8_e4m3fn),
    }
    write_safetensors(path, [outgoing(*item) for item in tensors.items()])
    found = dict(safetensors.deserialize(path.read_bytes()))
    assert (found["w"]["dtype"], found["w"]["shape"]) == ("BF16", [6, 5])
    assert bytes(found["w"]["data"]) == tensors["w"].tobytes()
    assert bytes(found["q"]["data"]) == tensors["q"].tobytes()


def test_a_dtype_that_numpy_lacks_is_copied_as_bytes(tmp_path):
    path = tmp_path / "m.safetensors"
    raw = np.arange(8, dtype=np.uint8)
    half = Outgoing("half", "F4", (4, 4), lambda: raw, stored_bytes=8)
    write_safetensors(path, [half, outgoing("w", noise(3, 3))])
    found = dict(safetensors.deserialize(path.read_bytes()))
    assert found["half"]["dtype"] == "F4"
    assert bytes(found["half"]["data"]) == raw.tobytes()
    with pytest.raises(InvalidTypeError, match=r"'half' has dtype 'F4', whose size is not known"):
        write_safetensors(path, [Outgoing("half", "F4", (4, 4), lambda: raw)])


def test_one_tensor_in_memory_at_a_time(tmp_path):
    alive = []

    class Traced(np.ndarray):
        pass

    def load(name):
        assert not any(reference() is not None for reference in alive)
        array = np.full((100, 10), 3.0).view(Traced)
        alive.append(weakref.ref(array))
        return array

    tensors = [Outgoing(n, "F64", (100, 10), lambda n=n: load(n)) for n in "abc"]
    write_safetensors(tmp_path / "m.safetensors", tensors)
    assert len(alive) == 3


def test_what_cannot_be_written(tmp_path):
    path = tmp_path / "m.safetensors"
    twice = [outgoing("w", noise(2, 2)), outgoing("w", noise(3, 3))]
    with pytest.raises(InvalidValueError, match=r"cannot hold two tensors named 'w'"):
        write_safetensors(path, twice)
    with pytest.raises(InvalidValueError, match="the format reserves"):
        write_safetensors(path, [outgoing("__metadata__", noise(2, 2))])
    assert not path.exists()
    wrong = Outgoing("w", "F32", (2, 3), lambda: noise(2, 2))
    message = r"'w' is 16 bytes, an array of shape \(2, 2\) of float32; expected the 24 bytes of"
    with pytest.raises(InvalidValueError, match=message):
        write_safetensors(path, [wrong])
