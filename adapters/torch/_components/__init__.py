"""The components of a layer in terms that people know: pictures, tokens, examples of a batch."""
