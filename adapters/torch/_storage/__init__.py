"""Models on disk: factors with a manifest, state dicts, files of torch.save."""
