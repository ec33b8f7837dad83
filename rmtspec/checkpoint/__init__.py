"""Weight files: which matrices they hold, each read when it is asked for, and writing new ones.

Nothing is ever unpickled here, and only headers are read until a matrix is called for. A file that
torch.save wrote is read by the torch adapter, which runs no code in it either.
"""

from rmtspec.checkpoint.listing import CONFIG, Checkpoint, matrices_in
from rmtspec.checkpoint.stored import StoredMatrix

__all__ = ["CONFIG", "Checkpoint", "StoredMatrix", "matrices_in"]
