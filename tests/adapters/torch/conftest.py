"""Trained networks for the tests: the MNIST net with its images, CIFAR ResNets."""

import gzip

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cifar_resnet import ResNet  # noqa: E402
from torch import nn  # noqa: E402

from rmtspec.adapters import torch as rt  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


def mnist_skeleton():
    return nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 10))


@pytest.fixture(scope="session")
def _mnist_state(data_folder):
    return rt.read_state_dict(data_folder / "models" / "mlp-784-1000-10-mnist.safetensors")


@pytest.fixture
def mnist_net(_mnist_state):
    """784-1000-10, trained: Example 4.1 of the paper."""
    model = mnist_skeleton()
    model.load_state_dict(_mnist_state)
    return model


@pytest.fixture(scope="session")
def mnist(data_folder):
    """Return (10,000 training images, test images, test labels)."""
    folder = data_folder / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST: {folder} is no folder; set RMTSPEC_DATA")

    def read(name, header):
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8)[header:]

    train, test = (
        torch.from_numpy(
            read(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 784) / np.float32(255)
        )
        for part in ("train", "t10k")
    )
    labels = torch.from_numpy(read("t10k-labels-idx1-ubyte.gz", 8).astype(np.int64))
    return train[:10_000], test, labels


@pytest.fixture
def accuracy(mnist):
    """Return accuracy(model) on the 10,000 test images, in per cent."""
    _, images, labels = mnist

    def measure(model):
        with torch.no_grad():
            return 100.0 * float((model(images).argmax(1) == labels).float().mean())

    return measure


@pytest.fixture(params=[20, 56])
def resnet(request, data_folder):
    """A CIFAR-10 ResNet with weights trained by others, loaded with strict keys."""
    path = data_folder / "models" / f"resnet{request.param}-cifar10.safetensors"
    model = ResNet(request.param)
    model.load_state_dict(rt.read_state_dict(path), strict=True)
    return model.eval()
