"""Round-to-nearest quantisation to 4 bits: groups of 128 entries share scale and offset."""

import copy

import torch

GROUP = 128


def four_bits(model, layers):
    """Return a copy of the model with the weights of the layers rounded, and the bits per entry."""
    small = copy.deepcopy(model)
    for name in layers:
        weight = small.get_submodule(name).weight.detach()
        padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % GROUP))
        groups = padded.reshape(len(weight), -1, GROUP)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = ((high - low) / 15).clamp_min(1e-12)
        rounded = ((groups - low) / scale).round() * scale + low
        with torch.no_grad():
            small.get_submodule(name).weight.copy_(
                rounded.reshape(padded.shape)[:, : weight.shape[1]]
            )
    return small, 4 + 32 / GROUP
