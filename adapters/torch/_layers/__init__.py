"""Split layers, and replacing the layers of a model by them and back."""

# Models that were pickled before these classes moved name them here.
from rmtspec.adapters.torch._layers.split_layers import (
    SplitConv1d,
    SplitConv2d,
    SplitConv3d,
    SplitEmbedding,
    SplitLinear,
)

__all__ = ["SplitConv1d", "SplitConv2d", "SplitConv3d", "SplitEmbedding", "SplitLinear"]
