"""What is decided before any weight is changed: which matrices, which ranks, when."""
