"""Reading the next matrix meanwhile: two in memory, errors where the matrix is called for."""

import threading
import time
import weakref

import numpy as np
import pytest

from rmtspec.errors import FileError
from rmtspec.runs.read_ahead import read_ahead


class Matrix:
    """A stored matrix that tells when it has been read."""

    sides = (3, 3)
    kind = "conv"

    def __init__(self, number, error=None):
        self.number, self.error = number, error
        self.read = threading.Event()

    def __call__(self):
        if self.error:
            raise self.error
        self.read.set()
        return np.full((3, 2), self.number)


def named(*matrices):
    return [(str(i), matrix) for i, matrix in enumerate(matrices)]


def test_in_order_with_kind():
    found = [
        (name, held.kind, held()[0, 0]) for name, held in read_ahead(named(*map(Matrix, "123")))
    ]
    assert found == [("0", "conv", "1"), ("1", "conv", "2"), ("2", "conv", "3")]
    assert list(read_ahead([])) == []
    assert [name for name, _ in read_ahead(named(Matrix(1)))] == ["0"]


def test_an_error_comes_when_the_matrix_is_called_for():
    found = list(read_ahead(named(Matrix(1), Matrix(2, error=FileError("gone")), Matrix(3))))
    assert found[0][1]()[0, 0] == 1
    assert found[2][1]()[0, 0] == 3
    for _ in range(2):
        with pytest.raises(FileError, match="gone"):
            found[1][1]()


def test_two_in_memory_and_the_next_is_read_meanwhile(monkeypatch):
    alive, most, lock = [], [], threading.Lock()
    from rmtspec.runs import read_ahead as _read_ahead

    class Counted(_read_ahead.Held):
        def __init__(self, matrix):
            super().__init__(matrix)
            with lock:
                alive.append(weakref.ref(self))
                most.append(sum(reference() is not None for reference in alive))

    monkeypatch.setattr(_read_ahead, "Held", Counted)
    matrices = [Matrix(number) for number in range(5)]
    for name, held in read_ahead(named(*matrices)):
        following = matrices[int(name) + 1 :]
        assert not following or following[0].read.wait(timeout=10)
        assert not any(matrix.read.is_set() for matrix in following[1:])
        assert held()[0, 0] == int(name)
        del held
    assert len(most) == 5
    assert max(most) == 2


def test_what_is_mapped_is_read(tmp_path):
    from rmtspec.checkpoint import matrices_in

    np.save(tmp_path / "w.npy", np.ones((3, 2)))
    ((_, held),) = read_ahead(matrices_in(tmp_path / "w.npy").matrices.items())
    assert not isinstance(held(), np.memmap)  # which would end this process below
    (tmp_path / "w.npy").write_bytes(b"")
    np.testing.assert_array_equal(held(), np.ones((3, 2)))


def test_stopping_early_ends_the_reader():
    before = threading.active_count()
    for _ in read_ahead(named(*(Matrix(i) for i in range(50)))):
        break
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
