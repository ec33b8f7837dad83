"""What the leading directions of a layer are: images, tokens, examples."""
