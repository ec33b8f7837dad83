"""Saving a pruned model and loading it back: safetensors and a manifest, no pickle."""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rmtspec._files import PathLike, finished_folder
from rmtspec._manifest import WEIGHTS, Manifest, SplitEntry
from rmtspec._results import versions
from rmtspec._safetensors import stored_tensors
from rmtspec._safetensors_writer import Outgoing, format_dtype, write_safetensors
from rmtspec.adapters.torch._layers import SPLIT_TYPES, SplitLayer
from rmtspec.adapters.torch._matrices import (
    ROOT,
    check_model,
    matrices_of,
    memory_of,
    unreadable,
)
from rmtspec.adapters.torch._replace import replace_layers
from rmtspec.adapters.torch._tensors import to_numpy
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError

_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


def save(model: nn.Module, folder: PathLike) -> Path:
    """Save a model, split layers included, into a new folder.

    The folder gets ``rmtspec.safetensors`` with the tensors of the state dict, shared ones once,
    and the manifest ``rmtspec.json``. A transformers model's config files are written too. The
    folder appears under its name only when it is whole.

    Parameters
    ----------
    model : torch.nn.Module
    folder : path
        Does not exist yet, or is empty.

    Returns
    -------
    Path
        Of the folder.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        A wrapped model, or a state dict with something that is no dense tensor with values.
    FileError
        The folder is not empty or cannot be written; nothing is left there.

    Examples
    --------
    >>> import tempfile, torch
    >>> from rmtspec.adapters import torch as rt
    >>> smaller, _ = rt.prune(rt.MLP([64, 100, 10]), ranks={"layers.0": 8})
    >>> with tempfile.TemporaryDirectory() as place:
    ...     saved = rt.save(smaller, f"{place}/small")
    ...     loaded = rt.load(rt.MLP([64, 100, 10]), saved)
    >>> x = torch.ones(1, 64)
    >>> bool((loaded(x) == smaller(x)).all())
    True
    """
    check_model(model)
    tensors, tied = _state(model)
    outgoing = [
        Outgoing(name, _dtype(value), tuple(value.shape), partial(_array, value))
        for name, value in tensors.items()
    ]
    modules = model.named_modules()
    entries = tuple(_entry(path, m) for path, m in modules if isinstance(m, SplitLayer))
    with finished_folder(folder) as work:
        digest = write_safetensors(work / WEIGHTS, outgoing, {"format": "pt"})
        size = (work / WEIGHTS).stat().st_size
        files = {WEIGHTS: {"bytes": size, "sha256": digest}}
        Manifest(entries, tied, files, versions("torch")).write(work)
        for config in (getattr(model, "config", None), getattr(model, "generation_config", None)):
            if callable(getattr(config, "save_pretrained", None)):
                config.save_pretrained(work)  # type: ignore[union-attr]
    return Path(folder)


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
        Written by `save`, or by ``rmtspec prune``.
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
        A folder that was not written by `save`, of a later version, truncated or changed.
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
    file = _weights_file(folder, manifest)
    shapes = {tensor.name: tensor.shape for tensor in stored_tensors(file)}
    model = _built(skeleton)
    new, sources = _split_layers(model, manifest)
    target = _Target(model, new, sources)
    target.check(shapes, manifest.tied, folder)
    if not assign and any(p.is_meta for p in model.parameters()):
        raise InvalidValueError(
            "`skeleton` has parameters on the meta device, which cannot be filled; pass "
            "assign=True to put the saved ones in their place."
        )
    empty = [n for n, b in model.named_buffers() if b.is_meta and n not in target.shapes]
    if empty:
        raise InvalidValueError(
            f"{_listed(empty)} of `skeleton` are on the meta device and in no state dict: nothing "
            "can fill them. Build the skeleton on a real device, or with parameters only on meta."
        )
    if "" in new:
        model = new[""]
    else:
        replace_layers(model, new, inplace=True)
    target.fill(model, file, manifest.tied, assign, device)
    return model


def read_state_dict(path: PathLike) -> dict[str, torch.Tensor]:
    """Read a state dict from a .pt, .pth, .bin, .ckpt or .safetensors file, without running code.

    Pickled files are read with ``weights_only=True``, never otherwise, and mapped into memory.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    FileError
        No such file, damaged, of another format, one that would run code, or no state dict.

    Examples
    --------
    >>> import tempfile, torch
    >>> from rmtspec.adapters import torch as rt
    >>> with tempfile.TemporaryDirectory() as place:
    ...     torch.save(torch.nn.Linear(3, 2).state_dict(), f"{place}/layer.pt")
    ...     {name: tuple(t.shape) for name, t in rt.read_state_dict(f"{place}/layer.pt").items()}
    {'weight': (2, 3), 'bias': (2,)}
    """
    file = Path(path)
    if not file.is_file():
        state = "is a folder" if file.is_dir() else "does not exist"
        raise FileError(f"{file} {state}; expected a file of weights. Check the path.")
    if file.suffix.lower() == ".safetensors":
        stored_tensors(file)  # what is wrong with the header is said better there
        from safetensors.torch import load_file

        found: Any = load_file(file)
    elif file.suffix.lower() in _SUFFIXES:
        found = _unpickled(file)
    else:
        raise FileError(
            f"{file} has the suffix {file.suffix!r}; expected .safetensors or "
            f"{', '.join(_SUFFIXES)}."
        )
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]  # as training loops save it
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise FileError(
            f"{file} holds a {type(found).__name__}, not a state dict of tensors. Save "
            "model.state_dict() in it."
        )
    return dict(found)


def _unpickled(file: Path) -> Any:
    import pickle

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # and goes on to read it
            try:
                return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(file, map_location="cpu", weights_only=True)  # the old format
    except pickle.UnpicklingError as error:
        first = str(error).splitlines()[0]
        raise FileError(
            f"{file} cannot be read without running code that is pickled in it, which is never "
            f"done here ({first}). Where you trust it, load it yourself and save "
            "model.state_dict() with safetensors.torch.save_file."
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise FileError(
            f"{file} is damaged or no file of torch.save "
            f"({(str(error).splitlines() or ['it ends too early'])[0]}). Copy or save it again."
        ) from error


def _state(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors of the state dict, each memory once, and which keys share them."""
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        reason = unreadable(value, codes=True)
        if reason and not (isinstance(value, torch.Tensor) and reason == "empty"):
            raise InvalidValueError(
                f"The state dict has {name!r}, which cannot be saved: {reason}. Expected dense "
                "tensors with values."
            )
        place = (memory_of(value), tuple(value.shape), value.stride(), value.dtype)
        if place in seen:
            tied[name] = seen[place]
        else:
            seen[place] = name
            tensors[name] = value.detach()
    return tensors, tied


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(to_numpy(tensor)).reshape(tensor.shape)


def _dtype(tensor: torch.Tensor) -> str:
    return format_dtype(to_numpy(tensor.new_empty(0, device="cpu")).dtype)


def _entry(path: str, layer: SplitLayer) -> SplitEntry:
    kind = layer.original_type
    return SplitEntry(
        name=path,
        kind=layer.kind,
        rank=layer.rank,
        shape=layer.dense_shape,
        original=f"{kind.__module__}.{kind.__qualname__}",
        groups=int(getattr(layer, "groups", 1)),
    )


def _folder(folder: PathLike) -> PathLike:
    """Return `folder`, or raise for what is taken for one by mistake."""
    suffix = Path(folder).suffix.lower()
    if Path(folder).is_file() and suffix in (*_SUFFIXES, ".safetensors"):
        raise FileError(
            f"{folder} is a file of weights; expected a folder written by `save`. For a state dict "
            "call model.load_state_dict(rt.read_state_dict(path)), then prune the model."
        )
    return folder


def _weights_file(folder: PathLike, manifest: Manifest) -> Path:
    names = [name for name in manifest.files if name.endswith(".safetensors")]
    if len(names) != 1:
        raise FileError(
            f"{folder} has {len(names)} files of weights in its manifest; expected one. Save the "
            "model again."
        )
    return Path(folder, names[0])


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
            f"{what}: {_listed(names)}"
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
        file: Path,
        tied: dict[str, str],
        assign: bool,
        device: str | torch.device | None,
    ) -> None:
        """Give every parameter and persistent buffer its saved value; ties stay ties."""
        from safetensors import safe_open

        done: dict[int, tuple[Any, nn.Parameter]] = {}
        with safe_open(file, framework="pt", device="cpu") as stored:
            for name in self.shapes:
                key, transposed = self.sources.get(name, (name, False))
                module = model.get_submodule(name.rpartition(".")[0])
                short = name.rpartition(".")[2]
                old: Any = getattr(module, short)
                if id(old) in done:
                    setattr(module, short, done[id(old)][1])
                    continue
                value = stored.get_tensor(tied.get(key, key))
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


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return ", ".join(listed[:8]) + more
