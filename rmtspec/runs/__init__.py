"""Long work on weight files: analysing, pruning, merging; killed at any point, it goes on."""
