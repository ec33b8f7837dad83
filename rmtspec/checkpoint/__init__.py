"""Weight files: listing their matrices, reading each on demand, and writing new files.

Nothing is ever unpickled, and only headers are read until a matrix is called. Files written by
torch.save are read by the torch adapter, which does not run any code in them either.
"""

from rmtspec.checkpoint.listing import CONFIG, Checkpoint, matrices_in
from rmtspec.checkpoint.stored import StoredMatrix, StoredTensor

__all__ = ["CONFIG", "Checkpoint", "StoredMatrix", "StoredTensor", "matrices_in"]
