"""Checkpoints for tests, written by hand: the format, its index, links as in a hub's cache."""

import contextlib
import hashlib
import json

import ml_dtypes
import numpy as np
import pytest

from rmtspec import ensembles

INDEX = "model.safetensors.index.json"
_NAMES = {
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
    np.dtype("float16"): "F16",
    np.dtype("float32"): "F32",
    np.dtype("float64"): "F64",
    np.dtype("int64"): "I64",
    np.dtype("uint8"): "U8",
}


def noise(*shape, seed=5, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def planted(rows=120, columns=90, seed=0, dtype="float32"):
    """Two spikes in noise."""
    return ensembles.spiked(rows, columns, [5, 20], rng=seed).astype(dtype)


def write_safetensors(path, tensors, metadata=None):
    """Write named arrays in their order, unaligned as they come."""
    header, blob = ({"__metadata__": metadata} if metadata else {}), b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [len(blob), len(blob) + len(raw)],
        }
        blob += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + blob)
    return path


def write_sharded(folder, shards, index=INDEX):
    """Write a folder of files, name -> named arrays, and the index that lists them."""
    folder.mkdir(exist_ok=True)
    for file, tensors in shards.items():
        write_safetensors(folder / file, tensors, {"format": "pt"})
    if index:
        places = {name: file for file, tensors in shards.items() for name in tensors}
        write_index(folder, places, index)
    return folder


def write_index(folder, places, index=INDEX):
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def as_in_a_hub_cache(folder, root):
    """Copy a folder's files as a hub's cache keeps them; return the snapshot: links only."""
    blobs, snapshot = root / "blobs", root / "snapshots" / "8f3c1e"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (blobs / digest).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{digest}")
    return snapshot


def contents(folder):
    """Bytes of every file in a folder, by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@contextlib.contextmanager
def file_limit(size):
    """Let no file grow past `size` bytes, as a disk that is full."""
    resource = pytest.importorskip("resource")  # Python ignores the signal that comes with it
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
