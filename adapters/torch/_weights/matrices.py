"""The weights of a model as named matrices; those that are not matrices with the reason."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from rmtspec.adapters.torch._weights.layer_kinds import ROOT, is_plain, matrices_in_module
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Kind, Why, is_head
from rmtspec.errors import InvalidTypeError, InvalidValueError

_WRAPPERS = {
    "DistributedDataParallel": "model.module",
    "DataParallel": "model.module",
    "FullyShardedDataParallel": "the model before it was wrapped",
    "OptimizedModule": "model._orig_mod",
}


class NamedMatrix(NamedTuple):
    """A pair of name and matrix, as `weight_matrices` yields it."""

    name: str
    matrix: WeightMatrix

    @property
    def kind(self) -> str:
        """Kind of the matrix."""
        return self.matrix.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        return self.matrix.shape

    @property
    def reason(self) -> str:
        """Why the matrix cannot be read; empty if it can."""
        return self.matrix.reason


def weight_matrices(model: nn.Module) -> Iterator[NamedMatrix]:
    """Yield every weight of a model as a named matrix, or with the reason why it is not one.

    The model is neither copied nor changed, and no hooks are registered; a matrix is read when it
    is called.

    Parameters
    ----------
    model : torch.nn.Module

    Yields
    ------
    NamedMatrix
        A pair (name, `WeightMatrix`), in the order of the model's modules.

    Raises
    ------
    InvalidTypeError
        `model` is not a module, or is wrapped for parallel work or compiled.
    InvalidValueError
        It has a lazy layer that has not seen a batch yet.

    Notes
    -----
    ======================  =================================================================
    layer                   matrices
    ======================  =================================================================
    Linear                  out x in
    Conv1D (transformers)   out x in, the stored weight transposed
    Conv1d, 2d, 3d          out x (in * kernel), one per group
    ConvTranspose           in x (out * kernel), one per group
    Embedding               number x dimension
    MultiheadAttention      q, k, v
    LSTM, GRU, RNN, cells   one per gate of each weight
    experts, in a stack     one per expert, the first dimension
    other parameters        2-D: the matrix, unless it is a bias; more: as the modelling code
                            multiplies them, if that is known (attention of XLNet, Funnel and
                            TransformerLens, layers per codebook), or as the layer's attribute
                            `matrix_axes` says: ``{"w": "h n d -> (n d) h"}``
    ======================  =================================================================

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU())
    >>> for name, matrix in rt.weight_matrices(model):
    ...     print(name, matrix.shape, matrix.kind or matrix.reason)
    0 (30, 20) linear
    0.bias (30,) 1 dimension: a vector has no spectrum
    """
    check_model(model)
    return _all_matrices(model)


def check_model(model: object) -> None:
    """Raise unless `model` is a plain module whose weights can be read."""
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(
            f"`model` is a {type(model).__name__}; expected a torch.nn.Module. For arrays call "
            "rmtspec.analyze_many({name: array}); for a file, rmtspec.checkpoint.matrices_in."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InvalidTypeError(
            "`model` is a ScriptModule, whose layers are fixed; expected the module it was made "
            "from. Pass that, and script the result."
        )
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in _WRAPPERS and type(module).__module__.startswith("torch."):
            place = f" at {name!r}" if name else ""
            raise InvalidTypeError(
                f"`model` is wrapped{place} in {kind}; expected the model itself. Pass "
                f"{_WRAPPERS[kind]}, and wrap the result."
            )
        dotted = next((child for child in module._modules if "." in child), None)
        if dotted is not None:
            raise InvalidValueError(
                f"`model` has a child named {dotted!r}; expected names without dots, as torch's "
                "add_module does, since dots separate names. Rename it."
            )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InvalidValueError(
                f"{name!r} belongs to a lazy layer that has no weight yet. Run one batch through "
                "the model first: model(example)."
            )


def _all_matrices(model: nn.Module) -> Iterator[NamedMatrix]:
    users, heads = _users(model), _heads(model)
    owners, split = _owners(model), _split(model)
    computing = nn.utils.parametrize.ParametrizationList
    inside: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, computing):
            inside.append(f"{path}.")
        if f"{path}.".startswith(tuple(inside)):
            continue  # a weight is computed from it
        for matrix in matrices_in_module(path or ROOT, path, module, owners.get(path, "")):
            head = matrix.kind == Kind.LINEAR and path in heads
            factor_of = next((p for p in split if path.startswith(f"{p}.".lstrip("."))), None)
            yield NamedMatrix(
                matrix.name,
                replace(
                    _with_ties(matrix, users), head=head,
                    factor_of="" if factor_of is None else factor_of or ROOT,
                ),
            )  # fmt: skip


def _with_ties(matrix: WeightMatrix, users: dict[Any, list[str]]) -> WeightMatrix:
    """Return `matrix` with its ties: it is read under its first name, the others refer to that."""
    if matrix.reason or matrix.parameter is None:
        return matrix
    first, *others = users[memory_of(matrix.parameter)]
    if first != matrix.key:
        return replace(matrix, reason=Why.TIED_ELSEWHERE.words(name=first))
    return replace(matrix, tied=Why.TIED.words(names=", ".join(others))) if others else matrix


def memory_of(tensor: torch.Tensor) -> Any:
    """Return what identifies a weight under several names: its memory, or else the object."""
    if tensor.is_meta or tensor.layout is not torch.strided or not is_plain(tensor):
        return id(tensor)
    return (tensor.device, tensor.data_ptr()) if tensor.numel() else id(tensor)


def _users(model: nn.Module) -> dict[Any, list[str]]:
    """Return all names of each parameter, through shared modules too."""
    users: dict[Any, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(memory_of(parameter), []).append(name)
    return users


def _heads(model: nn.Module) -> set[str]:
    """Return the paths of the output heads: by the model's own word, or by their names."""
    ask: Any = getattr(model, "get_output_embeddings", None)
    known = None
    with contextlib.suppress(RuntimeError, AttributeError):  # not every class has an answer
        known = ask() if callable(ask) else None
    return {path for path, module in model.named_modules() if module is known or is_head(path)}


def _split(model: nn.Module) -> list[str]:
    """Return the paths of the layers that were split: they know the type that they had."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(getattr(module, "original_type", None), type) and module._modules
    ]


def _owners(model: nn.Module) -> dict[str, str]:
    """Return the paths of layers whose weights are read by their parent's forward, with reasons."""
    reason = Why.READ_BY_LAYER.words(type="MultiheadAttention")
    return {
        f"{path}.out_proj".lstrip("."): reason
        for path, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }
