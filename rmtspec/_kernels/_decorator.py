"""The decorator of every kernel: the compilation policy."""

import numba

#: Compile on first call and keep the machine code on disk; release the GIL; IEEE semantics
#: (``fastmath`` off, division by zero gives inf, as in NumPy).
kernel = numba.njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
