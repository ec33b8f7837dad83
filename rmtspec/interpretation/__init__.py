"""What the leading directions of a matrix are, in terms that a person knows."""
