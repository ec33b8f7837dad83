"""The hidden states of all sequences between two blocks, in a file."""

import os
from pathlib import Path

import torch


class HiddenStates:
    """Tensors of one shape and dtype in a file, by number.

    Parameters
    ----------
    path : Path
        The file; it is made when the first tensor is written.
    shape : tuple of int
        Of each tensor.
    dtype : torch.dtype
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._path, self._shape, self._dtype = path, shape, dtype
        self.nbytes = torch.Size(shape).numel() * dtype.itemsize

    def read(self, number: int) -> torch.Tensor:
        """Return a tensor that was written."""
        with self._path.open("rb") as stream:
            stream.seek(number * self.nbytes)
            values = bytearray(stream.read(self.nbytes))
        return torch.frombuffer(values, dtype=self._dtype).reshape(self._shape)

    def write(self, number: int, tensor: torch.Tensor) -> None:
        """Write a tensor."""
        plain = tensor.detach().to(self._dtype).contiguous().reshape(-1).view(torch.uint8)
        with os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as stream:
            stream.seek(number * self.nbytes)
            stream.write(plain.numpy().data)

    def sync(self) -> None:
        """Return once the file is on disk."""
        with self._path.open("rb") as stream:
            os.fsync(stream.fileno())

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self._path.unlink(missing_ok=True)
