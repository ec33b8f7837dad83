"""Adapter for ONNX: analyse the weights of a graph, prune it, undo that, and save the result.

from rmtspec.adapters import onnx as ro
smaller, report = ro.prune("model.onnx")
"""

from rmtspec.adapting import Calibration
from rmtspec.errors import MissingDependencyError

try:
    import onnx as _onnx  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        "rmtspec.adapters.onnx needs the package onnx, which is not installed. "
        'Install it with: pip install "rmtspec[onnx]"'
    ) from error

from rmtspec.adapters.onnx._calibration import calibrate
from rmtspec.adapters.onnx._file import save
from rmtspec.adapters.onnx._nodes import merge
from rmtspec.adapters.onnx._pruning import analyze, apply_plan, plan, prune
from rmtspec.adapters.onnx._weights import GraphMatrix, weight_matrices

__all__ = [
    "Calibration", "GraphMatrix", "analyze", "apply_plan", "calibrate", "merge", "plan", "prune",
    "save", "weight_matrices",
]  # fmt: skip
