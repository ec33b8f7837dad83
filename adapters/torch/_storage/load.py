"""Loading a saved model onto a freshly built one."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._layers.replace import replace_layers
from rmtspec.adapters.torch._layers.split_layer import SplitLayer
from rmtspec.adapters.torch._layers.split_layers import SPLIT_TYPES
from rmtspec.adapters.torch._storage.state_dict import PICKLED
from rmtspec.adapters.torch._weights.layer_kinds import ROOT, matrices_of
from rmtspec.adapters.torch._weights.matrices import check_model
from rmtspec.adapting import Manifest, PathLike, SplitEntry, listed
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError


def load(
    skeleton: nn.Module | Callable[[], nn.Module],
    folder: PathLike,
    *,
    assign: bool = False,
    device: str | torch.device | None = None,
    verify: bool = True,
) -> Any:
    """Load a saved model onto a freshly built one of the original architecture.

    The skeleton's layers that were split are replaced, and all parameters and buffers get the saved
    values, in the dtype in which they were saved.

    Parameters
    ----------
    skeleton : torch.nn.Module, or callable that returns one
        As built by its class, before any split; its values do not matter. It is changed and
        returned.
    folder : path
        Written by `save`, or by ``rmtspec prune``, in one file or in several.
    assign : bool
        Put new parameters in place of the skeleton's; needed where these are on the meta device.
        Otherwise the parameters stay the same objects.
    device : str or torch.device, optional
        Where the model goes; by default where the skeleton's parameters are, the CPU for meta ones.
    verify : bool
        Compare the checksum of the weights with the manifest's, which reads the file once more.

    Returns
    -------
    torch.nn.Module
        `skeleton`, or a new layer where it is itself the layer that was split.

    Raises
    ------
    FileError
        A folder that was not written by `save`, of a later version, truncated or changed, or with
        files of weights that do not belong together.
    InvalidTypeError
        `skeleton` is neither a module nor a callable.
    InvalidValueError
        The skeleton does not match: the message lists keys and shapes. It is then untouched.
    """
    if not (isinstance(skeleton, nn.Module) or callable(skeleton)):
        raise InvalidTypeError(
            f"`skeleton` is a {type(skeleton).__name__}; expected a torch.nn.Module, or a "
            "function that builds one."
        )
    manifest = Manifest.read(_folder(folder))
    if verify:
        manifest.check_files(folder)
    stored = manifest.tensors(folder)
    model = _built(skeleton)
    new, sources = _split_layers(model, manifest)
    target = _Target(model, new, sources)
    target.check({n: t.shape for n, t in stored.items()}, manifest.tied, folder)
    if not assign and any(p.is_meta for p in model.parameters()):
        raise InvalidValueError(
            "`skeleton` has parameters on the meta device, which cannot be filled; pass "
            "assign=True to put the saved ones in their place."
        )
    empty = [n for n, b in model.named_buffers() if b.is_meta and n not in target.shapes]
    if empty:
        raise InvalidValueError(
            f"{listed(empty, most=8)} of `skeleton` are on the meta device and in no state dict: "
            "nothing can fill them. Build the skeleton on a real device, or with parameters only "
            "on meta."
        )
    if "" in new:
        model = new[""]
    else:
        replace_layers(model, new, inplace=True)
    files = {name: tensor.path for name, tensor in stored.items()}
    target.fill(model, files, manifest.tied, assign, device)
    return model


def _folder(folder: PathLike) -> PathLike:
    """Return `folder`, or raise for what is taken for one by mistake."""
    suffix = Path(folder).suffix.lower()
    if Path(folder).is_file() and suffix in (*PICKLED, ".safetensors"):
        raise FileError(
            f"{folder} is a file of weights; expected a folder written by `save`. For a state dict "
            "call model.load_state_dict(rt.read_state_dict(path)), then prune the model."
        )
    return folder


def _built(skeleton: Any) -> nn.Module:
    model = skeleton if isinstance(skeleton, nn.Module) else skeleton()
    check_model(model)
    return model


#: Where a factor's weight is found in the file: the key, and whether it is transposed there.
_Source = tuple[str, bool]


def _split_layers(
    model: nn.Module, manifest: Manifest
) -> tuple[dict[str, nn.Module], dict[str, _Source]]:
    """Return empty split layers by path, and where the weights of their factors are found."""
    new: dict[str, nn.Module] = {}
    sources: dict[str, _Source] = {}
    for entry in sorted(manifest.splits, key=lambda e: e.name.count(".") if e.name else -1):
        outer = next((p for p in new if p == "" or entry.name.startswith(f"{p}.")), None)
        holder, inside = (model, entry.name)
        if outer is not None and outer != entry.name:
            holder, inside = new[outer], entry.name.removeprefix(f"{outer}.")
        try:
            layer: Any = holder.get_submodule(inside)
        except AttributeError:
            raise InvalidValueError(
                f"`skeleton` has no layer {entry.name!r}, which was split in the saved model. "
                "Build the architecture that was pruned."
            ) from None
        split_layer = _empty(layer, entry)
        if outer is None:
            new[entry.name] = split_layer
        else:
            replace_layers(holder, {inside: split_layer}, inplace=True)
        sources |= _sources(entry, split_layer)
    return new, sources


def _empty(layer: Any, entry: SplitEntry) -> SplitLayer:
    """Return the split layer of an entry, made for the skeleton's layer, or raise."""
    if isinstance(layer, SplitLayer):
        raise InvalidValueError(
            f"`skeleton` has {entry.name or ROOT!r} split already; expected the architecture as it "
            "was before pruning. Build it anew."
        )
    found = next((m for m in matrices_of(layer) if m.key == "weight"), None)
    kind = "" if found is None else found.kind
    weight = layer._parameters.get("weight")
    shape = () if weight is None else tuple(weight.shape)
    same_kind = kind == entry.kind or (entry.kind == "tensor" and kind in SPLIT_TYPES)
    groups = int(getattr(layer, "groups", 1))
    if not same_kind or shape != entry.shape or groups != entry.groups:
        raise InvalidValueError(
            f"`skeleton` has {entry.name or ROOT!r} as {type(layer).__name__} with weight {shape}"
            f"{f', {groups} groups' if groups > 1 else ''}; the saved model has split a "
            f"{entry.original.rpartition('.')[2] or entry.kind} with weight {entry.shape}"
            f"{f', {entry.groups} groups' if entry.groups > 1 else ''}. Build the architecture "
            "that was pruned."
        )
    made = SPLIT_TYPES[kind].empty_like(layer, entry.rank)
    for factor in (made.inner, made.outer):
        factor.weight.requires_grad_(weight.requires_grad)
    if layer._parameters.get("bias") is not None:
        made.outer.bias = layer.bias
    return made


def _sources(entry: SplitEntry, layer: SplitLayer) -> dict[str, _Source]:
    """Return where a layer that was split in a file, its type unknown, has its factors.

    There "outer" and "inner" are those of the tensor as stored: outer @ inner.
    """
    if entry.kind != "tensor":
        return {}
    prefix = f"{entry.name}." if entry.name else ""
    inner, outer = f"{prefix}inner.weight", f"{prefix}outer.weight"
    if layer.kind == "transposed linear":
        return {inner: (outer, True), outer: (inner, True)}
    if layer.kind == "embedding":
        return {inner: (outer, False), outer: (inner, True)}
    return {}


class _Target:
    """The state dict that a skeleton has once its layers are split, and how to fill it."""

    def __init__(
        self, model: nn.Module, new: dict[str, nn.Module], sources: dict[str, _Source]
    ) -> None:
        self.sources = sources
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.devices: dict[str, torch.device] = {}
        self.objects: dict[str, int] = {}  # the same for keys that share a parameter
        for name, value in model.state_dict(keep_vars=True).items():
            if not any(path == "" or name.startswith(f"{path}.") for path in new):
                self.shapes[name] = tuple(value.shape)
                self.objects[name] = id(value)
        for path, layer in new.items():
            prefix = f"{path}." if path else ""
            dense: Any = model.get_submodule(path)
            for name, value in layer.state_dict(keep_vars=True).items():
                self.shapes[prefix + name] = tuple(value.shape)
                self.devices[prefix + name] = dense.weight.device

    def check(
        self, stored: dict[str, tuple[int, ...]], tied: dict[str, str], folder: PathLike
    ) -> None:
        """Raise unless the file has exactly these keys, in these shapes."""
        missing, wrong, apart = [], [], []
        used = set()
        first: dict[int, tuple[str, str]] = {}
        for name, shape in self.shapes.items():
            key, transposed = self.sources.get(name, (name, False))
            key = tied.get(key, key)
            found = stored.get(key)
            used.add(key)
            if found is None:
                missing.append(name)
            elif found != (shape[::-1] if transposed else shape):
                wrong.append(f"{name} {shape} in the skeleton, {found} in the file")
            other, other_key = first.setdefault(self.objects.get(name, id(name)), (name, key))
            if other_key != key:
                apart.append(f"{other} and {name}")
        unexpected = [name for name in stored if name not in used]
        unexpected += [name for name in tied if name not in self.shapes]
        parts = [
            f"{what}: {listed(names, most=8)}"
            for what, names in (
                ("not in the file", missing),
                ("not in the skeleton", unexpected),
                ("of another shape", wrong),
                ("one parameter in the skeleton, two in the file", apart),
            )
            if names
        ]
        if parts:
            raise InvalidValueError(
                f"`skeleton` does not match {folder}: {'; '.join(parts)}. Build the architecture "
                "that was pruned, as it was before the split."
            )

    def fill(
        self,
        model: nn.Module,
        files: dict[str, str],
        tied: dict[str, str],
        assign: bool,
        device: str | torch.device | None,
    ) -> None:
        """Give every parameter and persistent buffer its saved value; ties stay ties.

        `files` tells the file of each key. They are open, not loaded: one tensor is in memory.
        """
        from safetensors import safe_open

        done: dict[int, tuple[Any, nn.Parameter]] = {}
        with contextlib.ExitStack() as stack:
            opened = {
                file: stack.enter_context(safe_open(file, framework="pt", device="cpu"))
                for file in set(files.values())
            }
            for name in self.shapes:
                key, transposed = self.sources.get(name, (name, False))
                module = model.get_submodule(name.rpartition(".")[0])
                short = name.rpartition(".")[2]
                old: Any = getattr(module, short)
                if id(old) in done:
                    setattr(module, short, done[id(old)][1])
                    continue
                key = tied.get(key, key)
                value = opened[files[key]].get_tensor(key)
                place = self.devices.get(name, old.device) if device is None else device
                place = "cpu" if torch.device(place).type == "meta" else place
                value = (value.T.contiguous() if transposed else value).to(place, copy=True)
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
