"""A trained model analysed, planned and pruned, with calibration data or without."""
