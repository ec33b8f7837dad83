"""Layers of two factors, and putting them in a model's place and back."""
