"""One array: its spectrum, the noise in it, the test, the rank, the split."""
