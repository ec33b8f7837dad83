"""The smallest framework there can be: dense layers in NumPy, with ReLU between them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class Dense:
    """A fully connected layer; the weight is outputs x inputs."""

    weight: NDArray[np.floating]
    bias: NDArray[np.floating] | None = None

    def __call__(self, inputs):
        outputs = inputs @ self.weight.T
        return outputs if self.bias is None else outputs + self.bias

    def arrays(self):
        """Return the arrays by name."""
        return {name: array for name, array in vars(self).items() if array is not None}


@dataclass
class Net:
    """Layers by name, applied in their order."""

    layers: dict

    def __call__(self, inputs):
        first, *others = self.layers.values()
        values = first(inputs)
        for layer in others:
            values = layer(np.maximum(values, 0.0))
        return values

    def arrays(self):
        """Return the arrays of all layers by name."""
        return {
            f"{name}.{key}": array
            for name, layer in self.layers.items()
            for key, array in layer.arrays().items()
        }
