"""Callbacks that split layers while a trainer of another library trains.

from rmtspec.adapters.torch.callbacks.lightning import RMTPrunerCallback
from rmtspec.adapters.torch.callbacks.transformers import RMTPrunerCallback

Neither library is imported before its file is. `split_as` gives a freshly built model the layers of
a checkpoint that either of them wrote.
"""

from rmtspec.adapters.torch.callbacks._split_as import split_as

__all__ = ["split_as"]
