"""What is decided before anything is touched: which matrices, which ranks, when."""
