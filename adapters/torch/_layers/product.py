"""The weight of a split layer, computed from its factors, into which writes do not vanish."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch

#: Called with the values that the weight is to have.
Write = Callable[[torch.Tensor], None]

#: Functions that change their first argument and do not end in "_".
_WRITES = (
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__",
    "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
)  # fmt: skip


class Product(torch.Tensor):
    """A product of factors: read like any tensor; what is written into it becomes new factors.

    LoRA adapters merge by ``layer.weight.data += delta``, and loaders by ``layer.weight.copy_``; in
    a product that is computed on access both would be lost. Views of it are plain tensors.
    """

    _write: Write

    @staticmethod
    def of(values: torch.Tensor, write: Write) -> "Product":
        """Return values as a product; `write` puts others in their place."""
        made = values.as_subclass(Product)
        made._write = write
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch; one that writes into the product writes into the layer."""
        given = dict(kwargs or {})
        if not args and "tensor" in given:  # the initialisers of torch pass it so
            args = (given.pop("tensor"),)
        target = args[0] if args and isinstance(args[0], cls) else None
        out = given.get("out")
        if isinstance(out, cls):
            with torch._C.DisableTorchFunctionSubclass():
                del given["out"]
                return out._written(func(*args, **given))
        if target is not None and func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
            return cls.of(_plain(target).data, target._write)
        if target is not None and func == torch.Tensor.data.__set__:  # type: ignore[attr-defined]
            target._written(args[1])
            return None
        name = getattr(func, "__name__", "")
        settings = ("requires_grad_", "retain_grad", "detach_")
        writes = name in _WRITES or (
            name.endswith("_") and not name.endswith("__") and name not in settings
        )
        with torch._C.DisableTorchFunctionSubclass():
            if target is None or not writes:
                return func(*args, **given)
            with torch.no_grad():
                values = _plain(target).detach().clone()
                func(values, *args[1:], **given)
                return target._written(values)

    def _written(self, values: torch.Tensor) -> Self:
        """Hand the values to the layer, and return them as its product."""
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            self._write(values.detach())
            if values.shape == self.shape:
                _plain(self).detach().copy_(values)  # what else holds this tensor sees it too
        return self


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor)
