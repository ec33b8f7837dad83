"""The fingerprint of a checkpoint: of its content, not of its files."""

import json

import ml_dtypes
import numpy as np
import pytest
from checkpoints import noise, write_safetensors, write_sharded

from rmtspec.checkpoint import matrices_in
from rmtspec.runs import fingerprint as _fingerprint
from rmtspec.runs.fingerprint import fingerprint

TENSORS = {
    "a.weight": noise(40, 30),
    "a.bias": noise(40),
    "big.weight": noise(300, 200, seed=1),  # 240 kB, of which 64 KiB are read
    "short.weight": noise(20, 16, dtype=ml_dtypes.bfloat16),
    "steps": np.array(9, "int64"),
    "none": noise(0, 3),
}


def of(path, **options):
    return fingerprint(matrices_in(path, **options))


@pytest.fixture
def one(tmp_path):
    return write_safetensors(tmp_path / "m.safetensors", TENSORS)


def test_files_do_not_matter(one, tmp_path):
    expected = of(one)
    assert len(expected) == 64
    assert of(one) == expected
    moved = tmp_path / "else.safetensors"
    write_safetensors(moved, dict(reversed(TENSORS.items())), {"format": "pt"})
    assert of(moved) == expected
    names = list(TENSORS)
    for files in (("a.safetensors", "b.safetensors"), ("z.safetensors", "b.safetensors")):
        shards = {
            files[0]: {name: TENSORS[name] for name in names[:2]},
            files[1]: {name: TENSORS[name] for name in names[2:]},
        }
        assert of(write_sharded(tmp_path / files[0], shards)) == expected


@pytest.mark.parametrize("name", [name for name in TENSORS if name != "none"])
def test_another_value(one, tmp_path, name):
    changed = np.array(TENSORS[name], copy=True)
    changed.reshape(-1)[-1] += 1
    other = write_safetensors(tmp_path / "o.safetensors", {**TENSORS, name: changed})
    assert of(other) != of(one)


def test_a_large_tensor_is_sampled_all_over(one, tmp_path):
    expected, size = of(one), TENSORS["big.weight"].size
    starts = np.linspace(0, size - 1024, 16).astype(int)
    for start in starts:
        changed = np.array(TENSORS["big.weight"], copy=True)
        changed.reshape(-1)[start + 500] += 1
        other = write_safetensors(tmp_path / "o.safetensors", {**TENSORS, "big.weight": changed})
        assert of(other) != expected
    again = noise(300, 200, seed=2)
    other = write_safetensors(tmp_path / "o.safetensors", {**TENSORS, "big.weight": again})
    assert of(other) != expected


def test_no_more_than_a_sample_is_read(one, monkeypatch):
    hashed = []
    sample = _fingerprint._sample
    monkeypatch.setattr(
        _fingerprint, "_sample", lambda tensor: hashed.append(sample(tensor)) or hashed[-1]
    )
    of(one)
    assert max(map(len, hashed)) == 2**16


@pytest.mark.parametrize(
    "changes",
    [
        {"a.weight": noise(40, 30).reshape(30, 40)},
        {"a.weight": noise(40, 30).reshape(1200)},
        {"a.bias": noise(40).view("float32").view("uint8").reshape(160)},
        {"none": noise(3, 0)},
        {"more": noise(3)},
    ],
)
def test_another_shape_dtype_or_tensor(one, tmp_path, changes):
    assert of(write_safetensors(tmp_path / "o.safetensors", {**TENSORS, **changes})) != of(one)


def test_another_name(one, tmp_path):
    renamed = {("b.weight" if n == "a.weight" else n): array for n, array in TENSORS.items()}
    assert of(write_safetensors(tmp_path / "o.safetensors", renamed)) != of(one)


def test_what_the_config_makes_of_it(tmp_path):
    path = write_safetensors(
        tmp_path / "m.safetensors", {"model.layers.0.self_attn.qkv_proj.weight": noise(64, 32)}
    )
    config = {
        "model_type": "phi3", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2
    }  # fmt: skip
    before = of(path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert of(path) != before
    assert of(path, parts=False) == before


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays(tmp_path, order):
    path = tmp_path / "w.npy"
    np.save(path, np.asarray(noise(300, 200), order=order))
    before = of(path)
    changed = np.array(noise(300, 200), order=order)
    changed[0, 0] += 1
    np.save(path, changed)
    assert of(path) != before


def test_an_archive_by_its_checksums(tmp_path, monkeypatch):
    path = tmp_path / "w.npz"
    np.savez_compressed(path, a=noise(300, 200), b=noise(3))
    found = matrices_in(path)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("it was read"))
    before = fingerprint(found)
    np.savez(path, a=noise(300, 200), b=noise(3))
    assert of(path) == before  # packed or not
    changed = noise(300, 200)
    changed[17, 3] += 1e-3
    np.savez(path, a=changed, b=noise(3))
    assert of(path) != before
