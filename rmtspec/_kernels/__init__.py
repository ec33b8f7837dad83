"""numba kernels: float64 contiguous arrays in, no checks, no random numbers."""
