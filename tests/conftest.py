"""Shared by all tests: hypothesis profiles, the folder of data that is not in the repository."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

# Before NumPy loads: two workers with two BLAS threads each fight over two cores.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import matplotlib
import pytest
from hypothesis import settings

matplotlib.use("Agg")
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("local", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder with mnist/ and models/: RMTSPEC_DATA, else shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RMTSPEC_DATA", beside))
    if not (folder / "models").is_dir():
        pytest.skip(f"no trained weights: {folder / 'models'} is no folder; set RMTSPEC_DATA")
    return folder


@pytest.fixture(scope="session")
def needs_packages() -> Callable[..., None]:
    """Skip a test unless these packages, which no extra installs, are there."""

    def check(*names: str) -> None:
        absent = [name for name in names if importlib.util.find_spec(name) is None]
        if absent:
            pytest.skip(f"not installed: {', '.join(absent)} (requirements/bench.txt, models.txt)")

    return check
