"""Numba kernels: they take contiguous float64 arrays, and check and draw nothing."""
