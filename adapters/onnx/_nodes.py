"""The two nodes of a split in a graph, and the one node that they make when merged."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from rmtspec.adapters.onnx._file import array_of, embed, graphs_of, opened
from rmtspec.adapters.onnx._weights import RECORD, GraphMatrix, splits_of
from rmtspec.adapting import PathLike, SplitFactors, in_dtype
from rmtspec.errors import FileError, InvalidValueError

Array = NDArray[Any]


def split_node(
    matrix: GraphMatrix, factors: Sequence[SplitFactors], fresh: Callable[[str], str]
) -> dict[str, Any]:
    """Put two nodes in the place of the one that reads a matrix; return the entry of the record.

    There is one pair of factors for each group of a convolution. `fresh` makes a name unique.
    """
    graph, node, index, _ = matrix.use
    name, tensor = matrix.layer, matrix.source.tensor
    inner_name, outer_name = fresh(f"{name}.inner"), fresh(f"{name}.outer")
    between = fresh(f"{node.output[0]}.inner")
    inner, outer = _arrays(matrix, factors)
    first, second = NodeProto(), NodeProto()
    first.CopyFrom(node)
    second.CopyFrom(node)
    first.input[index] = inner_name
    if node.op_type == "Gather":  # the table comes first
        first.input[index] = outer_name
        second = helper.make_node("MatMul", [between, inner_name], node.output)
    elif node.op_type == "Conv":
        del first.input[2:]
        groups = len(factors)
        ones = [1] * (len(tensor.dims) - 2)
        second = helper.make_node(
            "Conv", [between, outer_name, *node.input[2:]], node.output, group=groups,
            kernel_shape=ones,
        )  # fmt: skip
    elif node.op_type == "Gemm":
        first = helper.make_node("MatMul", [node.input[0], inner_name], [between])
    if node.op_type in ("Gemm", "MatMul"):
        second.input[index], second.input[1 - index] = outer_name, between
    first.output[0] = between
    if node.name:
        first.name, second.name = fresh(f"{node.name}/inner"), fresh(f"{node.name}/outer")
    _replace(graph, [node], [first, second])
    graph.initializer.append(numpy_helper.from_array(inner, inner_name))
    graph.initializer.append(numpy_helper.from_array(outer, outer_name))
    return {
        "name": matrix.source.name, "kind": str(matrix.kind), "rank": factors[0].inner.shape[0],
        "shape": [len(factors) * matrix.shape[0], matrix.shape[1]], "between": between,
        "inner": inner_name, "outer": outer_name, "node": node.name,
    }  # fmt: skip


def _arrays(matrix: GraphMatrix, factors: Sequence[SplitFactors]) -> tuple[Array, Array]:
    """Return both factors as the nodes read them."""
    _, node, index, _ = matrix.use
    inner = np.concatenate([f.inner for f in factors])
    outer = np.concatenate([f.outer for f in factors])
    if node.op_type == "Conv":
        dims = tuple(matrix.source.tensor.dims)
        ones = (1,) * (len(dims) - 2)
        return inner.reshape(len(inner), *dims[1:]), outer.reshape(*outer.shape, *ones)
    if node.op_type == "Gemm":
        inner, outer = inner.T, outer if _turned(node) else outer.T
    elif node.op_type == "MatMul" and index == 1:
        inner, outer = inner.T, outer.T
    return np.ascontiguousarray(inner), np.ascontiguousarray(outer)


def merge(model: ModelProto | PathLike) -> ModelProto:
    """Return the model with the two nodes of each split multiplied back into one.

    Parameters
    ----------
    model : onnx.ModelProto or path
        What `prune` returned, or its file.

    Raises
    ------
    FileError
        What the model says of its splits does not fit its nodes.
    InvalidValueError
        The dtype of the model has no room for a product.
    """
    merged = ModelProto()
    merged.CopyFrom(opened(model))
    for entry in splits_of(merged):
        _merge_one(merged, entry)
    kept = [prop for prop in merged.metadata_props if prop.key != RECORD]
    del merged.metadata_props[:]
    merged.metadata_props.extend(kept)
    embed(merged)
    return merged


def _merge_one(model: ModelProto, entry: dict[str, Any]) -> None:
    for graph in graphs_of(model.graph):
        tensors = {t.name: t for t in graph.initializer}
        pair = [n for n in graph.node if entry["between"] in (*n.output, *n.input)]
        if len(pair) == 2 and entry["inner"] in tensors and entry["outer"] in tensors:
            break
    else:
        raise FileError(f"The two nodes of {entry['name']!r} are no longer in the model.")
    first, second = pair
    inner, outer = (array_of(tensors[entry[side]]) for side in ("inner", "outer"))
    dense = NodeProto()
    dense.CopyFrom(second if first.op_type == "MatMul" else first)
    try:
        if first.op_type == "Conv":
            groups = next((a.i for a in second.attribute if a.name == "group"), 1)
            pairs = zip(np.split(outer, groups), np.split(inner, groups), strict=True)
            blocks = [_product(a.reshape(len(a), -1), b.reshape(len(b), -1)) for a, b in pairs]
            product = np.concatenate(blocks).reshape(len(outer), *inner.shape[1:])
            dense.input.extend(second.input[2:])
            place = 1
        elif first.op_type == "Gather":
            product, place = _product(outer, inner), 0
        elif second.input[0] == entry["outer"]:
            product, place = _product(outer, inner), 0
            dense.input[1] = first.input[1]
        else:
            product, place = _product(inner, outer.T if _turned(second) else outer), 1
            product = np.ascontiguousarray(product.T) if _turned(second) else product
            dense.input[0] = first.input[0]
        dense.input[place] = entry["name"]
    except InvalidValueError as error:
        raise InvalidValueError(f"{entry['name']!r} cannot be merged: {error}.") from None
    except (ValueError, IndexError) as error:
        raise FileError(f"The two nodes of {entry['name']!r} do not fit: {error}.") from None
    dense.output[0] = second.output[0]
    dense.ClearField("name")
    if entry.get("node"):
        dense.name = str(entry["node"])
    _replace(graph, [first, second], [dense])
    for side in ("inner", "outer"):
        graph.initializer.remove(tensors[entry[side]])
    graph.initializer.append(numpy_helper.from_array(product, entry["name"]))


def _turned(node: NodeProto) -> bool:
    return any(a.name == "transB" and a.i for a in node.attribute)


def _product(left: Array, right: Array) -> Array:
    """Return a product in the dtype of its factors, summed in float64."""
    product: Array = np.matmul(left.astype(np.float64), right.astype(np.float64))
    return in_dtype(product, left.dtype)


def _replace(graph: GraphProto, old: Sequence[NodeProto], new: Sequence[NodeProto]) -> None:
    """Put nodes in the place of others, which lie in the graph's own list."""
    outputs = {node.output[0] for node in old}
    places = [i for i, node in enumerate(graph.node) if node.output and node.output[0] in outputs]
    for place in reversed(places):
        del graph.node[place]
    start = places[-1] - len(places) + 1
    for offset, node in enumerate(new):
        graph.node.insert(start + offset, node)


def record(model: ModelProto, entries: Sequence[dict[str, Any]]) -> None:
    """Add splits to those that the model lists."""
    every = [*splits_of(model), *entries]
    kept = [prop for prop in model.metadata_props if prop.key != RECORD]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    if every:
        model.metadata_props.add(key=RECORD, value=json.dumps(every))


def drop_unread(model: ModelProto, names: set[str]) -> None:
    """Remove the tensors of these names that nothing reads any more, and what passed them on."""
    for graph in graphs_of(model.graph):
        gone = [t for t in graph.initializer if t.name in names]
        for tensor in gone:
            graph.initializer.remove(tensor)
        inputs = [v for v in graph.input if v.name in names]
        for value in inputs:
            graph.input.remove(value)
    _drop_nodes(model, names)


def _drop_nodes(model: ModelProto, names: set[str]) -> None:
    for graph in graphs_of(model.graph):
        place = 0
        while place < len(graph.node):
            node = graph.node[place]
            constant = node.op_type == "Constant" and names.intersection(node.output)
            passed = node.op_type == "Identity" and names.intersection(node.input)
            if (constant or passed) and node.output:
                names.add(node.output[0])
                del graph.node[place]
            else:
                place += 1
