"""A file that shrinks while its matrix is used: a mapping of it would kill the process."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoints import noise, write_safetensors

from rmtspec.checkpoint import matrices_in
from rmtspec.checkpoint.stored import MappedTensor, Part
from rmtspec.errors import FileError

PROGRAM = """
import os, sys
from rmtspec.checkpoint import matrices_in
W = matrices_in(sys.argv[1]).matrices["w"]()
os.truncate(sys.argv[1], 0)
print(float(W.sum()))
"""


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".pt"])
def test_a_matrix_outlives_its_file(tmp_path, suffix):
    W, file = noise(300, 200), tmp_path / f"w{suffix}"
    if suffix == ".npy":
        np.save(file, W)
    elif suffix == ".pt":
        torch.save({"w": torch.from_numpy(W)}, file)
    else:
        write_safetensors(file, {"w": W})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode != -signal.SIGBUS
    assert float(done.stdout) == pytest.approx(float(W.sum()), abs=1e-2)


def test_a_file_that_shrinks_below_a_tensor(tmp_path):
    file = tmp_path / "w.safetensors"
    write_safetensors(file, {"a": noise(30, 20), "w": noise(30, 20)})
    tensor = matrices_in(file).tensors["w"]
    size = file.stat().st_size
    os.truncate(file, size - 100)
    with pytest.raises(FileError, match=r"cannot be read at 'w': it ends 100 bytes before"):
        tensor._load()


BOXES = [
    ((6, 5, 4), ((2, 3), None, None), (5, 4)),
    ((6, 5, 4), (None, (1, 3), None), (12, 4)),
    ((6, 5, 4), (None, None, (3, 4)), (30, 1)),
    ((6, 5, 4), ((5, 6), (4, 5), (0, 2)), (1, 2)),
    ((2, 3, 5, 4), (None, (1, 2), None, None), (10, 4)),
    ((120,), ((10, 20),), (2, 5)),
]


@pytest.mark.parametrize(("view", "box", "shape"), BOXES, ids=range(len(BOXES)))
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_part_is_read_alone_and_is_the_same(tmp_path, monkeypatch, order, view, box, shape):
    np.save(tmp_path / "w.npy", np.asarray(noise(6, 5, 4), order=order))
    (tensor,) = matrices_in(tmp_path / "w.npy").tensors.values()
    part = Part("p", "expert", view, box, shape)
    read = []
    piece = MappedTensor.piece
    monkeypatch.setattr(
        MappedTensor, "piece", lambda self, start, n: read.append(n) or piece(self, start, n)
    )
    np.testing.assert_array_equal(tensor.matrix(part), part.of(noise(6, 5, 4)))
    if order == "C" and box[0] is not None:
        assert sum(read) == 4 * np.prod(shape)
