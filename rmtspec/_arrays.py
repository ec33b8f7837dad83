"""Arrays as people hold them: of NumPy, torch, JAX or CuPy, masked or sparse; and what is none.

No framework is imported here. An object of one can only exist if the user imported that framework,
so `sys.modules` tells which there are; what they share is DLPack [1]_.

.. [1] Python array API standard, "Data interchange mechanisms" (2024).
"""

import sys
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec._frameworks import array_of_tensor
from rmtspec.errors import InvalidTypeError, InvalidValueError

#: A sparse matrix of more entries than this is not made dense: 1 GiB of float64.
DENSE_ENTRIES = 2**27
#: Device type of DLPack that is the memory of the CPU.
_CPU = 1


def as_array(values: Any, name: str, *, matrix: bool = True) -> NDArray[Any]:
    """Return `values` as an array, a view where possible; dtype and shape are not checked.

    Where no `matrix` is expected, errors do not point to what serves other holders of matrices.

    Raises
    ------
    InvalidTypeError
        No array: a model, a mapping, a path; or one whose values are not in its memory (sparse in
        torch, quantised, on the meta device).
    InvalidValueError
        A masked array with masked entries, or a sparse matrix too large to be made dense.
    """
    if type(values) is np.ndarray:
        return values
    if isinstance(values, np.ma.MaskedArray):
        return _unmasked(values, name)
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(values, getattr(torch, "Tensor", ())):
        return array_of_tensor(values, name)
    sparse: Any = sys.modules.get("scipy.sparse")
    if sparse is not None and sparse.issparse(values):
        return _dense(values, name)
    if hint := call_for(values):
        expected = f"a matrix of numbers. {hint}" if matrix else "real numbers."
        raise InvalidTypeError(f"`{name}` is {_shown(values)}; expected {expected}")
    try:
        if hasattr(values, "__dlpack__") and _elsewhere(values):
            return np.from_dlpack(values, device="cpu", copy=True)
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError, BufferError, AttributeError) as error:
        problem = (str(error) or type(error).__name__).rstrip(".")
        raise InvalidTypeError(f"`{name}` cannot be read as an array: {problem}.") from error


def call_for(values: Any) -> str:
    """Return which call serves an object that is no array, as a sentence; "" for any other."""
    if values is None:
        return "Did an assignment or a function before it return nothing?"
    if isinstance(values, str | bytes) or hasattr(values, "__fspath__"):
        return "For the matrices of a file call rmtspec.checkpoint.matrices_in(path)."
    if is_model(values):
        return (
            "For the layers of a torch model call rmtspec.adapters.torch.analyze(model); for one "
            "layer pass layer.weight."
        )
    if isinstance(values, Mapping):
        return "For a mapping {name: matrix}, such as a state dict, call rmtspec.analyze_many."
    if callable(getattr(values, "get_weights", None)) and not hasattr(values, "__array__"):
        return "Pass one of its arrays, or all: rmtspec.analyze_many(list(W.get_weights()))."
    if hasattr(values, "__array__") or hasattr(values, "__dlpack__"):
        return ""
    if hasattr(values, "n_spikes_low"):  # an estimate
        return "An estimated spectrum has no singular values: pass the matrix itself."
    if callable(values):
        return "If it is a matrix of a file, not yet loaded, call it: it returns the array."
    if hasattr(values, "matrices"):
        return "For all matrices that it lists call rmtspec.analyze_many(W.matrices)."
    if isinstance(values, Iterator | Set):
        return "Pass an array or a list of rows; for several matrices call rmtspec.analyze_many."
    return ""


def is_model(values: Any) -> bool:
    """Tell whether an object is a model or a layer of torch, or behaves as one."""
    if not callable(getattr(values, "state_dict", None)):  # as good as all others
        return False
    return callable(getattr(values, "named_parameters", None)) and not isinstance(values, type)


def _shown(values: Any) -> str:
    """Return a value as an error names it: short ones whole, others by their class."""
    if values is None or isinstance(values, str | bytes) or hasattr(values, "__fspath__"):
        return repr(values)
    return f"a {type(values).__name__}"


def _unmasked(values: np.ma.MaskedArray[Any, Any], name: str) -> NDArray[Any]:
    count = int(np.ma.getmaskarray(values).sum())
    if not count:
        return np.asarray(values.data)
    raise InvalidValueError(
        f"`{name}` has {count} masked entries of {values.size}; expected a full matrix: the "
        f"spectrum of one with gaps is not defined. Fill them, {name}.filled(value), or drop their "
        f"rows or columns, numpy.ma.compress_rows({name}) or numpy.ma.compress_cols({name})."
    )


def _dense(values: Any, name: str) -> NDArray[Any]:
    entries = int(np.prod(values.shape, dtype=object))
    if entries > DENSE_ENTRIES:
        raise InvalidValueError(
            f"`{name}` is a sparse matrix of shape {values.shape}, {entries:,} entries when dense; "
            f"expected at most {DENSE_ENTRIES:,}, because all singular values are computed from "
            f"the dense matrix. Pass a block of it, or {name}.toarray() if the memory suffices."
        )
    return np.asarray(values.toarray())


def _elsewhere(values: Any) -> bool:
    """Tell whether an array can be had through DLPack alone: it is on a device, or no other way."""
    if not hasattr(values, "__array__"):
        return True
    device = getattr(values, "__dlpack_device__", None)
    # JAX copies from its devices by itself, and knows bfloat16, which DLPack of NumPy does not.
    return device is not None and device()[0] != _CPU and "cupy" in type(values).__module__
