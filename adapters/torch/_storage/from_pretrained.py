"""A pruned model of transformers from its folder alone: config, class and factors in one call."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from rmtspec.adapters.torch._layers.marked_config import MARK
from rmtspec.adapters.torch._storage.load import filled
from rmtspec.adapting import (
    MANIFEST,
    Manifest,
    MappedTensor,
    PathLike,
    bounded_json,
    manifest_entries,
    matrices_in,
)
from rmtspec.errors import FileError, InvalidValueError, MissingDependencyError


def from_pretrained(
    folder: PathLike, *, device: str | torch.device | None = None, verify: bool = True
) -> Any:
    """Load a pruned model of transformers from a folder: its class is that of its config.

    Parameters
    ----------
    folder : path
        Written by `save`, by ``save_pretrained`` of a pruned model, or by ``rmtspec prune``.
    device : str or torch.device, optional
        Where the model goes; by default the CPU.
    verify : bool
        Compare the checksum of the weights with the manifest's, where there is one.

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode. Tokenizers load from the folder as ever, if they are in it.

    Raises
    ------
    FileError
        The folder does not exist, has no config, or was damaged.
    InvalidValueError
        Its config names no class of transformers, or the weights do not fit it.
    MissingDependencyError
        transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            "from_pretrained needs transformers, which is not installed. Install it with: "
            'pip install "rmtspec[transformers]"'
        ) from error
    place = Path(folder)
    content = _config(place)
    names = content.get("architectures") or ["none"]
    cls: Any = getattr(transformers, str(names[0]), None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise InvalidValueError(
            f"{place / 'config.json'} names the class {names[0]!r}, which transformers "
            f"{transformers.__version__} does not have. Build the model yourself, and call "
            "rt.load(model, folder)."
        )
    kind: Any = cls.config_class
    config: Any = kind.from_pretrained(place)
    marked = getattr(config, "quantization_config", None)
    if isinstance(marked, dict) and MARK in marked:
        del config.quantization_config
    model = _without_weights(cls, config)
    if (place / MANIFEST).exists():
        manifest = Manifest.read(place)
        if verify:
            manifest.check_files(place)
        stored = manifest.tensors(place)
    else:
        splits = marked[MARK].get("splits", []) if isinstance(marked, dict) else []
        manifest = Manifest(manifest_entries(place / "config.json", splits), {}, {}, {})
        tensors = matrices_in(place, parts=False).tensors
        stored = {name: t for name, t in tensors.items() if isinstance(t, MappedTensor)}
    model = filled(model, manifest, stored, folder=place, assign=True, device=device)
    if (place / "generation_config.json").exists() and model.can_generate():
        model.generation_config = transformers.GenerationConfig.from_pretrained(place)
    return model.eval()


def _config(place: Path) -> dict[str, Any]:
    """Return the config of a folder as JSON values."""
    if not place.is_dir():
        state = "is a file" if place.exists() else "does not exist"
        raise FileError(f"{place} {state}; expected a folder of a pruned model. Check the path.")
    try:
        content = bounded_json(place / "config.json")
    except FileError:
        raise
    except FileNotFoundError:
        raise FileError(
            f"{place} has no config.json; expected a folder of a transformers model. Build the "
            "model yourself, and call rt.load(model, folder)."
        ) from None
    except (OSError, ValueError) as error:
        raise FileError(
            f"{place / 'config.json'} cannot be read: {error}. Copy it again."
        ) from error
    return content if isinstance(content, dict) else {}


def _without_weights(cls: Any, config: Any) -> Any:
    """Return the model of a class, its parameters on the meta device and its buffers real."""

    def emptied(module: nn.Module, name: str, parameter: Any) -> Any:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(emptied)
    try:
        return cls(config)
    finally:
        hook.remove()
