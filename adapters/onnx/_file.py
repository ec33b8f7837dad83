"""Models in files: read without their external data, each of which is read in its turn."""

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

from rmtspec.adapting import MappedTensor, PathLike, Stamp, cause, finished_file, open_regular
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError

#: What ONNX, as a protobuf message, can hold in one file; some room is left for the graph.
_MOST = 2**31 - 2**24
#: Tensors below this many bytes stay in the graph when the others move to a data file.
_SMALL = 1024
#: Models of up to this many bytes are returned whole, with the data that were in other files.
EMBEDDED = 2**30
#: Key of the folder in the external data of a tensor, while it is in memory.
_BASE = "basepath"
#: Key of the stamp that the file with the data had when the model was read.
_STAMP = "rmtspec.stamp"
_BLOCK = 2**24
#: Folders of models that were read here. Data of tensors are read from no other folder, whatever a
#: model says about itself.
_FOLDERS: set[str] = set()


def opened(model: ModelProto | PathLike) -> ModelProto:
    """Return a model, read from its file if a path is given.

    Raises
    ------
    InvalidTypeError
        It is neither.
    FileError
        The file, or one with its external data, is missing, truncated, or not in this format.
    """
    if isinstance(model, ModelProto):
        return model
    if not isinstance(model, str | Path):
        raise InvalidTypeError(
            f"`model` is a {type(model).__name__}; expected an onnx.ModelProto or the path of an "
            ".onnx file. For a torch model use rmtspec.adapters.torch."
        )
    file = Path(model)
    try:
        if file.is_file() and file.stat().st_size >= 2**31:
            raise FileError(
                f"{file} has over 2 GB, more than ONNX can hold in one file. Save it with "
                "external data: onnx.save(..., save_as_external_data=True)."
            )
        read = ModelProto()
        with open_regular(file) as stream:
            read.ParseFromString(stream.read())
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{file} cannot be read: {cause(error)}. Check the path.") from error
    except DecodeError:
        raise FileError(f"{file} is not an ONNX model, or is truncated. Get it again.") from None
    if not (read.ir_version and read.opset_import and read.graph.node):
        raise FileError(f"{file} is not an ONNX model: it has no graph of operators.")
    if not _is_text(read):
        raise FileError(f"{file} is damaged: it has names that are not UTF-8. Get it again.")
    folder = file.resolve().parent
    for tensor in tensors_of(read.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {e.key: e.value for e in tensor.external_data}
            _FOLDERS.add(str(folder))
            _set_external(tensor, entries | {_BASE: str(folder), _STAMP: ""})
            stamp = Stamp.of(external_place(tensor)[0])
            _set_external(tensor, entries | {_BASE: str(folder), _STAMP: stamp.text()})
    return read


def _is_text(message: Message) -> bool:
    """Tell whether all that should be text in a message is; protobuf gives other bytes as such."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            texts = [value] if isinstance(value, str | bytes) else value
            if not all(isinstance(text, str) for text in texts):
                return False
        elif field.type == field.TYPE_MESSAGE:
            inner = [value] if isinstance(value, Message) else value
            if not all(map(_is_text, inner)):
                return False
    return True


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and those in the attributes of its nodes: branches and bodies of loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in subgraphs(attribute):
                yield from graphs_of(inner)


def subgraphs(attribute: AttributeProto) -> list[GraphProto]:
    """Return the graphs that an attribute holds."""
    own = [attribute.g] if attribute.type == AttributeProto.GRAPH else []
    return [*own, *attribute.graphs]


def tensors_of(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield all initialisers and constants in a graph, and in those inside it."""
    for each in graphs_of(graph):
        yield from each.initializer
        for node in each.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors


def itemsize_of(tensor: TensorProto) -> int:
    """Return the bytes of an entry; 0 where the type is not known."""
    try:
        return int(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)
    except (KeyError, TypeError):
        return 0


def external_base(tensor: TensorProto) -> Path:
    """Return the folder of the model that a tensor with external data belongs to."""
    base = next((e.value for e in tensor.external_data if e.key == _BASE), "")
    if base not in _FOLDERS:
        raise InvalidValueError(
            f"The data of {tensor.name!r} are in another file, whose folder is not known. Pass the "
            "path of the .onnx file instead of the loaded model."
        )
    return Path(base)


def forget_base(model: ModelProto) -> None:
    """Remove what `opened` noted in the tensors with external data, which others do not read."""
    for tensor in tensors_of(model.graph):
        kept = [entry for entry in tensor.external_data if entry.key not in (_BASE, _STAMP)]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)


def embed(model: ModelProto) -> None:
    """Take external data into the model, unless there are too many of them."""
    outside = [t for t in tensors_of(model.graph) if t.data_location == TensorProto.EXTERNAL]
    if sum(external_place(tensor)[2] for tensor in outside) > EMBEDDED:
        return
    for tensor in outside:
        content = b"".join(_blocks(tensor))
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
        tensor.raw_data = content


def external_place(tensor: TensorProto) -> tuple[Path, int, int]:
    """Return the file with the data of a tensor, and their offset and length in it.

    Raises
    ------
    InvalidValueError
        The model did not come from a file that was read here.
    FileError
        The file is missing, too short, not in the folder of the model, or was rewritten since the
        model was read.
    """
    base, entries = external_base(tensor), {e.key: e.value for e in tensor.external_data}
    given = entries.get("location", "")
    parts = (*PurePosixPath(given).parts, *PureWindowsPath(given).parts)
    if not given or ".." in parts or PurePosixPath(given).root or PureWindowsPath(given).anchor:
        raise FileError(
            f"The data of {tensor.name!r} are said to be in {given!r}; expected a file in the "
            "folder of the model. Nothing was read from there."
        )
    file = base / given
    try:
        size = file.stat().st_size
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or size - offset)
    except OSError as error:
        raise FileError(
            f"{file}, with the data of {tensor.name!r}, cannot be read: {cause(error)}. Put it "
            "beside the .onnx file."
        ) from error
    except ValueError:
        raise FileError(f"{tensor.name!r} has no whole number as offset or length.") from None
    if entries.get(_STAMP):
        Stamp.of_text(entries[_STAMP]).check(file)
    expected = math.prod(tensor.dims) * itemsize_of(tensor)
    if offset < 0 or min(tensor.dims, default=1) < 0 or offset + length > size:
        raise FileError(
            f"{file} is truncated: {tensor.name!r} ends at byte {offset + length:,} of {size:,}."
        )
    if itemsize_of(tensor) and length < expected:
        raise FileError(
            f"{tensor.name!r} has {length:,} bytes in {file}; its shape needs {expected:,}."
        )
    return file, offset, length


def array_of(tensor: TensorProto) -> NDArray[Any]:
    """Return the array of a tensor; external data are read when this is called."""
    if tensor.data_location == TensorProto.EXTERNAL:
        file, offset, _ = external_place(tensor)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        known = dtype.str if dtype.isbuiltin == 1 else dtype.name
        return MappedTensor(
            str(file), tensor.name, known, numpy_name=known, shape=tuple(tensor.dims),
            nbytes=math.prod(tensor.dims) * dtype.itemsize, begin=offset,
        )()  # fmt: skip
    return np.asarray(numpy_helper.to_array(tensor))


def damage(tensor: TensorProto) -> str:
    """Return what is wrong with a tensor whose shape is not that of its data; "" if nothing."""
    count, held = math.prod(tensor.dims), len(tensor.raw_data)
    if tensor.data_location == TensorProto.EXTERNAL:
        return ""
    if tensor.HasField("raw_data"):
        expected, what = count * itemsize_of(tensor), "bytes"
    else:
        fields = (tensor.float_data, tensor.int32_data, tensor.double_data)
        held, expected, what = max(map(len, fields)), count, "numbers"
    wrong = min(tensor.dims, default=1) < 0 or held != expected
    return f"{held:,} {what} for the shape {tuple(tensor.dims)}" if wrong else ""


def save(model: ModelProto, path: PathLike) -> None:
    """Write a model to an .onnx file, and data of over 2 GB, or outside it before, beside that.

    Raises
    ------
    FileError
        A file cannot be written, or one of the name "<path>.data" is there already.

    Examples
    --------
    >>> from rmtspec.adapters import onnx as ro
    >>> smaller, report = ro.prune("model.onnx")  # doctest: +SKIP
    >>> ro.save(smaller, "smaller.onnx")  # doctest: +SKIP
    """
    if not isinstance(model, ModelProto):
        raise InvalidTypeError(f"`model` is a {type(model).__name__}; expected what prune returns.")
    tensors = list(tensors_of(model.graph))
    large = sum(len(t.raw_data) for t in tensors) > _MOST
    moved = [
        tensor.data_location == TensorProto.EXTERNAL or (large and len(tensor.raw_data) > _SMALL)
        for tensor in tensors
    ]
    file = Path(path)
    if not any(moved):
        with finished_file(file) as unfinished:
            unfinished.write_bytes(model.SerializeToString())
        return
    beside = file.with_name(f"{file.name}.data")
    if beside.exists():
        raise FileError(f"{beside} exists; the data of the model would be written there.")
    written = ModelProto()
    written.CopyFrom(model)
    with finished_file(beside) as data, data.open("wb") as stream:
        for tensor, outside in zip(tensors_of(written.graph), moved, strict=True):
            if outside:
                start = stream.tell()
                for block in _blocks(tensor):
                    stream.write(block)
                length = stream.tell() - start
                place = {"location": beside.name, "offset": start, "length": length}
                _set_external(tensor, place)
    with finished_file(file) as unfinished:
        unfinished.write_bytes(written.SerializeToString())


def _blocks(tensor: TensorProto) -> Iterator[bytes]:
    if tensor.data_location != TensorProto.EXTERNAL:
        yield tensor.raw_data
        return
    file, offset, length = external_place(tensor)
    with file.open("rb") as stream:
        stream.seek(offset)
        for start in range(0, length, _BLOCK):
            yield stream.read(min(_BLOCK, length - start))


def _set_external(tensor: TensorProto, entries: dict[str, Any]) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
