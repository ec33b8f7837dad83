"""Tensors of a TorchScript archive, from its own layout; its code is neither compiled nor run.

``torch.jit.save`` writes a zip archive: ``data.pkl`` is the tree of modules and their attributes,
``data/N`` are the storages, and ``code/`` holds source that only ``torch.jit.load`` would compile
[1]_. ``constants.pkl`` and ``constants/N`` hold what freezing a model made constant.

.. [1] PyTorch, torch/csrc/jit/docs/serialization.md.
"""

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
#: Bytes of a zip archive's header before a member, without its name and extra field.
_LOCAL_HEADER = 30


class Inert:
    """Stands for an object of any class in a pickle: it keeps its state, and does nothing."""

    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take and ignore what the class that it stands for takes."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def is_torchscript(file: Path) -> bool:
    """Tell whether a file is an archive of torch.jit.save; False if it is no archive at all."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, RuntimeError):
        return False


def torchscript_tensors(file: Path) -> dict[str, Any]:
    """Return the tensors of all modules by name, as `state_dict` would; mapped into memory.

    Of objects that are not tensors those are listed, too, whose place is that of a tensor
    (quantised ones). Raises what a damaged archive makes zipfile, pickle and torch raise.
    """
    whole: Any = torch.UntypedStorage.from_file(str(file), False, file.stat().st_size)
    with file.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        member = next(n for n in archive.namelist() if n.endswith("/constants.pkl"))
        root = member.removesuffix("constants.pkl")
        if f"{root}byteorder" in archive.namelist():
            order = archive.read(f"{root}byteorder")
            if order != b"little":
                raise ValueError(f"its byte order is {order!r}")
        tensors: dict[str, Any] = {}
        for part, prefix in (("data", ""), ("constants", "constants.")):
            with archive.open(f"{root}{part}.pkl") as pickled:
                tree = _Reader(
                    pickled, archive, stream=stream, whole=whole, folder=f"{root}{part}/"
                ).load()
            tensors |= {prefix + name: tensor for name, tensor in _named(tree, set())}
    return tensors


class _Reader(pickle.Unpickler):
    """Reads tensors; every other class and function that the pickle asks for is `Inert`."""

    def __init__(
        self, pickled: Any, archive: zipfile.ZipFile, *, stream: BinaryIO,
        whole: torch.UntypedStorage, folder: str,
    ) -> None:  # fmt: skip
        super().__init__(pickled)
        self._archive, self._stream = archive, stream
        self._whole, self._folder = whole, folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch.jit._pickle":
            return _first
        return dict if (module, name) == ("collections", "OrderedDict") else Inert

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, torch.UntypedStorage]:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a storage of an unknown type")
        info = self._archive.getinfo(f"{self._folder}{key}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its tensors are compressed")
        self._stream.seek(info.header_offset)
        header = self._stream.read(_LOCAL_HEADER)
        if not header.startswith(b"PK\x03\x04"):
            raise ValueError("a tensor is not where its directory says")
        lengths = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        begin = info.header_offset + _LOCAL_HEADER + sum(lengths)
        if begin + info.file_size > self._whole.nbytes():
            raise EOFError("it ends too early")
        storage: torch.UntypedStorage = self._whole[begin : begin + info.file_size]
        return dtype, storage


def _tensor(
    stored: tuple[torch.dtype, torch.UntypedStorage], offset: int, shape: Any, stride: Any, *_: Any
) -> torch.Tensor:
    dtype, storage = stored
    return torch.empty(0, dtype=dtype).set_(storage, offset, tuple(shape), tuple(stride))


def _first(value: Any, *_: Any) -> Any:
    """Return a list that torch.jit marks with the type of its items."""
    return value


def _named(node: Any, seen: set[int], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the tensors below a module, a list or a mapping, with their dotted names."""
    if isinstance(node, torch.Tensor):
        yield prefix, node
        return
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, Inert):
        if node.state is None and prefix:
            yield prefix, node
        node = node.state
    items: Any = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list | tuple):
        items = enumerate(node)
    for key, value in items:
        if isinstance(value, torch.Tensor | Inert | dict | list | tuple):
            yield from _named(value, seen, f"{prefix}.{key}" if prefix else str(key))
