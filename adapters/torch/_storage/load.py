"""Loading a saved model into a freshly built one."""

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from rmtspec.adapters.torch._layers.entries import made_empty
from rmtspec.adapters.torch._layers.marked_config import mark
from rmtspec.adapters.torch._layers.narrowed_linear import NarrowedLinear
from rmtspec.adapters.torch._layers.replace import replace_layers
from rmtspec.adapters.torch._layers.split_layer import SplitLayer, memory_format
from rmtspec.adapters.torch._storage.extra_states import is_extra, restore_extra_states
from rmtspec.adapters.torch._storage.names import in_model
from rmtspec.adapters.torch._weights.matrices import check_model
from rmtspec.adapting import (
    SUFFIXES,
    Kind,
    Manifest,
    MappedTensor,
    PathLike,
    SplitEntry,
    listed,
)
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError

#: Where the file has a factor's weight: the key, and whether it is transposed there.
_Source = tuple[str, bool]
_Stored = dict[str, MappedTensor]


def load(
    skeleton: nn.Module | Callable[[], nn.Module],
    folder: PathLike,
    *,
    assign: bool = False,
    device: str | torch.device | None = None,
    verify: bool = True,
) -> Any:
    """Load a saved model into a freshly built one of the original architecture.

    The layers of the skeleton that were split are replaced, and all parameters and buffers get the
    saved values, in the dtype in which they were saved.

    Parameters
    ----------
    skeleton : torch.nn.Module, or callable that returns one
        As its class builds it, before any split; its values do not matter. It is changed in place.
    folder : path
        Written by `save` or by ``rmtspec prune``, with one file of weights or several.
    assign : bool
        Replace the skeleton's parameters by new ones; necessary if they are on the meta device.
        Otherwise the parameters remain the same objects.
    device : str or torch.device, optional
        Where the model goes; by default where the skeleton's parameters are, the CPU for meta ones.
    verify : bool
        Compare the checksum of the weights with the manifest's, which reads the files once more.

    Returns
    -------
    torch.nn.Module
        `skeleton`, or a new layer if it is itself the layer that was split.

    Raises
    ------
    FileError
        The folder was not written by `save`, or by a later version; a file was truncated or
        changed; or the files of weights do not belong together.
    InvalidTypeError
        `skeleton` is neither a module nor a callable.
    InvalidValueError
        The skeleton does not match: the message lists keys and shapes. It is then not changed.
    """
    if not (isinstance(skeleton, nn.Module) or callable(skeleton)):
        raise InvalidTypeError(
            f"`skeleton` is a {type(skeleton).__name__}; expected a torch.nn.Module, or a "
            "function that builds one."
        )
    path = Path(folder)
    if path.is_file() and path.suffix.lower() in (*SUFFIXES, ".safetensors"):
        raise FileError(
            f"{folder} is a file of weights; expected a folder written by `save`. For a state dict "
            "call model.load_state_dict(rt.read_state_dict(path)), then prune the model."
        )
    manifest = Manifest.read(folder)
    if verify:
        manifest.check_files(folder)
    stored = manifest.tensors(folder)
    model: Any = skeleton if isinstance(skeleton, nn.Module) else skeleton()
    return filled(model, manifest, stored, folder=folder, assign=assign, device=device)


def filled(
    model: nn.Module,
    manifest: Manifest,
    stored: dict[str, MappedTensor],
    *,
    folder: PathLike,
    assign: bool,
    device: str | torch.device | None,
) -> Any:
    """Return a freshly built model with the layers of a manifest and the values of its tensors."""
    check_model(model)
    manifest, stored = in_model(model, manifest, stored)
    new, sources = _split_layers(model, manifest)
    wanted = _shared(_wanted(model, new, sources, manifest.tied), stored)
    extra = {key for key in _kept_state(model, new) if is_extra(key)}
    _check(wanted, stored, manifest, extra, folder=folder)
    if not assign and any(p.is_meta for p in model.parameters()):
        raise InvalidValueError(
            "`skeleton` has parameters on the meta device, which cannot be filled. Pass "
            "assign=True to replace them by the saved ones."
        )
    empty = [n for n, b in model.named_buffers() if b.is_meta and n not in wanted]
    if empty:
        raise InvalidValueError(
            f"{listed(empty, most=8)} of `skeleton` are on the meta device and in no state dict: "
            "nothing can fill them. Build the skeleton on a real device, or with only its "
            "parameters on meta."
        )
    model = new[""] if "" in new else replace_layers(model, new, inplace=True)
    _fill(model, wanted, stored, assign=assign, device=device)
    tensors = _read(extra & stored.keys(), stored)
    restore_extra_states(model, {**tensors, **manifest.extra_states})
    mark(model)
    return model


def _split_layers(
    model: nn.Module, manifest: Manifest
) -> tuple[dict[str, nn.Module], dict[str, _Source]]:
    """Return empty split layers by path, and where the file has the weights of their factors."""
    new: dict[str, nn.Module] = {}
    sources: dict[str, _Source] = {}
    for entry in sorted(manifest.splits, key=lambda e: e.name.count(".") if e.name else -1):
        outer = next((p for p in new if p == "" or entry.name.startswith(f"{p}.")), None)
        holder, inside = model, entry.name
        if outer is not None:
            holder, inside = new[outer], entry.name.removeprefix(f"{outer}.")
        try:
            layer: Any = holder.get_submodule(inside)
        except AttributeError:
            raise InvalidValueError(
                f"`skeleton` has no layer {entry.name!r}, which was split in the saved model. "
                "Build the architecture that was pruned."
            ) from None
        split_layer = made_empty(layer, entry)
        if outer is None:
            new[entry.name] = split_layer
        else:
            replace_layers(holder, {inside: split_layer}, inplace=True)
        sources |= _sources(entry, split_layer)
    return new, sources


def _sources(entry: SplitEntry, layer: SplitLayer | NarrowedLinear) -> dict[str, _Source]:
    """Return where the factors are of a layer that was split in a file, its type unknown.

    Their names in the file follow from the tensor as stored, which is outer @ inner.
    """
    if entry.kind != Kind.TENSOR or isinstance(layer, NarrowedLinear):
        return {}
    prefix = f"{entry.name}." if entry.name else ""
    inner, outer = f"{prefix}inner.weight", f"{prefix}outer.weight"
    if layer.kind == Kind.TRANSPOSED_LINEAR:
        return {inner: (outer, True), outer: (inner, True)}
    if layer.kind == Kind.EMBEDDING:
        return {inner: (outer, False), outer: (inner, True)}
    return {}


class _Wanted(NamedTuple):
    """A parameter or buffer that the loaded model has, and where the file has its values."""

    shape: tuple[int, ...]
    device: torch.device
    identity: int  # the same for names that share a parameter
    key: str
    transposed: bool


_State = dict[str, _Wanted]


def _wanted(
    model: nn.Module, new: dict[str, nn.Module], sources: dict[str, _Source], tied: dict[str, str]
) -> _State:
    """Return the entries of the state dict once layers of `model` are replaced by `new`."""
    values = [
        (name, value, value.device)
        for name, value in _kept_state(model, new).items()
        if not is_extra(name)
    ]
    for path, layer in new.items():
        prefix = f"{path}." if path else ""
        device: Any = model.get_submodule(path).weight.device
        state = layer.state_dict(keep_vars=True)
        values += [(prefix + name, value, device) for name, value in state.items()]
    wanted = {}
    for name, value, device in values:
        key, transposed = sources.get(name, (name, False))
        shape, key = tuple(value.shape), tied.get(key, key)
        wanted[name] = _Wanted(shape, device, id(value), key=key, transposed=transposed)
    return wanted


def _kept_state(model: nn.Module, new: dict[str, nn.Module]) -> dict[str, Any]:
    """Return the entries of the state dict outside the layers that are replaced."""
    return {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if not any(path == "" or name.startswith(f"{path}.") for path in new)
    }


def _shared(wanted: _State, stored: _Stored) -> _State:
    """Let names of one parameter have one source: files may leave all but one of them out."""
    held: dict[int, dict[str, None]] = {}
    for each in wanted.values():
        if each.key in stored:
            held.setdefault(each.identity, {})[each.key] = None
    sources = {identity: next(iter(keys)) for identity, keys in held.items() if len(keys) == 1}
    return {
        name: each._replace(key=sources.get(each.identity, each.key))
        for name, each in wanted.items()
    }


def _check(
    wanted: _State, stored: _Stored, manifest: Manifest, extra: set[str], *, folder: PathLike
) -> None:
    """Raise unless the file has exactly what is wanted, in these shapes."""
    missing, wrong, apart = [], [], []
    first: dict[int, str] = {}
    for name, (shape, _, identity, key, transposed) in wanted.items():
        if key not in stored:
            missing.append(name)
        elif stored[key].shape != (shape[::-1] if transposed else shape):
            wrong.append(f"{name} {shape} in the skeleton, {stored[key].shape} in the file")
        other = first.setdefault(identity, name)
        if wanted[other].key != key:
            apart.append(f"{other} and {name}")
    missing += sorted(extra - stored.keys() - manifest.extra_states.keys())
    used = {each.key for each in wanted.values()} | extra
    unexpected = [name for name in (*stored, *manifest.extra_states) if name not in used]
    unexpected += [name for name in manifest.tied if name not in wanted]
    differences = {
        "not in the file": missing,
        "not in the skeleton": unexpected,
        "of another shape": wrong,
        "one parameter in the skeleton, two in the file": apart,
    }
    parts = [f"{what}: {listed(names, most=8)}" for what, names in differences.items() if names]
    if parts:
        raise InvalidValueError(
            f"`skeleton` does not match {folder}: {'; '.join(parts)}. Build the architecture "
            "that was pruned, as it was before the split."
        )


def _read(names: Iterable[str], stored: _Stored) -> dict[str, torch.Tensor]:
    """Return tensors of the files."""
    from safetensors import safe_open

    found = {}
    for name in names:
        with safe_open(stored[name].path, framework="pt", device="cpu") as file:
            found[name] = file.get_tensor(stored[name].name)
    return found


def _fill(model: nn.Module, wanted: _State, stored: _Stored, *, assign: bool, device: Any) -> None:
    """Fill every parameter and persistent buffer, one tensor at a time; ties are kept."""
    from safetensors import safe_open

    done: dict[int, tuple[Any, Any]] = {}
    with contextlib.ExitStack() as stack:
        opened = {
            file: stack.enter_context(safe_open(file, framework="pt", device="cpu"))
            for file in {tensor.path for tensor in stored.values()}
        }
        for name, source in wanted.items():
            path, _, short = name.rpartition(".")
            module = model.get_submodule(path)
            old: Any = getattr(module, short)
            if id(old) in done:
                setattr(module, short, done[id(old)][1])
                continue
            value = opened[stored[source.key].path].get_tensor(stored[source.key].name)
            value = value.T if source.transposed else value
            place = torch.device(source.device if device is None else device)
            place = torch.device("cpu") if place.type == "meta" else place
            value = value.to(place, copy=True, memory_format=memory_format(old))
            if not isinstance(old, nn.Parameter):
                module._buffers[short] = value
            elif assign or old.is_meta or old.device != value.device:
                fresh = nn.Parameter(value, requires_grad=old.requires_grad)
                done[id(old)] = (old, fresh)
                setattr(module, short, fresh)
            else:
                old.data = value
                done[id(old)] = (old, old)
    if device is not None:
        model.to(device)
