"""Adapters between rmtspec and deep-learning frameworks, one folder each."""
