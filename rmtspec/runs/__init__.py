"""Long runs over weight files: analysing, pruning, merging; they resume after a kill."""
