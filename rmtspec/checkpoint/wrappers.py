"""What wrappers put before every name of a state dict."""

#: Of DistributedDataParallel, torch.compile, EMA, Lightning.
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "ema_model.")


def is_wrapper(prefix: str) -> bool:
    """Tell whether a prefix is that of one or several wrappers: "module._orig_mod."."""
    while prefix:
        first = next((each for each in WRAPPERS if prefix.startswith(each)), None)
        if first is None:
            return False
        prefix = prefix.removeprefix(first)
    return True
