"""The benchmark of compression needs PyTorch."""

import pytest

pytest.importorskip("torch")
