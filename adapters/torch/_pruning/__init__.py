"""A trained model: analysed, planned, pruned, with data or without."""
