"""Small graphs, and a way to run them."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import rmtspec

#: Rounding in float32 of sums of at most 400 terms of order 1.
CLOSE = 1e-5


def spiked(rows, columns, seed=0, dtype=np.float32):
    made = rmtspec.ensembles.spiked(rows, columns, strengths=[4, 9, 20], rng=seed)
    return (made / np.sqrt(columns)).astype(dtype)


def graph_of(
    nodes, tensors, *, inputs=("x",), outputs=("y",), dtype=np.float32, ir=10, sides=None, **types
):
    """Return a model of nodes and arrays by name; `sides` are dimensions of inputs and outputs."""
    sides = {"x": 2, "y": 2, **(sides or {})}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    given, made = (
        [
            helper.make_tensor_value_info(
                n, types.get(n, kind), [f"{n}{i}" for i in range(sides.get(n, 2))]
            )
            for n in names
        ]
        for names in (inputs, outputs)
    )
    held = [
        t if isinstance(t, TensorProto) else numpy_helper.from_array(t, name)
        for name, t in tensors.items()
    ]
    graph = helper.make_graph(nodes, "net", given, made, held)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)],
        ir_version=ir,
    )  # fmt: skip


def run(model, **inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    content = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options)
    return session.run(None, inputs)[0]


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node(*args, **values):
    return helper.make_node(*args, **values)


def several():
    """A convolution with groups, one without, and dense layers in each of the ways to write one."""
    nodes = [
        node("Conv", ["x", "conv"], ["a"], name="first", group=2, pads=[1] * 4, strides=[2, 2]),
        node("Conv", ["a", "conv2", "bias2"], ["b"], auto_pad="SAME_UPPER", dilations=[1, 1]),
        node("GlobalAveragePool", ["b"], ["c"]),
        node("Flatten", ["c"], ["d"]),
        node("Gemm", ["d", "gemm", "bias3"], ["e"], transB=1, alpha=0.5),
        node("Gemm", ["e", "plain"], ["f"]),
        node("MatMul", ["f", "matmul"], ["g"], name="/out/MatMul"),
        node("Add", ["g", "bias4"], ["h"]),
        node("Transpose", ["h"], ["i"], perm=[1, 0]),
        node("MatMul", ["left", "i"], ["y"]),
    ]  # fmt: skip
    tensors = {
        "conv": np.concatenate([spiked(24, 72, s) for s in (0, 1)]).reshape(48, 8, 3, 3),
        "conv2": spiked(64, 48 * 9, 2).reshape(64, 48, 3, 3), "bias2": normal(64),
        "gemm": spiked(80, 64, 3), "bias3": normal(80), "plain": spiked(80, 96, 4),
        "matmul": spiked(96, 120, 5), "bias4": normal(120), "left": spiked(40, 120, 6),
    }  # fmt: skip
    return graph_of(nodes, tensors, sides={"x": 4})
