"""The weight matrices of a model: which ones there are, and what each allows."""
