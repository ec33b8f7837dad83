"""Splitting a layer in the model and in the optimizer: both, or neither."""

import contextlib
from collections.abc import Iterator, Mapping

from torch import nn

from rmtspec.adapters.torch._layers.replace import replace_layers
from rmtspec.adapters.torch._layers.split_layer import SplitLayer
from rmtspec.adapters.torch._training.optimizer import FactorOptimizer


@contextlib.contextmanager
def together(model: nn.Module, optimizer: FactorOptimizer) -> Iterator[None]:
    """Undo what is done to modules and optimizer in this block if it does not end."""
    modules = {module: dict(module._modules) for module in model.modules()}
    known = optimizer.snapshot()
    try:
        yield
    except BaseException:
        for module, children in modules.items():
            module._modules.clear()
            module._modules.update(children)
        optimizer.restore(known)
        raise


class Merged:
    """Split layers of a model, merged until they are split anew; those that are not come back.

    Attributes
    ----------
    layers : dict of str to SplitLayer
        As they were, by path.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, SplitLayer]) -> None:
        self.layers = dict(layers)
        self._model = model
        self._places = [
            (path, module, child)
            for path, layer in layers.items()
            for module in model.modules()
            for child, held in module._modules.items()
            if held is layer
        ]
        self._done: set[str] = set()
        try:
            for path, layer in layers.items():
                replace_layers(model, {path: layer.merged(path)}, inplace=True)
        except BaseException:
            self.put_back()
            raise

    def done(self, path: str) -> None:
        """Note that a layer is split anew."""
        self._done.add(path)

    def put_back(self) -> None:
        """Put the layers that were not split anew in their places."""
        for path, module, child in self._places:
            if path not in self._done:
                module._modules[child] = self.layers[path]
