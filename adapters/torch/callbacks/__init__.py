"""Callbacks that split layers while a trainer of another library trains.

from rmtspec.adapters.torch.callbacks.lightning import RMTPrunerCallback
from rmtspec.adapters.torch.callbacks.transformers import RMTPrunerCallback

Each file imports only its own library. `split_as` gives a freshly built model the split layers of a
checkpoint that either library wrote.
"""

from rmtspec.adapters.torch.callbacks._split_as import split_as

__all__ = ["split_as"]
