"""The weight matrices of a graph: which operator reads each, and what must not be done to it."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rmtspec.adapters.onnx._file import array_of, damage, itemsize_of, opened, subgraphs
from rmtspec.adapting import Kind, PathLike, Target, Why
from rmtspec.errors import FileError

#: Key in the metadata of a model under which the splits are listed.
RECORD = "rmtspec.splits"
_DTYPES = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_CODES = (
    TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4,
)  # fmt: skip
_CONVS = {3: Kind.CONV1D, 4: Kind.CONV2D, 5: Kind.CONV3D}
#: Gates of recurrent operators in the order of their rows.
_GATES = {"LSTM": "iofc", "GRU": "zrh", "RNN": "h"}


class Use(NamedTuple):
    """A node that reads a tensor, at which of its inputs, and the graph it is in."""

    graph: GraphProto
    node: NodeProto
    place: int
    top: bool


@dataclass(eq=False)
class Held:
    """A tensor that a graph holds, as an initialiser or a constant, and who reads it."""

    name: str
    tensor: TensorProto
    uses: list[Use] = field(default_factory=list)
    outside: str = ""  # who else gives or takes it


@dataclass(frozen=True, kw_only=True)
class GraphMatrix(Target):
    """One matrix of a model (rows are outputs), read when called.

    Attributes
    ----------
    source : Held
        The tensor it is in, and the nodes that read it.
    part : tuple
        Which part of the tensor it is.
    transposed : bool
        Whether that part is columns x rows.
    """

    source: Held = field(repr=False)
    part: tuple[int | slice, ...] = ()
    transposed: bool = False

    @property
    def use(self) -> Use:
        """The node that reads it."""
        return self.source.uses[0]

    def __call__(self) -> NDArray[Any]:
        """Return the array of shape (rows, columns)."""
        block = array_of(self.source.tensor)[self.part]
        matrix = block.reshape(block.shape[0], -1)
        return matrix.T if self.transposed else matrix

    def write(self, matrix: NDArray[Any]) -> None:
        """Overwrite the matrix in the graph."""
        tensor = self.source.tensor
        whole = np.array(array_of(tensor))
        block = whole[self.part]
        whole[self.part] = (matrix.T if self.transposed else matrix).reshape(block.shape)
        tensor.CopyFrom(numpy_helper.from_array(whole, tensor.name))


def weight_matrices(model: ModelProto | PathLike) -> Iterator[tuple[str, GraphMatrix]]:
    """Yield the name and the matrix of each weight of two or more dimensions.

    Parameters
    ----------
    model : onnx.ModelProto or path

    Notes
    -----
    ===================  ====================================================================
    operator             matrices
    ===================  ====================================================================
    Gemm, MatMul         outputs x inputs, on either side of a MatMul
    Conv                 out x (in * kernel), one per group
    ConvTranspose        in x (out * kernel)
    Gather               number x dimension, cut only on request
    LSTM, GRU, RNN       one per direction and gate, not split
    ===================  ====================================================================

    Weights in the branches of If and the bodies of loops are found as well. Those that another
    operator reads, or that are quantised, are listed with the reason why they are not read.

    Examples
    --------
    >>> import numpy as np
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> from rmtspec.adapters import onnx as ro
    >>> node = helper.make_node("MatMul", ["x", "W"], ["y"])
    >>> sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy"]
    >>> W = numpy_helper.from_array(np.zeros((20, 30), np.float32), "W")
    >>> model = helper.make_model(helper.make_graph([node], "net", sides[:1], sides[1:], [W]))
    >>> [(name, matrix.shape, matrix.kind) for name, matrix in ro.weight_matrices(model)]
    [('W', (30, 20), <Kind.LINEAR: 'linear'>)]
    """
    read = opened(model)
    splits = splits_of(read)
    factors = {name for entry in splits for name in (entry["inner"], entry["outer"])}
    names: dict[str, int] = {}
    for held in held_tensors(read):
        if len(held.tensor.dims) < 2 or held.name in factors:
            continue
        count = names[held.name] = names.get(held.name, 0) + 1
        name = held.name if count == 1 else f"{held.name}#{count}"
        yield from _matrices(name, held)
    for entry in splits:
        held, reason = Held(entry["name"], TensorProto()), "split already: merge the model first"
        yield entry["name"], GraphMatrix(
            layer=entry["name"], kind=entry["kind"], shape=tuple(entry["shape"]), itemsize=0,
            source=held, reason=reason,
        )  # fmt: skip


def splits_of(model: ModelProto) -> list[dict[str, Any]]:
    """Return what the model says of its splits; raise if it cannot be understood."""
    text = next((entry.value for entry in model.metadata_props if entry.key == RECORD), "[]")
    words = ("name", "kind", "inner", "outer", "between")
    try:
        found = json.loads(text)
        good = isinstance(found, list) and all(
            all(isinstance(entry[word], str) for word in words)
            and all(isinstance(side, int) for side in entry["shape"])
            for entry in found
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        good = False
    if not good:
        raise FileError(f"The model's {RECORD!r} is damaged. Remove it from its metadata.")
    return list(found)


def held_tensors(model: ModelProto) -> list[Held]:
    """Return all initialisers and constants with their readers, in the order of the graph."""
    found: list[Held] = []
    constant_inputs = model.ir_version < 4  # where every initialiser had to be an input too

    def walk(graph: GraphProto, scope: dict[str, Held], *, top: bool) -> None:
        scope = dict(scope)

        def hold(name: str, tensor: TensorProto) -> None:
            scope[name] = Held(name, tensor)
            found.append(scope[name])

        for tensor in graph.initializer:
            hold(tensor.name, tensor)
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name in scope and node.op_type != "Identity":
                    scope[name].uses.append(Use(graph, node, index, top))
            for attribute in node.attribute:
                for inner in subgraphs(attribute):
                    walk(inner, scope, top=False)
                if node.op_type == "Constant" and attribute.name == "value" and node.output:
                    hold(node.output[0], attribute.t)
            named = node.op_type == "Identity" and node.output and node.input
            if named and node.input[0] in scope:
                scope[node.output[0]] = scope[node.input[0]]
        for value in graph.output:
            if value.name in scope:
                scope[value.name].outside = "an output of its graph as well"
        for value in graph.input:
            if value.name in scope and not constant_inputs:
                scope[value.name].outside = "an input of the graph, which may replace it"

    walk(model.graph, {}, top=True)
    return found


def _matrices(name: str, held: Held) -> Iterator[tuple[str, GraphMatrix]]:
    """Yield the matrices of one tensor of two or more dimensions."""
    tensor, dims = held.tensor, tuple(held.tensor.dims)
    nodes = tuple(dict.fromkeys(_shown(use.node) for use in held.uses))
    base = GraphMatrix(
        layer=name, kind=Kind.PARAMETER, shape=dims, itemsize=itemsize_of(tensor), source=held,
        aliases=tuple(use.node.name for use in held.uses if use.node.name), reason=_unread(held),
    )  # fmt: skip
    if base.reason:
        yield name, base
        return
    if held.outside or len(held.uses) > 1:
        base = replace(base, fixed=held.outside or Why.TIED.words(names=", ".join(nodes)))
    _, node, index, _ = held.uses[0]
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    sides = dims[0], math.prod(dims[1:])
    if node.op_type in ("Gemm", "MatMul") and index < 2 and len(dims) == 2:
        turned = index == 1 and not values.get("transB", 0)
        left = ""
        if node.op_type == "Gemm" and (index == 0 or values.get("transA", 0)):
            left = "a Gemm with the weight on its left, or a transposed input"
            turned = (index == 0 and bool(values.get("transA", 0))) or turned
        yield name, replace(
            base, kind=Kind.LINEAR, transposed=turned, unsplittable=left,
            shape=sides[::-1] if turned else sides,
        )  # fmt: skip
    elif node.op_type == "Conv" and index == 1 and len(dims) in _CONVS:
        groups = int(values.get("group", 1))
        each = dims[0] // max(1, groups)
        if groups < 1 or each == 0 or (groups > 1 and each == 1):
            yield name, replace(base, kind=_CONVS[len(dims)], reason=Why.DEPTHWISE.words())
            return
        for group in range(groups):
            yield name if groups == 1 else f"{name}[{group}]", replace(
                base, kind=_CONVS[len(dims)], shape=(each, sides[1]),
                part=(slice(group * each, (group + 1) * each),),
            )  # fmt: skip
    elif node.op_type == "ConvTranspose" and index == 1:
        words = Why.TRANSPOSED_CONV.words()
        yield name, replace(base, kind=Kind.TRANSPOSED_CONV, shape=sides, unsplittable=words)
    elif node.op_type == "Gather" and index == 0 and len(dims) == 2 and not values.get("axis", 0):
        words = Why.NOT_NAMED.words(what="an embedding", options="`include` or `ranks`")
        yield name, replace(base, kind=Kind.EMBEDDING, shape=sides, on_request=words)
    elif node.op_type in _GATES and index in (1, 2) and len(dims) == 3:
        yield from _gates(name, replace(base, kind=Kind.RECURRENT), node.op_type)
    else:
        words = f"read by {nodes[0]}: no layer known here"
        plain = len(dims) == 2 and min(dims) > 1
        yield name, replace(base, **{"fixed" if plain else "reason": words})  # type: ignore[arg-type]


def _gates(name: str, base: GraphMatrix, operator: str) -> Iterator[tuple[str, GraphMatrix]]:
    directions, rows, columns = base.source.tensor.dims
    each = rows // len(_GATES[operator])
    base = replace(base, unsplittable=Why.READ_BY_LAYER.words(type=operator))
    for direction in range(directions):
        for number, gate in enumerate(_GATES[operator]):
            shown = gate if directions == 1 else f"{direction}, {gate}"
            part = (direction, slice(number * each, (number + 1) * each))
            yield f"{name}[{shown}]", replace(base, shape=(each, columns), part=part)


def _unread(held: Held) -> str:
    """Return why a tensor cannot be read as a weight, or ""."""
    tensor = held.tensor
    known = tensor.data_type in TensorProto.DataType.values()
    type_name = TensorProto.DataType.Name(tensor.data_type).lower() if known else "unknown"
    if not held.uses:
        return "no layer reads it"
    for use in held.uses:
        operator = use.node.op_type
        if use.node.domain not in ("", "ai.onnx"):
            return f"read by {_shown(use.node)}, a custom operator"
        if operator.endswith(("QuantizeLinear", "DequantizeLinear", "Integer")) or (
            operator.startswith("QLinear")
        ):
            return Why.QUANTISED.words(what=f"{type_name} read by {operator}")
    if tensor.data_type in _CODES:
        return Why.QUANTISED.words(what=f"{type_name}: codes, not weights")
    if tensor.data_type not in _DTYPES:
        why = Why.WHOLE_NUMBERS if "int" in type_name else Why.UNREADABLE
        return why.words(dtype=type_name)
    if not math.prod(tensor.dims):
        return Why.EMPTY.words()
    wrong = damage(tensor)
    if any(not use.node.output or len(use.node.input) < 2 for use in held.uses):
        wrong = "the node that reads it lacks an input or an output"
    return Why.DAMAGED.words(error=wrong) if wrong else ""


def _shown(node: NodeProto) -> str:
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"{operator} {node.name!r}" if node.name else operator
