"""Calibration: what batches of data say about the layers of a model."""
