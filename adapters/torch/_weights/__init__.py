"""The weight matrices of a model: which there are, and what each allows."""
