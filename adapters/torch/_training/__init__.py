"""Pruning while a model trains: the pruner, its optimizer and its file."""
