"""Images for networks of CIFAR-10, whose own are not at hand: pieces of two photographs."""

import numpy as np
import torch
from torch.nn import functional

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photographs(count=256, seed=0):
    """Pieces of two photographs, shrunk to 32 x 32 and normalised as in training."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    images = load_sample_images().images
    pieces = []
    for number in range(count):
        image = images[number % 2]
        top, left = (rng.integers(0, side - 64) for side in image.shape[:2])
        pieces.append(image[top : top + 64, left : left + 64])
    x = torch.as_tensor(np.stack(pieces)).permute(0, 3, 1, 2).float() / 255
    x = functional.avg_pool2d(x, 2)
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
