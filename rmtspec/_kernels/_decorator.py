"""The decorators of every kernel: the compilation policy."""

import numba

#: Compile on first call and keep the machine code on disk; release the GIL; IEEE semantics
#: (``fastmath`` off, division by zero gives inf, as in NumPy).
kernel = numba.njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
#: The same, but sums in any order, and products with their sums in one rounding, as BLAS does: for
#: inner products, which would otherwise add one term at a time.
reordering_kernel = numba.njit(
    cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy"
)
