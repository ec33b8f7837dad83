"""Laws of random matrices: one law per module."""
