"""Split layers, and replacing the layers of a model by them and back."""
