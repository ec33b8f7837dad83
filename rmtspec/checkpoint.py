"""Reading weight files: the matrices of a .npy, .npz or .safetensors file, each loaded when asked.

Nothing is ever unpickled, and only headers are read until a matrix is called for.
"""

import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec._results import aligned
from rmtspec._safetensors import looks_like, named_dtype, stored_tensors
from rmtspec.errors import FileError, InvalidTypeError

SUFFIXES = (".safetensors", ".npz", ".npy")
_TORCH = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix in a file; calling it returns the array.

    Attributes
    ----------
    path : str
        The file.
    name : str
        Of the tensor in it.
    kind : str
        "matrix", or "conv" for a kernel read as output channels x everything else.
    shape : tuple of int
        Of the tensor as stored.
    dtype : str
        Of its entries.
    member : str
        Name within an .npz file; empty for the others.
    offset : int
        Where the entries begin in the file (not for .npz).
    order : str
        "C" or "F".
    """

    path: str
    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    member: str = ""
    offset: int = 0
    order: str = "C"

    def __call__(self) -> NDArray[Any]:
        """Return the matrix, memory-mapped where the format allows it.

        Raises
        ------
        FileError
            The file is damaged, or was changed since it was listed.
        """
        array = self._from_zip() if self.member else self._mapped()
        return array.reshape(array.shape[0], -1)

    def _mapped(self) -> NDArray[Any]:
        dtype = named_dtype(self.dtype)
        size = math.prod(self.shape) * dtype.itemsize
        try:
            raw: NDArray[Any] = np.memmap(
                self.path, np.uint8, mode="r", offset=self.offset, shape=(size,)
            )
        except (OSError, ValueError) as error:
            raise FileError(
                f"{self.path} cannot be read at {self.name!r}: {error}. Was it changed meanwhile? "
                "Read it again."
            ) from error
        order: Any = self.order
        # Formats do not promise aligned entries; a view of such bytes is copied once.
        return np.require(raw.view(dtype), requirements="A").reshape(self.shape, order=order)

    def _from_zip(self) -> NDArray[Any]:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
                stream.read(1)  # past the end, where zipfile compares the checksum
                return array
        except _ZIP_ERRORS as error:
            raise FileError(
                f"{self.path} is damaged at {self.name!r}: {error}. Copy or save the file again."
            ) from error


@dataclass(frozen=True, slots=True, repr=False)
class Checkpoint:
    """The matrices of a file, not loaded yet; iterating gives (name, `StoredMatrix`) pairs.

    Attributes
    ----------
    path : Path
        The file.
    matrices : dict of str to StoredMatrix
        What can be analysed; `rmtspec.analyze_many` takes it.
    skipped : list of dict
        "name" and "reason" of the other tensors.
    """

    path: Path
    matrices: dict[str, StoredMatrix]
    skipped: list[dict[str, str]]

    def __iter__(self) -> Iterator[tuple[str, StoredMatrix]]:
        return iter(self.matrices.items())

    def __len__(self) -> int:
        return len(self.matrices)

    def __repr__(self) -> str:
        counts = [("matrices", len(self.matrices)), ("skipped", len(self.skipped))]
        return aligned(f"Checkpoint {self.path.name}", counts)


def matrices_in(path: str | os.PathLike[str]) -> Checkpoint:
    """List the matrices in a weight file, each a callable that loads it.

    Tensors of 2 dimensions are matrices; those of 3 to 5 are read as convolution kernels, output
    channels x everything else. Vectors, numbers, integer and empty tensors are listed as skipped.

    Parameters
    ----------
    path : path
        A .safetensors file (float16, bfloat16 and float8 included), .npz, or .npy.

    Returns
    -------
    Checkpoint

    Raises
    ------
    FileError
        Missing, a folder, of another format, truncated, damaged, or pickled.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from rmtspec.checkpoint import matrices_in
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "weights.npz")
    ...     np.savez(path, weight=np.ones((3, 2)), bias=np.ones(3))
    ...     checkpoint = matrices_in(path)
    ...     [(name, load().shape) for name, load in checkpoint]
    [('weight', (3, 2))]
    >>> checkpoint.skipped
    [{'name': 'bias', 'reason': '1 dimension: a vector has no spectrum'}]
    """
    if not isinstance(path, str | os.PathLike):
        raise InvalidTypeError(f"`path` is a {type(path).__name__}; expected the path of a file.")
    file = Path(path)
    suffix = file.suffix.lower()
    formats = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    try:
        if file.is_dir():
            raise FileError(
                f"{file} is a folder; expected a file ({formats}). Name one of the files in it."
            )
        if not file.exists():
            raise FileError(f"{file} does not exist; expected a {formats} file. Check the path.")
        if suffix in _TORCH:
            raise FileError(
                f"{file} is a {suffix} file, which is pickled and never opened here. Export it to "
                'safetensors first: safetensors.torch.save_file(model.state_dict(), "model'
                '.safetensors").'
            )
        if suffix not in SUFFIXES:
            raise FileError(f"{file} has the suffix {suffix!r}; expected a {formats} file.")
        reader = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}[suffix]
        matrices, skipped = reader(file)
    except FileError:
        raise
    except OSError as error:
        raise FileError(
            f"{file} cannot be read: {error.strerror or error}. Check that it is a file you may "
            "read."
        ) from error
    return Checkpoint(file, matrices, skipped)


_ZIP_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # an encrypted member, an unknown compression
)
_Listing = tuple[dict[str, StoredMatrix], list[dict[str, str]]]


def _npy(file: Path) -> _Listing:
    with file.open("rb") as stream:
        start = stream.read(8)
        stream.seek(0)
        if not start.startswith(_NPY_MAGIC):
            raise FileError(f"{file} is no .npy file{looks_like(start)}")
        try:
            shape, fortran, dtype = _npy_header(stream)
        except (ValueError, EOFError) as error:
            raise FileError(
                f"{file} has a damaged header: {error}. Copy or save the file again."
            ) from error
        offset = stream.tell()
        size = stream.seek(0, os.SEEK_END)
    if dtype.hasobject:
        raise FileError(
            f"{file} holds pickled Python objects, which are never opened here. Save an array of "
            "numbers: numpy.save(path, array.astype(float))."
        )
    needed = offset + math.prod(shape) * dtype.itemsize
    if size < needed:
        raise FileError(
            f"{file} is truncated: {size} bytes, and its header announces {needed}. "
            "Copy or save the file again."
        )
    reason, kind = _judge(shape, dtype)
    if reason:
        return {}, [{"name": file.stem, "reason": reason}]
    order = "F" if fortran else "C"
    found = StoredMatrix(str(file), file.stem, kind, shape, dtype.str, offset=offset, order=order)
    return {file.stem: found}, []


def _npz(file: Path) -> _Listing:
    matrices: dict[str, StoredMatrix] = {}
    skipped: list[dict[str, str]] = []
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                reason, kind = "not in .npy format", ""
                shape: tuple[int, ...] = ()
                dtype = np.dtype(np.float64)
                if member.endswith(".npy"):
                    try:
                        with archive.open(member) as stream:
                            shape, _, dtype = _npy_header(stream)
                        reason, kind = _judge(shape, dtype)
                    except _ZIP_ERRORS as error:
                        reason = f"damaged: {error}"
                if reason or name in matrices:
                    reason = reason or "a second array of this name"
                    skipped.append({"name": name, "reason": reason})
                else:
                    matrices[name] = StoredMatrix(
                        str(file), name, kind, shape, dtype.str, member=member
                    )
    except zipfile.BadZipFile as error:
        with file.open("rb") as stream:
            start = stream.read(8)
        if start.startswith(b"PK"):
            raise FileError(
                f"{file} is truncated or damaged: {error}. Copy or save the file again."
            ) from error
        raise FileError(f"{file} is no .npz file{looks_like(start)}") from error
    return matrices, skipped


def _safetensors(file: Path) -> _Listing:
    matrices: dict[str, StoredMatrix] = {}
    skipped: list[dict[str, str]] = []
    for tensor in stored_tensors(file):
        if not tensor.numpy_name:
            reason, kind = f"dtype {tensor.dtype} is not supported; convert it to F32", ""
        else:
            reason, kind = _judge(tensor.shape, tensor.numpy_dtype)
        if reason:
            skipped.append({"name": tensor.name, "reason": reason})
        else:
            matrices[tensor.name] = StoredMatrix(
                str(file), tensor.name, kind, tensor.shape, tensor.numpy_name, offset=tensor.begin
            )
    return matrices, skipped


def _judge(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[str, str]:
    """Return the reason why a tensor is no matrix, or "" and the kind of matrix it is."""
    if dtype.hasobject:
        return "pickled Python objects are never opened", ""
    if dtype.kind in "iub":
        return f"dtype {dtype}: whole numbers are indices or codes, not weights", ""
    if not _checks.is_float(dtype):
        hint = "; numpy's formats lose bfloat16, use safetensors" if dtype.kind == "V" else ""
        return f"dtype {dtype} is not of real floating numbers{hint}", ""
    if 0 in shape:
        return "empty", ""
    if len(shape) < 2:
        return ("1 dimension: a vector" if shape else "0 dimensions: a number") + _NO_SPECTRUM, ""
    if len(shape) > 5:
        return f"{len(shape)} dimensions: neither a matrix nor a convolution kernel", ""
    return "", "matrix" if len(shape) == 2 else "conv"


_NO_SPECTRUM = " has no spectrum"


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)
