"""Adapter for PyTorch: analyse a model, prune it, undo that, save and load the result.

from rmtspec.adapters import torch as rt
smaller, report = rt.prune(model)
"""

from rmtspec.adapting import Calibration, Costs
from rmtspec.errors import MissingDependencyError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        "rmtspec.adapters.torch needs PyTorch, which is not installed. "
        'Install it with: pip install "rmtspec[torch]"'
    ) from error

from rmtspec.adapters.torch._calibration.calibrate import calibrate
from rmtspec.adapters.torch._layers.measure import measure_costs
from rmtspec.adapters.torch._layers.narrowed_linear import NarrowedLinear
from rmtspec.adapters.torch._layers.quantize import quantize_factors
from rmtspec.adapters.torch._layers.replace import merge
from rmtspec.adapters.torch._layers.split_layer import SplitLayer
from rmtspec.adapters.torch._layers.split_layers import (
    SplitConv1d,
    SplitConv2d,
    SplitConv3d,
    SplitEmbedding,
    SplitLinear,
)
from rmtspec.adapters.torch._models import MLP, count_parameters, layer_dims
from rmtspec.adapters.torch._pruning.analysis import analyze
from rmtspec.adapters.torch._pruning.compare import compare
from rmtspec.adapters.torch._pruning.noise_test import noise_test
from rmtspec.adapters.torch._pruning.prune import apply_plan, plan, prune
from rmtspec.adapters.torch._pruning.trade_off import trade_off
from rmtspec.adapters.torch._storage.from_pretrained import from_pretrained
from rmtspec.adapters.torch._storage.load import load
from rmtspec.adapters.torch._storage.save import save
from rmtspec.adapters.torch._storage.state_dict import read_state_dict
from rmtspec.adapters.torch._training.penalties import BulkPenalty, shrink_singular_values
from rmtspec.adapters.torch._training.pruner import RMTPruner
from rmtspec.adapters.torch._training.refit import refit
from rmtspec.adapters.torch._weights.matrices import NamedMatrix, weight_matrices
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix

__all__ = [
    "MLP", "BulkPenalty", "Calibration", "Costs", "NamedMatrix", "NarrowedLinear", "RMTPruner",
    "SplitConv1d", "SplitConv2d", "SplitConv3d", "SplitEmbedding",
    "SplitLayer", "SplitLinear", "WeightMatrix",
    "analyze", "apply_plan", "calibrate", "compare", "count_parameters", "from_pretrained",
    "layer_dims", "load", "measure_costs", "merge", "noise_test", "plan", "prune",
    "quantize_factors", "read_state_dict", "refit", "save", "shrink_singular_values", "trade_off",
    "weight_matrices",
]  # fmt: skip
