"""Adapter for PyTorch models; it needs torch and, in this version, exports nothing."""

from rmtspec.errors import MissingDependencyError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        "rmtspec.adapters.torch needs PyTorch, which is not installed. "
        'Install it with: pip install "rmtspec[torch]"'
    ) from error

__all__: list[str] = []
