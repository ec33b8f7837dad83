"""Calibration: the graph is run under onnxruntime, with the inputs of its layers put out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from rmtspec.adapters.onnx._file import external_base, forget_base, opened, tensors_of
from rmtspec.adapters.onnx._weights import GraphMatrix, weight_matrices
from rmtspec.adapting import (
    Calibration,
    Float64Array,
    Kind,
    PathLike,
    Pattern,
    Progress,
    Selection,
    Subject,
    Weights,
    checks,
    listed,
)
from rmtspec.errors import InvalidTypeError, InvalidValueError, MissingDependencyError

#: Each batch gives the inputs of the graph by name; an array alone serves a graph with one.
Batches = Iterable[Mapping[str, NDArray[Any]] | NDArray[Any]]
_KINDS = (Kind.LINEAR, Kind.CONV1D, Kind.CONV2D, Kind.CONV3D)


def calibrate(
    model: ModelProto | PathLike,
    batches: Batches,
    *,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    holdout: float = 0.1,
    progress: Progress | None = None,
) -> Calibration:
    """Run a model under onnxruntime, batch by batch, and keep the second moments of the inputs.

    Parameters
    ----------
    model : onnx.ModelProto or path
    batches : iterable
        Each is a mapping of the graph's input names to arrays, or the array of the only input.
    include, exclude : str, pattern, predicate on (name, matrix), or several
        Which matrices; by default all linear layers and convolutions that can be split, outside
        branches and loops.
    holdout : float
        Share of the batches, at least one where there are two, on which errors are measured.
    progress : callable, optional
        Called with the number of batches done, None, and a name.

    Returns
    -------
    Calibration
        For the objective "outputs": an ONNX graph has no gradients.

    Raises
    ------
    MissingDependencyError
        onnxruntime is not installed.
    InvalidTypeError, InvalidValueError
        A batch does not fit the graph, or onnxruntime cannot run it.
    """
    checks.inside(holdout, "holdout", 0.0, 1.0, closed=True, hint="It is a share of the batches.")
    read = opened(model)
    subject = Subject(dict(weight_matrices(read)), Selection(include, exclude), "this model")
    layers = {m.layer: m for m in subject.matrices.values() if can_be_calibrated(m)}
    if not layers:
        raise InvalidValueError(
            "No layer of this model can be calibrated; expected linear layers or convolutions that "
            "can be split, outside branches and loops."
        )
    sources = {name: _source(matrix) for name, matrix in layers.items()}
    # Two convolutions may read one tensor as different patches.
    keys = {name: _key(layers[name]) for name in layers}
    readers = {keys[name]: layers[name] for name in reversed(list(layers))}
    run = _runner(read, sorted(set(sources.values())))
    sums: dict[bool, dict[str, list[Float64Array]]] = {True: {}, False: {}}
    counts: dict[bool, dict[str, int]] = {True: {}, False: {}}
    every = max(2, round(1.0 / holdout)) if holdout else 0
    number = 0
    for number, batch in enumerate(batches, 1):
        held = bool(every) and (number - 2) % every == 0
        values = run(batch)
        for key, matrix in readers.items():
            for rows in _rows(matrix, values[_source(matrix)]):
                _add(sums[held], counts[held], key, rows)
        if progress is not None:
            progress(number, None, "calibrating")
    if not number:
        raise InvalidValueError("`batches` is empty; expected at least one batch.")
    moments = {
        held: {
            key: [total / max(1, counts[held][key]) for total in totals]
            for key, totals in sums[held].items()
        }
        for held in sums
    }
    bad = [
        name for name in layers if not all(np.isfinite(m).all() for m in moments[False][keys[name]])
    ]
    if bad:
        raise InvalidValueError(f"The inputs of {listed(bad, most=5)} are not finite numbers.")
    return Calibration(
        objective="outputs", gradient="", inputs=keys, input_moments=moments[False],
        input_rows=counts[False], held_out_rows=counts[True],
        held_out={k: [m.astype(np.float32) for m in of] for k, of in moments[True].items()},
        settings={"holdout": holdout, "batches": number},
    )  # fmt: skip


def can_be_calibrated(matrix: GraphMatrix) -> bool:
    """Tell whether the inputs of a matrix can be seen, and it can be split by them."""
    hindered = matrix.reason or matrix.fixed or matrix.unsplittable
    return matrix.kind in _KINDS and not hindered and matrix.use.top


def known_weights(
    model: ModelProto, matrices: Mapping[str, GraphMatrix], given: Calibration | Batches
) -> dict[str, Weights]:
    """Return what calibration says about matrices, by name."""
    if not isinstance(given, Calibration):
        given = calibrate(model, given)
    wanted = {name: m for name, m in matrices.items() if can_be_calibrated(m)}
    if missing := sorted({m.layer for m in wanted.values() if m.layer not in given}):
        raise InvalidValueError(
            f"`calibration` says nothing about {listed(map(repr, missing), most=5)}. Calibrate "
            "this model, or leave them out with `exclude`."
        )
    return {
        name: given.weights(matrix.layer, matrix.shape, _group(matrix), "outputs")
        for name, matrix in wanted.items()
    }


def _group(matrix: GraphMatrix) -> int:
    first = matrix.part[0] if matrix.part else 0
    return first.start // matrix.shape[0] if isinstance(first, slice) else 0


def _source(matrix: GraphMatrix) -> str:
    """Return the name of the tensor that a layer multiplies."""
    _, node, index, _ = matrix.use
    return str(node.input[1 - index])


def _key(matrix: GraphMatrix) -> str:
    if matrix.kind == Kind.LINEAR:
        return f"{_source(matrix)} ({'columns' if matrix.use.place == 0 else 'rows'})"
    return f"{_source(matrix)} (patches of {matrix.layer})"


def _runner(model: ModelProto, names: list[str]) -> Callable[[Any], dict[str, NDArray[Any]]]:
    """Return a function that runs the graph on a batch and returns these of its tensors."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "Calibration needs onnxruntime, which is not installed. Install it with: "
            'pip install "rmtspec[onnx]"'
        ) from error
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in held]
    outputs = [name for name in names if name not in inputs]
    watched = ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(ValueInfoProto(name=name) for name in outputs)
    forget_base(watched)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    outside = [t for t in tensors_of(model.graph) if t.data_location == TensorProto.EXTERNAL]
    for folder in {str(external_base(tensor)) for tensor in outside}:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, folder)
    try:
        session = onnxruntime.InferenceSession(
            watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise InvalidValueError(f"onnxruntime cannot run this model: {error}") from error

    def run(batch: Any) -> dict[str, NDArray[Any]]:
        if isinstance(batch, np.ndarray) and len(inputs) == 1:
            batch = {inputs[0]: batch}
        if not isinstance(batch, Mapping):
            raise InvalidTypeError(
                f"A batch is a {type(batch).__name__}; expected a mapping of arrays, by the names "
                f"of the inputs: {listed(inputs, most=8)}."
            )
        try:
            values = session.run(outputs, dict(batch)) if outputs else []
        except Exception as error:
            raise InvalidValueError(f"onnxruntime cannot run a batch: {error}") from error
        return dict(batch) | dict(zip(outputs, values, strict=True))

    return run


def _rows(matrix: GraphMatrix, values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the inputs of a layer in pieces of shape (groups, count, columns)."""
    if matrix.kind != Kind.LINEAR:
        for sample in values:
            yield _patches(matrix.use.node, sample, tuple(matrix.source.tensor.dims))
        return
    if matrix.use.place == 0:  # the weight is on the left: each column is an input
        values = np.moveaxis(values, -2, -1) if values.ndim > 1 else values
    yield values.reshape(1, -1, values.shape[-1])


def _patches(node: NodeProto, sample: NDArray[Any], dims: tuple[int, ...]) -> NDArray[Any]:
    """Return what a convolution multiplies: (groups, positions, channels/groups * kernel)."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    count = len(dims) - 2
    strides, dilations = (list(values.get(n, [1] * count)) for n in ("strides", "dilations"))
    groups, auto = int(values.get("group", 1)), values.get("auto_pad", b"NOTSET")
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, dims[2:], strict=True)]
    pads = list(values.get("pads", [0] * (2 * count)))
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        sizes = zip(sample.shape[1:], spans, strides, strict=True)
        lost = [max(0, (-(-n // s) - 1) * s + span - n) for n, span, s in sizes]
        small, large = [x // 2 for x in lost], [x - x // 2 for x in lost]
        pads = small + large if auto == b"SAME_UPPER" else large + small
    around = [(0, 0), *zip(pads[:count], pads[count:], strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(sample, around), spans, axis=tuple(range(1, count + 1))
    )
    steps = (slice(None), *(slice(None, None, s) for s in strides))
    windows = windows[(*steps, *(slice(None, None, d) for d in dilations))]
    windows = np.moveaxis(windows, 0, count)  # positions, channels, kernel
    positions = int(np.prod(windows.shape[:count]))
    return np.moveaxis(windows.reshape(positions, groups, -1), 0, 1)


def _add(
    sums: dict[str, list[Float64Array]], counts: dict[str, int], key: str, rows: NDArray[Any]
) -> None:
    """Add the sums of x x^T of some rows, a group at a time."""
    blocks = [block.astype(np.float64) for block in rows]
    squares = [block.T @ block for block in blocks]
    sums[key] = [a + b for a, b in zip(sums[key], squares, strict=True)] if key in sums else squares
    counts[key] = counts.get(key, 0) + rows.shape[1]
