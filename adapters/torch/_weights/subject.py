"""The matrices of a model that a user selects."""

from collections.abc import Callable, Mapping

from torch import nn

from rmtspec.adapters.torch._weights.layer_kinds import path_of
from rmtspec.adapters.torch._weights.matrices import weight_matrices
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Selection, Subject


def subject_of(
    model: nn.Module,
    selection: Selection,
    leave: Callable[[WeightMatrix], str] | None = None,
    matrices: Mapping[str, WeightMatrix] | None = None,
) -> Subject[WeightMatrix]:
    """Return the matrices that a user selects; predicates are called with (name, module).

    `matrices` are those to select from, by default all of the model.
    """
    matrices = dict(weight_matrices(model)) if matrices is None else matrices
    modules = dict(model.named_modules())
    return Subject(
        matrices,
        selection,
        f"this {type(model).__name__}",
        owner_of=lambda matrix: modules[path_of(matrix)],
        leave=leave,
        hint="Names are those of model.named_modules().",
    )
