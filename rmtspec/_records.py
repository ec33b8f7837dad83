"""Values as files hold them: JSON types, and the versions that the numbers depend on."""

import math
import platform
from enum import Enum
from importlib.metadata import version
from typing import Any

import numpy as np

from rmtspec._lapack import used

_PLAIN = frozenset({str, int, bool, type(None)})


def plain(value: Any) -> Any:
    """Return `value` in JSON types; nan and infinities, which JSON lacks, become None."""
    kind = type(value)
    if kind in _PLAIN:  # most values are
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def versions(*more: str) -> dict[str, str]:
    """Return the versions that the numbers depend on, and those of the packages in `more`.

    "eigenvalues" says which LAPACK finds those of large matrices.
    """
    names = ("rmtspec", "numpy", "scipy", "numba", *more)
    found = {name: version(name) for name in names}
    return {**found, "python": platform.python_version(), "eigenvalues": used()}
